//! Virtual machines, as the API tells and takes them.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use model::{Bus, Bytes, DirectBoot, Generation, Mode, PointId, VmId, VmName, VmSpec, VmState};
use serde::{Deserialize, Serialize};

use crate::{Accelerator, Checkpoint, VmDisk};

/// A VM in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Identity; the twin has the same.
    pub id: VmId,
    /// Name, unique on the host.
    pub name: VmName,
    /// What it is doing.
    pub state: VmState,
    /// Generation of the virtual hardware.
    pub generation: Generation,
    /// Virtual processors.
    pub processors: u32,
    /// Memory of the guest.
    pub memory: Bytes,
    /// Seconds since QEMU started; none while it does not run.
    pub uptime_s: Option<u64>,
    /// The side of its replication that this host is, if it is replicated.
    pub mode: Option<Mode>,
    /// One line: that all is well, or what is not.
    pub status: String,
}

/// Everything about a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmDetails {
    /// What a list shows.
    pub vm: Vm,
    /// Its specification.
    pub spec: VmSpec,
    /// The folder that is the VM.
    pub folder: PathBuf,
    /// How the other host took over from this one, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succeeded: Option<Succeeded>,
    /// Its processes, while it has any.
    pub processes: Option<Processes>,
    /// Its disks, in boot order.
    pub disks: Vec<VmDisk>,
    /// Its checkpoints, the oldest first.
    pub checkpoints: Vec<Checkpoint>,
}

/// How another host took over from this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succeeded {
    /// The host.
    pub host: String,
    /// Number of the term in which it runs the VM.
    pub term: u64,
    /// The point from which it went on; what was written here after it is here only.
    pub from: Option<PointId>,
    /// When it took over, by its clock; none when this host stood down for it, or that is not known.
    pub opened: Option<Timestamp>,
    /// When the guest was held still here; none if it did not run when this host heard of it.
    pub held: Option<Timestamp>,
    /// How much was written here and was not there then; none when nobody could tell, or nothing can
    /// have been.
    pub unsent: Option<Bytes>,
}

/// In words, without an end: `host X took over in term 2 from point P. Both ran from A to B. ...`
impl fmt::Display for Succeeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let second = |time: Timestamp| time.strftime("%F %T UTC").to_string();
        write!(f, "host `{}` took over in term {}", self.host, self.term)?;
        if let Some(from) = self.from {
            write!(f, " from point {from}")?;
        }
        match (self.opened, self.held) {
            (Some(opened), Some(held)) => write!(
                f,
                ". Both ran from {} to {}, when this one was held still",
                second(opened),
                second(held)
            )?,
            (None, Some(held)) => write!(f, ". Both ran until {}", second(held))?,
            (Some(opened), None) => write!(f, " at {}", second(opened))?,
            (None, None) => {}
        }
        match self.unsent {
            Some(Bytes(0)) => f.write_str(". Nothing was written here that is not there"),
            Some(unsent) => write!(
                f,
                ". {unsent} that were written here and never sent are kept in its disks here"
            ),
            None => Ok(()),
        }
    }
}

/// The processes of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processes {
    /// Process id of the supervisor `pollux-vmd`.
    pub vmd: u32,
    /// Process id of `pollux-diskd`, while it runs.
    pub diskd: Option<u32>,
    /// How often diskd was started again after it died.
    pub diskd_restarts: u64,
    /// Process id of QEMU, while it runs.
    pub guest: Option<u32>,
    /// What runs the guest's instructions, while QEMU runs.
    pub accelerator: Option<Accelerator>,
    /// Version of the diskd that runs.
    pub diskd_version: Option<String>,
    /// Whether the diskd that runs is of another version than the one that is installed.
    pub diskd_outdated: bool,
    /// How diskd reads and writes files.
    pub store: Option<String>,
    /// What the confinement of these processes does without, because the host does not give it.
    pub lacking: Vec<String>,
}

/// A VM to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Name, unique on the host.
    pub name: VmName,
    /// Generation of the virtual hardware.
    pub generation: Generation,
    /// Virtual processors.
    pub processors: u32,
    /// Memory; a multiple of 2 MiB.
    pub memory: Bytes,
    /// UEFI Secure Boot; when absent, on for generation 2.
    #[serde(default)]
    pub secure_boot: Option<bool>,
    /// Boot this kernel instead of the firmware's own way.
    #[serde(default)]
    pub direct_boot: Option<DirectBoot>,
    /// Disks in boot order.
    #[serde(default)]
    pub disks: Vec<NewDisk>,
}

/// A disk of a VM to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewDisk {
    /// Where its first content comes from.
    pub from: DiskContentFrom,
    /// Size that the guest sees. When absent: the image's, rounded up to 4 KiB. Larger than the
    /// image: the rest reads as zeroes.
    #[serde(default)]
    pub size: Option<Bytes>,
    /// What it is plugged into. When absent: IDE for generation 1, virtio for generation 2.
    #[serde(default)]
    pub bus: Option<Bus>,
}

/// Where the content of a new disk comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum DiskContentFrom {
    /// Nowhere: it reads as zeroes.
    Empty,
    /// A copy of this raw file, an absolute path on the host.
    Image(PathBuf),
    /// This raw file itself, an absolute path on the host. It stays when the VM is deleted.
    File(PathBuf),
}

/// How to start a VM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartVm {
    /// A person's statement why the VM cannot be running on its partner, when that cannot be
    /// asked. It is recorded.
    #[serde(default)]
    pub because: Option<String>,
}

/// How to stop a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopVm {
    /// How many seconds the guest has to shut itself down.
    pub timeout_s: u64,
}
