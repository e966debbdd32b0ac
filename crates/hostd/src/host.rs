//! One host: its folders, its identity, its VMs.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use model::{Bytes, Code, Problem, VmId, VmName};
use replica::client::PeerClient;
use replica::identity::Identity;
use replica::standing::{self, Role, Standing};
use replica::trust::Trust;
use tokio::sync::{OnceCell, mpsc};

use crate::certificates;
use crate::clock::BootClock;
use crate::endpoint::{Endpoint, Listening};
use crate::event::{Bounds, Events, hook};
use crate::flushes::Flushes;
use crate::former::{self, Leftover};
use crate::layout::Layout;
use crate::memory::{HostMemory, Ledger, room};
use crate::programs::Programs;
use crate::server::Server;
use crate::settings::Settings;
use crate::stamps::Stamps;
use crate::stores::{self, Place, Stores};
use crate::twin::Store;
use crate::vm::branch::Branch;
use crate::vm::folder::{VmFolder, thing};
use crate::vm::launch::Engine;
use crate::vm::{Home, Vm, another, takeover};
use crate::vm::{access, create};

/// Everything that belongs to this polluxd.
#[derive(Debug)]
pub struct Host {
    pub(crate) layout: Layout,
    pub(crate) settings: Settings,
    pub(crate) programs: Arc<Programs>,
    pub(crate) ledger: Ledger,
    pub(crate) identity: Arc<Identity>,
    pub(crate) trust: Arc<Trust>,
    /// Where peers reach this host, unless the server's settings name another address.
    pub(crate) replica_listen: SocketAddr,
    pub(crate) endpoint: Endpoint,
    /// Held while it is decided whether to listen, so that what was seen last decides.
    following: Mutex<()>,
    pub(crate) server: Server,
    pub(crate) events: Arc<Events>,
    pub(crate) flushes: Flushes,
    pub(crate) clock: BootClock,
    pub(crate) stores: Arc<Stores>,
    pub(crate) stamps: Stamps,
    engine: OnceCell<Arc<Engine>>,
    registry: Mutex<Registry>,
    /// Held while it is looked whether something fits into a replica store.
    pub(crate) admitting: Mutex<()>,
    clients: Mutex<BTreeMap<String, Arc<PeerClient>>>,
}

/// Nothing tells when a disk is mounted, so stores are looked for this often.
const LOOK_FOR_STORES: Duration = Duration::from_secs(5);
/// Fewer digits of an id than this name no VM: a slip of the finger should not.
const MIN_ID: usize = 4;

/// VMs by id, and names that are being given to VMs that are not there yet.
#[derive(Debug, Default)]
struct Registry {
    vms: BTreeMap<VmId, Vm>,
    reserved: Vec<VmName>,
    /// Twins that are being made.
    enrolling: Vec<VmId>,
    /// Device and number of files that are being made disks.
    claimed: Vec<(u64, u64)>,
    left_out: Vec<LeftOut>,
}

/// A folder of a VM that cannot be used as it is.
#[derive(Debug, Clone)]
struct LeftOut {
    /// Name of the folder: the VM's id.
    folder: String,
    problem: Problem,
}

/// A name that no other VM gets while this lives.
#[derive(Debug)]
pub(crate) struct NameReservation {
    host: Arc<Host>,
    name: VmName,
}

impl NameReservation {
    /// What is kept free.
    pub(crate) fn name(&self) -> &VmName {
        &self.name
    }
}

/// The id and the name of a twin that is being made, which nobody else gets while this lives.
#[derive(Debug)]
pub(crate) struct TwinReservation {
    host: Arc<Host>,
    id: VmId,
    _name: NameReservation,
}

impl Drop for TwinReservation {
    fn drop(&mut self) {
        self.host.lock().enrolling.retain(|id| *id != self.id);
    }
}

impl Drop for NameReservation {
    fn drop(&mut self) {
        self.host.lock().reserved.retain(|name| *name != self.name);
    }
}

/// A file that becomes a disk of one VM and of no other; until dropped.
pub(crate) struct FileClaim {
    host: Arc<Host>,
    file: Option<(u64, u64)>,
}

/// Removes what a polluxd that was killed left.
fn clear(left: &Path) -> Result<(), Problem> {
    create::remove(left).map_err(|error| Problem::failed(left.display().to_string(), &error))
}

impl Drop for FileClaim {
    fn drop(&mut self) {
        let file = self.file;
        self.host
            .lock()
            .claimed
            .retain(|other| Some(*other) != file);
    }
}

impl Host {
    /// Opens the state folder, which the caller has locked, and adopts what runs.
    ///
    /// # Errors
    /// A problem that names the file at fault.
    pub async fn open(
        layout: Layout,
        name: &str,
        replica_listen: SocketAddr,
    ) -> Result<Arc<Self>, Problem> {
        let settings = Settings::read(&layout.state)?;
        let server = Server::open(&layout.state)?;
        let programs = Arc::new(Programs::find()?);
        let state = layout.state.clone();
        let failed = |path: &Path, error: &(dyn std::error::Error + 'static)| {
            Problem::failed(path.display().to_string(), error)
        };
        for folder in [layout.vms(), layout.replicas()] {
            durable::create_folder(&folder).map_err(|error| failed(&folder, &error))?;
            access::let_pass(&folder).map_err(|error| failed(&folder, &error))?;
        }
        let stores = Arc::new(Stores::new(name));
        let stamps =
            Stamps::open(layout.stamps()).map_err(|error| failed(&layout.stamps(), &error))?;
        create::sweep(&layout.vms()).map_err(|error| failed(&layout.vms(), &error))?;
        stores::sweep(&layout.replicas(), &stores)
            .map_err(|error| failed(&layout.replicas(), &error))?;
        let identity = Identity::open(&state.join("identity"), name, Timestamp::now())
            .map_err(|error| failed(&state.join("identity"), &error))?;
        identity.reached_at(reached_at(
            name,
            server.get().listen.unwrap_or(replica_listen),
        ));
        let trust = Trust::open(&state.join("peers"))
            .map_err(|error| failed(&state.join("peers"), &error))?;
        let events = begin_events(&settings, &state)?;
        let host = Arc::new(Self {
            layout,
            events,
            settings,
            programs,
            ledger: Ledger::default(),
            identity: Arc::new(identity),
            trust: Arc::new(trust),
            replica_listen,
            endpoint: Endpoint::default(),
            following: Mutex::default(),
            server,
            flushes: Flushes::default(),
            clock: BootClock::of_this_boot()
                .map_err(|error| Problem::failed("the clock of this host", &error))?,
            stores,
            stamps,
            engine: OnceCell::new(),
            registry: Mutex::default(),
            admitting: Mutex::default(),
            clients: Mutex::default(),
        });
        host.load().await?;
        host.follow_endpoint();
        host.follow_stores();
        Ok(host)
    }

    /// Opens every VM. One that cannot be read is left out: the others are still wanted.
    async fn load(self: &Arc<Self>) -> Result<(), Problem> {
        for path in folders(&self.layout.vms())? {
            let name = path.file_name().unwrap_or_default();
            let twin = self.layout.replicas().join(name);
            match former::leftover(&path, &twin) {
                Leftover::None => {}
                Leftover::Vm => {
                    clear(&path)?;
                    continue;
                }
                Leftover::Twin => {
                    clear(&twin)?;
                }
                Leftover::Unknown => {
                    let reason = format!("is here twice: {} is its twin", twin.display());
                    let way_out = "Move the one away that is not wanted, and start polluxd again";
                    let thing = path.display().to_string();
                    let problem = Problem::new(Code::Conflict, thing, reason, way_out);
                    self.leave_out(&path, Err(problem));
                    continue;
                }
            }
            let given = former::finish_giving_back(&path);
            let opened = match given.and_then(|()| self.read_own(&path)) {
                Ok(folder) => self.open_vm(folder).await.map(drop),
                Err(problem) => Err(problem),
            };
            self.leave_out(&path, opened);
        }
        for path in folders(&self.layout.replicas())? {
            let opened = self.open_twin(&path).await;
            self.leave_out(&path, opened);
        }
        Ok(())
    }

    pub(crate) fn leave_out(&self, path: &Path, opened: Result<(), Problem>) {
        let Err(problem) = opened else { return };
        tracing::error!(folder = %path.display(), %problem, "left out");
        let folder = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        self.lock().left_out.push(LeftOut { folder, problem });
    }

    /// Reads the folder of a VM that was made here, and checks what an editor may have changed.
    fn read_own(&self, path: &Path) -> Result<VmFolder, Problem> {
        let folder = VmFolder::read(path)?;
        create::sweep_unnamed(&folder)
            .map_err(|error| Problem::failed(path.display().to_string(), &error))?;
        let refuse = |reason: String| {
            let file = path.join("vm.toml").display().to_string();
            let way_out = "Correct the file and start polluxd again";
            Err(Problem::new(Code::Invalid, file, reason, way_out))
        };
        if path
            .file_name()
            .is_none_or(|name| *name != *folder.spec.id.to_string())
        {
            return refuse(format!(
                "says the id {}, and its folder another",
                folder.spec.id
            ));
        }
        let name = &folder.spec.name;
        if let Some(other) = self
            .vms()
            .iter()
            .find(|vm| vm.view().home.spec.name == *name)
        {
            return refuse(format!("says the name `{name}`, which VM {} has", other.id));
        }
        Ok(folder)
    }

    /// What is wrong with folders of VMs that cannot be used.
    pub(crate) fn left_out(&self) -> Vec<Problem> {
        self.lock()
            .left_out
            .iter()
            .map(|one| one.problem.clone())
            .collect()
    }

    /// Opens a twin, what a failover made of it, and the copy that a test failover made.
    pub(crate) async fn open_twin(self: &Arc<Self>, path: &Path) -> Result<(), Problem> {
        let failed = |error| Problem::failed(path.display().to_string(), &error);
        create::sweep(path).map_err(failed)?;
        let received = VmFolder::read(path)?;
        let standing = Standing::load(&path.join(standing::FILE))
            .map_err(|error| Problem::failed(received.thing(), &error))?;
        let place = Place::of(path, received.spec.id, &self.stores)?;
        let branch = Branch::folder(&place);
        if branch.exists() {
            create::sweep(&branch).map_err(failed)?;
        }
        // Since its failover was completed and turned round it may be a primary like others.
        let received_only = standing
            .as_ref()
            .is_none_or(|standing| standing.role == Role::Replica);
        let machine = if !received_only {
            if let Some(standing) = &standing {
                another::settle(path, &self.layout.run_of(received.spec.id), standing)?;
            }
            let machine = VmFolder::read(&path.join(takeover::FAILOVER))?;
            former::finish_in_store(&place, &machine);
            Some(machine)
        } else {
            let flushes = self.flushes.clone();
            let store = Store::new(place.clone(), received.thing(), flushes);
            takeover::tidy(path, &store)?;
            None
        };
        let spec = machine
            .as_ref()
            .map_or(received.spec, |machine| machine.spec.clone());
        let home = Home {
            path: path.to_owned(),
            place,
            spec,
            machine,
        };
        let twin = self.open_home(home).await?;
        self.adopt_points(&twin).await;
        let mut tests = takeover::tests(path).map_err(failed)?;
        if branch.exists() {
            tests.extend(takeover::tests(&branch).map_err(failed)?);
        }
        for test in tests {
            self.open_vm(VmFolder::read(&test)?).await?;
        }
        Ok(())
    }

    /// Goes on with what a polluxd that ended had begun with the points of a twin; once, when they can
    /// be had.
    pub(crate) async fn adopt_points(self: &Arc<Self>, twin: &Vm) {
        let Some(store) = &twin.store else { return };
        let home = twin.view().home;
        let begun = tokio::task::block_in_place(|| store.adopt_once());
        if !begun {
            return;
        }
        self.adopt_in(twin.id, store, &home).await;
        match tokio::task::block_in_place(|| store.lost_before(&home.path)) {
            Ok(None) => {}
            Ok(Some(lost)) => self.adopt_in(twin.id, &lost.store, &lost.home).await,
            Err(problem) => {
                tracing::error!(vm = %twin.id, %problem, "what was never sent cannot be looked into");
            }
        }
    }

    async fn adopt_in(self: &Arc<Self>, vm: VmId, store: &Store, home: &Home) {
        if let Err(problem) = tokio::task::block_in_place(|| takeover::unpin(&home.path, store)) {
            tracing::error!(%vm, %problem, "a point may stay pinned");
        }
        if let Err(problem) = store.opened.adopt(self, store, home).await {
            tracing::error!(%vm, %problem, "points that were open may not be served");
        }
    }

    /// Looks for the stores that twins use, and goes on with what had to wait for one that is back.
    fn follow_stores(self: &Arc<Self>) {
        let host = Arc::clone(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_FOR_STORES).await;
                let (stores, replicas) = (Arc::clone(&host.stores), host.layout.replicas());
                let looked = tokio::task::spawn_blocking(move || {
                    stores
                        .look(&replicas)
                        .map_err(|error| Problem::failed(replicas.display().to_string(), &error))
                });
                // A panic was logged.
                if let Ok(Err(problem)) = looked.await {
                    tracing::error!(%problem, "stores cannot be looked for");
                }
                for vm in host.vms() {
                    host.adopt_points(&vm).await;
                }
            }
        });
    }

    /// Starts the owner of a VM whose folder is its home.
    pub(crate) async fn open_vm(self: &Arc<Self>, folder: VmFolder) -> Result<Vm, Problem> {
        let home = Home {
            path: folder.path.clone(),
            place: Place::beside(&folder.path),
            spec: folder.spec.clone(),
            machine: Some(folder),
        };
        self.open_home(home).await
    }

    /// Starts the owner of a VM or a twin.
    pub(crate) async fn open_home(self: &Arc<Self>, home: Home) -> Result<Vm, Problem> {
        let vm = Vm::open(Arc::clone(self), home).await?;
        self.lock().vms.insert(vm.id, vm.clone());
        self.follow_partner(&vm);
        Ok(vm)
    }

    /// Lets the endpoint follow when a VM gets a partner or loses it.
    fn follow_partner(self: &Arc<Self>, vm: &Vm) {
        let (host, mut view) = (Arc::clone(self), vm.watch());
        tokio::spawn(async move {
            let mut had = None;
            loop {
                let has = view.borrow_and_update().relation.is_some();
                if had.replace(has) != Some(has) {
                    host.follow_endpoint();
                }
                // An error means that it was deleted.
                if view.changed().await.is_err() {
                    break;
                }
            }
            host.follow_endpoint();
        });
    }

    /// Listens for peers, if there is a reason to.
    pub(crate) fn follow_endpoint(&self) {
        let has_partner = |vm: &Vm| vm.view().relation.is_some();
        let _alone = self
            .following
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let kept = self.server.get();
        let wanted = kept.rules.enabled || self.vms().iter().any(has_partner);
        let address = kept.listen.unwrap_or(self.replica_listen);
        self.endpoint.want(wanted.then_some(address));
    }

    /// The name of this host.
    #[must_use]
    pub fn name(&self) -> &str {
        self.identity.name()
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        // Each change is one call on a collection: a panic elsewhere leaves it whole.
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All VMs, by name.
    pub(crate) fn vms(&self) -> Vec<Vm> {
        let mut vms: Vec<Vm> = self.lock().vms.values().cloned().collect();
        vms.sort_by_cached_key(|vm| vm.view().home.spec.name);
        vms
    }

    /// What twins [owe](journal::Journal::owed) file system number `device`, but the one of `vm`.
    pub(crate) fn owed_beside(&self, vm: VmId, device: u64) -> Bytes {
        let registry = self.lock();
        let others = registry.vms.values().filter(|other| other.id != vm);
        let owed = others
            .filter_map(|other| other.store.as_ref())
            .map(|store| store.owes(device).0);
        Bytes(owed.fold(0, u64::saturating_add))
    }

    /// The VM of that id.
    pub(crate) fn vm(&self, id: VmId) -> Option<Vm> {
        self.lock().vms.get(&id).cloned()
    }

    /// The VM that a person means: by name, by id, or by the beginning of its id.
    pub(crate) fn find(&self, reference: &str) -> Result<Vm, Problem> {
        let vms = self.vms();
        if let Some(vm) = vms
            .iter()
            .find(|vm| vm.view().home.spec.name.as_str() == reference)
        {
            return Ok(vm.clone());
        }
        let wanted = reference.to_ascii_lowercase();
        let begins = |id: &str| {
            wanted.len() >= MIN_ID
                && (id.starts_with(&wanted) || id.replace('-', "").starts_with(&wanted))
        };
        let mut matching = vms.iter().filter(|vm| begins(&vm.id.to_string()));
        match (matching.next(), matching.next()) {
            (Some(vm), None) => Ok(vm.clone()),
            (Some(_), Some(_)) => Err(Problem::new(
                Code::Invalid,
                thing(reference),
                "is the beginning of more than one VM's id",
                "Give more of the id, or the name",
            )),
            (None, _) => {
                let left_out = self.lock().left_out.clone();
                match left_out.iter().find(|one| begins(&one.folder)) {
                    Some(one) => Err(one.problem.clone()),
                    None if left_out.is_empty() => Err(Problem::new(
                        Code::NotFound,
                        thing(reference),
                        "does not exist on this host",
                        "`pollux vm list` shows the VMs of this host",
                    )),
                    None => Err(Problem::new(
                        Code::NotFound,
                        thing(reference),
                        "is not among the VMs of this host that can be used",
                        "`pollux host status` tells of those that cannot",
                    )),
                }
            }
        }
    }

    /// Keeps a name free for a VM that is being made.
    pub(crate) fn reserve(self: &Arc<Self>, name: &VmName) -> Result<NameReservation, Problem> {
        let mut registry = self.lock();
        let taken = registry.reserved.contains(name)
            || registry
                .vms
                .values()
                .any(|vm| vm.view().home.spec.name == *name);
        if taken {
            return Err(Problem::new(
                Code::Conflict,
                thing(name.as_str()),
                "exists already on this host",
                "Choose another name",
            ));
        }
        registry.reserved.push(name.clone());
        Ok(NameReservation {
            host: Arc::clone(self),
            name: name.clone(),
        })
    }

    /// Keeps the id and the name of a twin for whoever makes it. None: the VM is here already.
    pub(crate) fn reserve_twin(
        self: &Arc<Self>,
        id: VmId,
        name: &VmName,
    ) -> Result<Option<TwinReservation>, Problem> {
        let mut registry = self.lock();
        if registry.vms.contains_key(&id) {
            return Ok(None);
        }
        if registry.enrolling.contains(&id) {
            return Err(Problem::new(
                Code::Conflict,
                thing(name.as_str()),
                format!("is being enabled for replication to host `{}`", self.name()),
                "Wait for that first",
            ));
        }
        registry.enrolling.push(id);
        drop(registry);
        let taken = self.reserve(name).inspect_err(|_| {
            self.lock().enrolling.retain(|other| *other != id);
        });
        Ok(Some(TwinReservation {
            host: Arc::clone(self),
            id,
            _name: taken?,
        }))
    }

    /// Keeps a file for a VM that it is to become a disk of. Refuses one that belongs to a VM of
    /// this host, or is kept for one.
    pub(crate) fn claim(self: &Arc<Self>, file: &Path) -> Result<FileClaim, Problem> {
        // Not the path: a file may have several.
        let identity = |path: &Path| path.metadata().ok().map(|meta| (meta.dev(), meta.ino()));
        let mut claim = FileClaim {
            host: Arc::clone(self),
            file: None,
        };
        let refuse = |reason: String, way_out: &str| {
            let thing = format!("disk file {}", file.display());
            Problem::new(Code::Conflict, thing, reason, way_out)
        };
        // One that is not there is refused by whoever opens it.
        let Some(wanted) = identity(file) else {
            return Ok(claim);
        };
        // First, so that of two at the same time one finds the other's claim or its disk.
        let mut registry = self.lock();
        if registry.claimed.contains(&wanted) {
            let reason = "is being given to a VM at this moment".to_owned();
            return Err(refuse(reason, "Name another file"));
        }
        registry.claimed.push(wanted);
        drop(registry);
        claim.file = Some(wanted);
        for vm in self.vms() {
            let view = vm.view();
            let Some(machine) = &view.home.machine else {
                continue;
            };
            let files = machine.spec.disks.iter().flat_map(|disk| {
                let overlays = disk.overlays.iter();
                let mut files: Vec<_> = overlays.map(|one| machine.overlay_files(one).0).collect();
                files.push(machine.disk_file(disk));
                files
            });
            if files
                .into_iter()
                .any(|file| identity(&file) == Some(wanted))
            {
                let reason = format!("belongs to {}", view.thing());
                let way_out = "Name another file, or make a copy of it while that VM is off";
                return Err(refuse(reason, way_out));
            }
        }
        Ok(claim)
    }

    /// Writes the measures of all relationships durably. Blocking.
    pub(crate) fn keep_measures(&self) {
        for vm in self.vms() {
            vm.observed.write(Timestamp::now(), true);
        }
    }

    /// A VM is gone.
    pub(crate) fn forget(&self, id: VmId) {
        self.lock().vms.remove(&id);
        self.follow_endpoint();
    }

    /// Whether guests are known to run on KVM.
    pub(crate) fn uses_kvm(&self) -> bool {
        let engine = self.engine.get();
        engine.is_some_and(|engine| matches!(engine.accelerator, qemu::Accelerator::Kvm))
    }

    /// QEMU and the accelerator, looked for until they are found.
    pub(crate) async fn engine(&self) -> Result<Arc<Engine>, Problem> {
        let engine = self
            .engine
            .get_or_try_init(|| async { Engine::find().await.map(Arc::new) })
            .await?;
        Ok(Arc::clone(engine))
    }

    /// The client of a peer; its connections are shared.
    pub(crate) fn client(&self, peer: &str) -> Arc<PeerClient> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(clients.entry(peer.to_owned()).or_insert_with(|| {
            let (identity, trust) = (Arc::clone(&self.identity), Arc::clone(&self.trust));
            Arc::new(PeerClient::new(identity, trust, peer))
        }))
    }

    /// The address by which other hosts should know this one.
    pub(crate) fn address(&self) -> String {
        reached_at(self.name(), self.listens_at())
    }

    /// Where peers reach this host, or would if it listened.
    pub(crate) fn listens_at(&self) -> SocketAddr {
        match self.endpoint.now() {
            Listening::At { bound, .. } => bound,
            Listening::No | Listening::Refused { .. } => {
                self.server.get().listen.unwrap_or(self.replica_listen)
            }
        }
    }

    /// How the host is.
    pub(crate) async fn status(&self) -> Result<api::HostStatus, Problem> {
        let memory = HostMemory::read().map_err(|error| Problem::failed("host memory", &error))?;
        let store = self.layout.replicas();
        let space = rustix::fs::statvfs(&store).map_err(|errno| {
            Problem::failed(store.display().to_string(), &std::io::Error::from(errno))
        })?;
        let engine = self.engine().await;
        let (mut lacking, mut stores) = (Vec::new(), Vec::new());
        for vm in self.vms() {
            // One that does not answer is told of by the VM's status line.
            let Ok(Some(status)) = vm.supervisor.status().await else {
                continue;
            };
            lacking.extend(status.lacking);
            if let Some(diskd) = vm.supervisor.diskd_status().await {
                lacking.extend(diskd.lacking);
                stores.push(crate::http::store_name(diskd.store).to_owned());
            }
        }
        for all in [&mut lacking, &mut stores] {
            all.sort();
            all.dedup();
        }
        let vms: Vec<_> = self.vms().iter().map(Vm::view).collect();
        let count = |test: &dyn Fn(&crate::vm::View) -> bool| {
            u64::try_from(vms.iter().filter(|view| test(view)).count()).unwrap_or(u64::MAX)
        };
        let promised = self.ledger.promised();
        let replicas = count(&|view| view.standing.role != Role::Primary);
        Ok(api::HostStatus {
            name: self.name().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            state: self.layout.state.clone(),
            run: self.layout.run.clone(),
            accelerator: engine.as_ref().ok().map(|engine| engine.kind()),
            accelerator_reason: match &engine {
                Ok(engine) => match &engine.accelerator {
                    qemu::Accelerator::Kvm => "proven by running a guest".to_owned(),
                    qemu::Accelerator::Tcg { reason } => reason.clone(),
                },
                Err(problem) => problem.reason.clone(),
            },
            qemu: engine.ok().map(|engine| engine.qemu.version.to_string()),
            memory_total: memory.total,
            memory_available: room(memory, promised, self.settings.memory_reserve),
            memory_guests: promised,
            vms: count(&|view| view.home.machine.is_some()),
            running: count(&|view| view.guest.is_some()),
            replicas,
            store_total: Bytes(space.f_blocks.saturating_mul(space.f_frsize)),
            store_free: Bytes(space.f_bavail.saturating_mul(space.f_frsize)),
            replica_listen: self.listens_at().to_string(),
            lacking,
            stores,
            left_out: self.left_out(),
            certificates: certificates::warnings(&self.identity, &self.trust, Timestamp::now()),
            refused: {
                let strangers = self.trust.strangers();
                strangers
                    .iter()
                    .map(replica::trust::Stranger::problem)
                    .collect()
            },
        })
    }
}

/// How other hosts reach the host `name` that listens at `listen`.
fn reached_at(name: &str, listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        format!("{name}:{}", listen.port())
    } else {
        listen.to_string()
    }
}

/// Begins to keep what happens, and to tell the hook of it.
fn begin_events(settings: &Settings, state: &Path) -> Result<Arc<Events>, Problem> {
    let bounds = Bounds {
        count: settings.events.into(),
        age: SignedDuration::from_hours(24 * i64::from(settings.event_days)),
    };
    let (hook, told) = mpsc::channel(hook::QUEUE);
    let hook = Some(hook).filter(|_| !settings.hook.is_empty());
    let events = Arc::new(Events::begin(&state.join("events.db"), bounds, hook)?);
    tokio::spawn(hook::run(settings.hook.clone(), told, Arc::clone(&events)));
    Ok(events)
}

/// Sub-folders that are not hidden.
pub(crate) fn folders(parent: &Path) -> Result<Vec<std::path::PathBuf>, Problem> {
    let failed = |error: std::io::Error| Problem::failed(parent.display().to_string(), &error);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(parent).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let hidden = entry.file_name().to_string_lossy().starts_with('.');
        if !hidden && entry.file_type().map_err(failed)?.is_dir() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
