//! Where everything lies.
//!
//! ```text
//!   STATE/                        survives a reboot; others pass, and see nothing
//!     lock                        one polluxd per state folder
//!     host.toml                   the host's own settings, may be absent
//!     replica-server.toml         whom it receives twins from, absent until that is switched on
//!     events.db                   what happened, bounded; put aside and begun anew if it is damaged
//!     identity/ peers/            who this host is, whom it trusts (crate `replica`)
//!     stamps/UUID.toml            of a VM or a twin: which storing of its standing was the last (`stamps`)
//!     vms/UUID/                   a VM: vm.toml and all that belongs to it
//!     replicas/UUID/              a twin received from another host: vm.toml, standing, and journal/ or
//!                                 store.toml, which says where that lies (`stores`)
//!       failover/  test/          VMs that a failover made above a point of that journal
//!       open-ID/                  a point of it that is open for reading
//!   RUN/                          tmpfs: lost by a reboot, as it should be
//!     api.sock                    the management API
//!     measures/                   measures of relationships, newer than those beside the VMs
//!     SHORT-ID/                   processes of one VM: configurations, sockets, state files
//! ```
//!
//! Folders whose names begin with a dot are being made or being removed; they are removed when
//! polluxd starts.

use std::path::{Path, PathBuf};

use model::{Code, Problem, VmId};

/// Most bytes in the path of a Unix socket, without the closing NUL: `sun_path`, unix(7).
pub const MAX_SOCKET_PATH: usize = 107;

/// The longest name of a socket in a VM's run folder, with the folder's own name before it.
const LONGEST_SOCKET: &str = "0123456789ab/own/console.sock";

/// The folders of one polluxd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Survives a reboot.
    pub state: PathBuf,
    /// Sockets and what is only true until the next reboot.
    pub run: PathBuf,
}

impl Layout {
    /// Checks that sockets in `run` can have names that Linux takes.
    ///
    /// # Errors
    /// A problem that names the path, its length and the limit.
    pub fn new(state: PathBuf, run: PathBuf) -> Result<Self, Problem> {
        for (option, path) in [("--state", &state), ("--run", &run)] {
            if !path.is_absolute() || path.to_str().is_none() {
                return Err(Problem::new(
                    Code::Invalid,
                    format!("`{option} {}`", path.display()),
                    "is not an absolute path in UTF-8",
                    "Name the folder from the root on",
                ));
            }
        }
        check_socket_path(&run.join(LONGEST_SOCKET))?;
        Ok(Self { state, run })
    }

    /// Folder of all VMs.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    /// Folder of all twins.
    #[must_use]
    pub fn replicas(&self) -> PathBuf {
        self.state.join("replicas")
    }

    /// Folder of what tells a restored folder of a VM from the one that was stored last.
    #[must_use]
    pub fn stamps(&self) -> PathBuf {
        self.state.join("stamps")
    }

    /// Run folder of one VM.
    #[must_use]
    pub fn run_of(&self, vm: VmId) -> PathBuf {
        let id = vm.0.simple().to_string();
        self.run.join(&id[..12])
    }
}

/// Checks the length of a socket's path.
///
/// # Errors
/// A problem that names the path, its length and the limit.
pub fn check_socket_path(path: &Path) -> Result<(), Problem> {
    let len = path.as_os_str().len();
    if len > MAX_SOCKET_PATH {
        return Err(Problem::new(
            Code::Invalid,
            format!("socket path {}", path.display()),
            format!("has {len} bytes, and Linux takes at most {MAX_SOCKET_PATH}"),
            "Choose a shorter folder with --run",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_folder_that_is_too_long_for_sockets_is_refused_with_its_length() {
        let long = PathBuf::from(format!("/tmp/{}", "x".repeat(100)));
        let problem = Layout::new("/state".into(), long).expect_err("too long");
        assert!(problem.reason.contains("135 bytes"), "{problem}");
        assert!(problem.way_out.contains("--run"), "{problem}");
        let short = format!("/tmp/{}", "x".repeat(72));
        Layout::new("/state".into(), short.into()).expect("exactly 107");
    }

    #[test]
    fn a_relative_folder_is_refused() {
        let problem = Layout::new("state".into(), "/run".into()).expect_err("relative");
        assert_eq!(problem.code, Code::Invalid);
    }
}
