use model::Generation;

use super::*;

fn spec(buses: &[Bus]) -> VmSpec {
    let disks = (0..).zip(buses).map(|(slot, bus)| {
        let file = format!("disk{slot}.raw").into();
        DiskSpec::new(file, Bytes(1 << 20), *bus, slot)
    });
    let name = "web".parse().expect("a good name");
    let memory = Bytes(64 << 20);
    let disks = disks.collect();
    VmSpec::new(name, Generation::One, 1, memory, false, None, disks).expect("a good VM")
}

fn checkpoint(spec: &VmSpec, name: &str) -> (VmSpec, CheckpointId) {
    let new = new_checkpoint(spec, Some(name), Timestamp::UNIX_EPOCH, false).expect("a name");
    let id = new.id;
    let next = Change::Checkpoint(new).plan(spec, true).expect("planned");
    (next, id)
}

fn since(spec: &VmSpec, slot: usize) -> Vec<CheckpointId> {
    let overlays = &spec.disks[slot].overlays;
    overlays.iter().map(|overlay| overlay.checkpoint).collect()
}

#[track_caller]
fn refused(result: Result<VmSpec, Problem>, code: Code, says: &str) {
    let problem = result.expect_err(says);
    assert_eq!(problem.code, code, "{problem}");
    assert!(problem.to_string().contains(says), "{problem}");
}

#[test]
fn a_checkpoint_lies_above_all_earlier_ones_on_every_disk() {
    let (one, a) = checkpoint(&spec(&[Bus::Virtio, Bus::Ide]), "a");
    let (two, b) = checkpoint(&one, "b");
    for slot in [0, 1] {
        assert_eq!(since(&two, slot), [a, b]);
    }
    assert_eq!(one.generation_id, two.generation_id, "no way back in time");
    let taken = new_checkpoint(&two, Some("a"), Timestamp::UNIX_EPOCH, false);
    assert_eq!(taken.expect_err("taken").code, Code::Conflict);
    let none = spec(&[]);
    let new = new_checkpoint(&none, None, Timestamp::UNIX_EPOCH, false).expect("a name");
    refused(
        Change::Checkpoint(new).plan(&none, false),
        Code::Conflict,
        "no disk",
    );
}

#[test]
fn checkpoints_without_a_name_are_named_after_the_time_and_never_twice() {
    let mut vm = spec(&[Bus::Virtio]);
    let mut names = Vec::new();
    for _ in 0..3 {
        let new = new_checkpoint(&vm, None, Timestamp::UNIX_EPOCH, false).expect("a name");
        names.push(new.name.to_string());
        vm = Change::Checkpoint(new).plan(&vm, false).expect("planned");
    }
    let first = "1970-01-01 00:00:00";
    assert_eq!(
        names,
        [first, &format!("{first} (2)"), &format!("{first} (3)")]
    );
}

#[test]
fn applying_begins_anew_above_the_checkpoint_and_tells_the_guest() {
    let (one, a) = checkpoint(&spec(&[Bus::Virtio]), "a");
    let (two, b) = checkpoint(&one, "b");
    let apply = |checkpoint, drop_later| Change::Apply {
        checkpoint,
        drop_later,
    };
    refused(apply(a, false).plan(&two, false), Code::Conflict, "`b`");
    let back = apply(a, true).plan(&two, false).expect("planned");
    assert_eq!(since(&back, 0), [a]);
    assert_eq!(back.checkpoints.len(), 1);
    assert_ne!(
        back.disks[0].overlays[0].file, two.disks[0].overlays[0].file,
        "never used"
    );
    assert_ne!(back.generation_id, two.generation_id);
    let top = apply(b, false).plan(&two, false).expect("planned");
    assert_eq!(since(&top, 0), [a, b]);
    assert_eq!(top.disks[0].overlays[0], two.disks[0].overlays[0]);
    let again = apply(b, false).plan(&top, false).expect("planned");
    assert_ne!(again.generation_id, top.generation_id, "every time");
    let late = DiskSpec::new("late.raw".into(), Bytes(1 << 20), Bus::Scsi, 5);
    let more = Change::Add(late).plan(&two, true).expect("planned");
    refused(
        apply(b, false).plan(&more, false),
        Code::Conflict,
        "attached after",
    );
    refused(
        apply(CheckpointId::random(), true).plan(&two, false),
        Code::NotFound,
        "no such",
    );
}

#[test]
fn merging_a_checkpoint_leaves_the_others() {
    let (one, a) = checkpoint(&spec(&[Bus::Virtio]), "a");
    let (two, b) = checkpoint(&one, "b");
    let merging = Change::Merge(a).plan(&two, true).expect("planned");
    assert!(merging.checkpoints[0].merging && !merging.checkpoints[1].merging);
    assert_eq!(since(&merging, 0), [a, b], "nothing is gone yet");
    let merged = Change::Drop(a).plan(&merging, true).expect("planned");
    assert_eq!(since(&merged, 0), [b]);
    assert_eq!(merged.disks[0].overlays[0], two.disks[0].overlays[1]);
    // The wish for all is one change: whoever is killed then goes on with all of them.
    let merge_all = |but| Change::MergeAll { but }.plan(&two, true);
    let all = merge_all(None).expect("planned");
    assert!(all.checkpoints.iter().all(|checkpoint| checkpoint.merging));
    assert_eq!(since(&all, 0), [a, b], "nothing is gone yet");
    let above = merge_all(Some(a)).expect("planned");
    assert!(!above.checkpoints[0].merging && above.checkpoints[1].merging);
}

#[test]
fn a_disk_with_checkpoints_is_neither_detached_nor_resized_and_disks_only_grow() {
    let plain = spec(&[Bus::Virtio]);
    let id = plain.disks[0].id;
    let grown = Change::Resize(id, Bytes(2 << 20))
        .plan(&plain, true)
        .expect("planned");
    assert_eq!(grown.disks[0].size, Bytes(2 << 20));
    refused(
        Change::Resize(id, Bytes(1 << 20)).plan(&plain, true),
        Code::Invalid,
        "only grow",
    );
    refused(
        Change::Resize(id, Bytes((2 << 20) + 1)).plan(&plain, true),
        Code::Invalid,
        "4 KiB",
    );
    let (kept, _) = checkpoint(&plain, "before");
    refused(
        Change::Remove(id).plan(&kept, false),
        Code::Conflict,
        "`before`",
    );
    refused(
        Change::Resize(id, Bytes(2 << 20)).plan(&kept, false),
        Code::Conflict,
        "merge",
    );
    assert!(
        Change::Remove(id)
            .plan(&plain, true)
            .expect("planned")
            .disks
            .is_empty()
    );
    refused(
        Change::Remove(DiskId::random()).plan(&plain, true),
        Code::NotFound,
        "no such",
    );
}

#[test]
fn ide_disks_come_and_go_only_while_the_vm_is_off() {
    let vm = spec(&[Bus::Ide]);
    let id = vm.disks[0].id;
    refused(Change::Remove(id).plan(&vm, true), Code::Conflict, "Stop");
    Change::Remove(id).plan(&vm, false).expect("off");
    let more = DiskSpec::new("b.raw".into(), Bytes(4096), Bus::Ide, 1);
    refused(
        Change::Add(more.clone()).plan(&vm, true),
        Code::Conflict,
        "--bus scsi",
    );
    Change::Add(more.clone()).plan(&vm, false).expect("off");
    let mut same = more;
    same.slot = 0;
    refused(
        Change::Add(same).plan(&vm, false),
        Code::Invalid,
        "same slot",
    );
}

#[test]
fn disks_are_named_by_number_file_or_id() {
    let vm = spec(&[Bus::Virtio, Bus::Scsi]);
    let id = vm.disks[1].id.to_string();
    for name in ["1", "disk1.raw", &id, &id[..8]] {
        assert_eq!(find_disk(&vm, name).expect(name).slot, 1);
    }
    for name in ["2", "disk", "disk2.raw", ""] {
        assert_eq!(find_disk(&vm, name).expect_err(name).code, Code::NotFound);
    }
}
