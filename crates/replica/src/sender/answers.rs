//! What the replica's and the source's answers mean for what is next.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use jiff::Timestamp;
use journal::{Content, Root};
use model::{Bytes, PointId, Since};

use super::{CONTRADICTIONS, Now, Output, Sender, State, Then, WINDOW};
use crate::report::Transfer;
use crate::source::{Progress, StagedPart};
use crate::wire::{Offer, OfferAnswer, Tip};

impl Sender {
    /// The replica says what it has; compares that with what was sent.
    pub(super) fn decide(&mut self, now: Now, tip: Tip, out: &mut Vec<Output>) {
        if self.pause_now() {
            return;
        }
        match (self.progress, tip) {
            (_, Tip::Point { point, root }) => self.decide_live(now, point, root, out),
            (Progress::Seeding { part: 0, .. }, Tip::Nothing) => {
                self.decide_seed(now, 0, None, out);
            }
            (
                Progress::Seeding { seed, .. },
                Tip::Seeding {
                    seed: theirs,
                    parts,
                    last,
                },
            ) if seed == theirs => {
                self.decide_seed(now, parts, last, out);
            }
            (Progress::Seeding { .. }, Tip::Seeding { .. }) => {
                self.give_up("holds another initial replication than the one being sent");
            }
            _ => self.give_up("has lost content that it had acknowledged"),
        }
    }

    pub(super) fn decide_seed(
        &mut self,
        now: Now,
        parts: u64,
        last: Option<Root>,
        out: &mut Vec<Output>,
    ) {
        let Progress::Seeding {
            seed,
            part,
            at,
            end,
            sent,
            round,
        } = self.progress
        else {
            return self.give_up("has lost content that it had acknowledged");
        };
        let sent = self.progress.sent().unwrap_or(sent);
        let staged = self.staged.as_ref().map(|staged| staged.header.content);
        let root = self.staged.as_ref().map(|staged| staged.root);
        let this_part = Content::Seed { seed, part };
        let first_delta = matches!(
            staged,
            Some(Content::Delta { since, .. }) if since == Since::Seed { seed, parts: part }
        );
        let next = |at| Progress::Seeding {
            seed,
            part: part + 1,
            at,
            end: None,
            sent,
            round,
        };
        if parts == part {
            match staged {
                Some(content) if content == this_part && end.is_some() => self.offer(out),
                Some(_) if first_delta && at.disk >= self.plan.disks.len() => self.offer(out),
                Some(_) => self.drop_staged(out),
                None => self.go_on(now, out),
            }
        } else if part.checked_add(1) == Some(parts) {
            match (staged, end) {
                (Some(content), Some(end)) if content == this_part && last == root => {
                    self.acknowledged(now, None);
                    self.record(next(end), Then::Confirm, out);
                }
                // Or another part of that number, of before a crash, was received.
                (Some(_), _) => self.drop_staged(out),
                // It was received, and lost here with an unclean boot: what nobody can tell is compared.
                (None, _) => self.record(next(at), Then::Confirm, out),
            }
        } else {
            self.give_up("has parts of the initial replication that this host never sent");
        }
    }

    pub(super) fn decide_live(
        &mut self,
        now: Now,
        tip: PointId,
        root: Root,
        out: &mut Vec<Output>,
    ) {
        if !self.plan.lineage.contains(tip) {
            return self.give_up("has a point of another history than this host's");
        }
        if let Some(staged) = self.staged.as_ref().filter(|staged| staged.root == root) {
            self.join.has(tip, &staged.header);
        }
        if !self.join.knows(tip) {
            // Which disks it has only the answer to that question tells.
            return self.ask(out);
        }
        let progress = match self.progress {
            Progress::Live { acknowledged, .. } if acknowledged == tip => self.progress,
            _ => Progress::Live {
                acknowledged: tip,
                compared: false,
            },
        };
        if let Some(staged) = &self.staged {
            let header = &staged.header;
            let fits = match header.content {
                Content::Delta {
                    since: Since::Point(since),
                    sequence,
                } => {
                    self.plan.lineage.contains(since)
                        && since.sequence <= tip.sequence
                        && tip.sequence < sequence
                }
                _ => false,
            };
            return if header.point() == Some(tip) && staged.root != root {
                self.give_up("has another point by the name of the one that is staged here");
            } else if header.point() == Some(tip) {
                let cut = header.time;
                self.acknowledged(now, Some((tip, cut)));
                self.record(progress, Then::Confirm, out);
            } else if fits && !self.is_strange(tip) {
                self.offer(out);
            } else {
                self.drop_staged(out);
            };
        }
        if self.is_strange(tip) {
            return self.suspect_all(tip, out);
        }
        self.report.acknowledged = Some(tip);
        if self.progress == progress {
            self.go_on(now, out);
        } else {
            // Acknowledged, and lost here with an unclean boot.
            self.record(progress, Then::Confirm, out);
        }
    }

    pub(super) fn drop_staged(&mut self, out: &mut Vec<Output>) {
        match self.staged.clone() {
            Some(staged) => self.fold_back(staged, out),
            None => self.ask(out),
        }
    }

    pub(super) fn seed_staged(&mut self, staged: StagedPart, out: &mut Vec<Output>) {
        let Progress::Seeding {
            seed,
            part,
            at,
            sent,
            round,
            ..
        } = self.progress
        else {
            return self.track(out);
        };
        self.staged = Some(staged.segment);
        let end = at.after(staged.next);
        let progress = Progress::Seeding {
            seed,
            part,
            at,
            end: Some(end),
            sent,
            round,
        };
        self.record(progress, Then::Offer, out);
    }

    pub(super) fn offered(
        &mut self,
        now: Now,
        offer: &Offer,
        answer: OfferAnswer,
        out: &mut Vec<Output>,
    ) {
        match answer {
            OfferAnswer::Missing { chunks } => {
                let count = Offer::chunk_count(offer.file_len);
                let mut waiting: VecDeque<u64> = chunks.into_iter().collect();
                let rising = waiting
                    .iter()
                    .zip(waiting.iter().skip(1))
                    .all(|(a, b)| a < b);
                if !rising || waiting.back().is_some_and(|n| *n >= count) {
                    return self.give_up("asks for chunks that the segment does not have");
                }
                let bytes = |n: &u64| Offer::chunk_len(offer.file_len, *n);
                let missing: u64 = waiting.iter().map(bytes).sum();
                let had = offer.file_len.saturating_sub(missing);
                self.report.spared.0 += had;
                self.report.transfer = Some(Transfer {
                    sent: Bytes(had),
                    total: Bytes(offer.file_len),
                });
                let tables = count.saturating_sub(Offer::TABLES as u64);
                waiting.rotate_left(waiting.partition_point(|n| *n < tables));
                let first = waiting.len().min(WINDOW);
                let flying: BTreeSet<u64> = waiting.drain(..first).collect();
                if flying.is_empty() {
                    out.push(Output::Commit);
                    self.state = State::Committing;
                } else {
                    out.extend(flying.iter().map(|n| Output::Put(*n)));
                    self.state = State::Shipping { waiting, flying };
                }
            }
            OfferAnswer::Committed { tip } => self.committed(now, tip, out),
            OfferAnswer::Unfit { problem } => self.contradicted(problem, out),
            OfferAnswer::Superseded { lineage } => self.gate(lineage, out),
        }
    }

    pub(super) fn stored(
        &mut self,
        n: u64,
        mut waiting: VecDeque<u64>,
        mut flying: BTreeSet<u64>,
        out: &mut Vec<Output>,
    ) {
        if flying.remove(&n) {
            self.attempt = 0;
            if let Some(transfer) = &mut self.report.transfer {
                let len = Offer::chunk_len(transfer.total.0, n);
                transfer.sent.0 += len;
                self.report.shipped.0 += len;
            }
        }
        if let Some(next) = waiting.pop_front() {
            flying.insert(next);
            out.push(Output::Put(next));
        }
        if flying.is_empty() {
            out.push(Output::Commit);
            self.state = State::Committing;
        } else {
            self.state = State::Shipping { waiting, flying };
        }
    }

    /// The replica says that it has the segment. Its tip shows whether that is so; if not, it
    /// would be offered for ever.
    pub(super) fn committed(&mut self, now: Now, tip: Tip, out: &mut Vec<Output>) {
        self.contradictions += 1;
        if self.contradictions > CONTRADICTIONS {
            return self.give_up("says that it has a segment which its newest point lacks");
        }
        self.decide(now, tip, out);
    }

    pub(super) fn acknowledged(&mut self, now: Now, point: Option<(PointId, Timestamp)>) {
        self.contradictions = 0;
        self.report.last_success = Some(now.wall);
        self.report.last_error = None;
        let size = self.report.transfer.take().map(|transfer| transfer.total);
        if let Some((point, cut)) = point {
            self.repaired(point);
            if let Some(size) = size {
                self.report.last_size = size;
                self.report.sizes.0 = self.report.sizes.0.saturating_add(size.0);
            }
            self.adapt(now);
            self.report.cycles += 1;
            self.report.acknowledged = Some(point);
            self.report.acknowledged_cut = Some(cut);
            // The host's clock may have been set since; what was cut before this start only it tells.
            self.report.last_latency = match self.cut.take() {
                Some(at) => Some(now.since_start.saturating_sub(at)),
                None => Duration::try_from(now.wall.duration_since(cut)).ok(),
            };
            let latency = self.report.last_latency.unwrap_or_default();
            self.report.latencies = self.report.latencies.saturating_add(latency);
        }
    }
}
