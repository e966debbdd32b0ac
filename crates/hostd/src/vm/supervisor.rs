//! The supervisor of one VM, `pollux-vmd`, seen from polluxd.
//!
//! ```text
//!   RUN/SHORT-ID/
//!     vmd.json diskd.json       how they were started, and what they were told since
//!     vmd.sock                  vmd's control socket
//!     diskd.sock disk0.sock ... diskd's, held by vmd
//!     own/                      belongs to the VM's processes, who make what is in it
//!       qmp.sock console.sock   QEMU's
//!       disk0.state ...         diskd's state that survives kill -9
//!     guest.json                what only polluxd knows of the QEMU that runs
//! ```
//!
//! vmd outlives polluxd. What it was started with stays in the run folder, so that a later
//! polluxd can tell whether it is what is wanted now.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use diskd::config::{
    CONTROL_SOCKET, Config as DiskdConfig, DiskConfig, Front, disk_socket, nbd_socket,
};
use durable::{Lock, LockError};
use jiff::Timestamp;
use model::{Bus, Bytes, Code, Problem};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};
use vmd::config::{Config as VmdConfig, Socket};
use vmd::control::{DISKD_LIMIT, Lease, MAX_LINE, Program, Reply, Request, Status};

use super::access::{Access, own};
use super::ended::log_tail;
use super::folder::VmFolder;
use super::handle::View;
use super::reload::Configs;
use super::tracking;
use crate::host::Host;
use crate::lines::{LineError, Lines};
use crate::programs::Programs;

/// How long vmd may take for what it does at once.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);
/// How long vmd may take to be reachable after it was started, and to end everything: longer
/// than it waits itself for diskd, so that it is vmd that gives up first and tells.
pub(super) const SLOW: Duration = Duration::from_secs(DISKD_LIMIT.as_secs() + 15);
/// Nothing tells when another process begins to listen, so it is asked this often.
pub(super) const POLL: Duration = Duration::from_millis(10);

/// What only polluxd knows of the QEMU that runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GuestRecord {
    /// Its process id.
    pub(crate) pid: u32,
    /// When it was started.
    pub(crate) started: Timestamp,
    /// What runs its instructions.
    pub(crate) accelerator: api::Accelerator,
}

/// The supervisor of one VM.
#[derive(Debug, Clone)]
pub(crate) struct Supervisor {
    thing: String,
    run: PathBuf,
    /// Held while it is started or ended, so that it is done once at a time.
    changing: Arc<Mutex<()>>,
}

impl Supervisor {
    /// The supervisor whose files lie in the run folder `run`.
    pub(crate) fn new(thing: String, run: PathBuf) -> Self {
        Self {
            thing,
            run,
            changing: Arc::default(),
        }
    }

    /// The run folder.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// diskd's control socket.
    pub(crate) fn diskd_socket(&self) -> PathBuf {
        self.run.join("diskd.sock")
    }

    /// For messages: ``VM `web` ``.
    pub(super) fn thing(&self) -> &str {
        &self.thing
    }

    /// Held while what runs is changed.
    pub(super) fn changing(&self) -> &Mutex<()> {
        &self.changing
    }

    /// diskd's NBD socket of the disk in `slot`.
    pub(crate) fn nbd_socket(&self, slot: u8) -> PathBuf {
        self.run.join(format!("nbd{slot}.sock"))
    }

    pub(super) fn control(&self) -> PathBuf {
        self.run.join("vmd.sock")
    }

    /// The sockets and files of QEMU.
    pub(crate) fn qemu_paths(&self, folder: &VmFolder) -> qemu::RunPaths {
        let own = own(&self.run);
        // In the run folder itself QEMU cannot make a socket.
        qemu::RunPaths {
            qmp: own.join("qmp.sock"),
            console: own.join("console.sock"),
            ..qemu::RunPaths::new(&self.run, &folder.path)
        }
    }

    /// How it is; none when none runs.
    pub(crate) async fn status(&self) -> Result<Option<Status>, Problem> {
        let lines = match Lines::connect(&self.control(), MAX_LINE).await {
            Ok(lines) => lines,
            Err(LineError::Io { source, .. }) if nobody(&source) => return Ok(None),
            Err(error) => return Err(self.failed(&error)),
        };
        match lines.ask_within(AT_ONCE, &Request::Status).await {
            Ok(reply) => self.status_of(reply).map(Some),
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// As [`status`](Self::status), but none only when none can be running: nobody listens, and
    /// nobody holds the lock that a vmd holds to its end. A guest dies with its vmd.
    pub(crate) async fn look(&self) -> Result<Option<Status>, Problem> {
        // A vmd that is being started would be refused the lock.
        let _alone = self.changing.lock().await;
        self.look_alone().await
    }

    async fn look_alone(&self) -> Result<Option<Status>, Problem> {
        if let Some(status) = self.status().await? {
            return Ok(Some(status));
        }
        let mut lock = self.control().into_os_string();
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        if !lock.exists() {
            return Ok(None);
        }
        match Lock::exclusive(&lock) {
            Ok(_free) => Ok(None),
            Err(LockError::Held { .. }) => Err(Problem::new(
                Code::Failed,
                &self.thing,
                "its supervisor lives and does not listen",
                "",
            )),
            Err(error) => Err(Problem::failed(&self.thing, &error)),
        }
    }

    /// Makes sure that no guest runs, without ending one.
    pub(crate) async fn no_guest(&self) -> Result<(), Problem> {
        match self.look().await?.and_then(|status| status.guest) {
            None => Ok(()),
            Some(pid) => {
                let reason = format!("its QEMU (process {pid}) could not be ended");
                Err(Problem::new(Code::Failed, &self.thing, reason, ""))
            }
        }
    }

    /// [`ensure`](Self::ensure), of the VM that is seen as `view` on `host`.
    ///
    /// # Errors
    /// As there.
    pub(super) async fn serve(
        &self,
        host: &Host,
        view: &View,
        machine: &VmFolder,
    ) -> Result<Status, Problem> {
        let term = view.standing.lineage.current().number;
        let (budget, kvm) = (host.settings.copy_budget, host.uses_kvm());
        self.ensure(&host.programs, machine, term, budget, kvm)
            .await
    }

    /// Makes sure that vmd and diskd run as `folder` says, in the term `term`. The guest must
    /// be off if they do not.
    pub(crate) async fn ensure(
        &self,
        programs: &Programs,
        folder: &VmFolder,
        term: u64,
        copy_budget: Bytes,
        kvm: bool,
    ) -> Result<Status, Problem> {
        let _alone = self.changing.lock().await;
        if folder.waits_for_its_place() {
            let reason = "went to another point, whose disks have not their place yet";
            let name = &folder.spec.name;
            let way_out = format!("`pollux vm start {name}` sees to it");
            return Err(Problem::new(Code::Failed, &self.thing, reason, way_out));
        }
        durable::create_folder(&self.run).map_err(|error| Problem::failed(&self.thing, &error))?;
        let running = self.status().await?;
        if let Some(status) = running.as_ref().filter(|status| status.guest.is_some()) {
            return Ok(status.clone());
        }
        let access = Access::settle(folder, &self.run, programs, kvm)?;
        let mut wanted = self.wanted(programs, folder, term, copy_budget, access);
        let found = self.written();
        if let Some(status) = running {
            let same = found.as_ref().is_some_and(|found| {
                // Only what they say counts.
                wanted.diskd.generation = found.diskd.generation;
                let mut vmd = wanted.vmd.clone();
                vmd.diskd.args.clone_from(&found.vmd.diskd.args);
                wanted.diskd == found.diskd && vmd == found.vmd
            });
            if same && !self.has_to_reopen().await {
                return Ok(status);
            }
            // Ended in order after its guest, a diskd lets the next one reopen the disks.
            self.end().await?;
        }
        wanted.diskd.generation = found.map_or(1, |found| found.diskd.generation + 1);
        self.write(&wanted)?;
        self.spawn(programs, folder).await
    }

    /// Whether the diskd that runs takes no more writes on some disk because a flush failed, or has a
    /// file open that is not the disk's any more.
    async fn has_to_reopen(&self) -> bool {
        let status = self.diskd_status().await;
        let mut disks = status.iter().flat_map(|status| &status.disks);
        disks.any(|disk| disk.flush_failed || disk.replaced)
    }

    async fn spawn(&self, programs: &Programs, folder: &VmFolder) -> Result<Status, Problem> {
        // diskd would wait for another's lock: its earlier self may be about to let it go.
        folder.check_free()?;
        let log = folder.path.join("vmd.log");
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&log)
            .map_err(|error| Problem::failed(log.display().to_string(), &error))?;
        let start = fs::metadata(&log).map_or(0, |meta| meta.len());
        let errors = output
            .try_clone()
            .map_err(|error| Problem::failed(log.display().to_string(), &error))?;
        let mut child = Command::new(&programs.vmd)
            .arg("--config")
            .arg(self.run.join("vmd.json"))
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .current_dir("/")
            .kill_on_drop(false)
            .spawn()
            .map_err(|error| Problem::failed(programs.vmd.display().to_string(), &error))?;
        let deadline = Instant::now() + SLOW;
        loop {
            if let Some(status) = self.status().await? {
                // Reaped whenever it ends, for as long as this polluxd lives.
                tokio::spawn(async move { child.wait().await });
                return Ok(status);
            }
            match timeout(POLL, child.wait()).await {
                Ok(_ended) => return Err(self.ended_early(&log, start, folder)),
                Err(_elapsed) if Instant::now() > deadline => {
                    // Fails only when it ended by itself.
                    let _ = child.kill().await;
                    return Err(self.ended_early(&log, start, folder));
                }
                Err(_elapsed) => {}
            }
        }
    }

    fn ended_early(&self, log: &Path, start: u64, folder: &VmFolder) -> Problem {
        let reason = match log_tail(log, start) {
            Some(text) => format!("its supervisor could not start: {text}"),
            None => "its supervisor could not start".to_owned(),
        };
        let way_out = format!("More may be in {}", folder.path.join("diskd.log").display());
        Problem::new(Code::Failed, &self.thing, reason, way_out)
    }

    /// Starts QEMU.
    pub(crate) async fn launch(&self, program: Program) -> Result<Status, Problem> {
        self.ask(&Request::Launch(program), AT_ONCE).await
    }

    /// Waits until the QEMU of process `pid` is gone, however long that takes.
    pub(crate) async fn wait_guest(&self, pid: u32) -> Result<Status, Problem> {
        let mut lines = Lines::connect(&self.control(), MAX_LINE)
            .await
            .map_err(|error| self.failed(&error))?;
        let reply = lines
            .ask(&Request::WaitGuest { pid })
            .await
            .map_err(|error| self.failed(&error))?;
        self.status_of(reply)
    }

    /// From now on the guest, or the next one, may run so long.
    pub(crate) async fn lease(&self, lease: Lease) -> Result<(), Problem> {
        self.ask(&Request::Lease { lease }, AT_ONCE).await.map(drop)
    }

    /// Ends QEMU; answers when it was reaped.
    pub(crate) async fn kill_guest(&self) -> Result<Status, Problem> {
        self.ask(&Request::KillGuest, SLOW).await
    }

    /// Ends everything; diskd makes its disks durable first. No error if nothing runs.
    pub(crate) async fn shut_down(&self) -> Result<(), Problem> {
        let _alone = self.changing.lock().await;
        self.end().await
    }

    async fn end(&self) -> Result<(), Problem> {
        match Lines::connect(&self.control(), MAX_LINE).await {
            Ok(lines) => match lines.ask_within(SLOW, &Request::Shutdown).await {
                Ok(Reply::Refused { problem }) => return Err(problem),
                Ok(_) | Err(LineError::Closed(_)) => {}
                Err(error) => return Err(self.failed(&error)),
            },
            Err(LineError::Io { source, .. }) if nobody(&source) => {}
            Err(error) => return Err(self.failed(&error)),
        }
        // The answer comes before the exit; the next vmd needs the lock and the sockets.
        let deadline = Instant::now() + AT_ONCE;
        loop {
            let late = Instant::now() > deadline;
            match self.look_alone().await {
                Ok(None) => return Ok(()),
                Err(problem) if late => return Err(problem),
                Ok(Some(_)) if late => {
                    let reason = "its supervisor does not end";
                    return Err(Problem::new(Code::Failed, &self.thing, reason, ""));
                }
                _ => sleep(POLL).await,
            }
        }
    }

    /// Records what only polluxd knows of the QEMU that runs.
    pub(crate) fn record(&self, guest: &GuestRecord) -> Result<(), Problem> {
        let text = serde_json::to_vec(guest).expect("a record has a JSON form");
        durable::replace(&self.run.join("guest.json"), &text)
            .map_err(|error| Problem::failed(&self.thing, &error))
    }

    /// What was recorded of the QEMU of process `pid`.
    pub(crate) fn recorded(&self, pid: u32) -> Option<GuestRecord> {
        let text = fs::read(self.run.join("guest.json")).ok()?;
        let record: GuestRecord = serde_json::from_slice(&text).ok()?;
        (record.pid == pid).then_some(record)
    }

    async fn ask(&self, request: &Request, limit: Duration) -> Result<Status, Problem> {
        let lines = Lines::connect(&self.control(), MAX_LINE)
            .await
            .map_err(|error| self.failed(&error))?;
        let reply = lines
            .ask_within(limit, request)
            .await
            .map_err(|error| self.failed(&error))?;
        self.status_of(reply)
    }

    fn status_of(&self, reply: Reply) -> Result<Status, Problem> {
        match reply {
            Reply::Status(status) => Ok(status),
            Reply::Refused { problem } => Err(problem),
            Reply::Done => Err(Problem::new(
                Code::Failed,
                &self.thing,
                "its supervisor gave an answer to another question",
                "",
            )),
        }
    }

    fn failed(&self, error: &LineError) -> Problem {
        Problem::failed(&self.thing, error)
    }

    /// What vmd and diskd should be told.
    pub(super) fn wanted(
        &self,
        programs: &Programs,
        folder: &VmFolder,
        term: u64,
        copy_budget: Bytes,
        access: Access,
    ) -> Configs {
        Configs {
            diskd: self.diskd_config(folder, term, copy_budget),
            vmd: self.vmd_config(programs, folder, access),
        }
    }

    fn diskd_config(&self, folder: &VmFolder, term: u64, copy_budget: Bytes) -> DiskdConfig {
        let disks = folder.spec.disks.iter().map(|disk| DiskConfig {
            id: disk.id,
            slot: disk.slot,
            front: match disk.bus {
                Bus::Virtio if !folder.is_read_only() => Front::VhostUser,
                Bus::Virtio | Bus::Scsi | Bus::Ide => Front::Nbd,
            },
            size: disk.size,
            stack: folder.stack(disk),
            state: own(&self.run).join(format!("disk{}.state", disk.slot)),
            tracking: tracking::folder(folder),
        });
        DiskdConfig {
            vm: folder.spec.id,
            term,
            generation: 0,
            disks: disks.collect(),
            copy_budget,
        }
    }

    fn vmd_config(&self, programs: &Programs, folder: &VmFolder, access: Access) -> VmdConfig {
        let paths = self.qemu_paths(folder);
        let mut sockets = vec![Socket {
            name: CONTROL_SOCKET.to_owned(),
            path: self.diskd_socket(),
            user: None,
        }];
        for disk in &folder.spec.disks {
            for (name, path) in [
                (disk_socket(disk.slot), paths.vhost_user(disk.slot)),
                (nbd_socket(disk.slot), paths.nbd(disk.slot)),
            ] {
                if folder.is_read_only() && name != nbd_socket(disk.slot) {
                    continue;
                }
                let user = access.user;
                sockets.push(Socket { name, path, user });
            }
        }
        VmdConfig {
            vm: folder.spec.id,
            control: self.control(),
            diskd: Program {
                program: programs.diskd.clone(),
                args: vec![self.run.join("diskd.json").display().to_string()],
                log: folder.path.join("diskd.log"),
                rights: access.diskd(folder, &self.run),
            },
            sockets,
            lacking: access.notice.into_iter().collect(),
        }
    }
}

/// Whether an error of connect(2) means that nobody listens.
fn nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
