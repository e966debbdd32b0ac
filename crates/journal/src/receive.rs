//! What a journal takes in: parts of an initial replication, and points.

use std::sync::Arc;

use durable::{File, Need};
use model::{Bytes, PointId, Since};

use crate::accept::{Held, Offered, accept};
use crate::index::{Base, Change, Entry, Index, MAX_BASES, Note, Place, SEGMENTS};
use crate::laying::{AT_ONCE, Laying};
use crate::packs::{Memory, whole};
use crate::{
    Content, DiskExtent, Header, Journal, JournalError, Refusal, Root, SegmentReader, Tip,
};

/// A segment that came.
enum Received {
    /// It goes into a pack.
    Small(Arc<Memory>),
    /// It stays a file.
    Large(Arc<dyn File>),
}

impl Received {
    fn file(&self) -> Arc<dyn File> {
        match self {
            Self::Small(bytes) => bytes.clone(),
            Self::Large(file) => file.clone(),
        }
    }
}

/// Whether an offered segment may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It fits what is there.
    Fits,
    /// It was committed before: a lost acknowledgement.
    Have,
    /// It does not fit.
    Unfit(Refusal),
}

impl Journal {
    /// Whether the segment with this header and root may come.
    ///
    /// The rule for a point is [`accept`].
    #[must_use]
    pub fn check(&self, header: &Header, root: Root) -> Verdict {
        match self.judge(header, root) {
            Ok(verdict) => verdict,
            Err(refusal) => Verdict::Unfit(refusal),
        }
    }

    fn judge(&self, header: &Header, root: Root) -> Result<Verdict, Refusal> {
        let index = &self.index;
        if header.vm != index.vm {
            return Err(Refusal::Vm);
        }
        if matches!(index.base, Base::Seeding { .. }) && !has_disks_of(index, header) {
            return Err(Refusal::Disks);
        }
        match (header.content, header.point()) {
            (Content::Delta { since, .. }, Some(point)) => {
                judge_delta(index, header, point, since, root)
            }
            (Content::Seed { seed, part }, _) => {
                if seed != index.seed {
                    return Err(Refusal::OtherSeed(seed));
                }
                if self.base_stays {
                    return Err(Refusal::BaseStays);
                }
                let (next, last) = match (&index.base, self.tip()) {
                    (Base::Seeding { parts, last }, _) => (*parts, last),
                    (_, Tip::Point { point, .. }) => return Err(Refusal::Complete(point)),
                    (_, Tip::Seeding { next_part, .. }) => (next_part, &None),
                };
                if part.checked_add(1) == Some(next) {
                    return match last {
                        Some(last) if *last == root => Ok(Verdict::Have),
                        _ => Err(Refusal::OtherPart(part)),
                    };
                }
                if part != next {
                    return Err(Refusal::Part { got: part, next });
                }
                grown(index, header, None)?;
                Ok(Verdict::Fits)
            }
            (Content::Delta { .. }, None) => Err(Refusal::Seeding),
        }
    }

    /// Takes the file `name` of [`Journal::INCOMING`], which was offered with this root: checks
    /// and verifies every byte of it, and publishes it. After this returned, the point (or the
    /// part of the initial replication) is there whatever happens.
    ///
    /// A segment that was committed before is success; the file is removed then, as it is when a
    /// part of an initial replication was written to the base.
    ///
    /// # Errors
    /// Nothing was published if the segment is wrong or does not fit. When a change of the index
    /// fails it may have taken place all the same: the next change, or [`Journal::reload`], finds
    /// out, and then it is success to commit it again. The file is gone when it could not
    /// be synced, and has to be received again.
    pub fn commit(&mut self, name: &str, root: Root) -> Result<Tip, JournalError> {
        self.settle()?;
        let incoming = incoming(name)?;
        let failed = |source| JournalError::segment(&incoming, source);
        let file = self.open_incoming(&incoming)?;
        let len = file
            .size()
            .map_err(|source| JournalError::io("read", &incoming, source))?;
        let received = if len <= self.packs.small {
            let bytes =
                whole(&*file).map_err(|source| JournalError::io("read", &incoming, source))?;
            Received::Small(Arc::new(Memory(bytes)))
        } else {
            Received::Large(file)
        };
        let reader = SegmentReader::of(received.file()).map_err(failed)?;
        if reader.summary().root != root {
            return Err(JournalError::NotOffered(incoming));
        }
        match self.judge(reader.header(), root)? {
            Verdict::Have => {
                self.discard(&incoming);
                return Ok(self.tip());
            }
            Verdict::Unfit(refusal) => return Err(refusal.into()),
            Verdict::Fits => {}
        }
        // A part is laid down frame by frame, each of which is verified before; what is there of one that
        // turns out to be damaged counts as little as what a power cut left.
        if matches!(reader.header().content, Content::Delta { .. }) {
            reader.verify_all().map_err(failed)?;
        }
        match (reader.header().point(), reader.header().content) {
            (Some(point), Content::Delta { since, .. }) => {
                self.commit_point(&incoming, &received, &reader, point, since)?;
            }
            (_, Content::Seed { part, .. }) => self.commit_part(&incoming, reader, part)?,
            (None, Content::Delta { .. }) => return Err(Refusal::Seeding.into()),
        }
        Ok(self.tip())
    }

    /// Publishes a verified segment as a point.
    fn commit_point(
        &mut self,
        incoming: &str,
        received: &Received,
        reader: &SegmentReader,
        point: PointId,
        since: Since,
    ) -> Result<(), JournalError> {
        let (header, summary) = (reader.header(), reader.summary());
        // No part comes any more.
        self.ahead = None;
        let bases = self.bases_for(header, point)?;
        let mut entry = Entry {
            point,
            since,
            time: header.time,
            consistency: header.consistency,
            disks: match self.index.newest() {
                Some(newest) if *newest.disks == header.disks => newest.disks.clone(),
                _ => Arc::from(header.disks.clone()),
            },
            root: summary.root,
            stored: summary.root,
            place: Place::Own,
            file_len: summary.file_len,
            content: summary.content,
            zeroes: summary.zeroes,
        };
        let own = entry.file();
        let needs = match received {
            Received::Small(bytes) => {
                let (place, needs) = self.pack(&bytes.0)?;
                entry.place = place;
                needs
            }
            Received::Large(file) => {
                self.folder
                    .rename(incoming, &own)
                    .map_err(|source| JournalError::io("publish", &own, source))?;
                vec![
                    Need::Content(file.clone()),
                    Need::Names(self.folder.clone(), SEGMENTS),
                ]
            }
        };
        let is_packed = entry.place != Place::Own;
        // Before the point, which rests on them.
        let mut changes: Vec<_> = bases
            .into_iter()
            .map(Note::Disks)
            .map(Change::Note)
            .collect();
        let content = summary.content.0.saturating_sub(summary.zeroes.0);
        self.lacking.grows(content);
        changes.push(Change::Point(entry));
        if self.index.lineage.as_ref() != Some(&header.lineage) {
            changes.push(Change::Note(Note::Lineage(header.lineage.clone())));
        }
        let published = self.publish(changes, needs);
        match &published {
            Ok(()) if is_packed => self.discard(incoming),
            // It may be committed again. After a flush that failed it has to come again: another
            // one would say nothing of what was lost.
            Err(_) if !is_packed && !self.is_stale() => {
                let _ = self.folder.rename(&own, incoming);
            }
            _ => {}
        }
        published
    }

    /// Writes to the base what lies in the first `come` bytes of the file `name` of
    /// [`Journal::INCOMING`], about 16 MiB at once: a part of the initial replication of which the frame
    /// table and the index came before the rest. [`Journal::commit`] has that much less to do. Nothing is
    /// published by it, and what is written counts as little as what an interrupted commit left. Nothing is
    /// done with a segment that is no such part, or none that comes next.
    ///
    /// # Errors
    /// It is not the segment that was offered with this root, as far as that can be told, or a failed
    /// read or write.
    pub fn lay_ahead(&mut self, name: &str, root: Root, come: Bytes) -> Result<(), JournalError> {
        let mut laying = match self.take_ahead(root) {
            Some(ahead) => ahead,
            None => {
                let incoming = incoming(name)?;
                let file = self.open_incoming(&incoming)?;
                let failed = |source| JournalError::segment(&incoming, source);
                let reader = SegmentReader::of(file).map_err(failed)?;
                if reader.summary().root != root {
                    return Err(JournalError::NotOffered(incoming));
                }
                let is_part = matches!(reader.header().content, Content::Seed { .. });
                if !is_part || self.check(reader.header(), root) != Verdict::Fits {
                    return Ok(());
                }
                Laying::begin(reader, &incoming, &self.bases()?)?
            }
        };
        laying.advance(come.0, AT_ONCE)?;
        self.ahead = Some(laying);
        Ok(())
    }

    /// What is laid down of the part with this root; whatever else is, is no more.
    fn take_ahead(&mut self, root: Root) -> Option<Laying> {
        self.ahead.take().filter(|ahead| ahead.root() == root)
    }

    fn open_incoming(&self, incoming: &str) -> Result<Arc<dyn File>, JournalError> {
        let opened = self.folder.open(incoming);
        opened.map_err(|source| JournalError::io("open", incoming, source))
    }

    /// Verifies a part of an initial replication, writes it to the base and publishes that.
    fn commit_part(
        &mut self,
        incoming: &str,
        reader: SegmentReader,
        part: u64,
    ) -> Result<(), JournalError> {
        let (header, root) = (reader.header().clone(), reader.summary().root);
        let mut laying = match self.take_ahead(root) {
            Some(ahead) => ahead,
            None => Laying::begin(reader, incoming, &self.bases()?)?,
        };
        laying.advance(u64::MAX, u64::MAX)?;
        self.group
            .flush(laying.needs())
            .map_err(|source| JournalError::io("flush the base after", incoming, source))?;
        let mut disks = self.index.disks.clone();
        for disk in &mut disks {
            let extents = &header.disks;
            if let Some(extent) = extents.iter().find(|extent| extent.id == disk.id) {
                disk.size = extent.size;
            }
        }
        let mut changes = vec![Change::Note(Note::Seeding {
            parts: part.saturating_add(1),
            last: Some(root),
        })];
        if disks != self.index.disks {
            changes.push(Change::Note(Note::Disks(disks)));
        }
        self.publish(changes, vec![])?;
        self.discard(incoming);
        Ok(())
    }

    /// Removes a file that is not needed any more. One that stays costs space only: the next
    /// process to receive into the folder deals with it.
    pub(crate) fn discard(&self, name: &str) {
        if let Err(error) = self.folder.remove(name) {
            tracing::warn!(file = name, %error, "cannot remove a file that was taken in");
        }
    }
}

fn judge_delta(
    index: &Index,
    header: &Header,
    point: PointId,
    since: Since,
    root: Root,
) -> Result<Verdict, Refusal> {
    let newest = index.newest();
    let held = Held {
        seed: index.seed,
        parts: match &index.base {
            Base::Seeding { parts, .. } => Some(*parts),
            _ => None,
        },
        lineage: index.lineage.as_ref(),
        newest: newest.map(|entry| entry.point),
        known: index.find(point).map(|(_, entry)| entry.root),
    };
    let offered = Offered {
        lineage: &header.lineage,
        sequence: point.sequence,
        since,
        root,
    };
    let verdict = accept(&held, &offered)?;
    if verdict == Verdict::Fits {
        grown(index, header, newest)?;
    }
    Ok(verdict)
}

/// Whether a segment has exactly the disks of which a journal has bases, in their order.
fn has_disks_of(index: &Index, header: &Header) -> bool {
    let theirs = header.disks.iter().map(|disk| disk.id);
    theirs.eq(index.disks.iter().map(|disk| disk.id))
}

/// Disks may come and go, and grow, not shrink.
fn grown(index: &Index, header: &Header, tip: Option<&Entry>) -> Result<(), Refusal> {
    for disk in &header.disks {
        let base = index.base_of(disk.id).map(|base| base.size.0);
        let mut at_tip = tip.into_iter().flat_map(|tip| tip.disks.iter());
        let before = at_tip.find(|before| before.id == disk.id);
        let before = before.map(|before| before.size.0).max(base);
        if before.is_some_and(|before| disk.size.0 < before) {
            return Err(Refusal::Shrunk(disk.id));
        }
    }
    let new = |disk: &&DiskExtent| index.base_of(disk.id).is_none();
    if index.disks.len() + header.disks.iter().filter(new).count() > MAX_BASES {
        return Err(Refusal::ManyDisks);
    }
    Ok(())
}

/// The file `name` of what is being received, in the journal's folder.
fn incoming(name: &str) -> Result<String, JournalError> {
    if name.is_empty() || name.starts_with('.') || name.contains('/') {
        return Err(JournalError::Name(name.to_owned()));
    }
    Ok(format!("{}/{name}", Journal::INCOMING))
}
