//! The owner's part in a failover: a VM above a point of the twin's journal.
//!
//! ```text
//!   failover: point pinned, folder made --> attempt durable --> primary asked to stand down
//!      --> refused: all undone
//!      --> term and lineage durable, journal off the shelf --> QEMU starts
//!   test: point pinned, folder made --> another VM, with its own owner
//! ```
//!
//! Nothing is written to the journal's base: what the guest writes goes to an overlay, that of a checkpoint
//! after a failover. When the failover is completed that is merged into what the base was
//! ([`super::complete`]).
//!
//! After a crash before the new term is durable the folder `failover` is a leftover: the role
//! is still the replica's, and [`tidy`] removes it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use model::{
    Bytes, CheckpointId, Code, DiskId, DiskSpec, GenerationId, Lineage, PointId, Problem, TermId,
    VmId, VmName, VmSpec, VmState,
};
use replica::run::Evidence;
use replica::standing::{self, Override, Role, Standing};

use super::another::ANOTHER;
use super::change::{Change, new_checkpoint};
use super::create::{no_space_or, publish, remove};
use super::folder::{Made, Origin, VmFolder};
use super::handle::{Answer, View};
use super::owner::{Happening, Owner, refuse};
use super::succession;
use crate::partner;
use crate::twin::{Lost, Store, not_a_twin};

/// Folder of the VM that a failover made, in the twin's home; the reason of its pin.
pub(crate) const FAILOVER: &str = "failover";
/// How the folder of a VM that a test failover made begins, in the twin's home; its name is the reason
/// of its pin.
pub(crate) const TEST: &str = "test-";

impl Owner {
    pub(super) fn failover(
        &mut self,
        point: PointId,
        newest: bool,
        word: Option<Override>,
        answer: Answer,
    ) {
        if let Err(problem) = self.prepare(point) {
            return refuse(answer, problem);
        }
        self.from_newest = newest;
        self.starting.push(answer);
        let view = self.view();
        let host = Arc::clone(&self.host);
        let round = self.round;
        self.spawn(async move {
            Happening::Evidence(round, partner::stand_down(&host, &view, word).await)
        });
    }

    /// What must hold before the primary is asked; undone if it does not.
    fn prepare(&mut self, point: PointId) -> Result<(), Problem> {
        let view = self.view();
        let thing = view.thing();
        let Some(store) = self.store.clone() else {
            return Err(not_a_twin(&view));
        };
        if view.standing.role == Role::FailedOver {
            let name = &view.home.spec.name;
            let reason = "was failed over to this host already";
            let way_out = format!(
                "`pollux vm start {name}` starts it, `pollux failover start {name} --point POINT` goes to \
                 another point"
            );
            return Err(Problem::new(Code::Conflict, thing, reason, way_out));
        }
        if view.state != VmState::Off {
            let reason = format!("is not off on this host but {}", view.state);
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
        let prepared = view.standing.prepare(&thing, point, self.host.name())?;
        let reserve = self.host.settings.memory_reserve;
        let spec = VmSpec {
            generation_id: GenerationId::random(),
            disks: overlays(&view, &view.home.spec, &store, point, "raw")?,
            checkpoints: Vec::new(),
            ..view.home.spec.clone()
        };
        let (spec, checkpoint) = since_failover(&spec)?;
        let folder = tokio::task::block_in_place(|| {
            let above = Above {
                name: FAILOVER,
                made: Made::Failover,
                spec,
                twin: self.id,
                point,
                checkpoint: Some(checkpoint),
                term: None,
            };
            make(&view.home.path, &store, above)
        })?;
        let begun = folder.check_files().and_then(|()| {
            self.host
                .ledger
                .admit(self.id, &thing, folder.spec.memory, reserve)?;
            self.store(prepared)
        });
        if let Err(problem) = begun {
            self.host.ledger.release(self.id);
            undo(&store, &folder);
            return Err(problem);
        }
        self.show(|view| {
            view.trouble = None;
            view.home.machine = Some(folder);
        });
        self.round += 1;
        self.enter(VmState::Starting);
        Ok(())
    }

    /// Opens the new term, if the evidence allows it: durable before QEMU starts.
    pub(super) fn take_over(&mut self, evidence: &Evidence) -> Result<(), Problem> {
        let view = self.view();
        let (Some(store), Some(machine)) = (self.store.clone(), view.home.machine.clone()) else {
            return Err(not_a_twin(&view));
        };
        tokio::task::block_in_place(|| {
            store.take_over(|newest| {
                // The primary may have sent its last when it was asked to stand down.
                let newest = newest.filter(|_| self.from_newest);
                let next = view.standing.take_over(&view.thing(), evidence, newest)?;
                self.store(succession::dated(&view.standing, next))
            })
        })?;
        self.show(|view| view.home.spec = machine.spec);
        tracing::info!(vm = %self.id, evidence = ?evidence, "taken over in a new term");
        Ok(())
    }

    /// A failover that was not granted leaves nothing but its attempt, which opens nothing: the next one is
    /// to be above it.
    pub(super) fn forget_attempt(&mut self) {
        let view = self.view();
        if view.standing.role != Role::Replica {
            return;
        }
        let (Some(store), Some(folder)) = (self.store.clone(), view.home.machine) else {
            return;
        };
        tokio::task::block_in_place(|| undo(&store, &folder));
        self.show(|view| view.home.machine = None);
    }

    /// Makes a VM of its own above a point; none: above what this host wrote and never sent.
    pub(super) fn test(
        &mut self,
        point: Option<PointId>,
        name: VmName,
    ) -> Result<VmFolder, Problem> {
        let view = self.view();
        let Some(store) = self.store.clone() else {
            return Err(not_a_twin(&view));
        };
        let Lost { store, home, point } = match point {
            Some(point) => Lost {
                store,
                home: view.home.clone(),
                point,
            },
            None => tokio::task::block_in_place(|| store.lost(&view.home.path))?,
        };
        let spec = VmSpec {
            id: VmId::random(),
            name,
            generation_id: GenerationId::random(),
            disks: overlays(&view, &home.spec, &store, point, "overlay")?,
            checkpoints: Vec::new(),
            ..home.spec
        };
        let id = spec.id.0.simple().to_string();
        tokio::task::block_in_place(|| {
            let above = Above {
                name: &format!("{TEST}{}", &id[..12]),
                made: Made::Test,
                spec,
                twin: self.id,
                point,
                checkpoint: None,
                term: None,
            };
            make(&home.path, &store, above)
        })
    }
}

/// The disks that the point has, as large as they were then, each with a file for what is written
/// above it. One that is not replicated is left out, as Hyper-V does: an empty one in its place would
/// pass for one that lost its content. `received`: the VM as it was received last.
pub(super) fn overlays(
    view: &View,
    received: &VmSpec,
    store: &Store,
    point: PointId,
    ending: &str,
) -> Result<Vec<DiskSpec>, Problem> {
    let held = tokio::task::block_in_place(|| store.disks(point))?;
    let former = view.relation.as_ref().map(|relation| &relation.former[..]);
    let former = former.unwrap_or_default();
    Ok(above(received, former, &held, ending))
}

/// What is written from the failover on is since a checkpoint, which is merged when that is completed. Until
/// then the disk files, above the overlays of which it lies, are not there.
pub(super) fn since_failover(spec: &VmSpec) -> Result<(VmSpec, CheckpointId), Problem> {
    let checkpoint = new_checkpoint(spec, Some(FAILOVER), Timestamp::now(), false)?;
    let id = checkpoint.id;
    Ok((Change::Checkpoint(checkpoint).plan(spec, false)?, id))
}

/// `former`: disks that the VM has no longer.
fn above(
    spec: &VmSpec,
    former: &[DiskSpec],
    held: &[(DiskId, Bytes)],
    ending: &str,
) -> Vec<DiskSpec> {
    let size_of = |id| held.iter().find(|(held, _)| *held == id);
    let known = spec.disks.iter().chain(former);
    let disks = known.enumerate().filter_map(|(n, disk)| {
        let (_, size) = size_of(disk.id)?;
        Some(DiskSpec {
            file: format!("disk{n}.{ending}").into(),
            size: *size,
            overlays: Vec::new(),
            ..disk.clone()
        })
    });
    disks.collect()
}

/// What lies above a point, or is the point itself.
pub(super) struct Above<'a> {
    /// Name of its folder in the twin's home, and the reason of its pin.
    pub(super) name: &'a str,
    pub(super) made: Made,
    pub(super) spec: VmSpec,
    pub(super) twin: VmId,
    pub(super) point: PointId,
    /// That of what is written above it, of a failover.
    pub(super) checkpoint: Option<CheckpointId>,
    /// The term that is opened with it, if it takes the place of another.
    pub(super) term: Option<TermId>,
}

/// Pins the point and makes the folder in `home`, whole or not at all. Blocking.
pub(super) fn make(home: &Path, store: &Store, above: Above) -> Result<VmFolder, Problem> {
    let Above {
        name,
        made,
        spec,
        twin,
        point,
        checkpoint,
        term,
    } = above;
    let thing = super::folder::thing(spec.name.as_str());
    let temporary = home.join(format!(".{name}"));
    let failed = |error: std::io::Error| no_space_or(&thing, &error);
    store.pin(point, name)?;
    let fill = || {
        if temporary.exists() {
            std::fs::remove_dir_all(&temporary).map_err(failed)?;
        }
        durable::create_folder(&temporary).map_err(failed)?;
        let mut origin = Origin::new(made, twin, store.folder().to_owned(), point);
        origin.checkpoint = checkpoint;
        origin.term = term;
        let folder = VmFolder {
            path: temporary.clone(),
            spec,
            origin: Some(origin),
        };
        folder.write().map_err(failed)?;
        if made == Made::Test {
            // It has a history of its own, which ends with it.
            Standing::primary(Lineage::begin(name))
                .store(&temporary.join(standing::FILE))
                .map_err(|error| Problem::failed(&thing, &error))?;
        }
        let path = home.join(name);
        publish(&temporary, &path).map_err(failed)?;
        Ok(VmFolder { path, ..folder })
    };
    fill().inspect_err(|_| {
        // What cannot be removed now is removed by the next attempt, or at the next start.
        let _ = std::fs::remove_dir_all(&temporary);
        let _ = store.unpin(point, name);
    })
}

/// Removes the folder of a VM above a point, and its pin. Blocking.
pub(crate) fn undo(store: &Store, folder: &VmFolder) {
    let removed = remove(&folder.path);
    if let Err(error) = removed {
        tracing::warn!(folder = %folder.path.display(), %error, "left behind");
    }
    let name = folder.path.file_name().unwrap_or_default();
    if let Some(origin) = &folder.origin {
        if let Err(problem) = store.unpin(origin.point, &name.to_string_lossy()) {
            tracing::warn!(%problem, "a point stays pinned");
        }
    }
}

/// The folders of the VMs that test failovers made, in the home of a twin. Blocking.
pub(crate) fn tests(home: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(home)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(TEST) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes the leftovers of a failover that a crash cut short, in the home of a twin that is
/// still the replica. Blocking.
pub(crate) fn tidy(home: &Path, store: &Store) -> Result<(), Problem> {
    let path = home.join(FAILOVER);
    if !path.exists() {
        return Ok(());
    }
    let folder = VmFolder::read(&path)?;
    // One that was completed is the only copy of what it holds.
    if !folder.lies_on_files() {
        undo(store, &folder);
    }
    Ok(())
}

/// Unpins what a crash left pinned in the twin whose home is `home`, when polluxd starts: a pin goes
/// with its folder, and a point that stays pinned is never let go. Blocking.
pub(crate) fn unpin(home: &Path, store: &Store) -> Result<(), Problem> {
    let failover = home.join(FAILOVER);
    let of = match failover.exists() {
        true => VmFolder::read(&failover)?.origin.map(|origin| origin.point),
        false => None,
    };
    for point in store.points()? {
        for pin in &point.pins {
            let left = match &**pin {
                // It may have gone to another point.
                FAILOVER => of != Some(point.id),
                ANOTHER => !home.join(ANOTHER).exists(),
                pin => pin.starts_with(TEST) && !home.join(pin).exists(),
            };
            if left {
                store.unpin(point.id, pin)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use jiff::Timestamp;
    use journal::{Consistency, Content, DiskExtent, Header, Journal, SegmentWriter};
    use model::{Bus, Generation, SeedId, Since};

    use super::*;
    use crate::flushes::Flushes;
    use crate::stores::Place;

    /// A twin of one disk that had content number 1 first, then 2 and so on, a point each: `(store, disk,
    /// points)`.
    pub(in crate::vm) fn twin(home: &Path, points: u64) -> (Store, DiskExtent, Vec<PointId>) {
        let place = Place::beside(home);
        let store = Store::new(place, "VM `web`".to_owned(), Flushes::default());
        let (vm, seed, size) = (VmId::random(), SeedId::random(), Bytes(1 << 20));
        let disk = DiskExtent {
            joining: false,
            id: DiskId::random(),
            size,
        };
        let lineage = Lineage::begin("castor");
        let term = lineage.current().id;
        let at = |sequence| PointId { term, sequence };
        let mut journal = Journal::create(store.folder(), vm, &[disk], seed).expect("made");
        for number in 0..=points {
            let content = match number {
                0 => Content::Seed { seed, part: 0 },
                1 => Content::Delta {
                    sequence: 1,
                    since: Since::Seed { seed, parts: 1 },
                },
                _ => Content::Delta {
                    sequence: number,
                    since: Since::Point(at(number - 1)),
                },
            };
            let header = Header {
                vm,
                disks: vec![disk],
                lineage: lineage.clone(),
                content,
                time: Timestamp::UNIX_EPOCH,
                consistency: Consistency::Crash,
            };
            let name = number.to_string();
            let file = store.folder().join(Journal::INCOMING).join(&name);
            std::fs::create_dir_all(file.parent().expect("it has one")).expect("made");
            let out = std::fs::File::create(&file).expect("made");
            let mut writer = SegmentWriter::create(out, &header).expect("begun");
            writer
                .push_frame(0, 0, &[u8::try_from(number).expect("few"); 4096])
                .expect("pushed");
            writer.finish().expect("whole");
            let root = replica::outbox::read(&file).expect("read").root;
            journal.commit(&name, root).expect("taken in");
        }
        (store, disk, (1..=points).map(at).collect())
    }

    #[test]
    fn a_pin_that_a_crash_left_goes_and_one_with_its_folder_stays() {
        let home = tempfile::tempdir().expect("scratch");
        let (store, _, points) = twin(home.path(), 1);
        let point = points[0];
        let (kept, lost) = ("test-0123456789ab", "test-ba9876543210");
        for reason in [FAILOVER, kept, lost, "open-0123456789ab"] {
            store.pin(point, reason).expect("pinned");
        }
        std::fs::create_dir(home.path().join(kept)).expect("made");
        let pins = |store: &Store| store.points().expect("listed")[0].pins.clone();
        unpin(home.path(), &store).expect("unpinned");
        assert_eq!(pins(&store), [kept, "open-0123456789ab"]);
        assert_eq!(
            tests(home.path()).expect("listed"),
            [home.path().join(kept)]
        );
        std::fs::remove_dir(home.path().join(kept)).expect("removed");
        unpin(home.path(), &store).expect("unpinned");
        assert_eq!(pins(&store), ["open-0123456789ab"]);
    }

    #[test]
    fn a_disk_is_as_large_as_at_the_point_and_one_that_the_point_lacks_is_left_out() {
        let disk = |slot: u8| {
            let file = format!("disk{slot}.raw").into();
            DiskSpec::new(file, Bytes(8 << 20), Bus::Virtio, slot)
        };
        let disks = vec![disk(0), disk(1), disk(2)];
        let name = "web".parse().expect("a name");
        let memory = Bytes(64 << 20);
        let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, disks);
        let spec = spec.expect("a VM");
        let held = [
            (spec.disks[2].id, Bytes(8 << 20)),
            (spec.disks[0].id, Bytes(4 << 20)),
        ];
        let above = above(&spec, &[], &held, "raw");
        let found: Vec<(u8, u64)> = above.iter().map(|disk| (disk.slot, disk.size.0)).collect();
        assert_eq!(found, [(0, 4 << 20), (2, 8 << 20)]);
        assert_eq!(above[1].file, Path::new("disk2.raw"));
        // One that was taken away since is there as well, under the number that it had.
        let gone = disk(1);
        let held = [
            (spec.disks[0].id, Bytes(4 << 20)),
            (gone.id, Bytes(1 << 20)),
        ];
        let above = super::above(&spec, std::slice::from_ref(&gone), &held, "raw");
        let found: Vec<(u8, u64)> = above.iter().map(|disk| (disk.slot, disk.size.0)).collect();
        assert_eq!(found, [(0, 4 << 20), (1, 1 << 20)]);
        assert_eq!(above[1].file, Path::new("disk3.raw"));
    }
}
