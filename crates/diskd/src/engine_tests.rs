//! The engine with owners that behave badly.

use std::path::PathBuf;
use std::thread::JoinHandle;

use block::Buffer;
use journal::segment::FITTING;
use journal::{Consistency, DiskExtent};
use model::{Lineage, SeedId, Since};
use ring::Ring;

use super::*;
use crate::flow::{Cause, Flow, Payload, Piece};
use crate::owner::{Delivery, SealFault};
use crate::staging::StageReport;
use crate::tracker::SealError;
use journal::{Content, Header, SegmentReader, SegmentWriter};

const SIZE: Bytes = Bytes(16 * BLOCK_SIZE);
/// Longest time until an answer comes.
const LIMIT: Duration = Duration::from_secs(20);

/// How an owner behaves when it is told to cut.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As it should.
    Good,
    /// It never carries out the end of the epoch.
    Stuck,
    /// It refuses to seal, after the others have staged.
    Refuses,
    /// It puts a folder where the segment is to be.
    Blocks,
}

struct Scene {
    folder: tempfile::TempDir,
    engine: Arc<Engine>,
    header: Header,
    /// Marked blocks of each disk that take space.
    content: Arc<AtomicU64>,
    /// What each owner was told about the end of an epoch.
    owners: Vec<JoinHandle<Vec<&'static str>>>,
}

impl Scene {
    fn new<const N: usize>(manners: [Manner; N]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let (vm, lineage) = (VmId::random(), Lineage::begin("host-a"));
        let staged = Arc::new(std::sync::Barrier::new(N));
        let content = Arc::<AtomicU64>::default();
        let (mut disks, mut owners) = (Vec::new(), Vec::new());
        for manner in manners {
            let (orders, mailbox) = ring::mailbox(4);
            disks.push(Disk {
                id: DiskId::random(),
                size: SIZE.0.into(),
                orders,
                stats: Arc::default(),
            });
            let (file, staged) = (file(&folder), Arc::clone(&staged));
            let content = Arc::clone(&content);
            owners.push(std::thread::spawn(move || {
                let ring = Ring::new(4).expect("io_uring");
                ring.block_on(own(mailbox, manner, file, &staged, &content))
            }));
        }
        let header = Header {
            vm,
            disks: disks
                .iter()
                .map(|disk| DiskExtent {
                    joining: false,
                    id: disk.id,
                    size: SIZE,
                })
                .collect(),
            content: Content::Delta {
                sequence: 1,
                since: Since::Seed {
                    seed: SeedId::random(),
                    parts: 1,
                },
            },
            time: jiff::Timestamp::now(),
            consistency: Consistency::Crash,
            lineage,
        };
        let config = Config {
            vm,
            term: 1,
            generation: 1,
            disks: Vec::new(),
            copy_budget: Bytes(1 << 20),
        };
        let mut engine = Engine::new(PathBuf::new(), &config, disks, Vec::new());
        engine.patience = Duration::from_millis(100);
        Self {
            folder,
            engine: Arc::new(engine),
            header,
            content,
            owners,
        }
    }

    /// Asks for a cut; the answer must come.
    fn cut(&self) -> Result<Reply, Problem> {
        let (answer, answered) = mpsc::channel();
        let (engine, header) = (Arc::clone(&self.engine), self.header.clone());
        let file = file(&self.folder);
        std::thread::spawn(move || {
            let _ = answer.send(engine.cut(header, &[], None, &file));
        });
        answered.recv_timeout(LIMIT).expect("it hangs")
    }

    fn told(self) -> Vec<Vec<&'static str>> {
        drop(self.engine);
        let owners = self.owners.into_iter();
        owners
            .map(|owner| owner.join().expect("an owner"))
            .collect()
    }

    fn outbox(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.path()).expect("listed");
        entries
            .map(|entry| {
                let name = entry.expect("an entry").file_name();
                name.to_str().expect("ours").to_owned()
            })
            .collect()
    }
}

fn file(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("1.delta")
}

async fn own(
    orders: ring::Mailbox<Order>,
    manner: Manner,
    file: PathBuf,
    staged: &std::sync::Barrier,
    content: &AtomicU64,
) -> Vec<&'static str> {
    let mut told = Vec::new();
    // As long as an epoch is sealed, its sink holds a sender; and who is stuck answers nobody.
    let (mut sink, mut unanswered) = (None, Vec::new());
    while let Some(order) = orders.recv().await {
        match order {
            Order::Cut(cut, stage) => {
                // Should it be given up on a busy host, this one seals all the same.
                let _ = cut.parked().await;
                let disk = stage.disk;
                let sealed = |outcome| Delivery::Sealed {
                    disk,
                    outcome,
                    pause: Duration::ZERO,
                };
                let tell = |delivery| stage.deliveries.send(delivery).expect("heard");
                if manner == Manner::Refuses {
                    staged.wait();
                    tell(sealed(Err(SealFault::Seal(SealError::NotTracking))));
                    continue;
                }
                tell(sealed(Ok(None)));
                let len = usize::try_from(BLOCK_SIZE).expect("4096");
                tell(Delivery::Piece(Piece {
                    disk,
                    block: 3,
                    content: Payload::Read(Buffer::from_slice(&vec![7; len])),
                    cause: Cause::Staged,
                    permit: Arc::new(Flow::default()).take(Cause::Staged, BLOCK_SIZE),
                }));
                if manner == Manner::Blocks {
                    std::fs::create_dir(&file).expect("made");
                }
                tell(Delivery::Staged {
                    disk,
                    outcome: Ok(StageReport::default()),
                });
                staged.wait();
                sink = Some(stage.deliveries);
            }
            Order::Coarsen(most, answer) => {
                assert_eq!(most, MOST_RUNS / 2);
                told.push("coarsen");
                let _ = answer.send(());
            }
            // Of all that is marked so much takes space.
            Order::Content(most, answer) => {
                told.push("content");
                let _ = answer.send(content.load(Relaxed).min(most + 1));
            }
            Order::Abandon => told.push("abandon"),
            Order::End(whole, answer) => {
                told.push(if whole { "whole" } else { "fold back" });
                if manner == Manner::Stuck {
                    unanswered.push(answer);
                } else {
                    drop(sink.take());
                    let _ = answer.send(());
                }
            }
            _ => panic!("nothing else is asked"),
        }
    }
    drop(unanswered);
    told
}

#[test]
fn a_whole_segment_is_no_error_though_an_owner_does_not_hear_that_it_is() {
    let scene = Scene::new([Manner::Stuck, Manner::Good]);
    let reply = scene.cut().expect("the file is there");
    assert!(matches!(reply, Reply::Staged(_)), "{reply:?}");
    assert_eq!(scene.outbox(), ["1.delta"]);
    assert!(SegmentReader::open(&file(&scene.folder)).is_ok());
    assert_eq!(scene.told(), [vec!["whole"], vec!["whole"]]);
}

#[test]
fn what_a_segment_has_no_room_for_is_coarsened_on_every_disk_before_any_is_held_up() {
    let scene = Scene::new([Manner::Good, Manner::Good]);
    for (disk, marked) in scene.engine.disks.iter().zip([MOST_RUNS, 1]) {
        disk.stats
            .dirty
            .store(marked, std::sync::atomic::Ordering::Relaxed);
    }
    scene.cut().expect("whole");
    assert_eq!(
        scene.told(),
        [vec!["coarsen", "whole"], vec!["coarsen", "whole"]]
    );
}

#[test]
fn what_no_segment_can_hold_is_refused_before_it_is_read_and_cut_once_it_fits() {
    let most = FITTING / BLOCK_SIZE;
    let scene = Scene::new([Manner::Good, Manner::Good]);
    for disk in &scene.engine.disks {
        disk.stats.dirty.store(most / 2 + 1, Relaxed);
    }
    scene.content.store(most / 2 + 1, Relaxed);
    for _ in 0..2 {
        let problem = scene.cut().expect_err("more than a segment holds");
        assert_eq!(problem.code, Code::Full, "{problem}");
        assert!(problem.reason.contains("255 GiB"), "{problem}");
        for part in ["stay marked", "by itself", "`pollux replica remove`"] {
            assert!(problem.way_out.contains(part), "{problem}");
        }
        assert!(scene.outbox().is_empty());
    }
    // The guest gave some of it back.
    scene.content.store(most / 2, Relaxed);
    scene.cut().expect("whole");
    let told = ["content", "content", "content", "coarsen", "whole"];
    assert_eq!(scene.told(), [told, told]);
}

#[test]
fn a_segment_that_cannot_get_its_name_is_folded_back_and_leaves_no_file() {
    let scene = Scene::new([Manner::Good, Manner::Blocks]);
    let problem = scene.cut().expect_err("the name is taken");
    assert_eq!(problem.code, Code::Failed, "{problem}");
    assert_eq!(
        scene.outbox(),
        ["1.delta"],
        "the folder that was in the way"
    );
    let told = scene.told();
    assert_eq!(
        told,
        [vec!["abandon", "fold back"], vec!["abandon", "fold back"]]
    );
}

#[test]
fn a_disk_that_was_staged_before_another_refused_is_folded_back_and_nobody_waits() {
    let scene = Scene::new([Manner::Good, Manner::Refuses]);
    let problem = scene.cut().expect_err("one refuses");
    assert_eq!(problem.code, Code::Conflict, "{problem}");
    assert!(scene.outbox().is_empty());
    for told in scene.told() {
        assert_eq!(told, ["abandon", "fold back"]);
    }
}

#[test]
fn every_owner_hears_of_the_end_though_the_first_takes_no_more_orders() {
    let scene = Scene::new([Manner::Stuck, Manner::Good]);
    scene.cut().expect("whole");
    // Dead: its mailbox is closed.
    let (dead, mailbox) = ring::mailbox(1);
    drop(mailbox);
    let [_, good] = &scene.engine.disks[..] else {
        panic!("two disks");
    };
    let dead = Disk {
        id: DiskId::random(),
        size: SIZE.0.into(),
        orders: dead,
        stats: Arc::default(),
    };
    scene.engine.end_epoch(&[&dead, good], false);
    assert_eq!(scene.told()[1], ["whole", "fold back"]);
}

/// Takes what is to be marked, in the lots in which it comes.
async fn mark(orders: ring::Mailbox<Order>) -> Vec<Vec<std::ops::Range<u64>>> {
    let mut lots = Vec::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::FoldBack(Some(runs), answer) => {
                lots.push(runs);
                let _ = answer.send(Ok(()));
            }
            Order::Confirm(answer) => {
                let _ = answer.send(());
            }
            _ => panic!("nothing else is asked"),
        }
    }
    lots
}

#[test]
fn a_segment_of_many_runs_is_folded_back_in_lots_and_all_of_it_on_its_disk() {
    const RUNS: [u64; 3] = [40_000, 0, 5];
    let mut scene = Scene::new([Manner::Good; 3]);
    let engine = Arc::get_mut(&mut scene.engine).expect("nobody else has it");
    engine.patience = LIMIT;
    let owners = engine.disks.iter_mut().map(|disk| {
        let (orders, mailbox) = ring::mailbox(4);
        disk.orders = orders;
        std::thread::spawn(move || Ring::new(4).expect("io_uring").block_on(mark(mailbox)))
    });
    let owners: Vec<_> = owners.collect();
    for disk in &mut scene.header.disks {
        disk.size = Bytes(1 << 40);
    }
    let path = file(&scene.folder);
    let made = std::fs::File::create(&path).expect("made");
    let mut writer = SegmentWriter::create(made, &scene.header).expect("begun");
    for (disk, runs) in (0..).zip(RUNS) {
        for run in 0..runs {
            writer.push_zero(disk, run * 3, 2).expect("pushed");
        }
    }
    writer.finish().expect("whole");

    scene.engine.fold_back(&path).expect("folded back");
    assert!(scene.outbox().is_empty());
    drop(scene);
    for (owner, runs) in owners.into_iter().zip(RUNS) {
        let lots = owner.join().expect("an owner");
        assert!(lots.iter().all(|lot| lot.len() <= 1 << 14));
        let expected: Vec<_> = (0..runs).map(|run| run * 3..run * 3 + 2).collect();
        assert_eq!(lots.concat(), expected);
    }
}
