//! Guests for whole-system tests: the images that `scripts/guest` builds, and the lines that
//! they write to their serial port.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a guest that boots from [`GuestImages::disk`] writes once its root file system runs.
pub const ROOT_UP: &str = "pollux-guest: root up";
/// What any guest writes before its VM-Generation ID, a UUID.
pub const GENERATION_ID: &str = "pollux-guest: generation-id ";
/// What a guest writes before its firmware, `uefi` or `bios`.
pub const FIRMWARE: &str = "pollux-guest: firmware ";
/// What a guest writes before the state of Secure Boot, `on` or `off`.
pub const SECURE_BOOT: &str = "pollux-guest: secure-boot ";
/// What the workload writes before the number of the newest durable record.
pub const FLUSHED: &str = "pollux-workload: flushed ";
/// What the workload writes when a read, write or flush failed; it ends then.
pub const FAILED: &str = "pollux-workload: FAILED: ";

/// The guest images, built once and kept under `target/guest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestImages {
    /// A kernel for direct boot.
    pub kernel: PathBuf,
    /// Its initial RAM disk; see `scripts/guest-files/init` for the command line.
    pub initrd: PathBuf,
    /// A raw disk that boots on both generations. Copy it: a guest writes to its disk.
    pub disk: PathBuf,
}

/// No guest images.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The builder could not be started.
    #[error("cannot run {}", script.display())]
    Run {
        /// The builder.
        script: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It failed; what it said went to standard error.
    #[error("{} failed: {status}; what it said is above", script.display())]
    Failed {
        /// The builder.
        script: PathBuf,
        /// How it ended.
        status: std::process::ExitStatus,
    },
    /// It did not make what it promised.
    #[error("{} made no {}", script.display(), missing.display())]
    Incomplete {
        /// The builder.
        script: PathBuf,
        /// What is missing.
        missing: PathBuf,
    },
}

impl GuestImages {
    /// Builds the images, or finds them built: seconds the first time and after a change, else
    /// less than one. Safe when several call it at once. Needs what `scripts/setup` installs,
    /// and the network the first time.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn build_or_get() -> Result<Self, GuestError> {
        Self::build(&[])
    }

    /// The same with the kernel for all machines, which takes longer to boot. It follows the VM-Generation
    /// ID; the one for clouds has no driver for that.
    ///
    /// # Errors
    /// As there.
    pub fn build_or_get_generic() -> Result<Self, GuestError> {
        Self::build(&["generic"])
    }

    fn build(arguments: &[&str]) -> Result<Self, GuestError> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/guest");
        let output = Command::new(&script)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(source) => return Err(GuestError::Run { script, source }),
        };
        if !output.status.success() {
            let status = output.status;
            return Err(GuestError::Failed { script, status });
        }
        let folder = String::from_utf8_lossy(&output.stdout);
        let folder = Path::new(folder.trim_end());
        let images = Self {
            kernel: folder.join("vmlinuz"),
            initrd: folder.join("initrd.img"),
            disk: folder.join("disk.raw"),
        };
        for file in [&images.kernel, &images.initrd, &images.disk] {
            if !file.is_file() {
                let missing = file.clone();
                return Err(GuestError::Incomplete { script, missing });
            }
        }
        Ok(images)
    }

    /// The kernel's command line for a direct boot that runs the workload on `device` with
    /// `arguments`, such as `["batch=64", "pause-ms=50"]`.
    #[must_use]
    pub fn workload_cmdline(device: &str, arguments: &[&str]) -> String {
        let arguments: String = arguments.iter().map(|arg| format!(":{arg}")).collect();
        format!(
            "console=ttyS0 no_timer_check loglevel=3 panic=5 pollux.workload={device}{arguments}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workload_is_named_on_one_word_of_the_command_line() {
        let line = GuestImages::workload_cmdline("/dev/vda", &["batch=8", "writers=2"]);
        let word = "pollux.workload=/dev/vda:batch=8:writers=2";
        assert!(line.split(' ').any(|each| each == word), "{line}");
    }
}
