//! What a host wrote and never sent before it became the replica of the one that took over from it.
//!
//! ```text
//!   replicas/UUID/branch/     or, of a twin whose journal lies in another store, STORE/UUID/branch/
//!     vm.toml             the VM as it was here
//!     disk0.raw ...       its disks: the files that are the bases of the journal, by another name
//!     branch.json         where they may differ from what the other host had
//!     journal/ open-ID/ test-ID/     when they are looked into ([`crate::twin`])
//! ```
//!
//! While the folder is there nothing is merged into the bases, so that the disks stay as they were: points
//! that go go into each other ([`crate::twin::Store::retain`]). It goes when a person drops it; by itself, with
//! the first point, if there is nothing that the other host does not have, as after a planned failover.

use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::{DiskId, Lineage, PointId, Problem, REGION_SIZE};
use replica::wire::{Differs, MAX_DIFFERS};
use serde::{Deserialize, Serialize};

use super::create::{self, remove};
use super::folder::VmFolder;
use crate::former::last_written;
use crate::stores::Place;

const FOLDER: &str = "branch";
const FILE: &str = "branch.json";
/// What becomes of that in the folder of a VM whose disks were given back.
const GIVEN_BACK: &str = "given-back.json";
const VERSION: u32 = 1;
/// Most ranges that are kept of a disk: past that they are joined where they lie closest.
const MAX_RANGES: usize = 1 << 16;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Branch {
    version: u32,
    /// The history that ends here.
    pub(crate) lineage: Lineage,
    /// The newest point that the other host had.
    pub(crate) since: PointId,
    /// When that was cut, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) from: Option<Timestamp>,
    /// When a disk was written last, by its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) until: Option<Timestamp>,
    /// Where its disks may differ from that point. None: nobody can tell.
    pub(crate) disks: Option<Vec<Written>>,
}

/// What is kept of a branch whose disks were given back.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenBack {
    branch: Branch,
    looks: Vec<Looks>,
}

/// What a disk's file looks like, to tell whether it was touched since.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Looks {
    disk: DiskId,
    inode: u64,
    len: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

fn looks(machine: &VmFolder) -> io::Result<Vec<Looks>> {
    let of = |disk: &model::DiskSpec| {
        let meta = std::fs::metadata(machine.disk_file(disk))?;
        Ok(Looks {
            disk: disk.id,
            inode: meta.ino(),
            len: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    };
    machine.spec.disks.iter().map(of).collect()
}

impl GivenBack {
    /// Of the branch in `folder`; none if nobody can tell any more: then all is compared.
    fn of(folder: &Path) -> Option<Self> {
        let machine = VmFolder::read(folder).ok()?;
        let branch: Branch =
            serde_json::from_slice(&std::fs::read(folder.join(FILE)).ok()?).ok()?;
        // It may have been started meanwhile, by a polluxd that could not remove the twin.
        let unchanged = branch.until.is_some() && branch.until == last_written(&machine);
        let looks = looks(&machine).ok()?;
        unchanged.then_some(Self { branch, looks })
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        durable::replace(&folder.join(GIVEN_BACK), &serde_json::to_vec(self)?)
    }
}

/// Where a disk may differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Written {
    pub(crate) disk: DiskId,
    /// Runs of bytes, rising and apart.
    pub(crate) runs: Vec<Range<u64>>,
}

impl Written {
    /// Of a disk; `runs` are rising, and may touch.
    pub(crate) fn new(disk: DiskId, runs: Vec<Range<u64>>) -> Self {
        let mut joined = join(runs, 0);
        let mut gap = REGION_SIZE;
        while joined.len() > MAX_RANGES {
            joined = join(joined, gap);
            gap *= 2;
        }
        Self { disk, runs: joined }
    }

    /// The regions that they lie in.
    fn regions(&self) -> Vec<Range<u64>> {
        let region = |run: &Range<u64>| run.start / REGION_SIZE..run.end.div_ceil(REGION_SIZE);
        join(self.runs.iter().map(region).collect(), 0)
    }
}

/// Joins runs that lie no more than `gap` apart.
fn join(runs: Vec<Range<u64>>, gap: u64) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for run in runs {
        match joined.last_mut() {
            Some(last) if run.start <= last.end.saturating_add(gap) => {
                last.end = last.end.max(run.end);
            }
            _ => joined.push(run),
        }
    }
    joined
}

impl Branch {
    pub(crate) fn new(lineage: Lineage, since: PointId, disks: Option<Vec<Written>>) -> Self {
        Self {
            version: VERSION,
            lineage,
            since,
            from: None,
            until: None,
            disks,
        }
    }

    /// What the host that took over is told; none if nobody can tell, or it would be too much.
    pub(crate) fn differs(&self) -> Option<Vec<Differs>> {
        let of = |written: &Written| Differs {
            disk: written.disk,
            regions: written.regions(),
        };
        let told: Vec<_> = self.disks.as_ref()?.iter().map(of).collect();
        let runs: usize = told.iter().map(|one| one.regions.len()).sum();
        (runs <= MAX_DIFFERS).then_some(told)
    }

    /// Whether the other host, of which `theirs` is the lineage, has all that the disks of `was` held.
    fn is_all_theirs(&self, was: &VmFolder, theirs: &Lineage) -> bool {
        let unwritten = |disk: &model::DiskSpec| {
            let mut all = self.disks.iter().flatten();
            all.any(|one| one.disk == disk.id && one.runs.is_empty())
        };
        // It went on from there, and not from an older point.
        theirs.contains(self.since) && was.spec.disks.iter().all(unwritten)
    }

    /// The folder, of a twin whose journal lies in this place.
    pub(crate) fn folder(place: &Place) -> PathBuf {
        place.folder().join(FOLDER)
    }

    /// Whether `folder` is, or was, the one of a branch: a VM's that was given back, until its twin is gone.
    pub(crate) fn is_in(folder: &Path) -> bool {
        folder.join(FILE).exists()
    }

    /// The folder, beside that of the twin's `journal`.
    pub(crate) fn beside(journal: &Path) -> PathBuf {
        journal.with_file_name(FOLDER)
    }

    /// Whether the base of the journal, which lies in the folder `journal`, must stay as it is.
    pub(crate) fn holds(journal: &Path) -> bool {
        Self::beside(journal).exists()
    }

    /// Reads that of the twin whose journal lies in `place`, with the VM as it was; none if there is none.
    /// Blocking.
    pub(crate) fn read(place: &Place) -> Result<Option<(Self, VmFolder)>, Problem> {
        place.check()?;
        let folder = Self::folder(place);
        let file = folder.join(FILE);
        let thing = || file.display().to_string();
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Problem::failed(thing(), &error)),
        };
        let branch: Self =
            serde_json::from_slice(&text).map_err(|error| Problem::failed(thing(), &error))?;
        match VmFolder::read(&folder) {
            Ok(was) => Ok(Some((branch, was))),
            // It was dropped in between.
            Err(_) if !file.exists() => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Writes it durably into the folder.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        durable::replace(&folder.join(FILE), &serde_json::to_vec(self)?)
    }

    /// The folder is a VM's again, which [knows](Self::given_back) of the branch that it was as long as its
    /// disks stay as they are. Blocking.
    pub(crate) fn unmake(folder: &Path) -> io::Result<()> {
        let journal = Place::beside(folder).journal();
        if journal.exists() {
            remove(&journal)?;
        }
        create::sweep(folder)?;
        if let Some(given) = GivenBack::of(folder) {
            given.write(folder)?;
        }
        durable::remove(&folder.join(FILE))
    }

    /// The branch that a VM was whose disks were given back, if they are as they were then.
    pub(crate) fn given_back(machine: &VmFolder) -> Option<Self> {
        let text = std::fs::read(machine.path.join(GIVEN_BACK)).ok()?;
        let given: GivenBack = serde_json::from_slice(&text).ok()?;
        let unchanged = looks(machine).ok()? == given.looks;
        unchanged.then_some(given.branch)
    }

    /// Whether the twin whose journal lies in `place` keeps a branch in which there is nothing that the host
    /// which took over, of which `theirs` is the lineage, does not have. Blocking.
    pub(crate) fn is_needless(place: &Place, theirs: &Lineage) -> Result<bool, Problem> {
        let read = Self::read(place)?;
        Ok(read.is_some_and(|(branch, was)| branch.is_all_theirs(&was, theirs)))
    }

    /// Drops it, for good, if it is there still, with its disks that lie beside it. Blocking.
    pub(crate) fn drop_of(place: &Place) -> io::Result<()> {
        let folder = Self::folder(place);
        if !folder.exists() {
            return Ok(());
        }
        let was = VmFolder::read(&folder);
        remove(&folder)?;
        let disks = was.iter().flat_map(|was| {
            let files = was.spec.disks.iter().map(|disk| was.disk_file(disk));
            files.filter(|file| file.parent() == Some(place.folder()))
        });
        disks
            .into_iter()
            .try_for_each(|file| durable::remove(&file))
    }

    /// Removes what the journal and the branch of a twin are in a store, where `machine` lies on its disks:
    /// they were given back, or did not become a twin. The VM knows of the branch as long as nobody writes to
    /// them. Blocking.
    pub(crate) fn leave_in(place: &Place, machine: &VmFolder) -> io::Result<()> {
        let journal = place.journal();
        if journal.exists() {
            remove(&journal)?;
        }
        let folder = Self::folder(place);
        if folder.exists() {
            if let Some(given) = GivenBack::of(&folder) {
                given.write(&machine.path)?;
            }
            remove(&folder)?;
        }
        create::sweep(place.folder())
    }
}

#[cfg(test)]
mod tests {
    use model::Bytes;

    use super::*;

    #[test]
    fn ranges_are_joined_and_told_by_region() {
        let block = |n: u64| n * 4096..(n + 1) * 4096;
        let disk = DiskId::random();
        let written = Written::new(disk, vec![block(1), block(2), block(300), block(1000)]);
        assert_eq!(written.runs, [4096..3 * 4096, block(300), block(1000)]);
        assert_eq!(written.regions(), [0..2, 3..4]);

        let many = (0..3 * MAX_RANGES as u64).map(|n| block(2 * n));
        let written = Written::new(disk, many.collect());
        assert!(written.runs.len() <= MAX_RANGES);
        let end = block(2 * (3 * MAX_RANGES as u64 - 1)).end;
        assert_eq!(written.runs.last().map(|run| run.end), Some(end));

        let lineage = Lineage::begin("castor");
        let since = PointId {
            term: lineage.current().id,
            sequence: 4,
        };
        let apart = (0..=MAX_DIFFERS as u64).map(|n| block(512 * n));
        let scattered = Branch::new(
            lineage,
            since,
            Some(vec![Written::new(disk, apart.collect())]),
        );
        assert_eq!(scattered.differs(), None, "too much to tell");
    }

    /// One of a VM with a disk, of which two blocks were never sent.
    fn kept(home: &Place) -> (Branch, VmFolder) {
        let lineage = Lineage::begin("castor");
        let since = PointId {
            term: lineage.current().id,
            sequence: 4,
        };
        let disk = model::DiskSpec::new("disk0.raw".into(), Bytes(1 << 20), model::Bus::Virtio, 0);
        let written = Written::new(disk.id, vec![0..4096, 8192..12288]);
        let branch = Branch::new(lineage, since, Some(vec![written]));
        let name = "web".parse().expect("a name");
        let memory = Bytes(64 << 20);
        let two = model::Generation::Two;
        let spec = model::VmSpec::new(name, two, 1, memory, false, None, vec![disk]);
        let was = VmFolder {
            path: Branch::folder(home),
            spec: spec.expect("a VM"),
            origin: None,
        };
        std::fs::create_dir(&was.path).expect("made");
        was.write().expect("written");
        branch.write(&was.path).expect("written");
        (branch, was)
    }

    #[test]
    fn one_that_is_dropped_while_it_is_read_is_whole_or_none() {
        let home = tempfile::tempdir().expect("scratch");
        let home = &Place::beside(home.path());
        for _ in 0..100 {
            let (branch, was) = kept(home);
            std::thread::scope(|all| {
                all.spawn(|| Branch::drop_of(home).expect("dropped"));
                while let Some(read) = Branch::read(home).expect("whole or none") {
                    assert_eq!(read, (branch.clone(), was.clone()));
                }
            });
        }
    }

    #[test]
    fn it_is_read_as_it_was_written_and_dropped_whole() {
        let home = tempfile::tempdir().expect("scratch");
        let home = &Place::beside(home.path());
        assert!(Branch::read(home).expect("none").is_none());
        let (branch, was) = kept(home);
        let taken_over = |sequence| {
            let from = PointId {
                sequence,
                ..branch.since
            };
            branch.lineage.branch(from, "pollux").expect("on it")
        };
        let (theirs, older) = (taken_over(4), taken_over(3));
        let read = Branch::read(home).expect("read");
        assert_eq!(read, Some((branch.clone(), was.clone())));
        assert!(Branch::holds(&home.journal()));
        assert_eq!(Branch::is_needless(home, &theirs), Ok(false), "written to");
        let all_sent = Written::new(was.spec.disks[0].id, Vec::new());
        let mut needless = Branch {
            disks: Some(vec![all_sent]),
            ..branch
        };
        needless.write(&was.path).expect("written");
        assert_eq!(Branch::is_needless(home, &theirs), Ok(true));
        assert_eq!(
            Branch::is_needless(home, &older),
            Ok(false),
            "failed over to an older point"
        );
        for unknown in [None, Some(Vec::new())] {
            needless.disks = unknown;
            needless.write(&was.path).expect("written");
            assert_eq!(Branch::is_needless(home, &theirs), Ok(false));
        }
        Branch::drop_of(home).expect("dropped");
        Branch::drop_of(home).expect("nothing is left to do");
        assert_eq!(
            Branch::is_needless(home, &theirs),
            Ok(false),
            "it keeps none"
        );
        assert!(!Branch::holds(&home.journal()));
        assert!(Branch::read(home).expect("none").is_none());
    }
}
