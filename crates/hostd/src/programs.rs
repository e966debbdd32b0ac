//! The programs that polluxd starts, but for QEMU.

use std::path::PathBuf;

use model::{Code, Problem};

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
}
