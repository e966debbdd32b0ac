//! Recovery points that are open: a diskd of their own serves their disks read-only over NBD.
//!
//! ```text
//!   open:   point pinned, folder made --> vmd and diskd --> all disks are served
//!   close:  vmd and diskd ended --> run folder gone --> folder gone --> point unpinned
//!
//!   replicas/UUID/open-ID/        vm.toml origin.toml   a person closes it
//!   replicas/UUID/export-ID/                            gone with the export, or with polluxd
//! ```
//!
//! Each step is durable before the next, so that a crash leaves what [`Openings::adopt`] goes on
//! with or removes: a point is pinned for as long as there is a folder. While it is open, points
//! are taken in, merged and thinned as ever; a point that is pinned stays.
//!
//! vmd starts a diskd that died again, and polluxd a vmd: on the same sockets, until it is closed.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use journal::{DiskExtent, Journal, PointInfo};
use model::{Bus, Code, DiskId, DiskSpec, PointId, Problem, VmId, VmSpec, free_slot};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::OwnedMutexGuard;
use tokio::time::{Instant, sleep};

use super::branch::Branch;
use super::change::find_disk;
use super::create::remove;
use super::ended::log_tail;
use super::folder::{Made, VmFolder};
use super::handle::Home;
use super::supervisor::Supervisor;
use super::takeover::{Above, make};
use crate::host::Host;
use crate::twin::{LOST, Store};

/// Most points of a twin that are open or exported at once. Each has two processes.
const MOST: usize = 8;
/// How long the disks of a point may take to be served.
const SERVED: Duration = Duration::from_secs(60);
/// Nothing tells when another process begins to listen, so it is asked this often.
const POLL: Duration = Duration::from_millis(10);
/// Between attempts to start what does not start.
const PAUSE: Duration = Duration::from_secs(5);
/// It writes nothing, so that no term is too late for it.
const TERM: u64 = 1;
/// Begin the names of folders, and of the pins that go with them.
const OPEN: &str = "open-";
const EXPORT: &str = "export-";

/// A point that is open.
#[derive(Debug, Clone)]
pub(crate) struct Opened {
    /// Its disks are those of the point that are served.
    pub(crate) folder: VmFolder,
    pub(crate) point: PointId,
    pub(crate) made: Made,
    supervisor: Supervisor,
}

impl Opened {
    fn new(host: &Host, folder: VmFolder) -> Option<Self> {
        let origin = folder.origin.clone()?;
        let thing = format!("point {} of {}", origin.point, folder.thing());
        let supervisor = Supervisor::new(thing, host.layout.run_of(folder.spec.id));
        Some(Self {
            point: origin.point,
            made: origin.made,
            supervisor,
            folder,
        })
    }

    /// The NBD socket of a disk.
    pub(crate) fn socket(&self, disk: &DiskSpec) -> PathBuf {
        self.supervisor.nbd_socket(disk.slot)
    }

    /// The name of its folder and of its pin.
    fn name(&self) -> String {
        let name = self.folder.path.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    async fn start(&self, host: &Host) -> Result<(), Problem> {
        let budget = host.settings.copy_budget;
        let (programs, folder) = (&host.programs, &self.folder);
        let started = self
            .supervisor
            .ensure(programs, folder, TERM, budget, false);
        started.await.map(drop)
    }

    /// Waits until its disks are served.
    async fn served(&self) -> Result<(), Problem> {
        let deadline = Instant::now() + SERVED;
        loop {
            let status = self.supervisor.status().await?;
            let gave_up = status.as_ref().is_none_or(|now| now.diskd_restarts > 0);
            if status.is_some_and(|now| now.ready) {
                return Ok(());
            }
            if gave_up || Instant::now() > deadline {
                let said = log_tail(&self.folder.path.join("diskd.log"), 0);
                let said = said.unwrap_or_else(|| "what serves it said nothing".to_owned());
                let reason = format!("cannot be opened: {said}");
                let name = &self.folder.spec.name;
                let way_out = match self.folder.path.parent().is_some_and(Branch::is_in) {
                    // They are no part of what is verified.
                    true => {
                        format!("`pollux failover lost-writes {name}` says where its disks lie")
                    }
                    false => format!("`pollux replica verify {name}` says what is damaged"),
                };
                return Err(Problem::new(
                    Code::Failed,
                    self.supervisor.thing(),
                    reason,
                    way_out,
                ));
            }
            sleep(POLL).await;
        }
    }

    /// Returns when its vmd is gone, or none is there.
    async fn gone(&self) {
        let Ok(mut vmd) = UnixStream::connect(self.supervisor.control()).await else {
            return;
        };
        // It says nothing unless it is asked: whatever comes is the end.
        let _ = vmd.read(&mut [0]).await;
    }

    /// Ends what serves it and removes all that is left; its point is unpinned.
    async fn end(&self, store: &Store) -> Result<(), Problem> {
        self.supervisor.shut_down().await?;
        let (store, run) = (store.clone(), self.supervisor.run().to_owned());
        let (path, point, name) = (self.folder.path.clone(), self.point, self.name());
        let thing = self.supervisor.thing().to_owned();
        let removed = tokio::task::spawn_blocking(move || {
            let removed = gone_already(std::fs::remove_dir_all(&run))
                .and_then(|()| gone_already(remove(&path)));
            removed.map_err(|error| Problem::failed(&thing, &error))?;
            store.unpin(point, &name)
        });
        let failed = |error| Problem::failed(self.supervisor.thing(), &error);
        removed.await.map_err(failed)?
    }
}

fn gone_already(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// What is to be opened.
pub(crate) struct Wanted<'a> {
    pub(crate) point: PointId,
    /// A disk as a person names it; all of the point's if none.
    pub(crate) disk: Option<&'a str>,
    pub(crate) made: Made,
}

/// The points of one twin that are open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Openings {
    all: Arc<Mutex<Vec<Opened>>>,
    /// Held while one is opened, started again or closed, so that nothing is started that was
    /// closed meanwhile.
    changing: Arc<tokio::sync::Mutex<()>>,
}

impl Openings {
    fn lock(&self) -> MutexGuard<'_, Vec<Opened>> {
        // Each change is one call on the list: a panic elsewhere leaves it whole.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that a person opened.
    pub(crate) fn list(&self) -> Vec<Opened> {
        let all = self.lock();
        let opened = all.iter().filter(|one| one.made == Made::Open);
        opened.cloned().collect()
    }

    /// Opens a point of the twin `home`; answers when all disks are served.
    pub(crate) async fn open(
        &self,
        host: &Arc<Host>,
        store: &Store,
        home: &Home,
        wanted: Wanted<'_>,
    ) -> Result<Opened, Problem> {
        let _alone = self.changing.lock().await;
        self.check_room(home, &wanted)?;
        let spec = specification(&home.spec, &info(store, home, wanted.point)?, wanted.disk)?;
        let id = spec.id.0.simple().to_string();
        let kind = if wanted.made == Made::Open {
            OPEN
        } else {
            EXPORT
        };
        let name = format!("{kind}{}", &id[..12]);
        let folder = tokio::task::block_in_place(|| {
            let above = Above {
                name: &name,
                made: wanted.made,
                spec,
                twin: home.spec.id,
                point: wanted.point,
                checkpoint: None,
                term: None,
            };
            make(&home.path, store, above)
        })?;
        let opened = Opened::new(host, folder).expect("it was made with an origin");
        let served = match opened.start(host).await {
            Ok(()) => opened.served().await,
            failed => failed,
        };
        if let Err(problem) = served {
            if let Err(error) = opened.end(store).await {
                tracing::warn!(problem = %error, "left behind");
            }
            return Err(problem);
        }
        tracing::info!(vm = %home.spec.id, point = %opened.point, folder = name, "opened");
        self.watch(host, opened.clone());
        Ok(opened)
    }

    fn check_room(&self, home: &Home, wanted: &Wanted) -> Result<(), Problem> {
        let all = self.lock();
        let same = |one: &Opened| one.point == wanted.point && one.made == Made::Open;
        let name = home.spec.name.as_str();
        let thing = super::folder::thing(name);
        if wanted.made == Made::Open && all.iter().any(same) {
            let (list, point) = match Branch::is_in(&home.path) {
                true => ("failover lost-writes", LOST.to_owned()),
                false => ("point list", wanted.point.to_string()),
            };
            let way_out = format!(
                "`pollux {list} {name} -o json` shows its sockets; `pollux point close {name} {point}` \
                 closes it"
            );
            return Err(Problem::new(
                Code::Conflict,
                format!("point {} of {thing}", wanted.point),
                "is open already",
                way_out,
            ));
        }
        if all.len() >= MOST {
            return Err(Problem::new(
                Code::Conflict,
                thing,
                format!("has {MOST} points that are open or exported, as many as it can have"),
                format!("Close one first with `pollux point close {name} POINT`"),
            ));
        }
        Ok(())
    }

    /// Keeps it among those that are open, and starts its vmd again whenever that is gone.
    fn watch(&self, host: &Arc<Host>, opened: Opened) {
        let (all, host) = (self.clone(), Arc::clone(host));
        self.lock().push(opened.clone());
        tokio::spawn(async move {
            loop {
                opened.gone().await;
                let alone = all.changing.lock().await;
                if !all.has(opened.folder.spec.id) {
                    return;
                }
                let started = opened.start(&host).await;
                drop(alone);
                if let Err(problem) = started {
                    tracing::error!(%problem, "a point that is open is not served");
                    sleep(PAUSE).await;
                }
            }
        });
    }

    fn has(&self, id: VmId) -> bool {
        self.lock().iter().any(|one| one.folder.spec.id == id)
    }

    /// Closes a point. What fails leaves it open.
    pub(crate) async fn close(&self, store: &Store, opened: &Opened) -> Result<(), Problem> {
        let _alone = self.changing.lock().await;
        self.end(store, opened).await
    }

    async fn end(&self, store: &Store, opened: &Opened) -> Result<(), Problem> {
        let id = opened.folder.spec.id;
        if !self.has(id) {
            return Ok(());
        }
        opened.end(store).await?;
        self.lock().retain(|one| one.folder.spec.id != id);
        tracing::info!(point = %opened.point, folder = opened.name(), "closed");
        Ok(())
    }

    /// Closes all, before the twin is deleted. Nothing is opened until what this returns is
    /// dropped.
    pub(crate) async fn close_all(&self, store: &Store) -> Result<OwnedMutexGuard<()>, Problem> {
        let alone = Arc::clone(&self.changing).lock_owned().await;
        let all = self.lock().clone();
        for opened in all {
            self.end(store, &opened).await?;
        }
        Ok(alone)
    }

    /// When polluxd starts: goes on serving what a person opened, ends exports that nobody waits
    /// for any more, and unpins what a crash left pinned.
    pub(crate) async fn adopt(
        &self,
        host: &Arc<Host>,
        store: &Store,
        home: &Home,
    ) -> Result<(), Problem> {
        let _alone = self.changing.lock().await;
        let mut names = Vec::new();
        for path in crate::host::folders(&home.path)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !is_ours(&name) {
                continue;
            }
            // Its pin stays, whatever is wrong with it.
            names.push(name.into_owned());
            let opened = match VmFolder::read(&path) {
                Ok(folder) => Opened::new(host, folder),
                Err(problem) => {
                    tracing::error!(folder = %path.display(), %problem, "left out");
                    continue;
                }
            };
            match opened {
                Some(opened) if opened.made == Made::Open => self.watch(host, opened),
                Some(opened) => {
                    if let Err(problem) = opened.end(store).await {
                        tracing::error!(%problem, "an export that was cut short is left behind");
                    }
                }
                None => tracing::error!(folder = %path.display(), "left out: it has no origin"),
            }
        }
        let store = store.clone();
        tokio::task::block_in_place(move || {
            for point in store.points()? {
                let left = |pin: &&String| is_ours(pin) && !names.contains(pin);
                for pin in point.pins.iter().filter(left) {
                    store.unpin(point.id, pin)?;
                }
            }
            Ok(())
        })
    }
}

fn is_ours(name: &str) -> bool {
    name.starts_with(OPEN) || name.starts_with(EXPORT)
}

fn info(store: &Store, home: &Home, wanted: PointId) -> Result<PointInfo, Problem> {
    let info = |journal: &mut Journal| Ok(journal.point(wanted));
    let found = tokio::task::block_in_place(|| store.with(info))?;
    found.ok_or_else(|| {
        let twin = super::folder::thing(home.spec.name.as_str());
        let thing = format!("point {wanted} of {twin}");
        Problem::new(Code::NotFound, thing, "was merged away meanwhile", "")
    })
}

/// The disks as they are at a point, or the one of them that is wanted; under the numbers that
/// they have in the VM now, if they still belong to it.
fn specification(
    twin: &VmSpec,
    point: &PointInfo,
    wanted: Option<&str>,
) -> Result<VmSpec, Problem> {
    let known = |id: DiskId| twin.disks.iter().find(|disk| disk.id == id);
    let mut disks: Vec<DiskSpec> = Vec::new();
    // Those that were detached since take what numbers are left.
    let (now, gone): (Vec<&DiskExtent>, Vec<&DiskExtent>) = point
        .disks
        .iter()
        .filter(|extent| !extent.joining)
        .partition(|extent| known(extent.id).is_some());
    for extent in now.into_iter().chain(gone) {
        let mut disk = match known(extent.id) {
            Some(disk) => disk.clone(),
            None => {
                let slot = free_slot(&disks, Bus::Virtio).unwrap_or_default();
                let mut disk = DiskSpec::new(PathBuf::new(), extent.size, Bus::Virtio, slot);
                disk.id = extent.id;
                disk
            }
        };
        disk.size = extent.size;
        disk.overlays.clear();
        disks.push(disk);
    }
    let mut spec = VmSpec {
        disks,
        direct_boot: None,
        checkpoints: Vec::new(),
        ..twin.clone()
    };
    if let Some(wanted) = wanted {
        spec.disks = vec![find_disk(&spec, wanted)?.clone()];
    }
    for disk in &mut spec.disks {
        disk.file = format!("disk{}", disk.slot).into();
    }
    spec.id = VmId::random();
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use journal::{Consistency, Root};
    use model::{Bytes, Generation, Since, TermId};

    use super::*;

    fn disk(slot: u8, size: u64) -> DiskSpec {
        DiskSpec::new(
            format!("/images/{slot}.raw").into(),
            Bytes(size),
            Bus::Scsi,
            slot,
        )
    }

    fn twin(disks: Vec<DiskSpec>) -> VmSpec {
        let name = "web".parse().expect("a good name");
        VmSpec::new(name, Generation::Two, 1, Bytes(64 << 20), true, None, disks).expect("good")
    }

    fn point(disks: &[&DiskSpec]) -> PointInfo {
        let id = PointId {
            term: TermId::random(),
            sequence: 3,
        };
        PointInfo {
            id,
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
            since: Since::Point(id),
            root: Root([0; 32]),
            content: Bytes(0),
            file_len: Bytes(0),
            in_base: true,
            disks: disks
                .iter()
                .map(|disk| DiskExtent {
                    id: disk.id,
                    size: disk.size,
                    joining: false,
                })
                .collect(),
            pins: Vec::new(),
            locked: None,
        }
    }

    #[test]
    fn the_disks_are_those_of_the_point_under_the_numbers_of_now() {
        let (grown, detached, late) = (disk(2, 8 << 20), disk(0, 4 << 20), disk(0, 1 << 20));
        let at_point = point(&[&detached, &disk_of(&grown, 6 << 20)]);
        let now = twin(vec![late, grown.clone()]);
        let spec = specification(&now, &at_point, None).expect("all");
        let told: Vec<_> = spec
            .disks
            .iter()
            .map(|disk| (disk.id, disk.slot, disk.size.0, disk.file.clone()))
            .collect();
        assert_eq!(
            told,
            [
                (grown.id, 2, 6 << 20, "disk2".into()),
                (detached.id, 0, 4 << 20, "disk0".into())
            ]
        );
        assert_ne!(spec.id, now.id);
        let one = specification(&now, &at_point, Some("2.raw")).expect("by its file");
        assert_eq!(one.disks.len(), 1);
        assert_eq!(one.disks[0].id, grown.id);
        let absent = specification(&now, &at_point, Some("7")).expect_err("absent");
        assert_eq!(absent.code, Code::NotFound);
        // What is written down is read again.
        let text = spec.to_toml();
        assert_eq!(VmSpec::from_toml(&text).expect("read"), spec);
    }

    fn disk_of(disk: &DiskSpec, size: u64) -> DiskSpec {
        DiskSpec {
            size: Bytes(size),
            ..disk.clone()
        }
    }

    #[test]
    fn folders_and_pins_of_others_are_left_alone() {
        assert!(is_ours("open-0123456789ab") && is_ours("export-0123456789ab"));
        for other in ["test", "failover", "journal", "opened", "outbox"] {
            assert!(!is_ours(other), "{other}");
        }
    }
}
