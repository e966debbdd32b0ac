//! An epoch between its request and its end, as the thread sees it that asked for it.
//!
//! Every disk that was asked says whether it was sealed; every one that was sealed sends its content and
//! then says that it was staged. Only after all of them have is the epoch ended, whole or folded back.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use journal::Summary;
use model::{BLOCK_SIZE, Bytes};

use crate::control::Staged;
use crate::cut::Cut;
use crate::engine::{Disk, Engine};
use crate::outbox::{Filler, OutboxError};
use crate::owner::{Delivery, Order, SealFault};
use crate::staging::Abandoned;
use crate::tally::micros;

/// How long a cut waits for all disks to stop issuing mutations. The guest's writes are held up
/// meanwhile.
const PARKING: Duration = Duration::from_secs(1);

/// Why there will be no segment.
pub(crate) enum EpochFault {
    Seal(SealFault),
    Staging(Abandoned),
    Outbox(OutboxError),
    Gone,
}

/// An epoch between its request and its end.
pub(crate) struct Underway<'a> {
    engine: &'a Engine,
    disks: Vec<&'a Disk>,
    delivered: Receiver<Delivery>,
    /// What came before the segment could be begun.
    early: VecDeque<Delivery>,
    /// Disks that were not heard of yet, and those that were sealed and are still staged.
    unheard: usize,
    staging: usize,
    pause: Duration,
    copied: u64,
    next: Option<u64>,
    fault: Option<EpochFault>,
}

impl<'a> Underway<'a> {
    pub(crate) fn new(
        engine: &'a Engine,
        disks: &[&'a Disk],
        delivered: Receiver<Delivery>,
    ) -> Self {
        Self {
            engine,
            disks: disks.to_vec(),
            delivered,
            early: VecDeque::new(),
            unheard: disks.len(),
            staging: 0,
            pause: Duration::ZERO,
            copied: 0,
            next: None,
            fault: None,
        }
    }

    /// Waits until every disk was sealed or not; abandons `cut` when one takes too long.
    pub(crate) fn await_seals(&mut self, cut: Option<&Cut>) {
        let deadline = Instant::now() + PARKING;
        while self.unheard > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            let delivery = if left.is_zero() {
                // Every owner answers from now on: parked or not, it goes on.
                if let Some(cut) = cut {
                    cut.abandon();
                }
                self.delivered
                    .recv()
                    .map_err(|_gone| RecvTimeoutError::Disconnected)
            } else {
                self.delivered.recv_timeout(left)
            };
            match delivery {
                Ok(delivery @ Delivery::Sealed { .. }) => {
                    self.note(&delivery);
                }
                Ok(delivery) => self.early.push_back(delivery),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.fault.get_or_insert(EpochFault::Gone);
                    return;
                }
            }
        }
    }

    fn note(&mut self, delivery: &Delivery) {
        match delivery {
            Delivery::Sealed { outcome, pause, .. } => {
                self.unheard -= 1;
                self.pause = self.pause.max(*pause);
                match outcome {
                    Ok(next) => {
                        self.staging += 1;
                        // That of a slice, beside disks that are cut.
                        self.next = self.next.or(*next);
                    }
                    Err(fault) => {
                        self.fault.get_or_insert(EpochFault::Seal(*fault));
                    }
                }
            }
            Delivery::Staged { outcome, .. } => {
                self.staging -= 1;
                match outcome {
                    Ok(report) => self.copied += report.copied,
                    Err(fault) => {
                        self.fault.get_or_insert(EpochFault::Staging(*fault));
                    }
                }
            }
            Delivery::Piece(_) => {}
        }
    }

    /// Writes pieces until every disk is staged.
    pub(crate) fn write(&mut self, filler: &mut Filler) -> Result<(), EpochFault> {
        loop {
            if let Some(fault) = self.fault.take() {
                return Err(fault);
            }
            // What is left when this ends early is noted by `give_up`.
            let delivery = match self.early.pop_front() {
                Some(delivery) => delivery,
                None if self.staging == 0 && self.unheard == 0 => return Ok(()),
                None => match self.delivered.recv() {
                    Ok(delivery) => delivery,
                    Err(_) => return Err(EpochFault::Gone),
                },
            };
            self.note(&delivery);
            if let Delivery::Piece(piece) = delivery {
                filler.push(&piece).map_err(EpochFault::Outbox)?;
                piece.written();
            }
        }
    }

    /// Folds back on every disk, after its staging has ended.
    pub(crate) fn give_up(&mut self) {
        for disk in &self.disks {
            if let Err(problem) = self.engine.insist(disk, Order::Abandon) {
                tracing::error!(%problem, "cannot abandon an epoch");
            }
        }
        for delivery in std::mem::take(&mut self.early) {
            self.note(&delivery);
        }
        while self.staging > 0 || self.unheard > 0 {
            match self.delivered.recv() {
                Ok(delivery) => self.note(&delivery),
                Err(_) => break,
            }
        }
        self.end(false);
    }

    pub(crate) fn end(&self, whole: bool) {
        self.engine.end_epoch(&self.disks, whole);
    }

    /// How long the disk was held up that was held up longest.
    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    /// Bytes of old content that were saved.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    pub(crate) fn report(&self, summary: &Summary) -> Staged {
        Staged {
            content: summary.content,
            zeroes: summary.zeroes,
            file_len: summary.file_len,
            copied_before_write: Bytes(self.copied),
            pause_us: micros(self.pause),
            next: self.next.map(|block| block * BLOCK_SIZE),
        }
    }
}
