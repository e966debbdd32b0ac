//! A process begins, and what it finds is checked.

use std::rc::Rc;
use std::sync::Arc;

use image::RawDevice;
use model::REGION_SIZE;
use testkit::History;

use super::marks::Set;
use super::probe::{Folder, Probe};
use super::{BLOCKS, REGION_BLOCKS, SIZE, Tracked, World};
use crate::intent::Looks;
use crate::ledger::Ledger;
use crate::recall::{Doubt, recall};
use crate::state::DiskState;
use crate::tracker::Tracker;

impl World {
    /// A new process on what the last one left.
    pub(super) async fn open(self: Rc<Self>) -> Rc<Tracked> {
        let state = DiskState::open(&self.state(), self.boot.get(), self.id, SIZE, 1);
        let state = state.expect("opened");
        let folder = Folder {
            log: Rc::clone(&self.log),
            stuck: Rc::clone(&self.stuck),
            rng: self.chance(),
        };
        let ledger = Ledger::new(self.id, Looks::of(&[]), Box::new(folder));
        let doubt = state.is_reopening().then_some(Doubt::FailedFlush);
        if doubt.is_some() {
            // What is in memory may hide that it is nowhere else.
            let seed = self.rng.borrow_mut().bits();
            self.disk.cut(seed);
            self.was_cut.set(true);
        }
        let looks = Looks::of(&[self.looks.get()]);
        let recalled = || recall(&ledger, &state, Some(looks), doubt);
        while recalled().await.is_err() {
            // Its log can be neither read nor removed: whoever looks after it starts it again.
        }
        state.reopened();
        let probe = Probe {
            below: RawDevice::new(self.disk.clone(), SIZE, false).expect("whole blocks"),
            model: Rc::clone(&self.model),
            rng: self.chance(),
        };
        let tracker = Tracker::new(probe, state, Arc::default(), ledger);
        tracker.broken.set(self.rule);
        if self.is_new.replace(false) {
            let begin = (!self.live.get()).then_some(0);
            tracker.track(self.relationship, begin).await;
            self.model.borrow_mut().current = Self::marked(&tracker);
        }
        Rc::new(tracker)
    }

    fn marked(tracker: &Tracked) -> Set {
        Set::of(BLOCKS, 1, |within| tracker.state().next_marked(within))
    }

    fn suspect(tracker: &Tracked) -> Set {
        let state = tracker.state();
        Set::of(state.regions(), REGION_BLOCKS, |within| {
            state.next_suspect(within)
        })
    }

    /// What must not be missed when the power goes off now must be in the log.
    fn check_armed(&self, tracker: &Tracked, unsent: &Set) {
        if tracker.ledger.log().is_none() {
            // Nothing is written, or all is compared after a power cut.
            return;
        }
        for block in (0..BLOCKS).filter(|block| unsent.has(*block)) {
            let armed = tracker.ledger.is_armed(&(block..block + 1));
            assert!(armed, "block {block} is not sent, and its region not armed");
        }
    }

    /// What a process finds must be what the model says.
    pub(super) fn check_opening(&self, tracker: &Tracked) {
        let content = self.disk.content();
        let marked = Self::marked(tracker);
        let suspect = Self::suspect(tracker);
        // What the twin will hold when it has what is in the outbox.
        let mut tip = self.twin.borrow().content.clone();
        let mut unsent = marked.clone();
        unsent.join(&suspect);
        let mut kept = unsent.clone();
        if let Some(segment) = &*self.outbox.borrow() {
            segment.apply(&mut tip);
            if segment.number != self.twin.borrow().tip {
                kept.join(&segment.blocks());
            }
        }
        let differing = Set::differing(&content, &tip);
        let missed = differing.beyond(&unsent);
        assert_eq!(
            missed, None,
            "a block that differs is neither marked nor suspect"
        );
        self.check_armed(tracker, &kept);
        let mut model = self.model.borrow_mut();
        model.flights.clear();
        model.fold_back();
        if self.was_cut.get() {
            self.history.borrow().check_durable(&content);
            let salt = self.rng.borrow_mut().bits();
            self.history.replace(History::new(content.clone(), salt));
        } else {
            let now = self.history.borrow_mut().now();
            self.history.borrow().check(0, &content, now);
        }
        if self.forgot.replace(false) {
            if self.live.get() {
                assert_eq!(marked.count(), 0, "marked blindly");
            }
            self.note(|seen| {
                seen.suspect += suspect.count() as u64;
                seen.differing += differing.count() as u64;
            });
            model.current = marked;
        } else {
            assert!(marked == model.current, "the marks are exact");
        }
        model.issued = content;
    }

    /// What polluxd asks for when it finds a new process.
    pub(super) async fn track(self: Rc<Self>, tracker: Rc<Tracked>) {
        // What was sent may be compared, and what was not is marked: the twin tells them apart.
        let sent = self.below(2 * SIZE).min(SIZE);
        let begin = (!self.live.get()).then_some(sent);
        let known = tracker.state().relationship().is_some();
        let suspect = Self::suspect(&tracker);
        let exact = tracker.track(self.relationship, begin).await;
        if !exact {
            tracker.suspect_unconfirmed();
        }
        if begin.is_some() && !exact {
            self.tell(|| format!("begins again behind {sent}"));
            let behind = sent.div_ceil(REGION_SIZE) * REGION_BLOCKS;
            let marked = (behind..BLOCKS).filter(|block| !known || suspect.has(*block));
            let current = &mut self.model.borrow_mut().current;
            marked.for_each(|block| current.add(block..block + 1));
        }
        if !known {
            self.check_opening(&tracker);
        }
    }
}
