//! How much memory the NBD server takes. Alone in its process, whose memory is looked at.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;

use nbd_support::{Client, READ, Server, WRITE, disk_file, pattern, request};

const MIB: u64 = 1 << 20;

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn floods_by_those_who_read_no_replies_take_bounded_memory_and_nothing_from_others() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 256 * MIB);
    // Content, so that no reply is a hole.
    let raw = std::fs::File::options().write(true).open(&file).unwrap();
    for at in 0..64 {
        raw.write_all_at(&pattern(at, 1 << 20), at * MIB).unwrap();
    }
    let server = Server::start(folder.path(), &file);
    let before = resident();
    let mut floods = Vec::new();
    for flood in 0..6_u64 {
        let mut client = Client::open(&server.socket, "guest", flood % 2 == 0);
        client.stream.set_nonblocking(true).unwrap();
        // 2 TiB of reads, or of writes, as far as the server lets them in.
        let read = request(0, 0, READ, 0, 32 << 20);
        let write = [request(0, 0, WRITE, 0, 1 << 20), vec![0xee; 1 << 20]].concat();
        let bytes = if flood < 4 { read.repeat(1000) } else { write };
        let mut sent = 0;
        for _ in 0..64 {
            match client.stream.write(&bytes[sent % bytes.len()..]) {
                Ok(moved) => sent += moved,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        floods.push(client);
    }
    assert_eq!(
        Client::open(&server.socket, "guest", true)
            .read(0, 512)
            .len(),
        512
    );
    let took = resident().saturating_sub(before);
    // 8 MiB in the window of each, 4 MiB kept, the receive buffers.
    assert!(took < 6 * 14 * MIB, "{} MiB", took / MIB);
    drop(floods);
    assert_eq!(
        Client::open(&server.socket, "guest", true)
            .read(0, 512)
            .len(),
        512
    );
}
