//! A child process: started so that it dies with vmd, watched through a pidfd, reaped.
#![allow(unsafe_code, reason = "what a child does between fork and exec")]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal,
};

use sandbox::Confinement;

use crate::control::{Exit, Program};
use crate::signals::unblock_all;
use crate::sockets::{FIRST_INHERITED, Inherited};

/// What the pipe is called by which a diskd tells that it serves.
const READY: &str = "ready";

/// A running child.
pub(crate) struct Process {
    child: Child,
    pidfd: OwnedFd,
    /// What its confinement does without.
    pub(crate) lacking: Vec<String>,
    /// By which a diskd tells that it serves; none once it did, or will not.
    telling: Option<OwnedFd>,
    /// When it told.
    ready: Option<Instant>,
}

impl Process {
    /// Starts `program`; with `inherited`, those sockets are its descriptors from 3 on, and after
    /// them a pipe named `ready`: a byte in it says that it serves.
    ///
    /// `LISTEN_PID` is not set: the environment is made before the fork, when the child's id is
    /// not known yet. So diskd must not leave `LISTEN_FDS` to children of its own.
    pub(crate) fn start(program: &Program, inherited: Option<&Inherited>) -> io::Result<Self> {
        let log = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&program.log)?;
        let mut command = Command::new(&program.program);
        command
            .args(&program.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        for variable in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            command.env_remove(variable);
        }
        let confinement = Confinement::prepare(&program.rights, &program.program)
            .map_err(io::Error::other)?
            .map(Arc::new);
        let confined = confinement.clone();
        let mut held: Vec<RawFd> = Vec::new();
        let mut pipe = None;
        if let Some(inherited) = inherited {
            let (told, tell) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
            held.extend(inherited.descriptors().chain([tell.as_raw_fd()]));
            let names: Vec<&str> = inherited.names().chain([READY]).collect();
            command
                .env("LISTEN_FDS", held.len().to_string())
                .env("LISTEN_FDNAMES", names.join(":"));
            pipe = Some((told, tell));
        }
        let parent = getpid();
        // SAFETY: between fork and exec only system calls are made, and nothing is allocated:
        // io::Error from a number is a number, and `enter` is made for this. `held` are descriptors above every target, and
        // the targets are occupied (`Places`), so that dup2 closes nothing that is needed.
        unsafe {
            command.pre_exec(move || {
                if let Some(confinement) = &confined {
                    confinement.enter()?;
                }
                // After the user was changed, which clears it.
                set_parent_process_death_signal(Some(Signal::KILL))?;
                if getppid() != Some(parent) {
                    // vmd died before the line above: nobody would send the signal.
                    return Err(io::Error::from_raw_os_error(libc::ESRCH));
                }
                unblock_all()?;
                for (place, fd) in (FIRST_INHERITED..).zip(&held) {
                    if libc::dup2(*fd, place) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let mut child = command.spawn()?;
        drop(command);
        let lacking = confinement
            .and_then(Arc::into_inner)
            .map_or_else(Vec::new, Confinement::lacking);
        for lack in &lacking {
            tracing::warn!(program = %program.program.display(), lack, "less confined than it could be");
        }
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self {
                child,
                pidfd,
                lacking,
                telling: pipe.map(|(told, _tell)| told),
                ready: None,
            }),
            Err(error) => {
                // It was never told about; fails only if it has ended, which is as good.
                let _ = child.kill();
                child.wait()?;
                Err(error.into())
            }
        }
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends `signal`; one that has ended takes none.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(&self.pidfd, signal) {
            tracing::debug!(pid = self.pid(), %error, "signal not sent");
        }
    }

    /// What becomes readable when it tells that it serves.
    pub(crate) fn telling(&self) -> Option<BorrowedFd<'_>> {
        self.telling.as_ref().map(AsFd::as_fd)
    }

    /// Hears whether it serves. Returns whether that is news.
    pub(crate) fn hear(&mut self) -> bool {
        let Some(pipe) = &self.telling else {
            return false;
        };
        match rustix::io::read(pipe, &mut [0_u8; 1]) {
            Ok(0) => self.telling = None,
            Ok(_) => {
                self.telling = None;
                self.ready = Some(Instant::now());
                return true;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => {
                tracing::warn!(pid = self.pid(), %error, "cannot hear whether diskd serves");
                self.telling = None;
            }
        }
        false
    }

    /// For how long it has served.
    pub(crate) fn served(&self) -> Option<Duration> {
        self.ready.map(|since| since.elapsed())
    }

    /// How it ended, once it did.
    pub(crate) fn reap(&mut self) -> Option<Exit> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(match (status.code(), status.signal()) {
                (Some(code), _) => Exit::Code(code),
                (None, signal) => Exit::Signal(signal.unwrap_or_default()),
            }),
            Ok(None) => None,
            Err(error) => {
                // Only if somebody else reaped it, which nothing in this process does.
                tracing::error!(pid = self.pid(), %error, "lost a child");
                Some(Exit::Code(-1))
            }
        }
    }
}

/// Readable once the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
