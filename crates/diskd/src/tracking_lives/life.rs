//! The life of a process, and how it ends.

use std::cell::RefCell;
use std::rc::Rc;

use block::{Buffer, Device, Fault, Op};
use model::BootId;
use testkit::{History, Rng, Schedule, finish};

use super::marks::{Set, size};
use super::{GUESTS, LANE, SECTORS, Tracked, World, pauses};
use crate::intent::Looks;

impl World {
    /// Runs guests and a replicator, to the end or to any instant.
    pub(super) fn live(self: &Rc<Self>, last: bool) {
        let schedule = Schedule::new(self.rng.borrow_mut().bits());
        let tracker = finish(&schedule, Rc::clone(self).open());
        if tracker.state().relationship().is_some() {
            self.check_opening(&tracker);
        }
        finish(&schedule, Rc::clone(self).track(Rc::clone(&tracker)));
        self.was_cut.set(false);
        for number in 0..GUESTS {
            let rng = Rng::new(self.rng.borrow_mut().bits());
            let guest = guest(Rc::clone(&tracker), Rc::clone(&self.history), rng, number);
            schedule.spawn(guest);
        }
        let epochs = self.below(8);
        schedule.spawn(Rc::clone(self).replicate(Rc::clone(&tracker), schedule.clone(), epochs));
        if self.once_in(6) {
            schedule.spawn(Rc::clone(self).break_storage());
        }
        let ends = last || self.once_in(4);
        if !ends {
            let longest = [300, 3000, 12000][size(self.below(3))];
            for _ in 0..self.below(longest) {
                schedule.step();
            }
            schedule.kill();
            self.disk.hold_syncs(false);
            self.history.borrow_mut().kill();
            if self.once_in(2) {
                self.cut_power();
            } else {
                self.note(|seen| seen.kills += 1);
                self.tell(|| "killed".to_owned());
            }
            return;
        }
        assert_eq!(schedule.run(), 0, "something waits for ever");
        self.history.borrow_mut().kill();
        if !last {
            let clean = finish(&schedule, Rc::clone(self).close(Rc::clone(&tracker)));
            drop(tracker);
            self.between(clean);
            return;
        }
        let settle = Rc::clone(self).settle(Rc::clone(&tracker), schedule.clone());
        finish(&schedule, settle);
        let twin = self.twin.borrow();
        let missed = Set::differing(&self.disk.content(), &twin.content).beyond(&Set::none());
        assert_eq!(missed, None, "the twin differs in the end");
    }

    /// Syncs of the disk or of the log fail.
    async fn break_storage(self: Rc<Self>) {
        pauses(self.below(300)).await;
        if self.once_in(2) {
            self.tell(|| "a flush will fail".to_owned());
            self.disk.fail_syncs(1);
            return;
        }
        let log = self.log.borrow().clone();
        if let Some(log) = log {
            self.tell(|| "the log will fail".to_owned());
            log.fail_syncs(1);
            self.stuck.set(u32::try_from(self.below(3)).expect("few"));
        }
    }

    /// Closes the disk in order. Whether all is durable.
    async fn close(self: Rc<Self>, tracker: Rc<Tracked>) -> bool {
        let begun = self.history.borrow_mut().now();
        if tracker.run(Op::Flush).await.outcome.is_err() {
            self.note(|seen| seen.failed_flushes += 1);
            self.tell(|| "closed after a failed flush".to_owned());
            tracker.state().close_failed();
            return false;
        }
        self.tell(|| "closed".to_owned());
        self.history.borrow_mut().flushed(begun);
        self.looks.set(self.looks.get() + 1);
        let looks = Looks::of(&[self.looks.get()]);
        while tracker.close(looks, false).await.is_err() {
            // Its log cannot be removed: a person looks after it.
        }
        if tracker.ledger.is_lost() {
            self.note(|seen| seen.lost_logs += 1);
        }
        self.note(|seen| seen.closes += 1);
        true
    }

    /// What may happen to a disk that is closed.
    fn between(&self, clean: bool) {
        self.disk.fail_syncs(0);
        if self.once_in(3) {
            self.cut_power();
        }
        if clean && self.once_in(3) {
            // Somebody writes to the file.
            self.note(|seen| seen.changed += 1);
            self.looks.set(self.looks.get() + 1);
            self.tell(|| "changed while closed".to_owned());
            let bytes = self.rng.borrow_mut().bytes(4096);
            let at = 512 * self.below(SECTORS - 8);
            self.disk.put(at, &bytes);
            let salt = self.rng.borrow_mut().bits();
            self.history
                .replace(History::new(self.disk.content(), salt));
        }
    }

    fn cut_power(&self) {
        self.note(|seen| seen.power_cuts += 1);
        self.tell(|| "power cut".to_owned());
        self.was_cut.set(true);
        self.forgot.set(true);
        self.disk.fail_syncs(0);
        let bits = || self.rng.borrow_mut().bits();
        self.disk.cut(bits());
        if let Some(log) = &*self.log.borrow() {
            log.cut(bits());
        }
        self.outbox.take();
        self.boot.set(BootId::random());
        // It is lost, or that of another boot.
        if self.once_in(2) {
            drop(std::fs::remove_file(self.state()));
        }
    }
}

/// Writes, discards, zeroes and flushes in sectors of its own, 512 bytes to 1 MiB at a time.
async fn guest(tracker: Rc<Tracked>, history: Rc<RefCell<History>>, mut rng: Rng, number: u64) {
    let first = 3 + number * LANE;
    // Some keep to a small part, so that regions get cold.
    let room = [LANE, 64, 64, 64, 700][rng.index(5)];
    let first = first + rng.below(LANE - room + 1);
    for _ in 0..rng.below(16) {
        pauses(rng.below(30)).await;
        let most = [1, 8, 8, 24, 24, 24, 200, 200, 2048][rng.index(9)].min(room);
        let count = 1 + rng.below(most);
        let at = (first + rng.below(room - count + 1)) * 512;
        let len = count * 512;
        let begun = history.borrow_mut().now();
        let kind = rng.below(10);
        if kind < 2 {
            let done = tracker.run(Op::Flush).await;
            if done.outcome.is_ok() {
                history.borrow_mut().flushed(begun);
            }
            continue;
        }
        let (change, content) = history.borrow_mut().begin(at, size(len), kind < 4);
        let op = match kind {
            2 => Op::Discard { at, len },
            3 => Op::WriteZeroes {
                at,
                len,
                unmap: rng.once_in(2),
            },
            _ => Op::Write {
                at,
                from: Buffer::from_slice(&content),
            },
        };
        let done = tracker.run(op).await;
        match done.outcome {
            Ok(()) => history.borrow_mut().end(change),
            // Before it was issued.
            Err(fault) => assert!(matches!(fault, Fault::FlushFailed | Fault::Os(libc::EIO))),
        }
    }
}
