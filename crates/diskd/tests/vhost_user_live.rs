//! A disk that grows, and a guest that moves, while the queue runs.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, memfd_create};
use support::{Control, Guest, INDIRECT, NEXT, PHYSICAL, SLOT, Server, USED, WRITE, disk_file};
use testkit::Rng;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

const READ: u32 = 0;
const WRITE_TYPE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;

const SMALL: u64 = 4 << 20;
const LARGE: u64 = 8 << 20;

/// A disk of `SMALL` bytes whose file has `LARGE`.
fn growing(folder: &Path) -> Server {
    let file = disk_file(folder, LARGE);
    let control = Control::new(u64::MAX);
    control.size.store(SMALL, Ordering::SeqCst);
    Server::of(folder, false, control, move |ring| {
        support::raw_device(ring, &file, false)
    })
}

fn grow(server: &Server, size: u64) {
    server.control.size.store(size, Ordering::SeqCst);
    server.resized(size);
    // Answered after that was done.
    assert_eq!(server.waiting(), 0);
}

#[test]
fn a_guest_is_told_that_the_disk_grew_and_uses_the_new_part() {
    let folder = tempfile::tempdir().unwrap();
    let server = growing(folder.path());
    let mut guest = Guest::new();
    guest.listens = true;
    guest.connect(&server.socket);
    // It had not read the size on this connection, so it was told once.
    assert_eq!(guest.wait_resized(), SMALL);
    let end = SMALL / 512;
    assert_eq!(guest.run(READ, end - 8, 4096), OK);
    for (kind, sector, len) in [(READ, end - 1, 1024), (WRITE_TYPE, end, 512)] {
        assert_eq!(guest.run(kind, sector, len), IO_ERROR, "{kind}");
    }
    for size in [SMALL + 512, LARGE] {
        grow(&server, size);
        assert_eq!(guest.wait_resized(), size);
        guest.poke(Guest::data(0), &[6; 512]);
        assert_eq!(guest.run(WRITE_TYPE, size / 512 - 1, 512), OK);
        assert_eq!(guest.run(READ, size / 512, 512), IO_ERROR);
    }
    assert!(!guest.was_told(), "nothing that is not new");
}

#[test]
fn a_disk_that_grew_while_nobody_listened_is_told_of_when_the_queue_starts() {
    let folder = tempfile::tempdir().unwrap();
    let server = growing(folder.path());
    let mut guest = Guest::new();
    guest.listens = true;
    guest.connect(&server.socket);
    assert_eq!(guest.wait_resized(), SMALL);
    // QEMU drops the message while the machine is stopped.
    let base = guest.stop_queue();
    grow(&server, SMALL + 4096);
    guest.drop_messages();
    guest.start_queue(base);
    assert_eq!(guest.wait_resized(), SMALL + 4096);
    // It knows: no message at the next start.
    let base = guest.stop_queue();
    guest.start_queue(base);
    assert!(!guest.was_told());
    // Nobody is connected.
    guest.disconnect();
    grow(&server, LARGE);
    guest.connect(&server.socket);
    assert_eq!(guest.wait_resized(), LARGE);
}

#[test]
fn a_channel_that_nobody_reads_or_that_is_none_does_no_harm() {
    let folder = tempfile::tempdir().unwrap();
    let server = growing(folder.path());
    let mut guest = Guest::new();
    guest.listens = true;
    guest.connect(&server.socket);
    // More than the socket has room for.
    for _ in 0..2000 {
        grow(&server, SMALL + 512);
        grow(&server, SMALL + 1024);
    }
    assert_eq!(guest.run(READ, 0, 4096), OK);
    // Something that is not a socket ends the connection.
    let file = File::from(memfd_create("none", MemfdFlags::CLOEXEC).unwrap());
    assert!(guest.frontend().set_backend_request_fd(&file).is_err());
    guest.disconnect();
    guest.reset();
    guest.connect(&server.socket);
    assert_eq!(guest.wait_resized(), SMALL + 1024);
    // Nor is there one without the feature.
    let mut frontend = Frontend::connect(&server.socket, 1);
    guest.disconnect();
    let frontend = frontend.as_mut().unwrap();
    let features = frontend.get_features().unwrap();
    frontend.set_features(features & !(1 << 26)).unwrap();
    let mut offered = frontend.get_protocol_features().unwrap();
    assert!(offered.contains(VhostUserProtocolFeatures::BACKEND_REQ));
    offered.remove(VhostUserProtocolFeatures::BACKEND_REQ);
    frontend.set_protocol_features(offered).unwrap();
    grow(&server, LARGE);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    let sectors = u64::from_le_bytes(config[..8].try_into().unwrap());
    assert_eq!(sectors * 512, LARGE);
}

fn guest_and_server(folder: &Path) -> (Guest, Server) {
    let server = Server::start(folder, &disk_file(folder, LARGE), false);
    let mut guest = Guest::new();
    guest.connect(&server.socket);
    (guest, server)
}

/// The pages that `len` bytes at `at` lie in.
fn pages(at: usize, len: usize) -> Vec<usize> {
    (at / 4096..(at + len).div_ceil(4096))
        .map(|page| page * 4096)
        .collect()
}

/// Pages that are marked when the request in `slot` was answered with `read` bytes of data.
fn expected(slot: usize, read: usize) -> Vec<usize> {
    let mut expected = pages(USED, 4 + 8 * 64 + 2);
    expected.extend(pages(Guest::header(slot) + 32, 1));
    expected.extend(pages(Guest::data(slot), read));
    expected.sort_unstable();
    expected.dedup();
    expected
}

#[test]
fn every_page_that_a_request_wrote_is_marked_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _server) = guest_and_server(folder.path());
    assert_eq!(guest.run(READ, 0, 4096), OK);
    guest.begin_log();
    guest.take_marked();
    for slot in [0, 5, 17] {
        for (kind, sector, len, read) in [
            (READ, 0, 4096, 4096),
            (READ, 8, SLOT, SLOT),
            (WRITE_TYPE, 0, SLOT, 0),
            (FLUSH, 0, 0, 0),
            (GET_ID, 0, 20, 20),
            // Not even one that fails is trusted to have written nothing.
            (READ, u64::MAX, 4096, 4096),
            (WRITE_TYPE, u64::MAX, 4096, 0),
        ] {
            guest.request(slot, kind, sector, len);
            guest.wait_for(1);
            assert_eq!(guest.take_marked(), expected(slot, read), "{kind} {sector}");
        }
    }
    // Not any more once it is over.
    let log = guest.end_log();
    support::marked(&log);
    assert_eq!(guest.run(READ, 0, 4096), OK);
    assert!(support::marked(&log).is_empty());
    // And again when the next one begins.
    guest.begin_log();
    guest.take_marked();
    assert_eq!(guest.run(READ, 0, 4096), OK);
    assert_eq!(guest.take_marked(), expected(0, 4096));
}

#[test]
fn pieces_of_an_indirect_table_are_marked_where_they_lie() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _server) = guest_and_server(folder.path());
    assert_eq!(guest.run(READ, 0, 512), OK);
    guest.begin_log();
    guest.take_marked();
    let table = Guest::data(1);
    let at = |offset: usize| PHYSICAL + offset as u64;
    // The second piece begins in the last byte of a page.
    let places = [
        (Guest::data(3), 512),
        (Guest::data(4) + 4095, 512),
        (Guest::data(5), 3072),
    ];
    guest.descriptor_at(table, at(Guest::header(0)), 16, NEXT, 1);
    for (index, (place, len)) in (1..).zip(places) {
        guest.descriptor_at(
            table + 16 * usize::from(index),
            at(place),
            len,
            WRITE | NEXT,
            index + 1,
        );
    }
    guest.descriptor_at(table + 64, at(Guest::data(6)), 1, WRITE, 0);
    guest.descriptor(0, at(table), 80, INDIRECT, 0);
    guest.offer(0);
    guest.wait_for(1);
    let mut expected = pages(USED, 4 + 8 * 64 + 2);
    for (place, len) in places {
        expected.extend(pages(place, len as usize));
    }
    expected.extend(pages(Guest::data(6), 1));
    assert_eq!(guest.take_marked(), expected);
}

#[test]
fn requests_that_ran_when_the_log_came_are_marked() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _server) = guest_and_server(folder.path());
    guest.poke(Guest::data(0), &[7; SLOT]);
    assert_eq!(guest.run(WRITE_TYPE, 0, SLOT), OK);
    for round in 0..50 {
        let slots = 1 + Rng::new(round).index(support::SLOTS);
        for slot in 0..slots {
            guest.poke(Guest::data(slot), &[0; SLOT]);
            guest.request(slot, READ, 0, SLOT);
        }
        guest.begin_log();
        // Some of them have written their memory now, some will.
        let copied = guest.peek(0, 16 << 20);
        let base = guest.stop_queue();
        assert_eq!(
            base,
            u32::from(guest.used_idx()),
            "all that was taken is answered"
        );
        let marked = guest.take_marked();
        let now = guest.peek(0, 16 << 20);
        for (page, (old, new)) in copied.chunks(4096).zip(now.chunks(4096)).enumerate() {
            assert!(old == new || marked.contains(&(page * 4096)), "page {page}");
        }
        guest.end_log();
        let answered = guest.answered().len();
        guest.start_queue(base);
        guest.wait_for(slots - answered);
    }
}

/// Copies again what was marked.
fn copy_marked(guest: &Guest, copy: &mut [u8]) {
    for page in guest.take_marked() {
        copy[page..page + 4096].copy_from_slice(&guest.peek(page, 4096));
    }
}

#[test]
fn a_guest_that_is_moved_page_by_page_has_everything_that_it_read() {
    // The disk's blocks differ, so a page that was not marked is found.
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, _server) = guest_and_server(folder.path());
    let mut rng = Rng::new(11);
    for block in 0..16 {
        guest.poke(Guest::data(0), &rng.bytes(SLOT));
        assert_eq!(guest.run(WRITE_TYPE, block * 128, SLOT), OK);
    }
    for round in 0..30 {
        guest.begin_log();
        let mut copy = guest.peek(0, 16 << 20);
        let mut waiting = 0;
        for slot in 0..support::SLOTS {
            // The guest itself touches neither the data nor the status of a read from here on.
            let sector = 128 * rng.below(16);
            guest.request(slot, READ, sector, SLOT);
            waiting += 1;
            // What the guest itself writes is copied by other means.
            let own = Guest::header(slot) / 4096 * 4096;
            for page in [0, 0x1000, own] {
                let bytes = guest.peek(page, 4096);
                copy[page..page + 4096].copy_from_slice(&bytes);
            }
            if rng.once_in(4) {
                guest.wait_for(waiting);
                waiting = 0;
                copy_marked(&guest, &mut copy);
            }
        }
        let base = guest.stop_queue();
        for page in guest.take_marked() {
            copy[page..page + 4096].copy_from_slice(&guest.peek(page, 4096));
        }
        assert!(
            copy == guest.peek(0, 16 << 20),
            "round {round}: a page was not marked"
        );
        guest.end_log();
        guest.start_queue(base);
        let used = guest.answered().len();
        guest.wait_for(waiting - used.min(waiting));
    }
}

#[test]
fn a_log_that_makes_no_sense_ends_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let (mut guest, server) = guest_and_server(folder.path());
    let file = File::from(memfd_create("log", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4096).unwrap();
    for (offset, len) in [
        (0, 0),
        (0, 4097),
        (4096, 1),
        (1, 4096),
        (u64::MAX, 4096),
        (0, u64::MAX),
        (u64::MAX - 4095, 4096),
    ] {
        let region = VhostUserDirtyLogRegion {
            mmap_size: len,
            mmap_offset: offset,
            mmap_handle: file.as_raw_fd(),
        };
        let refused = guest.frontend().set_log_base(0, Some(region));
        assert!(refused.is_err(), "{offset} {len}");
        guest.disconnect();
        guest.connect(&server.socket);
    }
    // One that is too short for the guest's memory marks as far as it goes.
    let region = VhostUserDirtyLogRegion {
        mmap_size: 8,
        mmap_offset: 4088,
        mmap_handle: file.as_raw_fd(),
    };
    guest.frontend().set_log_base(0, Some(region)).unwrap();
    let features = guest.frontend().get_features().unwrap() & !(1 << 29);
    guest.frontend().set_features(features).unwrap();
    assert_eq!(guest.run(READ, 0, 4096), OK);
    // Other features may not change while the queue runs.
    assert!(guest.frontend().set_features(features & !(1 << 9)).is_err());
}
