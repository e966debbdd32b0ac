//! The vhost-user front end against real clients: verified I/O, hostile drivers, lost connections.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, memfd_create};
use support::{Guest, INDIRECT, NEXT, PHYSICAL, QUEUE, Server, WRITE, disk_file};
use testkit::Rng;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

const READ: u32 = 0;
const WRITE_TYPE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const SIZE: u64 = 8 << 20;

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn connect(socket: &Path, features: VirtioFeatureFlags) -> Box<VirtioBlkTransport> {
    let features = (VirtioFeatureFlags::VERSION_1 | features).bits() | (1 << 12);
    Box::new(VhostUser::new(socket.to_str().unwrap(), features).unwrap())
}

/// Bytes of memory of each request of a [`Client`].
const ROOM: usize = 32 << 10;
const REQUESTS: usize = 32;

/// A request that runs.
#[derive(Clone, Copy)]
struct Running {
    write: bool,
    at: usize,
    len: usize,
}

/// Up to 32 requests of several sizes at once on two queues, each range only once at a time; every
/// read is compared with what was last written.
struct Client {
    map: memmap2::MmapRaw,
    model: Vec<u8>,
    running: [Option<Running>; REQUESTS],
    rng: Rng,
}

impl Client {
    /// Starts a request in `slot` unless its range is in use. Whether it did.
    fn start(&mut self, slot: usize, queue: &mut VirtioBlkQueue<usize>) -> bool {
        let len = 512 * (1 + self.rng.index(ROOM / 512));
        let at = 512 * self.rng.index((self.model.len() - len) / 512 + 1);
        let free = |other: &Running| at + len <= other.at || other.at + other.len <= at;
        if !self.running.iter().flatten().all(free) {
            return false;
        }
        let write = self.rng.once_in(2);
        let buffer = self.map.as_mut_ptr().wrapping_add(slot * ROOM);
        // Three pieces where there is room for them.
        let cut = if len >= 1536 {
            [512, 512, len - 1024]
        } else {
            [len, 0, 0]
        };
        let mut from = 0;
        let mut pieces = Vec::new();
        for len in cut.into_iter().filter(|len| *len > 0) {
            pieces.push(libc::iovec {
                iov_base: buffer.wrapping_add(from).cast(),
                iov_len: len,
            });
            from += len;
        }
        let (pieces, count) = (pieces.as_ptr(), pieces.len());
        #[allow(unsafe_code, reason = "the pieces lie in the slot")]
        // SAFETY: the slot is mapped, and not used by another request.
        unsafe {
            if write {
                let bytes = self.rng.bytes(len);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, len);
                self.model[at..at + len].copy_from_slice(&bytes);
                queue.writev(at as u64, pieces, count, slot).unwrap();
            } else {
                queue.readv(at as u64, pieces, count, slot).unwrap();
            }
        }
        self.running[slot] = Some(Running { write, at, len });
        true
    }

    fn finish(&mut self, slot: usize) {
        let Running { write, at, len } = self.running[slot].take().unwrap();
        if write {
            return;
        }
        let mut bytes = vec![0; len];
        let buffer = self.map.as_ptr().wrapping_add(slot * ROOM);
        #[allow(unsafe_code, reason = "the slot is mapped")]
        // SAFETY: inside the slot, which nobody writes any more.
        unsafe {
            std::ptr::copy_nonoverlapping(buffer, bytes.as_mut_ptr(), len);
        }
        assert!(bytes == self.model[at..at + len], "wrong content at {at}");
    }
}

fn verified_random_io(features: VirtioFeatureFlags) {
    let folder = tempdir();
    let server = Server::start(folder.path(), &disk_file(folder.path(), SIZE), false);
    let mut transport = connect(&server.socket, features);
    let memory = File::from(memfd_create("io", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len((REQUESTS * ROOM) as u64).unwrap();
    let map = memmap2::MmapRaw::map_raw(&memory).unwrap();
    let address = map.as_mut_ptr() as usize;
    transport
        .map_mem_region(address, map.len(), memory.as_raw_fd(), 0)
        .unwrap();
    let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, 2, 128).unwrap();
    for queue in &mut queues {
        queue.set_used_notif_enabled(true);
    }
    let kicks = [0, 1].map(|i| transport.get_submission_notifier(i));
    let calls = [0, 1].map(|i| transport.get_completion_fd(i));
    let mut client = Client {
        map,
        model: vec![0; usize::try_from(SIZE).unwrap()],
        running: [None; REQUESTS],
        rng: Rng::new(7),
    };
    let (mut started, mut done) = (0, 0);
    while done < 3000 {
        for slot in 0..REQUESTS {
            let idle = client.running[slot].is_none() && started < 3000;
            if idle && client.start(slot, &mut queues[slot % 2]) {
                started += 1;
                kicks[slot % 2].notify().unwrap();
            }
        }
        support::wait_any(&calls);
        for (queue, call) in queues.iter_mut().zip(&calls) {
            if support::is_readable(&**call) {
                call.read().unwrap();
            }
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0);
                client.finish(completion.context);
                done += 1;
            }
        }
    }
    drop((queues, transport, server));
    let content = std::fs::read(folder.path().join("disk.raw")).unwrap();
    assert!(content == client.model, "the file is not what was written");
}

#[test]
fn a_client_reads_what_it_wrote_through_direct_descriptors() {
    verified_random_io(VirtioFeatureFlags::empty());
}

#[test]
fn a_client_reads_what_it_wrote_with_event_indexes_and_indirect_descriptors() {
    let features = VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC;
    verified_random_io(features);
}

fn guest_and_server(folder: &Path, read_only: bool) -> (Guest, Server) {
    let server = Server::start(folder, &disk_file(folder, SIZE), read_only);
    let mut guest = Guest::new();
    guest.connect(&server.socket);
    (guest, server)
}

#[test]
fn the_serial_number_is_the_beginning_of_the_disk_id() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), false);
    assert_eq!(guest.run(GET_ID, 0, 20), OK);
    assert_eq!(guest.peek(Guest::data(0), 20), b"8dbbbd7a9f5c4a6f8a4b");
    // A shorter buffer gets what fits.
    guest.poke(Guest::data(0), &[b'-'; 20]);
    assert_eq!(guest.run(GET_ID, 0, 8), OK);
    assert_eq!(guest.peek(Guest::data(0), 9), b"8dbbbd7a-");
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes_and_their_neighbours_stay() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), false);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, 1)] {
        guest.poke(Guest::data(0), &[7; 64 << 10]);
        assert_eq!(guest.run(WRITE_TYPE, 0, 64 << 10), OK);
        let two = [range(3, 9, flags), range(100, 1, flags)].concat();
        guest.poke(Guest::data(0), &two);
        assert_eq!(guest.run(kind, 0, 32), OK);
        assert_eq!(guest.run(FLUSH, 0, 0), OK);
        assert_eq!(guest.run(READ, 0, 64 << 10), OK);
        let content = guest.peek(Guest::data(0), 64 << 10);
        for (sector, bytes) in content.chunks(512).enumerate() {
            let zeroed = (3..12).contains(&sector) || sector == 100;
            let expected = if zeroed { 0 } else { 7 };
            assert!(
                bytes.iter().all(|b| *b == expected),
                "{kind}: sector {sector}"
            );
        }
    }
    for (kind, bytes, status) in [
        (DISCARD, range(0, 1, 1), UNSUPPORTED),
        (WRITE_ZEROES, range(0, 1, 2), UNSUPPORTED),
        (WRITE_ZEROES, range(SIZE / 512, 1, 0), IO_ERROR),
        (WRITE_ZEROES, range(u64::MAX / 256, 8, 0), IO_ERROR),
        (DISCARD, range(0, u32::MAX, 0), IO_ERROR),
        (DISCARD, vec![0; 15], IO_ERROR),
        (DISCARD, vec![0; 16 * 65], IO_ERROR),
    ] {
        guest.poke(Guest::data(0), &bytes);
        assert_eq!(guest.run(kind, 0, bytes.len()), status, "{kind} {bytes:?}");
    }
}

#[test]
fn a_request_outside_the_disk_or_of_no_known_kind_is_refused() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), false);
    let sectors = SIZE / 512;
    assert_eq!(guest.run(READ, sectors - 1, 512), OK);
    for (kind, sector, len, status) in [
        (READ, sectors, 512, IO_ERROR),
        (READ, sectors - 1, 1024, IO_ERROR),
        (WRITE_TYPE, u64::MAX, 512, IO_ERROR),
        (WRITE_TYPE, u64::MAX / 512, 512, IO_ERROR),
        (READ, 0, 100, IO_ERROR),
        (READ, 0, 0, IO_ERROR),
        (14, 0, 512, UNSUPPORTED),
        (u32::MAX, 0, 512, UNSUPPORTED),
    ] {
        assert_eq!(
            guest.run(kind, sector, len),
            status,
            "{kind} {sector} {len}"
        );
    }
}

#[test]
fn a_read_only_disk_refuses_what_would_change_it() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), true);
    let features = guest.frontend().get_features().unwrap();
    assert_ne!(features & (1 << 5), 0, "RO");
    assert_eq!(features & (1 << 13 | 1 << 14), 0, "DISCARD, WRITE_ZEROES");
    assert_eq!(guest.run(READ, 0, 4096), OK);
    assert_eq!(guest.run(FLUSH, 0, 0), OK);
    for (kind, len) in [(WRITE_TYPE, 4096), (DISCARD, 16), (WRITE_ZEROES, 16)] {
        assert_eq!(guest.run(kind, 0, len), IO_ERROR, "{kind}");
    }
}

/// A chain of `READ` over slot 0 whose three descriptors a test then spoils.
fn good_chain(guest: &mut Guest) {
    assert_eq!(guest.run(READ, 0, 512), OK);
}

#[test]
fn an_indirect_table_serves_as_well_as_a_chain() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), false);
    guest.poke(Guest::data(0), &[5; 4096]);
    assert_eq!(guest.run(WRITE_TYPE, 0, 4096), OK);
    guest.poke(Guest::data(0), &[0; 4096]);
    good_chain(&mut guest);
    let table = Guest::data(1);
    let at = |offset: usize| PHYSICAL + offset as u64;
    guest.descriptor_at(table, at(Guest::header(0)), 16, NEXT, 2);
    // Pieces of all sizes, the status byte at the end of the last one.
    guest.descriptor_at(table + 16, at(Guest::data(0) + 1), 4096, WRITE, 0);
    guest.descriptor_at(table + 32, at(Guest::data(0)), 1, WRITE | NEXT, 1);
    guest.descriptor(0, at(table), 48, INDIRECT, 0);
    guest.poke(Guest::data(0) + 4096, &[9]);
    guest.offer(0);
    assert_eq!(guest.wait_for(1), [0]);
    assert_eq!(guest.peek(Guest::data(0), 4096), [5; 4096]);
    assert_eq!(guest.peek(Guest::data(0) + 4096, 1), [OK]);
}

#[test]
fn a_chain_that_names_memory_outside_the_guest_is_answered_with_an_error() {
    let folder = tempdir();
    let (mut guest, _server) = guest_and_server(folder.path(), false);
    for address in [
        0,
        PHYSICAL - 1,
        PHYSICAL + (16 << 20) - 511,
        u64::MAX,
        u64::MAX - 511,
    ] {
        good_chain(&mut guest);
        guest.descriptor(1, address, 512, WRITE | NEXT, 2);
        guest.offer(0);
        guest.wait_for(1);
        assert_eq!(guest.status(0), IO_ERROR, "{address:#x}");
    }
    assert!(!guest.is_broken());
}

#[test]
fn a_chain_that_cannot_be_followed_breaks_the_queue_and_nothing_else() {
    let folder = tempdir();
    let (mut guest, server) = guest_and_server(folder.path(), false);
    let table = Guest::data(1);
    type Spoil = fn(&mut Guest, usize);
    let ways: [(&str, Spoil); 11] = [
        ("loops", |guest, _| {
            guest.descriptor(1, PHYSICAL, 0, NEXT, 1)
        }),
        ("leaves the table", |guest, _| {
            guest.descriptor(0, PHYSICAL, 16, NEXT, QUEUE);
        }),
        ("has no status byte", |guest, _| {
            guest.descriptor(2, PHYSICAL, 1, 0, 0);
            guest.descriptor(1, PHYSICAL, 512, NEXT, 2);
        }),
        ("has its status byte outside memory", |guest, _| {
            guest.descriptor(2, u64::MAX, 1, WRITE, 0);
        }),
        ("reads after writing", |guest, _| {
            guest.descriptor(0, PHYSICAL, 1, WRITE | NEXT, 1);
            guest.descriptor(1, PHYSICAL, 16, NEXT, 2);
        }),
        ("is an indirect table of a wrong length", |guest, table| {
            guest.descriptor(0, PHYSICAL + table as u64, 17, INDIRECT, 0);
        }),
        ("is an indirect table outside memory", |guest, _| {
            guest.descriptor(0, u64::MAX - 15, 16, INDIRECT, 0);
        }),
        ("is an indirect table with a successor", |guest, table| {
            guest.descriptor(0, PHYSICAL + table as u64, 16, INDIRECT | NEXT, 1);
        }),
        (
            "has an indirect table in an indirect table",
            |guest, table| {
                let at = PHYSICAL + table as u64;
                guest.descriptor_at(table, at, 16, INDIRECT, 0);
                guest.descriptor(0, at, 16, INDIRECT, 0);
            },
        ),
        ("makes too many entries available", |guest, _| {
            guest.set_available(u16::MAX / 2);
        }),
        (
            "makes a descriptor available that does not exist",
            |guest, _| {
                guest.offer(QUEUE);
            },
        ),
    ];
    for (what, spoil) in ways {
        good_chain(&mut guest);
        spoil(&mut guest, table);
        guest.offer(0);
        guest.wait_broken();
        assert!(
            guest.answered().is_empty(),
            "a chain that {what} was answered"
        );
        // The guest resets the device; the disk is as good as before.
        guest.frontend().get_vring_base(0).unwrap();
        guest.disconnect();
        guest.reset();
        guest.connect(&server.socket);
    }
}

#[test]
fn a_message_that_makes_no_sense_ends_the_connection_and_the_next_one_works() {
    let folder = tempdir();
    let (mut guest, server) = guest_and_server(folder.path(), false);
    assert!(
        guest.frontend().set_vring_num(0, 100).is_err(),
        "no power of two"
    );
    guest.disconnect();
    guest.reset();
    guest.connect(&server.socket);
    assert!(
        guest.frontend().set_vring_base(0, 1).is_err(),
        "while it runs"
    );
    guest.disconnect();
    guest.reset();
    guest.connect(&server.socket);
    assert!(
        guest.frontend().set_features(u64::MAX).is_err(),
        "not offered"
    );
    guest.disconnect();
    guest.reset();
    guest.connect(&server.socket);
    good_chain(&mut guest);
}

#[test]
fn a_queue_that_was_stopped_goes_on_where_it_was() {
    let folder = tempdir();
    let (mut guest, server) = guest_and_server(folder.path(), false);
    for round in 0..5u8 {
        guest.poke(Guest::data(0), &[round; 4096]);
        assert_eq!(guest.run(WRITE_TYPE, u64::from(round) * 8, 4096), OK);
        // Mid-run changes of the memory map do no harm.
        guest.send_memory();
        if round % 2 == 0 {
            guest.frontend().set_vring_enable(0, false).unwrap();
            guest.request(0, READ, u64::from(round) * 8, 4096);
            guest.frontend().set_vring_enable(0, true).unwrap();
        } else {
            let base = guest.frontend().get_vring_base(0).unwrap();
            assert_eq!(base, u32::from(guest.used_idx()));
            guest.disconnect();
            guest.connect(&server.socket);
            guest.request(0, READ, u64::from(round) * 8, 4096);
        }
        guest.wait_for(1);
        assert_eq!(guest.peek(Guest::data(0), 4096), [round; 4096]);
    }
}

#[test]
fn a_connection_that_is_lost_under_load_loses_no_request_and_repeats_no_answer() {
    let folder = tempdir();
    let (mut guest, server) = guest_and_server(folder.path(), false);
    for round in 0..20u8 {
        for slot in 0..support::SLOTS {
            guest.poke(Guest::data(slot), &[round; 4096]);
            guest.request(slot, WRITE_TYPE, 8 * slot as u64, 4096);
        }
        // Some are answered before it is lost, some run, some were not even seen.
        let mut heads = guest.wait_for(usize::from(round) % 7);
        guest.disconnect();
        guest.connect(&server.socket);
        heads.extend(guest.wait_for(support::SLOTS - heads.len()));
        heads.sort_unstable();
        let all = (0..support::SLOTS).map(|slot| u16::try_from(3 * slot).unwrap());
        assert_eq!(heads, all.collect::<Vec<_>>(), "every head once");
        for slot in 0..support::SLOTS {
            assert_eq!(guest.status(slot), OK);
            guest.poke(Guest::data(0), &[0; 4096]);
            assert_eq!(guest.run(READ, 8 * slot as u64, 4096), OK);
            assert_eq!(guest.peek(Guest::data(0), 4096), [round; 4096]);
        }
    }
}

#[test]
fn shutdown_answers_what_runs() {
    let folder = tempdir();
    let (mut guest, mut server) = guest_and_server(folder.path(), false);
    for slot in 0..support::SLOTS {
        guest.poke(Guest::data(slot), &[9; 4096]);
        guest.request(slot, WRITE_TYPE, 8 * slot as u64, 4096);
    }
    server.stop();
    let answered = guest.answered();
    let file = File::open(folder.path().join("disk.raw")).unwrap();
    for head in answered {
        let slot = usize::from(head) / 3;
        assert_eq!(guest.status(slot), OK);
        let mut content = [0; 4096];
        file.read_exact_at(&mut content, 4096 * slot as u64)
            .unwrap();
        assert_eq!(content, [9; 4096]);
    }
}
