//! A VM of this host becomes a twin: its partner took over, and this host is the replica from then on.
//!
//! ```text
//!   vms/UUID/disk0.raw --link--> replicas/.new-UUID/journal/base-DISK.raw
//!            vm.toml                               /branch/   the VM as it was (`vm::branch`)
//!                                                  /vm.toml standing.toml replication.toml sequence.toml
//!                                replicas/.new-UUID --> replicas/UUID     this decides
//!   vms/UUID goes
//! ```
//!
//! Before it has a point it may be given back: `branch` becomes `vms/UUID` again, in the same relationship.
//!
//! Where a VM that was failed over lies in another store, on what was the base of its journal once, that is
//! where the new journal is made, and the branch, and its disks keep their names:
//!
//! ```text
//!   replicas/UUID/      vm.toml failover/vm.toml    <--exchange-->    replicas/.new-UUID/   vm.toml ...
//!   STORE/UUID/disk0.raw   --link--> STORE/UUID/journal/base-DISK.raw, STORE/UUID/branch/vm.toml
//! ```
//!
//! Nothing is copied. Killed before the folder has its name, the VM is what it was; afterwards it is a
//! twin, and what is left of the VM is removed by the next polluxd ([`leftover`]).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use journal::{DiskExtent, Journal};
use model::{Code, DiskSpec, Problem, SeedId};
use replica::standing::{self, Standing};
use replica::wire::Enrol;

use crate::stores::{self, Place, Stores};
use crate::twin;
use crate::vm::access;
use crate::vm::branch::Branch;
use crate::vm::create::{exchange, no_space_or, publish, remove, sync_parent};
use crate::vm::folder::VmFolder;
use crate::vm::progress;
use crate::vm::relation::Relation;
use crate::vm::takeover::FAILOVER;

/// The variables of UEFI, in the folder of a VM that has them.
const VARIABLES: &str = "uefi-variables.fd";

/// What becomes a twin.
pub(crate) struct Turning<'a> {
    /// The VM.
    pub(crate) machine: &'a VmFolder,
    /// Where it is at home.
    pub(crate) home: &'a Path,
    /// Where its journal lay, if it had one.
    pub(crate) place: &'a Place,
    /// How it stands from then on.
    pub(crate) standing: &'a Standing,
    /// Its relationship until then.
    pub(crate) relation: &'a Relation,
    pub(crate) enrol: &'a Enrol,
    pub(crate) branch: &'a Branch,
}

/// A twin that is to be the VM that it was.
pub(crate) struct Giving<'a> {
    /// Its home.
    pub(crate) twin: &'a Path,
    /// Where its journal lies.
    pub(crate) place: &'a Place,
    /// The VM.
    pub(crate) was: &'a VmFolder,
    /// How it stands from then on.
    pub(crate) standing: &'a Standing,
    /// Its relationship, if that has not ended.
    pub(crate) relation: Option<&'a Relation>,
}

/// Whether a VM lies in another store, in `place`, where its journal was.
fn is_in_store(machine: &VmFolder, place: &Place) -> bool {
    let there = |disk| machine.disk_file(disk).starts_with(place.folder());
    place.volume().is_some() && machine.spec.disks.iter().any(there)
}

/// Refuses what cannot become a twin, whoever takes over and of whatever disks; its journal lay in `place`, if
/// it had one. Checkpoints that are being merged go by themselves, and are let pass.
pub(crate) fn way_back(machine: &VmFolder, place: &Place) -> Result<(), Problem> {
    let thing = machine.thing();
    let refuse = |reason: String, way_out: String| {
        Err(Problem::new(Code::Conflict, &thing, reason, way_out))
    };
    let name = machine.spec.name.as_str();
    if machine.origin.is_some() {
        let reason = "lies above a recovery point there still".to_owned();
        let way_out = format!("`pollux failover complete {name}` there makes ordinary disks of it");
        return refuse(reason, way_out);
    }
    if machine.spec.checkpoints.iter().any(|one| !one.merging) {
        let reason = "has checkpoints there, which a twin cannot have".to_owned();
        let way_out = format!(
            "`pollux disk info {name}` there shows them, and `pollux disk merge {name} --all` there merges \
             them: then ask again"
        );
        return refuse(reason, way_out);
    }
    let in_store = is_in_store(machine, place);
    let (together, of_it) = match in_store {
        true => (place.folder(), "replica store, where the others lie"),
        false => (machine.path.as_path(), "folder"),
    };
    for disk in &machine.spec.disks {
        let file = machine.disk_file(disk);
        if !file.starts_with(together) {
            let reason = format!(
                "has the disk {} there, which lies outside of its {of_it}",
                file.display()
            );
            let way_out = format!(
                "`pollux disk detach {name} {}` there lets it go. Or have a new twin made, from a copy of \
                 all: `pollux replica remove {name}` on both hosts, `pollux vm delete {name}` there, \
                 `pollux failover complete {name}` and `pollux replica enable {name}`",
                disk.slot
            );
            return refuse(reason, way_out);
        }
    }
    Ok(())
}

/// Refuses what cannot become a twin. `disks` of it are replicated.
pub(crate) fn check<'a>(
    machine: &'a VmFolder,
    place: &Place,
    enrol: &Enrol,
) -> Result<Vec<&'a DiskSpec>, Problem> {
    way_back(machine, place)?;
    let thing = machine.thing();
    let refuse = |reason: String, way_out: String| {
        Err(Problem::new(Code::Conflict, &thing, reason, way_out))
    };
    let name = machine.spec.name.as_str();
    if let Some(merging) = machine.spec.checkpoints.first() {
        let reason = format!(
            "is merging checkpoint `{}` there, which a twin cannot have",
            merging.name
        );
        let way_out = format!(
            "Ask again when that is done: `pollux disk merge {name} --all` there shows how far it is"
        );
        return refuse(reason, way_out);
    }
    let mut found = Vec::new();
    for id in &enrol.disks {
        let Some(disk) = machine.spec.disks.iter().find(|disk| disk.id == *id) else {
            let wanted = enrol.spec.disks.iter().find(|disk| disk.id == *id);
            let number = wanted.map_or(0, |disk| disk.slot);
            let reason = format!("has no disk {number} there that would be its beginning");
            let way_out = format!(
                "leave it out: `pollux failover reverse {name} --disks all-but:{number}`, and \
                 replicate it afterwards with `pollux replica set {name} --disks all`"
            );
            return refuse(reason, way_out);
        };
        let size = enrol.spec.disks.iter().find(|one| one.id == *id);
        if let Some(wanted) = size.filter(|wanted| wanted.size < disk.size) {
            let reason = format!(
                "has a disk {} of {} there, and of {} on the host that took over",
                disk.slot, disk.size, wanted.size
            );
            let way_out = format!(
                "make it as large where it runs: `pollux disk resize {name} {} {}`, after `pollux \
                 failover complete {name}`",
                wanted.slot, disk.size
            );
            return refuse(reason, way_out);
        }
        found.push(disk);
    }
    Ok(found)
}

/// Makes the twin and removes the VM; the twin's home. Blocking.
pub(crate) fn turn(
    turning: &Turning<'_>,
    replicas: &Path,
    stores: &Stores,
) -> Result<PathBuf, Problem> {
    let Turning { machine, enrol, .. } = turning;
    let thing = machine.thing();
    let failed = |error: io::Error| no_space_or(&thing, &error);
    let home = replicas.join(enrol.spec.id.to_string());
    // Else what is left of it would tell that the twin that is made now is the leftover.
    finish_giving_back(turning.home)?;
    let _alone = stores.alone();
    stores::make_way(replicas, enrol.spec.id, stores)?;
    let temporary = replicas.join(format!("{}{}", stores::NEW, enrol.spec.id));
    durable::create_folder(&temporary).map_err(failed)?;
    let made = make(turning, &temporary).and_then(|()| {
        let published = match turning.home == home {
            // It was a twin once.
            true => exchange(&temporary, &home),
            false => publish(&temporary, &home),
        };
        published.map_err(failed)
    });
    if let Err(problem) = made {
        if let Err(left) = stores::make_way(replicas, enrol.spec.id, stores) {
            tracing::warn!(problem = %left, "is removed at the next start");
        }
        finish_in_store(turning.place, machine);
        return Err(problem);
    }
    let removed = match turning.home == home {
        // With what its note leads to, if none of the disks lies there.
        true => stores::make_way(replicas, enrol.spec.id, stores),
        false => fs::remove_dir_all(turning.home).map_err(failed),
    };
    if let Err(problem) = removed {
        tracing::warn!(%problem, "is removed at the next start");
    }
    Ok(home)
}

fn make(turning: &Turning<'_>, folder: &Path) -> Result<(), Problem> {
    let Turning {
        machine,
        home,
        place,
        standing,
        relation,
        enrol,
        branch,
    } = turning;
    let thing = machine.thing();
    let failed = |error: io::Error| no_space_or(&thing, &error);
    let disks = check(machine, place, enrol)?;
    let place = match place.volume().filter(|_| is_in_store(machine, place)) {
        None => Place::beside(folder),
        Some(volume) => {
            volume.check()?;
            // What is left of an earlier attempt.
            Branch::leave_in(place, machine).map_err(failed)?;
            stores::note(folder, volume).map_err(failed)?;
            (*place).clone()
        }
    };
    journal_of(machine, &disks, enrol.seed, &place.journal())?;

    let kept = VmFolder {
        path: Branch::folder(&place),
        ..(*machine).clone()
    };
    durable::create_folder(&kept.path).map_err(failed)?;
    for disk in &machine.spec.disks {
        link(machine, disk, &kept.disk_file(disk))?;
    }
    take_variables(&machine.path, &kept.path).map_err(failed)?;
    kept.write().map_err(failed)?;
    branch.write(&kept.path).map_err(failed)?;
    sync_parent(&kept.path.join("vm.toml")).map_err(failed)?;

    let earlier = relation.before(enrol.relationship);
    twin::fill(folder, &relation.partner, enrol, earlier)?;
    standing
        .store(&folder.join(standing::FILE))
        .map_err(|error| Problem::failed(&thing, &error))?;
    // A number is never given twice in a term.
    progress::reserve(folder, progress::reserved(home)?)
}

/// Gives the folder `to` the variables of UEFI of the VM in `from`, if it has any. Blocking.
fn take_variables(from: &Path, to: &Path) -> io::Result<()> {
    let (own, taken) = (from.join(VARIABLES), to.join(VARIABLES));
    if !own.exists() {
        return Ok(());
    }
    access::give_back(&own)?;
    match fs::hard_link(&own, &taken) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            durable::replace(&taken, &fs::read(&own)?)
        }
        linked => linked,
    }
}

/// Removes what is left in a store of a twin that `machine`, which lies there, was or was to be. What cannot
/// be removed now is removed at the next start. Blocking.
pub(crate) fn finish_in_store(place: &Place, machine: &VmFolder) {
    if machine.origin.is_some() || !is_in_store(machine, place) || place.check().is_err() {
        return;
    }
    if let Err(error) = Branch::leave_in(place, machine) {
        tracing::warn!(folder = %place.folder().display(), %error, "is removed at the next start");
    }
}

/// Makes a journal in the folder `journal` whose base is disks of a VM, which keep their names. Blocking.
pub(crate) fn journal_of(
    machine: &VmFolder,
    disks: &[&DiskSpec],
    seed: SeedId,
    journal: &Path,
) -> Result<(), Problem> {
    let thing = machine.thing();
    let failed = |error: io::Error| no_space_or(&thing, &error);
    let extents: Vec<_> = disks.iter().map(|disk| extent(disk)).collect();
    Journal::create(journal, machine.spec.id, &extents, seed)
        .map_err(|error| twin::journal_failed(&thing, &error))?;
    for disk in disks {
        let base = journal.join(Journal::base_file(disk.id));
        durable::remove(&base).map_err(failed)?;
        link(machine, disk, &base)?;
    }
    sync_parent(&journal.join("index")).map_err(failed)
}

/// A disk that is as long as it is said to be.
pub(crate) fn extent(disk: &DiskSpec) -> DiskExtent {
    DiskExtent {
        joining: false,
        id: disk.id,
        size: disk.size,
    }
}

/// Gives a disk another name, if it has not that; the file is polluxd's from then on.
fn link(machine: &VmFolder, disk: &DiskSpec, name: &Path) -> Result<(), Problem> {
    let file = machine.disk_file(disk);
    let failed = |error: io::Error| {
        if error.kind() != io::ErrorKind::CrossesDevices {
            return no_space_or(&machine.thing(), &error);
        }
        Problem::new(
            Code::Conflict,
            machine.thing(),
            format!(
                "has the disk {} there on another file system than the twins of that host",
                file.display()
            ),
            "Let `vms` and `replicas` of that host's state lie on one file system",
        )
    };
    if let Some(parent) = name.parent() {
        durable::create_folder(parent).map_err(failed)?;
    }
    access::give_back(&file).map_err(failed)?;
    match file == name {
        true => Ok(()),
        false => fs::hard_link(&file, name).map_err(failed),
    }
}

/// Gives a twin that has no point yet its disks back: it is the VM that it was, stood down as then. Where that
/// is at home. Blocking.
pub(crate) fn give_back(
    giving: &Giving<'_>,
    vms: &Path,
    stores: &Stores,
) -> Result<PathBuf, Problem> {
    if is_in_store(giving.was, giving.place) {
        return give_back_in_store(giving, stores);
    }
    let Giving { twin, was, .. } = *giving;
    let thing = was.thing();
    let failed = |error: io::Error| no_space_or(&thing, &error);
    giving.write(&was.path)?;
    let home = vms.join(was.spec.id.to_string());
    // This decides.
    publish(&was.path, &home).map_err(failed)?;
    match remove(twin) {
        // Until then it tells that the twin is what is left.
        Ok(()) => finish_giving_back(&home)?,
        Err(error) => {
            tracing::warn!(folder = %twin.display(), %error, "is removed at the next start");
        }
    }
    Ok(home)
}

impl Giving<'_> {
    /// Writes into the folder `home` how the VM stands.
    fn write(&self, home: &Path) -> Result<(), Problem> {
        let thing = self.was.thing();
        self.standing
            .store(&home.join(standing::FILE))
            .map_err(|error| Problem::failed(&thing, &error))?;
        let related = match self.relation {
            Some(relation) => relation.given_back().write(home),
            // One that was killed when it had one left it.
            None => Relation::remove(home),
        };
        related.map_err(|error| no_space_or(&thing, &error))?;
        progress::reserve(home, progress::reserved(self.twin)?)
    }
}

/// The same where its disks lie in another store: it is at home again where the twin is.
fn give_back_in_store(giving: &Giving<'_>, stores: &Stores) -> Result<PathBuf, Problem> {
    let Giving {
        twin, place, was, ..
    } = *giving;
    let thing = was.thing();
    let failed = |error: io::Error| no_space_or(&thing, &error);
    let replicas = twin.parent().unwrap_or(twin);
    let id = was.spec.id;
    let _alone = stores.alone();
    stores::make_way(replicas, id, stores)?;
    let temporary = replicas.join(format!("{}{id}", stores::NEW));
    let machine = |home: &Path| VmFolder {
        path: home.join(FAILOVER),
        ..was.clone()
    };
    let own = machine(&temporary);
    for folder in [&temporary, &own.path] {
        durable::create_folder(folder).map_err(failed)?;
    }
    if let Some(volume) = place.volume() {
        stores::note(&temporary, volume).map_err(failed)?;
    }
    let received = VmFolder::read(twin)?;
    let received = VmFolder {
        path: temporary.clone(),
        ..received
    };
    received
        .write()
        .and_then(|()| own.write())
        .map_err(failed)?;
    take_variables(&was.path, &own.path).map_err(failed)?;
    giving.write(&temporary)?;
    // This decides.
    exchange(&temporary, twin).map_err(failed)?;
    if let Err(problem) = stores::make_way(replicas, id, stores) {
        tracing::warn!(%problem, "is removed at the next start");
    }
    finish_in_store(place, &machine(twin));
    Ok(twin.to_owned())
}

/// The folder of a VM, whose twin is gone, is no branch any more. Blocking.
pub(crate) fn finish_giving_back(vm: &Path) -> Result<(), Problem> {
    if !Branch::is_in(vm) {
        return Ok(());
    }
    Branch::unmake(vm).map_err(|error| Problem::failed(vm.display().to_string(), &error))
}

/// Of the folders of a VM and of a twin that have one name: which is what a polluxd that was killed left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// They are not both there.
    None,
    /// What became the twin.
    Vm,
    /// The one whose disks were given back.
    Twin,
    /// Nobody can tell: neither is to be removed.
    Unknown,
}

/// See [`Leftover`].
pub(crate) fn leftover(vm: &Path, twin: &Path) -> Leftover {
    if !vm.is_dir() || !twin.is_dir() {
        Leftover::None
    } else if Branch::is_in(vm) {
        Leftover::Twin
    } else if Branch::is_in(&Branch::folder(&Place::beside(twin))) {
        Leftover::Vm
    } else {
        Leftover::Unknown
    }
}

/// When a disk of it was written last, by its files.
pub(crate) fn last_written(machine: &VmFolder) -> Option<jiff::Timestamp> {
    let disks = machine.spec.disks.iter();
    let times = disks.filter_map(|disk| {
        let changed = fs::metadata(machine.disk_file(disk))
            .ok()?
            .modified()
            .ok()?;
        jiff::Timestamp::try_from(changed).ok()
    });
    times.max()
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use model::{Bus, Bytes, DiskId, Generation, Lineage, PointId, RelationshipId, SeedId, VmSpec};
    use replica::standing::{Relationship, Role};
    use replica::wire::Configuration;

    use super::*;
    use crate::layout::Layout;

    const SIZE: u64 = 1 << 20;

    /// A host with a VM of two disks, of which the second is not replicated, that gave way.
    struct Scratch {
        folder: tempfile::TempDir,
        machine: VmFolder,
        /// Where it is at home.
        home: PathBuf,
        down: Standing,
        relation: Relation,
        enrol: Enrol,
        branch: Branch,
        /// Where its journal lay.
        place: Place,
        stores: Stores,
    }

    impl Scratch {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("scratch");
            let path = |name: &str| folder.path().join(name);
            for name in ["vms", "replicas"] {
                fs::create_dir(path(name)).expect("made");
            }
            let disk = |slot: u8| {
                let file = format!("disk{slot}.raw").into();
                DiskSpec::new(file, Bytes(SIZE), Bus::Virtio, slot)
            };
            let (name, memory) = ("web".parse().expect("a name"), Bytes(64 << 20));
            let disks = vec![disk(0), disk(1)];
            let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, disks);
            let spec = spec.expect("a VM");
            let machine = VmFolder {
                path: path("vms").join(spec.id.to_string()),
                spec: spec.clone(),
                origin: None,
            };
            fs::create_dir(&machine.path).expect("made");
            machine.write().expect("written");
            for (disk, byte) in machine.spec.disks.iter().zip([7, 8]) {
                let content = vec![byte; usize::try_from(SIZE).expect("small")];
                fs::write(machine.disk_file(disk), content).expect("written");
            }
            progress::reserve(&machine.path, 41).expect("written");
            let ours = Lineage::begin("castor");
            let since = PointId {
                term: ours.current().id,
                sequence: 40,
            };
            let theirs = ours.branch(since, "pollux").expect("on it");
            let mut primary = Standing::primary(ours.clone());
            primary.partner = Some("pollux".to_owned());
            let met = primary.superseded("VM `web`", &theirs).expect("related");
            let standing = &machine.path.join(standing::FILE);
            met.standing.store(standing).expect("stored");
            let replicated = vec![spec.disks[0].id];
            let configuration = Configuration {
                spec,
                disks: replicated,
                frequency_s: 30,
                keep: None,
            };
            let enrol = Enrol {
                relationship: RelationshipId::random(),
                revision: configuration.revision(),
                spec: configuration.spec,
                disks: configuration.disks,
                frequency_s: configuration.frequency_s,
                keep: configuration.keep,
                seed: SeedId::random(),
                seed_from: None,
                lineage: theirs,
            };
            let (id, seed) = (RelationshipId::random(), SeedId::random());
            let relation = Relation::new(id, "pollux", 30, seed, enrol.disks.clone());
            let mut branch = Branch::new(ours, since, Some(Vec::new()));
            branch.until = last_written(&machine);
            Self {
                place: Place::beside(&machine.path),
                home: machine.path.clone(),
                stores: Stores::new("castor"),
                relation,
                branch,
                folder,
                machine,
                down: met.standing,
                enrol,
            }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.path().join(name)
        }

        fn turn(&self) -> Result<PathBuf, Problem> {
            let thing = self.machine.thing();
            let new = Relationship::New;
            let standing = self.down.turn(&thing, &self.enrol.lineage, false, new)?;
            let turning = Turning {
                machine: &self.machine,
                home: &self.home,
                place: &self.place,
                standing: &standing,
                relation: &self.relation,
                enrol: &self.enrol,
                branch: &self.branch,
            };
            turn(&turning, &self.path("replicas"), &self.stores)
        }

        /// As after a failover that was completed, whose journal lay in another store.
        fn in_store(&mut self) {
            let id = self.enrol.spec.id;
            let known = self.store(id);
            self.home = self.path("replicas").join(id.to_string());
            fs::create_dir(&self.home).expect("made");
            stores::note(&self.home, &self.stores.get(&known)).expect("noted");
            self.place = Place::of(&self.home, id, &self.stores).expect("noted");
            let received = VmFolder {
                path: self.home.clone(),
                spec: self.enrol.spec.clone(),
                origin: None,
            };
            received.write().expect("written");
            let machine = self.home.join(FAILOVER);
            fs::rename(&self.machine.path, &machine).expect("moved");
            for name in [standing::FILE, "sequence.toml"] {
                fs::rename(machine.join(name), self.home.join(name)).expect("moved");
            }
            fs::write(machine.join(VARIABLES), "variables").expect("written");
            self.machine.path.clone_from(&machine);
            for disk in &mut self.machine.spec.disks {
                let file = self.place.folder().join(&disk.file);
                fs::rename(machine.join(&disk.file), &file).expect("moved");
                disk.file = file;
            }
            self.machine.write().expect("written");
        }

        /// Another store, with a folder of this VM.
        fn store(&self, id: model::VmId) -> stores::Known {
            let store = self.path("store");
            fs::create_dir_all(store.join(id.to_string())).expect("made");
            // The temporary folder of the host may be a link.
            let store = fs::canonicalize(store).expect("it is there");
            let layout = Layout {
                state: self.path("state"),
                run: self.path("run"),
            };
            stores::add(&store, &layout, "castor", &[]).expect("a store")
        }

        /// The names in one of the folders.
        fn names(folder: &Path) -> Vec<String> {
            let entries = fs::read_dir(folder).expect("listed");
            let name = |one: io::Result<fs::DirEntry>| one.expect("read").file_name();
            let mut names: Vec<_> = entries
                .map(|one| name(one).to_string_lossy().into_owned())
                .collect();
            names.sort();
            names
        }
    }

    #[test]
    fn a_vm_becomes_a_twin_with_its_own_disks_and_back() {
        let scratch = Scratch::new();
        let inode = |file: &Path| fs::metadata(file).expect("there").ino();
        let disks = &scratch.machine.spec.disks;
        let [replicated, other] = [0, 1].map(|n| inode(&scratch.machine.disk_file(&disks[n])));
        let home = scratch.turn().expect("turned");
        assert!(!scratch.machine.path.exists());
        let standing = Standing::load(&home.join(standing::FILE)).expect("reads");
        let standing = standing.expect("there");
        assert_eq!(standing.role, Role::Replica);
        assert_eq!(progress::reserved(&home), Ok(41), "none is given twice");
        let journal = home.join("journal");
        let base = |id: DiskId| journal.join(Journal::base_file(id));
        assert_eq!(inode(&base(disks[0].id)), replicated);
        assert!(!base(disks[1].id).exists());
        let opened = Journal::open(&journal).expect("whole");
        let seed = opened.open_seed().expect("nothing was received");
        assert_eq!((seed.seed(), seed.parts()), (scratch.enrol.seed, 0));
        drop((seed, opened));
        let (branch, was) = Branch::read(&Place::beside(&home))
            .expect("read")
            .expect("kept");
        assert_eq!(branch, scratch.branch);
        assert_eq!(was.spec, scratch.machine.spec);
        assert_eq!(inode(&was.disk_file(&disks[1])), other, "kept as well");

        let mut given = standing
            .give_back("VM `web`", &branch.lineage, true)
            .expect("a twin");
        let vms = scratch.path("vms");
        let twin = Relation::read(&home).expect("reads").expect("there");
        let place = Place::beside(&home);
        let giving = Giving {
            twin: &home,
            place: &place,
            was: &was,
            standing: &given,
            relation: Some(&twin),
        };
        let again = give_back(&giving, &vms, &scratch.stores).expect("given back");
        assert_eq!(again, scratch.machine.path);
        assert!(!home.exists());
        assert_eq!(VmFolder::read(&again), Ok(scratch.machine.clone()));
        assert_eq!(inode(&scratch.machine.disk_file(&disks[0])), replicated);
        let loaded = Standing::load(&again.join(standing::FILE)).expect("reads");
        let stamp = loaded.as_ref().and_then(|loaded| loaded.stamp);
        let before = standing.stamp.expect("stored").id;
        assert_eq!(stamp.and_then(|stamp| stamp.after), Some(before));
        given.stamp = stamp;
        assert_eq!(loaded, Some(given));
        assert_eq!(progress::reserved(&again), Ok(41));
        // The two meet, whichever relationship the partner knows.
        let kept = Relation::read(&again).expect("reads").expect("there");
        let known = [scratch.enrol.relationship, scratch.relation.id];
        assert_eq!(kept.ids().collect::<Vec<_>>(), known);
        assert_eq!((kept.seed, kept.revision), (scratch.enrol.seed, None));
        // What differed is known for as long as nobody writes there.
        assert!(!Branch::is_in(&again));
        let known = Branch::given_back(&scratch.machine);
        assert_eq!(known.as_ref(), Some(&scratch.branch));
        let other = scratch.machine.disk_file(&disks[1]);
        let written = fs::OpenOptions::new().write(true).open(other);
        let written = written.and_then(|mut file| file.write_all(b"new"));
        written.expect("written");
        assert_eq!(Branch::given_back(&scratch.machine), None);
        // Killed when the twin was gone, it is a branch still: what is left of that goes.
        scratch.branch.write(&again).expect("written");
        fs::create_dir(again.join("journal")).expect("made");
        finish_giving_back(&again).expect("finished");
        assert!(!again.join("journal").exists());
        assert_eq!(leftover(&again, &scratch.path("vms")), Leftover::Unknown);
        // And once more, whose own branch alone tells which of the two is left.
        scratch.branch.write(&again).expect("written");
        scratch.turn().expect("turned again");
        assert!(!Branch::is_in(&home));
        // Its relationship ended: it has none, whatever one that was killed left.
        let (_, was) = Branch::read(&Place::beside(&home))
            .expect("read")
            .expect("kept");
        twin.write(&was.path).expect("written");
        let alone = Standing::primary(branch.lineage);
        let giving = Giving {
            twin: &home,
            place: &place,
            was: &was,
            standing: &alone,
            relation: None,
        };
        give_back(&giving, &vms, &scratch.stores).expect("given back");
        assert_eq!(Relation::read(&again), Ok(None));
    }

    #[test]
    fn one_that_was_a_twin_once_is_exchanged_in_its_place() {
        let mut scratch = Scratch::new();
        let id = scratch.enrol.spec.id.to_string();
        let home = scratch.path("replicas").join(&id);
        fs::rename(&scratch.machine.path, &home).expect("moved");
        scratch.machine.path.clone_from(&home);
        scratch.home.clone_from(&home);
        // Its journal lay in a store, and went.
        let known = scratch.store(scratch.enrol.spec.id);
        stores::note(&home, &scratch.stores.get(&known)).expect("noted");
        assert_eq!(scratch.turn().expect("turned"), home);
        assert!(
            !known.path.join(&id).exists(),
            "nothing leads there any more"
        );
        let left = Scratch::names(&scratch.path("replicas"));
        assert_eq!(left, [&*id], "nothing else is left");
        assert!(Branch::read(&Place::beside(&home)).expect("read").is_some());
    }

    #[test]
    fn one_that_lies_in_another_store_becomes_a_twin_there_and_has_its_disks_back() {
        let mut scratch = Scratch::new();
        scratch.in_store();
        let (place, machine) = (scratch.place.clone(), scratch.machine.clone());
        let inode = |file: &Path| fs::metadata(file).expect("there").ino();
        let disks = &machine.spec.disks;
        let [replicated, other] = [0, 1].map(|n| inode(&disks[n].file));
        let base = place.journal().join(Journal::base_file(disks[0].id));

        let home = scratch.turn().expect("turned");
        assert_eq!(home, scratch.home);
        let replicas = scratch.path("replicas");
        assert_eq!(Scratch::names(&replicas), [&*machine.spec.id.to_string()]);
        let found = Place::of(&home, machine.spec.id, &scratch.stores).expect("noted");
        assert_eq!(found.journal(), place.journal());
        assert_eq!(inode(&base), replicated);
        assert!(!home.join(FAILOVER).exists());
        let (branch, was) = Branch::read(&place).expect("read").expect("kept");
        assert_eq!(
            (&branch, &was.spec),
            (&scratch.branch, &scratch.machine.spec)
        );
        assert!(Branch::holds(&place.journal()));
        let variables = |folder: &Path| fs::read(folder.join(VARIABLES)).expect("there");
        assert_eq!(variables(&was.path), b"variables");

        let standing = Standing::load(&home.join(standing::FILE)).expect("reads");
        let standing = standing.expect("there");
        let given = standing.give_back("VM `web`", &branch.lineage, true);
        let twin = Relation::read(&home).expect("reads").expect("there");
        let giving = Giving {
            twin: &home,
            place: &place,
            was: &was,
            standing: &given.expect("a twin"),
            relation: Some(&twin),
        };
        let vms = scratch.path("vms");
        let again = give_back(&giving, &vms, &scratch.stores).expect("given back");
        assert_eq!(again, home);
        assert_eq!(Scratch::names(&replicas), [&*machine.spec.id.to_string()]);
        assert_eq!(Scratch::names(&vms), [""; 0]);
        assert_eq!(VmFolder::read(&machine.path), Ok(machine.clone()));
        assert_eq!(Scratch::names(place.folder()), ["disk0.raw", "disk1.raw"]);
        let [now, then] = [0, 1].map(|n| inode(&disks[n].file));
        assert_eq!([now, then], [replicated, other]);
        assert_eq!(variables(&machine.path), b"variables");
        assert_eq!(progress::reserved(&home), Ok(41));
        assert_eq!(Branch::given_back(&machine), Some(branch));

        // And once more; dropped, its disks are the base of the journal only.
        scratch.turn().expect("turned again");
        Branch::drop_of(&place).expect("dropped");
        assert_eq!(Scratch::names(place.folder()), ["journal"]);
        assert_eq!(inode(&base), replicated);
        // Deleted, nothing is left.
        stores::remove(&home, &scratch.stores).expect("removed");
        assert!(!place.folder().exists() && !home.exists());
    }

    #[test]
    fn killed_before_it_is_decided_a_vm_in_another_store_keeps_its_disks() {
        let mut scratch = Scratch::new();
        scratch.in_store();
        let (place, machine) = (scratch.place.clone(), scratch.machine.clone());
        let replicas = scratch.path("replicas");
        let id = machine.spec.id.to_string();
        let home = replicas.join(&id);
        let half = replicas.join(format!("{}{id}", stores::NEW));
        // The twin is whole, and has no name yet.
        scratch.turn().expect("turned");
        fs::rename(&home, &half).expect("not decided");
        fs::create_dir_all(home.join(FAILOVER)).expect("made");
        stores::note(&home, place.volume().expect("a store")).expect("noted");
        machine.write().expect("written");
        assert_eq!(
            Scratch::names(place.folder()),
            ["branch", "disk0.raw", "disk1.raw", "journal"]
        );
        stores::sweep(&replicas, &scratch.stores).expect("swept");
        finish_in_store(&place, &machine);
        assert_eq!(Scratch::names(&replicas), [&*id]);
        assert_eq!(Scratch::names(place.folder()), ["disk0.raw", "disk1.raw"]);
        // Nor does one that goes in its place once it is decided.
        progress::reserve(&home, 41).expect("written");
        scratch.turn().expect("turned");
        fs::create_dir(&half).expect("made");
        stores::note(&half, place.volume().expect("a store")).expect("noted");
        stores::sweep(&replicas, &scratch.stores).expect("swept");
        assert!(place.journal().join("index").exists());
        assert!(Branch::read(&place).expect("read").is_some());
        // What lies in both is refused, and nothing is changed.
        let mut mixed = Scratch::new();
        mixed.in_store();
        let added = mixed.machine.path.join("disk2.raw");
        fs::write(&added, "").expect("written");
        mixed.machine.spec.disks[1].file = "disk2.raw".into();
        let refused = mixed.turn().expect_err("two places");
        assert!(refused.reason.contains("where the others lie"), "{refused}");
        assert!(refused.way_out.contains("disk detach"), "{refused}");
    }

    #[test]
    fn killed_between_two_steps_one_of_the_two_folders_is_a_leftover() {
        let scratch = Scratch::new();
        let vm = scratch.machine.path.clone();
        let keep = scratch.path("kept");
        fs::create_dir(&keep).expect("made");
        let home = scratch.turn().expect("turned");
        assert_eq!(leftover(&vm, &home), Leftover::None);
        // The VM was not removed yet.
        fs::create_dir(&vm).expect("made");
        assert_eq!(leftover(&vm, &home), Leftover::Vm);
        // What was kept was dropped since: nothing tells the two apart.
        fs::rename(Branch::folder(&Place::beside(&home)), keep.join("branch")).expect("moved");
        assert_eq!(leftover(&vm, &home), Leftover::Unknown);
        // The twin, after its disks were given back.
        fs::remove_dir(&vm).expect("removed");
        fs::rename(keep.join("branch"), &vm).expect("published");
        assert_eq!(leftover(&vm, &home), Leftover::Twin);
    }

    #[test]
    fn what_cannot_be_a_twin_is_refused_and_nothing_is_changed() {
        let names = |scratch: &Scratch| {
            let entries = fs::read_dir(scratch.path("replicas")).expect("listed");
            entries.count()
        };
        let mut scratch = Scratch::new();
        scratch.enrol.disks.push(DiskId::random());
        let refused = scratch.turn().expect_err("no such disk");
        assert!(refused.reason.contains("no disk"), "{refused}");
        assert_eq!(names(&scratch), 0);
        // Of an older point of the partner: a journal never makes a disk smaller.
        let mut scratch = Scratch::new();
        scratch.enrol.spec.disks[0].size = Bytes(SIZE / 2);
        let refused = scratch.turn().expect_err("larger here");
        assert!(refused.way_out.contains("pollux disk resize"), "{refused}");
        assert_eq!(names(&scratch), 0);
        // Checkpoints are for a person to merge, who is told how; what is being merged is waited for.
        let mut scratch = Scratch::new();
        let mut checkpoint = model::CheckpointSpec {
            id: model::CheckpointId::random(),
            name: "before".parse().expect("a name"),
            time: jiff::Timestamp::UNIX_EPOCH,
            merging: false,
        };
        scratch.machine.spec.checkpoints = vec![checkpoint.clone()];
        let refused = scratch.turn().expect_err("a checkpoint");
        assert!(
            refused.way_out.contains("disk merge web --all"),
            "{refused}"
        );
        way_back(&scratch.machine, &scratch.place).expect_err("the same before the failover");
        checkpoint.merging = true;
        scratch.machine.spec.checkpoints = vec![checkpoint];
        let refused = scratch.turn().expect_err("not merged yet");
        assert!(
            refused.reason.contains("is merging checkpoint `before`"),
            "{refused}"
        );
        way_back(&scratch.machine, &scratch.place).expect("it goes by itself");
        assert_eq!(names(&scratch), 0);
        let mut scratch = Scratch::new();
        scratch.machine.spec.disks[1].file = "/elsewhere/disk.raw".into();
        let refused = scratch.turn().expect_err("outside");
        assert!(refused.way_out.contains("pollux disk detach"), "{refused}");
        assert_eq!(names(&scratch), 0);
        assert!(scratch.machine.path.join("disk0.raw").exists());
    }
}
