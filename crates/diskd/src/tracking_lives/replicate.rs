//! What polluxd does: cuts, ships, confirms, folds back, compares, sweeps.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{Either, select};
use model::BLOCK_SIZE;
use testkit::Schedule;

use super::marks::{Set, size};
use super::segment::{Pieces, Segment};
use super::{BLOCKS, REGION_BLOCKS, Tracked, World, pauses};
use crate::flow::Flow;
use crate::staging::{Abandoned, Epoch, StageReport};
use crate::suspects;
use crate::tracker::Rule;

impl World {
    /// What polluxd does, so many times.
    pub(super) async fn replicate(
        self: Rc<Self>,
        tracker: Rc<Tracked>,
        schedule: Schedule,
        epochs: u64,
    ) {
        for _ in 0..epochs {
            pauses(self.below(40)).await;
            self.empty_outbox(&tracker).await;
            if self.once_in(3) {
                self.sweep(&tracker).await;
            } else if self.once_in(2) {
                let (world, tracker) = (Rc::clone(&self), Rc::clone(&tracker));
                schedule.spawn(async move { world.sweep(&tracker).await });
                if self.once_in(2) {
                    schedule.spawn(Rc::clone(&self).syncs_take_long());
                }
            }
            if self.outbox.borrow().is_some() {
                continue;
            }
            self.compare(&tracker).await;
            if !self.live.get() && self.once_in(2) {
                self.part(&tracker).await;
            } else {
                self.cut(&tracker, &schedule).await;
            }
        }
    }

    /// So long that epochs are cut, sent and confirmed meanwhile.
    async fn syncs_take_long(self: Rc<Self>) {
        self.disk.hold_syncs(true);
        pauses(self.below(500)).await;
        self.disk.hold_syncs(false);
    }

    /// The end: everything reaches the twin.
    pub(super) async fn settle(self: Rc<Self>, tracker: Rc<Tracked>, schedule: Schedule) {
        loop {
            self.empty_outbox(&tracker).await;
            if self.outbox.borrow().is_some() {
                continue;
            }
            self.compare(&tracker).await;
            if self.live.get() && tracker.state().dirty() == 0 {
                break;
            }
            self.cut(&tracker, &schedule).await;
        }
        let swept = tracker.sweep(true).await.is_ok() && !tracker.state().flush_failed();
        if let (Some(log), true) = (tracker.ledger.log(), swept) {
            assert_eq!(log.armed(), 0, "nothing is to be sent");
        }
    }

    /// Disarms what is over.
    async fn sweep(&self, tracker: &Tracked) {
        let all = self.once_in(2);
        let before = tracker.ledger.armed(tracker.state().regions());
        // Failed where syncs do: nothing is disarmed then.
        let _ = tracker.sweep(all).await;
        let after = tracker.ledger.armed(tracker.state().regions());
        self.note(|seen| seen.disarmed += before.saturating_sub(after));
    }

    fn epoch(&self, budget: u64) -> (Epoch, Pieces) {
        let pieces = Pieces::default();
        let kept = Rc::clone(&pieces);
        let epoch = Epoch {
            disk: 0,
            sink: Box::new(move |piece| kept.queue.borrow_mut().push(piece)),
            flow: Arc::new(Flow::default()),
            budget,
        };
        (epoch, pieces)
    }

    /// Ships what is in the outbox or takes it back; nothing of it may come about.
    async fn empty_outbox(&self, tracker: &Tracked) {
        let Some(number) = self.outbox.borrow().as_ref().map(|segment| segment.number) else {
            return;
        };
        if self.once_in(6) {
            self.note(|seen| seen.folded_back += 1);
            self.tell(|| format!("{number} is folded back"));
            let blocks = {
                let outbox = self.outbox.borrow();
                let segment = outbox.as_ref().expect("looked at");
                segment.blocks()
            };
            for block in (0..BLOCKS).filter(|block| blocks.has(*block)) {
                self.mark(tracker, block).await;
            }
            pauses(self.below(3)).await;
            // Only now: a kill in between marks too much, never too little.
            tracker.confirm();
            pauses(self.below(3)).await;
            self.outbox.take();
            return;
        }
        pauses(self.below(20)).await;
        if self.rule == Some(Rule::AckBeforeConfirm) {
            tracker.confirm();
            self.sweep(tracker).await;
        }
        self.twin_applies(number);
        if self.once_in(4) {
            self.note(|seen| seen.lost_acks += 1);
            return;
        }
        pauses(self.below(5)).await;
        self.tell(|| format!("{number} is confirmed"));
        if self.twin.borrow().live {
            self.live.set(true);
        }
        tracker.confirm();
        pauses(self.below(2)).await;
        self.outbox.take();
    }

    /// The twin commits a segment, durably; again it is told that all is well.
    fn twin_applies(&self, number: u64) {
        self.tell(|| format!("{number} is shipped"));
        let mut twin = self.twin.borrow_mut();
        if twin.tip == number {
            return;
        }
        let outbox = self.outbox.borrow();
        let segment = outbox.as_ref().expect("it is there");
        segment.apply(&mut twin.content);
        twin.tip = number;
        match &segment.point {
            None => self.note(|seen| seen.parts += 1),
            Some(point) => {
                twin.live = true;
                self.note(|seen| seen.points += 1);
                let wrong = Set::differing(&twin.content, point).beyond(&Set::none());
                assert_eq!(
                    wrong, None,
                    "point {number} is not what the disk was at its cut"
                );
            }
        }
    }

    /// Marks what differs in suspect regions.
    async fn compare(&self, tracker: &Tracked) {
        loop {
            let found = match tracker.read_suspect(0).await {
                Ok(Some(found)) => found,
                Ok(None) => return,
                // A read that failed: again.
                Err(_) => continue,
            };
            let mut content = Vec::new();
            for piece in found.pieces {
                match piece {
                    suspects::Piece::Zeroes(blocks) => {
                        content.extend(vec![0; size(blocks * BLOCK_SIZE)]);
                    }
                    suspects::Piece::Read(bytes) => content.extend(bytes.to_vec()),
                }
            }
            self.tell(|| format!("region {} is compared", found.region));
            pauses(self.below(4)).await;
            let first = found.region * REGION_BLOCKS;
            let at = size(first * BLOCK_SIZE);
            let theirs = self.twin.borrow().content[at..at + content.len()].to_vec();
            let differ = Set::differing(&content, &theirs).0.into_iter();
            let differ = (first..).zip(differ).filter(|(_, differs)| *differs);
            for (block, _) in differ {
                self.mark(tracker, block).await;
            }
            let compared = tracker.compared(found.region, &[]).await;
            compared.expect("there is nothing to arm");
        }
    }

    /// Marks a block, here and in the model at once.
    async fn mark(&self, tracker: &Tracked, block: u64) {
        while tracker.mark(block..block + 1).await.is_err() {
            // Neither written nor removed: it is tried again.
            pauses(1).await;
        }
        self.model.borrow_mut().current.add(block..block + 1);
    }

    /// Stages a part of the initial replication.
    async fn part(&self, tracker: &Tracked) {
        let (epoch, pieces) = self.epoch(u64::MAX);
        let from = self.below(BLOCKS);
        let limit = 1 + self.below(BLOCKS);
        let before = Set::of(BLOCKS, 1, |within| tracker.state().next_marked(within));
        tracker.seal_part(epoch, from, limit).expect("tracked");
        {
            let mut model = self.model.borrow_mut();
            assert!(before == model.current, "the marks are exact");
            let sealed = Set::of(BLOCKS, 1, |within| tracker.state().next_sealed(within));
            for block in (0..BLOCKS).filter(|block| sealed.has(*block)) {
                model.current.0[size(block)] = false;
            }
            model.sealed = sealed;
            model.in_flight();
        }
        match self.stage(tracker, &pieces).await {
            Ok(_) => self.stage_whole(tracker, &pieces, None).await,
            Err(_) => self.give_up(tracker),
        }
    }

    async fn cut(&self, tracker: &Rc<Tracked>, schedule: &Schedule) {
        let budget = if self.once_in(5) {
            self.below(8) * BLOCK_SIZE
        } else {
            u64::MAX
        };
        let (epoch, pieces) = self.epoch(budget);
        tracker.park();
        pauses(self.below(10)).await;
        if self.once_in(12) {
            // Another disk did not park in time.
            tracker.unpark();
            return;
        }
        tracker.seal(epoch).expect("tracked");
        self.tell(|| "cut".to_owned());
        let point = {
            let mut model = self.model.borrow_mut();
            model.seal();
            model.issued.clone()
        };
        tracker.unpark();
        let staging = Rc::new(Cell::new(true));
        if self.once_in(8) {
            // The outbox takes no more.
            let (tracker, wait) = (Rc::clone(tracker), self.below(60));
            let staging = Rc::clone(&staging);
            schedule.spawn(async move {
                pauses(wait).await;
                if staging.get() {
                    tracker.abandon(Abandoned::Elsewhere);
                }
            });
        }
        if self.once_in(8) {
            self.disk.fail_reads(1);
        }
        let staged = self.stage(tracker, &pieces).await;
        staging.set(false);
        self.disk.fail_reads(0);
        match staged {
            Ok(report) => {
                self.note(|seen| seen.copied += report.copied);
                if self.once_in(10) {
                    // The segment cannot get its name.
                    self.give_up(tracker);
                    return;
                }
                self.stage_whole(tracker, &pieces, Some(point)).await;
            }
            Err(_) => self.give_up(tracker),
        }
    }

    /// Reads what is sealed, while what was read is written.
    async fn stage(&self, tracker: &Tracked, pieces: &Pieces) -> Result<StageReport, Abandoned> {
        let writes = async {
            loop {
                pauses(1 + self.below(8)).await;
                pieces.write(size(self.below(8)));
            }
        };
        match select(pin!(tracker.stage()), pin!(writes)).await {
            Either::Left((staged, _)) => staged,
            Either::Right((never, _)) => never,
        }
    }

    fn give_up(&self, tracker: &Tracked) {
        tracker.end(false);
        self.tell(|| "given up".to_owned());
        self.model.borrow_mut().fold_back();
        self.note(|seen| seen.given_up += 1);
    }

    /// A segment gets its name, and then its marks are its own.
    async fn stage_whole(&self, tracker: &Tracked, pieces: &Pieces, point: Option<Vec<u8>>) {
        let number = self.numbers.get() + 1;
        self.tell(|| format!("{number} is staged, a point: {}", point.is_some()));
        self.numbers.set(number);
        self.outbox.replace(Some(Segment {
            number,
            pieces: pieces.finish(),
            point,
        }));
        pauses(self.below(3)).await;
        tracker.end(true);
        self.model.borrow_mut().sealed = Set::none();
    }
}
