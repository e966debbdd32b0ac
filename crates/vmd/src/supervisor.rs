//! The loop of vmd: one thread that waits for children, clients and signals.
//!
//! ```text
//!             Shutdown, SIGTERM        guest reaped           diskd reaped
//!   Serving ------------------> Guest -------------> Diskd --------------> exit
//!                               (killed)             (SIGTERM, after
//!                                                     DISKD_LIMIT SIGKILL)
//! ```
//!
//! How a diskd is replaced while the guest runs stands in [`crate::replace`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use durable::{Lock, LockError};
use model::{Code, Problem};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use crate::backoff::Backoff;
use crate::config::Config;
use crate::connection::{Connection, Waiting};
use crate::control::{DISKD_LIMIT, Exit, Program, Reply, Request, Status};
use crate::lease::Leased;
use crate::process::Process;
use crate::replace::Replacing;
use crate::signals::Signals;
use crate::sockets::{Inherited, Places, listen};

/// More than polluxd and a few curious people need.
const MAX_CONNECTIONS: usize = 32;

/// How long no client is accepted when there was no room for one.
const DEAF: Duration = Duration::from_millis(100);

/// Why vmd cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another vmd serves this VM.
    #[error("the VM has a supervisor already")]
    Lock(#[source] LockError),
    /// A listening socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The first diskd could not be started.
    #[error("cannot start {}", program.display())]
    Diskd {
        /// The executable.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The operating system refused what the loop is made of.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

/// Supervises the VM of `config` until it is told to stop.
///
/// Call it once, from the main thread, before other threads or descriptors exist: it sets the
/// signal mask and hands descriptors from 3 on to diskd.
///
/// # Errors
/// [`Error`]; a child that was started ends with this process.
pub fn run(config: Config) -> Result<(), Error> {
    let places = Places::occupy().map_err(Error::Wait)?;
    let mut lock = config.control.clone().into_os_string();
    lock.push(".lock");
    let lock = Lock::exclusive(lock.as_ref()).map_err(Error::Lock)?;
    let inherited = Inherited::default().change(&config.sockets);
    let inherited = inherited.map_err(|(socket, source)| {
        let path = socket.path;
        Error::Listen { path, source }
    })?;
    let signals = Signals::take().map_err(Error::Wait)?;
    let leased = Leased::new().map_err(Error::Wait)?;
    let listener = match listen(&config.control).and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    }) {
        Ok(listener) => listener,
        Err(source) => {
            let path = config.control;
            return Err(Error::Listen { path, source });
        }
    };
    let diskd = match Process::start(&config.diskd, Some(&inherited)) {
        Ok(diskd) => diskd,
        Err(source) => {
            let program = config.diskd.program;
            return Err(Error::Diskd { program, source });
        }
    };
    tracing::info!(vm = %config.vm, pid = diskd.pid(), "diskd started");
    let mut supervisor = Supervisor {
        config,
        inherited,
        _places: places,
        signals,
        listener,
        deaf_until: None,
        connections: Vec::new(),
        diskd: Diskd::Running(diskd),
        restarts: 0,
        backoff: Backoff::default(),
        guest: None,
        leased,
        last_exit: None,
        stopping: Stopping::No,
        replacing: None,
    };
    while !supervisor.is_done() {
        supervisor.turn().map_err(Error::Wait)?;
    }
    supervisor.end(lock);
    Ok(())
}

/// The data plane's process.
pub(crate) enum Diskd {
    Running(Process),
    /// It died and is started again at this time.
    Due(Instant),
    /// It ended as it was told to.
    Ended,
}

#[derive(Clone, Copy)]
enum Stopping {
    No,
    /// The guest was killed and is not reaped yet.
    Guest,
    /// diskd was told to end.
    Diskd {
        /// None once it was killed.
        kill_at: Option<Instant>,
    },
}

pub(crate) struct Supervisor {
    pub(crate) config: Config,
    pub(crate) inherited: Inherited,
    _places: Places,
    signals: Signals,
    listener: UnixListener,
    /// No clients are accepted before: there was no room for one.
    deaf_until: Option<Instant>,
    connections: Vec<Connection>,
    pub(crate) diskd: Diskd,
    restarts: u64,
    backoff: Backoff,
    guest: Option<Process>,
    leased: Leased,
    last_exit: Option<Exit>,
    stopping: Stopping,
    pub(crate) replacing: Option<Replacing>,
}

/// What was ready after a wait.
struct Ready {
    signals: bool,
    accept: bool,
    /// Of the connections that were there, in order.
    connections: Vec<PollFlags>,
}

impl Supervisor {
    fn is_done(&self) -> bool {
        matches!(self.stopping, Stopping::Diskd { .. })
            && matches!(self.diskd, Diskd::Ended)
            && self.guest.is_none()
    }

    pub(crate) fn is_stopping(&self) -> bool {
        !matches!(self.stopping, Stopping::No)
    }

    /// Waits for something to happen and does what follows from it.
    fn turn(&mut self) -> io::Result<()> {
        let ready = self.wait()?;
        if ready.signals {
            self.signals.drain();
            tracing::info!("told to end by a signal");
            self.stop();
        }
        self.reap_guest();
        self.hear_diskd();
        self.reap_diskd();
        self.leased.keep_time(self.guest.as_ref());
        self.keep_time(Instant::now());

        let mut flags = ready.connections.into_iter();
        self.connections
            .retain_mut(|client| client.serve(flags.next().unwrap_or(PollFlags::empty())));
        if ready.accept {
            self.accept();
        }
        for n in 0..self.connections.len() {
            while let Some(request) = self.connections[n].next() {
                self.handle(n, request);
            }
        }
        self.connections.retain(|client| !client.is_finished());
        Ok(())
    }

    fn wait(&self) -> io::Result<Ready> {
        let room = self.connections.len() < MAX_CONNECTIONS && self.deaf_until.is_none();
        let accept = if room {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.listener.as_fd(), accept),
            PollFd::from_borrowed_fd(self.leased.as_fd(), PollFlags::IN),
        ];
        let first = fds.len();
        let clients = self
            .connections
            .iter()
            .map(|client| PollFd::from_borrowed_fd(client.as_fd(), client.interest()));
        fds.extend(clients);
        let diskd = match &self.diskd {
            Diskd::Running(process) => Some(process),
            Diskd::Due(_) | Diskd::Ended => None,
        };
        // That one of these is readable is found out by reaping and hearing.
        let telling = diskd.and_then(Process::telling);
        fds.extend(telling.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let children = diskd.into_iter().chain(&self.guest).map(Process::as_fd);
        fds.extend(children.map(|fd: BorrowedFd<'_>| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let limit = self.next_deadline().map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => {
                fds.iter_mut().for_each(PollFd::clear_revents);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Ready {
            signals: !fds[0].revents().is_empty(),
            accept: !fds[1].revents().is_empty(),
            connections: fds[first..first + self.connections.len()]
                .iter()
                .map(PollFd::revents)
                .collect(),
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let diskd = match (&self.diskd, self.stopping) {
            (Diskd::Due(at), _) => Some(*at),
            (Diskd::Running(_), Stopping::Diskd { kill_at }) => kill_at,
            (Diskd::Running(_), _) => self.replacing.as_ref().and_then(Replacing::kill_at),
            (Diskd::Ended, _) => None,
        };
        diskd.into_iter().chain(self.deaf_until).min()
    }

    /// Starts diskd again, or kills it, when the time has come.
    fn keep_time(&mut self, now: Instant) {
        self.deaf_until = self.deaf_until.filter(|at| *at > now);
        match (&self.diskd, self.stopping) {
            (Diskd::Due(at), _) if *at <= now => self.restart_diskd(),
            (Diskd::Running(process), Stopping::Diskd { kill_at: Some(at) }) if at <= now => {
                tracing::error!(
                    pid = process.pid(),
                    "diskd did not end in time and is killed"
                );
                process.signal(Signal::KILL);
                self.stopping = Stopping::Diskd { kill_at: None };
            }
            (Diskd::Running(process), Stopping::No) => {
                if let Some(replacing) = &mut self.replacing {
                    replacing.keep_time(process, now);
                }
            }
            _ => {}
        }
    }

    fn restart_diskd(&mut self) {
        self.restarts += 1;
        match Process::start(&self.config.diskd, Some(&self.inherited)) {
            Ok(process) => {
                tracing::info!(
                    pid = process.pid(),
                    restarts = self.restarts,
                    "diskd restarted"
                );
                self.diskd = Diskd::Running(process);
            }
            Err(error) => {
                tracing::error!(%error, "cannot start diskd");
                let wait = self.backoff.after(None);
                self.diskd = Diskd::Due(Instant::now() + wait);
            }
        }
    }

    fn reap_diskd(&mut self) {
        let Diskd::Running(process) = &mut self.diskd else {
            return;
        };
        let Some(exit) = process.reap() else { return };
        if matches!(self.stopping, Stopping::Diskd { .. }) {
            tracing::info!(?exit, "diskd ended");
            self.diskd = Diskd::Ended;
            return;
        }
        let (pid, served) = (process.pid(), process.served());
        if self.replacing.is_some() {
            self.replaced_died(pid, exit);
            return;
        }
        let wait = self.backoff.after(served);
        tracing::warn!(pid, ?exit, ?wait, "diskd died");
        self.diskd = Diskd::Due(Instant::now() + wait);
    }

    fn hear_diskd(&mut self) {
        let Diskd::Running(process) = &mut self.diskd else {
            return;
        };
        if process.hear() {
            tracing::info!(pid = process.pid(), "diskd serves");
            self.replaced_serves();
        }
    }

    fn reap_guest(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        let Some(exit) = guest.reap() else { return };
        let pid = guest.pid();
        tracing::info!(pid, ?exit, "guest ended");
        self.guest = None;
        self.leased.gone();
        self.last_exit = Some(exit);
        if matches!(self.stopping, Stopping::Guest) {
            self.stop_diskd();
        }
        self.answer(Waiting::Guest(pid), &Reply::Status(self.status()));
    }

    pub(crate) fn answer(&mut self, waiting: Waiting, reply: &Reply) {
        for client in &mut self.connections {
            if client.waiting == Some(waiting) {
                client.reply(reply);
            }
        }
    }

    fn accept(&mut self) {
        while self.connections.len() < MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((stream, _)) => match Connection::new(stream) {
                    Ok(client) => self.connections.push(client),
                    Err(error) => tracing::warn!(%error, "client dropped"),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // It waits in the backlog, and would be told of again at once.
                    tracing::warn!(%error, "cannot accept a client");
                    self.deaf_until = Some(Instant::now() + DEAF);
                    return;
                }
            }
        }
    }

    fn handle(&mut self, client: usize, request: Request) {
        let guest = self.guest.as_ref().map(Process::pid);
        let waiting = match request {
            Request::Status => None,
            Request::Launch(program) => {
                if let Err(problem) = self.launch(&program) {
                    self.connections[client].reply(&Reply::Refused { problem });
                    return;
                }
                None
            }
            Request::Lease { lease } => match self.leased.set(lease, self.guest.as_ref()) {
                Ok(()) => {
                    self.leased.keep_time(self.guest.as_ref());
                    None
                }
                Err(error) => {
                    let thing = format!("the lease of VM {}", self.config.vm);
                    let problem = Problem::failed(thing, &error);
                    self.connections[client].reply(&Reply::Refused { problem });
                    return;
                }
            },
            Request::WaitGuest { pid } => guest.filter(|guest| *guest == pid).map(Waiting::Guest),
            Request::KillGuest => {
                self.kill_guest();
                guest.map(Waiting::Guest)
            }
            Request::Replace { diskd, sockets } => match self.replace(diskd, &sockets) {
                Ok(()) => Some(Waiting::Replacement),
                Err(problem) => {
                    self.connections[client].reply(&Reply::Refused { problem });
                    return;
                }
            },
            Request::Shutdown => {
                self.stop();
                Some(Waiting::Shutdown)
            }
        };
        match waiting {
            Some(_) => self.connections[client].waiting = waiting,
            None => {
                let status = self.status();
                self.connections[client].reply(&Reply::Status(status));
            }
        }
    }

    fn launch(&mut self, program: &Program) -> Result<(), Problem> {
        let refuse = |reason: String, way_out| {
            let thing = format!("VM {}", self.config.vm);
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if let Some(guest) = &self.guest {
            let reason = format!("runs already, as process {}", guest.pid());
            return refuse(reason, "Stop or kill it first");
        }
        if !matches!(self.stopping, Stopping::No) {
            return refuse("is being shut down".to_owned(), "Start it again afterwards");
        }
        match Process::start(program, None) {
            Ok(guest) => {
                tracing::info!(pid = guest.pid(), "guest started");
                self.guest = Some(guest);
                self.leased.keep_time(self.guest.as_ref());
                Ok(())
            }
            Err(error) => Err(Problem::failed(
                format!("cannot start {}", program.program.display()),
                &error,
            )),
        }
    }

    fn kill_guest(&self) {
        if let Some(guest) = &self.guest {
            guest.signal(Signal::KILL);
        }
    }

    fn stop(&mut self) {
        if !matches!(self.stopping, Stopping::No) {
            return;
        }
        self.stopping = Stopping::Guest;
        self.give_up_replacing();
        match &self.guest {
            Some(_) => self.kill_guest(),
            None => self.stop_diskd(),
        }
    }

    /// The guest is gone, so nothing more will be written: diskd can make everything durable.
    fn stop_diskd(&mut self) {
        self.stopping = Stopping::Diskd {
            kill_at: Some(Instant::now() + DISKD_LIMIT),
        };
        match &self.diskd {
            Diskd::Running(process) => process.signal(Signal::TERM),
            Diskd::Due(_) | Diskd::Ended => self.diskd = Diskd::Ended,
        }
    }

    pub(crate) fn status(&self) -> Status {
        Status {
            pid: std::process::id(),
            diskd: match &self.diskd {
                Diskd::Running(process) => Some(process.pid()),
                Diskd::Due(_) | Diskd::Ended => None,
            },
            ready: matches!(&self.diskd, Diskd::Running(process) if process.served().is_some()),
            diskd_restarts: self.restarts,
            guest: self.guest.as_ref().map(Process::pid),
            lease: self.leased.lease(),
            frozen: self.leased.is_frozen(),
            last_exit: self.last_exit,
            lacking: self.lacking(),
        }
    }

    fn lacking(&self) -> Vec<String> {
        let diskd = match &self.diskd {
            Diskd::Running(process) => Some(process),
            Diskd::Due(_) | Diskd::Ended => None,
        };
        let mut lacking: Vec<String> = diskd
            .into_iter()
            .chain(&self.guest)
            .flat_map(|process| &process.lacking)
            .chain(&self.config.lacking)
            .cloned()
            .collect();
        lacking.sort_unstable();
        lacking.dedup();
        lacking
    }

    /// Takes the sockets away, lets go of the lock, then answers: whoever was answered may start
    /// the next vmd.
    fn end(&mut self, lock: Lock) {
        self.inherited.remove_files_but_of(&Inherited::default());
        let control = &self.config.control;
        if let Err(error) = std::fs::remove_file(control) {
            tracing::warn!(path = %control.display(), %error, "cannot remove a socket");
        }
        drop(lock);
        self.answer(Waiting::Shutdown, &Reply::Done);
    }
}
