//! The driver over a simulated network, a source and a replica in memory, with injected chance
//! and paused time. A seed that fails prints itself, and `POLLUX_SEED` repeats it; `POLLUX_SEEDS` raises
//! their number.
//!
//! The primary's disks have what the guest sees and what a power cut leaves; everything that
//! was written since the last flush is there or lost, block by block. The regions that differ,
//! at most, survive it ([`tracking`]). Both hosts are also restored from older copies of themselves, a
//! copy of the VM runs on another host, and each host's clock is set.
//!
//! Here is the world of both hosts; the primary's side of it is in [`source`] and [`tracking`], the other one in
//! [`replica`], what lies between them in [`wire`], and single faults in [`steps`].

mod clocks;
mod join;
mod life;
mod network;
mod reception;
mod replica;
mod resync;
mod running;
mod second;
mod seeding;
mod source;
mod steps;
mod takeover;
mod tracking;
mod verify;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use journal::{Consistency, Content, DiskExtent, Header, Root};
use model::{Code, DiskId, Keep, Lineage, PointId, Problem, ReplicationState, SeedId, Since, VmId};
use tokio::task::JoinHandle;

use clocks::Clocks;
use running::{Running, chosen, paused, seeds, start, try_seeds, wait_for};
use steps::{Faults, Seen, Step, When};
use wire::Wire;

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
    /// The replica lets in another host than the relationship is with.
    Stranger,
    /// It takes the point of the latest time for its newest one.
    Times,
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
    clocks: Clocks,
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
    /// The twin began with disks that must stay as they are until the first point.
    base_stays: bool,
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
    /// When each was cut, by the primary's clock.
    times: BTreeMap<u64, Timestamp>,
    /// Which of them stay.
    keep: Option<Keep>,
    /// The disks that each point has.
    whole: BTreeMap<u64, Vec<DiskId>>,
    received: Disks,
    /// Blocks of it that are not what was received, and the points that held such.
    rotten: BTreeSet<(usize, u64)>,
    damaged: BTreeSet<u64>,
    pending: Option<(Offer, BTreeSet<u64>)>,
    /// Chunks on the replica's disk, by root.
    store: BTreeMap<Root2, BTreeMap<u64, Bytes>>,
    /// Chunks of a part that were laid down before its commit.
    ahead: BTreeMap<(Root2, u64), Laid>,
    /// Blocks of which the content came so, and was not committed since.
    tentative: BTreeSet<(usize, u64)>,
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
    /// It has the disks back that it had in this lineage.
    given_back: Option<Lineage>,
    contacts: u64,
    /// Chunks that were put though the last offer's answer did not ask for them.
    unasked: u64,
    puts: u64,
    asked: BTreeSet<(Root2, u64)>,
    /// What a test does at a step, and what chance did.
    faults: Faults,
    seen: Seen,
}

/// A block that was written, and what was there before.
type Laid = Option<((usize, u64), Option<u64>)>;
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
            clocks: Clocks::new(),
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
            base_stays: false,
            filling: None,
            too_early: 0,
            followed: None,
            unfit: false,
            ended: false,
            points: BTreeMap::new(),
            times: BTreeMap::new(),
            keep: None,
            whole: BTreeMap::new(),
            received: Disks::new(),
            rotten: BTreeSet::new(),
            damaged: BTreeSet::new(),
            pending: None,
            store: BTreeMap::new(),
            ahead: BTreeMap::new(),
            tentative: BTreeSet::new(),
            issued: 0,
            round: 0,
            resent: 0,
            life: 0,
            compared: 0,
            strange_answers: false,
            uncompared: false,
            taken_over: None,
            given_back: None,
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
            time: self.clocks.primary.says(),
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
