//! The replica's file system has no room, at each step of receiving, until there is some again.

use rustix::fs::{FallocateFlags, fallocate};
use testkit::{SmallDisk, may_mount};

use super::*;

const NAME: &str = "full::a_replica_without_room_refuses_each_step_and_goes_on_when_there_is_some";
const MIB: u64 = 1 << 20;

/// Refused for want of room, which is temporary, with what it is and what to do.
fn is_full<T: std::fmt::Debug>(answer: Result<T, LinkError>) {
    let problem = refused(answer.unwrap_err());
    assert_eq!(problem.code, Code::Full, "{problem}");
    assert!(!problem.thing.is_empty() && !problem.way_out.is_empty());
}

#[tokio::test]
async fn a_replica_without_room_refuses_each_step_and_goes_on_when_there_is_some() {
    if !may_mount(NAME).unwrap() {
        return;
    }
    let pair = pair().await;
    let small = SmallDisk::mount(pair.2.path.parent().unwrap().to_owned(), 32).unwrap();
    let sending = Sending::of(pair, 2000).await;
    let Sending {
        a,
        replicas,
        spec,
        ask,
        link,
        offer,
        ..
    } = &sending;
    let tip = async || link.tip(&ask.lineage).await.unwrap();
    let all = OfferAnswer::Missing {
        chunks: vec![0, 1, 2, 3],
    };

    small.fill(0).unwrap();
    for _ in 0..2 {
        is_full(link.offer(offer).await);
    }
    // Nothing of it takes the room that others need.
    let incoming = replicas.path.join(Journal::INCOMING);
    let left = std::fs::read_dir(&incoming).unwrap();
    let left: u64 = left
        .map(|left| left.unwrap().metadata().unwrap().len())
        .sum();
    assert_eq!(left, 0);
    small.make_room().unwrap();
    assert_eq!(link.offer(offer).await.unwrap(), all);

    // As on a file system that does not keep room for what comes.
    let file = incoming.join(format!("{}.segment", offer.root));
    let file = std::fs::File::options().write(true).open(file).unwrap();
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, hole, CHUNK, CHUNK).unwrap();
    small.fill(0).unwrap();
    sending.put(0).await.unwrap();
    for _ in 0..2 {
        is_full(sending.put(1).await);
    }
    small.make_room().unwrap();
    for n in 1..3 {
        sending.put(n).await.unwrap();
    }

    // Its blocks go into the base, from this chunk on.
    small.fill(MIB).unwrap();
    sending.put(3).await.unwrap();
    for _ in 0..2 {
        is_full(link.commit(offer.root).await);
        assert_eq!(tip().await, at(sending.parts(0)));
        let nothing = OfferAnswer::Missing { chunks: Vec::new() };
        assert_eq!(link.offer(offer).await.unwrap(), nothing, "all is there");
    }
    small.make_room().unwrap();
    let committed = CommitAnswer::Committed {
        tip: sending.parts(1),
    };
    assert_eq!(link.commit(offer.root).await.unwrap(), committed);

    // A point needs no more than its place in the index.
    let since = Since::Seed {
        seed: ask.seed,
        parts: 1,
    };
    let delta = Content::Delta { sequence: 1, since };
    let staged = segment(&a.path, header(spec, &ask.lineage, delta), 16, 2);
    let point = outbox::offer(&staged.file).await.unwrap();
    link.offer(&point).await.unwrap();
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    link.put(point.root, 0, chunk).await.unwrap();
    small.fill(0).unwrap();
    for _ in 0..2 {
        is_full(link.commit(point.root).await);
    }
    small.make_room().unwrap();
    link.offer(&point).await.unwrap();
    let answer = link.commit(point.root).await.unwrap();
    assert!(
        matches!(answer, CommitAnswer::Committed { .. }),
        "{answer:?}"
    );
    let shelf = replicas.shelf(spec.id).await.unwrap();
    let shelf = shelf.lock().unwrap();
    let Tip::Point { point, .. } = shelf.as_ref().unwrap().tip() else {
        panic!("it has a point")
    };
    let reader = shelf.as_ref().unwrap().open_point(point).unwrap();
    let mut content = vec![0; 2000 * 4096];
    reader.read_at(spec.disks[0].id, 0, &mut content).unwrap();
    let mut expected = noise(1, 2000 * 4096);
    expected[..16 * 4096].copy_from_slice(&noise(2, 16 * 4096));
    assert!(content == expected, "the point reads as what was cut");
}
