//! How a process ends, and what the next one knows.

use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;

use model::{BLOCK_SIZE, Bytes, RelationshipId};
use pollux_diskd::config::{CONTROL_SOCKET, Front, disk_socket, nbd_socket};
use pollux_diskd::control::{Reply, Request};
use testkit::Rng;

use super::nbd_support::Client;
use super::process::Process;
use super::support::Guest;
use super::{BLOCK, FLUSH, READ, SIZE, Vm, WRITE};

#[test]
fn sigterm_closes_in_order_and_the_marks_are_exact_unless_the_disk_is_changed_meanwhile() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    vm.terminate();
    assert!(vm.process.exit().success());
    vm.process.launch();
    assert!(vm.track(relationship), "nothing was changed");
    vm.terminate();
    assert!(vm.process.exit().success());
    let disk = fs::File::options()
        .write(true)
        .open(vm.path("0.raw"))
        .unwrap();
    disk.write_all_at(b"behind", 0).unwrap();
    vm.process.launch();
    assert!(!vm.track(relationship), "it was changed");
}

#[test]
fn what_others_change_while_no_guest_is_there_is_suspect_and_another_file_is_told() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    let behind = |vm: &Vm, file: &str| {
        let disk = fs::File::options().write(true).open(vm.path(file));
        disk.unwrap().write_all_at(b"behind", 8 << 20).unwrap();
    };
    let first = |vm: &Vm| match vm.process.ask(&Request::Status) {
        Reply::Status { mut disks, .. } => disks.remove(0),
        other => panic!("{other:?}"),
    };
    vm.track(relationship);
    assert!(!first(&vm).replaced);
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    guest.disconnect();
    while first(&vm).connected {}
    assert!(vm.track(relationship), "a guest came, wrote and went");
    behind(&vm, "0.raw");
    assert!(!vm.track(relationship), "it was changed");
    assert!(vm.track(relationship), "everything was marked for it");
    // What is seen first when it ends is no less seen.
    behind(&vm, "0.raw");
    vm.terminate();
    assert!(vm.process.exit().success());
    vm.process.launch();
    assert!(!vm.track(relationship), "it was changed before the end");
    fs::copy(vm.path("0.raw"), vm.path("backup.raw")).unwrap();
    behind(&vm, "backup.raw");
    fs::rename(vm.path("backup.raw"), vm.path("0.raw")).unwrap();
    assert!(first(&vm).replaced);
    vm.terminate();
    assert!(vm.process.exit().success());
    vm.process.launch();
    assert!(!first(&vm).replaced, "it was opened anew");
    assert!(!vm.track(relationship), "it is another file");
}

#[test]
fn a_disk_of_which_the_file_gets_or_loses_a_name_is_not_compared_for_that() {
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    assert!(vm.track(relationship), "looked at");
    fs::hard_link(vm.path("0.raw"), vm.path("kept.raw")).unwrap();
    assert!(vm.track(relationship), "it has two names");
    vm.terminate();
    assert!(vm.process.exit().success());
    fs::remove_file(vm.path("kept.raw")).unwrap();
    vm.process.launch();
    assert!(vm.track(relationship), "it has one, since it was closed");
    let disk = fs::File::options().write(true).open(vm.path("0.raw"));
    disk.unwrap().write_all_at(b"behind", 0).unwrap();
    fs::hard_link(vm.path("0.raw"), vm.path("kept.raw")).unwrap();
    assert!(!vm.track(relationship), "it was written to besides");
}

#[test]
fn a_failed_flush_ends_when_the_vm_is_stopped_and_started_and_not_by_a_kill() {
    /// Word of the state file that says that a flush failed.
    const FLUSH_FAILED: u64 = 4;
    const IO_ERROR: u8 = 1;
    let mut vm = Vm::new(64 << 20);
    let relationship = RelationshipId::random();
    vm.track(relationship);
    let socket = vm.path(&disk_socket(0));
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    vm.poke_state(0, FLUSH_FAILED, 1);
    let refuses = |guest: &mut Guest, when: &str| {
        assert_eq!(guest.run(WRITE, 0, BLOCK), IO_ERROR, "{when}");
        assert_eq!(guest.run(FLUSH, 0, 0), IO_ERROR, "{when}");
        assert_eq!(guest.run(READ, 0, BLOCK), 0, "{when}");
    };
    refuses(&mut guest, "at once");
    vm.process.kill();
    vm.process.launch();
    guest.disconnect();
    guest.connect(&socket);
    refuses(&mut guest, "after a kill");
    assert!(vm.track(relationship), "a kill loses no mark");
    // Closed under a guest that runs on: it must not be told that all is well.
    match vm.process.ask(&Request::Shutdown) {
        Reply::Refused { problem } => {
            assert!(problem.reason.contains("may be lost"), "{problem}");
            assert!(problem.way_out.contains("start the VM"), "{problem}");
        }
        other => panic!("{other:?}"),
    }
    assert!(!vm.process.exit().success());
    vm.process.launch();
    guest.disconnect();
    guest.connect(&socket);
    refuses(&mut guest, "after a close under the guest");
    // The guest is gone: this is the end of it.
    guest.disconnect();
    vm.terminate();
    assert!(!vm.process.exit().success(), "not all is durable");
    vm.process.launch();
    assert!(!vm.track(relationship), "every block counts as changed");
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(guest.run(FLUSH, 0, 0), 0);
    match vm.process.ask(&Request::Status) {
        Reply::Status { disks, .. } => {
            assert!(disks.iter().all(|disk| disk.dirty == Bytes(SIZE)));
            assert!(disks.iter().all(|disk| !disk.flush_failed));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(vm.process.ask(&Request::Shutdown), Reply::Done);
    assert!(vm.process.exit().success());
    assert!(
        vm.process
            .log()
            .contains("a flush failed before the disk was closed")
    );
}

#[test]
fn an_owner_that_panics_takes_the_process_down() {
    let mut vm = Vm::new(64 << 20);
    vm.track(RelationshipId::random());
    // The owner finds an epoch sealed that it has not begun.
    vm.poke_state(1, 1, 2);
    let (request, _) = vm.cut_request();
    let _waits = vm.process.send(&request);
    assert_eq!(vm.process.exit().signal(), Some(libc::SIGABRT));
    assert!(vm.process.log().contains("one epoch is sealed at a time"));
    vm.process.launch();
    vm.cut();
}

#[test]
fn after_a_power_cut_the_armed_regions_are_suspect_and_without_a_log_the_whole_disk() {
    let mut vm = Vm::new(64 << 20);
    fs::create_dir_all(vm.path("tracking")).unwrap();
    let relationship = RelationshipId::random();
    vm.track(relationship);
    vm.seed();
    let (_, file) = vm.cut();
    assert_eq!(vm.process.ask(&Request::Confirm { file }), Reply::Done);
    vm.terminate();
    assert!(vm.process.exit().success());
    assert_eq!(vm.reboot(relationship), Bytes(0), "closed in order");
    let mut guest = vm.guest(0);
    assert_eq!(guest.run(WRITE, 0, BLOCK), 0);
    assert_eq!(vm.reboot(relationship), Bytes(1 << 20), "one region");
    let log =
        |vm: &Vm, disk: usize| vm.path(&format!("tracking/{}.intent", vm.config.disks[disk].id));
    vm.process.kill();
    let spoiled = fs::File::options().write(true).open(log(&vm, 0)).unwrap();
    // Both copies of the header.
    spoiled.write_all_at(&[0xa5; 2 * BLOCK], 0).unwrap();
    assert_eq!(
        vm.reboot(relationship),
        Bytes(SIZE),
        "the log of disk 0 cannot be read"
    );
    vm.process.kill();
    fs::remove_file(log(&vm, 1)).unwrap();
    assert_eq!(vm.reboot(relationship), Bytes(2 * SIZE), "disk 1 has none");
}

#[test]
fn disks_behind_both_front_ends_are_exact_after_kills_before_and_after_cuts() {
    let mut vm = Vm::new(64 << 20);
    vm.process.kill();
    for name in [CONTROL_SOCKET.to_owned(), disk_socket(0)] {
        fs::remove_file(vm.path(&name)).unwrap();
    }
    vm.config.disks[1].front = Front::Nbd;
    let name = nbd_socket(1);
    vm.process = Process::new(vm.folder.path(), [disk_socket(0), name.clone()]);
    vm.process.configure(&vm.config);
    vm.process.launch();
    let relationship = RelationshipId::random();
    assert!(!vm.track(relationship));
    vm.seed();
    let (virtio, nbd) = (vm.path(&disk_socket(0)), vm.path(&name));
    let mut guest = vm.guest(0);
    let mut rng = Rng::new(31);
    // Distinct blocks of each disk, so many; an epoch is cut after some of them.
    for (round, cut_after) in (1..).zip([None, Some(0), Some(3), Some(5)]) {
        let mut file = None;
        for number in 0..5 {
            if cut_after == Some(number) {
                file = Some(vm.cut().1);
            }
            guest.poke(Guest::data(0), &rng.bytes(BLOCK));
            let block = 7 * number * round;
            assert_eq!(guest.run(WRITE, block * 8, BLOCK), 0);
            let mut ide = Client::open(&nbd, "guest", true);
            ide.write((block + 1) * BLOCK_SIZE, &rng.bytes(2 * BLOCK));
        }
        if cut_after == Some(5) {
            file = Some(vm.cut().1);
        }
        vm.process.kill();
        vm.process.launch();
        guest.disconnect();
        guest.connect(&virtio);
        assert!(vm.track(relationship), "round {round}");
        let left = 5 - cut_after.unwrap_or(0);
        match vm.process.ask(&Request::Status) {
            Reply::Status { disks, .. } => {
                let dirty: Vec<Bytes> = disks.iter().map(|disk| disk.dirty).collect();
                let blocks = [left * BLOCK_SIZE, 2 * left * BLOCK_SIZE];
                assert_eq!(dirty, blocks.map(Bytes), "round {round}");
            }
            other => panic!("{other:?}"),
        }
        if let Some(file) = file {
            vm.ship(&file);
        }
        let (_, file) = vm.cut();
        vm.ship(&file);
        vm.assert_equal();
    }
}
