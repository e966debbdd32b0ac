//! Which QEMU is used, and whether it is new enough.

use std::env;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

/// The oldest QEMU that is supported: `reconnect-ms`, on which surviving a restart of diskd
/// depends, came with 9.2, and 10.0 is what the data plane was measured with.
pub const MINIMUM_VERSION: Version = Version {
    major: 10,
    minor: 0,
};

/// Overrides the search in `PATH`.
const OVERRIDE: &str = "POLLUX_QEMU";
const PROGRAM: &str = "qemu-system-x86_64";
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// First number.
    pub major: u32,
    /// Second number.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A QEMU that this host can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Its executable.
    pub program: PathBuf,
    /// Its version, at least [`MINIMUM_VERSION`].
    pub version: Version,
}

/// Why no QEMU can be used.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None is installed.
    #[error(
        "{PROGRAM} is not in PATH (Debian: install qemu-system-x86, on Debian 12 from \
         bookworm-backports; {OVERRIDE} may name another executable)"
    )]
    Absent,
    /// It could not be asked for its version.
    #[error("cannot run {} --version", program.display())]
    Run {
        /// The executable.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its answer was not understood.
    #[error("{} --version does not say which version it is: `{answer}`", program.display())]
    Answer {
        /// The executable.
        program: PathBuf,
        /// The start of what it said.
        answer: String,
    },
    /// Older than [`MINIMUM_VERSION`].
    #[error(
        "{} has version {found}, and at least {MINIMUM_VERSION} is needed (Debian 12: install \
         qemu-system-x86 from bookworm-backports)",
        program.display()
    )]
    TooOld {
        /// The executable.
        program: PathBuf,
        /// Its version.
        found: Version,
    },
}

impl Qemu {
    /// Finds QEMU in `PATH`, or where the environment variable `POLLUX_QEMU` says.
    ///
    /// # Errors
    /// [`FindError`] says what to install.
    pub async fn find() -> Result<Self, FindError> {
        let program = match env::var_os(OVERRIDE) {
            Some(program) => PathBuf::from(program),
            None => in_path(&env::var_os("PATH").unwrap_or_default()).ok_or(FindError::Absent)?,
        };
        Self::at(program).await
    }

    /// Checks the QEMU at `program`.
    ///
    /// # Errors
    /// [`FindError`] says what is wrong with it.
    pub async fn at(program: PathBuf) -> Result<Self, FindError> {
        let output = Command::new(&program)
            .arg("--version")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = match timeout(VERSION_LIMIT, output).await {
            Ok(output) => output,
            Err(elapsed) => Err(io::Error::new(io::ErrorKind::TimedOut, elapsed)),
        };
        let output = match output {
            Ok(output) => output,
            Err(source) => return Err(FindError::Run { program, source }),
        };
        let answer = String::from_utf8_lossy(&output.stdout);
        let Some(version) = parse_version(&answer) else {
            let answer = answer.chars().take(80).collect();
            return Err(FindError::Answer { program, answer });
        };
        if version < MINIMUM_VERSION {
            let found = version;
            return Err(FindError::TooOld { program, found });
        }
        Ok(Self { program, version })
    }
}

fn in_path(path: &std::ffi::OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join(PROGRAM))
        .find(|program| is_executable(program))
}

fn is_executable(program: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    program
        .metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// From `QEMU emulator version 10.0.2 (Debian ...)`.
fn parse_version(answer: &str) -> Option<Version> {
    let numbers = answer
        .split_once("version ")?
        .1
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    let mut numbers = numbers.split('.').map(str::parse);
    Some(Version {
        major: numbers.next()?.ok()?,
        minor: numbers.next()?.ok()?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A program that stands in for QEMU.
    ///
    /// Another one writes it: were it open for writing here, a test beside this one that starts a
    /// program would hand the descriptor on, and the kernel refuses to run what is open for writing.
    pub(crate) fn script(folder: &Path, text: &str) -> PathBuf {
        let program = folder.join("qemu");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" >"$0" && chmod 700 "$0""#;
        let written = std::process::Command::new("sh")
            .args(["-c", write])
            .arg(&program)
            .arg(text)
            .status();
        assert!(written.expect("sh runs").success());
        program
    }

    #[test]
    fn the_version_is_read_from_what_qemu_prints() {
        let debian = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\nCopy";
        assert_eq!(
            parse_version(debian),
            Some(Version {
                major: 10,
                minor: 0
            })
        );
        assert_eq!(parse_version("QEMU emulator version ten"), None);
        assert_eq!(parse_version(""), None);
    }

    #[tokio::test]
    async fn an_old_qemu_is_refused_with_the_package_to_install() {
        let folder = tempfile::tempdir().expect("scratch folder");
        let program = script(folder.path(), "echo QEMU emulator version 7.2.1");
        let error = Qemu::at(program).await.expect_err("too old").to_string();
        assert!(
            error.contains("7.2") && error.contains("qemu-system-x86"),
            "{error}"
        );
    }

    #[test]
    fn a_relative_folder_in_path_is_not_searched() {
        assert_eq!(in_path(std::ffi::OsStr::new(".:relative")), None);
    }

    #[tokio::test]
    async fn the_installed_qemu_is_found() {
        let qemu = Qemu::find().await.expect("QEMU is installed");
        assert!(qemu.version >= MINIMUM_VERSION);
    }
}
