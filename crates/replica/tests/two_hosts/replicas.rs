//! A host that holds a twin, with a real journal.

use durable::Folder as _;
use testkit::CutFolder;

use super::*;

/// A host that may hold one replica VM.
pub(super) struct Replicas {
    pub(super) path: PathBuf,
    /// Most bytes that one segment may take.
    pub(super) limit: AtomicU64,
    /// The next segment cannot be taken in.
    pub(super) broken: Arc<AtomicBool>,
    /// A person pauses it while the next segment is let in.
    pub(super) pauses: AtomicBool,
    /// Its journal lies there, and not in a folder of the operating system.
    pub(super) disk: Mutex<Option<CutFolder>>,
    pub(super) rules: Mutex<Rules>,
    pub(super) state: Mutex<Option<Enrolled>>,
}

pub(super) struct Enrolled {
    pub(super) vm: VmId,
    pub(super) relation: Relation,
    pub(super) standing: Standing,
    pub(super) shelf: Shelf<Paced>,
}

/// A journal that takes a segment in only when the test lets it, if the test wants that.
pub(super) struct Paced {
    pub(super) journal: Journal,
    /// Says that it is about to take one in, and waits.
    pub(super) hold: Option<(mpsc::UnboundedSender<()>, std::sync::mpsc::Receiver<()>)>,
    /// Where it lies, if not in a folder of the operating system.
    pub(super) disk: Option<CutFolder>,
    /// Fails once.
    pub(super) broken: Arc<AtomicBool>,
}

/// What was received lies where the journal does.
fn copy(file: &Path, disk: &CutFolder) -> std::io::Result<()> {
    let name = file.file_name().unwrap().to_str().unwrap();
    let copy = disk.create(&format!("{}/{name}", Journal::INCOMING))?;
    copy.write_at(0, &std::fs::read(file)?)
}

impl Receipts for Paced {
    fn tip(&self) -> Tip {
        Receipts::tip(&self.journal)
    }

    fn disks(&self) -> Vec<DiskId> {
        Receipts::disks(&self.journal)
    }

    fn check(&self, header: &Header, root: Root) -> Verdict {
        Receipts::check(&self.journal, header, root)
    }

    fn take(&mut self, file: &Path, header: &Header, root: Root) -> Result<(), Problem> {
        if self.broken.swap(false, Ordering::Relaxed) {
            let reason = "cannot be read";
            return Err(Problem::new(Code::Failed, "the segment", reason, ""));
        }
        if let Some((begun, go_on)) = &self.hold {
            begun.send(()).unwrap();
            go_on.recv().unwrap();
        }
        if let Some(disk) = &self.disk {
            let copied = copy(file, disk);
            copied.map_err(|error| Problem::failed("the segment", &error))?;
        }
        self.journal.take(file, header, root)
    }

    fn ahead(&mut self, file: &Path, root: Root, come: u64) -> Result<(), Problem> {
        match &self.disk {
            // It lies elsewhere until it is whole.
            Some(_) => Ok(()),
            None => self.journal.ahead(file, root, come),
        }
    }

    fn open_point(&self, point: PointId) -> Result<Arc<PointReader>, Problem> {
        Receipts::open_point(&self.journal, point)
    }

    fn open_seed(&self) -> Result<Arc<SeedReader>, Problem> {
        Receipts::open_seed(&self.journal)
    }
}

impl Replicas {
    pub(super) fn new(host: &Host) -> Arc<Self> {
        std::fs::create_dir_all(host.path.join("twins")).unwrap();
        Arc::new(Self {
            path: host.path.join("twins/vm"),
            limit: AtomicU64::new(64 * CHUNK),
            broken: Arc::default(),
            pauses: AtomicBool::new(false),
            disk: Mutex::default(),
            rules: Mutex::new(Rules {
                enabled: true,
                ..Rules::default()
            }),
            state: Mutex::new(None),
        })
    }

    pub(super) fn with<T>(
        &self,
        vm: VmId,
        work: impl FnOnce(&mut Enrolled) -> T,
    ) -> Result<T, Problem> {
        let mut state = self.state.lock().unwrap();
        match state.as_mut().filter(|enrolled| enrolled.vm == vm) {
            Some(enrolled) => Ok(work(enrolled)),
            None => Err(Problem::new(Code::NotFound, "the VM", "is not here", "")),
        }
    }
}

impl ReplicaHost for Replicas {
    type Receipts = Paced;

    fn name(&self) -> &str {
        "host-b"
    }

    fn admits(&self, principal: &Principal) -> Result<(), Problem> {
        let rules = self.rules.lock().unwrap();
        let denied = rules.admit(&principal.name).map(drop);
        denied.map_err(|denied| denied.problem(&principal.name, self.name()))
    }

    async fn enrol(&self, principal: &Principal, vm: VmId, enrol: Enrol) -> Result<(), Problem> {
        let mut state = self.state.lock().unwrap();
        if let Some(enrolled) = state.as_ref() {
            if enrolled.relation.id == enrol.relationship {
                return Ok(());
            }
            return Err(Problem::new(Code::Conflict, "the VM", "is bound", ""));
        }
        let disks: Vec<DiskExtent> = enrol.spec.disks.iter().map(extent).collect();
        let disk = self.disk.lock().unwrap().clone();
        let journal = match &disk {
            Some(disk) => Journal::create_on(Arc::new(disk.clone()), vm, &disks, enrol.seed),
            None => Journal::create(&self.path, vm, &disks, enrol.seed),
        };
        let journal = journal.unwrap();
        *state = Some(Enrolled {
            vm,
            relation: Relation {
                earlier: Vec::new(),
                id: enrol.relationship,
                thing: format!("VM `{}`", enrol.spec.name),
                partner: principal.name.clone(),
                role: Role::Replica,
                reception: Reception {
                    paused: false,
                    revision: Some(enrol.revision),
                    filling: None,
                },
                incoming: self.path.join(Journal::INCOMING),
            },
            standing: Standing::replica(&principal.name, enrol.lineage),
            shelf: Arc::new(Mutex::new(Some(Paced {
                journal,
                disk,
                hold: None,
                broken: self.broken.clone(),
            }))),
        });
        Ok(())
    }

    async fn reverse(
        &self,
        _: &Principal,
        _: VmId,
        _: pollux_replica::wire::Reverse,
    ) -> Result<pollux_replica::wire::Reversed, Problem> {
        let reason = "was never the primary";
        Err(Problem::new(Code::Conflict, "the VM", reason, ""))
    }

    async fn relation(&self, vm: VmId) -> Option<Relation> {
        self.with(vm, |enrolled| enrolled.relation.clone()).ok()
    }

    fn reception(&self, vm: VmId, id: RelationshipId) -> Option<Reception> {
        let relation = self.with(vm, |enrolled| enrolled.relation.clone()).ok()?;
        (relation.id == id).then_some(relation.reception)
    }

    async fn contact(
        &self,
        vm: VmId,
        theirs: &Lineage,
        _opened: Option<Timestamp>,
    ) -> Result<PartnerStanding, Problem> {
        self.with(vm, |enrolled| {
            let met = enrolled.standing.meet("the VM", theirs, None)?;
            enrolled.standing = met.standing;
            Ok(enrolled.standing.tell(false))
        })?
    }

    async fn lease(
        &self,
        vm: VmId,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> Result<LeaseAnswer, Problem> {
        self.with(vm, |enrolled| {
            let (next, answer) = enrolled.standing.answer_lease(theirs, asked);
            enrolled.standing = next.unwrap_or_else(|| enrolled.standing.clone());
            answer
        })
    }

    async fn stand_down(&self, vm: VmId, asked: &Lineage) -> Result<(), Problem> {
        self.with(vm, |enrolled| {
            enrolled.standing = enrolled.standing.stand_down("the VM", asked, false)?;
            Ok(())
        })?
    }

    async fn admit(&self, _: VmId, _: &Header, len: u64, held: u64) -> Result<(), Problem> {
        if len + held > self.limit.load(Ordering::Relaxed) {
            return Err(Problem::new(Code::Full, "the store", "is full", ""));
        }
        Ok(())
    }

    async fn shelf(&self, vm: VmId) -> Result<Shelf<Paced>, Problem> {
        let pauses = self.pauses.swap(false, Ordering::Relaxed);
        self.with(vm, |enrolled| {
            enrolled.relation.reception.paused |= pauses;
            let mut shelf = enrolled.shelf.lock().unwrap();
            if shelf.is_none() && enrolled.standing.role == Role::Replica {
                let disk = self.disk.lock().unwrap().clone();
                let opened = match &disk {
                    Some(disk) => Journal::open_on(Arc::new(disk.clone())),
                    None => Journal::open(&self.path),
                };
                *shelf = Some(Paced {
                    journal: opened.map_err(|error| Problem::failed("the journal", &error))?,
                    disk,
                    hold: None,
                    broken: self.broken.clone(),
                });
            }
            drop(shelf);
            Ok(enrolled.shelf.clone())
        })?
    }

    fn received(&self, _: VmId, _: &Header, _: u64) {}

    async fn configure(&self, vm: VmId, wanted: Configure) -> Result<(), Problem> {
        self.with(vm, |enrolled| {
            enrolled.relation.reception.revision = Some(wanted.revision);
        })
    }

    async fn cancel(&self, vm: VmId) -> Result<(), Problem> {
        self.remove(vm).await
    }

    async fn remove(&self, _: VmId) -> Result<(), Problem> {
        *self.state.lock().unwrap() = None;
        Ok(())
    }
}
