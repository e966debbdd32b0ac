//! The NBD server in a process that has no descriptors left. Alone in its process: they are everybody's.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;

use nbd_support::{Client, Server, disk_file};
use rustix::process::{Resource, getrlimit, setrlimit};

#[test]
fn a_server_without_descriptors_serves_who_is_there_and_takes_others_in_later() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), &disk_file(folder.path(), 1 << 20));
    let mut client = Client::open(&server.socket, "guest", true);
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = Some(64);
    setrlimit(Resource::Nofile, limit).unwrap();
    let mut all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    all.pop();
    let mut waiting = UnixStream::connect(&server.socket).unwrap();
    assert!(File::open("/dev/null").is_err());
    // The server has looked at its listener between these.
    for at in 0..100 {
        client.write(at * 512, &[1; 512]);
    }
    drop(all);
    let mut greeting = [0; 18];
    waiting.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
}
