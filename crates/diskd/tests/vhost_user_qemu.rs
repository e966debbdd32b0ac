//! The vhost-user front end under a real QEMU with a Linux guest.

#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "support/qemu.rs"]
mod qemu;
mod support;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::Ordering;

use qemu::Qemu;
use serde_json::json;
use support::{Control, Server, disk_file, until};

const MIB: u64 = 1 << 20;

/// A server of the file at `listener`; the disk has `size` bytes.
fn serve(folder: &Path, listener: &UnixListener, size: u64) -> Server {
    let control = Control::new(u64::MAX);
    control.size.store(size, Ordering::SeqCst);
    let file = folder.join("disk.raw");
    Server::at(
        listener.try_clone().unwrap(),
        folder.join("disk.sock"),
        false,
        control,
        move |ring| support::raw_device(ring, &file, false),
    )
}

fn grow(server: &Server, size: u64) {
    server.control.size.store(size, Ordering::SeqCst);
    server.resized(size);
}

fn size_in_guest(qemu: &mut Qemu, size: u64) {
    let sectors = size / 512;
    qemu.run(&format!(
        "until test $(cat /sys/block/vda/size) = {sectors}; do sleep 0.1; done"
    ));
}

#[test]
fn a_guest_sees_its_disk_grow_waits_for_room_and_is_handed_from_server_to_server() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("disk.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    disk_file(folder.path(), 128 * MIB);
    let mut server = serve(folder.path(), &listener, 32 * MIB);
    let mut qemu = Qemu::start(folder.path(), &socket, None);
    qemu.wait_up();
    size_in_guest(&mut qemu, 32 * MIB);

    // It grows while the guest runs.
    grow(&server, 64 * MIB);
    size_in_guest(&mut qemu, 64 * MIB);
    qemu.run("dmesg | grep 'new size: 131072 512-byte'");
    qemu.run("dd if=/dev/urandom of=/tmp/a bs=1M count=4");
    qemu.run("dd if=/tmp/a of=/dev/vda bs=1M seek=60 oflag=direct");

    // No room: the guest waits, and can be stopped.
    server.control.set_full(true);
    let writing = qemu.begin("dd if=/tmp/a of=/dev/vda bs=64k seek=160 oflag=direct");
    until(|| (server.waiting() > 0).then_some(()));
    qemu.qmp("stop", &json!({}));
    assert_eq!(qemu.qmp("query-status", &json!({}))["status"], "paused");
    assert_eq!(server.waiting(), 0);
    // It grows while the guest is stopped, and room is found.
    grow(&server, 96 * MIB);
    server.control.set_full(false);
    qemu.qmp("cont", &json!({}));
    qemu.end(writing);
    size_in_guest(&mut qemu, 96 * MIB);

    // Closed in order while requests wait and others run, and served by the next one.
    server.control.set_full(true);
    let writing = qemu.begin("dd if=/tmp/a of=/dev/vda bs=64k seek=320 oflag=direct");
    until(|| (server.waiting() > 0).then_some(()));
    server.stop();
    let mut server = serve(folder.path(), &listener, 96 * MIB);
    qemu.end(writing);
    for round in 0..5 {
        let load = "dd if=/tmp/a of=/dev/vda bs=4k seek=10240 oflag=direct";
        let load = qemu.begin(load);
        until(|| (server.control.run.load(Ordering::SeqCst) > 50).then_some(()));
        server.stop();
        server = serve(folder.path(), &listener, (96 + round) * MIB);
        qemu.end(load);
    }
    // The channel is as good as the first one.
    size_in_guest(&mut qemu, 100 * MIB);
    grow(&server, 128 * MIB);
    size_in_guest(&mut qemu, 128 * MIB);

    qemu.run("sync; ! dmesg | grep -i 'i/o error'");
    for at in [60, 10, 20, 40] {
        let mib = format!("dd if=/dev/vda bs=1M skip={at} count=4 iflag=direct");
        qemu.run(&format!("{mib} | cmp - /tmp/a"));
    }
}
