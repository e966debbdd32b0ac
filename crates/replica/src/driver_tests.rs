//! The driver over a simulated network, a source and a replica in memory, with injected chance
//! and paused time. A seed that fails prints itself, and `POLLUX_SEED` repeats it; `POLLUX_SEEDS` raises
//! their number.
//!
//! The primary's disks have what the guest sees and what a power cut leaves; everything that
//! was written since the last flush is there or lost, block by block. The regions that differ,
//! at most, survive it ([`tracking`]). Both hosts are also restored from older copies of themselves.

#[path = "driver_tests/join.rs"]
mod join;
#[path = "driver_tests/reception.rs"]
mod reception;
#[path = "driver_tests/resync.rs"]
mod resync;
#[path = "driver_tests/seeding.rs"]
mod seeding;
#[path = "driver_tests/steps.rs"]
mod steps;
#[path = "driver_tests/tracking.rs"]
mod tracking;
#[path = "driver_tests/verify.rs"]
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use journal::{Consistency, Content, DiskExtent, Header, Root};
use model::{Code, DiskId, Lineage, PointId, Problem, ReplicationState, SeedId, Since, VmId};
use tokio::task::JoinHandle;

use steps::{Faults, Seen, Step, When};

use super::*;
use crate::link::LinkError;
use crate::sender::LONGEST_CONTACT;
use crate::source::{
    Changing, ComparedRegion, CutDisk, Position, SeedPart, StagedPart, Suspects, Tracking,
};
use crate::standing::Role;
use crate::wire::{
    CHUNK, CommitAnswer, ConfigureAnswer, ContactAnswer, OfferAnswer, PartnerStanding, Reception,
    Tip, TipAnswer,
};

const DISKS: usize = 2;
const BLOCKS: u64 = 24;

/// Content of all disks: disk and block to what was written there last.
type Disks = BTreeMap<(usize, u64), u64>;

#[derive(Debug, Clone, Copy)]
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn percent(&mut self, n: u64) -> bool {
        self.below(100) < n
    }
}

fn problem(code: Code, reason: &str) -> Problem {
    Problem::new(code, "the simulation", reason, "")
}

/// How bad the world is.
#[derive(Debug, Clone, Copy)]
struct Weather {
    /// Percent of requests that never arrive, of answers that never come, of requests that
    /// arrive a second time later.
    lost: u64,
    unanswered: u64,
    repeated: u64,
    /// Percent of requests that are carried out long after the caller gave up.
    late: u64,
    /// Percent of the source's operations that fail, before or after they did their work.
    failing: u64,
    /// Whether the network is cut.
    cut: bool,
}

const CALM: Weather = Weather {
    lost: 0,
    unanswered: 0,
    repeated: 0,
    late: 0,
    failing: 0,
    cut: false,
};

/// What a source or a replica may get wrong; the suite must find each of them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// Folds back without marking.
    FoldBack,
    /// Says that progress is recorded, and it is not.
    Persist,
    /// After a power cut nothing is suspect.
    PowerCut,
    /// What was compared and differs is not marked.
    Compared,
    /// What is damaged there is not marked.
    Mark,
    /// What changed and was not sent yet is not told.
    Changing,
    /// A region leaves the log though a write to it may still be lost.
    Sweep,
    /// Gives a mark away before the write it stands for is part of the cut.
    Cut,
    /// The replica goes on receiving, while it is compared, what it received before.
    Incoming,
    /// The replica, once compared, lets in what was sent before.
    Issued,
    /// The same of a part of the initial replication.
    Round,
    /// After a power cut what was never sent is not marked.
    Unsent,
}

struct File {
    staged: Staged,
    content: Vec<((usize, u64), u64)>,
    root: Root,
    /// A frame of it does not verify.
    damaged: bool,
}

/// Everything that outlives a driver, on both hosts.
struct World {
    chance: Chance,
    weather: Weather,
    vm: VmId,
    disks: Vec<DiskId>,
    lineage: Lineage,
    // -- primary
    content: Disks,
    /// What a power cut leaves at least.
    durable: Disks,
    marks: BTreeSet<(usize, u64)>,
    /// The disks of which changes are tracked.
    tracked: BTreeSet<usize>,
    suspect: BTreeSet<Region>,
    /// Of the staged segment.
    unconfirmed: BTreeSet<Region>,
    /// The write-intent log.
    armed: BTreeSet<Region>,
    /// A number was reserved for a cut that has not been made yet.
    reserving: bool,
    outbox: Option<File>,
    progress: Progress,
    sequence: u64,
    /// What the primary wants the replica to follow.
    configuration: Arc<Configuration>,
    /// Staging takes this long.
    staging: Duration,
    exact: bool,
    lie: Option<Lie>,
    /// So many of the next staged segments are damaged.
    damage: u32,
    /// Nobody can tell what a damaged segment holds.
    unreadable: bool,
    written: u64,
    /// What the disks held at each cut, by the root of its segment.
    cuts: BTreeMap<Root2, Disks>,
    /// Sequence numbers of all cuts that the primary may know of.
    used: BTreeSet<u64>,
    gated: Option<Lineage>,
    // -- replica
    tip: Tip,
    paused: bool,
    /// So much was copied to what it is filled from.
    filling: Option<u64>,
    /// How often something was asked of it before it was filled.
    too_early: u64,
    followed: Option<Arc<Configuration>>,
    /// Its name is taken there.
    unfit: bool,
    /// A person ended the relationship there.
    ended: bool,
    /// What the replica holds at each point, and the root that was committed.
    points: BTreeMap<u64, (Disks, Root)>,
    /// The disks that each point has.
    whole: BTreeMap<u64, Vec<DiskId>>,
    received: Disks,
    /// Blocks of it that are not what was received, and the points that held such.
    rotten: BTreeSet<(usize, u64)>,
    damaged: BTreeSet<u64>,
    pending: Option<(Offer, BTreeSet<u64>)>,
    /// Chunks on the replica's disk, by root.
    store: BTreeMap<Root2, BTreeMap<u64, Bytes>>,
    /// Nothing is let in that was issued up to here.
    issued: u64,
    /// No part of an earlier one is let in.
    round: u64,
    /// Blocks that came in a part and were there already, as they are.
    resent: u64,
    /// How often the replica was started: a request goes to one of its lives.
    life: u64,
    compared: u64,
    /// Comparisons are answered with a region that was not asked about.
    strange_answers: bool,
    /// They are refused.
    uncompared: bool,
    taken_over: Option<Lineage>,
    contacts: u64,
    /// Chunks that were put though the last offer's answer did not ask for them.
    unasked: u64,
    puts: u64,
    asked: BTreeSet<(Root2, u64)>,
    /// What a test does at a step, and what chance did.
    faults: Faults,
    seen: Seen,
}

/// A root as a key.
type Root2 = [u8; 32];
/// Disk and region.
type Region = (usize, u64);

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        chance.next();
        let lineage = Lineage::begin("host-a");
        let vm = VmId::random();
        let disks: Vec<DiskId> = (0..DISKS).map(|_| DiskId::random()).collect();
        let configuration = Arc::new(reception::configuration(vm, &disks, 5));
        let blocks = (0..DISKS).flat_map(|disk| (0..BLOCKS).map(move |block| (disk, block)));
        Self {
            chance,
            weather: CALM,
            vm,
            disks,
            lineage,
            content: blocks.clone().map(|key| (key, 1)).collect(),
            durable: blocks.clone().map(|key| (key, 1)).collect(),
            marks: blocks.clone().collect(),
            tracked: (0..DISKS).collect(),
            suspect: BTreeSet::new(),
            unconfirmed: BTreeSet::new(),
            armed: blocks.map(tracking::region_of).collect(),
            reserving: false,
            outbox: None,
            progress: Progress::begin(SeedId::random()),
            sequence: 0,
            configuration,
            staging: Duration::ZERO,
            exact: true,
            lie: None,
            damage: 0,
            unreadable: false,
            written: 1,
            cuts: BTreeMap::new(),
            used: BTreeSet::new(),
            gated: None,
            tip: Tip::Nothing,
            paused: false,
            filling: None,
            too_early: 0,
            followed: None,
            unfit: false,
            ended: false,
            points: BTreeMap::new(),
            whole: BTreeMap::new(),
            received: Disks::new(),
            rotten: BTreeSet::new(),
            damaged: BTreeSet::new(),
            pending: None,
            store: BTreeMap::new(),
            issued: 0,
            round: 0,
            resent: 0,
            life: 0,
            compared: 0,
            strange_answers: false,
            uncompared: false,
            taken_over: None,
            contacts: 0,
            unasked: 0,
            puts: 0,
            asked: BTreeSet::new(),
            faults: Faults::default(),
            seen: Seen::default(),
        }
    }

    fn header(&self, content: Content) -> Header {
        let extent = |id: &DiskId| DiskExtent {
            joining: false,
            id: *id,
            size: model::Bytes(BLOCKS * 4096),
        };
        Header {
            vm: self.vm,
            disks: self.disks[..DISKS].iter().map(extent).collect(),
            lineage: self.lineage.clone(),
            content,
            time: Timestamp::UNIX_EPOCH,
            consistency: Consistency::Crash,
        }
    }

    /// Moves marks into a segment, in one step.
    fn stage(&mut self, content: Content, blocks: Vec<(usize, u64)>) -> Staged {
        let header = self.header(content);
        self.stage_as(header, blocks)
    }

    fn stage_as(&mut self, header: Header, blocks: Vec<(usize, u64)>) -> Staged {
        assert!(self.outbox.is_none(), "a second staged segment");
        let mut held: Vec<_> = blocks
            .into_iter()
            .filter(|key| self.marks.remove(key))
            .map(|key| (key, self.content[&key]))
            .collect();
        if self.lie == Some(Lie::Cut) && self.written % 16 == 0 {
            held.pop();
        }
        self.unconfirmed = held
            .iter()
            .map(|(key, _)| tracking::region_of(*key))
            .collect();
        let number = self.chance.next();
        let root = Root(Digest::of(&number.to_le_bytes()).0);
        if header.point().is_some() {
            self.cuts
                .insert(root.0, self.of_point(&header, &self.content));
        }
        let staged = Staged {
            file: format!("{number}.segment").into(),
            header,
            root,
        };
        self.outbox = Some(File {
            staged: staged.clone(),
            content: held,
            root,
            damaged: self.damage > 0,
        });
        self.damage = self.damage.saturating_sub(1);
        staged
    }

    fn write(&mut self) {
        let disk = usize::try_from(self.chance.below(self.disks.len() as u64)).expect("small");
        let block = self.chance.below(BLOCKS);
        self.write_to((disk, block));
    }

    fn write_to(&mut self, key: (usize, u64)) {
        self.written += 1;
        if self.tracked.contains(&key.0) {
            self.armed.insert(tracking::region_of(key));
            self.marks.insert(key);
        }
        self.content.insert(key, self.written);
    }

    /// Every block of the primary changes.
    fn write_all(&mut self) {
        for key in self.content.clone().into_keys() {
            self.write_to(key);
        }
    }

    /// From now on much goes wrong.
    fn bad_weather(&mut self) {
        let bad = |world: &mut Self, most| world.chance.below(most);
        self.weather = Weather {
            lost: bad(self, 30),
            unanswered: bad(self, 30),
            repeated: bad(self, 30),
            late: bad(self, 30),
            failing: bad(self, 15),
            cut: self.chance.percent(30),
        };
        if self.weather.cut {
            self.happened("network cut");
        }
    }

    /// The replica is killed: what it held in memory is gone, and some of what it had not synced.
    fn replica_restart(&mut self) {
        self.happened("replica killed");
        self.pending = None;
        self.issued = 0;
        self.round = 0;
        self.life += 1;
        let mut chance = self.chance;
        for chunks in self.store.values_mut() {
            chunks.retain(|_, _| chance.percent(70));
        }
        self.chance = chance;
    }

    // -- the replica, as the receiver and the journal would do it ---------------------------

    fn fits(&self, header: &Header) -> bool {
        match (header.content, self.tip) {
            (Content::Seed { part: 0, .. }, Tip::Nothing) => true,
            (Content::Seed { seed, part }, Tip::Seeding { seed: s, parts, .. }) => {
                seed == s && part == parts
            }
            (
                Content::Delta {
                    since: Since::Seed { seed, parts },
                    ..
                },
                Tip::Seeding {
                    seed: s,
                    parts: has,
                    ..
                },
            ) => seed == s && parts == has,
            (
                Content::Delta {
                    since: Since::Point(since),
                    sequence,
                },
                Tip::Point { point, .. },
            ) => since.sequence <= point.sequence && point.sequence < sequence,
            _ => false,
        }
    }

    fn have(&self, offer: &Offer) -> bool {
        match (offer.header.content, self.tip) {
            (Content::Delta { sequence, .. }, _) => self
                .points
                .get(&sequence)
                .is_some_and(|(_, root)| *root == offer.root),
            (Content::Seed { part, .. }, Tip::Seeding { parts, last, .. }) => {
                part + 1 == parts && last == Some(offer.root)
            }
            (Content::Seed { .. }, _) => false,
        }
    }

    fn on_offer(&mut self, offer: &Offer) -> OfferAnswer {
        if let Some(lineage) = self.taken_over.clone() {
            return OfferAnswer::Superseded { lineage };
        }
        if self.have(offer) {
            return OfferAnswer::Committed { tip: self.tip };
        }
        if !self.fits(&offer.header) {
            let problem = problem(Code::Conflict, "it does not fit");
            return OfferAnswer::Unfit { problem };
        }
        let old = match offer.header.content {
            Content::Delta { sequence, .. } => sequence <= self.issued,
            Content::Seed { .. } => offer.round < self.round,
        };
        if old {
            let problem = problem(Code::Conflict, "it was sent before a comparison");
            return OfferAnswer::Unfit { problem };
        }
        self.store.retain(|root, _| *root == offer.root.0);
        let there: BTreeSet<u64> = self
            .store
            .get(&offer.root.0)
            .into_iter()
            .flat_map(|chunks| chunks.keys().copied())
            .collect();
        let chunks: Vec<u64> = (0..offer.chunks.len() as u64)
            .filter(|n| !there.contains(n))
            .collect();
        self.asked = chunks.iter().map(|n| (offer.root.0, *n)).collect();
        self.pending = Some((offer.clone(), there));
        OfferAnswer::Missing { chunks }
    }

    fn on_put(&mut self, root: Root, n: u64, chunk: &Bytes) -> Result<(), LinkError> {
        self.puts += 1;
        if !self.asked.contains(&(root.0, n)) {
            self.unasked += 1;
        }
        match &mut self.pending {
            Some((offer, there)) if offer.root == root => {
                let index = usize::try_from(n).expect("small");
                assert_eq!(Digest::of(chunk), offer.chunks[index], "another chunk");
                there.insert(n);
                let chunks = self.store.entry(root.0).or_default();
                chunks.insert(n, chunk.clone());
                Ok(())
            }
            _ => Err(LinkError::Refused(problem(Code::NotFound, "not offered"))),
        }
    }

    fn on_commit(&mut self, root: Root) -> Result<CommitAnswer, LinkError> {
        let staged = self.outbox.as_ref().filter(|file| file.root == root);
        if staged.is_some_and(|file| file.damaged) {
            self.pending = None;
            let problem = problem(Code::Invalid, "a frame does not verify");
            return Err(LinkError::Refused(problem));
        }
        Ok(self.publish(root))
    }

    fn publish(&mut self, root: Root) -> CommitAnswer {
        if let Some(lineage) = self.taken_over.clone() {
            return CommitAnswer::Superseded { lineage };
        }
        let Some((offer, there)) = self.pending.take_if(|(offer, _)| offer.root == root) else {
            let problem = problem(Code::NotFound, "not offered");
            return CommitAnswer::Again { problem };
        };
        if there.len() != offer.chunks.len() || !self.fits(&offer.header) {
            let problem = problem(Code::Conflict, "chunks are missing");
            self.pending = Some((offer, there));
            return CommitAnswer::Again { problem };
        }
        for chunk in self.store.remove(&root.0).unwrap_or_default().into_values() {
            let number = |at: usize| {
                u64::from_le_bytes(chunk[8 * at..8 * at + 8].try_into().expect("eight bytes"))
            };
            if number(0) != u64::MAX {
                let disk = usize::try_from(number(0)).expect("small");
                let before = self.received.insert((disk, number(1)), number(2));
                let part = matches!(offer.header.content, Content::Seed { .. });
                self.resent += u64::from(part && before == Some(number(2)));
                self.rotten.remove(&(disk, number(1)));
            }
        }
        self.tip = match offer.header.content {
            Content::Seed { seed, part } => Tip::Seeding {
                seed,
                parts: part + 1,
                last: Some(root),
            },
            Content::Delta { sequence, .. } => {
                self.leave_out(&offer.header);
                let held = self.of_point(&offer.header, &self.received);
                let lost = self.points.insert(sequence, (held, root));
                assert!(lost.is_none(), "a point was replaced");
                if !self.rotten.is_empty() {
                    self.damaged.insert(sequence);
                }
                let term = self.lineage.current().id;
                let point = PointId { term, sequence };
                Tip::Point { point, root }
            }
        };
        CommitAnswer::Committed { tip: self.tip }
    }
}

#[derive(Clone)]
struct Shared(Arc<Mutex<World>>);

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn pause(&self, up_to_ms: u64) {
        let pause = self.world().chance.below(up_to_ms);
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }

    /// Does `work` at one instant, with a pause on either side where it may be killed, and
    /// sometimes reports a failure before or after.
    async fn local<T>(&self, step: Step, work: impl FnOnce(&mut World) -> T) -> Result<T, Problem> {
        self.pause(20).await;
        self.at(step, When::Before).await?;
        let (before, after) = {
            let mut world = self.world();
            let percent = world.weather.failing;
            (world.chance.percent(percent), world.chance.percent(percent))
        };
        if before {
            self.world().happened("failed step");
            return Err(problem(Code::Failed, "failed before"));
        }
        let result = work(&mut self.world());
        self.pause(20).await;
        self.at(step, When::After).await?;
        if after {
            self.world().happened("failed step");
            return Err(problem(Code::Failed, "failed after"));
        }
        Ok(result)
    }

    /// A request that may get lost, come late, come twice.
    async fn remote<T: Send + 'static>(
        &self,
        step: Step,
        work: impl Fn(&mut World) -> T + Send + Clone + 'static,
    ) -> Result<T, LinkError> {
        let lost = || LinkError::Lost(problem(Code::Unreachable, "lost"));
        let (gone, mute, twice, late, life) = {
            let mut world = self.world();
            let weather = world.weather;
            (
                weather.cut || world.chance.percent(weather.lost),
                world.chance.percent(weather.unanswered),
                world.chance.percent(weather.repeated),
                world.chance.percent(weather.late),
                world.life,
            )
        };
        self.pause(200).await;
        {
            let mut world = self.world();
            for (kind, it) in [
                ("lost request", gone),
                ("lost answer", mute && !gone && !late),
                ("repeated request", twice && !gone),
                ("late request", late && !gone),
            ] {
                if it {
                    world.happened(kind);
                }
            }
        }
        if gone {
            return Err(lost());
        }
        self.at(step, When::Before)
            .await
            .map_err(LinkError::Refused)?;
        if twice || late {
            let (shared, work) = (self.clone(), work.clone());
            tokio::spawn(async move {
                shared.pause(5000).await;
                let mut world = shared.world();
                // A request does not outlive the process that it was sent to.
                if world.life == life {
                    work(&mut world);
                }
            });
        }
        if late {
            return Err(lost());
        }
        // Carried out even when the caller gives up waiting.
        let shared = self.clone();
        let running = tokio::spawn(async move {
            shared.pause(100).await;
            let result = {
                let mut world = shared.world();
                (world.life == life).then(|| work(&mut world))
            };
            shared.pause(100).await;
            result
        });
        match running.await {
            Ok(Some(result)) if !mute => {
                self.at(step, When::After)
                    .await
                    .map_err(LinkError::Refused)?;
                // What kills the replica then takes its answer along.
                if self.world().life == life {
                    Ok(result)
                } else {
                    Err(lost())
                }
            }
            _ => Err(lost()),
        }
    }
}

impl Source for Shared {
    async fn track(&self) -> Result<Tracking, Problem> {
        self.local(Step::Track, World::track).await
    }

    async fn reserve_sequence(&self, above: u64) -> Result<u64, Problem> {
        self.local(Step::Reserve, |world| {
            world.sequence = world.sequence.max(above) + 1;
            world.reserving = true;
            world.sequence
        })
        .await
    }

    async fn seed(&self, part: SeedPart) -> Result<StagedPart, Problem> {
        self.local(Step::Seed, |world| {
            if !world.suspect.is_empty() {
                return Err(problem(Code::Conflict, "something is suspect"));
            }
            let step = 1 + world.chance.below(8);
            let (from, to) = (part.at.from, (part.at.from + step).min(BLOCKS));
            let blocks = (from..to).map(|block| (part.at.disk, block)).collect();
            let content = Content::Seed {
                seed: part.seed,
                part: part.part,
            };
            Ok(StagedPart {
                segment: world.stage(content, blocks),
                next: (to < BLOCKS).then_some(to),
            })
        })
        .await?
    }

    async fn cut(
        &self,
        since: Since,
        sequence: u64,
        disks: Vec<CutDisk>,
    ) -> Result<StagedPart, Problem> {
        let staging = self.world().staging;
        tokio::time::sleep(staging).await;
        self.local(Step::Cut, |world| {
            world.reserving = false;
            world.cut(since, sequence, &disks)
        })
        .await?
    }

    async fn offer(&self, staged: &Staged) -> Result<Offer, Problem> {
        self.at(Step::ReadOffer, When::Before).await?;
        let world = self.world();
        let file = world.outbox.as_ref().filter(|file| file.staged == *staged);
        let file = file.ok_or_else(|| problem(Code::Failed, "no such file"))?;
        let count = file.content.len().max(1) as u64;
        Ok(Offer {
            header: staged.header.clone(),
            root: file.root,
            round: 0,
            file_len: count * CHUNK,
            chunks: (0..count).map(|n| Digest::of(&encode(file, n))).collect(),
        })
    }

    async fn chunk(&self, staged: &Staged, n: u64) -> Result<Bytes, Problem> {
        self.at(Step::ReadChunk, When::Before).await?;
        let world = self.world();
        let file = world.outbox.as_ref().filter(|file| file.staged == *staged);
        Ok(encode(
            file.ok_or_else(|| problem(Code::Failed, "no such file"))?,
            n,
        ))
    }

    async fn confirm(&self, staged: &Staged) -> Result<(), Problem> {
        self.local(Step::Confirm, |world| {
            if world
                .outbox
                .take_if(|file| file.staged == *staged)
                .is_some()
            {
                world.confirm();
            }
        })
        .await
    }

    async fn hashes(&self, disk: DiskId, from: u64) -> Result<Suspects, Problem> {
        self.local(Step::Hashes, |world| world.hashes(disk, from))
            .await
    }

    async fn compared(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        self.local(Step::Compared, |world| world.note(disk, &regions))
            .await
    }

    async fn changing(&self, disk: DiskId, from: u64) -> Result<Changing, Problem> {
        self.local(Step::Changing, |world| world.changing(disk, from))
            .await
    }

    async fn mark(&self, disk: DiskId, regions: Vec<ComparedRegion>) -> Result<(), Problem> {
        self.local(Step::Mark, |world| world.mark(disk, &regions))
            .await
    }

    async fn suspect(&self, issued: u64) -> Result<model::Bytes, Problem> {
        self.local(Step::Suspect, |world| {
            world.suspect_all();
            world.sequence = world.sequence.max(issued);
            world.suspected()
        })
        .await
    }

    async fn fold_back(&self, staged: &Staged) -> Result<(), Problem> {
        self.local(Step::FoldBack, |world| {
            if let Some(file) = world.outbox.take_if(|file| file.staged == *staged) {
                let held = file.content.iter().map(|(key, _)| *key);
                if file.damaged && world.unreadable {
                    let lost = std::mem::take(&mut world.unconfirmed);
                    world.suspect.extend(lost);
                } else if world.lie != Some(Lie::FoldBack) {
                    world.marks.extend(held);
                }
                world.unconfirmed.clear();
            }
        })
        .await
    }

    async fn persist(&self, progress: Progress) -> Result<(), Problem> {
        self.local(Step::Persist, |world| {
            if world.lie != Some(Lie::Persist) {
                world.progress = progress;
            }
        })
        .await
    }

    async fn gate(&self, lineage: &Lineage) -> Result<(), Problem> {
        let lineage = lineage.clone();
        self.local(Step::Gate, |world| world.gated = Some(lineage))
            .await
    }
}

fn encode(file: &File, n: u64) -> Bytes {
    let index = usize::try_from(n).expect("small");
    let nothing = ((usize::MAX, 0), 0);
    let ((disk, block), value) = *file.content.get(index).unwrap_or(&nothing);
    [disk as u64, block, value]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}

impl Link for Shared {
    async fn contact(&self, _: &Lineage) -> Result<ContactAnswer, LinkError> {
        self.remote(Step::Contact, |world| {
            world.known()?;
            world.contacts += 1;
            let (role, lineage) = match world.taken_over.clone() {
                Some(lineage) => (Role::FailedOver, lineage),
                None => (Role::Replica, world.lineage.clone()),
            };
            let standing = PartnerStanding {
                role,
                lineage,
                runs: role != Role::Replica,
                stood_down: None,
            };
            Ok(ContactAnswer {
                standing,
                reception: (role == Role::Replica).then(|| world.reception()),
            })
        })
        .await?
    }

    async fn configure(&self, configure: &Configure) -> Result<ConfigureAnswer, LinkError> {
        let configure = configure.clone();
        self.remote(Step::Configure, move |world| world.on_configure(&configure))
            .await?
    }

    async fn tip(&self, _: &Lineage) -> Result<TipAnswer, LinkError> {
        self.remote(Step::Tip, |world| {
            world.known()?;
            Ok(match world.taken_over.clone() {
                Some(lineage) => TipAnswer::Superseded { lineage },
                None => TipAnswer::At {
                    tip: world.tip,
                    issued: world.issued,
                    disks: world.disks_of_tip(),
                    reception: world.reception(),
                },
            })
        })
        .await?
    }

    async fn compare(&self, ask: &Compare) -> Result<CompareAnswer, LinkError> {
        let ask = ask.clone();
        self.remote(Step::Compare, move |world| {
            world.receives()?;
            if world.uncompared {
                let problem = problem(Code::Invalid, "it cannot be compared");
                return Err(LinkError::Refused(problem));
            }
            Ok(world.on_compare(&ask))
        })
        .await?
    }

    async fn offer(&self, offer: &Offer) -> Result<OfferAnswer, LinkError> {
        let offer = offer.clone();
        self.remote(Step::Offer, move |world| {
            world.receives()?;
            Ok(world.on_offer(&offer))
        })
        .await?
    }

    async fn put(&self, root: Root, n: u64, chunk: Bytes) -> Result<(), LinkError> {
        self.remote(Step::Put, move |world| world.on_put(root, n, &chunk))
            .await?
    }

    async fn commit(&self, root: Root) -> Result<CommitAnswer, LinkError> {
        self.remote(Step::Commit, move |world| {
            world.receives()?;
            world.on_commit(root)
        })
        .await?
    }
}

struct Running {
    task: JoinHandle<()>,
    commands: mpsc::Sender<Command>,
    reports: watch::Receiver<LinkReport>,
    configurations: watch::Sender<Arc<Configuration>>,
}

fn start(shared: &Shared) -> Running {
    let (plan, progress, chance) = {
        let mut world = shared.world();
        let plan = Plan {
            thing: "VM `web`".to_owned(),
            partner: "host-b".to_owned(),
            disks: world.disks[..DISKS].to_vec(),
            lineage: world.lineage.clone(),
            configuration: world.configuration.clone(),
        };
        (plan, world.progress, world.chance.next())
    };
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let state = ReplicationState::ReadyForInitialReplication;
    let (sender, reports) = watch::channel(LinkReport::new(state));
    let both = Arc::new(shared.clone());
    let (configurations, configuration) = watch::channel(plan.configuration.clone());
    let task = tokio::spawn(run(
        both.clone(),
        both,
        Begin {
            plan,
            progress,
            suspended: false,
            chance,
            configuration,
        },
        receiver,
        sender,
    ));
    Running {
        task,
        commands,
        reports,
        configurations,
    }
}

async fn wait_for(running: &Running, what: &str, good: impl Fn(&LinkReport) -> bool) {
    let limit = Duration::from_secs(3600);
    let mut reports = running.reports.clone();
    let waited = tokio::time::timeout(limit, reports.wait_for(|r| good(r))).await;
    match waited {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => panic!("the driver ended before: {what}"),
        Err(_) => panic!("never: {what}: {:?}", *running.reports.borrow()),
    }
}

/// Every point that the replica holds is what the disks held at its cut, and the newest one is
/// what they hold now.
fn check_points(world: &World) {
    for (sequence, (held, root)) in &world.points {
        if world.damaged.contains(sequence) {
            continue;
        }
        assert_eq!(held, &world.cuts[&root.0], "point {sequence}");
    }
    let (_, (last, _)) = world.points.last_key_value().expect("points");
    let disks = world.replicated();
    let mut now = world.content.clone();
    now.retain(|(disk, _), _| disks.contains(disk));
    assert_eq!(last, &now, "the newest point");
}

/// What must have happened in many lives.
const LIVES: [&str; 15] = [
    "lost request",
    "lost answer",
    "repeated request",
    "late request",
    "failed step",
    "network cut",
    "primary killed",
    "primary lost power",
    "replica killed",
    "primary restored",
    "replica restored",
    "paused on the replica",
    "another configuration",
    "regions compared",
    "points",
];

/// What happened.
async fn live_through(seed: u64, lie: Option<Lie>) -> Seen {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    shared.world().lie = lie;
    shared.world().add_disks();
    let mut running = start(&shared);
    let steps = 30 + shared.world().chance.below(60);
    let (mut primary, mut replica): (Option<tracking::Primary>, Option<tracking::Replica>) =
        (None, None);
    for _ in 0..steps {
        shared.pause(3000).await;
        let (action, writes) = {
            let mut world = shared.world();
            (world.chance.below(100), world.chance.below(6))
        };
        for _ in 0..writes {
            shared.world().write();
        }
        match action {
            0..20 => shared.world().bad_weather(),
            20..33 => shared.world().weather = CALM,
            33..47 => {
                // Killed at whatever it was doing; nothing that it had begun goes on.
                running.task.abort();
                let _ = running.task.await;
                shared.world().happened("primary killed");
                if action >= 39 {
                    shared.world().power_cut();
                }
                running = start(&shared);
            }
            47..57 => shared.world().replica_restart(),
            57..62 => {
                let _ = running.commands.send(Command::Suspend).await;
                shared.pause(20_000).await;
                let _ = running.commands.send(Command::Resume).await;
            }
            62..69 => shared.world().flush(),
            // Reopened after a failed flush.
            72 => shared.world().suspect_all(),
            // A person cleans up.
            73 => shared.world().lose_outbox(),
            74..78 => primary = shared.world().copy_primary(),
            78..82 => replica = shared.world().copy_replica(),
            // Each at most once, or it would be an error that asks for a person.
            69..72 | 82 | 83 => {
                if let Some(copy) = primary.take() {
                    running.task.abort();
                    let _ = running.task.await;
                    // What it had sent before does not outlive a restore.
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    shared.world().restore_primary(copy);
                    running = start(&shared);
                }
            }
            84 | 85 => {
                if let Some(copy) = replica.take() {
                    shared.world().restore_replica(copy);
                }
            }
            86..89 => {
                shared.world().happened("paused on the replica");
                shared.world().paused = true;
            }
            89..93 => shared.world().paused = false,
            93..95 => shared.reconfigure(&running),
            95 => shared.world().rot(),
            96 => {
                let _ = running.commands.send(Command::Verify(action)).await;
            }
            _ => shared.change_disks(&running),
        }
        let report = running.reports.borrow().clone();
        assert_ne!(report.state, ReplicationState::Error, "{report:?}");
    }
    shared.world().weather = CALM;
    shared.world().paused = false;
    let _ = running.commands.send(Command::Resume).await;
    // A point cut after the last write was acknowledged.
    let last = {
        let world = shared.world();
        match world.tip {
            Tip::Point { point, .. } => world.sequence.max(point.sequence),
            _ => world.sequence,
        }
    };
    wait_for(&running, "a point after the last write", |report| {
        let newest = report.acknowledged.map_or(0, |point| point.sequence);
        newest > last + 1 && report.joining.is_empty()
    })
    .await;
    shared.world().rot();
    verify::until_whole(&shared, &running).await;
    let _ = running.commands.send(Command::Stop).await;
    running.task.await.expect("ends without a panic");
    let mut world = shared.world();
    assert_eq!(world.followed.as_ref(), Some(&world.configuration));
    check_points(&world);
    world.sum_up()
}

/// How many seeds are tried: as many as `POLLUX_SEEDS` says.
fn seeds() -> u64 {
    told("POLLUX_SEEDS").unwrap_or(100)
}

fn told(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first `count` seeds, or the one that `POLLUX_SEED` names.
fn chosen(count: u64) -> std::ops::Range<u64> {
    match told("POLLUX_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..count + 1,
    }
}

/// Tries the first `count` seeds; says which one failed, and what happened in all of them.
fn try_seeds(count: u64, life: impl Fn(u64) -> Seen) -> Seen {
    let mut all = Seen::default();
    for seed in chosen(count) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(seed)));
        match outcome {
            Ok(seen) => all.merge(&seen),
            Err(_) => panic!("seed {seed} failed; POLLUX_SEED={seed} repeats it"),
        }
    }
    println!("{} seeds: {:?}", chosen(count).count(), all.0);
    all
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}

#[test]
fn through_cuts_losses_repeats_and_restarts_the_replica_ends_equal_and_no_point_is_lost() {
    let seen = try_seeds(seeds(), |seed| paused().block_on(live_through(seed, None)));
    // The test must come to the places that it is about.
    if chosen(seeds()).count() >= 100 {
        let rare = LIVES
            .iter()
            .find(|kind| seen.0.get(*kind).is_none_or(|count| *count < 10));
        assert_eq!(rare, None, "{:?}", seen.0);
    }
}

#[test]
fn a_source_that_breaks_its_promises_is_found_out() {
    for lie in [
        Lie::FoldBack,
        Lie::Persist,
        Lie::PowerCut,
        Lie::Compared,
        Lie::Mark,
        Lie::Sweep,
        Lie::Cut,
    ] {
        let found = (1..seeds() + 1).any(|seed| {
            let life = || paused().block_on(live_through(seed, Some(lie)));
            std::panic::catch_unwind(life).is_err()
        });
        assert!(found, "{lie:?}");
    }
}

#[test]
fn on_a_good_network_every_chunk_is_sent_once_and_no_cycle_is_missed() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(7))));
        let running = start(&shared);
        wait_for(&running, "10 points", |report| report.cycles >= 10).await;
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.link_losses), (0, 0));
        assert_eq!(report.spared.0, 0);
        assert_eq!(report.state, ReplicationState::Replicating);
        let world = shared.world();
        assert_eq!(world.unasked, 0);
        assert_eq!(report.shipped.0, world.puts * CHUNK);
    });
}

#[test]
fn after_a_cut_in_the_middle_only_the_missing_chunks_are_sent() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(11))));
        let running = start(&shared);
        wait_for(&running, "the first point", |report| report.cycles >= 1).await;
        // Every block changes, and the network is cut once some of them have come.
        shared.world().write_all();
        shared.world().puts = 0;
        wait_for(&running, "half of it", |report| {
            report
                .transfer
                .is_some_and(|t| t.sent.0 > t.total.0 / 2 && t.total.0 > 20 * CHUNK)
        })
        .await;
        shared.world().weather.cut = true;
        wait_for(&running, "a lost link", |report| report.link_losses > 2).await;
        shared.world().weather.cut = false;
        let cycles = running.reports.borrow().cycles;
        wait_for(&running, "the point", |report| report.cycles > cycles).await;
        let report = running.reports.borrow().clone();
        assert!(report.spared.0 > 20 * CHUNK, "{report:?}");
        let world = shared.world();
        assert_eq!(world.unasked, 0);
        let blocks = DISKS as u64 * BLOCKS;
        assert!(
            world.puts <= blocks + 3 * crate::sender::WINDOW as u64,
            "{}",
            world.puts
        );
    });
}

#[test]
fn when_the_replica_took_over_the_guest_is_stopped_and_nothing_more_is_sent() {
    for seed in 1..50 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            let running = start(&shared);
            wait_for(&running, "a point", |report| report.cycles >= 1).await;
            let theirs = {
                let mut world = shared.world();
                world.weather.failing = 10;
                world.weather.cut = world.chance.percent(50);
                let Tip::Point { point, .. } = world.tip else {
                    panic!("a point was acknowledged")
                };
                world.lineage.branch(point, "host-b").expect("on it")
            };
            let before = {
                let mut world = shared.world();
                world.taken_over = Some(theirs.clone());
                world.points.len()
            };
            shared.pause(30_000).await;
            shared.world().weather.cut = false;
            let ended = tokio::time::timeout(Duration::from_secs(600), running.task).await;
            ended.expect("in time").expect("without a panic");
            let world = shared.world();
            assert_eq!(world.gated.as_ref(), Some(&theirs), "seed {seed}");
            assert_eq!(world.points.len(), before);
            let state = running.reports.borrow().state;
            assert_eq!(state, ReplicationState::StoodDown);
        });
    }
}

/// What the driver is at when the replica takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Idle,
    Suspended,
    Error,
    Staging,
    Partition,
}

#[test]
fn the_guest_is_stopped_a_second_after_the_first_contact_whatever_the_driver_is_at() {
    for at in [
        At::Idle,
        At::Suspended,
        At::Error,
        At::Staging,
        At::Partition,
    ] {
        for seed in 1..20 {
            paused().block_on(superseded(at, seed));
        }
    }
}

async fn superseded(at: At, seed: u64) {
    let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
    shared.world().every(300);
    let running = start(&shared);
    wait_for(&running, "a point", |report| report.cycles >= 1).await;
    match at {
        At::Idle => {}
        At::Suspended => {
            let _ = running.commands.send(Command::Suspend).await;
            wait_for(&running, "a pause", |report| {
                report.state == ReplicationState::Suspended
            })
            .await;
        }
        At::Error => {
            shared.world().damage = u32::MAX;
            wait_for(&running, "an error", |report| {
                report.state == ReplicationState::Error
            })
            .await;
        }
        At::Staging => {
            shared.world().staging = Duration::from_secs(3600);
            let before = shared.world().sequence;
            while shared.world().sequence == before {
                shared.pause(1000).await;
            }
        }
        At::Partition => {
            shared.world().weather.cut = true;
            shared.pause(600_000).await;
        }
    }
    shared.pause(5000).await;
    {
        let mut world = shared.world();
        let Tip::Point { point, .. } = world.tip else {
            panic!("a point was acknowledged")
        };
        let theirs = world.lineage.branch(point, "host-b").expect("on it");
        world.taken_over = Some(theirs);
    }
    let healed = Instant::now();
    shared.world().weather.cut = false;
    while shared.world().gated.is_none() {
        assert!(healed.elapsed() < Duration::from_secs(60), "{at:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Contact takes up to 400 ms and an answer that just missed the takeover as long again.
    let pause = match at {
        At::Partition => LONGEST_CONTACT,
        _ => crate::sender::CONTACT,
    };
    let limit = pause + Duration::from_millis(900);
    assert!(healed.elapsed() < limit, "{at:?}: {:?}", healed.elapsed());
    running.task.await.expect("ends without a panic");
    let state = running.reports.borrow().state;
    assert_eq!(state, ReplicationState::StoodDown);
}

#[test]
fn contact_is_made_every_second_and_no_measure_knows_of_it() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(5))));
        shared.world().every(300);
        let running = start(&shared);
        wait_for(&running, "a point", |report| report.cycles >= 1).await;
        let before = running.reports.borrow().clone();
        shared.world().contacts = 0;
        tokio::time::sleep(Duration::from_secs(100)).await;
        let contacts = shared.world().contacts;
        assert!((60..=100).contains(&contacts), "{contacts}");
        shared.world().weather.cut = true;
        tokio::time::sleep(Duration::from_secs(100)).await;
        // One may have been on its way.
        assert!(shared.world().contacts <= contacts + 1);
        let after = running.reports.borrow().clone();
        let measures = |r: &LinkReport| (r.cycles, r.missed, r.link_losses, r.shipped);
        assert_eq!(measures(&after), measures(&before));
        assert_eq!(
            (after.last_error, after.state),
            (None, ReplicationState::Replicating)
        );
        shared.world().weather.cut = false;
        wait_for(&running, "5 points", |report| report.cycles >= 6).await;
        let report = running.reports.borrow().clone();
        assert_eq!((report.missed, report.link_losses), (0, 0));
    });
}

#[test]
fn a_replica_that_restarts_again_and_again_is_no_error() {
    paused().block_on(async {
        let shared = Shared(Arc::new(Mutex::new(World::new(13))));
        let running = start(&shared);
        wait_for(&running, "the first point", |report| report.cycles >= 1).await;
        // Every block changes; what it holds of them is kept over most of its restarts.
        shared.world().write_all();
        for _ in 0..12 {
            let puts = shared.world().puts;
            wait_for(&running, "some chunks", |report| {
                report.transfer.is_some_and(|t| t.sent.0 < t.total.0) && shared.world().puts > puts
            })
            .await;
            shared.world().replica_restart();
        }
        let cycles = running.reports.borrow().cycles;
        wait_for(&running, "the point", |report| report.cycles > cycles).await;
        check_points(&shared.world());
    });
}

#[test]
fn a_damaged_segment_is_folded_back_and_cut_anew_until_it_is_clear_that_all_are() {
    for seed in 1..20 {
        paused().block_on(async move {
            let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
            // Parts of the initial replication first.
            shared.world().damage = 2;
            let running = start(&shared);
            wait_for(&running, "the first point", |report| report.cycles >= 1).await;
            shared.world().write();
            shared.world().damage = 1;
            wait_for(&running, "two more", |report| report.cycles >= 3).await;
            assert_eq!(running.reports.borrow().last_error, None);
            check_points(&shared.world());
            shared.world().damage = u32::MAX;
            wait_for(&running, "an error", |report| {
                report.state == ReplicationState::Error
            })
            .await;
            let problem = running.reports.borrow().last_error.clone().expect("why");
            assert!(problem.way_out.contains("resume"), "{problem}");
            shared.world().damage = 0;
            let _ = running.commands.send(Command::Resume).await;
            wait_for(&running, "one more", |report| report.cycles >= 4).await;
            check_points(&shared.world());
        });
    }
}

#[test]
fn a_part_or_a_point_that_nobody_can_read_is_marked_or_compared_and_nothing_is_refused_for_it() {
    for seed in 1..30 {
        for (parts, damage) in [(0, 1), (1, 1), (7, 1), (8, 2), (u64::MAX, 1)] {
            paused().block_on(async move {
                let shared = Shared(Arc::new(Mutex::new(World::new(seed))));
                shared.world().unreadable = true;
                let running = start(&shared);
                // In the first part, in one in the middle, in the last ones, or in a point.
                let is_there = |world: &World| match world.progress {
                    Progress::Seeding { part, .. } => part >= parts,
                    Progress::Live { .. } => true,
                };
                wait_for(&running, "the part", |_| is_there(&shared.world())).await;
                shared.world().damage = damage;
                shared.world().write();
                wait_for(&running, "points", |report| report.cycles >= 3).await;
                assert_eq!(shared.world().damage, 0);
                let report = running.reports.borrow().clone();
                assert_eq!(report.last_error, None, "part {parts}");
                let world = shared.world();
                assert!(world.suspect.is_empty());
                check_points(&world);
            });
        }
    }
}

#[test]
fn a_position_past_a_disk_that_stands_still_ends_the_disk() {
    // A source whose `next` does not rise must not be asked for ever.
    let lineage = Lineage::begin("host-a");
    let configuration = Arc::new(reception::configuration(VmId::random(), &[], 5));
    let plan = Plan {
        thing: "VM `web`".to_owned(),
        partner: "host-b".to_owned(),
        disks: vec![DiskId::random()],
        lineage,
        configuration: configuration.clone(),
    };
    let seed = SeedId::random();
    let progress = Progress::begin(seed);
    let mut sender = Sender::new(plan, progress, 1);
    let now = Now {
        since_start: Duration::ZERO,
        wall: Timestamp::UNIX_EPOCH,
    };
    let outputs = sender.apply(now, Event::Resume);
    assert_eq!(outputs.first(), Some(&Output::Track));
    let tracking = Tracking {
        exact: true,
        suspect: model::Bytes(0),
        staged: None,
        progress,
        reserved: 0,
    };
    assert_eq!(
        sender.apply(now, Event::Tracked(Ok(tracking))),
        [Output::AskTip]
    );
    let tip = TipAnswer::At {
        tip: Tip::Nothing,
        issued: 0,
        disks: Vec::new(),
        reception: Reception {
            paused: false,
            revision: Some(configuration.revision()),
            filling: None,
        },
    };
    let outputs = sender.apply(now, Event::Tip(Ok(tip)));
    assert!(matches!(outputs[..], [Output::Seed(_)]));
    let world = World::new(1);
    let part = StagedPart {
        segment: Staged {
            file: "0.segment".into(),
            header: world.header(Content::Seed { seed, part: 0 }),
            root: Root([0; 32]),
        },
        next: Some(0),
    };
    let outputs = sender.apply(now, Event::SeedStaged(Ok(part)));
    let [Output::Persist(Progress::Seeding { end: Some(end), .. })] = outputs[..] else {
        panic!("{outputs:?}")
    };
    assert_eq!(end, Position { disk: 1, from: 0 });
}
