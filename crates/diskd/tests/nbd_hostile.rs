//! The NBD server among clients that break rules, flood it, stall, and hang up.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use block::Fault;
use nbd_support::{
    ACK, BLOCK_STATUS, CACHE, Client, DF, DISC, FAST_ZERO, FLUSH, FUA, NO_HOLE, READ, REQ_ONE,
    Server, TRIM, WRITE, WRITE_ZEROES, disk_file, go, option_bytes, pattern, request,
};
use pollux_diskd::nbd::{Export, Limits};

const MIB: u64 = 1 << 20;

const EPERM: u32 = 1;
const EIO: u32 = 5;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

const UNSUPPORTED: u32 = (1 << 31) + 1;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;
const TOO_BIG: u32 = (1 << 31) + 9;

fn server(folder: &Path) -> Server {
    Server::start(folder, &disk_file(folder, 16 * MIB))
}

/// A client that behaves is served as if nobody else were there.
fn others_are_served(server: &Server) {
    let mut client = Client::open(&server.socket, "guest", true);
    let data = pattern(9, 4096);
    client.write(12 * MIB, &data);
    assert_eq!(client.read(12 * MIB, 4096), data);
}

#[test]
fn what_is_not_a_handshake_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let option =
        |number: u32, data: &[u8]| [&3_u32.to_be_bytes()[..], &option_bytes(number, data)].concat();
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("half the flags", vec![0, 0]),
        ("flags that were not offered", 7_u32.to_be_bytes().to_vec()),
        ("all flags", u32::MAX.to_be_bytes().to_vec()),
        (
            "another magic",
            [&[0, 0, 0, 3][..], b"IHAVENOT", &[0; 8]].concat(),
        ),
        (
            "half an option",
            [&[0, 0, 0, 3][..], b"IHAVEOPT", &[0; 3]].concat(),
        ),
        (
            "a request instead of an option",
            [vec![0, 0, 0, 3], request(1, 0, READ, 0, 512)].concat(),
        ),
        (
            "4 GiB of option",
            [
                &[0, 0, 0, 3][..],
                b"IHAVEOPT",
                &[0, 0, 0, 7, 255, 255, 255, 255],
            ]
            .concat(),
        ),
        ("a name that is not there", option(1, b"nobody")),
        ("a name that is not text", option(1, &[0xff; 16])),
        ("a name of 5000 bytes", option(1, &[b'x'; 5000])),
        ("a name of 100 KiB", option(1, &[b'x'; 100 << 10])),
        (
            "an option without fixed newstyle",
            [vec![0; 4], option_bytes(7, &go("guest"))].concat(),
        ),
        ("an end", option(2, &[])),
    ];
    for (what, bytes) in attacks {
        let mut client = Client::connect(&server.socket);
        client.give(&bytes);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_hung_up(), "{what}");
    }
    others_are_served(&server);
}

#[test]
fn options_that_are_malformed_or_unknown_are_answered_and_the_next_one_works() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut client = Client::haggle(&server.socket);
    let long_name = [&u32::MAX.to_be_bytes()[..], b"guest\0\0"].concat();
    let wishes = [&go("guest")[..9], &[0xff, 0xff][..]].concat();
    let table: Vec<(&str, u32, Vec<u8>, u32)> = vec![
        ("a list with data", 3, vec![1], INVALID),
        ("peek", 4, vec![], UNSUPPORTED),
        ("TLS", 5, vec![], UNSUPPORTED),
        ("info of nothing", 6, vec![], INVALID),
        ("a name longer than the option", 7, long_name, INVALID),
        ("more wishes than the option has", 7, wishes, INVALID),
        (
            "bytes after the wishes",
            7,
            [go("guest"), vec![0]].concat(),
            INVALID,
        ),
        ("a name with NUL", 7, go("gu\0st"), INVALID),
        ("an unknown name", 7, go("nobody"), UNKNOWN),
        (
            "contexts before structured replies",
            10,
            go("guest"),
            INVALID,
        ),
        ("structured replies with data", 8, vec![0], INVALID),
        ("structured replies", 8, vec![], ACK),
        ("no contexts", 10, b"\0\0\0\x05guest\0\0\0\0".to_vec(), ACK),
        (
            "4 billion contexts",
            10,
            b"\0\0\0\x05guest\xff\xff\xff\xff".to_vec(),
            INVALID,
        ),
        (
            "contexts of an unknown export",
            9,
            b"\0\0\0\x01x\0\0\0\0".to_vec(),
            UNKNOWN,
        ),
        ("extended headers", 11, vec![], UNSUPPORTED),
        (
            "the last option there may be",
            u32::MAX,
            vec![1, 2, 3],
            UNSUPPORTED,
        ),
        ("100 KiB of it", 99, vec![0; 100 << 10], TOO_BIG),
    ];
    for (what, number, data, wanted) in table {
        let replies = client.option(number, &data).unwrap();
        assert_eq!(replies.last().unwrap().0, wanted, "{what}: {replies:?}");
    }
    // QEMU's contexts select nothing, and what is known beside them is selected.
    let query = b"\0\0\0\x05guest\0\0\0\x02\0\0\0\x0dqemu:bitmap:x\0\0\0\x0fbase:allocation";
    let query = [&query[..13], &[0, 0, 0, 13], &query[17..]].concat();
    let replies = client.option(10, &query).unwrap();
    assert_eq!(replies.len(), 2);
    assert_eq!(&replies[0].1[4..], b"base:allocation");
    let all = client.option(9, b"\0\0\0\0\0\0\0\0").unwrap();
    assert_eq!(&all[0].1[4..], b"base:allocation");
    assert_eq!(
        client.option(7, &go("guest")).unwrap().last().unwrap().0,
        ACK
    );
}

#[test]
fn requests_that_cannot_be_run_are_answered_with_the_right_error() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let (mut guest, mut disk) = (
        Client::open(&server.socket, "guest", true),
        Client::open(&server.socket, "", true),
    );
    let mut plain = Client::open(&server.socket, "guest", false);
    let end = 16 * MIB;
    let sector = vec![1; 512];
    // flags, command, offset, length, error
    let wrong: &[(u16, u16, u64, u32, u32)] = &[
        (0, READ, end, 512, EINVAL),
        (0, READ, end - 512, 1024, EINVAL),
        (0, READ, u64::MAX - 511, 512, EINVAL),
        (0, READ, u64::MAX, u32::MAX, EOVERFLOW),
        (0, READ, 1, 512, EINVAL),
        (0, READ, 0, 511, EINVAL),
        (0, READ, 0, (32 << 20) + 512, EOVERFLOW),
        (NO_HOLE, READ, 0, 512, EINVAL),
        (1 << 15, READ, 0, 512, EINVAL),
        (0, WRITE, end, 512, ENOSPC),
        (0, WRITE, u64::MAX - 511, 512, ENOSPC),
        (0, WRITE, 7, 512, EINVAL),
        (DF, WRITE, 0, 512, EINVAL),
        (0, FLUSH, 512, 0, EINVAL),
        (0, FLUSH, 0, 512, EINVAL),
        (0, TRIM, end, 512, EINVAL),
        (0, TRIM, 512, u32::MAX, EINVAL),
        (0, WRITE_ZEROES, end, 512, ENOSPC),
        (FAST_ZERO, WRITE_ZEROES, 0, 512, EINVAL),
        (0, WRITE_ZEROES, 3, 512, EINVAL),
        (0, CACHE, 0, 512, EINVAL),
        (0, 8, 0, 512, EINVAL),
        (0, u16::MAX, 0, 512, EINVAL),
    ];
    for (flags, command, at, len, error) in wrong {
        let data: &[u8] = if *command == WRITE { &sector } else { &[] };
        for client in [&mut guest, &mut plain] {
            let answer = client.call(*flags, *command, *at, *len, data);
            assert_eq!(answer.error, *error, "{flags} {command} {at} {len}");
            assert!(answer.data.is_empty());
            assert_eq!(!answer.message.is_empty(), client.structured);
        }
    }
    let status: &[(u16, u64, u32, u32)] = &[
        (0, 0, 0, EINVAL),
        (0, end, 512, EINVAL),
        (FUA | REQ_ONE, 0, 512, 0),
        (DF, 0, 512, EINVAL),
    ];
    for (flags, at, len, error) in status {
        assert_eq!(
            guest.call(*flags, BLOCK_STATUS, *at, *len, &[]).error,
            *error
        );
    }
    assert_eq!(
        plain.call(0, BLOCK_STATUS, 0, 512, &[]).error,
        EINVAL,
        "not negotiated"
    );
    assert_eq!(
        plain.call(DF, READ, 0, 512, &[]).error,
        EINVAL,
        "not negotiated"
    );
    assert_eq!(guest.call(DF, READ, 0, 4 << 20, &[]).error, EOVERFLOW);
    for (command, data) in [(WRITE, &sector[..]), (TRIM, &[]), (WRITE_ZEROES, &[])] {
        assert_eq!(disk.call(0, command, 0, 512, data).error, EPERM);
    }
    assert_eq!(disk.call(0, FLUSH, 0, 0, &[]).error, 0);
    assert_eq!(
        disk.read(0, 512),
        [0; 512],
        "and what was refused did nothing"
    );
    others_are_served(&server);
}

#[test]
fn what_is_not_a_request_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut bad_magic = request(1, 0, READ, 0, 512);
    bad_magic[3] ^= 1;
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("another magic", bad_magic),
        ("an option after GO", option_bytes(7, &go("guest"))),
        ("a write of 4 GiB", request(1, 0, WRITE, 0, u32::MAX)),
        ("half a header", request(1, 0, READ, 0, 512)[..20].to_vec()),
        ("a write without its data", request(1, 0, WRITE, 0, 4 << 20)),
        (
            "a refused write without its data",
            request(1, 0, WRITE, 1, 4 << 20),
        ),
        ("a disconnect", request(1, 0, DISC, 0, 0)),
    ];
    for (what, bytes) in attacks {
        let mut client = Client::open(&server.socket, "guest", true);
        client.give(&bytes);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(client.is_hung_up(), "{what}");
    }
    others_are_served(&server);
}

#[test]
fn ten_thousand_requests_at_once_are_all_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut client = Client::open(&server.socket, "guest", true);
    let mut sender = client.stream.try_clone().unwrap();
    let sending = std::thread::spawn(move || {
        for number in 0..10_000_u64 {
            let at = number % 4096 * 4096;
            let bytes = match number % 4 {
                0 => [request(number, 0, WRITE, at, 512), vec![7; 512]].concat(),
                1 => request(number, 0, READ, at, 4096),
                2 => request(number, 0, WRITE_ZEROES, at, 4096),
                _ => request(number, 0, 77, at, 4096),
            };
            sender.write_all(&bytes).unwrap();
        }
    });
    let mut seen = vec![false; 10_000];
    for _ in 0..10_000 {
        let answer = client.answer().unwrap();
        let number = usize::try_from(answer.cookie).unwrap();
        assert!(
            !std::mem::replace(&mut seen[number], true),
            "answered twice"
        );
        assert_eq!(answer.error, if number % 4 == 3 { EINVAL } else { 0 });
    }
    sending.join().unwrap();
}

#[test]
fn silent_clients_keep_nobody_out_and_readers_leave_room_for_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut silent: Vec<_> = (0..16).map(|_| Client::connect(&server.socket)).collect();
    others_are_served(&server);
    assert!(silent[0].is_hung_up(), "the oldest made room");
    let mut readers = Vec::new();
    for _ in 0..12 {
        readers.push(Client::open(&server.socket, "disk", true));
    }
    assert!(
        Client::try_open(&server.socket, "disk", true).is_err(),
        "one more reader"
    );
    others_are_served(&server);
    for reader in &mut readers {
        assert_eq!(reader.read(0, 512).len(), 512);
    }
}

#[test]
fn who_chooses_no_export_in_time_is_hung_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 16 * MIB);
    let limits = Limits {
        patience: Duration::from_millis(50),
        ..Limits::default()
    };
    let server = Server::start_within(folder.path(), &file, limits);
    // On a busy host it may itself be too slow.
    let mut chosen = (0..100)
        .find_map(|_| Client::try_open(&server.socket, "guest", true).ok())
        .expect("one of them chooses in time");
    let mut silent = Client::connect(&server.socket);
    assert!(silent.is_hung_up());
    let mut slow = Client::connect(&server.socket);
    // It may be hung up on before it has said so much.
    let _ = slow.try_give(&[&[0, 0, 0, 3][..], b"IHAVE"].concat());
    assert!(slow.is_hung_up());
    assert_eq!(chosen.read(0, 512).len(), 512);
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_write_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut stalled: Vec<_> = (0..4)
        .map(|_| {
            let mut client = Client::open(&server.socket, "guest", true);
            client.give(&request(1, 0, WRITE, 0, 8 << 20));
            client.give(&pattern(1, 3 << 20));
            client
        })
        .collect();
    others_are_served(&server);
    // And goes on when it likes to.
    stalled[0].give(&vec![5; 5 << 20]);
    assert_eq!(stalled[0].answer().unwrap().error, 0);
    assert_eq!(stalled[0].read(8 * MIB - 512, 512), [5; 512]);
}

#[test]
fn no_room_on_the_host_is_told_as_such_and_other_failures_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut client = Client::open(&server.socket, "guest", true);
    for (fault, error) in [
        (Fault::Os(libc::ENOSPC), ENOSPC),
        (Fault::Os(libc::EDQUOT), ENOSPC),
        (Fault::Os(libc::EFBIG), ENOSPC),
        (Fault::Os(libc::EIO), EIO),
        (Fault::FlushFailed, EIO),
        (Fault::ReadOnly, EPERM),
    ] {
        server.with(move |disk, _| disk.fault.set(Some(fault)));
        for len in [512, 4 << 20] {
            let data = vec![3; len as usize];
            assert_eq!(client.call(0, WRITE, 0, len, &data).error, error, "{fault}");
        }
        assert_eq!(client.call(0, TRIM, 0, 4096, &[]).error, error, "{fault}");
        assert_eq!(
            client.call(0, WRITE_ZEROES, 0, 4096, &[]).error,
            error,
            "{fault}"
        );
    }
    server.with(|disk, _| disk.fault.set(None));
    client.write(0, &[4; 512]);
}

#[test]
fn what_is_written_with_fua_is_flushed_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut client = Client::open(&server.socket, "guest", true);
    let flushes = |server: &Server| server.with(|disk, _| disk.flushes.get());
    client.write(0, &[1; 512]);
    assert_eq!(flushes(&server), 0);
    let long = vec![1; 4 << 20];
    for (count, (command, len, data)) in [
        (WRITE, 512, &long[..512]),
        (WRITE, 4 << 20, &long[..]),
        (TRIM, 4096, &[]),
        (WRITE_ZEROES, 4096, &[]),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(client.call(FUA, command, 0, len, data).error, 0);
        assert_eq!(flushes(&server), count as u64 + 1, "{command} {len}");
    }
    assert_eq!(client.call(FUA, READ, 0, 512, &[]).error, 0);
    assert_eq!(flushes(&server), 4);
    assert_eq!(client.call(0, FLUSH, 0, 0, &[]).error, 0);
    assert_eq!(flushes(&server), 5);
}

#[test]
fn a_client_that_comes_back_waits_for_what_it_wrote_before() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    let mut old = Client::open(&server.socket, "guest", true);
    server.with(|disk, _| disk.hold_next());
    old.ask(1, 0, WRITE, 0, 512, &[1; 512]);
    // It is under way once what comes after it is answered.
    assert!(old.call(0, READ, 4096, 512, &[]).error == 0);
    // This one may run or not.
    old.ask(2, 0, WRITE, 0, 512, &[2; 512]);
    drop(old);
    let socket = server.socket.clone();
    let again = std::thread::spawn(move || {
        let mut new = Client::open(&socket, "guest", true);
        new.write(0, &[3; 512]);
        new
    });
    // Those who only read need not wait.
    let mut reader = Client::open(&server.socket, "disk", true);
    for _ in 0..200 {
        assert_ne!(reader.read(0, 512), [3; 512]);
    }
    assert!(!again.is_finished());
    server.with(|disk, _| disk.release());
    again.join().unwrap();
    assert_eq!(
        reader.read(0, 512),
        [3; 512],
        "nothing old landed on what is new"
    );
}

#[test]
fn a_shutdown_answers_what_runs_and_leaves_the_rest_unanswered() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = server(folder.path());
    let mut client = Client::open(&server.socket, "guest", true);
    server.with(|disk, _| disk.hold_next());
    client.ask(1, 0, WRITE, 0, 512, &[1; 512]);
    client.ask(2, 0, READ, 4096, 512, &[]);
    assert_eq!(
        client.answer().unwrap().cookie,
        2,
        "so the write is under way"
    );
    client.give(&request(3, 0, WRITE, 512, 1024));
    client.give(&[2; 512]);
    let mut idle = Client::open(&server.socket, "disk", true);
    // The disk goes on only when the shutdown has begun.
    server.stop();
    let answer = client.answer().unwrap();
    assert_eq!((answer.cookie, answer.error), (1, 0));
    assert!(client.is_hung_up(), "and nothing is said of the third");
    assert!(idle.is_hung_up());
}

#[test]
fn a_shutdown_does_not_wait_for_those_who_read_no_replies() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 16 * MIB);
    std::fs::write(&file, pattern(1, 16 << 20)).unwrap();
    let limits = Limits {
        linger: Duration::from_millis(50),
        ..Limits::default()
    };
    let mut server = Server::start_within(folder.path(), &file, limits);
    let mut deaf = Client::open(&server.socket, "disk", true);
    deaf.give(&request(1, 0, READ, 0, 16 << 20));
    others_are_served(&server);
    server.stop();
}

#[test]
fn clients_of_an_export_that_is_gone_are_hung_up_on_and_the_others_notice_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    server.with(|disk, handle| {
        let mut exports = nbd_support::exports(disk);
        exports.push(Export::new("checkpoint/1", "", true, disk.clone()));
        handle.replace(exports);
    });
    let mut guest = Client::open(&server.socket, "guest", true);
    let mut checkpoint = Client::open(&server.socket, "checkpoint/1", true);
    assert_eq!(checkpoint.read(0, 512), [0; 512]);
    assert!(server.with(|_, handle| handle.connected() && handle.guest_is_there()));
    server.with(|disk, handle| handle.replace(nbd_support::exports(disk)));
    assert!(checkpoint.is_hung_up());
    guest.write(0, &[1; 512]);
    let replies = Client::haggle(&server.socket)
        .option(7, &go("checkpoint/1"))
        .unwrap();
    assert_eq!(replies.last().unwrap().0, UNKNOWN);
    drop(guest);
    // Known once it was looked at: the next client is let in after it.
    drop(Client::open(&server.socket, "guest", true));
    assert!(server.with(|_, handle| !handle.guest_is_there()));
}

#[test]
fn a_read_of_an_export_that_is_gone_is_not_answered() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    server.with(|disk, handle| {
        let mut exports = nbd_support::exports(disk);
        exports.push(Export::new("checkpoint/1", "", true, disk.clone()));
        handle.replace(exports);
        disk.hold_next_read();
    });
    let mut checkpoint = Client::open(&server.socket, "checkpoint/1", true);
    checkpoint.give(&request(1, 0, READ, 0, 512));
    while !server.with(|disk, _| disk.holds()) {
        std::thread::yield_now();
    }
    // From here on a merge changes what it reads.
    server.with(|disk, handle| handle.replace(nbd_support::exports(disk)));
    server.with(|disk, _| disk.release());
    let read = std::io::Read::read(&mut checkpoint.stream, &mut [0; 512]);
    assert_eq!(read.unwrap(), 0, "hung up on, and nothing was answered");
}

#[test]
fn a_new_size_is_seen_by_new_clients() {
    let folder = tempfile::tempdir().unwrap();
    let server = server(folder.path());
    server.with(|disk, _| disk.set_size(8 * MIB));
    let mut old = Client::open(&server.socket, "guest", true);
    server.with(|disk, _| disk.set_size(16 * MIB));
    let mut new = Client::open(&server.socket, "guest", true);
    assert_eq!((old.size, new.size), (8 * MIB, 16 * MIB));
    assert_eq!(old.call(0, READ, 8 * MIB, 512, &[]).error, EINVAL);
    assert_eq!(new.call(0, READ, 8 * MIB, 512, &[]).error, 0);
}
