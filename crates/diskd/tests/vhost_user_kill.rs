//! `kill -9` of the server under load: every request is answered exactly once, with the right content.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use support::{Guest, Process, SLOTS, disk_file};
use testkit::Rng;

const READ: u32 = 0;
const WRITE: u32 = 1;
const BLOCK: usize = 4096;
const BLOCKS: usize = 1024;

struct Setup {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    listener: UnixListener,
    file: PathBuf,
}

fn setup() -> Setup {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let file = disk_file(folder.path(), (BLOCK * BLOCKS) as u64);
    Setup {
        _folder: folder,
        socket,
        listener,
        file,
    }
}

/// Not a test: the server that the tests below start and kill.
#[test]
#[ignore = "started by other tests in a process of its own"]
fn serves_for_another_test() {
    support::child_main();
}

fn content(number: u64) -> Vec<u8> {
    Rng::new(number).bytes(BLOCK)
}

#[test]
fn what_was_in_flight_when_the_server_was_killed_is_answered_exactly_once() {
    let Setup {
        socket,
        listener,
        file,
        _folder,
    } = setup();
    let answers = 7;
    let first = Process::start(&listener, &file, answers);
    let mut guest = Guest::new();
    guest.connect(&socket);
    for slot in 0..SLOTS {
        guest.poke(Guest::data(slot), &content(slot as u64));
        guest.request(slot, WRITE, (8 * slot) as u64, BLOCK);
    }
    let mut heads = guest.wait_for(usize::try_from(answers).unwrap());
    assert_eq!(heads.len(), 7, "the others are not answered");
    first.kill();
    guest.disconnect();

    // Made available while nobody serves: not in flight, but not lost either.
    let _second = Process::start(&listener, &file, u64::MAX);
    guest.connect(&socket);
    heads.extend(guest.wait_for(SLOTS - heads.len()));
    heads.sort_unstable();
    let all: Vec<u16> = (0..SLOTS)
        .map(|slot| u16::try_from(3 * slot).unwrap())
        .collect();
    assert_eq!(heads, all, "every head once");
    for slot in 0..SLOTS {
        assert_eq!(guest.run(READ, (8 * slot) as u64, BLOCK), 0);
        assert!(guest.peek(Guest::data(0), BLOCK) == content(slot as u64));
    }
    assert!(guest.answered().is_empty());
}

#[test]
fn killed_between_an_answer_and_its_bookkeeping_the_server_neither_repeats_nor_hides_it() {
    let Setup {
        socket,
        listener,
        file,
        _folder,
    } = setup();
    let mut guest = Guest::new();
    for slot in [5, 2, 9] {
        let server = Process::start(&listener, &file, u64::MAX);
        guest.connect(&socket);
        guest.request(slot, READ, 0, BLOCK);
        let head = u16::try_from(3 * slot).unwrap();
        assert_eq!(guest.wait_for(1), [head]);
        server.kill();
        guest.disconnect();
        guest.undo_settling(head);
        guest.forget_notifications();

        let _next = Process::start(&listener, &file, u64::MAX);
        guest.connect(&socket);
        // The answer may have been published without a notification.
        guest.wait_notified();
        assert_eq!(guest.run(READ, 0, BLOCK), 0, "and the only answer");
        guest.disconnect();
    }
}

/// Keeps `SLOTS` requests running on distinct blocks and kills the server at random instants.
fn kill_under_load(seed: u64, kills: u32, per_life: usize, setup: &Setup) {
    let mut rng = Rng::new(seed);
    let mut server = Some(Process::start(&setup.listener, &setup.file, u64::MAX));
    let mut guest = Guest::new();
    guest.connect(&setup.socket);
    // Per block the number of its last write; 0 for none.
    let mut model = vec![0u64; BLOCKS];
    let mut running: Vec<Option<(bool, usize)>> = vec![None; SLOTS];
    let (mut number, mut lives, mut left) = (0, 0, per_life);
    while lives <= kills || running.iter().any(Option::is_some) {
        for slot in 0..SLOTS {
            if running[slot].is_some() || lives > kills {
                continue;
            }
            let block = rng.index(BLOCKS);
            if running.iter().flatten().any(|(_, other)| *other == block) {
                continue;
            }
            let write = !rng.once_in(3);
            if write {
                number += 1;
                model[block] = number;
                guest.poke(Guest::data(slot), &content(number));
            }
            running[slot] = Some((write, block));
            let kind = if write { WRITE } else { READ };
            guest.request(slot, kind, (8 * block) as u64, BLOCK);
        }
        if left == 0 && lives <= kills {
            lives += 1;
            left = 1 + rng.index(2 * per_life);
            if lives <= kills {
                // Some of the requests above are on their way now.
                for _ in 0..rng.index(2000) {
                    std::hint::spin_loop();
                }
                server.take().unwrap().kill();
                guest.disconnect();
                server = Some(Process::start(&setup.listener, &setup.file, u64::MAX));
                guest.connect(&setup.socket);
            }
        }
        for head in guest.wait_for(1) {
            let slot = usize::from(head) / 3;
            let (write, block) = running[slot].take().expect("answered once, not twice");
            assert_eq!(guest.status(slot), 0);
            if !write {
                let expected = match model[block] {
                    0 => vec![0; BLOCK],
                    number => content(number),
                };
                let found = guest.peek(Guest::data(slot), BLOCK);
                assert!(found == expected, "wrong content of block {block}");
            }
            left = left.saturating_sub(1);
        }
    }
    for (block, number) in model.iter().enumerate().filter(|(_, number)| **number > 0) {
        assert_eq!(guest.run(READ, (8 * block) as u64, BLOCK), 0);
        assert!(
            guest.peek(Guest::data(0), BLOCK) == content(*number),
            "block {block}"
        );
    }
}

#[test]
fn killed_again_and_again_under_load_the_disk_loses_nothing() {
    let kills = std::env::var("POLLUX_KILLS").map_or(12, |kills| kills.parse().unwrap());
    let setup = setup();
    kill_under_load(3, kills, 300, &setup);
}
