//! The replica, as the receiver and the journal would do it.

use super::*;

impl World {
    /// The replica is killed: what it held in memory is gone, and some of what it had not synced.
    pub(super) fn replica_restart(&mut self) {
        self.happened("replica killed");
        self.pending = None;
        self.issued = 0;
        self.round = 0;
        self.life += 1;
        let mut chance = self.chance;
        for chunks in self.store.values_mut() {
            chunks.retain(|_, _| chance.percent(70));
        }
        // What was laid down ahead was not synced.
        for (n, laid) in std::mem::take(&mut self.ahead) {
            match laid {
                Some((block, Some(before))) if n.1 % 4 < 2 => self.received.insert(block, before),
                Some((block, None)) if n.1 % 4 < 2 => self.received.remove(&block),
                _ => continue,
            };
        }
        self.chance = chance;
    }

    pub(super) fn fits(&self, header: &Header) -> bool {
        match (header.content, self.tip) {
            (Content::Seed { part: 0, .. }, Tip::Nothing) => true,
            (Content::Seed { seed, part }, Tip::Seeding { seed: s, parts, .. }) => {
                seed == s && part == parts
            }
            (
                Content::Delta {
                    since: Since::Seed { seed, parts },
                    ..
                },
                Tip::Seeding {
                    seed: s,
                    parts: has,
                    ..
                },
            ) => seed == s && parts == has,
            (
                Content::Delta {
                    since: Since::Point(since),
                    sequence,
                },
                Tip::Point { point, .. },
            ) => since.sequence <= point.sequence && point.sequence < sequence,
            _ => false,
        }
    }

    pub(super) fn have(&self, offer: &Offer) -> bool {
        match (offer.header.content, self.tip) {
            (Content::Delta { sequence, .. }, _) => self
                .points
                .get(&sequence)
                .is_some_and(|(_, root)| *root == offer.root),
            (Content::Seed { part, .. }, Tip::Seeding { parts, last, .. }) => {
                part + 1 == parts && last == Some(offer.root)
            }
            (Content::Seed { .. }, _) => false,
        }
    }

    pub(super) fn on_offer(&mut self, offer: &Offer) -> OfferAnswer {
        if let Some(lineage) = self.taken_over.clone() {
            return OfferAnswer::Superseded { lineage };
        }
        if self.have(offer) {
            return OfferAnswer::Committed { tip: self.tip };
        }
        if !self.fits(&offer.header) {
            let problem = problem(Code::Conflict, "it does not fit");
            return OfferAnswer::Unfit { problem };
        }
        let old = match offer.header.content {
            Content::Delta { sequence, .. } => sequence <= self.issued,
            Content::Seed { .. } => offer.round < self.round,
        };
        if old {
            let problem = problem(Code::Conflict, "it was sent before a comparison");
            return OfferAnswer::Unfit { problem };
        }
        self.store.retain(|root, _| *root == offer.root.0);
        let there: BTreeSet<u64> = self
            .store
            .get(&offer.root.0)
            .into_iter()
            .flat_map(|chunks| chunks.keys().copied())
            .collect();
        let chunks: Vec<u64> = (0..offer.chunks.len() as u64)
            .filter(|n| !there.contains(n))
            .collect();
        self.asked = chunks.iter().map(|n| (offer.root.0, *n)).collect();
        self.pending = Some((offer.clone(), there));
        OfferAnswer::Missing { chunks }
    }

    pub(super) fn on_put(&mut self, root: Root, n: u64, chunk: &Bytes) -> Result<(), LinkError> {
        self.puts += 1;
        if !self.asked.contains(&(root.0, n)) {
            self.unasked += 1;
        }
        match &mut self.pending {
            Some((offer, there)) if offer.root == root => {
                let index = usize::try_from(n).expect("small");
                assert_eq!(Digest::of(chunk), offer.chunks[index], "another chunk");
                there.insert(n);
                let is_part = matches!(offer.header.content, Content::Seed { .. });
                let chunks = self.store.entry(root.0).or_default();
                chunks.insert(n, chunk.clone());
                // Every other one, whatever the chance.
                let is_ahead = (u64::from(root.0[0]) + n) % 2 == 0;
                if is_part && is_ahead && !self.ahead.contains_key(&(root.0, n)) {
                    self.happened("part laid down ahead");
                    let laid = self.lay_down(chunk, true);
                    self.tentative.extend(laid.map(|(block, _)| block));
                    self.ahead.insert((root.0, n), laid);
                }
                Ok(())
            }
            _ => Err(LinkError::Refused(problem(Code::NotFound, "not offered"))),
        }
    }

    pub(super) fn on_commit(&mut self, root: Root) -> Result<CommitAnswer, LinkError> {
        let staged = self.outbox.as_ref().filter(|file| file.root == root);
        if staged.is_some_and(|file| file.damaged) {
            self.pending = None;
            let problem = problem(Code::Invalid, "a frame does not verify");
            return Err(LinkError::Refused(problem));
        }
        Ok(self.publish(root))
    }

    pub(super) fn publish(&mut self, root: Root) -> CommitAnswer {
        if let Some(lineage) = self.taken_over.clone() {
            return CommitAnswer::Superseded { lineage };
        }
        let Some((offer, there)) = self.pending.take_if(|(offer, _)| offer.root == root) else {
            let problem = problem(Code::NotFound, "not offered");
            return CommitAnswer::Again { problem };
        };
        if there.len() != offer.chunks.len() || !self.fits(&offer.header) {
            let problem = problem(Code::Conflict, "chunks are missing");
            self.pending = Some((offer, there));
            return CommitAnswer::Again { problem };
        }
        let is_part = matches!(offer.header.content, Content::Seed { .. });
        for (n, chunk) in self.store.remove(&root.0).unwrap_or_default() {
            let laid = match self.ahead.get(&(root.0, n)) {
                Some(laid) => *laid,
                None => self.lay_down(&chunk, is_part),
            };
            if let Some((block, _)) = laid {
                self.tentative.remove(&block);
            }
        }
        self.ahead.clear();
        self.tip = match offer.header.content {
            Content::Seed { seed, part } => Tip::Seeding {
                seed,
                parts: part + 1,
                last: Some(root),
            },
            Content::Delta { sequence, .. } => {
                self.leave_out(&offer.header);
                let held = self.of_point(&offer.header, &self.received);
                let lost = self.points.insert(sequence, (held, root));
                assert!(lost.is_none(), "a point was replaced");
                if !self.rotten.is_empty() {
                    self.damaged.insert(sequence);
                }
                let earlier = self.times.values().any(|time| *time > offer.header.time);
                self.times.insert(sequence, offer.header.time);
                self.let_go();
                match self.tip {
                    Tip::Point { .. } if earlier && self.lie == Some(Lie::Times) => self.tip,
                    _ => {
                        let term = self.lineage.current().id;
                        let point = PointId { term, sequence };
                        Tip::Point { point, root }
                    }
                }
            }
        };
        CommitAnswer::Committed { tip: self.tip }
    }
    /// Writes the block that a chunk holds, if it holds one: which, and what was there before.
    fn lay_down(&mut self, chunk: &[u8], is_part: bool) -> Laid {
        let number = |at: usize| {
            u64::from_le_bytes(chunk[8 * at..8 * at + 8].try_into().expect("eight bytes"))
        };
        if number(0) == u64::MAX {
            return None;
        }
        let block = (usize::try_from(number(0)).expect("small"), number(1));
        let before = self.received.insert(block, number(2));
        let had = before == Some(number(2)) && !self.tentative.contains(&block);
        self.resent += u64::from(is_part && had);
        self.rotten.remove(&block);
        Some((block, before))
    }
}
