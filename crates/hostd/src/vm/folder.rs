//! A VM is a folder: `vm.toml`, its disks, its standing.
//!
//! ```text
//!   vms/UUID/
//!     vm.toml               the whole specification
//!     standing.toml         who may run it (crate `replica`)
//!     origin.toml           of what was made from a point: the point that its disks lie above
//!     disk0.raw ...         or disk0.overlay and disk0.map above a point
//!     checkpoints/          what was written since each checkpoint, per disk an overlay and a map
//!     replication.toml      only of a primary: relationship and progress
//!     outbox/               segments on their way; a cache
//!     tracking/             what must survive a power cut while changes are tracked
//!     uefi-variables.fd serial.log qemu.log diskd.log
//! ```

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diskd::config::StackSpec;
use model::{
    Bytes, CheckpointId, Code, DiskSpec, OverlaySpec, PointId, Problem, TermId, VmId, VmSpec,
};
use serde::{Deserialize, Serialize};

const SPEC: &str = "vm.toml";
const ORIGIN: &str = "origin.toml";
/// Folder of overlays; what `vm.toml` does not name there is removed.
pub(crate) const CHECKPOINTS: &str = "checkpoints";
const ORIGIN_VERSION: u32 = 1;

/// What made a VM that lies above a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Made {
    /// A test failover.
    Test,
    /// A failover.
    Failover,
    /// Nothing to be started: a point that is open for reading.
    Open,
    /// The same, for as long as it is exported.
    Export,
}

impl Made {
    /// Whether nothing is ever written above the point.
    pub(crate) fn is_read_only(self) -> bool {
        matches!(self, Self::Open | Self::Export)
    }
}

/// The point that a VM's disks lie above.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    version: u32,
    /// What made it.
    pub(crate) made: Made,
    /// The VM whose twin it grew from.
    pub(crate) twin: VmId,
    /// Folder of the journal.
    pub(crate) journal: PathBuf,
    /// The point.
    pub(crate) point: PointId,
    /// The checkpoint since which everything is written that is not in the point; none of what is no
    /// failover, or was failed over by an older build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) checkpoint: Option<CheckpointId>,
    /// The term that was opened to start from this point instead of another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) term: Option<TermId>,
    /// Whether the disk files are those that hold the point, as the journal's base.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) flat: bool,
}

impl Origin {
    pub(crate) fn new(made: Made, twin: VmId, journal: PathBuf, point: PointId) -> Self {
        Self {
            version: ORIGIN_VERSION,
            made,
            twin,
            journal,
            point,
            checkpoint: None,
            term: None,
            flat: false,
        }
    }
}

/// The folder of a VM, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct VmFolder {
    /// Where it lies.
    pub(crate) path: PathBuf,
    /// What `vm.toml` says.
    pub(crate) spec: VmSpec,
    /// What `origin.toml` says, if it is there.
    pub(crate) origin: Option<Origin>,
}

impl VmFolder {
    /// The checkpoint that a failover made, which goes when that is completed.
    pub(crate) fn above_point(&self) -> Option<CheckpointId> {
        self.origin.as_ref()?.checkpoint
    }

    /// Reads the folder at `path` strictly.
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let file = path.join(SPEC);
        let text = std::fs::read_to_string(&file)
            .map_err(|error| Problem::failed(file.display().to_string(), &error))?;
        let spec = VmSpec::from_toml(&text).map_err(|error| {
            Problem::new(
                Code::Invalid,
                file.display().to_string(),
                error.to_string().trim_end().to_owned(),
                "Correct the file and start polluxd again",
            )
        })?;
        let origin = Self::read_origin(&path.join(ORIGIN))?;
        Ok(Self {
            path: path.to_owned(),
            spec,
            origin,
        })
    }

    fn read_origin(file: &Path) -> Result<Option<Origin>, Problem> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Problem::failed(file.display().to_string(), &error)),
        };
        let origin: Origin = toml::from_str(&text)
            .map_err(|error| Problem::failed(file.display().to_string(), &error))?;
        if origin.version != ORIGIN_VERSION {
            return Err(Problem::new(
                Code::Invalid,
                file.display().to_string(),
                format!(
                    "has version {}; this build reads version {ORIGIN_VERSION}",
                    origin.version
                ),
                "Use the Pollux that wrote it, or a newer one",
            ));
        }
        Ok(Some(origin))
    }

    /// Whether its disks are those of a recovery point, with nothing above it.
    pub(crate) fn is_read_only(&self) -> bool {
        let origin = self.origin.as_ref();
        origin.is_some_and(|origin| origin.made.is_read_only())
    }

    /// Writes `vm.toml` and `origin.toml` into the folder, durably. The one that says that the disk files
    /// hold the content comes after the one that names them.
    pub(crate) fn write(&self) -> io::Result<()> {
        let spec = || durable::replace(&self.path.join(SPEC), self.spec.to_toml().as_bytes());
        let Some(origin) = &self.origin else {
            return spec();
        };
        let text = toml::to_string_pretty(origin).map_err(io::Error::other)?;
        let origin_file = self.path.join(ORIGIN);
        if origin.flat {
            spec()?;
            return durable::replace(&origin_file, text.as_bytes());
        }
        durable::replace(&origin_file, text.as_bytes())?;
        spec()
    }

    /// Forgets the point that it was made from, durably.
    pub(crate) fn forget_origin(&self) -> io::Result<()> {
        durable::remove(&self.path.join(ORIGIN))
    }

    /// Whether its disks are made of files in its folder or elsewhere, and of no recovery point.
    pub(crate) fn lies_on_files(&self) -> bool {
        self.origin.as_ref().is_none_or(|origin| origin.flat)
    }

    /// The journal that what serves its disks reads.
    pub(crate) fn journal(&self) -> Option<&Path> {
        self.origin.as_ref().map(|origin| &*origin.journal)
    }

    /// For messages: ``VM `web` ``.
    pub(crate) fn thing(&self) -> String {
        thing(self.spec.name.as_str())
    }

    /// The file that holds a disk's content, or what was written above the point.
    pub(crate) fn disk_file(&self, disk: &DiskSpec) -> PathBuf {
        self.path.join(&disk.file)
    }

    /// Where what lies below all checkpoints is: the disk's file, or the journal of the point.
    pub(crate) fn lowest(&self, disk: &DiskSpec) -> PathBuf {
        match &self.origin {
            Some(origin) if origin.checkpoint.is_some() && !origin.flat => origin.journal.clone(),
            _ => self.disk_file(disk),
        }
    }

    /// The file that is written to now: the disk's, or of its latest checkpoint.
    pub(crate) fn top_file(&self, disk: &DiskSpec) -> PathBuf {
        match disk.overlays.last() {
            None => self.disk_file(disk),
            Some(overlay) => self.overlay_files(overlay).0,
        }
    }

    /// Data and map of what was written since a checkpoint.
    pub(crate) fn overlay_files(&self, overlay: &OverlaySpec) -> (PathBuf, PathBuf) {
        let stem = self.path.join(&overlay.file);
        let with = |ending: &str| {
            let mut name = stem.clone().into_os_string();
            name.push(ending);
            PathBuf::from(name)
        };
        (with(".overlay"), with(".map"))
    }

    /// How much was written above the point that it was failed over to, by what its files take; none if
    /// nobody can tell, or it lies above none any more.
    pub(crate) fn written_above(&self) -> Option<Bytes> {
        self.origin.as_ref().filter(|origin| !origin.flat)?;
        let disks = self.spec.disks.iter();
        let files = disks.flat_map(|disk| {
            let overlays = disk.overlays.iter();
            let above = overlays.map(|overlay| self.overlay_files(overlay).0);
            above.chain([self.disk_file(disk)])
        });
        let taken = files.map(|file| match file.metadata() {
            Ok(meta) => Some(meta.blocks().saturating_mul(512)),
            // It is made when the disk is opened first, if at all.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(0),
            Err(_) => None,
        });
        taken.sum::<Option<u64>>().map(Bytes)
    }

    /// Folder of what was written since checkpoints.
    pub(crate) fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// What a disk's content is made of.
    pub(crate) fn stack(&self, disk: &DiskSpec) -> StackSpec {
        let file = self.disk_file(disk);
        let point = |origin: &Origin| StackSpec::Point {
            journal: origin.journal.clone(),
            point: origin.point,
        };
        let base = match &self.origin {
            None => StackSpec::Raw { file },
            Some(origin) if origin.flat => StackSpec::Raw { file },
            Some(origin) if origin.made.is_read_only() || origin.checkpoint.is_some() => {
                point(origin)
            }
            Some(origin) => StackSpec::Overlay {
                map: file.with_extension("map"),
                file,
                checkpoint: None,
                below: Box::new(point(origin)),
            },
        };
        disk.overlays.iter().fold(base, |below, overlay| {
            let (file, map) = self.overlay_files(overlay);
            StackSpec::Overlay {
                file,
                map,
                checkpoint: Some(overlay.checkpoint),
                below: Box::new(below),
            }
        })
    }

    /// Checks that what the VM needs from this host is there.
    pub(crate) fn check_files(&self) -> Result<(), Problem> {
        match self.origin.as_ref().filter(|origin| !origin.flat) {
            None => {
                for disk in &self.spec.disks {
                    self.check_disk(disk)?;
                }
            }
            Some(origin) if !origin.journal.is_dir() => {
                return Err(Problem::new(
                    Code::Failed,
                    self.thing(),
                    format!(
                        "lies above a recovery point in {}, which is not there",
                        origin.journal.display()
                    ),
                    "`pollux replica server show` tells which replica store is away; mount its disk",
                ));
            }
            Some(_) => {}
        }
        let Some(boot) = &self.spec.direct_boot else {
            return Ok(());
        };
        for (what, file) in [
            ("kernel", Some(&boot.kernel)),
            ("initrd", boot.initrd.as_ref()),
        ] {
            let Some(file) = file else { continue };
            if let Err(error) = std::fs::File::open(file) {
                return Err(Problem::new(
                    missing(&error),
                    self.thing(),
                    format!(
                        "boots the {what} {}, which cannot be opened on this host: {error}",
                        file.display()
                    ),
                    "Copy the file to that place on this host",
                ));
            }
        }
        Ok(())
    }

    /// Checks that no process works on the disks. Only for the error message's sake: diskd takes
    /// the lock that counts.
    pub(crate) fn check_free(&self) -> Result<(), Problem> {
        let disks = self.spec.disks.iter().map(|disk| self.disk_file(disk));
        let mut made = disks.filter(|file| file.exists());
        made.try_for_each(|file| super::create::free_to_use(&file))
    }

    fn check_disk(&self, disk: &DiskSpec) -> Result<(), Problem> {
        let path = self.disk_file(disk);
        let refuse = |code, reason: String, way_out: &str| {
            Problem::new(
                code,
                format!("disk {} of {}", path.display(), self.thing()),
                reason,
                way_out,
            )
        };
        let meta = std::fs::metadata(&path).map_err(|error| {
            refuse(
                missing(&error),
                format!("cannot be opened: {error}"),
                "Put the file back",
            )
        })?;
        // Longer than it is said to be, it was to be grown when the power failed.
        if meta.is_file() && meta.len() < disk.size.0 {
            return Err(refuse(
                Code::Conflict,
                format!("has {} bytes, and vm.toml says {}", meta.len(), disk.size.0),
                "Put the right file there; `pollux disk resize` makes disks larger, never smaller",
            ));
        }
        Ok(())
    }
}

/// For messages: ``VM `web` ``.
pub(crate) fn thing(name: &str) -> String {
    format!("VM `{name}`")
}

fn missing(error: &io::Error) -> Code {
    match error.kind() {
        io::ErrorKind::NotFound => Code::NotFound,
        io::ErrorKind::PermissionDenied => Code::Forbidden,
        _ => Code::Failed,
    }
}
