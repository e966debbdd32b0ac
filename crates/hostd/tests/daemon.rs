//! What polluxd does without a guest.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use api::{
    ApplyCheckpoint, AttachDisk, CreateDisk, DetachDisk, DiskContentFrom, DiskFormat, ExportDisk,
    MakeCheckpoint, NewDisk, ResizeDisk, StartFailover, StartVm, StopTest, StopVm, TestFailover,
    TrustPeer,
};
use model::{Bus, Bytes, Code, VmState};
use rustix::process::{Pid, Signal, kill_process};
use support::{Host, command, empty, program, refused, replicate_to, stderr, wanted};

#[tokio::test]
async fn a_vm_is_made_listed_found_by_name_and_prefix_and_deleted() {
    let host = Host::start("castor").await;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    assert_eq!(made.vm.state, VmState::Off);
    let listed = host.client.vms().await.expect("listed");
    assert_eq!(listed, vec![made.vm.clone()]);
    let id = made.vm.id.to_string();
    assert!(
        host.client.vm(&id[..3]).await.is_err(),
        "too little of an id"
    );
    for reference in ["web", &id, &id[..6], &id.to_uppercase()] {
        let found = host.client.vm(reference).await.expect(reference);
        assert_eq!(found.vm.id, made.vm.id);
    }
    assert!(made.folder.join("vm.toml").is_file());
    host.client.delete("web").await.expect("deleted");
    assert!(!made.folder.exists());
    refused(host.client.vm("web").await, Code::NotFound, "VM `web`");
}

#[tokio::test]
async fn vms_are_there_again_after_polluxd_was_killed() {
    let mut host = Host::start("castor").await;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    fs::create_dir_all(host.path().join("state/vms/.new-x")).expect("half made");
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    let folder = std::mem::replace(&mut host.folder, tempfile::tempdir().expect("scratch"));
    let again = Host::start_in(folder, "castor").await;
    assert_eq!(again.client.vm("web").await.expect("there"), made);
    assert!(!again.path().join("state/vms/.new-x").exists());
}

#[tokio::test]
async fn a_vm_toml_that_was_edited_wrongly_is_told_wherever_the_vm_is_asked_for() {
    let mut host = Host::start("castor").await;
    for name in ["web", "db"] {
        host.create(name, vec![]).await.expect("made");
    }
    let web = host
        .client
        .vm("web")
        .await
        .expect("there")
        .vm
        .id
        .to_string();
    let db = host.client.vm("db").await.expect("there").vm.id.to_string();
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    let file = host.path().join("state/vms").join(&web).join("vm.toml");
    let text = fs::read_to_string(&file).expect("there");
    let folder = std::mem::replace(&mut host.folder, tempfile::tempdir().expect("scratch"));
    fs::write(&file, format!("colour = 1\n{text}")).expect("edited");
    let mut again = Host::start_in(folder, "castor").await;
    refused(again.client.vm(&web[..8]).await, Code::Invalid, "colour");
    refused(again.client.vm("web").await, Code::NotFound, "host status");
    let status = again.client.host().await.expect("a status");
    assert!(
        status.left_out[0].reason.contains("colour"),
        "{:?}",
        status.left_out
    );

    // An id and a name that are another's.
    for (from, to, says) in [
        (&*web, &*db, "its folder another"),
        ("\"web\"", "\"db\"", "has"),
    ] {
        again.daemon.kill().expect("kill");
        again.daemon.wait().expect("reap");
        fs::write(&file, text.replace(from, to)).expect("edited");
        let folder = std::mem::replace(&mut again.folder, tempfile::tempdir().expect("scratch"));
        again = Host::start_in(folder, "castor").await;
        let status = again.client.host().await.expect("a status");
        let reasons: Vec<_> = status.left_out.iter().map(|one| &one.reason).collect();
        assert!(
            reasons.len() == 1 && reasons[0].contains(says),
            "{reasons:?}"
        );
    }
}

/// A supervisor that hangs up on whoever asks, until it is dropped.
struct Mute {
    socket: PathBuf,
}

impl Mute {
    fn listen(socket: &Path) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(socket).expect("bind");
        std::thread::spawn(move || listener.incoming().for_each(drop));
        let socket = socket.to_owned();
        Self { socket }
    }
}

impl Drop for Mute {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.socket);
    }
}

#[tokio::test]
async fn a_vm_counts_as_running_until_it_is_certain_that_no_supervisor_runs_its_guest() {
    let mut host = Host::start("castor").await;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    let run = host.path().join("run");
    let run = run.join(&made.vm.id.0.simple().to_string()[..12]);
    fs::create_dir_all(&run).expect("run folder");
    let mute = Mute::listen(&run.join("vmd.sock"));
    let alive = durable::Lock::exclusive(&run.join("vmd.sock.lock")).expect("lock");
    let folder = std::mem::replace(&mut host.folder, tempfile::tempdir().expect("scratch"));
    let again = Host::start_in(folder, "castor").await;
    let client = &again.client;
    let is_unsure = async |what: &str| {
        let vm = client.vm("web").await.expect("shown").vm;
        assert_eq!(vm.state, VmState::Running, "{what}");
        assert!(vm.status.contains("counts as running"), "{}", vm.status);
        let start = client.start("web", &StartVm::default()).await;
        refused(start, Code::Conflict, "runs already");
        refused(client.delete("web").await, Code::Conflict, "not off");
        let stop = client.stop("web", &StopVm { timeout_s: 5 }).await;
        refused(stop, Code::Conflict, "does not answer");
    };
    is_unsure("it hangs up").await;
    assert!(client.kill("web").await.is_err(), "nobody ends it");
    drop(mute);
    is_unsure("nobody listens, but it lives").await;
    drop(alive);
    let deadline = Instant::now() + Duration::from_secs(30);
    while client.vm("web").await.expect("shown").vm.state != VmState::Off {
        assert!(Instant::now() < deadline, "it is known to be off");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    client.delete("web").await.expect("deleted");
}

#[tokio::test]
async fn a_second_polluxd_on_the_same_state_folder_is_refused() {
    let host = Host::start("castor").await;
    let output = command(host.path(), "castor").output().expect("runs");
    assert_eq!(output.status.code(), Some(i32::from(Code::Conflict.exit())));
    let said = stderr(&output);
    assert!(said.contains("in use by another polluxd"), "{said}");
    assert!(said.contains("--state"), "{said}");
    host.client.vms().await.expect("the first is not disturbed");
}

#[test]
fn a_run_folder_too_long_for_sockets_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().expect("scratch");
    let state = folder.path().join("state");
    let run = folder.path().join("x".repeat(120));
    let output = Command::new(program(folder.path()))
        .arg("--state")
        .arg(&state)
        .arg("--run")
        .arg(&run)
        .args(["--name", "castor", "--replica-listen", "127.0.0.1:0"])
        .output()
        .expect("runs");
    assert_eq!(output.status.code(), Some(i32::from(Code::Invalid.exit())));
    assert!(stderr(&output).contains("--run"), "{}", stderr(&output));
    assert!(!state.exists());
}

#[tokio::test]
async fn sigterm_ends_polluxd_and_removes_its_socket() {
    let mut host = Host::start("castor").await;
    let pid = i32::try_from(host.daemon.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), Signal::TERM).expect("it runs");
    assert!(host.daemon.wait().expect("reaped").success());
    assert!(!host.path().join("run/api.sock").exists());
}

#[tokio::test]
async fn the_socket_is_only_for_its_owner() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::start("castor").await;
    let mode = fs::metadata(host.client.socket())
        .expect("there")
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
}

#[tokio::test]
async fn what_a_user_gets_wrong_with_a_vm_is_refused_and_changes_nothing() {
    let host = Host::start("castor").await;
    let client = &host.client;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let of = |from, size| {
        vec![NewDisk {
            from,
            size,
            bus: None,
        }]
    };
    let file = |path: &str| DiskContentFrom::File(path.into());
    let own = made.disks[0].file.clone();
    let linked = host.path().join("linked.raw");
    fs::hard_link(&own, &linked).expect("linked");
    let pipe = host.path().join("pipe");
    let made_pipe = Command::new("mkfifo").arg(&pipe).status();
    assert!(made_pipe.expect("mkfifo runs").success());
    let qcow2 = host.path().join("web.qcow2");
    fs::write(&qcow2, [b"QFI\xfb".as_slice(), &[0; 8188]].concat()).expect("written");
    for (name, disks, code, says) in [
        ("web", vec![], Code::Conflict, "exists already"),
        ("db", vec![empty(5000)], Code::Invalid, "disk.size"),
        ("db", vec![empty(1 << 60)], Code::Invalid, "disk.size"),
        (
            "db",
            of(DiskContentFrom::Empty, None),
            Code::Invalid,
            "size",
        ),
        ("db", of(file("/absent"), None), Code::NotFound, "/absent"),
        (
            "db",
            of(DiskContentFrom::File(own), None),
            Code::Conflict,
            "belongs to VM `web`",
        ),
        (
            "db",
            of(DiskContentFrom::File(linked), None),
            Code::Conflict,
            "belongs to VM `web`",
        ),
        (
            "db",
            of(DiskContentFrom::Image(pipe), None),
            Code::Invalid,
            "neither a file nor",
        ),
        (
            "db",
            of(DiskContentFrom::Image(qcow2), None),
            Code::Invalid,
            "qemu-img convert",
        ),
    ] {
        refused(host.create(name, disks).await, code, says);
    }
    let mut big = wanted("big", vec![]);
    big.memory = Bytes(11 << 40);
    client.create(&big, |_| {}).await.expect("made");
    let start = StartVm::default();
    refused(
        client.start("big", &start).await,
        Code::Full,
        "needs 11 TiB",
    );
    refused(
        client.start("absent", &start).await,
        Code::NotFound,
        "VM `absent`",
    );
    refused(client.kill("web").await, Code::Conflict, "off already");
    let stop = StopVm { timeout_s: 0 };
    refused(client.stop("web", &stop).await, Code::Invalid, "timeout");
    refused(client.console("web").await, Code::Conflict, "does not run");
    fs::remove_file(&made.disks[0].file).expect("removed");
    refused(
        client.start("web", &start).await,
        Code::NotFound,
        "disk0.raw",
    );
    let listed = client.vms().await.expect("listed");
    assert_eq!(listed.len(), 2);
    assert!(listed.iter().all(|vm| vm.state == VmState::Off));
}

#[tokio::test]
async fn what_a_user_gets_wrong_with_replication_is_refused() {
    let host = Host::start("castor").await;
    let client = &host.client;
    host.create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let enable = replicate_to("pollux");
    let enabled = client.enable_replication("web", &enable).await;
    refused(enabled, Code::NotFound, "host `pollux`");
    refused(
        client.disable_replication("web").await,
        Code::Conflict,
        "not replicated",
    );
    refused(
        client.suspend_replication("web").await,
        Code::Conflict,
        "not replicated",
    );
    refused(
        client.replication("web").await,
        Code::Conflict,
        "not replicated",
    );
    refused(
        client.points("web").await,
        Code::Conflict,
        "no recovery points",
    );
    let failover = StartFailover::default();
    refused(
        client.failover("web", &failover).await,
        Code::Conflict,
        "no twin",
    );
    let test = TestFailover { point: None };
    refused(
        client.test_failover("web", &test).await,
        Code::Conflict,
        "no twin",
    );
    refused(
        client.stop_test_failover("web", StopTest::default()).await,
        Code::Conflict,
        "no test failover",
    );
    assert!(client.replications().await.expect("listed").is_empty());
}

#[tokio::test]
async fn how_changes_are_tracked_is_told_or_why_there_is_nothing_to_tell() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    refused(
        castor.client.tracking("web").await,
        Code::NotFound,
        "VM `web`",
    );
    let made = castor.create("web", vec![empty(1 << 20)]).await;
    let folder = made.expect("made").folder;
    refused(
        castor.client.tracking("web").await,
        Code::Conflict,
        "pollux replica enable",
    );
    for (host, other) in [(&castor, &pollux), (&pollux, &castor)] {
        other.receives().await;
        host.trusts(other).await;
    }
    let enable = replicate_to("pollux");
    let enabled = castor.client.enable_replication("web", &enable).await;
    enabled.expect("the peer agrees");
    // The program in its place serves nothing.
    refused(
        castor.client.tracking("web").await,
        Code::Unreachable,
        "diskd.log",
    );
    refused(
        pollux.client.tracking("web").await,
        Code::Conflict,
        "`castor`",
    );

    // The log of a relationship goes with it; what else is there stays.
    let kept = folder.join("tracking");
    fs::create_dir_all(&kept).expect("made");
    let disk = castor.client.vm("web").await.expect("there").disks[0].id;
    for kind in ["intent", "stack"] {
        fs::write(kept.join(format!("{disk}.{kind}")), "").expect("written");
    }
    castor
        .client
        .disable_replication("web")
        .await
        .expect("disabled");
    assert!(!kept.join(format!("{disk}.intent")).exists());
    assert!(kept.join(format!("{disk}.stack")).exists());
    let detach = DetachDisk { delete: false };
    castor
        .client
        .detach_disk("web", "0", &detach)
        .await
        .expect("detached");
    assert!(!kept.join(format!("{disk}.stack")).exists());
    castor.client.delete("web").await.expect("deleted");
    assert!(!folder.exists());
}

#[test]
fn a_name_that_a_host_cannot_have_is_refused_before_anything_is_made() {
    let folder = tempfile::tempdir().expect("a folder");
    let (state, run) = (folder.path().join("state"), folder.path().join("run"));
    let ended = Command::new(env!("CARGO_BIN_EXE_polluxd"))
        .args(["--name", "My_Host", "--replica-listen", "127.0.0.1:0"])
        .arg("--state")
        .arg(&state)
        .arg("--run")
        .arg(&run)
        .output()
        .expect("it starts");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{said}");
    assert!(
        said.contains("My_Host") && said.contains("--name"),
        "{said}"
    );
    assert!(!state.exists() && !run.exists());
}

#[tokio::test]
async fn two_hosts_trust_each_other_by_fingerprint_and_an_impostor_is_refused() {
    let (host, other) = (Host::start("castor").await, Host::start("pollux").await);
    other.receives().await;
    let theirs = other.client.identity().await.expect("identity");
    let mut peer = TrustPeer {
        name: theirs.name.clone(),
        address: theirs.address.clone(),
        fingerprint: Some(format!("sha256:{}", "0".repeat(64))),
        ..TrustPeer::default()
    };
    refused(
        host.client.trust(&peer).await,
        Code::Forbidden,
        &theirs.fingerprint,
    );
    peer.fingerprint = Some("nonsense".to_owned());
    refused(host.client.trust(&peer).await, Code::Invalid, "fingerprint");
    peer.fingerprint = Some(theirs.fingerprint.clone());
    peer.name = "castor".to_owned();
    refused(host.client.trust(&peer).await, Code::Invalid, "own name");
    peer.name = "leda".to_owned();
    refused(host.client.trust(&peer).await, Code::Forbidden, "pollux");
    peer.name = "Leda's".to_owned();
    refused(host.client.trust(&peer).await, Code::Invalid, "--name");
    peer.name = "pollux".to_owned();
    peer.address = "127.0.0.1".to_owned();
    refused(host.client.trust(&peer).await, Code::Invalid, "port");
    peer.address.clone_from(&theirs.address);
    assert!(host.client.peers().await.expect("none yet").is_empty());
    host.client.trust(&peer).await.expect("trusted");
    // It does not trust us yet.
    host.create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let enable = replicate_to("pollux");
    let enabled = host.client.enable_replication("web", &enable).await;
    refused(enabled, Code::Forbidden, "does not trust this host");
    assert!(host.client.replications().await.expect("listed").is_empty());
    assert!(other.client.vms().await.expect("listed").is_empty());
    host.client.untrust("pollux").await.expect("untrusted");
    refused(
        host.client.untrust("pollux").await,
        Code::NotFound,
        "pollux",
    );
}

#[tokio::test]
async fn the_disks_of_a_vm_that_is_off_come_go_grow_and_are_taken_back() {
    let host = Host::start("castor").await;
    let client = &host.client;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let more = CreateDisk {
        size: Bytes(2 << 20),
        bus: None,
    };
    let disk = client.create_disk("web", &more).await.expect("made");
    assert_eq!((disk.slot, disk.bus), (1, Bus::Virtio));
    assert_eq!(fs::metadata(&disk.file).expect("there").len(), 2 << 20);
    let size = Bytes(4 << 20);
    let grown = client
        .resize_disk("web", "disk1.raw", &ResizeDisk { size })
        .await;
    assert!(!grown.expect("grown").at_next_start);
    assert_eq!(fs::metadata(&disk.file).expect("there").len(), 4 << 20);
    client
        .detach_disk("web", "1", &DetachDisk::default())
        .await
        .expect("detached");
    assert!(disk.file.exists(), "without --delete it stays");
    let attach = AttachDisk {
        file: disk.file.clone(),
        bus: Some(Bus::Scsi),
    };
    let again = client.attach_disk("web", &attach).await.expect("attached");
    assert_eq!((again.size, again.bus), (size, Bus::Scsi));
    for name in ["one", "two"] {
        let make = MakeCheckpoint {
            name: Some(name.to_owned()),
        };
        client.make_checkpoint("web", &make).await.expect("made");
    }
    let apply = |drop_later| ApplyCheckpoint { drop_later };
    refused(
        client.apply_checkpoint("web", "one", &apply(false)).await,
        Code::Conflict,
        "--drop-later",
    );
    let before = client.vm("web").await.expect("there").spec.generation_id;
    assert_eq!(before, made.spec.generation_id);
    let back = client.apply_checkpoint("web", "one", &apply(true)).await;
    let back = back.expect("taken back");
    assert_ne!(back.spec.generation_id, before);
    assert_eq!(back.checkpoints.len(), 1);
    refused(
        client
            .detach_disk("web", "1", &DetachDisk { delete: true })
            .await,
        Code::Conflict,
        "pollux disk merge",
    );
    assert!(disk.file.exists());
    // What vm.toml says is what a later polluxd shows.
    let text = fs::read_to_string(made.folder.join("vm.toml")).expect("there");
    let spec = model::VmSpec::from_toml(&text).expect("good");
    assert_eq!(spec, client.vm("web").await.expect("there").spec);
}

#[tokio::test]
async fn what_a_user_gets_wrong_with_disks_is_refused_and_changes_nothing() {
    let host = Host::start("castor").await;
    let client = &host.client;
    host.create("db", vec![empty(1 << 20)]).await.expect("made");
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let foreign = client.disks("db").await.expect("listed")[0].file.clone();
    let scratch = |name: &str, content: &[u8]| {
        let path = host.path().join(name);
        fs::write(&path, content).expect("written");
        path
    };
    let odd = scratch("odd.raw", &[0; 5000]);
    let vhdx = scratch("x.vhdx", &[b"vhdxfile".as_slice(), &[0; 8184]].concat());
    for (file, bus, code, says) in [
        (foreign, None, Code::Conflict, "belongs to VM `db`"),
        (made.disks[0].file.clone(), None, Code::Conflict, "VM `web`"),
        (odd, None, Code::Invalid, "multiple of 4 KiB"),
        (vhdx, None, Code::Invalid, "qemu-img convert"),
        ("/absent".into(), None, Code::NotFound, "/absent"),
        ("relative".into(), None, Code::Invalid, "absolute"),
    ] {
        let attach = AttachDisk { file, bus };
        refused(client.attach_disk("web", &attach).await, code, says);
    }
    for (size, bus, says) in [
        (5000, None, "4 KiB"),
        (1 << 60, None, "64 TiB"),
        (1 << 20, Some(Bus::Ide), "no IDE"),
    ] {
        let size = Bytes(size);
        let create = CreateDisk { size, bus };
        refused(
            client.create_disk("web", &create).await,
            Code::Invalid,
            says,
        );
    }
    let size = Bytes(1 << 20);
    let resized = client.resize_disk("web", "0", &ResizeDisk { size }).await;
    refused(resized, Code::Invalid, "only grow");
    refused(client.disk("web", "7").await, Code::NotFound, "disk list");
    let merged = client.merge_checkpoint("web", "absent", |_| {}).await;
    refused(merged, Code::NotFound, "checkpoint `absent`");
    let taken = scratch("taken.raw", b"precious");
    for (file, checkpoint, code, says) in [
        (taken.clone(), None, Code::Conflict, "exists already"),
        ("/absent/x.raw".into(), None, Code::NotFound, "folder"),
        (
            host.path().join("new.raw"),
            Some("absent".to_owned()),
            Code::NotFound,
            "checkpoint `absent`",
        ),
    ] {
        let export = ExportDisk {
            file,
            checkpoint,
            format: DiskFormat::Raw,
        };
        refused(
            client.export_disk("web", "0", &export, |_| {}).await,
            code,
            says,
        );
    }
    assert_eq!(fs::read(taken).expect("there"), b"precious");
    assert_eq!(
        client.vm("web").await.expect("there"),
        made,
        "nothing changed"
    );
}

#[tokio::test]
async fn a_vm_toml_that_was_edited_while_the_vm_is_off_is_read_before_anything_is_done_with_it() {
    let host = Host::start("castor").await;
    let client = &host.client;
    host.create("db", vec![]).await.expect("made");
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let file = made.folder.join("vm.toml");
    let text = fs::read_to_string(&file).expect("there");
    let create = CreateDisk {
        size: Bytes(1 << 20),
        bus: None,
    };
    for (from, to, says) in [
        ("processors = 1", "processors = 0", "processors"),
        ("\"web\"", "\"db\"", "exists already"),
        (
            &*made.vm.id.to_string(),
            "01234567-89ab-4def-8123-456789abcdef",
            "says the id",
        ),
    ] {
        assert!(text.contains(from), "{text}");
        fs::write(&file, text.replace(from, to)).expect("edited");
        for refusal in [
            client.start("web", &StartVm::default()).await.map(drop),
            client.create_disk("web", &create).await.map(drop),
        ] {
            let problem = refusal.expect_err("refused");
            assert!(problem.to_string().contains(says), "{problem}");
        }
    }
    let edited = text.replace("processors = 1", "processors = 2");
    fs::write(&file, edited.replace("\"web\"", "\"www\"")).expect("edited");
    client.create_disk("web", &create).await.expect("made");
    let now = client.vm("www").await.expect("by its new name");
    assert_eq!((now.vm.processors, now.disks.len()), (2, 2));
    refused(client.vm("web").await, Code::NotFound, "does not exist");
    // Nothing of what the editor wrote was lost.
    let text = fs::read_to_string(&file).expect("there");
    assert_eq!(model::VmSpec::from_toml(&text).expect("good"), now.spec);
}

#[tokio::test]
async fn of_two_vms_that_are_given_the_same_file_at_once_one_gets_it() {
    let host = Host::start("castor").await;
    for name in ["web", "db"] {
        host.create(name, vec![]).await.expect("made");
    }
    for n in 0..20 {
        let file = host.path().join(format!("shared{n}.raw"));
        fs::write(&file, [0; 4096]).expect("written");
        let attach = AttachDisk {
            file: file.clone(),
            bus: None,
        };
        let (web, db) = tokio::join!(
            host.client.attach_disk("web", &attach),
            host.client.attach_disk("db", &attach)
        );
        let (name, disk, other) = match (web, db) {
            (Ok(disk), Err(problem)) => ("web", disk, problem),
            (Err(problem), Ok(disk)) => ("db", disk, problem),
            both => panic!("exactly one: {both:?}"),
        };
        assert_eq!(other.code, Code::Conflict, "{other}");
        let detach = DetachDisk { delete: false };
        let slot = disk.slot.to_string();
        let done = host.client.detach_disk(name, &slot, &detach).await;
        done.expect("detached");
    }
    let twice = DiskContentFrom::File(host.path().join("shared0.raw"));
    let disk = || NewDisk {
        from: twice.clone(),
        size: None,
        bus: None,
    };
    refused(
        host.create("both", vec![disk(), disk()]).await,
        Code::Conflict,
        "shared0.raw",
    );
}

#[tokio::test]
async fn a_disk_file_that_a_killed_polluxd_had_made_and_not_plugged_in_is_removed() {
    let mut host = Host::start("castor").await;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    // Killed before vm.toml, after it, and a file that was detached and holds somebody's data.
    let names = [
        ".new-disk1.raw",
        "disk1.raw",
        ".new-disk0.raw",
        "disk2.raw",
        ".new-disk3.raw",
    ];
    for name in names {
        fs::write(made.folder.join(name), "").expect("written");
    }
    let folder = std::mem::replace(&mut host.folder, tempfile::tempdir().expect("scratch"));
    let again = Host::start_in(folder, "castor").await;
    assert_eq!(again.client.vm("web").await.expect("there"), made);
    for name in names {
        let stays = name == "disk2.raw";
        assert_eq!(made.folder.join(name).exists(), stays, "{name}");
    }
    assert!(made.folder.join("disk0.raw").exists());
    let create = CreateDisk {
        size: Bytes(1 << 20),
        bus: None,
    };
    let disk = again.client.create_disk("web", &create).await;
    disk.expect("made");
    let hidden = fs::read_dir(&made.folder).expect("read").any(|entry| {
        let name = entry.expect("read").file_name();
        name.to_string_lossy().starts_with('.')
    });
    assert!(!hidden, "the mark is gone");
}

#[tokio::test]
async fn deleting_a_vm_leaves_a_file_that_was_attached() {
    let host = Host::start("castor").await;
    let made = host
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let file = host.path().join("data.raw");
    fs::write(&file, [7; 4096]).expect("written");
    let attach = AttachDisk {
        file: file.clone(),
        bus: None,
    };
    let client = &host.client;
    client.attach_disk("web", &attach).await.expect("attached");
    let checkpoint = MakeCheckpoint::default();
    client
        .make_checkpoint("web", &checkpoint)
        .await
        .expect("made");
    client.delete("web").await.expect("deleted");
    assert!(!made.folder.exists());
    assert_eq!(fs::read(&file).expect("there"), [7; 4096]);
}
