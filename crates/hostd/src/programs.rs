//! The programs that polluxd starts, but for QEMU.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use model::{Code, Problem};
use tokio::process::Command;
use tokio::time::timeout;

/// How long a program may take to tell its version.
const VERSION: Duration = Duration::from_secs(20);

/// The executables beside polluxd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Programs {
    pub(crate) vmd: PathBuf,
    pub(crate) diskd: PathBuf,
}

impl Programs {
    /// Finds them beside this process's own executable.
    pub(crate) fn find() -> Result<Self, Problem> {
        let own = std::env::current_exe()
            .map_err(|error| Problem::failed("polluxd's own executable", &error))?;
        let beside = |name: &str| {
            let path = own.with_file_name(name);
            if path.is_file() {
                return Ok(path);
            }
            Err(Problem::new(
                Code::NotFound,
                path.display().to_string(),
                "is missing: polluxd needs it beside its own executable",
                "Install all of Pollux's programs in one folder",
            ))
        };
        Ok(Self {
            vmd: beside("pollux-vmd")?,
            diskd: beside("pollux-diskd")?,
        })
    }

    /// Whether the diskd that is installed now can be run at all. Asked before one that serves a
    /// guest makes way for it: vmd starts either by the same path, so a broken file there could not
    /// be taken back.
    pub(crate) async fn try_diskd(&self) -> Result<(), Problem> {
        let thing = self.diskd.display().to_string();
        let broken = |reason: String| {
            let way_out = "Install it again; until then the one that runs goes on";
            Err(Problem::new(Code::Conflict, thing.clone(), reason, way_out))
        };
        let run = Command::new(&self.diskd)
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        match timeout(VERSION, run).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                broken(format!("is broken ({}): {}", output.status, said.trim()))
            }
            Ok(Err(error)) => broken(format!("cannot be run: {error}")),
            Err(_elapsed) => broken("does not tell its version".to_owned()),
        }
    }
}
