//! The NBD server against a simple model: an array of bytes. And clients that lose it and come back.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nbd_support::{
    BLOCK_STATUS, Client, DF, FLUSH, FUA, NO_HOLE, READ, REQ_ONE, Server, TRIM, WRITE,
    WRITE_ZEROES, disk_file,
};
use pollux_diskd::nbd::Limits;
use testkit::{Rng, seeds};

const SIZE: u64 = 4 << 20;

/// A request that was sent, and what is expected.
struct Sent {
    client: usize,
    cookie: u64,
    command: u16,
    at: usize,
    len: usize,
}

/// Requests on ranges of their own, several at once over several connections; after each round the disk
/// holds what the model holds.
fn round(rng: &mut Rng, clients: &mut [Client], model: &mut [u8]) {
    let parts = 1 + rng.index(8);
    let stride = model.len() / parts / 512 * 512;
    let mut sent = Vec::new();
    for part in 0..parts {
        let client = rng.index(clients.len());
        let command = [
            READ,
            READ,
            WRITE,
            WRITE,
            TRIM,
            WRITE_ZEROES,
            FLUSH,
            BLOCK_STATUS,
        ][rng.index(8)];
        let structured = clients[client].structured;
        if command == BLOCK_STATUS && !structured {
            continue;
        }
        // Mostly short, sometimes all there is.
        let most = if rng.once_in(4) {
            stride / 512
        } else {
            (stride / 512).min(64)
        };
        let len = (1 + rng.index(most)) * 512;
        let at = part * stride + rng.index((stride - len) / 512 + 1) * 512;
        let fua = if rng.once_in(4) { FUA } else { 0 };
        let extra = match command {
            READ if structured && len <= 1 << 20 && rng.once_in(4) => DF,
            WRITE_ZEROES if rng.once_in(2) => NO_HOLE,
            BLOCK_STATUS if rng.once_in(4) => REQ_ONE,
            _ => 0,
        };
        let data = if command == WRITE {
            rng.bytes(len)
        } else {
            vec![]
        };
        match command {
            WRITE => model[at..at + len].copy_from_slice(&data),
            TRIM | WRITE_ZEROES => model[at..at + len].fill(0),
            _ => {}
        }
        let cookie = rng.bits();
        let (place, length) = if command == FLUSH {
            (0, 0)
        } else {
            (at as u64, len)
        };
        let length = u32::try_from(length).unwrap();
        clients[client].ask(cookie, fua | extra, command, place, length, &data);
        sent.push(Sent {
            client,
            cookie,
            command,
            at,
            len,
        });
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut left: Vec<_> = sent.iter().filter(|sent| sent.client == number).collect();
        for answer in client.answers(left.len()) {
            assert_eq!(answer.error, 0, "{}", answer.message);
            let found = left
                .iter()
                .position(|sent| sent.cookie == answer.cookie)
                .unwrap();
            let Sent {
                command, at, len, ..
            } = *left.swap_remove(found);
            match command {
                READ => {
                    let range = at as u64..(at + len) as u64;
                    assert!(
                        answer.content(range) == model[at..at + len],
                        "{len} bytes at {at}"
                    );
                }
                BLOCK_STATUS => {
                    let mut place = at;
                    for (len, flags) in &answer.extents {
                        let end = place + *len as usize;
                        let zero = model[place..end].iter().all(|byte| *byte == 0);
                        assert!(*len > 0 && (*flags == 0 || (*flags == 3 && zero)));
                        place = end;
                    }
                    assert!(place > at && place <= at + len);
                }
                _ => assert!(answer.data.is_empty() && answer.extents.is_empty()),
            }
        }
        assert!(left.is_empty());
    }
}

/// 12 seeds, 60 rounds of up to 8 requests each, over three connections; the disk is looked at in the end
/// by one that was not there before, and in the file.
#[test]
fn random_requests_over_several_connections_do_what_a_model_does() {
    for seed in seeds(12) {
        let folder = tempfile::tempdir().unwrap();
        let file = disk_file(folder.path(), SIZE);
        compare(seed, Server::start(folder.path(), &file), &file);
    }
}

/// The same where the kernel gives no io_uring: 4 seeds.
#[test]
fn random_requests_do_what_a_model_does_without_io_uring() {
    for seed in seeds(4) {
        let folder = tempfile::tempdir().unwrap();
        let file = disk_file(folder.path(), SIZE);
        compare(seed, Server::on_threads(folder.path(), &file), &file);
    }
}

fn compare(seed: u64, mut server: Server, file: &Path) {
    let mut rng = Rng::new(seed);
    let mut model = vec![0; usize::try_from(SIZE).unwrap()];
    let mut clients: Vec<_> = [true, true, false]
        .map(|structured| Client::open(&server.socket, "guest", structured))
        .into();
    for _ in 0..60 {
        round(&mut rng, &mut clients, &mut model);
    }
    let whole = u32::try_from(SIZE).unwrap();
    for structured in [true, false] {
        let mut late = Client::open(&server.socket, "disk", structured);
        assert!(late.read(0, whole) == model, "seed {seed}");
    }
    server.stop();
    assert!(std::fs::read(file).unwrap() == model, "seed {seed}");
}

/// The same over an overlay, as a VM with a checkpoint has it; what is below stays as it was. 6 seeds.
#[test]
fn random_requests_to_an_overlay_do_what_a_model_does_and_leave_what_is_below() {
    for seed in seeds(6).map(|seed| 100 + seed) {
        let mut rng = Rng::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let file = disk_file(folder.path(), SIZE);
        let mut below = vec![0; usize::try_from(SIZE).unwrap()];
        for _ in 0..20 {
            let at = rng.index(below.len() / 4096) * 4096;
            below[at..at + 4096].copy_from_slice(&rng.bytes(4096));
        }
        std::fs::write(&file, &below).unwrap();
        let mut server = Server::over_overlay(folder.path(), &file);
        let mut model = below.clone();
        let mut clients: Vec<_> = [true, true, false]
            .map(|structured| Client::open(&server.socket, "guest", structured))
            .into();
        let mut checkpoint = Client::open(&server.socket, "checkpoint/1", true);
        for _ in 0..60 {
            round(&mut rng, &mut clients, &mut model);
        }
        let whole = u32::try_from(SIZE).unwrap();
        assert!(clients[0].read(0, whole) == model, "seed {seed}");
        assert!(checkpoint.read(0, whole) == below, "seed {seed}");
        server.stop();
        assert!(std::fs::read(&file).unwrap() == below, "seed {seed}");
    }
}

/// The server is ended and begun again on the same listener, as its supervisor keeps it, under a client
/// that sends again what was not answered. 4 seeds of 10 ends each.
#[test]
fn a_client_that_sends_again_what_was_not_answered_loses_nothing_over_restarts() {
    let mut sent_again = 0;
    for seed in seeds(4).map(|seed| 200 + seed) {
        let mut rng = Rng::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let file = disk_file(folder.path(), SIZE);
        let socket: PathBuf = folder.path().join("nbd.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut model = vec![0; usize::try_from(SIZE).unwrap()];
        let mut writes: Vec<(usize, Vec<u8>)> = Vec::new();
        for restart in 0..10 {
            let listener = listener.try_clone().unwrap();
            let mut server = Server::over(listener, socket.clone(), &file, Limits::default());
            let mut client = Client::open(&socket, "guest", true);
            // Again, in their order, then new ones.
            let again = std::mem::take(&mut writes);
            let fresh = (0..50).map(|_| {
                let at = rng.index(1000) * 4096;
                (at, rng.bytes(4096))
            });
            let fresh: Vec<_> = fresh.collect();
            sent_again += again.len();
            for (at, data) in again {
                client.write(at as u64, &data);
                model[at..at + data.len()].copy_from_slice(&data);
            }
            let stop_after = rng.index(50);
            let mut places = std::collections::HashSet::new();
            for (number, (at, data)) in fresh.into_iter().enumerate() {
                // A guest has no two writes to one place under way.
                if !places.insert(at) {
                    continue;
                }
                let length = u32::try_from(data.len()).unwrap();
                let header = nbd_support::request(at as u64, 0, WRITE, at as u64, length);
                writes.push((at, data.clone()));
                if client.try_give(&[header, data].concat()).is_err() {
                    break;
                }
                if number == stop_after {
                    server.begin_stop();
                }
            }
            server.begin_stop();
            while let Ok(answer) = client.answer() {
                assert_eq!(answer.error, 0, "restart {restart}");
                let found = writes
                    .iter()
                    .position(|(at, _)| *at as u64 == answer.cookie)
                    .unwrap();
                let (at, data) = writes.remove(found);
                model[at..at + data.len()].copy_from_slice(&data);
            }
            server.stop();
        }
        let server = Server::over(listener, socket.clone(), &file, Limits::default());
        let mut client = Client::open(&socket, "guest", true);
        for (at, data) in writes {
            client.write(at as u64, &data);
            model[at..at + data.len()].copy_from_slice(&data);
        }
        assert!(
            client.read(0, u32::try_from(SIZE).unwrap()) == model,
            "seed {seed}"
        );
        drop(server);
    }
    assert!(sent_again > 0, "no end left anything unanswered");
}
