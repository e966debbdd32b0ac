//! Base files come with the first point that has their disk, and go with the last one.
//!
//! ```text
//!   point       4        5        6        7        8
//!   disk a      whole    whole    whole    whole    whole
//!   disk b               joining  joining  whole              added after 4, taken away after 7
//!   base of b            made     .......................     goes when 7 goes
//! ```
//!
//! A disk that joins is copied with the points, some of it with each: its base begins as zeroes, and
//! every block of it is in the segments from the first one that names it to the first point that has
//! it whole. So one that comes back can go on with the base that older points still have: nothing
//! that they say of it is left to be seen.

use durable::Folder;
use model::PointId;

use crate::index::{BaseDisk, Change, Note};
use crate::{DiskExtent, Header, Journal, JournalError};

/// Makes base files of zeroes, durably.
pub(crate) fn make_bases(folder: &dyn Folder, disks: &[BaseDisk]) -> Result<(), JournalError> {
    for disk in disks {
        let name = disk.file();
        let make = || {
            // One that an interrupted attempt left, or that could not be removed. It is not emptied: what is
            // the base of a former primary has another name, under which it is kept.
            match folder.remove(&name) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = folder.create(&name)?;
            file.set_len(disk.size.0)?;
            file.sync()
        };
        make().map_err(|source| JournalError::io("create", &name, source))?;
    }
    // Their names before the index that names them.
    folder
        .sync("")
        .map_err(|source| JournalError::io("sync", "", source))
}

impl Journal {
    /// Makes the bases of disks that come with the point of this header. All bases as they are to be
    /// named with it, if they are not named so already.
    pub(crate) fn bases_for(
        &self,
        header: &Header,
        point: PointId,
    ) -> Result<Option<Vec<BaseDisk>>, JournalError> {
        let Some(tip) = self.index.newest() else {
            // The initial replication made them.
            return Ok(None);
        };
        let whole = |disks: &[DiskExtent], id| {
            let mut found = disks.iter().filter(|disk| disk.id == id);
            found.any(|disk| !disk.joining)
        };
        let mut bases = self.index.disks.clone();
        for base in &mut bases {
            let (was, is) = (whole(&tip.disks, base.id), whole(&header.disks, base.id));
            base.whole_from = match (is, was) {
                (true, true) => base.whole_from,
                (true, false) => Some(point.sequence),
                (false, _) => None,
            };
        }
        let known = bases.len();
        for disk in &header.disks {
            if self.index.base_of(disk.id).is_none() {
                bases.push(BaseDisk {
                    whole_from: (!disk.joining).then_some(point.sequence),
                    ..BaseDisk::new(disk.id, disk.size)
                });
            }
        }
        if bases.len() > known {
            make_bases(&*self.folder, &bases[known..])?;
        }
        Ok((bases != self.index.disks).then_some(bases))
    }

    /// Gives up the bases of disks that no point has any more. They are found again with the next point
    /// that goes if that fails.
    pub(crate) fn drop_bases(&mut self) {
        let newest = self.index.newest().map_or(0, |entry| entry.disks.len());
        if self.index.disks.len() <= newest {
            return;
        }
        let mut kept = self.index.disks.clone();
        let sets = &self.index;
        kept.retain(|base| {
            let mut sets = sets.disk_sets();
            sets.any(|set| set.iter().any(|disk| disk.id == base.id))
        });
        if kept.len() == self.index.disks.len() || kept.is_empty() {
            return;
        }
        let mut gone = self.index.disks.clone();
        gone.retain(|base| kept.iter().all(|kept| kept.id != base.id));
        match self.publish(vec![Change::Note(Note::Disks(kept))], vec![]) {
            Ok(()) => gone.iter().for_each(|base| self.discard(&base.file())),
            Err(error) => tracing::warn!(%error, "the base of a disk that is gone stays"),
        }
    }
}
