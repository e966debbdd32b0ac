//! A failover is completed by the functions that the owner calls, with a crash after any of them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use diskd::config::StackSpec;
use journal::Journal;
use model::{Bus, Bytes, DiskSpec, Generation, PointId, VmId, VmSpec};

use super::*;
use crate::flushes::Flushes;
use crate::stores::Place;
use crate::vm::create;
use crate::vm::folder::Made;
use crate::vm::takeover::{Above, FAILOVER, make, since_failover, tests::twin};

const POINTS: u64 = 9;
const CHOSEN: usize = 4;

/// A machine that a failover to a point in the middle made.
pub(in crate::vm) fn failed_over(home: &Path) -> (Store, VmFolder, Vec<PointId>) {
    let (store, extent, points) = twin(home, POINTS);
    let mut disk = DiskSpec::new("disk0.raw".into(), extent.size, Bus::Virtio, 0);
    disk.id = extent.id;
    let name = "web".parse().expect("a name");
    let memory = Bytes(64 << 20);
    let spec = VmSpec::new(name, Generation::Two, 1, memory, false, None, vec![disk]);
    let (spec, checkpoint) = since_failover(&spec.expect("a VM")).expect("a checkpoint");
    let above = Above {
        name: FAILOVER,
        made: Made::Failover,
        spec,
        twin: VmId::random(),
        point: points[CHOSEN],
        checkpoint: Some(checkpoint),
        term: None,
    };
    let folder = make(home, &store, above).expect("made");
    (store, folder, points)
}

/// As a polluxd that is started now finds it.
fn found(home: &Path) -> (Store, VmFolder) {
    create::sweep(home).expect("swept");
    let folder = VmFolder::read(&home.join(FAILOVER)).expect("it can be read");
    let store = Store::new(Place::beside(home), folder.thing(), Flushes::default());
    let store = store.after_failover(true, folder.lies_on_files());
    (store, folder)
}

/// What the disk is made of holds the content of the chosen point.
fn assert_point(store: &Store, folder: &VmFolder) {
    let StackSpec::Overlay { below, .. } = folder.stack(&folder.spec.disks[0]) else {
        return;
    };
    let point = match *below {
        StackSpec::Raw { file } => std::fs::read(file).expect("its file is there")[0],
        StackSpec::Point { point, .. } => {
            let disk = folder.spec.disks[0].id;
            let mut block = [0; 4096];
            let reader = store.with(|journal| Ok(journal.open_point(point).expect("it is there")));
            let reader = reader.expect("opened");
            reader.read_at(disk, 0, &mut block).expect("read");
            block[0]
        }
        StackSpec::Overlay { .. } => panic!("two overlays"),
    };
    assert_eq!(usize::from(point), CHOSEN + 1);
}

/// Does a step: all of it, or what is done until a crash of number `crash`.
fn take(step: &Step, store: &Store, folder: &VmFolder, crash: usize) {
    match step {
        Step::Shrink(point) => {
            if crash == 1 {
                let cut = |journal: &mut Journal| {
                    let now = jiff::Timestamp::now();
                    assert_eq!(journal.cut_off_after(*point, now).expect("done"), None);
                    Ok(())
                };
                return store.with(cut).expect("cut off");
            }
            store.keep_only(*point, |_, _| {}).expect("kept");
            if crash == 2 {
                return;
            }
            assert_eq!(store.link(folder).expect("linked"), []);
            if crash == 3 {
                return;
            }
            let mut flat = folder.clone();
            flat.origin.as_mut().expect("an origin").flat = true;
            flat.write().expect("written");
        }
        Step::Merge(checkpoint) => {
            let change = if folder.spec.checkpoints[0].merging {
                Change::Drop(*checkpoint)
            } else {
                Change::Merge(*checkpoint)
            };
            let spec = change.plan(&folder.spec, false).expect("planned");
            let next = VmFolder {
                spec,
                ..folder.clone()
            };
            next.write().expect("written");
        }
        Step::Forget => match crash {
            0 => drop(forget(folder.clone(), store).expect("forgotten")),
            1 => folder.forget_origin().expect("forgotten"),
            _ => {
                folder.forget_origin().expect("forgotten");
                let journal = store.place().journal();
                create::publish(&journal, &create::removed(&journal)).expect("renamed");
            }
        },
    }
}

#[test]
fn a_failover_is_completed_whatever_is_killed_on_the_way() {
    // Two crashes while it shrinks, one while it is forgotten.
    for crashes in 0..48 {
        let home = tempfile::tempdir().expect("scratch");
        let (store, folder, _) = failed_over(home.path());
        let base = store
            .folder()
            .join(Journal::base_file(folder.spec.disks[0].id));
        let inode = std::fs::metadata(base).expect("it is there").ino();
        store.close().expect("nobody holds a point");
        let mut shrinking = vec![crashes % 4, crashes / 4 % 4];
        let mut forgetting = vec![crashes / 16];
        loop {
            let (store, folder) = found(home.path());
            assert_point(&store, &folder);
            let Some(step) = next(&folder, store.is_left()) else {
                break;
            };
            let planned = match step {
                Step::Shrink(_) => &mut shrinking,
                _ => &mut forgetting,
            };
            let crash = match step {
                Step::Merge(_) => 0,
                _ => planned.pop().unwrap_or(0),
            };
            take(&step, &store, &folder, crash);
        }
        let (store, folder) = found(home.path());
        assert!(folder.origin.is_none() && folder.spec.checkpoints.is_empty());
        assert!(!store.is_left());
        let disk = &folder.spec.disks[0];
        let StackSpec::Raw { file } = folder.stack(disk) else {
            panic!("it lies on a file");
        };
        assert_eq!(file, home.path().join("failover/disk0.raw"));
        let meta = std::fs::metadata(&file).expect("it is there");
        assert_eq!((meta.ino(), meta.nlink()), (inode, 1), "nothing was copied");
        assert_eq!(
            usize::from(std::fs::read(&file).expect("read")[0]),
            CHOSEN + 1
        );
        folder.check_files().expect("it can be started");
    }
}

#[test]
fn whoever_holds_a_point_is_named_and_nobody_holds_one_afterwards() {
    let home = tempfile::tempdir().expect("scratch");
    let (store, folder, points) = failed_over(home.path());
    let refused = |store: &Store, says: &str| {
        let problem = store.close().expect_err(says);
        assert!(problem.to_string().contains(says), "{problem}");
        assert!(
            store.points().expect("listed").len() > 1,
            "nothing was changed"
        );
    };
    let kept = home.path().join("branch");
    std::fs::create_dir(&kept).expect("made");
    refused(&store, "lost-writes");
    std::fs::remove_dir(&kept).expect("removed");
    store.pin(points[7], "test-0123456789ab").expect("pinned");
    refused(&store, "stop-test");
    store
        .unpin(points[7], "test-0123456789ab")
        .expect("unpinned");
    store.pin(points[1], "open-0123456789ab").expect("pinned");
    refused(&store, "point close");
    store
        .unpin(points[1], "open-0123456789ab")
        .expect("unpinned");
    // Another one is locked for long enough to be asked about.
    let elsewhere = tempfile::tempdir().expect("scratch");
    let (locked, _, theirs) = failed_over(elsewhere.path());
    let hour = jiff::SignedDuration::from_hours(1);
    let long = jiff::Timestamp::now() + hour;
    locked.lock_point(theirs[8], long).expect("locked");
    refused(&locked, "locked until");
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(2);
    store.lock_point(points[8], until).expect("locked");
    while jiff::Timestamp::now() <= until {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    store.close().expect("nobody holds one");
    let problem = store
        .pin(points[7], "open-0123456789ab")
        .expect_err("closed");
    assert!(problem.reason.contains("failover is complete"), "{problem}");
    store
        .lock_point(points[8], until + hour)
        .expect_err("closed");
    let point = points[CHOSEN];
    store.keep_only(point, |_, _| {}).expect("kept");
    let left = store.points().expect("listed");
    assert_eq!(left.len(), 1);
    assert!(left[0].id == point && left[0].in_base);
    assert_eq!(store.link(&folder).expect("linked"), []);
    // What the VM writes to is no point any more.
    store.end();
    assert_eq!(store.points().expect("listed"), []);
    assert!(store.find("latest").is_err());
    assert!(store.with(|_| Ok(())).is_err());
}
