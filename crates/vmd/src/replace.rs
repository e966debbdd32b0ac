//! A diskd takes the place of another while the guest runs.
//!
//! ```text
//!              SIGTERM, SIGKILL at the limit       reaped              a byte in `ready`
//!   old serves ----------------------------> Ending ------> Starting ------------------> new serves
//!                                              ^                |
//!                                              |                | died, or SIGKILL at the limit
//!                    old is started again, with its sockets <---'
//! ```
//!
//! At no time do two of them run: each is reaped before the next is started, so that a late write of the
//! old one cannot land on one of the new. The guest's requests meanwhile wait in its rings and in the
//! backlog of the sockets, which vmd holds all the time; a socket that the new one is to have and
//! the old one has not is made before anything is ended, and removed again if the new one does not
//! come up.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::Instant;

use model::{Code, Problem};
use rustix::process::Signal;

use crate::config::Socket;
use crate::connection::Waiting;
use crate::control::{Exit, Program, READY_LIMIT, Reply};
use crate::process::Process;
use crate::sockets::Inherited;
use crate::supervisor::{Diskd, Supervisor};

/// Most of what a diskd said before it died that is told, in bytes.
const SAID: u64 = 4096;

/// A replacement on its way.
pub(crate) struct Replacing {
    /// What there was, to be put back.
    program: Program,
    sockets: Vec<Socket>,
    inherited: Inherited,
    stage: Stage,
    /// When the one that runs is killed; none once it was.
    kill_at: Option<Instant>,
}

enum Stage {
    /// The old one was told to end.
    Ending,
    /// The new one was started; its log was this long before.
    Starting { log: u64 },
}

impl Replacing {
    pub(crate) fn kill_at(&self) -> Option<Instant> {
        self.kill_at
    }

    /// Kills what took too long. Either may be killed at any instant: what it leaves, the next finds.
    pub(crate) fn keep_time(&mut self, process: &Process, now: Instant) {
        if self.kill_at.is_some_and(|at| at <= now) {
            tracing::error!(pid = process.pid(), "took too long and is killed");
            process.signal(Signal::KILL);
            self.kill_at = None;
        }
    }
}

impl Supervisor {
    /// Begins to replace diskd.
    pub(crate) fn replace(&mut self, program: Program, sockets: &[Socket]) -> Result<(), Problem> {
        let thing = format!("diskd of VM {}", self.config.vm);
        let refuse = |reason: &str| Problem::new(Code::Conflict, &thing, reason, "Try again later");
        if self.replacing.is_some() {
            return Err(refuse("is being replaced already"));
        }
        if self.is_stopping() {
            return Err(refuse("is being shut down"));
        }
        let inherited = self.inherited.change(sockets).map_err(|(socket, error)| {
            let path = socket.path.display();
            Problem::failed(format!("cannot listen on {path}"), &error)
        })?;
        tracing::info!(program = %program.program.display(), "diskd is replaced");
        self.replacing = Some(Replacing {
            program: std::mem::replace(&mut self.config.diskd, program),
            sockets: std::mem::replace(&mut self.config.sockets, sockets.to_vec()),
            inherited: std::mem::replace(&mut self.inherited, inherited),
            stage: Stage::Ending,
            kill_at: Some(Instant::now() + READY_LIMIT),
        });
        match &self.diskd {
            Diskd::Running(process) => process.signal(Signal::TERM),
            Diskd::Due(_) | Diskd::Ended => self.start_replacement(),
        }
        Ok(())
    }

    /// The one that ran has been reaped: the old one, or the new one before it served.
    pub(crate) fn replaced_died(&mut self, pid: u32, exit: Exit) {
        let Some(replacing) = &self.replacing else {
            return;
        };
        match replacing.stage {
            Stage::Ending => {
                tracing::info!(pid, ?exit, "diskd ended to be replaced");
                self.start_replacement();
            }
            Stage::Starting { log } => {
                let late = if replacing.kill_at.is_none() {
                    format!("did not serve within {} s", READY_LIMIT.as_secs())
                } else {
                    match exit {
                        Exit::Code(code) => format!("ended with code {code} before it served"),
                        Exit::Signal(signal) => {
                            format!("was ended by signal {signal} before it served")
                        }
                    }
                };
                let said = said(&self.config.diskd.log, log);
                self.put_back(&format!("{late}{said}"));
            }
        }
    }

    /// The new one serves.
    pub(crate) fn replaced_serves(&mut self) {
        let starting =
            |replacing: &mut Replacing| matches!(replacing.stage, Stage::Starting { .. });
        let Some(replaced) = self.replacing.take_if(starting) else {
            return;
        };
        replaced.inherited.remove_files_but_of(&self.inherited);
        self.answer(Waiting::Replacement, &Reply::Status(self.status()));
    }

    /// Everything is being stopped; what runs is stopped with it.
    pub(crate) fn give_up_replacing(&mut self) {
        if let Some(replacing) = self.replacing.take() {
            replacing.inherited.remove_files_but_of(&self.inherited);
            self.refuse_replacement("is being shut down");
        }
    }

    fn start_replacement(&mut self) {
        let log = std::fs::metadata(&self.config.diskd.log).map_or(0, |meta| meta.len());
        match Process::start(&self.config.diskd, Some(&self.inherited)) {
            Ok(process) => {
                tracing::info!(pid = process.pid(), "diskd started to replace another");
                self.diskd = Diskd::Running(process);
                if let Some(replacing) = &mut self.replacing {
                    replacing.stage = Stage::Starting { log };
                    replacing.kill_at = Some(Instant::now() + READY_LIMIT);
                }
            }
            Err(error) => self.put_back(&format!("cannot be started: {error}")),
        }
    }

    /// The old one is started again, with the sockets that it had.
    fn put_back(&mut self, reason: &str) {
        let Some(replacing) = self.replacing.take() else {
            return;
        };
        tracing::error!(reason, "diskd was not replaced");
        let inherited = std::mem::replace(&mut self.inherited, replacing.inherited);
        inherited.remove_files_but_of(&self.inherited);
        self.config.sockets = replacing.sockets;
        let program = std::mem::replace(&mut self.config.diskd, replacing.program);
        self.diskd = Diskd::Due(Instant::now());
        self.refuse_replacement(&format!("{} {reason}", program.program.display()));
    }

    fn refuse_replacement(&mut self, reason: &str) {
        let thing = format!("diskd of VM {}", self.config.vm);
        let problem = Problem::new(Code::Failed, thing, reason, "");
        self.answer(Waiting::Replacement, &Reply::Refused { problem });
    }
}

/// The end of what was logged from `start` on, after a colon.
fn said(log: &Path, start: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(end.saturating_sub(SAID))))?;
        let mut text = Vec::new();
        file.take(SAID).read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).trim().to_owned())
    };
    match read() {
        Ok(text) if !text.is_empty() => format!(": {text}"),
        // What it said is worth less than that it ended.
        _ => String::new(),
    }
}
