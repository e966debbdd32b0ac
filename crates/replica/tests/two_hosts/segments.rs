//! Segments on their way into the journal.

use std::os::unix::fs::MetadataExt;

use super::*;

#[tokio::test]
async fn an_interrupted_segment_resumes_after_a_restart_and_commits_into_the_journal() {
    let (a, b, replicas, serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let staged = segment(&a.path, first_part(&spec, &ask), 2000, 1);
    let offer = outbox::offer(&staged.file).await.unwrap();
    assert_eq!(offer.chunks.len(), 4);
    let all = OfferAnswer::Missing {
        chunks: vec![0, 1, 2, 3],
    };
    assert_eq!(link.offer(&offer).await.unwrap(), all);
    for n in [2, 0] {
        let chunk = outbox::chunk(&staged, n).await.unwrap();
        link.put(offer.root, n, chunk.clone()).await.unwrap();
        link.put(offer.root, n, chunk).await.unwrap();
    }
    // Not what was offered, in three ways.
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    for (n, body) in [
        (1, chunk.clone()),
        (4, chunk.clone()),
        (1, Bytes::from(vec![0; 3 << 20])),
    ] {
        let error = link.put(offer.root, n, body).await.unwrap_err();
        assert!(
            matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
            "{error}"
        );
    }
    let early = link.commit(offer.root).await.unwrap();
    assert!(matches!(early, CommitAnswer::Again { .. }), "{early:?}");

    let at = serving.address;
    serving.stop().await;
    let error = link.tip(&ask.lineage).await.unwrap_err();
    lost(&error);
    let _serving = Serving::start(&b, replicas.clone(), Some(at)).await;
    let error = link.put(offer.root, 1, chunk).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::NotFound),
        "{error}"
    );
    let rest = OfferAnswer::Missing { chunks: vec![1, 3] };
    assert_eq!(link.offer(&offer).await.unwrap(), rest);
    for n in [1, 3] {
        let chunk = outbox::chunk(&staged, n).await.unwrap();
        link.put(offer.root, n, chunk).await.unwrap();
    }
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 1,
        last: Some(offer.root),
    };
    let committed = CommitAnswer::Committed { tip };
    assert_eq!(link.commit(offer.root).await.unwrap(), committed);
    // A lost acknowledgement.
    let again = OfferAnswer::Committed { tip };
    assert_eq!(link.offer(&offer).await.unwrap(), again);

    // The first point, and what it reads as.
    let delta = Content::Delta {
        sequence: 1,
        since: Since::Seed {
            seed: ask.seed,
            parts: 1,
        },
    };
    let staged = segment(&a.path, header(&spec, &ask.lineage, delta), 16, 2);
    let offer = outbox::offer(&staged.file).await.unwrap();
    link.offer(&offer).await.unwrap();
    let chunk = outbox::chunk(&staged, 0).await.unwrap();
    link.put(offer.root, 0, chunk).await.unwrap();
    let point = PointId {
        term: ask.lineage.current().id,
        sequence: 1,
    };
    let tip = Tip::Point {
        point,
        root: offer.root,
    };
    let committed = CommitAnswer::Committed { tip };
    assert_eq!(link.commit(offer.root).await.unwrap(), committed);
    let shelf = replicas.shelf(spec.id).await.unwrap();
    let shelf = shelf.lock().unwrap();
    let journal = &shelf.as_ref().unwrap().journal;
    let reader = journal.open_point(point).unwrap();
    let mut content = vec![0; 2000 * 4096];
    reader.read_at(spec.disks[0].id, 0, &mut content).unwrap();
    let mut expected = noise(1, 2000 * 4096);
    expected[..16 * 4096].copy_from_slice(&noise(2, 16 * 4096));
    assert!(content == expected, "the point reads as what was cut");
    let left = std::fs::read_dir(replicas.path.join(Journal::INCOMING)).unwrap();
    assert_eq!(left.count(), 0, "nothing is left of what was received");
}

/// What is in the base of the replica's only disk that was sent with `salt`, in blocks from the beginning.
pub(super) fn laid_down(replicas: &Replicas, spec: &VmSpec, salt: u64, blocks: usize) -> usize {
    let base = replicas.path.join(Journal::base_file(spec.disks[0].id));
    let base = std::fs::read(base).unwrap();
    let sent = noise(salt, blocks * 4096);
    let same = base.chunks(4096).zip(sent.chunks(4096));
    same.take_while(|(one, other)| one == other).count()
}

#[tokio::test]
async fn a_part_is_laid_down_while_it_comes_until_another_one_takes_its_place() {
    let sending = Sending::of(pair().await, 2000).await;
    let Sending {
        a,
        replicas,
        spec,
        ask,
        link,
        offer,
        ..
    } = &sending;
    link.offer(offer).await.unwrap();
    let laid = || laid_down(replicas, spec, 1, 2000);
    let mut seen = Vec::new();
    for n in [0, 2, 3, 1] {
        sending.put(n).await.unwrap();
        seen.push(laid());
    }
    // Nothing without the tables, then what has come; all of a frame or nothing.
    let blocks = usize::try_from(CHUNK).unwrap() / 4096;
    assert_eq!(seen[..2], [0, 0]);
    assert!((blocks - 32..=blocks).contains(&seen[2]), "{seen:?}");
    assert_eq!(seen[3], 2000);
    let tip = link.tip(&ask.lineage).await.unwrap();
    assert_eq!(tip, at(sending.parts(0)), "not published");

    // Sent anew, otherwise.
    let other = segment(&a.path, first_part(spec, ask), 2000, 2);
    let instead = outbox::offer(&other.file).await.unwrap();
    link.offer(&instead).await.unwrap();
    let late = refused(sending.put(1).await.unwrap_err());
    assert_eq!(late.code, Code::NotFound);
    for n in [2, 3, 0, 1] {
        let chunk = outbox::chunk(&other, n).await.unwrap();
        link.put(instead.root, n, chunk).await.unwrap();
    }
    let committed = link.commit(instead.root).await.unwrap();
    assert!(matches!(committed, CommitAnswer::Committed { .. }));
    assert_eq!(laid_down(replicas, spec, 2, 2000), 2000);
}

/// A part of `frames` frames, of `blocks` blocks each, that takes next to nothing.
fn bomb(sending: &Sending, frames: u64, blocks: usize) -> Staged {
    let Sending { a, spec, ask, .. } = sending;
    let file = a.path.join("bomb.segment");
    let out = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
    let mut writer = SegmentWriter::create(out, &first_part(spec, ask)).unwrap();
    let frame = vec![7; blocks * 4096];
    for at in 0..frames {
        writer.push_frame(0, at * blocks as u64, &frame).unwrap();
    }
    let (_, mut out) = writer.finish().unwrap();
    std::io::Write::flush(&mut out).unwrap();
    outbox::read(&file).unwrap()
}

/// Sectors that the base of the only disk takes.
fn held(sending: &Sending) -> u64 {
    let Sending { replicas, spec, .. } = sending;
    let base = replicas.path.join(Journal::base_file(spec.disks[0].id));
    std::fs::metadata(base).unwrap().blocks()
}

async fn put_all_of(sending: &Sending, staged: &Staged) -> Offer {
    let offer = outbox::offer(&staged.file).await.unwrap();
    sending.link.offer(&offer).await.unwrap();
    let count = offer.chunks.len() as u64;
    for n in (0..count).rev() {
        let chunk = outbox::chunk(staged, n).await.unwrap();
        sending.link.put(offer.root, n, chunk).await.unwrap();
    }
    offer
}

#[tokio::test]
async fn a_part_whose_content_has_no_room_is_not_laid_down_before_it_is_refused() {
    let sending = Sending::of_spec(pair().await, spec_of(256), 16).await;
    let Sending { replicas, link, .. } = &sending;
    // Of the second one the tables are longer than what is sent first.
    for (frames, blocks, chunks) in [(100, 16, 1), (60_000, 1, 3)] {
        let bomb = bomb(&sending, frames, blocks);
        let len = std::fs::metadata(&bomb.file).unwrap().len();
        assert!(Offer::chunk_count(len) >= chunks, "{len}");
        replicas.limit.store(len, Ordering::Relaxed);
        let offer = put_all_of(&sending, &bomb).await;
        let problem = refused(link.commit(offer.root).await.unwrap_err());
        assert_eq!((problem.code, held(&sending)), (Code::Full, 0));
    }
    replicas.limit.store(u64::MAX, Ordering::Relaxed);
    let bomb = bomb(&sending, 100, 16);
    let offer = put_all_of(&sending, &bomb).await;
    assert!(held(&sending) > 0, "laid down");
    let committed = link.commit(offer.root).await.unwrap();
    assert!(matches!(committed, CommitAnswer::Committed { .. }));
}

#[tokio::test]
async fn what_was_laid_down_does_not_count_again_after_a_restart() {
    let sending = Sending::of(pair().await, 16).await;
    let bomb = bomb(&sending, 100, 16);
    let offer = put_all_of(&sending, &bomb).await;
    assert!(held(&sending) > 0, "laid down");
    let Sending {
        _b: b,
        replicas,
        _serving: serving,
        link,
        ..
    } = sending;
    let at = serving.address;
    serving.stop().await;
    let _serving = Serving::start(&b, replicas.clone(), Some(at)).await;
    // More than its file does not fit any more, and is there already.
    replicas.limit.store(offer.file_len, Ordering::Relaxed);
    let all = OfferAnswer::Missing { chunks: Vec::new() };
    let answer = loop {
        match link.offer(&offer).await {
            Err(LinkError::Lost(_)) => tokio::task::yield_now().await,
            answer => break answer.unwrap(),
        }
    };
    assert_eq!(answer, all);
    let committed = link.commit(offer.root).await.unwrap();
    assert!(matches!(committed, CommitAnswer::Committed { .. }));
}

#[tokio::test]
async fn a_replica_that_took_over_says_so_to_every_question_and_takes_nothing() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let point = PointId {
        term: ask.lineage.current().id,
        sequence: 1,
    };
    let lease = |agreement, seconds: Option<u32>| LeaseRequest {
        agreement,
        fence: seconds.map(|seconds| Fence::new(seconds).unwrap()),
    };
    let answered = async |asked| {
        let contact = Contact {
            lease: Some(asked),
            ..Contact::of(ask.lineage.clone())
        };
        let answer = link.meet(&contact, LIMIT).await.unwrap();
        answer.lease.map(|lease| (lease.granted, lease.agreement))
    };
    assert_eq!(answered(lease(2, Some(10))).await, Some((true, 2)));
    assert_eq!(answered(lease(1, Some(60))).await, Some((false, 2)), "late");
    assert_eq!(answered(lease(3, None)).await, Some((true, 3)));
    assert_eq!(answered(lease(2, Some(10))).await, Some((false, 3)), "late");
    assert_eq!(answered(lease(4, Some(10))).await, Some((true, 4)));
    let theirs = ask.lineage.branch(point, "host-b").unwrap();
    let taken = theirs.clone();
    replicas
        .with(spec.id, move |enrolled| {
            enrolled.standing.role = Role::FailedOver;
            enrolled.standing.lineage = taken;
            *enrolled.shelf.lock().unwrap() = None;
        })
        .unwrap();
    assert_eq!(answered(lease(4, Some(10))).await, Some((false, 4)));
    let superseded = TipAnswer::Superseded {
        lineage: theirs.clone(),
    };
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), superseded);
    let staged = segment(&a.path, first_part(&spec, &ask), 16, 3);
    let offer = outbox::offer(&staged.file).await.unwrap();
    let superseded = OfferAnswer::Superseded { lineage: theirs };
    assert_eq!(link.offer(&offer).await.unwrap(), superseded);
}

#[tokio::test]
async fn what_does_not_fit_or_is_not_what_it_says_is_refused_and_changes_nothing() {
    let sending = Sending::new(16).await;
    let Sending {
        ask, link, offer, ..
    } = &sending;

    let mut long = offer.clone();
    long.file_len = 100 * CHUNK;
    long.chunks = vec![Digest([0; 32]); 100];
    let error = link.offer(&long).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Full),
        "{error}"
    );
    let mut short = offer.clone();
    short.chunks.clear();
    let error = link.offer(&short).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
        "{error}"
    );
    let mut gap = offer.clone();
    gap.header.content = Content::Seed {
        seed: ask.seed,
        part: 7,
    };
    let answer = link.offer(&gap).await.unwrap();
    assert!(matches!(answer, OfferAnswer::Unfit { .. }), "{answer:?}");

    // Every chunk is as offered, and the whole is no segment.
    let junk = Bytes::from(noise(9, 5000));
    let mut lie = offer.clone();
    lie.file_len = junk.len() as u64;
    lie.chunks = vec![Digest::of(&junk)];
    link.offer(&lie).await.unwrap();
    link.put(lie.root, 0, junk).await.unwrap();
    let error = link.commit(lie.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Invalid),
        "{error}"
    );
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 0,
        last: None,
    };
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), at(tip));
}

#[tokio::test]
async fn a_commit_that_outlasts_its_caller_is_found_by_the_next_questions() {
    let sending = Sending::new(16).await;
    let Sending {
        replicas,
        spec,
        ask,
        link,
        offer,
        ..
    } = &sending;
    let (begins, mut begun) = mpsc::unbounded_channel();
    let (go_on, goes_on) = std::sync::mpsc::channel();
    let shelf = replicas.shelf(spec.id).await.unwrap();
    shelf.lock().unwrap().as_mut().unwrap().hold = Some((begins, goes_on));
    sending.put_all().await;
    // As when the limit of the request is over: the caller hangs up.
    tokio::select! {
        answer = link.commit(offer.root) => panic!("answered: {answer:?}"),
        _ = begun.recv() => {}
    }
    // It asks again while the first one is still at it.
    let asking = {
        let (link, offer) = (link.clone(), offer.clone());
        tokio::spawn(async move { link.offer(&offer).await })
    };
    go_on.send(()).unwrap();
    let tip = Tip::Seeding {
        seed: ask.seed,
        parts: 1,
        last: Some(offer.root),
    };
    let committed = OfferAnswer::Committed { tip };
    let answer = tokio::time::timeout(LIMIT, asking).await.unwrap();
    assert_eq!(answer.unwrap().unwrap(), committed);
    assert_eq!(link.tip(&ask.lineage).await.unwrap(), at(tip));
    let left = std::fs::read_dir(replicas.path.join(Journal::INCOMING)).unwrap();
    assert_eq!(left.count(), 0, "the first request ran to its end");
}

#[tokio::test]
async fn content_that_compresses_well_is_held_to_the_limit_by_what_it_takes_in_the_base() {
    let (a, _b, replicas, _serving) = pair().await;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let file = a.path.join("even.segment");
    let out = std::fs::File::create(&file).unwrap();
    let mut writer = SegmentWriter::create(out, &first_part(&spec, &ask)).unwrap();
    for at in 0..32 {
        writer.push_frame(0, at * 16, &[7; 16 * 4096]).unwrap();
    }
    // Zeroes take nothing.
    writer.push_zero(0, 32 * 16, 1024).unwrap();
    writer.finish().unwrap();
    let staged = outbox::read(&file).unwrap();
    let offer = outbox::offer(&staged.file).await.unwrap();
    assert!(offer.file_len < 100_000, "{}", offer.file_len);

    replicas.limit.store(1 << 20, Ordering::Relaxed);
    let all = (0..).take(offer.chunks.len()).collect();
    let missing = OfferAnswer::Missing { chunks: all };
    assert_eq!(link.offer(&offer).await.unwrap(), missing);
    let bytes = Bytes::from(std::fs::read(&file).unwrap());
    assert_eq!(offer.chunks.len(), 1);
    link.put(offer.root, 0, bytes).await.unwrap();
    let error = link.commit(offer.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Full),
        "{error}"
    );
    // Nothing was lost: with more room it goes on where it was.
    replicas.limit.store(2 << 20, Ordering::Relaxed);
    let nothing = OfferAnswer::Missing { chunks: Vec::new() };
    assert_eq!(link.offer(&offer).await.unwrap(), nothing);
    let answer = link.commit(offer.root).await.unwrap();
    assert!(
        matches!(answer, CommitAnswer::Committed { .. }),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_segment_on_a_bad_place_of_the_disk_is_sent_anew() {
    let sending = Sending::new(16).await;
    let Sending {
        replicas,
        link,
        staged,
        offer,
        ..
    } = &sending;
    let bytes = Bytes::from(std::fs::read(&staged.file).unwrap());
    let whole = OfferAnswer::Missing { chunks: vec![0] };
    assert_eq!(link.offer(offer).await.unwrap(), whole);
    link.put(offer.root, 0, bytes.clone()).await.unwrap();
    replicas.broken.store(true, Ordering::Relaxed);
    let error = link.commit(offer.root).await.unwrap_err();
    assert!(
        matches!(&error, LinkError::Refused(p) if p.code == Code::Failed),
        "{error}"
    );
    assert_eq!(link.offer(offer).await.unwrap(), whole);
    link.put(offer.root, 0, bytes).await.unwrap();
    let answer = link.commit(offer.root).await.unwrap();
    assert!(
        matches!(answer, CommitAnswer::Committed { .. }),
        "{answer:?}"
    );
}
