//! The servers that are compared: each serves one raw file over vhost-user-blk or NBD.
#![allow(
    unsafe_code,
    reason = "a child's descriptors are numbered between fork and exec"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use diskd::config::{
    CONTROL_SOCKET, Config, DiskConfig, Front, StackSpec, disk_socket, nbd_socket,
};
use diskd::control::{Reply, Request};
use model::{Bytes, DiskId, VmId};

use crate::client::VhostUserClient;
use crate::load::{Client, Load};
use crate::nbd::NbdClient;

/// How long a server may take to start.
const START: Duration = Duration::from_secs(10);
/// NBD's name of the disk that a guest may write to.
const EXPORT: &str = "guest";
/// The first inherited descriptor, sd_listen_fds(3).
const FIRST: RawFd = 3;

/// How qemu-storage-daemon does its I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aio {
    Threads,
    Native,
    IoUring,
}

impl Aio {
    /// The modes that work on a file that is opened with or without O_DIRECT.
    pub(crate) fn modes(direct: bool) -> &'static [Self] {
        if direct {
            &[Self::Threads, Self::Native, Self::IoUring]
        } else {
            &[Self::Threads, Self::IoUring]
        }
    }

    /// As QEMU spells it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Native => "native",
            Self::IoUring => "io_uring",
        }
    }
}

/// A disk and how a `pollux-diskd` is told of it; it may be served again and again.
pub(crate) struct Diskd {
    folder: PathBuf,
    config: Config,
}

impl Diskd {
    /// Serves `file`, with its sockets and its state in `folder`, which is on tmpfs, and its
    /// write-intent log beside the file.
    pub(crate) fn new(folder: &Path, file: &Path, front: Front) -> Result<Self> {
        let disk = DiskConfig {
            id: DiskId::random(),
            slot: 0,
            front,
            size: Bytes(fs::metadata(file)?.len()),
            stack: StackSpec::Raw {
                file: file.to_owned(),
            },
            state: folder.join("state"),
            // Where the disk is, as fast and as durable as that.
            tracking: file.parent().unwrap_or(folder).to_owned(),
        };
        let config = Config {
            vm: VmId::random(),
            term: 1,
            generation: 0,
            disks: vec![disk],
            copy_budget: Bytes(64 << 20),
        };
        fs::write(folder.join("diskd.json"), serde_json::to_vec(&config)?)?;
        Ok(Self {
            folder: folder.to_owned(),
            config,
        })
    }

    /// The disk.
    pub(crate) fn disk(&self) -> &DiskConfig {
        &self.config.disks[0]
    }

    /// The VM.
    pub(crate) fn vm(&self) -> VmId {
        self.config.vm
    }

    /// `pollux-diskd`, found beside this program.
    pub(crate) fn start(&self) -> Result<Server> {
        let (socket, control) = (
            self.folder.join("diskd.sock"),
            self.folder.join("control.sock"),
        );
        let front = self.disk().front;
        let name = match front {
            Front::VhostUser => disk_socket(0),
            Front::Nbd => nbd_socket(0),
        };
        let sockets: Vec<OwnedFd> = [&socket, &control]
            .into_iter()
            .map(|path| {
                // Of the one before.
                if path.exists() {
                    fs::remove_file(path)?;
                }
                Ok(UnixListener::bind(path)?.into())
            })
            .collect::<Result<_>>()?;
        let mut command = Command::new(diskd_program()?);
        command
            .arg(self.folder.join("diskd.json"))
            .env("RUST_LOG", "warn")
            .env("LISTEN_FDS", sockets.len().to_string())
            .env("LISTEN_FDNAMES", format!("{name}:{CONTROL_SOCKET}"));
        inherit(&mut command, &sockets);
        let server = Server {
            child: start(&mut command, "pollux-diskd")?,
            front,
            socket,
            control: Some(control),
        };
        server.control()?.ask(&Request::Status)?;
        Ok(server)
    }
}

/// A connection to the control socket of a diskd.
pub(crate) struct Control(UnixStream);

impl Control {
    /// Asks, and takes a refusal for an error.
    pub(crate) fn ask(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.0.write_all(&line)?;
        let mut answer = String::new();
        BufReader::new(&self.0).read_line(&mut answer)?;
        match serde_json::from_str(&answer).context("diskd's answer makes no sense")? {
            Reply::Refused { problem } => Err(problem.into()),
            reply => Ok(reply),
        }
    }
}

/// What a `qemu-storage-daemon` makes of the file that it serves.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Format<'a> {
    Raw,
    /// The file is the content of this qcow2 file, which holds nothing but metadata: what a persistent
    /// bitmap needs.
    Qcow2(&'a Path),
}

/// A running server; killed when dropped.
pub(crate) struct Server {
    child: Child,
    front: Front,
    socket: PathBuf,
    control: Option<PathBuf>,
}

impl Server {
    /// `pollux-diskd` that serves `file`.
    pub(crate) fn diskd(folder: &Path, file: &Path, front: Front) -> Result<Self> {
        Diskd::new(folder, file, front)?.start()
    }

    /// `qemu-storage-daemon`, with a thread of its own for the export as the better-served users
    /// of it have. It takes no lock, so that both servers may be up on one file; only one is ever used.
    pub(crate) fn qsd(
        folder: &Path,
        file: &Path,
        format: Format,
        front: Front,
        aio: Aio,
        direct: bool,
    ) -> Result<Self> {
        let socket = folder.join(format!("qsd-{}.sock", aio.name()));
        let on = |on| if on { "on" } else { "off" };
        let mut command = Command::new("qemu-storage-daemon");
        command.args(["--object", "iothread,id=io"]);
        let of_file = |name: &str, path: &Path| {
            format!(
                "driver=file,node-name={name},filename={},aio={},cache.direct={},discard=unmap,locking=off",
                path.display(),
                aio.name(),
                on(direct),
            )
        };
        match format {
            Format::Raw => {
                command.arg("--blockdev").arg(of_file("disk", file));
            }
            Format::Qcow2(metadata) => {
                command.arg("--blockdev").arg(of_file("content", file));
                command.arg("--blockdev").arg(of_file("metadata", metadata));
                let disk = "driver=qcow2,node-name=disk,file=metadata,data-file=content";
                command.arg("--blockdev").arg(disk);
            }
        }
        let address = format!("addr.type=unix,addr.path={}", socket.display());
        let export = "id=export,node-name=disk,writable=on,iothread=io";
        match front {
            Front::VhostUser => {
                let export = format!("type=vhost-user-blk,{export},{address}");
                command.arg("--export").arg(export);
            }
            Front::Nbd => {
                let export = format!("type=nbd,{export},name={EXPORT}");
                command.arg("--nbd-server").arg(address);
                command.arg("--export").arg(export);
            }
        }
        let child = match start(&mut command, "qemu-storage-daemon") {
            Ok(child) => child,
            Err(error) => {
                return Err(error.context(
                    "the peer is missing: `apt-get install qemu-system-common` or `qemu-utils` \
                     brings qemu-storage-daemon",
                ));
            }
        };
        let mut server = Self {
            child,
            front,
            socket,
            control: None,
        };
        let end = Instant::now() + START;
        // It has no other way of saying that it is ready.
        while UnixStream::connect(&server.socket).is_err() {
            if let Some(status) = server.child.try_wait()? {
                bail!("qemu-storage-daemon ended at once: {status}");
            }
            if Instant::now() > end {
                bail!("qemu-storage-daemon does not listen after {START:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Connects as the guest would.
    pub(crate) fn connect(&self, load: Load) -> Result<Box<dyn Client>> {
        Ok(match self.front {
            Front::VhostUser => Box::new(VhostUserClient::connect(&self.socket, load)?),
            Front::Nbd => Box::new(NbdClient::connect(&self.socket, EXPORT, load)?),
        })
    }

    /// Processor time that it and its threads have used.
    pub(crate) fn cpu_time(&self) -> Result<Duration> {
        cpu_time(self.child.id())
    }

    /// Connects to the control socket of a diskd.
    pub(crate) fn control(&self) -> Result<Control> {
        let path = self.control.as_ref().context("only diskd can be asked")?;
        Ok(Control(UnixStream::connect(path)?))
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time that a process and its threads have used.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let pid = libc::pid_t::try_from(pid)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: a zeroed timespec is one; both calls write to locals.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        let failed = libc::clock_getcpuclockid(pid, &raw mut clock) != 0
            || libc::clock_gettime(clock, &raw mut time) != 0;
        if failed {
            bail!("the server has ended");
        }
        time
    };
    Ok(Duration::new(
        u64::try_from(time.tv_sec)?,
        u32::try_from(time.tv_nsec)?,
    ))
}

/// `pollux-diskd` as it was built beside this program.
pub(crate) fn diskd_program() -> Result<PathBuf> {
    let program = std::env::current_exe()?.with_file_name("pollux-diskd");
    if !program.exists() {
        bail!(
            "{} does not exist; `cargo build --release -p pollux-diskd` makes it",
            program.display()
        );
    }
    Ok(program)
}

fn start(command: &mut Command, name: &str) -> Result<Child> {
    // SAFETY: the closure only makes a system call.
    unsafe {
        // No server outlives this program, however that ends.
        command.pre_exec(|| check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL)).map(drop));
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {name}"))
}

/// Has `command` inherit `sockets` from descriptor 3 on.
fn inherit(command: &mut Command, sockets: &[OwnedFd]) {
    let numbers: Vec<RawFd> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let above = FIRST + RawFd::try_from(numbers.len()).unwrap_or(0);
    // SAFETY: the closure only makes system calls, on descriptors that are open in the child. They are
    // first moved out of the way of the numbers that are wanted.
    unsafe {
        command.pre_exec(move || {
            let mut moved = [0; 8];
            for (slot, number) in moved.iter_mut().zip(&numbers) {
                *slot = check(libc::fcntl(*number, libc::F_DUPFD_CLOEXEC, above))?;
            }
            for (wanted, number) in (FIRST..above).zip(moved) {
                check(libc::dup2(number, wanted))?;
            }
            Ok(())
        });
    }
}

fn check(result: libc::c_int) -> std::io::Result<libc::c_int> {
    if result < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
