//! Several queues on one disk, and a server that runs out of descriptors.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;

use image::{Overlay, OverlayFiles, RawDevice, Tag};
use model::{BLOCK_SIZE, BootId};
use ring::Ring;
use rustix::fs::{MemfdFlags, memfd_create};
use support::{Control, Guest, Server, disk_file, until};
use testkit::{PowerCutStore, Rng};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserHeaderFlag;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

const QUEUES: usize = 4;
#[allow(clippy::cast_possible_truncation, reason = "4096")]
const BLOCK: usize = BLOCK_SIZE as usize;
/// Blocks of the disk; each is one seed of the race.
const BLOCKS: usize = 2000;
/// Bytes of what lies below, which repeats.
const BELOW: u8 = 0xb7;

/// An overlay without a block above a disk of `BELOW`, on stores whose operations take random
/// numbers of turns.
fn overlay(ring: &Ring, folder: &Path) -> impl block::Device + use<> {
    let size = BLOCK * BLOCKS;
    let below = PowerCutStore::new(size, 512, 1);
    let volatile = folder.join("volatile");
    ring.block_on(async {
        let content = block::Buffer::from_slice(&vec![BELOW; size]);
        block::Store::write(&below, 0, content)
            .await
            .outcome
            .unwrap();
        let files = OverlayFiles {
            data: PowerCutStore::new(size, 512, 2),
            map: PowerCutStore::new(0, 1, 3),
            volatile: &volatile,
        };
        let below = RawDevice::new(below, size as u64, true).unwrap();
        let boot = BootId(uuid::Uuid::from_u128(1));
        let tag: Tag = [7; 32];
        Overlay::open(files, below, boot, &tag).await.unwrap()
    })
}

fn piece(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start.cast(),
        iov_len: len,
    }
}

fn race(features: VirtioFeatureFlags) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_owned();
    let control = Control::new(u64::MAX);
    let server = Server::of(folder.path(), false, control, move |ring| {
        overlay(ring, &place)
    });
    let bits = (VirtioFeatureFlags::VERSION_1 | features).bits() | (1 << 12);
    let transport = VhostUser::new(server.socket.to_str().unwrap(), bits).unwrap();
    let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
    let memory = File::from(memfd_create("io", MemfdFlags::CLOEXEC).unwrap());
    memory.set_len((QUEUES * BLOCK + BLOCK) as u64).unwrap();
    let map = memmap2::MmapRaw::map_raw(&memory).unwrap();
    transport
        .map_mem_region(map.as_mut_ptr() as usize, map.len(), memory.as_raw_fd(), 0)
        .unwrap();
    let mut queues = VirtioBlkQueue::<usize>::setup_queues(&mut *transport, QUEUES, 16).unwrap();
    for queue in &mut queues {
        queue.set_used_notif_enabled(true);
    }
    let kicks: Vec<_> = (0..QUEUES)
        .map(|i| transport.get_submission_notifier(i))
        .collect();
    let calls: Vec<_> = (0..QUEUES)
        .map(|i| transport.get_completion_fd(i))
        .collect();
    let wait = |queues: &mut Vec<VirtioBlkQueue<'_, usize>>, mut left: usize| {
        while left > 0 {
            support::wait_any(&calls);
            for (queue, call) in queues.iter_mut().zip(&calls) {
                if support::is_readable(&**call) {
                    call.read().unwrap();
                }
                for completion in queue.completions() {
                    assert_eq!(completion.ret, 0);
                    left -= 1;
                }
            }
        }
    };
    let sectors = BLOCK / 512;
    for seed in 0..BLOCKS {
        let mut rng = Rng::new(seed as u64);
        // Every queue has some sectors of the block, none or several, in one piece.
        let mut cuts: Vec<usize> = (1..QUEUES).map(|_| rng.index(sectors + 1)).collect();
        cuts.extend([0, sectors]);
        cuts.sort_unstable();
        let mut expected = vec![BELOW; BLOCK];
        let mut running = 0;
        for index in 0..QUEUES {
            let (from, to) = (cuts[index] * 512, cuts[index + 1] * 512);
            // Some parts stay as they are below; those are copied up.
            if from == to || rng.once_in(3) {
                continue;
            }
            let bytes = rng.bytes(to - from);
            expected[from..to].copy_from_slice(&bytes);
            let at = (seed * BLOCK + from) as u64;
            let buffer = map.as_mut_ptr().wrapping_add(index * BLOCK);
            #[allow(unsafe_code, reason = "the queue has a block of the mapping to itself")]
            // SAFETY: inside the mapping, which nobody else uses for this queue.
            unsafe {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), buffer, bytes.len());
                let piece = piece(buffer, bytes.len());
                queues[index].writev(at, &raw const piece, 1, 0).unwrap();
            }
            running += 1;
        }
        for kick in &kicks {
            kick.notify().unwrap();
        }
        wait(&mut queues, running);
        let buffer = map.as_mut_ptr().wrapping_add(QUEUES * BLOCK);
        let mut found = vec![0; BLOCK];
        #[allow(unsafe_code, reason = "the last block of the mapping is for reading")]
        // SAFETY: inside the mapping, and nothing runs when it is copied.
        unsafe {
            let at = (seed * BLOCK) as u64;
            let piece = piece(buffer, BLOCK);
            queues[seed % QUEUES]
                .readv(at, &raw const piece, 1, 0)
                .unwrap();
            kicks[seed % QUEUES].notify().unwrap();
            wait(&mut queues, 1);
            std::ptr::copy_nonoverlapping(buffer, found.as_mut_ptr(), BLOCK);
        }
        assert!(found == expected, "seed {seed}");
    }
}

#[test]
fn writes_of_four_queues_to_one_absent_block_all_arrive() {
    race(VirtioFeatureFlags::empty());
}

#[test]
fn the_same_with_event_indexes_and_indirect_descriptors() {
    race(VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC);
}

const STARVED: &str = "POLLUX_TEST_STARVED";

static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Writes to [`LOG`].
struct Log;

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        LOG.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Whether the log says `text`.
fn said(text: &str) -> Option<()> {
    let log = LOG.lock().unwrap();
    String::from_utf8_lossy(&log).contains(text).then_some(())
}

/// Not a test: a process without descriptors to spare.
#[test]
#[ignore = "started by another test in a process of its own"]
fn a_starved_server_for_another_test() {
    let Some(folder) = std::env::var_os(STARVED) else {
        return;
    };
    let folder = Path::new(&folder);
    tracing_subscriber::fmt().with_writer(|| Log).init();
    let server = Server::start(folder, &disk_file(folder, 1 << 20), false);
    let mut guest = Guest::new();
    // Everything that is left is taken: the server can accept nobody.
    let mut hoard: Vec<File> = Vec::new();
    guest.connect(&server.socket);
    guest.disconnect();
    guest.reset();
    let limit = rustix::process::Rlimit {
        current: Some(64),
        maximum: Some(64),
    };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    // When this one sees the end, the server has closed all that it had for others.
    let mut last = UnixStream::connect(&server.socket).unwrap();
    last.shutdown(Shutdown::Write).unwrap();
    last.read_to_end(&mut Vec::new()).unwrap();
    while let Ok(file) = File::open("/dev/null") {
        hoard.push(file);
    }
    // One for the client's end, none for the server's.
    hoard.pop();
    let waiting = UnixStream::connect(&server.socket).unwrap();
    // The owner goes on, and the server tries again.
    until(|| said("cannot accept a connection"));
    assert_eq!(server.waiting(), 0);
    drop((hoard, waiting));
    guest.connect(&server.socket);
    assert_eq!(guest.run(0, 0, 512), 0);
    until(|| said("accepts again"));
}

#[test]
fn a_server_that_had_no_descriptor_for_a_front_end_serves_when_it_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_starved_server_for_another_test", "--ignored"])
        .env(STARVED, folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
fn more_queues_than_there_are_cannot_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &disk_file(folder.path(), 1 << 20), false);
    let mut guest = Guest::new();
    guest.connect(&server.socket);
    let most = u64::from(pollux_diskd::vhost_user::MAX_QUEUES);
    assert_eq!(guest.frontend().get_queue_num().unwrap(), most);
    guest.disconnect();
    let most = usize::try_from(most).unwrap();
    for queue in [most, most + 1, 200] {
        let mut frontend = Frontend::connect(&server.socket, 256).unwrap();
        let features = frontend.get_features().unwrap();
        frontend.set_features(features).unwrap();
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(frontend.set_vring_num(queue, 64).is_err(), "{queue}");
    }
    guest.reset();
    guest.connect(&server.socket);
    assert_eq!(guest.run(0, 0, 512), 0);
}
