//! The replica's host loses its power at any change of its disk, while a driver sends: what it acknowledged is
//! there, and the primary goes on without a comparison or a copy.

use std::collections::{BTreeMap, BTreeSet};

use durable::Folder as _;
use pollux_replica::driver::{self, Begin, Command};
use pollux_replica::report::LinkReport;
use pollux_replica::source::{
    Changing, ComparedRegion, CutDisk, Plan, Progress, SeedPart, Source, StagedPart, Suspects,
    Tracking,
};
use pollux_replica::wire::{Configuration, Offer};
use testkit::{CutFolder, Rng};
use tokio::sync::watch;

use super::*;

/// Blocks of the disk that are ever written.
const BLOCKS: u64 = 512;
const BLOCK: usize = 4096;
const NOTHING_TO_COMPARE: &str = "a replica that lost its power has all that it acknowledged";

/// The primary's disk: what each block was written with last.
type Disk = BTreeMap<u64, u64>;

struct Primary {
    folder: PathBuf,
    spec: VmSpec,
    lineage: Lineage,
    state: Mutex<State>,
}

struct State {
    disk: Disk,
    marks: BTreeSet<u64>,
    staged: Option<(Staged, BTreeSet<u64>)>,
    progress: Progress,
    sequence: u64,
    files: u64,
    cuts: BTreeMap<u64, Disk>,
    /// The points that the replica said it has.
    acknowledged: BTreeSet<u64>,
    written: u64,
}

fn content(disk: &Disk) -> Vec<u8> {
    let blocks = disk.values().map(|salt| noise(*salt, BLOCK));
    blocks.collect::<Vec<_>>().concat()
}

impl Primary {
    fn new(folder: &Path, spec: &VmSpec, ask: &Enrol) -> Arc<Self> {
        Arc::new(Self {
            folder: folder.to_owned(),
            spec: spec.clone(),
            lineage: ask.lineage.clone(),
            state: Mutex::new(State {
                disk: (0..BLOCKS).map(|block| (block, block)).collect(),
                marks: (0..BLOCKS).collect(),
                staged: None,
                progress: Progress::begin(ask.seed),
                sequence: 0,
                files: 0,
                cuts: BTreeMap::new(),
                acknowledged: BTreeSet::new(),
                written: BLOCKS,
            }),
        })
    }

    fn write(&self, rng: &mut Rng) {
        let mut state = self.state.lock().unwrap();
        for _ in 0..1 + rng.below(8) {
            let block = rng.below(BLOCKS);
            state.written += 1;
            let salt = state.written;
            state.disk.insert(block, salt);
            state.marks.insert(block);
        }
    }

    fn stage(&self, content: Content) -> StagedPart {
        let mut state = self.state.lock().unwrap();
        assert!(state.staged.is_none(), "a second staged segment");
        state.files += 1;
        let file = self.folder.join(format!("{}.staged", state.files));
        let out = std::fs::File::create(&file).unwrap();
        let header = header(&self.spec, &self.lineage, content);
        let mut writer = SegmentWriter::create(out, &header).unwrap();
        let held = std::mem::take(&mut state.marks);
        for block in &held {
            let frame = noise(state.disk[block], BLOCK);
            writer.push_frame(0, *block, &frame).unwrap();
        }
        writer.finish().unwrap();
        let segment = outbox::read(&file).unwrap();
        if let Some(point) = header.point() {
            let disk = state.disk.clone();
            state.cuts.insert(point.sequence, disk);
        }
        state.staged = Some((segment.clone(), held));
        StagedPart {
            segment,
            next: None,
        }
    }
}

impl Source for Primary {
    async fn track(&self) -> Result<Tracking, Problem> {
        let state = self.state.lock().unwrap();
        Ok(Tracking {
            exact: true,
            suspect: model::Bytes(0),
            staged: state.staged.as_ref().map(|(staged, _)| staged.clone()),
            progress: state.progress,
            reserved: state.sequence,
        })
    }

    async fn reserve_sequence(&self, above: u64) -> Result<u64, Problem> {
        let mut state = self.state.lock().unwrap();
        state.sequence = state.sequence.max(above) + 1;
        Ok(state.sequence)
    }

    async fn seed(&self, part: SeedPart) -> Result<StagedPart, Problem> {
        let SeedPart { seed, part, .. } = part;
        Ok(self.stage(Content::Seed { seed, part }))
    }

    async fn cut(
        &self,
        since: Since,
        sequence: u64,
        _: Vec<CutDisk>,
    ) -> Result<StagedPart, Problem> {
        Ok(self.stage(Content::Delta { sequence, since }))
    }

    async fn offer(&self, staged: &Staged) -> Result<Offer, Problem> {
        outbox::offer(&staged.file).await
    }

    async fn chunk(&self, staged: &Staged, n: u64) -> Result<Bytes, Problem> {
        outbox::chunk(staged, n).await
    }

    async fn confirm(&self, _: &Staged) -> Result<(), Problem> {
        self.state.lock().unwrap().staged = None;
        Ok(())
    }

    async fn fold_back(&self, _: &Staged) -> Result<(), Problem> {
        let mut state = self.state.lock().unwrap();
        let held = state.staged.take().map(|(_, held)| held);
        state.marks.extend(held.into_iter().flatten());
        Ok(())
    }

    async fn hashes(&self, _: DiskId, _: u64) -> Result<Suspects, Problem> {
        unreachable!("{NOTHING_TO_COMPARE}")
    }

    async fn compared(&self, _: DiskId, _: Vec<ComparedRegion>) -> Result<(), Problem> {
        unreachable!("{NOTHING_TO_COMPARE}")
    }

    async fn changing(&self, _: DiskId, _: u64) -> Result<Changing, Problem> {
        unreachable!("{NOTHING_TO_COMPARE}")
    }

    async fn mark(&self, _: DiskId, _: Vec<ComparedRegion>) -> Result<(), Problem> {
        unreachable!("{NOTHING_TO_COMPARE}")
    }

    async fn suspect(&self, _: u64) -> Result<model::Bytes, Problem> {
        unreachable!("{NOTHING_TO_COMPARE}")
    }

    async fn persist(&self, progress: Progress) -> Result<(), Problem> {
        let mut state = self.state.lock().unwrap();
        if let Progress::Live { acknowledged, .. } = progress {
            state.acknowledged.insert(acknowledged.sequence);
        }
        state.progress = progress;
        Ok(())
    }

    async fn gate(&self, _: &Lineage) -> Result<(), Problem> {
        unreachable!("the replica does not take over")
    }

    fn wall(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// The primary's driver.
struct Driving {
    task: tokio::task::JoinHandle<()>,
    commands: mpsc::Sender<Command>,
    reports: watch::Receiver<LinkReport>,
    _configurations: watch::Sender<Arc<Configuration>>,
}

impl Driving {
    fn start(primary: &Arc<Primary>, link: &PeerLink) -> Self {
        let configuration = Arc::new(Configuration {
            spec: primary.spec.clone(),
            disks: primary.spec.disks.iter().map(|disk| disk.id).collect(),
            frequency_s: 3600,
            keep: None,
        });
        let plan = Plan {
            thing: "VM `web`".to_owned(),
            partner: "host-b".to_owned(),
            disks: configuration.disks.clone(),
            lineage: primary.lineage.clone(),
            base_stays: false,
            configuration: configuration.clone(),
        };
        let progress = primary.state.lock().unwrap().progress;
        let (commands, receiver) = mpsc::channel(driver::COMMANDS);
        let state = model::ReplicationState::ReadyForInitialReplication;
        let (sender, reports) = watch::channel(LinkReport::new(state));
        let (configurations, configuration) = watch::channel(configuration);
        let begin = Begin {
            plan,
            progress,
            suspended: false,
            chance: 1,
            configuration,
        };
        let link = Arc::new(link.clone());
        let task = tokio::spawn(driver::run(primary.clone(), link, begin, receiver, sender));
        Self {
            task,
            commands,
            reports,
            _configurations: configurations,
        }
    }

    fn acknowledged(&self) -> u64 {
        let report = self.reports.borrow();
        report.acknowledged.map_or(0, |point| point.sequence)
    }

    /// Until a point with a higher number than `before` is acknowledged, or `ends` says so.
    async fn point_above(&self, before: u64, ends: impl Fn() -> bool) {
        let begun = std::time::Instant::now();
        while self.acknowledged() <= before && !ends() {
            assert!(!self.task.is_finished(), "the driver ended");
            assert!(begun.elapsed() < 12 * LIMIT, "{:?}", self.reports.borrow());
            // Whatever it waits for.
            let _ = self.commands.try_send(Command::Resume);
            let _ = self.commands.try_send(Command::Hurry);
            let mut reports = self.reports.clone();
            let _ = tokio::time::timeout(Duration::from_millis(50), reports.changed()).await;
        }
    }
}

/// What a file is after a power cut of which nothing was synced.
fn tear(file: &Path, rng: &mut Rng) {
    let mut bytes = std::fs::read(file).unwrap();
    for sector in bytes.chunks_mut(512) {
        if rng.below(3) == 0 {
            sector.fill(0);
        }
    }
    std::fs::write(file, bytes).unwrap();
}

/// What came of a power cut.
struct Sent {
    /// After it.
    bytes: u64,
    /// Acknowledged before it and after, and read back.
    points: usize,
}

/// One power cut after so many changes of the replica's disk.
async fn one_cut(seed: u64, calls: u64) -> Sent {
    let mut rng = Rng::new(seed);
    let pair = pair().await;
    let disk = CutFolder::new();
    *pair.2.disk.lock().unwrap() = Some(disk.clone());
    let (a, b, replicas, serving) = pair;
    let (client, spec) = (a.client("host-b"), spec());
    let ask = enrol(&spec);
    client.enrol(spec.id, &ask).await.unwrap();
    let link = PeerLink::new(client, spec.id, ask.relationship);
    let primary = Primary::new(&a.path, &spec, &ask);
    let driving = Driving::start(&primary, &link);
    driving.point_above(0, || false).await;

    disk.cut_after(calls);
    let is_off = || disk.list("").is_err();
    while !is_off() {
        primary.write(&mut rng);
        driving.point_above(driving.acknowledged(), is_off).await;
    }
    let address = serving.address;
    serving.stop().await;
    let acknowledged = driving.acknowledged();
    let after = disk.cut(rng.bits());
    *replicas.disk.lock().unwrap() = Some(after);
    let forget = |enrolled: &mut Enrolled| *enrolled.shelf.lock().unwrap() = None;
    replicas.with(spec.id, forget).unwrap();
    for file in std::fs::read_dir(replicas.path.join(Journal::INCOMING)).unwrap() {
        tear(&file.unwrap().path(), &mut rng);
    }
    let _serving = Serving::start(&b, replicas.clone(), Some(address)).await;

    let shipped = driving.reports.borrow().shipped.0;
    primary.write(&mut rng);
    let last = primary.state.lock().unwrap().sequence;
    driving.point_above(last.max(acknowledged), || false).await;
    driving.commands.send(Command::Stop).await.unwrap();
    let newest = driving.acknowledged();
    let shipped = driving.reports.borrow().shipped.0 - shipped;
    driving.task.await.unwrap();
    let shelf = replicas.shelf(spec.id).await.unwrap();
    let shelf = shelf.lock().unwrap();
    let state = primary.state.lock().unwrap();
    assert!(
        [acknowledged, newest]
            .iter()
            .all(|point| state.acknowledged.contains(point))
    );
    for sequence in &state.acknowledged {
        let point = PointId {
            term: ask.lineage.current().id,
            sequence: *sequence,
        };
        let reader = shelf.as_ref().unwrap().open_point(point).unwrap();
        let mut held = vec![0; usize::try_from(BLOCKS).unwrap() * BLOCK];
        reader.read_at(spec.disks[0].id, 0, &mut held).unwrap();
        assert!(held == content(&state.cuts[sequence]), "point {sequence}");
    }
    assert_eq!(state.disk, state.cuts[&newest]);
    Sent {
        bytes: shipped,
        points: state.acknowledged.len(),
    }
}

#[tokio::test]
async fn a_replica_host_that_loses_power_at_any_change_keeps_its_points_and_is_sent_only_what_is_new()
 {
    let whole = BLOCKS * BLOCK as u64;
    let mut points = 0;
    for (seed, calls) in (1..).zip((0..33).step_by(3)) {
        let sent = one_cut(seed, calls).await;
        assert!(
            sent.bytes < whole / 4,
            "cut after {calls}: {} of {whole}",
            sent.bytes
        );
        points += sent.points;
    }
    println!("{points} points read back");
}
