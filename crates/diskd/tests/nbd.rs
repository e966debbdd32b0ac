//! The NBD server as real clients find it: QEMU's tools, libnbd's, fio.
#![allow(clippy::unwrap_used, reason = "a test")]

mod nbd_support;

use std::os::unix::fs::FileExt;

use nbd_support::{BLOCK_STATUS, Client, READ, REQ_ONE, Server, disk_file, pattern, run};

const MIB: u64 = 1 << 20;

#[test]
fn qemu_img_copies_a_disk_in_and_out_and_finds_both_equal() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 64 * MIB);
    let server = Server::start(folder.path(), &file);
    let source = folder.path().join("source.raw");
    std::fs::write(&source, pattern(1, 40 << 20)).unwrap();
    std::fs::File::options()
        .write(true)
        .open(&source)
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    let (guest, disk) = (server.uri("guest"), server.uri(""));
    let source = source.to_str().unwrap();
    run(
        "qemu-img",
        &["convert", "-n", "-f", "raw", "-O", "raw", source, &guest],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "raw", source, &disk],
    );
    let copy = folder.path().join("copy.qcow2");
    let copy = copy.to_str().unwrap();
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", &disk, copy],
    );
    run(
        "qemu-img",
        &["compare", "-f", "raw", "-F", "qcow2", source, copy],
    );
}

#[test]
fn qemu_img_sees_where_there_is_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 64 * MIB);
    let raw = std::fs::File::options().write(true).open(&file).unwrap();
    raw.write_all_at(&pattern(2, 1 << 20), 8 * MIB).unwrap();
    let server = Server::start(folder.path(), &file);
    let map = run(
        "qemu-img",
        &["map", "--output=json", "-f", "raw", &server.uri("disk")],
    );
    let map: serde_json::Value = serde_json::from_str(&map).unwrap();
    let told: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|e| {
            (
                e["start"].as_u64().unwrap(),
                e["length"].as_u64().unwrap(),
                e["zero"].as_bool().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            (0, 8 * MIB, true),
            (8 * MIB, MIB, false),
            (9 * MIB, 55 * MIB, true)
        ]
    );
}

#[test]
fn qemu_io_writes_zeroes_discards_flushes_and_verifies_also_between_sectors() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 16 * MIB);
    let server = Server::start(folder.path(), &file);
    let said = run(
        "qemu-io",
        &[
            "-f",
            "raw",
            &server.uri("guest"),
            "-c",
            "write -P 0xab 0 1M",
            "-c",
            "read -P 0xab 0 1M",
            "-c",
            "write -z 64k 64k",
            "-c",
            "read -P 0 64k 64k",
            "-c",
            "write -z -u 192k 64k",
            "-c",
            "read -P 0 192k 64k",
            "-c",
            "discard 256k 64k",
            "-c",
            "write -f -P 0xcd 512k 4k",
            "-c",
            "write -P 0xef 700001 333",
            "-c",
            "read -P 0xef 700001 333",
            "-c",
            "read -P 0xab 699000 1001",
            "-c",
            "aio_write -P 1 2M 1M",
            "-c",
            "aio_write -P 2 3M 1M",
            "-c",
            "aio_flush",
            "-c",
            "flush",
            "-c",
            "read -P 2 3M 1M",
        ],
    );
    assert!(
        !said.contains("failed") && !said.contains("mismatch"),
        "{said}"
    );
}

#[test]
fn nbdinfo_is_told_of_exports_sizes_and_what_can_be_done() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 16 * MIB);
    let server = Server::start(folder.path(), &file);
    let list = run("nbdinfo", &["--json", "--list", &server.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    assert_eq!(list["protocol"], "newstyle-fixed");
    assert_eq!(list["structured"], true);
    let exports = list["exports"].as_array().unwrap();
    let [guest, disk] = &exports[..] else {
        panic!("{exports:?}")
    };
    assert_eq!(guest["export-name"], "guest");
    assert_eq!(guest["description"], "what the guest uses");
    assert_eq!(guest["contexts"], serde_json::json!(["base:allocation"]));
    for (key, value) in [
        ("is_read_only", false),
        ("can_flush", true),
        ("can_fua", true),
        ("can_trim", true),
        ("can_zero", true),
        ("can_fast_zero", false),
        ("can_multi_conn", true),
        ("can_cache", false),
        ("can_df", true),
    ] {
        assert_eq!(guest[key], value, "{key}");
    }
    assert_eq!(disk["is_read_only"], true);
    assert_eq!(disk["can_multi_conn"], true);
    let sizes = [
        "export-size",
        "block_size_minimum",
        "block_size_preferred",
        "block_size_maximum",
    ];
    let sizes = sizes.map(|key| disk[key].as_u64().unwrap());
    assert_eq!(sizes, [16 * MIB, 512, 4096, 32 * MIB]);
}

#[test]
fn nbdcopy_copies_both_ways_over_several_connections() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 64 * MIB);
    let server = Server::start(folder.path(), &file);
    let source = folder.path().join("source.raw");
    std::fs::write(&source, pattern(3, 64 << 20)).unwrap();
    let copy = folder.path().join("copy.raw");
    let (from, to) = (source.to_str().unwrap(), copy.to_str().unwrap());
    run(
        "nbdcopy",
        &[
            "--connections=4",
            "--requests=16",
            "--flush",
            from,
            &server.uri("guest"),
        ],
    );
    run("nbdcopy", &["--connections=4", &server.uri("disk"), to]);
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&copy).unwrap());
}

#[test]
fn fio_verifies_what_it_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 64 * MIB);
    let server = Server::start(folder.path(), &file);
    let uri = format!("--uri={}", server.uri("guest"));
    run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-128k",
            "--bs_unaligned=0",
            "--iodepth=32",
            "--size=64m",
            "--io_size=48m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_state_save=0",
            "--do_verify=1",
            "--randseed=7",
            "--fsync=64",
        ],
    );
}

#[test]
fn a_client_that_asks_for_one_extent_after_the_other_has_each_looked_at_twice_at_most() {
    let folder = tempfile::tempdir().unwrap();
    let file = disk_file(folder.path(), 16 * MIB);
    let raw = std::fs::File::options().write(true).open(&file).unwrap();
    let block = pattern(5, 4096);
    for at in (0..8 * MIB).step_by(16384) {
        raw.write_all_at(&block, at).unwrap();
    }
    let server = Server::start(folder.path(), &file);
    let mut client = Client::open(&server.socket, "disk", true);
    let (mut at, mut extents) = (0, 0);
    while at < client.size {
        let len = u32::try_from(client.size - at).unwrap();
        client.ask(1, REQ_ONE, BLOCK_STATUS, at, len, &[]);
        let told = client.answer().unwrap().extents;
        assert_eq!(told.len(), 1);
        at += u64::from(told[0].0);
        extents += 1;
    }
    assert_eq!(extents, 2 * 512, "a piece and a hole, 512 times");
    let pieces = server.with(|disk, _| disk.pieces.get());
    assert!(pieces <= 2 * extents, "{pieces} for {extents} extents");
    // A read of much, in pieces too short to be told one by one, does not look at all of them.
    client.ask(1, 0, READ, 0, 16 << 20, &[]);
    let content = client.answer().unwrap().content(0..16 * MIB);
    assert!(content == std::fs::read(&file).unwrap());
    let looked = server.with(|disk, _| disk.pieces.get()) - pieces;
    assert!(looked <= 128, "{looked} pieces for one read");
}
