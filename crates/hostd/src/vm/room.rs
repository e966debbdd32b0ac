//! Guests held still while a file system has no room for what they write.
//!
//! ```text
//!   diskd keeps a request that met ENOSPC ---.                            (virtio)
//!                                             no room --> guest held, record --> looks for room
//!   QEMU stops the guest by itself ----------'   ^                                   |
//!       (IDE, SCSI: werror=stop)                 '---- again, longer each time <-- goes on
//! ```
//!
//! The guest learns nothing: its requests wait. Room is a minimum that is free ([`wanted`]), so
//! that the guest does not stop again at once; where that is no help (a quota), the pauses grow.
//! The record in the run folder tells a polluxd that was started meanwhile that the pause was
//! ours: a guest that a person paused is left alone.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::{Bytes, Problem, VmState};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::folder::VmFolder;
use super::guest::Why;
use super::owner::{Happening, Owner};
use super::supervisor::Supervisor;

/// diskd is asked this often whether requests wait; nothing tells when a file system has room.
const LOOK: Duration = Duration::from_secs(1);
/// How long QEMU may take to hold the guest still, or to let it go on.
const LIMIT: Duration = Duration::from_secs(10);
/// The first pause after which room is looked for, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A guest that ran this long since it went on begins with the first pause again.
const CALM: Duration = Duration::from_secs(120);
const RECORD: &str = "room.json";

/// A guest that waits for room.
#[derive(Debug, Clone)]
pub(super) struct Waiting {
    /// The disks that have no room; all, when nobody can tell which.
    slots: Vec<u8>,
    pause: Duration,
}

/// When a guest went on, and after which pause.
#[derive(Debug, Clone, Copy)]
pub(super) struct WentOn {
    at: Instant,
    pause: Duration,
}

#[derive(Serialize, Deserialize)]
struct Record {
    /// The QEMU that was held.
    pid: u32,
    slots: Vec<u8>,
}

/// A file system that has no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lack {
    /// Where it is mounted.
    mount: PathBuf,
    slot: u8,
    free: Bytes,
    wanted: Bytes,
}

impl std::fmt::Display for Lack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "paused: no room for disk {} in the file system at {} ({} free). It goes on by itself \
             when {} are free there",
            self.slot,
            self.mount.display(),
            self.free,
            self.wanted
        )
    }
}

impl Owner {
    /// Requests of the guest wait for room, or QEMU held it because of that.
    pub(super) async fn no_room(&mut self, pid: u32, slots: Vec<u8>) {
        let Some(guest) = self.guest.as_ref().filter(|guest| guest.record.pid == pid) else {
            return;
        };
        let held = self.state() == VmState::Paused;
        if self.waiting.is_some() || (held && !self.held_for_room) {
            return;
        }
        let Some(qmp) = guest.qmp.clone() else { return };
        let pause = match self.went_on {
            Some(last) if last.at.elapsed() < CALM => (last.pause * 2).min(PAUSES.1),
            _ => PAUSES.0,
        };
        let waiting = Waiting { slots, pause };
        let record = Record {
            pid,
            slots: waiting.slots.clone(),
        };
        let text = serde_json::to_vec(&record).expect("a record has a JSON form");
        if let Err(error) = durable::replace(&self.record(), &text) {
            // Held all the same; a polluxd that is started meanwhile leaves it to a person.
            tracing::warn!(vm = %self.id, %error, "cannot record that the guest waits for room");
        }
        if !held && !matches!(timeout(LIMIT, qmp.stop()).await, Ok(Ok(()))) {
            tracing::error!(vm = %self.id, "cannot hold the guest, whose disk has no room");
            return;
        }
        self.wait_for_room(waiting);
    }

    /// The guest is held; looks for room from now on.
    pub(super) fn wait_for_room(&mut self, waiting: Waiting) {
        let Some(machine) = self.view().home.machine else {
            return;
        };
        let Some(pid) = self.guest.as_ref().map(|guest| guest.record.pid) else {
            return;
        };
        self.say_lack(&machine, &waiting.slots);
        tracing::warn!(vm = %self.id, status = ?self.view().trouble, "held: no room");
        let (slots, pause) = (waiting.slots.clone(), waiting.pause);
        self.waiting = Some(waiting);
        self.spawn(async move {
            sleep(pause).await;
            loop {
                let (machine, slots) = (machine.clone(), slots.clone());
                let lack = tokio::task::spawn_blocking(move || lack(&machine, &slots));
                if matches!(lack.await, Ok(None)) {
                    return Happening::Room { pid };
                }
                sleep(LOOK).await;
            }
        });
    }

    fn say_lack(&self, machine: &VmFolder, slots: &[u8]) {
        let lack = tokio::task::block_in_place(|| lack(machine, slots));
        let text = match lack {
            Some(lack) => lack.to_string(),
            None => "paused: no room for what it writes to its disks, perhaps by a quota. It goes \
                     on by itself"
                .to_owned(),
        };
        self.show(|view| view.trouble = Some(text));
    }

    /// There is room, or there may be.
    pub(super) async fn room(&mut self, pid: u32) {
        let Some(guest) = self.guest.as_ref().filter(|guest| guest.record.pid == pid) else {
            return;
        };
        if self.state() != VmState::Paused || self.view().standing.stood_down.is_some() {
            self.waiting = None;
            return;
        }
        let Some(waiting) = self.waiting.take() else {
            return;
        };
        let Some(qmp) = guest.qmp.clone() else { return };
        self.forget_room();
        if self.lease.held {
            return self.held_no_longer_but_for_lease();
        }
        self.went_on = Some(WentOn {
            at: Instant::now(),
            pause: waiting.pause,
        });
        match timeout(LIMIT, qmp.cont()).await {
            Ok(Ok(())) => tracing::info!(vm = %self.id, "there is room: the guest goes on"),
            Ok(Err(error)) => {
                let problem = Problem::failed(self.thing(), &error);
                tracing::error!(vm = %self.id, %problem, "there is room, but the guest stays held");
                self.show(|view| view.trouble = Some(problem.reason));
            }
            Err(_elapsed) => tracing::error!(vm = %self.id, "QEMU does not let the guest go on"),
        }
    }

    /// The guest runs, or is held for another reason.
    pub(super) fn forget_room(&mut self) {
        self.waiting = None;
        self.held_for_room = false;
        // Fails only when there is none.
        let _ = std::fs::remove_file(self.record());
    }

    fn record(&self) -> PathBuf {
        self.supervisor.run().join(RECORD)
    }
}

/// What was recorded of the guest of process `pid` that waits for room.
pub(super) fn recorded(supervisor: &Supervisor, pid: u32) -> Option<Why> {
    let text = std::fs::read(supervisor.run().join(RECORD)).ok()?;
    let record: Record = serde_json::from_slice(&text).ok()?;
    (record.pid == pid).then_some(Why::NoRoom(record.slots))
}

/// Tells when requests of the guest begin to wait for room, until the owner ends or the guest.
pub(super) async fn watch(supervisor: Supervisor, pid: u32, happen: mpsc::Sender<Happening>) {
    loop {
        sleep(LOOK).await;
        match supervisor.status().await {
            Ok(Some(status)) if status.guest == Some(pid) => {}
            // Perhaps only the connection broke.
            Err(_) => continue,
            Ok(_) => return,
        }
        let Some(status) = supervisor.diskd_status().await else {
            continue;
        };
        let configs = supervisor.written();
        let slot_of = |id| {
            let disks = &configs.as_ref()?.diskd.disks;
            disks
                .iter()
                .find(|disk| disk.id == id)
                .map(|disk| disk.slot)
        };
        let waiting = status.disks.iter().filter(|disk| disk.waiting_for_room > 0);
        let slots: Vec<u8> = waiting.filter_map(|disk| slot_of(disk.id)).collect();
        if !slots.is_empty() && happen.send(Happening::NoRoom { pid, slots }).await.is_err() {
            return;
        }
    }
}

/// What has to be free before a guest goes on: 1 %, but 4 MiB to 256 MiB.
fn wanted(total: u64) -> u64 {
    (total / 100).clamp(4 << 20, 256 << 20)
}

/// The file system with the least room of those that the disks in `slots` (of all, if there are
/// none) are written to; none when all have enough. Blocking.
pub(crate) fn lack(machine: &VmFolder, slots: &[u8]) -> Option<Lack> {
    let disks = machine.spec.disks.iter();
    let asked = disks.filter(|disk| slots.is_empty() || slots.contains(&disk.slot));
    let lacks = asked.filter_map(|disk| {
        let file = machine.top_file(disk);
        let (total, free) = space(&file).ok()?;
        let wanted = wanted(total);
        (free < wanted).then(|| Lack {
            mount: mount_of(&file),
            slot: disk.slot,
            free: Bytes(free),
            wanted: Bytes(wanted),
        })
    });
    lacks.min_by_key(|lack| lack.free)
}

/// Size and free space, in bytes, of the file system of `file`.
pub(crate) fn space(file: &Path) -> io::Result<(u64, u64)> {
    let space = rustix::fs::statvfs(file)?;
    let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
    Ok((bytes(space.f_blocks), bytes(space.f_bavail)))
}

/// Where the file system of `file` is mounted.
fn mount_of(file: &Path) -> PathBuf {
    let device = |path: &Path| path.metadata().ok().map(|meta| meta.dev());
    let own = device(file);
    let above = file.ancestors().take_while(|path| device(path) == own);
    above.last().unwrap_or(file).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_goes_on_only_when_a_hundredth_is_free_within_bounds() {
        assert_eq!(wanted(10 << 20), 4 << 20);
        assert_eq!(wanted(10 << 30), (10 << 30) / 100);
        assert_eq!(wanted(10 << 40), 256 << 20);
    }

    #[test]
    fn the_file_system_is_named_by_where_it_is_mounted() {
        assert_eq!(mount_of(Path::new("/proc/self/status")), Path::new("/proc"));
        let (total, free) = space(Path::new("/")).expect("the root has a size");
        assert!(free <= total);
    }

    #[test]
    fn what_is_told_names_the_disk_the_place_and_what_to_do() {
        let lack = Lack {
            mount: "/srv".into(),
            slot: 2,
            free: Bytes(0),
            wanted: Bytes(64 << 20),
        };
        let text = lack.to_string();
        for part in ["paused", "disk 2", "/srv", "64 MiB"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
