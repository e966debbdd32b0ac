//! What this host wrote and never sent, as a recovery point: it is opened, exported and tested like any
//! other, under the name [`LOST`].
//!
//! ```text
//!   replicas/UUID/branch/     like the home of a twin
//!     vm.toml branch.json disk0.raw ...
//!     journal/                made when it is wanted first: its base files are the disks, by another name
//!     open-ID/ test-ID/       above its only point
//! ```
//!
//! Nothing is merged in that journal, so that nobody writes to the disks. They are kept as long as somebody
//! holds the point.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use journal::{Consistency, Content, Header, Journal, SegmentWriter};
use model::{Code, DiskSpec, PointId, Problem, SeedId, Since};

use super::flatten::holder;
use super::{Store, Timestamp, journal_failed};
use crate::former;
use crate::stores::Place;
use crate::vm::Home;
use crate::vm::access;
use crate::vm::branch::Branch;
use crate::vm::create::{no_space_or, publish};
use crate::vm::folder::VmFolder;
use crate::vm::progress;

/// What people call it.
pub(crate) const LOST: &str = "lost-writes";
/// The journal while it is made.
const HALF: &str = ".journal";

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) store: Store,
    /// The VM as it was, in the folder of the branch.
    pub(crate) home: Home,
    pub(crate) point: PointId,
}

impl Store {
    /// The journal of what was never sent, whether it is made or not.
    pub(crate) fn of_lost(&self) -> &Store {
        self.lost.get_or_init(|| {
            let folder = Branch::beside(&self.folder);
            let thing = format!("what {} wrote and never sent", self.thing);
            Store::new(Place::beside(&folder), thing, self.flushes.clone())
        })
    }

    /// The one of the two whose journal lies in this folder.
    pub(crate) fn at(&self, journal: &Path) -> &Store {
        match journal == self.folder {
            true => self,
            false => self.of_lost(),
        }
    }

    /// What this host wrote and never sent, of the twin whose home is `home`. Blocking.
    ///
    /// # Errors
    /// It keeps nothing; or its journal cannot be made.
    pub(crate) fn lost(&self, home: &Path) -> Result<Lost, Problem> {
        let store = self.of_lost().clone();
        let failed = |error: io::Error| no_space_or(store.thing(), &error);
        // It is dropped under the lock: what is read before may be gone, and would be made again in part.
        let shelf = store.lock();
        let (branch, was) = Branch::read(&self.place)?.ok_or_else(|| nothing_lost(&self.thing))?;
        if !store.folder.exists() {
            // Whoever works above the point comes through it.
            access::let_pass(self.place.folder()).map_err(failed)?;
            let half = was.path.join(HALF);
            if half.exists() {
                fs::remove_dir_all(&half).map_err(failed)?;
            }
            progress::reserved(home)
                .and_then(|used| make(&store, &was, &branch, used, &half))
                .and_then(|()| publish(&half, &store.folder).map_err(failed))
                .inspect_err(|_| {
                    // What cannot be removed now is removed by the next attempt.
                    let _ = fs::remove_dir_all(&half);
                })?;
        }
        drop(shelf);
        let point = store.newest()?;
        let home = Home {
            path: was.path,
            place: store.place().clone(),
            spec: was.spec,
            machine: None,
        };
        Ok(Lost { store, home, point })
    }

    /// The same, if it was wanted before.
    pub(crate) fn lost_before(&self, home: &Path) -> Result<Option<Lost>, Problem> {
        let made = self.of_lost().folder.exists();
        made.then(|| self.lost(home)).transpose()
    }

    /// Drops it, for good. Blocking.
    ///
    /// # Errors
    /// Somebody holds it; or there is no point yet, and the disks that are kept are all that this host has.
    pub(crate) fn drop_lost(&self) -> Result<(), Problem> {
        self.newest()?;
        self.while_lost_is_free(|| {
            Branch::drop_of(&self.place).map_err(|error| Problem::failed(&self.thing, &error))
        })
    }

    /// Does something that ends it, while nobody holds it, and nobody can come to hold it. Blocking.
    ///
    /// # Errors
    /// Somebody does.
    pub(crate) fn while_lost_is_free<T>(
        &self,
        work: impl FnOnce() -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        let lost = self.of_lost();
        let _shelf = lost.lock();
        if lost.folder.exists() {
            let points = lost.open()?.points();
            let held = points.iter().find_map(|point| point.pins.first());
            if let Some(pin) = held {
                let (what, way_out) = holder(pin, replica::run::name(&self.thing), LOST);
                let reason = format!("is a point {what}");
                return Err(Problem::new(Code::Conflict, &lost.thing, reason, way_out));
            }
        }
        work()
    }
}

/// Makes the journal in the folder `half`: the disks as they are, and a point that changes nothing of them.
/// `used` is the highest number that a point had here.
fn make(
    store: &Store,
    was: &VmFolder,
    branch: &Branch,
    used: u64,
    half: &Path,
) -> Result<(), Problem> {
    let thing = store.thing();
    let failed = |error: io::Error| no_space_or(thing, &error);
    let disks: Vec<&DiskSpec> = was.spec.disks.iter().collect();
    let seed = SeedId::random();
    former::journal_of(was, &disks, seed, half)?;
    let none_left = || Problem::new(Code::Invalid, thing, "has no sequence number left", "");
    let header = Header {
        vm: was.spec.id,
        disks: disks.into_iter().map(former::extent).collect(),
        lineage: branch.lineage.clone(),
        content: Content::Delta {
            sequence: branch.lineage.next_sequence(used).ok_or_else(none_left)?,
            since: Since::Seed { seed, parts: 0 },
        },
        time: branch.until.unwrap_or_else(Timestamp::now),
        consistency: Consistency::Crash,
    };
    let name = "1";
    let incoming = half.join(Journal::INCOMING);
    durable::create_folder(&incoming).map_err(failed)?;
    let out = File::create(incoming.join(name)).map_err(failed)?;
    let (summary, _) = SegmentWriter::create(out, &header)
        .and_then(SegmentWriter::finish)
        .map_err(|error| Problem::failed(thing, &error))?;
    Journal::open(half)
        .and_then(|mut journal| journal.commit(name, summary.root))
        .map(drop)
        .map_err(|error| journal_failed(thing, &error))
}

/// A refusal where nothing is kept.
pub(crate) fn nothing_lost(thing: &str) -> Problem {
    let reason = "keeps nothing here that was written and never sent";
    let way_out = "It is kept on the host from which a VM was taken over, once that is the replica";
    Problem::new(Code::NotFound, thing, reason, way_out)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use model::{Bus, Bytes, Generation, Lineage, VmSpec};
    use replica::standing::Role;

    use super::*;
    use crate::flushes::Flushes;
    use crate::vm::takeover;

    const SIZE: u64 = 1 << 20;

    /// A twin that keeps a disk full of sevens, of which its own journal is the base.
    fn kept() -> (tempfile::TempDir, Store, VmFolder) {
        let home = tempfile::tempdir().expect("scratch");
        let disk = DiskSpec::new("disk0.raw".into(), Bytes(SIZE), Bus::Virtio, 0);
        let (name, memory) = ("web".parse().expect("a name"), Bytes(64 << 20));
        let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, vec![disk]);
        let was = VmFolder {
            path: Branch::folder(&Place::beside(home.path())),
            spec: spec.expect("a VM"),
            origin: None,
        };
        fs::create_dir(&was.path).expect("made");
        was.write().expect("written");
        let disk = &was.spec.disks[0];
        let content = vec![7; usize::try_from(SIZE).expect("small")];
        fs::write(was.disk_file(disk), content).expect("written");
        let lineage = Lineage::begin("castor");
        let since = PointId {
            term: lineage.current().id,
            sequence: 4,
        };
        let branch = Branch::new(lineage, since, Some(Vec::new()));
        branch.write(&was.path).expect("written");
        let thing = was.thing();
        let store = Store::new(Place::beside(home.path()), thing, Flushes::default());
        former::journal_of(&was, &[disk], SeedId::random(), store.folder()).expect("made");
        (home, store, was)
    }

    #[test]
    fn what_was_never_sent_is_a_point_with_the_disks_as_they_were() {
        let (home, store, was) = kept();
        assert!(store.lost_before(home.path()).expect("looked").is_none());
        let lost = store.lost(home.path()).expect("kept");
        assert_eq!(lost.home.spec, was.spec);
        assert!(lost.point.sequence > 0);
        let disk = was.spec.disks[0].id;
        let open = |journal: &mut Journal| Ok(journal.open_point(lost.point).expect("there"));
        let reader = lost.store.with(open).expect("opened");
        let mut block = [0; 4096];
        reader.read_at(disk, SIZE - 4096, &mut block).expect("read");
        assert_eq!(block, [7; 4096]);
        drop(reader);
        // Nothing is copied, and another polluxd finds the same.
        let base = lost.store.folder().join(Journal::base_file(disk));
        let inode = |path: &Path| fs::metadata(path).expect("there").ino();
        assert_eq!(inode(&base), inode(&was.disk_file(&was.spec.disks[0])));
        let again = Store::new(store.place().clone(), was.thing(), Flushes::default());
        let found = again.lost_before(home.path()).expect("looked");
        assert_eq!(found.map(|lost| lost.point), Some(lost.point));

        let refused = store.find(LOST).expect_err("no point of the twin");
        assert_eq!(refused.code, Code::Conflict);
        let nothing = tempfile::tempdir().expect("scratch");
        let place = Place::beside(nothing.path());
        let other = Store::new(place, was.thing(), Flushes::default());
        let refused = other.lost(nothing.path()).expect_err("nothing is kept");
        assert_eq!(refused.code, Code::NotFound);
    }

    /// A point of one disk, in which the block `at` is full of `byte`.
    fn point(store: &Store, was: &VmFolder, lineage: &Lineage, sequence: u64, at: u64, byte: u8) {
        let disk = &was.spec.disks[0];
        store
            .with(|journal| {
                let since = match journal.tip() {
                    journal::Tip::Seeding { seed, .. } => Since::Seed { seed, parts: 0 },
                    journal::Tip::Point { point, .. } => Since::Point(point),
                };
                let header = Header {
                    vm: was.spec.id,
                    disks: vec![former::extent(disk)],
                    lineage: lineage.clone(),
                    content: Content::Delta { sequence, since },
                    time: Timestamp::now(),
                    consistency: Consistency::Crash,
                };
                let incoming = store.folder().join(Journal::INCOMING).join("1");
                let out = File::create(incoming).expect("made");
                let mut writer = SegmentWriter::create(out, &header).expect("a header");
                // What compresses to nothing would fill no journal.
                let (mut content, mut chance) = (vec![0; 4096], sequence);
                for bytes in content.chunks_mut(8) {
                    chance = chance.wrapping_mul(6_364_136_223_846_793_005) + 1;
                    bytes.copy_from_slice(&(chance ^ chance >> 33).to_le_bytes());
                }
                content[0] = byte;
                writer.push_frame(0, at, &content).expect("fits");
                let (summary, _) = writer.finish().expect("written");
                Ok(journal.commit("1", summary.root).expect("taken"))
            })
            .expect("a point");
    }

    /// The journal of a twin grew by every point for as long as these writes were kept.
    #[test]
    fn while_it_is_kept_points_go_all_the_same_and_take_twice_the_disk_at_most() {
        let (home, store, was) = kept();
        let lost = store.lost(home.path()).expect("kept");
        let kept_disk = was.disk_file(&was.spec.disks[0]);
        let (keep, lineage) = ("3:all".parse().expect("a policy"), Lineage::begin("castor"));
        let points = 700_u64;
        let mut most = 0;
        for sequence in 1..=points {
            let at = sequence * 7 % (SIZE / 4096);
            point(
                &store,
                &was,
                &lineage,
                sequence,
                at,
                sequence.to_le_bytes()[0],
            );
            if sequence % 4 > 0 {
                continue;
            }
            // The receiver puts it on the shelf.
            drop(store.shelf(|| Role::Replica).expect("opened"));
            store.retain(&keep, Bytes(0)).expect("done");
            let held = store.held_back(&keep).expect("told").expect("it is kept");
            most = most.max(held.0);
        }
        println!("{} at most", Bytes(most));
        assert!(most > SIZE && most < 2 * SIZE + SIZE / 4, "{}", Bytes(most));
        assert!(store.points().expect("told").len() < 100);
        let is_as_it_was = || {
            fs::read(&kept_disk)
                .expect("there")
                .iter()
                .all(|byte| *byte == 7)
        };
        assert!(is_as_it_was());
        let open = |journal: &mut Journal| Ok(journal.open_point(lost.point).expect("there"));
        let reader = lost.store.with(open).expect("opened");
        let mut block = [0; 4096];
        reader
            .read_at(was.spec.disks[0].id, 0, &mut block)
            .expect("read");
        assert_eq!(block, [7; 4096]);
        drop(reader);

        let newest = store.newest().expect("there");
        let drop_it = || {
            Branch::drop_of(&Place::beside(home.path()))
                .map_err(|error| Problem::failed("it", &error))
        };
        store.while_lost_is_free(drop_it).expect("nobody holds it");
        assert_eq!(store.held_back(&keep), Ok(None));
        store.retain(&keep, Bytes(0)).expect("done");
        assert_eq!(store.points().expect("told").len(), 3);
        let open = |journal: &mut Journal| Ok(journal.open_point(newest).expect("there"));
        let reader = store.with(open).expect("opened");
        for sequence in points - SIZE / 4096 + 1..=points {
            let at = sequence * 7 % (SIZE / 4096) * 4096;
            reader
                .read_at(was.spec.disks[0].id, at, &mut block)
                .expect("read");
            assert_eq!(block[0], sequence.to_le_bytes()[0], "point {sequence}");
        }
    }

    #[test]
    fn it_is_kept_while_somebody_holds_it_and_goes_whole() {
        let (home, store, was) = kept();
        let drop_it = || {
            store.while_lost_is_free(|| {
                Branch::drop_of(&Place::beside(home.path()))
                    .map_err(|error| Problem::failed("it", &error))
            })
        };
        let lost = store.lost(home.path()).expect("kept");
        let ways_out = [
            ("test-0", "failover stop-test web`"),
            ("open-0", "point close web lost-writes`"),
        ];
        for (pin, way_out) in ways_out {
            lost.store.pin(lost.point, pin).expect("pinned");
            let refused = drop_it().expect_err("it is held");
            assert!(refused.way_out.contains(way_out), "{refused}");
            assert!(was.path.exists());
            store
                .at(lost.store.folder())
                .unpin(lost.point, pin)
                .expect("unpinned");
        }
        // A pin goes with its folder when polluxd was killed.
        lost.store.pin(lost.point, "test-1").expect("pinned");
        takeover::unpin(&lost.home.path, &lost.store).expect("unpinned");
        drop_it().expect("nobody holds it");
        assert!(!was.path.exists());
        drop_it().expect("nothing is left to do");
        store.lost(home.path()).expect_err("it is gone");
        assert!(!was.path.exists(), "nothing of it is made again");
    }

    #[test]
    fn a_journal_of_it_that_cannot_be_made_leaves_nothing() {
        let (home, store, was) = kept();
        fs::remove_file(was.disk_file(&was.spec.disks[0])).expect("removed");
        store.lost(home.path()).expect_err("a disk is not there");
        assert!(!was.path.join(HALF).exists());
        assert!(store.lost_before(home.path()).expect("looked").is_none());
    }

    #[test]
    fn disks_that_are_given_back_leave_no_journal() {
        let (home, store, was) = kept();
        store.lost(home.path()).expect("kept");
        fs::create_dir(was.path.join(HALF)).expect("made");
        Branch::unmake(&was.path).expect("a VM again");
        let mut left: Vec<_> = fs::read_dir(&was.path)
            .expect("there")
            .map(|entry| entry.expect("read").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["disk0.raw", "vm.toml"]);
        assert_eq!(VmFolder::read(&was.path).expect("read"), was);
    }
}
