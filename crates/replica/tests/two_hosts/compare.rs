//! Comparing a disk with the replica's newest point.

use journal::compare::{BlockHashes, Blocks};
use pollux_replica::wire::{Basis, Compare, CompareAnswer, Offer, RegionDigest, RegionHashes};

use super::*;

const MIB: usize = 1 << 20;

/// A replica with one point of a disk of 16 MiB, of which 8,000 KiB are noise.
struct Fixture {
    a: Host,
    b: Host,
    replicas: Arc<Replicas>,
    _serving: Serving,
    client: Arc<PeerClient>,
    spec: VmSpec,
    ask: Enrol,
    link: PeerLink,
    /// What the disk holds at the point.
    content: Vec<u8>,
}

impl Fixture {
    async fn new() -> Self {
        let fixture = Self::seeded().await;
        let seed = fixture.ask.seed;
        let since = Since::Seed { seed, parts: 1 };
        let first = Content::Delta { sequence: 1, since };
        fixture.send(first, 16, 1).await;
        fixture
    }

    /// The same without the point.
    async fn seeded() -> Self {
        let (a, b, replicas, serving) = pair().await;
        let (client, spec) = (a.client("host-b"), spec());
        let ask = enrol(&spec);
        client.enrol(spec.id, &ask).await.unwrap();
        let link = PeerLink::new(client.clone(), spec.id, ask.relationship);
        let mut content = noise(1, 2000 * 4096);
        content.resize(16 * MIB, 0);
        let fixture = Self {
            a,
            b,
            replicas,
            _serving: serving,
            client,
            spec,
            ask,
            link,
            content,
        };
        let seed = fixture.ask.seed;
        fixture.send(Content::Seed { seed, part: 0 }, 2000, 1).await;
        fixture
    }

    fn point(&self, sequence: u64) -> PointId {
        PointId {
            term: self.ask.lineage.current().id,
            sequence,
        }
    }

    fn staged(&self, content: Content, blocks: usize, salt: u64) -> Staged {
        let header = header(&self.spec, &self.ask.lineage, content);
        segment(&self.a.path, header, blocks, salt)
    }

    /// Offers a segment and stores its only chunks, or as many as it has.
    async fn put(&self, staged: &Staged) -> Root {
        let offer = outbox::offer(&staged.file).await.unwrap();
        let OfferAnswer::Missing { chunks } = self.link.offer(&offer).await.unwrap() else {
            panic!("it fits")
        };
        for n in chunks {
            let chunk = outbox::chunk(staged, n).await.unwrap();
            self.link.put(offer.root, n, chunk).await.unwrap();
        }
        offer.root
    }

    async fn send(&self, content: Content, blocks: usize, salt: u64) {
        let root = self.put(&self.staged(content, blocks, salt)).await;
        let answer = self.link.commit(root).await.unwrap();
        assert!(matches!(answer, CommitAnswer::Committed { .. }));
    }

    /// Asks about all regions of `content`.
    fn compare(&self, content: &[u8]) -> Compare {
        let regions = (0..).zip(content.chunks(MIB)).map(|(region, content)| {
            let digest = Digest(BlockHashes::of(content).digest());
            RegionDigest { region, digest }
        });
        Compare {
            lineage: self.ask.lineage.clone(),
            basis: Basis::Point {
                point: self.point(1),
            },
            issued: 1,
            disk: self.spec.disks[0].id,
            size: model::Bytes(content.len() as u64),
            regions: regions.collect(),
        }
    }

    async fn differ(&self, asked: &Compare) -> Vec<RegionHashes> {
        match self.link.compare(asked).await.unwrap() {
            CompareAnswer::Compared { differ } => differ,
            other => panic!("{other:?}"),
        }
    }

    async fn refused(&self, link: &PeerLink, asked: &Compare) -> Problem {
        match link.compare(asked).await.unwrap_err() {
            LinkError::Refused(problem) => problem,
            LinkError::Lost(problem) => panic!("no answer: {problem}"),
        }
    }
}

#[tokio::test]
async fn a_comparison_names_the_blocks_that_differ_and_no_others() {
    let fixture = Fixture::new().await;
    let same = fixture.compare(&fixture.content);
    assert_eq!(fixture.differ(&same).await, []);
    // In the noise, across its end, and in what was never written; and the disk grew.
    let mut ours = fixture.content.clone();
    for block in [3, 4, 1999, 2000, 4095] {
        ours[block * 4096 + 17] ^= 1;
    }
    ours.resize(18 * MIB, 0);
    ours[17 * MIB] = 1;
    let asked = fixture.compare(&ours);
    let found: Vec<(u64, Vec<Blocks>)> = fixture
        .differ(&asked)
        .await
        .into_iter()
        .map(|theirs| {
            let at = usize::try_from(theirs.region).unwrap() * MIB;
            let ours = BlockHashes::of(&ours[at..at + MIB]);
            (theirs.region, ours.differ(&theirs.hashes))
        })
        .collect();
    let runs = |list: &[(u64, u64)]| list.iter().map(|run| Blocks::from(*run)).collect();
    assert_eq!(
        found,
        [
            (0, runs(&[(3, 2)])),
            (7, runs(&[(1999 - 7 * 256, 2)])),
            (15, runs(&[(255, 1)])),
            (17, runs(&[(0, 1)])),
        ]
    );
}

#[tokio::test]
async fn what_was_sent_before_a_comparison_is_not_let_in_after_it() {
    let fixture = Fixture::new().await;
    let since = Since::Point(fixture.point(1));
    let late = fixture.staged(Content::Delta { sequence: 2, since }, 16, 2);
    let root = fixture.put(&late).await;
    // The primary lost power here, and has issued three numbers.
    let mut asked = fixture.compare(&fixture.content);
    asked.issued = 3;
    assert_eq!(fixture.differ(&asked).await, []);
    let answer = fixture.link.commit(root).await.unwrap();
    assert!(
        matches!(&answer, CommitAnswer::Again { problem } if problem.code == Code::NotFound),
        "{answer:?}"
    );
    for sequence in [2, 3] {
        let late = fixture.staged(Content::Delta { sequence, since }, 16, sequence);
        let offer = outbox::offer(&late.file).await.unwrap();
        let answer = fixture.link.offer(&offer).await.unwrap();
        assert!(matches!(answer, OfferAnswer::Unfit { .. }), "{answer:?}");
    }
    // A smaller number, should that come late too, lets nothing in again.
    asked.issued = 1;
    assert_eq!(fixture.differ(&asked).await, []);
    let late = fixture.staged(Content::Delta { sequence: 3, since }, 16, 5);
    let offer = outbox::offer(&late.file).await.unwrap();
    let answer = fixture.link.offer(&offer).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Unfit { .. }), "{answer:?}");
    let next = Content::Delta { sequence: 4, since };
    fixture.send(next, 16, 4).await;
}

#[tokio::test]
async fn a_comparison_with_another_point_than_the_newest_is_not_made() {
    let fixture = Fixture::new().await;
    let since = Since::Point(fixture.point(1));
    let asked = fixture.compare(&fixture.content);
    assert_eq!(fixture.differ(&asked).await, []);
    fixture
        .send(Content::Delta { sequence: 2, since }, 16, 2)
        .await;
    let answer = fixture.link.compare(&asked).await.unwrap();
    let moved = |tip| matches!(tip, Tip::Point { point, .. } if point == fixture.point(2));
    assert!(
        matches!(answer, CompareAnswer::Moved { tip } if moved(tip)),
        "{answer:?}"
    );
    // The point that was open for the comparison before is not taken for the new one.
    let asked = Compare {
        basis: Basis::Point {
            point: fixture.point(2),
        },
        ..asked
    };
    let differ = fixture.differ(&asked).await;
    let regions: Vec<u64> = differ.iter().map(|theirs| theirs.region).collect();
    assert_eq!(regions, [0]);
}

#[tokio::test]
async fn while_there_is_no_point_nothing_is_compared() {
    let (a, _b, _replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let asked = Compare {
        lineage: ask.lineage.clone(),
        basis: Basis::Point {
            point: PointId {
                term: ask.lineage.current().id,
                sequence: 1,
            },
        },
        issued: 1,
        disk: spec.disks[0].id,
        size: spec.disks[0].size,
        regions: vec![RegionDigest {
            region: 0,
            digest: Digest::of(b""),
        }],
    };
    let answer = link.compare(&asked).await.unwrap();
    assert!(
        matches!(
            answer,
            CompareAnswer::Moved {
                tip: Tip::Seeding { .. }
            }
        ),
        "{answer:?}"
    );
}

#[tokio::test]
async fn what_came_of_an_initial_replication_is_compared_and_nothing_else_by_its_name() {
    let fixture = Fixture::seeded().await;
    let seed = fixture.ask.seed;
    let basis = |seed, parts, round| Basis::Seed { seed, parts, round };
    let about = |content: &[u8], basis| Compare {
        basis,
        ..fixture.compare(content)
    };
    let same = about(&fixture.content, basis(seed, 1, 1));
    assert_eq!(fixture.differ(&same).await, []);
    // One block, and the disk grew.
    let mut ours = fixture.content.clone();
    ours[3 * 4096] ^= 1;
    ours.resize(17 * MIB, 0);
    ours[16 * MIB] = 1;
    let differ = fixture.differ(&about(&ours, basis(seed, 1, 1))).await;
    let regions: Vec<u64> = differ.iter().map(|theirs| theirs.region).collect();
    assert_eq!(regions, [0, 16]);
    let hashes = BlockHashes::of(&ours[..MIB]);
    assert_eq!(hashes.differ(&differ[0].hashes), [Blocks::from((3, 1))]);
    let point = fixture.point(1);
    for other in [
        basis(SeedId::random(), 1, 1),
        basis(seed, 0, 1),
        basis(seed, 2, 1),
        Basis::Point { point },
    ] {
        let asked = about(&fixture.content, other);
        let answer = fixture.link.compare(&asked).await.unwrap();
        let moved = |tip| matches!(tip, Tip::Seeding { seed: s, parts: 1, .. } if s == seed);
        assert!(
            matches!(answer, CompareAnswer::Moved { tip } if moved(tip)),
            "{other:?}: {answer:?}"
        );
    }
    // By another host, or in the name of another relationship.
    let other = Host::new("host-o");
    other.trusts(&fixture.b, "host-b", fixture._serving.address);
    fixture
        .b
        .trusts(&other, "host-o", "127.0.0.1:1".parse().unwrap());
    let (vm, relationship) = (fixture.spec.id, fixture.ask.relationship);
    for link in [
        PeerLink::new(other.client("host-b"), vm, relationship),
        PeerLink::new(fixture.client.clone(), vm, RelationshipId::random()),
    ] {
        let problem = fixture.refused(&link, &same).await;
        assert_eq!(problem.code, Code::NotFound, "{problem}");
    }
}

#[tokio::test]
async fn a_part_that_was_sent_before_a_comparison_is_not_let_in_after_it() {
    let fixture = Fixture::seeded().await;
    let seed = fixture.ask.seed;
    let in_round = |round| Compare {
        basis: Basis::Seed {
            seed,
            parts: 1,
            round,
        },
        ..fixture.compare(&fixture.content)
    };
    let next = fixture.staged(Content::Seed { seed, part: 1 }, 16, 7);
    let root = fixture.put(&next).await;
    let regions = async |asked: &Compare| -> Vec<u64> {
        let differ = fixture.differ(asked).await;
        differ.iter().map(|theirs| theirs.region).collect()
    };
    // What came of it is in the base, and is found.
    assert_eq!(regions(&in_round(1)).await, [0]);
    let answer = fixture.link.commit(root).await.unwrap();
    assert!(
        matches!(&answer, CommitAnswer::Again { problem } if problem.code == Code::NotFound),
        "{answer:?}"
    );
    let offer = outbox::offer(&next.file).await.unwrap();
    let answer = fixture.link.offer(&offer).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Unfit { .. }), "{answer:?}");
    // In the round, it comes. A question of the same round does not send it away, nor a late one.
    let offer = Offer { round: 1, ..offer };
    let OfferAnswer::Missing { chunks } = fixture.link.offer(&offer).await.unwrap() else {
        panic!("it fits")
    };
    for n in chunks {
        let chunk = outbox::chunk(&next, n).await.unwrap();
        fixture.link.put(root, n, chunk).await.unwrap();
    }
    assert_eq!(regions(&in_round(1)).await, [0]);
    let answer = fixture.link.compare(&in_round(0)).await.unwrap();
    assert_eq!(answer, CompareAnswer::Late { round: 1 });
    let answer = fixture.link.commit(root).await.unwrap();
    assert!(matches!(answer, CommitAnswer::Committed { .. }));
    // The base that was open for the comparison is not taken for the new one.
    let answer = fixture.link.compare(&in_round(1)).await.unwrap();
    assert!(matches!(answer, CompareAnswer::Moved { .. }), "{answer:?}");
    let asked = Compare {
        basis: Basis::Seed {
            seed,
            parts: 2,
            round: 2,
        },
        ..fixture.compare(&fixture.content)
    };
    assert_eq!(regions(&asked).await, [0]);
}

#[tokio::test]
async fn hostile_comparisons_are_refused_and_strangers_learn_nothing() {
    let fixture = Fixture::new().await;
    let good = fixture.compare(&fixture.content);
    let region = |region| RegionDigest {
        region,
        digest: Digest::of(b""),
    };
    let regions = |regions: Vec<RegionDigest>| Compare {
        regions,
        ..good.clone()
    };
    let size = |size| Compare {
        size: model::Bytes(size),
        ..good.clone()
    };
    let strange = Compare {
        disk: DiskId::random(),
        ..good.clone()
    };
    let huge = Compare {
        size: model::Bytes(u64::MAX - 4095),
        ..regions(vec![region(u64::MAX)])
    };
    for (what, asked) in [
        ("none", regions(vec![])),
        ("too many", regions((0..65).map(region).collect())),
        ("twice the same", regions(vec![region(1), region(1)])),
        ("falling", regions(vec![region(1), region(0)])),
        ("past the end", regions(vec![region(0), region(16)])),
        ("far past the end", huge),
        ("no size", size(0)),
        ("half a block", size((16 << 20) + 512)),
        (
            "a disk that shrank",
            Compare {
                regions: vec![region(0)],
                ..size(8 << 20)
            },
        ),
        ("another disk", strange),
    ] {
        let problem = fixture.refused(&fixture.link, &asked).await;
        assert_eq!(problem.code, Code::Invalid, "{what}: {problem}");
    }
    // As far as it may go: 64 regions, at the end of a disk that grew beyond all bounds.
    let last = (u64::MAX - 4095) >> 20;
    let far = Compare {
        size: model::Bytes(u64::MAX - 4095),
        ..regions((last - 64..last).map(region).collect())
    };
    assert_eq!(fixture.differ(&far).await.len(), 64);

    let other = Host::new("host-o");
    other.trusts(&fixture.b, "host-b", fixture._serving.address);
    let address = "127.0.0.1:1".parse().unwrap();
    fixture.b.trusts(&other, "host-o", address);
    let (vm, relationship) = (fixture.spec.id, fixture.ask.relationship);
    for link in [
        PeerLink::new(other.client("host-b"), vm, relationship),
        PeerLink::new(fixture.client.clone(), vm, RelationshipId::random()),
        PeerLink::new(fixture.client.clone(), VmId::random(), relationship),
    ] {
        let problem = fixture.refused(&link, &good).await;
        assert_eq!(problem.code, Code::NotFound, "{problem}");
    }

    // The replica took over.
    let theirs = fixture.ask.lineage.branch(fixture.point(1), "host-b");
    let lineage = theirs.unwrap();
    let taken = lineage.clone();
    fixture
        .replicas
        .with(vm, move |enrolled| {
            enrolled.standing.role = Role::FailedOver;
            enrolled.standing.lineage = taken;
        })
        .unwrap();
    let answer = fixture.link.compare(&good).await.unwrap();
    assert_eq!(answer, CompareAnswer::Superseded { lineage });
}
