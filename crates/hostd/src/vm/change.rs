//! What a change of its disks makes of a VM: pure functions from a specification to the next.
//!
//! ```text
//!   checkpoint c:  base <- overlay(a) <== guest        base <- overlay(a) <- overlay(c) <== guest
//!   apply a:       base <- overlay(a) <- overlay(c)    base <- overlay(a)', empty
//!   merge a:       overlay(a) is drained into base     base <- overlay(c) <== guest
//! ```
//!
//! Files of overlays get names that were never used, so that what an interrupted change left
//! behind is never taken for content.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::{
    Bus, Bytes, CheckpointId, CheckpointName, CheckpointSpec, Code, DiskId, DiskSpec, GenerationId,
    OverlaySpec, Problem, VmSpec,
};

use super::folder::{CHECKPOINTS, thing};

/// Fewer digits of an id than this name nothing: a slip of the finger should not.
const MIN_ID: usize = 4;

/// A change of the disks of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    /// Plug this disk in, whose file is there.
    Add(DiskSpec),
    /// Unplug a disk.
    Remove(DiskId),
    /// Make a disk larger.
    Resize(DiskId, Bytes),
    /// Keep all disks as they are now.
    Checkpoint(CheckpointSpec),
    /// Take all disks back to a checkpoint.
    Apply {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// Even if there are later ones, which go.
        drop_later: bool,
    },
    /// A checkpoint is to go: from now on it is merged.
    Merge(CheckpointId),
    /// All of them are to go, one after the other, the oldest first; but what a failover that is not complete
    /// has above its point.
    MergeAll {
        /// That.
        but: Option<CheckpointId>,
    },
    /// A checkpoint is merged.
    Drop(CheckpointId),
    /// The point below everything becomes the files that hold it. Those that lie elsewhere than their disks
    /// say.
    Flatten(Vec<(DiskId, PathBuf)>),
    /// Nothing: what is written is brought into force.
    Converge,
    /// Start diskd anew from the program that is installed now.
    Upgrade,
}

impl Change {
    /// The specification after this change.
    pub(crate) fn plan(&self, spec: &VmSpec, guest: bool) -> Result<VmSpec, Problem> {
        let mut next = spec.clone();
        let refuse = |reason: String, way_out: &str| {
            let thing = thing(spec.name.as_str());
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        match self {
            Self::Add(disk) => {
                if guest && !disk.bus.is_hot() {
                    let reason = "runs, and an IDE disk cannot be plugged in then".to_owned();
                    let way_out = "Stop the VM first, or choose `--bus scsi` or `--bus virtio`";
                    return refuse(reason, way_out);
                }
                next.disks.push(disk.clone());
            }
            Self::Remove(id) => {
                let disk = with_id(&mut next, *id)?.clone();
                plain(spec, &disk, "detached")?;
                if guest && disk.bus == Bus::Ide {
                    let reason = "runs, and an IDE disk cannot be unplugged then".to_owned();
                    return refuse(reason, "Stop the VM first");
                }
                next.disks.retain(|disk| disk.id != *id);
            }
            Self::Resize(id, size) => {
                let disk = with_id(&mut next, *id)?;
                plain(spec, disk, "resized")?;
                if *size <= disk.size {
                    return Err(Problem::new(
                        Code::Invalid,
                        disk_thing(spec, disk),
                        format!(
                            "has {} and cannot be given {size}: disks only grow",
                            disk.size
                        ),
                        "Copy what it holds to a new, smaller disk",
                    ));
                }
                disk.size = *size;
            }
            Self::Checkpoint(checkpoint) => {
                if next.disks.is_empty() {
                    return refuse("has no disk to keep".to_owned(), "");
                }
                for disk in &mut next.disks {
                    disk.overlays.push(fresh(disk.slot, checkpoint.id));
                }
                next.checkpoints.push(checkpoint.clone());
            }
            Self::Apply {
                checkpoint,
                drop_later,
            } => apply(&mut next, *checkpoint, *drop_later)?,
            Self::Merge(id) => {
                let all = next.checkpoints.iter_mut();
                for checkpoint in all.filter(|checkpoint| checkpoint.id == *id) {
                    checkpoint.merging = true;
                }
            }
            Self::MergeAll { but } => {
                let all = next.checkpoints.iter_mut();
                for checkpoint in all.filter(|checkpoint| Some(checkpoint.id) != *but) {
                    checkpoint.merging = true;
                }
            }
            Self::Drop(id) => {
                next.checkpoints.retain(|checkpoint| checkpoint.id != *id);
                for disk in &mut next.disks {
                    disk.overlays.retain(|overlay| overlay.checkpoint != *id);
                }
            }
            Self::Flatten(files) => {
                for (id, file) in files {
                    with_id(&mut next, *id)?.file.clone_from(file);
                }
            }
            Self::Converge | Self::Upgrade => {}
        }
        match next.check() {
            Ok(()) => Ok(next),
            Err(error) => Err(Problem::new(
                Code::Invalid,
                thing(spec.name.as_str()),
                error.to_string(),
                "",
            )),
        }
    }

    /// Whether it changes which disks there are, and how large.
    pub(crate) fn changes_hardware(&self) -> bool {
        matches!(self, Self::Add(_) | Self::Remove(_) | Self::Resize(..))
    }
}

fn apply(next: &mut VmSpec, id: CheckpointId, drop_later: bool) -> Result<(), Problem> {
    let of = thing(next.name.as_str());
    let at = next.checkpoints.iter().position(|one| one.id == id);
    let Some(at) = at else {
        return Err(Problem::new(
            Code::NotFound,
            of,
            "has no such checkpoint",
            "",
        ));
    };
    let later: Vec<String> = next.checkpoints[at + 1..]
        .iter()
        .map(|one| format!("`{}`", one.name))
        .collect();
    if !later.is_empty() && !drop_later {
        return Err(Problem::new(
            Code::Conflict,
            format!("checkpoint `{}` of {of}", next.checkpoints[at].name),
            format!("has later ones, which would go: {}", later.join(", ")),
            "Say --drop-later if they may go, or export what they hold first",
        ));
    }
    for disk in &mut next.disks {
        let Some(place) = disk.overlays.iter().position(|one| one.checkpoint == id) else {
            return Err(Problem::new(
                Code::Conflict,
                format!("disk {} of {of}", disk.slot),
                "was attached after that checkpoint, which does not hold it",
                "Detach it first with `pollux disk detach`",
            ));
        };
        disk.overlays.truncate(place);
        disk.overlays.push(fresh(disk.slot, id));
    }
    next.checkpoints.truncate(at + 1);
    // The guest goes back in time, and is told.
    next.generation_id = GenerationId::random();
    Ok(())
}

/// Files that nothing was ever written to.
fn fresh(slot: u8, checkpoint: CheckpointId) -> OverlaySpec {
    let name = CheckpointId::random().0.simple().to_string();
    OverlaySpec {
        checkpoint,
        file: Path::new(CHECKPOINTS).join(format!("disk{slot}-{}", &name[..16])),
    }
}

fn with_id(spec: &mut VmSpec, id: DiskId) -> Result<&mut DiskSpec, Problem> {
    let of = thing(spec.name.as_str());
    let mut disks = spec.disks.iter_mut();
    disks
        .find(|disk| disk.id == id)
        .ok_or_else(|| Problem::new(Code::NotFound, of, "has no such disk any more", ""))
}

/// For messages: ``disk 0 of VM `web` ``.
pub(crate) fn disk_thing(spec: &VmSpec, disk: &DiskSpec) -> String {
    format!("disk {} of {}", disk.slot, thing(spec.name.as_str()))
}

/// Refuses for a disk whose content is spread over checkpoints.
fn plain(spec: &VmSpec, disk: &DiskSpec, what: &str) -> Result<(), Problem> {
    if disk.overlays.is_empty() {
        return Ok(());
    }
    let named = spec.checkpoints.iter().filter(|checkpoint| {
        let mut overlays = disk.overlays.iter();
        overlays.any(|overlay| overlay.checkpoint == checkpoint.id)
    });
    let names: Vec<String> = named.map(|one| format!("`{}`", one.name)).collect();
    Err(Problem::new(
        Code::Conflict,
        disk_thing(spec, disk),
        format!("has checkpoints and cannot be {what}: {}", names.join(", ")),
        "Merge them first with `pollux disk merge`",
    ))
}

/// The disk that a person means: by its slot, by the name of its file, or by the beginning of its
/// id.
pub(crate) fn find_disk<'a>(spec: &'a VmSpec, wanted: &str) -> Result<&'a DiskSpec, Problem> {
    let of = thing(spec.name.as_str());
    let slot = wanted.parse::<u8>().ok();
    let file = |disk: &&DiskSpec| {
        disk.file == Path::new(wanted) || disk.file.file_name().is_some_and(|name| *name == *wanted)
    };
    let mut found: Vec<&DiskSpec> = spec
        .disks
        .iter()
        .filter(|disk| slot == Some(disk.slot))
        .collect();
    if found.is_empty() {
        found = spec.disks.iter().filter(file).collect();
    }
    if found.is_empty() {
        let begins = |disk: &&DiskSpec| begins(&disk.id.to_string(), wanted);
        found = spec.disks.iter().filter(begins).collect();
    }
    match found[..] {
        [disk] => Ok(disk),
        [] => Err(Problem::new(
            Code::NotFound,
            format!("disk `{wanted}` of {of}"),
            "does not exist",
            "`pollux disk list` shows its disks; name one by number, file or id",
        )),
        _ => Err(Problem::new(
            Code::Invalid,
            format!("disk `{wanted}` of {of}"),
            "may be more than one",
            "Name it by its number, as `pollux disk list` shows it",
        )),
    }
}

/// The checkpoint that a person means: by its name, or by the beginning of its id.
pub(crate) fn find_checkpoint<'a>(
    spec: &'a VmSpec,
    wanted: &str,
) -> Result<&'a CheckpointSpec, Problem> {
    let of = thing(spec.name.as_str());
    let all = &spec.checkpoints;
    if let Some(named) = all.iter().find(|one| one.name.as_str() == wanted) {
        return Ok(named);
    }
    let mut matching = all.iter().filter(|one| begins(&one.id.to_string(), wanted));
    match (matching.next(), matching.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(Problem::new(
            Code::NotFound,
            format!("checkpoint `{wanted}` of {of}"),
            "does not exist",
            "`pollux disk info` shows the checkpoints; name one by its name or id",
        )),
    }
}

fn begins(id: &str, wanted: &str) -> bool {
    let wanted = wanted.to_ascii_lowercase();
    wanted.len() >= MIN_ID && (id.starts_with(&wanted) || id.replace('-', "").starts_with(&wanted))
}

/// A new checkpoint; named after the time unless told otherwise.
pub(crate) fn new_checkpoint(
    spec: &VmSpec,
    name: Option<&str>,
    time: Timestamp,
    merging: bool,
) -> Result<CheckpointSpec, Problem> {
    let of = thing(spec.name.as_str());
    let taken = |name: &str| spec.checkpoints.iter().any(|one| one.name.as_str() == name);
    let name = match name {
        Some(name) if taken(name) => {
            return Err(Problem::new(
                Code::Conflict,
                format!("checkpoint `{name}` of {of}"),
                "exists already",
                "Choose another name",
            ));
        }
        Some(name) => name.to_owned(),
        None => {
            let what = if merging { "export " } else { "" };
            let plain = format!("{what}{}", time.strftime("%Y-%m-%d %H:%M:%S"))
                .trim()
                .to_owned();
            let numbered = (2..).map(|n| format!("{plain} ({n})"));
            let mut names = std::iter::once(plain.clone()).chain(numbered);
            names.find(|name| !taken(name)).unwrap_or(plain)
        }
    };
    let name: CheckpointName = name.parse().map_err(|error: model::SpecError| {
        Problem::new(Code::Invalid, of, error.to_string(), "")
    })?;
    Ok(CheckpointSpec {
        id: CheckpointId::random(),
        name,
        time,
        merging,
    })
}

/// The stems of all overlays.
pub(crate) fn stems(spec: &VmSpec) -> Vec<PathBuf> {
    let overlays = spec.disks.iter().flat_map(|disk| &disk.overlays);
    overlays.map(|overlay| overlay.file.clone()).collect()
}

#[cfg(test)]
#[path = "change_tests.rs"]
mod tests;
