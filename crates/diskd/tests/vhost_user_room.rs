//! A mutation that finds no room is not answered, but done when there is some.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering;

use support::{Guest, Process, SLOTS, Server, disk_file, until};

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const PENDING: u8 = 0xff;

const SIZE: u64 = 8 << 20;

fn start(folder: &Path) -> (Guest, Server) {
    let server = Server::start(folder, &disk_file(folder, SIZE), false);
    let mut guest = Guest::new();
    guest.connect(&server.socket);
    (guest, server)
}

fn content(slot: usize) -> u8 {
    u8::try_from(slot).unwrap() + 1
}

/// Writes block `slot` in each of `slots`, each with its own content.
fn write(guest: &mut Guest, slots: std::ops::Range<usize>) {
    for slot in slots {
        guest.poke(Guest::data(slot), &[content(slot); 4096]);
        guest.request(slot, WRITE, 8 * slot as u64, 4096);
    }
}

fn assert_written(folder: &Path, slots: std::ops::Range<usize>) {
    let file = File::open(folder.join("disk.raw")).unwrap();
    for slot in slots {
        let mut found = [0; 4096];
        file.read_exact_at(&mut found, 4096 * slot as u64).unwrap();
        assert!(found == [content(slot); 4096], "block {slot}");
    }
}

fn heads(slots: std::ops::Range<usize>) -> Vec<u16> {
    slots.map(|slot| u16::try_from(3 * slot).unwrap()).collect()
}

fn sorted(mut heads: Vec<u16>) -> Vec<u16> {
    heads.sort_unstable();
    heads
}

#[test]
fn what_finds_no_room_waits_and_is_done_when_there_is_some() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = start(folder.path());
    for error in [libc::ENOSPC, libc::EDQUOT] {
        server.control.full.store(error, Ordering::SeqCst);
        write(&mut guest, 0..3);
        for (slot, kind) in [(3, DISCARD), (4, WRITE_ZEROES)] {
            guest.poke(
                Guest::data(slot),
                &[0, 1, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0],
            );
            guest.request(slot, kind, 0, 16);
        }
        until(|| (server.waiting() == 5).then_some(()));
        // It is tried again, and what needs no room works meanwhile.
        server.control.wait_refused(10);
        guest.request(5, READ, 0, 4096);
        guest.request(6, FLUSH, 0, 0);
        assert_eq!(sorted(guest.wait_for(2)), heads(5..7));
        assert_eq!((guest.status(5), guest.status(6)), (OK, OK));
        for slot in 0..5 {
            assert_eq!(guest.status(slot), PENDING);
        }
        server.control.set_full(false);
        assert_eq!(sorted(guest.wait_for(5)), heads(0..5));
        for slot in 0..5 {
            assert_eq!(guest.status(slot), OK);
        }
        assert_eq!(server.waiting(), 0);
        assert_written(folder.path(), 0..3);
    }
}

#[test]
fn other_errors_are_answered_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = start(folder.path());
    server.control.full.store(libc::EIO, Ordering::SeqCst);
    assert_eq!(guest.run(WRITE, 0, 4096), IO_ERROR);
    assert_eq!(server.waiting(), 0);
}

#[test]
fn a_queue_that_is_stopped_while_requests_wait_runs_them_when_it_starts() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = start(folder.path());
    for round in 0..3 {
        server.control.set_full(true);
        write(&mut guest, 0..7);
        guest.request(7, READ, 0, 4096);
        assert_eq!(guest.wait_for(1), heads(7..8));
        until(|| (server.waiting() == 7).then_some(()));
        // QEMU waits for this answer, and nobody makes room meanwhile.
        let base = guest.stop_queue();
        assert_eq!(base, u32::from(guest.used_idx()) + 7, "seven are in flight");
        assert_eq!(server.waiting(), 0);
        assert!(guest.answered().is_empty());
        if round == 1 {
            // Still none when it goes on, and stopped again.
            guest.start_queue(base);
            until(|| (server.waiting() == 7).then_some(()));
            assert_eq!(guest.stop_queue(), base);
        }
        server.control.set_full(false);
        if round == 2 {
            guest.disconnect();
            guest.connect(&server.socket);
        } else {
            guest.start_queue(base);
        }
        assert_eq!(sorted(guest.wait_for(7)), heads(0..7), "each once");
        for slot in 0..7 {
            assert_eq!(guest.status(slot), OK);
        }
        assert_written(folder.path(), 0..7);
        // And the queue takes new ones.
        assert_eq!(guest.run(READ, 0, 4096), OK);
    }
}

#[test]
fn without_an_in_flight_area_a_stopped_queue_answers_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), SIZE);
    let server = Server::start(folder.path(), &file, false);
    let mut guest = Guest::new();
    guest.track = false;
    guest.connect(&server.socket);
    server.control.set_full(true);
    write(&mut guest, 0..2);
    until(|| (server.waiting() == 2).then_some(()));
    assert_eq!(guest.stop_queue(), u32::from(guest.used_idx()));
    assert_eq!(sorted(guest.wait_for(2)), heads(0..2));
    assert_eq!((guest.status(0), guest.status(1)), (IO_ERROR, IO_ERROR));
}

#[test]
fn a_migration_takes_no_request_along_so_it_is_answered_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = start(folder.path());
    guest.begin_log();
    server.control.set_full(true);
    write(&mut guest, 0..1);
    until(|| (server.waiting() == 1).then_some(()));
    assert_eq!(guest.stop_queue(), u32::from(guest.used_idx()));
    assert_eq!(guest.status(0), IO_ERROR);
}

#[test]
fn a_front_end_that_is_lost_while_requests_wait_finds_them_done_later() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = start(folder.path());
    server.control.set_full(true);
    write(&mut guest, 0..5);
    until(|| (server.waiting() == 5).then_some(()));
    guest.disconnect();
    guest.connect(&server.socket);
    until(|| (server.waiting() == 5).then_some(()));
    server.control.set_full(false);
    assert_eq!(sorted(guest.wait_for(5)), heads(0..5));
    assert_written(folder.path(), 0..5);
}

#[test]
fn a_disk_that_is_closed_while_requests_wait_leaves_them_to_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, mut server) = start(folder.path());
    server.control.set_full(true);
    write(&mut guest, 0..SLOTS);
    until(|| (server.waiting() == SLOTS as u64).then_some(()));
    server.stop();
    assert!(guest.answered().is_empty());
    guest.disconnect();
    let file = folder.path().join("disk.raw");
    let next = Server::start(folder.path(), &file, false);
    guest.connect(&next.socket);
    assert_eq!(sorted(guest.wait_for(SLOTS)), heads(0..SLOTS));
    assert_written(folder.path(), 0..SLOTS);
}

/// Not a test: the server that the test below starts and kills.
#[test]
#[ignore = "started by another test in a process of its own"]
fn serves_for_another_test() {
    support::child_main();
}

#[test]
fn killed_while_requests_wait_the_next_process_does_them() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let file = disk_file(folder.path(), SIZE);
    let full = Process::start_full(&listener, &file);
    let mut guest = Guest::new();
    guest.connect(&socket);
    write(&mut guest, 0..5);
    // Taken behind the writes, so they were taken when it is answered.
    guest.request(6, READ, 0, 4096);
    assert_eq!(guest.wait_for(1), heads(6..7));
    full.kill();
    guest.disconnect();
    let _next = Process::start(&listener, &file, u64::MAX);
    guest.connect(&socket);
    assert_eq!(sorted(guest.wait_for(5)), heads(0..5));
    assert_written(folder.path(), 0..5);
}
