use std::collections::HashSet;

use super::*;

const SIZE: u16 = 8;

/// The in-flight area of a queue together with the index of its used ring, as a guest keeps
/// them over the death of a process.
struct Kept {
    file: File,
    len: u64,
    used_idx: u16,
}

impl Kept {
    fn new() -> Self {
        let (file, len) = InflightArea::create(2, SIZE).unwrap();
        Self {
            file,
            len,
            used_idx: 0,
        }
    }

    fn open(&self) -> InflightQueue {
        let area = InflightArea::open(&self.file, 0, self.len, 2, SIZE).unwrap();
        area.queue(1, SIZE).unwrap()
    }

    /// What a new process finds in flight.
    fn heads(&self) -> Vec<u16> {
        match self.open().recover(self.used_idx).unwrap() {
            Recovered::Fresh => panic!("the area was used"),
            Recovered::Heads(heads) => heads,
        }
    }
}

#[test]
fn heads_come_back_in_the_order_in_which_they_were_taken() {
    let kept = Kept::new();
    let mut queue = kept.open();
    assert_eq!(queue.recover(0).unwrap(), Recovered::Fresh);
    for head in [5, 1, 7, 0] {
        queue.take(head);
    }
    drop(queue);
    assert_eq!(kept.heads(), [5, 1, 7, 0]);
    // A third process that took one more before it died.
    let mut queue = kept.open();
    queue.recover(0).unwrap();
    queue.take(2);
    assert_eq!(kept.heads(), [5, 1, 7, 0, 2]);
}

/// One step of answering a batch, as small as a store.
enum Step {
    Link(u16),
    Publish(u16),
    Clear(u16),
    Settle,
}

#[test]
fn killed_after_any_step_an_answer_is_either_published_or_in_flight_and_never_both() {
    let batches: [&[u16]; 3] = [&[3], &[6, 2, 4], &[0, 1]];
    let taken = [6, 3, 1, 0, 2, 4, 5];
    let steps = || {
        batches.iter().flat_map(|batch| {
            let count = u16::try_from(batch.len()).unwrap();
            batch
                .iter()
                .map(|head| Step::Link(*head))
                .chain([Step::Publish(count)])
                .chain(batch.iter().map(|head| Step::Clear(*head)))
                .chain([Step::Settle])
        })
    };
    for killed_after in 0..=steps().count() {
        let mut kept = Kept::new();
        // Near its end, so that the index wraps.
        kept.used_idx = u16::MAX - 2;
        let mut queue = kept.open();
        queue.recover(kept.used_idx).unwrap();
        for head in taken {
            queue.take(head);
        }
        let mut published = HashSet::new();
        let mut next_batch = batches.iter();
        for step in steps().take(killed_after) {
            match step {
                Step::Link(head) => queue.link(head),
                Step::Publish(count) => {
                    kept.used_idx = kept.used_idx.wrapping_add(count);
                    published.extend(next_batch.next().unwrap().iter().copied());
                }
                Step::Clear(head) => queue.clear(head),
                Step::Settle => queue.settle(kept.used_idx),
            }
        }
        drop(queue);
        let expected: Vec<u16> = taken
            .into_iter()
            .filter(|head| !published.contains(head))
            .collect();
        assert_eq!(kept.heads(), expected, "killed after step {killed_after}");
        // Recovery may be killed as well: it finds the same again.
        assert_eq!(kept.heads(), expected, "killed after step {killed_after}");
    }
}

#[test]
fn an_area_that_makes_no_sense_is_refused_and_never_followed_out_of_bounds() {
    let kept = Kept::new();
    kept.open().recover(0).unwrap();
    let area = Area::map(&kept.file, queue_len(SIZE) as u64, queue_len(SIZE)).unwrap();
    let order = Ordering::Relaxed;

    let behind = kept.open().recover(SIZE + 1);
    assert!(matches!(
        behind,
        Err(InflightError::Behind { batch: 9, .. })
    ));
    area.store_u16(AT_LAST_BATCH_HEAD, SIZE, order);
    let head = kept.open().recover(1);
    assert!(matches!(head, Err(InflightError::Head { head: SIZE, .. })));
    area.store_u16(AT_LAST_BATCH_HEAD, 0, order);
    area.store_u16(entry(0) + AT_NEXT, u16::MAX, order);
    let next = kept.open().recover(2);
    assert!(matches!(next, Err(InflightError::Head { .. })));
    // A list that loops is followed only as often as the batch is long.
    area.store_u16(entry(0) + AT_NEXT, 0, order);
    assert!(kept.open().recover(SIZE).is_ok());
    area.store_u16(AT_DESC_NUM, u16::MAX, order);
    assert!(matches!(
        kept.open().recover(SIZE),
        Err(InflightError::Version { .. })
    ));
    area.store_u16(AT_DESC_NUM, SIZE, order);
    area.store_u16(AT_VERSION, 2, order);
    assert!(matches!(
        kept.open().recover(SIZE),
        Err(InflightError::Version { .. })
    ));

    let whole = InflightArea::open(&kept.file, 0, kept.len, 2, SIZE).unwrap();
    assert!(whole.queue(2, SIZE).is_none() && whole.queue(0, 2 * SIZE).is_none());
    assert!(InflightArea::open(&kept.file, 0, kept.len - 1, 2, SIZE).is_err());
    assert!(
        InflightArea::open(&kept.file, 0, kept.len * 2, 4, SIZE).is_err(),
        "file too short"
    );
    assert!(
        InflightArea::open(&kept.file, 32, kept.len, 1, SIZE).is_err(),
        "alignment"
    );
}

#[test]
fn a_queue_smaller_than_its_area_refuses_heads_that_it_does_not_have() {
    let kept = Kept::new();
    let area = InflightArea::open(&kept.file, 0, kept.len, 2, SIZE).unwrap();
    let mut large = area.queue(0, SIZE).unwrap();
    large.recover(0).unwrap();
    large.take(6);
    let small = area.queue(0, 4).unwrap().recover(0);
    assert!(matches!(
        small,
        Err(InflightError::Head { head: 6, size: 4 })
    ));
}
