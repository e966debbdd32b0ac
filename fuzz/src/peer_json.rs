//! Bodies that another host sends, as a question or as an answer: read strictly, written, read again.

use std::fmt::Debug;

use jiff::Timestamp;
use journal::compare::BlockHashes;
use journal::{Consistency, Content, DiskExtent, Header, Root};
use model::{
    BLOCK_SIZE, Bytes, Code, DiskId, Lineage, PointId, Problem, RelationshipId, SeedId, Since,
    VmId, VmSpec,
};
use replica::lease::Fence;
use replica::standing::Role;
use replica::wire::{
    Basis, CHUNK, CommitAnswer, Compare, CompareAnswer, Configuration, Configure, ConfigureAnswer,
    Contact, ContactAnswer, Differs, Digest, Enrol, Enrolled, Filling, Hello, LeaseAnswer,
    LeaseRequest, Offer, OfferAnswer, PartnerStanding, Reception, RegionDigest, RegionHashes,
    Reverse, Reversed, StandDown, StoodDownFor, Tip, TipAnswer,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Keys and values.
pub const WORDS: &[&str] = &[
    "\"answer\"",
    "\"tip\"",
    "\"nothing\"",
    "\"seeding\"",
    "\"point\"",
    "\"lineage\"",
    "\"superseded\"",
    "\"reception\"",
    "\"revision\"",
    "\"configuration\"",
    "\"configured\"",
    "\"spec\"",
    "\"disks\"",
    "\"seed\"",
    "\"seed_from\"",
    "\"keep\"",
    "\"frequency_s\"",
    "\"lease\"",
    "\"fence\"",
    "\"standing\"",
    "\"role\"",
    "\"primary\"",
    "\"replica\"",
    "\"failed-over\"",
    "\"basis\"",
    "\"regions\"",
    "\"digest\"",
    "\"hashes\"",
    "\"compared\"",
    "\"moved\"",
    "\"late\"",
    "\"header\"",
    "\"root\"",
    "\"file_len\"",
    "\"chunks\"",
    "\"round\"",
    "\"missing\"",
    "\"committed\"",
    "\"unfit\"",
    "\"again\"",
    "\"problem\"",
    "18446744073709551615",
    "67e55044-10b1-426f-9247-bb680e5fe0c8",
];

/// What reads as a `T` is written as what reads as the same.
fn again<T: Debug + PartialEq + Serialize + DeserializeOwned>(data: &[u8]) -> Option<T> {
    let value = serde_json::from_slice::<T>(data).ok()?;
    let text = serde_json::to_vec(&value).expect("what was read is written");
    let written: T = serde_json::from_slice(&text).expect("what was written is read");
    assert_eq!(written, value);
    Some(value)
}

/// One body.
pub fn run(data: &[u8]) {
    let _any = is_read(data);
}

/// Whether it reads as anything that a host sends.
#[must_use]
pub fn is_read(data: &[u8]) -> bool {
    let read = [
        is_question(data),
        again::<Hello>(data).is_some(),
        again::<Enrolled>(data).is_some(),
        again::<ContactAnswer>(data).is_some(),
        again::<StoodDownFor>(data).is_some(),
        again::<Reversed>(data).is_some(),
        again::<TipAnswer>(data).is_some(),
        again::<ConfigureAnswer>(data).is_some(),
        again::<CompareAnswer>(data).is_some(),
        again::<OfferAnswer>(data).is_some(),
        again::<CommitAnswer>(data).is_some(),
        again::<Problem>(data).is_some(),
        std::str::from_utf8(data).is_ok_and(is_part),
    ];
    read.contains(&true)
}

fn is_question(data: &[u8]) -> bool {
    let configure: Option<Configure> = again(data);
    if let Some(Configure { configuration, .. }) = &configure {
        let text = serde_json::to_vec(configuration).expect("what was read is written");
        let written: Configuration = serde_json::from_slice(&text).expect("and read");
        assert_eq!(written.revision(), configuration.revision());
    }
    let offer: Option<Offer> = again(data);
    if let Some(offer) = &offer {
        let count = Offer::chunk_count(offer.file_len);
        let last = Offer::chunk_len(offer.file_len, count.saturating_sub(1));
        assert!(last <= CHUNK && (last > 0) == (offer.file_len > 0));
        assert_eq!(Offer::chunk_len(offer.file_len, count), 0);
    }
    let read = [
        configure.is_some(),
        offer.is_some(),
        again::<Enrol>(data).is_some(),
        again::<Contact>(data).is_some(),
        again::<StandDown>(data).is_some(),
        again::<Reverse>(data).is_some(),
        again::<Compare>(data).is_some(),
    ];
    read.contains(&true)
}

/// Whether it is a part of a path, or of a header.
fn is_part(text: &str) -> bool {
    let read = [
        again_text::<Root>(text),
        again_text::<Digest>(text),
        again_text::<VmId>(text),
        again_text::<RelationshipId>(text),
    ];
    read.contains(&true)
}

fn again_text<T: PartialEq + Debug + std::str::FromStr + ToString>(text: &str) -> bool {
    let value = text.parse::<T>().ok();
    if let Some(value) = &value {
        assert_eq!(value.to_string().parse().ok().as_ref(), Some(value));
    }
    value.is_some()
}

/// A body of every kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let spec = crate::vm_toml::seeds();
    let specs = spec.iter().map(|text| {
        let text = std::str::from_utf8(text).expect("text");
        VmSpec::from_toml(text).expect("a good VM")
    });
    let mut seeds: Vec<Vec<u8>> = specs.flat_map(|spec| of_spec(&spec)).collect();
    seeds.extend(of_a_point());
    seeds.extend(of_content());
    seeds
}

fn body(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("has a JSON form")
}

fn a_point() -> PointId {
    PointId {
        term: Lineage::begin("castor").current().id,
        sequence: 7,
    }
}

fn a_problem() -> Problem {
    Problem::new(Code::Full, "a store", "has no room", "make some")
}

/// What says what a VM is.
fn of_spec(spec: &VmSpec) -> Vec<Vec<u8>> {
    let configuration = Configuration {
        spec: spec.clone(),
        disks: spec.disks.iter().map(|disk| disk.id).collect(),
        frequency_s: 30,
        keep: "1h:all,24h:hourly".parse().ok(),
    };
    let enrol = Enrol {
        relationship: RelationshipId::random(),
        spec: spec.clone(),
        disks: configuration.disks.clone(),
        frequency_s: 30,
        keep: configuration.keep.clone(),
        revision: configuration.revision(),
        seed: SeedId::random(),
        seed_from: "web".parse().ok(),
        lineage: Lineage::begin("castor"),
    };
    let reverse = Reverse {
        enrol: enrol.clone(),
        newest: a_point(),
        newest_cut: Some(Timestamp::UNIX_EPOCH),
    };
    let configure = Configure {
        lineage: enrol.lineage.clone(),
        revision: enrol.revision,
        configuration,
    };
    vec![body(&enrol), body(&reverse), body(&configure)]
}

/// What says who may run it, and what the replica has.
fn of_a_point() -> Vec<Vec<u8>> {
    let lineage = Lineage::begin("castor");
    let tip = Tip::Point {
        point: a_point(),
        root: Root([7; 32]),
    };
    let reception = Reception {
        paused: true,
        revision: Some(Digest([1; 32])),
        filling: Some(Filling {
            done: Bytes(1),
            total: Bytes(2),
            problem: Some(a_problem()),
        }),
    };
    let contact = Contact {
        opened: Some(Timestamp::UNIX_EPOCH),
        lease: Some(LeaseRequest {
            agreement: 3,
            fence: Fence::try_from(Fence::SHORTEST).ok(),
        }),
        ..Contact::of(lineage.clone())
    };
    let answer = ContactAnswer {
        standing: PartnerStanding {
            role: Role::FailedOver,
            lineage: lineage.clone(),
            runs: true,
            stood_down: Some(lineage.clone()),
            opened: None,
        },
        reception: Some(reception.clone()),
        lease: Some(LeaseAnswer {
            granted: true,
            agreement: 3,
        }),
    };
    let hello = Hello {
        version: 1,
        host: "pollux".to_owned(),
        you: "castor".to_owned(),
    };
    let reversed = Reversed {
        differs: Some(vec![Differs {
            disk: DiskId::random(),
            regions: vec![0..3, 5..6],
        }]),
    };
    let at = TipAnswer::At {
        tip,
        issued: 9,
        disks: vec![DiskId::random()],
        reception,
    };
    vec![
        body(&contact),
        body(&answer),
        body(&hello),
        body(&reversed),
        body(&at),
        body(&TipAnswer::Superseded {
            lineage: lineage.clone(),
        }),
        body(&StandDown {
            lineage: lineage.clone(),
        }),
        body(&StoodDownFor {
            term: lineage.current().id,
        }),
        body(&Enrolled { tip }),
        body(&ConfigureAnswer::Configured),
        body(&CommitAnswer::Committed { tip }),
        body(&CommitAnswer::Again {
            problem: a_problem(),
        }),
        body(&a_problem()),
        Root([7; 32]).to_string().into_bytes(),
    ]
}

/// What says what a disk holds.
fn of_content() -> Vec<Vec<u8>> {
    let (disk, hashes) = (DiskId::random(), BlockHashes::of(&[1; 8192]));
    let header = Header {
        vm: VmId::random(),
        disks: vec![DiskExtent {
            joining: false,
            id: disk,
            size: Bytes(64 * BLOCK_SIZE),
        }],
        content: Content::Delta {
            sequence: 1,
            since: Since::Seed {
                seed: SeedId::random(),
                parts: 1,
            },
        },
        time: Timestamp::UNIX_EPOCH,
        consistency: Consistency::Crash,
        lineage: Lineage::begin("castor"),
    };
    let offer = Offer {
        header,
        root: Root([7; 32]),
        file_len: CHUNK + 1,
        chunks: vec![Digest([1; 32]), Digest([2; 32])],
        round: 1,
    };
    let compare = Compare {
        lineage: Lineage::begin("castor"),
        basis: Basis::Seed {
            seed: SeedId::random(),
            parts: 2,
            round: 1,
        },
        issued: 4,
        disk,
        size: Bytes(1 << 20),
        regions: vec![RegionDigest {
            region: 0,
            digest: Digest(hashes.digest()),
        }],
    };
    let compared = CompareAnswer::Compared {
        differ: vec![RegionHashes { region: 0, hashes }],
    };
    vec![
        body(&offer),
        body(&compare),
        body(&compared),
        body(&CompareAnswer::Late { round: 3 }),
        body(&OfferAnswer::Missing { chunks: vec![0, 1] }),
        body(&OfferAnswer::Unfit {
            problem: a_problem(),
        }),
    ]
}
