//! pollux-diskd in a process of its own, started as vmd starts it, and its control socket.
//!
//! The folder of the VM holds the sockets, `diskd.json` and `log`.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]
#![allow(unsafe_code, reason = "inherited descriptors, limits of a process")]
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use journal::{SegmentReader, Source};
use model::BLOCK_SIZE;
use pollux_diskd::config::{CONTROL_SOCKET, Config, READY};
use pollux_diskd::control::{Reply, Request};

/// Nothing is answered later unless it hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// One diskd after the other, on sockets that stay. The last one ends with it.
pub struct Process {
    folder: PathBuf,
    listeners: Vec<(String, UnixListener)>,
    child: Option<Child>,
    /// How long files may become that the next one writes, in bytes.
    pub file_limit: Option<u64>,
}

impl Process {
    /// Listens in `folder`; none runs yet.
    pub fn new(folder: &Path, sockets: impl IntoIterator<Item = String>) -> Self {
        let names = std::iter::once(CONTROL_SOCKET.to_owned()).chain(sockets);
        let listen = |name: String| {
            let listener = UnixListener::bind(folder.join(&name)).unwrap();
            (name, listener)
        };
        Self {
            folder: folder.to_owned(),
            listeners: names.map(listen).collect(),
            child: None,
            file_limit: None,
        }
    }

    /// What the next one serves, and the one that runs when it reloads.
    pub fn configure(&self, config: &Config) {
        let new = self.folder.join("diskd.json.new");
        fs::write(&new, serde_json::to_vec(config).unwrap()).unwrap();
        fs::rename(new, self.folder.join("diskd.json")).unwrap();
    }

    /// Starts one beside that which runs, if one does. It says on `told` that it is ready.
    pub fn spawn(&self, told: Option<&OwnedFd>) -> Child {
        let sockets = self.listeners.iter();
        let mut names: Vec<&str> = sockets.clone().map(|(name, _)| name.as_str()).collect();
        let mut passed: Vec<i32> = sockets.map(|(_, socket)| socket.as_raw_fd()).collect();
        if let Some(told) = told {
            names.push(READY);
            passed.push(told.as_raw_fd());
        }
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))
            .unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_pollux-diskd"));
        command
            .stderr(log)
            .arg(self.folder.join("diskd.json"))
            .env("RUST_BACKTRACE", "0")
            .env("LISTEN_FDS", names.len().to_string())
            .env("LISTEN_FDNAMES", names.join(":"));
        let limit = self.file_limit;
        // Above those that they are to become.
        let above = 3 + i32::try_from(passed.len()).unwrap();
        // SAFETY: signal, prlimit, fcntl and dup2 are async-signal-safe, and nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                if let Some(limit) = limit {
                    // Of what it exceeds it is told by an error, and not by a signal.
                    libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                    limit_files(0, limit)?;
                }
                for fd in &mut passed {
                    *fd = check(libc::fcntl(*fd, libc::F_DUPFD_CLOEXEC, above))?;
                }
                for (target, fd) in (3..).zip(&passed) {
                    check(libc::dup2(*fd, target))?;
                }
                Ok(())
            });
        }
        command.spawn().unwrap()
    }

    /// Starts one that perhaps gets ready.
    pub fn launch(&mut self) {
        self.child = Some(self.spawn(None));
    }

    /// Starts one and waits until it says that it is ready.
    pub fn start(&mut self) {
        let (ready, told) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        self.child = Some(self.spawn(Some(&told)));
        drop(told);
        let mut bytes = Vec::new();
        File::from(ready).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 1, "it did not get ready");
    }

    /// `kill -9`, if one runs, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits for its end.
    pub fn exit(&mut self) -> ExitStatus {
        self.child.take().unwrap().wait().unwrap()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.as_ref().unwrap().id()).unwrap()
    }

    /// Asks, and does not wait for the [`answer`].
    pub fn send(&self, request: &Request) -> UnixStream {
        let mut stream = UnixStream::connect(self.folder.join(CONTROL_SOCKET)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut line = serde_json::to_vec(request).unwrap();
        line.push(b'\n');
        stream.write_all(&line).unwrap();
        stream
    }

    /// Asks, and again when that came too late, as on a busy host: then nothing was changed.
    pub fn ask(&self, request: &Request) -> Reply {
        let mut replies = (0..100).map(|_| answer(&self.send(request)));
        replies.find(|reply| !late(reply)).expect("once in time")
    }

    /// What all of them have logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}

pub fn answer(stream: &UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

/// Whether a cut or a reload was given up because a disk did not come to rest in time.
pub fn late(reply: &Reply) -> bool {
    matches!(reply, Reply::Refused { problem } if problem.reason.ends_with("in time"))
}

fn check(returned: i32) -> io::Result<i32> {
    if returned < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(returned)
}

/// Sets how long files may become that the process `pid` (0: this one) writes, in bytes.
pub fn limit_files(pid: i32, limit: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the new limit is valid for the call; the old one is not wanted.
    let returned = unsafe {
        libc::prlimit(
            pid,
            libc::RLIMIT_FSIZE,
            &raw const limit,
            std::ptr::null_mut(),
        )
    };
    check(returned).map(drop)
}

/// Applies a segment to copies of the disks. How many bytes it holds.
pub fn apply(segment: &SegmentReader, disks: &mut [Vec<u8>]) -> usize {
    let block = usize::try_from(BLOCK_SIZE).unwrap();
    let mut held = 0;
    for run in segment.runs() {
        let run = run.unwrap();
        let at = usize::try_from(run.block).unwrap() * block;
        let len = run.count as usize * block;
        held += len;
        let place = &mut disks[usize::from(run.disk)][at..at + len];
        match run.source {
            Source::Zero => place.fill(0),
            Source::Frame { frame, skip } => {
                let content = segment.read_frame(frame).unwrap();
                let skip = usize::from(skip) * block;
                place.copy_from_slice(&content[skip..skip + len]);
            }
        }
    }
    held
}
