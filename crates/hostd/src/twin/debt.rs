//! What a twin still needs of its file system, so that old points can go at any time.
//!
//! ```text
//!   the journal: opened, a point comes or goes --> noted
//!   admission:   free - reserve - what all twins there owe >= what comes?
//!                  '-- no --> counted block by block, and looked at again
//! ```
//!
//! What it is, and why, says [`journal::Journal::owed`]; who asks for it is [`crate::receive`].

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::PoisonError;

use journal::Journal;
use model::{Bytes, Problem};

use super::Store;
use super::flatten::Fate;

/// What a journal [owed](Journal::owed) when that was measured last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Debt {
    /// The number of its file system.
    device: u64,
    owed: Bytes,
}

impl Store {
    /// Notes what it owes now.
    pub(super) fn note_debt(&self, journal: &Journal) -> Result<(), Problem> {
        let owed = journal.owed();
        let owed = owed.map_err(|error| Problem::failed(&self.thing, &error))?;
        self.owe(owed)
    }

    /// It owes so much from now on.
    pub(crate) fn owe(&self, owed: Bytes) -> Result<(), Problem> {
        let device = device_of(&self.folder)
            .map_err(|error| Problem::failed(self.folder.display().to_string(), &error))?;
        let mut debt = self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        *debt = Some(Debt { device, owed });
        Ok(())
    }

    /// Counts what it owes block by block, if it may be much less than it seems. Blocking.
    pub(crate) fn count_debt(&self) -> Result<(), Problem> {
        self.with(|journal| {
            if journal.is_owed_vague() {
                journal
                    .count_owed()
                    .map_err(|error| Problem::failed(&self.thing, &error))?;
                self.note_debt(journal)?;
            }
            Ok(())
        })
    }

    /// What it owes file system number `device`, as far as that was measured: when it was opened, and
    /// whenever points had come or gone since.
    pub(crate) fn owes(&self, device: u64) -> Bytes {
        if self.fate() == Fate::Ended {
            return Bytes(0);
        }
        let debt = *self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        debt.filter(|debt| debt.device == device)
            .map_or(Bytes(0), |debt| debt.owed)
    }
}

/// The number of the file system that `path` lies on.
pub(crate) fn device_of(path: &Path) -> std::io::Result<u64> {
    std::fs::metadata(path).map(|found| found.dev())
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use journal::{Consistency, Content, Header, SegmentWriter};
    use model::{BLOCK_SIZE, DiskId, Since};
    use replica::standing::Role;

    use super::*;
    use crate::flushes::Flushes;
    use crate::stores::Place;

    /// A point more in the journal on the shelf, of 256 KiB that compress to next to nothing, where the base
    /// has a hole.
    fn another(store: &Store, disk: DiskId) {
        let taken = store.with(|journal| {
            let points = journal.points();
            let newest = points.last().expect("there is one");
            let header = Header {
                vm: journal.vm(),
                disks: newest.disks.clone(),
                lineage: journal.lineage().expect("known").clone(),
                content: Content::Delta {
                    sequence: newest.id.sequence + 1,
                    since: Since::Point(newest.id),
                },
                time: Timestamp::now(),
                consistency: Consistency::Crash,
            };
            assert_eq!(header.disks[0].id, disk);
            let incoming = store.folder().join(Journal::INCOMING).join("1");
            let out = std::fs::File::create(incoming).expect("made");
            let mut writer = SegmentWriter::create(out, &header).expect("a header");
            let end = header.disks[0].size.0 / BLOCK_SIZE;
            for frame in 1..=4 {
                let content = [7; 64 << 10];
                writer
                    .push_frame(0, end - frame * 16, &content)
                    .expect("fits");
            }
            let (summary, _) = writer.finish().expect("written");
            journal.commit("1", summary.root).expect("taken");
            Ok(())
        });
        taken.expect("opened");
    }

    #[test]
    fn what_a_journal_owes_its_file_system_follows_its_points_until_it_is_gone() {
        let home = tempfile::tempdir().expect("scratch");
        let place = Place::beside(home.path());
        let store = Store::new(place, "VM `web`".to_owned(), Flushes::default());
        let large = journal::large::Large {
            points: 3,
            segments: 3,
            blocks: 64,
            size: Bytes(64 << 20),
        };
        let (disk, _) = journal::large::make(store.folder(), &large).expect("made");
        let device = device_of(home.path()).expect("there");
        assert_eq!(store.owes(device), Bytes(0), "not looked at yet");
        drop(store.shelf(|| Role::Replica).expect("opened"));
        let before = store.owes(device);
        assert!(before > Bytes(0));
        assert_eq!(store.owes(device + 1), Bytes(0));

        // Points come, and are looked after.
        let keep_all = "100:all".parse().expect("a policy");
        another(&store, disk);
        another(&store, disk);
        assert_eq!(store.owes(device), before, "nobody looked");
        store.retain(&keep_all, Bytes(0)).expect("done");
        let more = store.owes(device);
        assert!(more > before, "{more}, {before}");
        // The two are the same blocks.
        store.count_debt().expect("counted");
        let counted = store.owes(device);
        assert!(counted < more, "{counted}, {more}");
        assert!(counted.0 >= 256 << 10, "{counted}");

        // The points below the one that is pinned go into the base.
        let keep = "1s:all".parse().expect("a policy");
        store.make_room(&keep, Timestamp::UNIX_EPOCH).expect("done");
        assert_eq!(store.owes(device), counted, "none is too old");
        store.make_room(&keep, Timestamp::MAX).expect("done");
        assert!(store.owes(device) < counted, "{}", store.owes(device));
        let keep = "1:all".parse().expect("a policy");
        store.retain(&keep, Bytes(0)).expect("done");
        store.set_fate(Fate::Ended);
        assert_eq!(store.owes(device), Bytes(0));
    }
}
