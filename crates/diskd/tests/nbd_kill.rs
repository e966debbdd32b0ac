//! QEMU's client while the server is killed and replaced, on the listener that its supervisor keeps.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nbd_support::{Client, LIMIT, READ, Server, disk_file};
use pollux_diskd::nbd::Limits;

const SIZE: u64 = 64 << 20;
const FILE: &str = "POLLUX_TEST_NBD_FILE";

/// Not a test: the process that is killed. Its standard input is the listener.
#[test]
#[ignore = "run by another test, as a process of its own"]
fn the_server_that_is_killed() {
    let file = std::env::var_os(FILE).unwrap();
    let listener = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let limits = Limits::default();
    let server = Server::over(listener.into(), PathBuf::new(), Path::new(&file), limits);
    std::thread::park();
    drop(server);
}

fn begin(listener: &UnixListener, file: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "the_server_that_is_killed"])
        .env(FILE, file)
        .stdin(OwnedFd::from(listener.try_clone().unwrap()))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Writes by QEMU while the server is ended 6 times, each when it has answered something.
fn qemu_writes_while<S>(begin: impl Fn(&UnixListener, &Path, &Path) -> S, end: impl Fn(S)) {
    // Where QEMU is done before, more writes keep it busy.
    let writes = [60_000, 240_000, 960_000];
    let enough = |writes| ends_during(writes, &begin, &end) == 6;
    assert!(writes.into_iter().any(enough), "QEMU was done before");
}

/// Ends the server until QEMU has made so many writes, 60,000 or more, 6 times at most; gives how often.
fn ends_during<S>(
    writes: u32,
    begin: &impl Fn(&UnixListener, &Path, &Path) -> S,
    end: &impl Fn(S),
) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), SIZE);
    let socket = folder.path().join("nbd.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut server = begin(&listener, &socket, &file);
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=guest,open-timeout=60,reconnect-delay=60",
        socket.display()
    );
    let mut bench = Command::new("timeout")
        .arg((10 * LIMIT).as_secs().to_string())
        .args(["qemu-img", "bench", "-w", "-c", &writes.to_string()])
        .args(["-d", "32"])
        .args(["-s", "4096", "--pattern", "90", "--image-opts", &options])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut ends = 0;
    while ends < 6 && bench.try_wait().unwrap().is_none() {
        let mut client = Client::open(&socket, "disk", true);
        for number in 0..100 * ends {
            assert_eq!(client.call(0, READ, number * 4096, 4096, &[]).error, 0);
        }
        end(server);
        ends += 1;
        server = begin(&listener, &socket, &file);
    }
    assert!(bench.wait().unwrap().success(), "QEMU saw an error");
    // 60,000 writes of 4 KiB go round the disk more than three times.
    let mut client = Client::open(&socket, "disk", true);
    let content = client.read(0, 32 << 20);
    assert!(content == vec![90; content.len()]);
    end(server);
    ends
}

#[test]
fn qemu_loses_nothing_and_sees_no_error_when_the_server_is_killed_under_it() {
    qemu_writes_while(
        |listener, _, file| begin(listener, file),
        |mut server: Child| {
            server.kill().unwrap();
            server.wait().unwrap();
        },
    );
}

#[test]
fn qemu_loses_nothing_and_sees_no_error_when_the_server_is_shut_down_under_it() {
    qemu_writes_while(
        |listener, socket, file| {
            let listener = listener.try_clone().unwrap();
            Server::over(listener, socket.to_owned(), file, Limits::default())
        },
        |mut server| server.stop(),
    );
}
