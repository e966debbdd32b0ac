//! What a person says of a relationship, on either of two hosts. No guest is started.

mod support;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use api::{
    Authorize, DiskContentFrom, EnableReplication, EventKind, EventQuery, Lease, NewDisk,
    SetReplication, StartVm, VmDetails,
};
use model::{Code, Problem, ReplicationState, StartUnasked};
use rustix::process::{Pid, Signal, kill_process};
use support::{Host, empty, refused, replicate_to};

/// Two hosts that trust each other.
async fn trusting() -> (Host, Host) {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    castor.receives().await;
    pollux.receives().await;
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    (castor, pollux)
}

fn to_pollux(disks: &str) -> EnableReplication {
    EnableReplication {
        disks: Some(disks.parse().expect("a choice")),
        keep: Some("1h:all,24h:hourly".parse().expect("a policy")),
        ..replicate_to("pollux")
    }
}

#[tokio::test]
async fn a_relationship_is_made_as_a_person_says_and_what_cannot_be_is_refused() {
    let (castor, pollux) = trusting().await;
    let disks = vec![empty(1 << 20), empty(2 << 20)];
    castor.create("web", disks).await.expect("made");
    let enable = |disks: &str| {
        let wanted = to_pollux(disks);
        let client = &castor.client;
        async move { client.enable_replication("web", &wanted).await }
    };
    refused(enable("0,5").await, Code::NotFound, "disk 5");
    refused(enable("all-but:0,1").await, Code::Invalid, "no disk left");
    assert!(pollux.client.vms().await.expect("listed").is_empty());
    let set = SetReplication {
        every_s: Some(60),
        disks: None,
        keep: None,
        ..SetReplication::default()
    };
    let unset = castor.client.set_replication("web", &set).await;
    refused(unset, Code::Conflict, "not replicated");
    let cancelled = castor.client.cancel_replication("web").await;
    refused(cancelled, Code::Conflict, "not replicated");

    let made = enable("all-but:1").await.expect("made");
    assert_eq!(made.every_s, Some(30));
    let set = castor.client.set_replication("web", &set).await;
    assert_eq!(set.expect("set").every_s, Some(60));
    let never = SetReplication {
        every_s: Some(1 << 40),
        disks: None,
        keep: None,
        ..SetReplication::default()
    };
    let never = castor.client.set_replication("web", &never).await;
    refused(never, Code::Invalid, "3600");
    let there = SetReplication::default();
    let there = pollux.client.set_replication("web", &there).await;
    refused(there, Code::Conflict, "primary host");
    let there = pollux.client.cancel_replication("web").await;
    refused(there, Code::Conflict, "primary host");

    // On the replica a pause is kept over a restart, and told.
    let paused = pollux.client.suspend_replication("web").await;
    assert_eq!(paused.expect("paused").state, ReplicationState::Suspended);
    let pollux = pollux.restarted("pollux").await;
    let shown = pollux.client.replication("web").await.expect("shown");
    assert_eq!(shown.state, ReplicationState::Suspended);
    let resumed = pollux.client.resume_replication("web").await;
    let state = resumed.expect("resumed").state;
    assert_eq!(state, ReplicationState::InitialReplicationInProgress);
}

#[tokio::test]
async fn a_relationship_ends_on_either_host_for_both_and_a_cancelled_one_leaves_no_twin() {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let enable = || castor.client.enable_replication("web", &ALL);
    static ALL: std::sync::LazyLock<EnableReplication> =
        std::sync::LazyLock::new(|| to_pollux("all"));
    enable().await.expect("made");
    assert_eq!(pollux.client.vms().await.expect("listed").len(), 1);
    castor
        .client
        .cancel_replication("web")
        .await
        .expect("cancelled");
    let ended = castor.client.replication("web").await;
    refused(ended, Code::Conflict, "not replicated");
    assert!(pollux.client.vms().await.expect("listed").is_empty());
    let left = fs::read_dir(pollux.path().join("state/replicas")).expect("listed");
    assert_eq!(left.count(), 0);

    enable().await.expect("made anew");
    let ended = pollux.client.disable_replication("web").await;
    assert_eq!(ended.expect("ended there").untold, None);
    let ended = castor.client.replication("web").await;
    refused(ended, Code::Conflict, "not replicated");
    assert_eq!(pollux.client.vms().await.expect("listed").len(), 1);
    pollux.client.delete("web").await.expect("deleted");

    // Without the other host it ends here alone; to cancel, it is needed.
    enable().await.expect("made anew");
    drop(pollux);
    let cancelled = castor.client.cancel_replication("web").await;
    refused(cancelled, Code::Unreachable, "pollux");
    castor.client.replication("web").await.expect("it stays");
    let ended = castor.client.disable_replication("web").await;
    let untold = ended.expect("ended here").untold.expect("nobody there");
    assert_eq!(untold.code, Code::Unreachable, "{untold}");
}

/// The folder of the only twin of a host.
fn twin_of(host: &Host) -> PathBuf {
    let replicas = fs::read_dir(host.path().join("state/replicas")).expect("listed");
    let twins: Vec<_> = replicas.map(|one| one.expect("listed").path()).collect();
    assert_eq!(twins.len(), 1, "{twins:?}");
    twins[0].clone()
}

#[tokio::test]
async fn a_twin_is_filled_from_a_copy_that_its_host_allows_and_from_no_other() {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(6 << 20)])
        .await
        .expect("made");
    let mut content = vec![0; 5 << 20];
    for (number, block) in content.chunks_mut(4096).enumerate().step_by(3) {
        block.fill(u8::try_from(number % 251).expect("small") + 1);
    }
    let image = pollux.path().join("restored.raw");
    fs::write(&image, &content).expect("written");
    let restored = NewDisk {
        from: DiskContentFrom::Image(image),
        size: None,
        bus: None,
    };
    pollux
        .create("web-old", vec![restored])
        .await
        .expect("made");
    pollux.create("bare", vec![]).await.expect("made");
    let from = |copy: &str| {
        let wanted = EnableReplication {
            seed_from: Some(copy.parse().expect("a name")),
            ..to_pollux("all")
        };
        let client = &castor.client;
        async move { client.enable_replication("web", &wanted).await }
    };
    // Whether a VM is there is told to nobody who may not read it.
    for name in ["web-old", "absent"] {
        let says = format!("pollux replica authorize castor --copy {name}");
        refused(from(name).await, Code::Forbidden, &says);
    }
    let authorize = Authorize {
        pattern: "castor".to_owned(),
        group: None,
        limit: None,
        store: None,
        copies: ["web-old", "bare"]
            .map(|name| name.parse().expect("a name"))
            .into(),
    };
    let server = pollux.client.authorize(&authorize).await;
    assert_eq!(server.expect("authorized").authorizations, 1);
    let listed = pollux.client.authorizations().await.expect("listed");
    assert_eq!(listed[0].copies, authorize.copies);
    refused(from("absent").await, Code::Forbidden, "`absent`");
    refused(from("bare").await, Code::Conflict, "disk");
    let ended = castor.client.replication("web").await;
    refused(ended, Code::Conflict, "not replicated");

    from("web-old").await.expect("made");
    let twin = twin_of(&pollux);
    let filled = Instant::now() + Duration::from_secs(60);
    while twin.join("copy.toml").exists() {
        assert!(Instant::now() < filled, "it is never filled");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let base = fs::read_dir(twin.join("journal")).expect("listed");
    let mut base = base.map(|one| one.expect("listed").path()).filter(|path| {
        let name = path.file_name().map(|name| name.to_string_lossy());
        name.is_some_and(|name| name.starts_with("base-"))
    });
    content.resize(6 << 20, 0);
    let base = fs::read(base.next().expect("a base")).expect("read");
    assert!(base == content, "the base is the copy");
    // It is a VM like any other afterwards.
    pollux.client.delete("web-old").await.expect("deleted");
    let pollux = pollux.restarted("pollux").await;
    let shown = pollux.client.replication("web").await.expect("shown");
    assert_eq!(shown.initial, None);
}

#[tokio::test]
async fn while_a_relationship_is_being_ended_nothing_begins_to_send_again() {
    // On a busy host it may be over before anybody asks.
    for _ in 0..5 {
        if was_seen_being_ended().await {
            return;
        }
    }
    panic!("nobody sees it being ended");
}

async fn was_seen_being_ended() -> bool {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let all = to_pollux("all");
    let enabled = castor.client.enable_replication("web", &all);
    enabled.await.expect("made");
    // It takes connections and says nothing: the end waits for it.
    let process = Pid::from_child(&pollux.daemon);
    kill_process(process, Signal::STOP).expect("held");
    let ends = castor.client.disable_replication("web");
    let meanwhile = async {
        let set = SetReplication {
            every_s: Some(60),
            disks: None,
            keep: None,
            ..SetReplication::default()
        };
        let limit = Instant::now() + Duration::from_secs(60);
        let unset = loop {
            let set = castor.client.set_replication("web", &set).await;
            if set.is_err() {
                break set.map(drop);
            }
            assert!(Instant::now() < limit, "it does not begin to end");
        };
        let again = castor.client.disable_replication("web").await;
        kill_process(process, Signal::CONT).expect("let go");
        [unset, again.map(drop)]
    };
    let (ended, meanwhile) = tokio::join!(ends, meanwhile);
    ended.expect("ended");
    for refusal in meanwhile {
        if matches!(&refusal, Err(problem) if problem.reason.contains("not replicated")) {
            return false;
        }
        refused(refusal, Code::Conflict, "being ended");
    }
    let home = castor.path().join("state/vms");
    let home = fs::read_dir(home).expect("listed").next().expect("a VM");
    let home = home.expect("listed").path();
    for file in ["replication.toml", "progress.toml"] {
        assert!(!home.join(file).exists(), "{file}");
    }
    true
}

/// A person starts `web` there.
async fn start(host: &Host) -> Result<VmDetails, Problem> {
    host.client.start("web", &StartVm { because: None }).await
}

/// Sets what the other host has to agree to, which on a busy one may be too late with that.
async fn set_once_heard(host: &Host, set: SetReplication) {
    let limit = Instant::now() + Duration::from_secs(60);
    while let Err(problem) = host.client.set_replication("web", &set).await {
        assert_eq!(problem.code, Code::Unreachable, "{problem}");
        assert!(Instant::now() < limit, "{problem}");
    }
}

/// The lease of `web` on a host once it is as `wanted` says.
async fn lease_on(host: &Host, wanted: impl Fn(Option<Lease>) -> bool) -> Option<Lease> {
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        let lease = host.client.replication("web").await.expect("shown").lease;
        if wanted(lease) {
            return lease;
        }
        assert!(Instant::now() < limit, "{lease:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_lease_is_agreed_on_by_both_hosts_made_shorter_and_ended_only_with_the_other_ones_word() {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let under = |fence: &str| EnableReplication {
        fence: Some(fence.parse().expect("a fence")),
        ..to_pollux("all")
    };
    let enable = |fence: &str| {
        let (client, wanted) = (&castor.client, under(fence));
        async move { client.enable_replication("web", &wanted).await }
    };
    refused(enable("lease=1").await, Code::Invalid, "2 to 3600");
    let none = castor.client.replication("web").await;
    refused(none, Code::Conflict, "not replicated");
    let lease = enable("lease=60").await.expect("made").lease;
    let lease = lease.expect("a lease");
    assert_eq!((lease.seconds, lease.held), (60, false));
    let seconds = |lease: Option<Lease>| lease.map(|lease| lease.seconds);
    // And its margin.
    lease_on(&pollux, |lease| {
        seconds(lease) == Some(60) && lease.and_then(|lease| lease.takeover_in_ms) > Some(60_000)
    })
    .await;
    lease_on(&castor, |lease| {
        lease.and_then(|lease| lease.left_ms) > Some(58_000)
    })
    .await;

    let set = |set: SetReplication| {
        let client = &castor.client;
        async move { client.set_replication("web", &set).await }
    };
    let fence = |text: &str| SetReplication {
        fence: Some(text.parse().expect("a fence")),
        ..SetReplication::default()
    };
    let unasked = |choice| SetReplication {
        start_unasked: Some(choice),
        ..SetReplication::default()
    };
    let both = set(unasked(StartUnasked::Allow)).await;
    refused(both, Code::Conflict, "--fence none");
    let elsewhere = pollux.client.set_replication("web", &fence("none")).await;
    refused(elsewhere, Code::Conflict, "primary host");

    // Shorter at once, on both; over a restart of either; and it is renewed after it.
    set(fence("lease=3")).await.expect("shorter");
    lease_on(&pollux, |lease| seconds(lease) == Some(3)).await;
    let left = lease_on(&castor, |lease| seconds(lease) == Some(3)).await;
    let left = left.and_then(|lease| lease.left_ms);
    assert!(left.is_some_and(|ms| ms <= 3000), "{left:?}");
    let pollux = pollux.restarted("pollux").await;
    assert_eq!(seconds(lease_on(&pollux, |_| true).await), Some(3));
    // It listens elsewhere now, which it knows when that is settled.
    pollux.receives().await;
    castor.trusts(&pollux).await;
    lease_on(&castor, |lease| {
        lease.and_then(|lease| lease.left_ms) > Some(2000)
    })
    .await;

    // While the other host is silent the lease ends here with no word of it, but a person's.
    let process = Pid::from_child(&pollux.daemon);
    kill_process(process, Signal::STOP).expect("held");
    lease_on(&castor, |lease| {
        lease.and_then(|lease| lease.left_ms) == Some(0)
    })
    .await;
    let ended = set(fence("none")).await;
    refused(ended, Code::Unreachable, "replica remove web --force");
    kill_process(process, Signal::CONT).expect("let go");
    lease_on(&castor, |lease| {
        lease.and_then(|lease| lease.left_ms) > Some(0)
    })
    .await;
    set_once_heard(&castor, fence("none")).await;
    assert_eq!(lease_on(&pollux, |lease| lease.is_none()).await, None);
    assert_eq!(lease_on(&castor, |_| true).await, None);

    let allowed = set(unasked(StartUnasked::Allow)).await.expect("allowed");
    assert_eq!(allowed.start_unasked, StartUnasked::Allow);
    refused(
        set(fence("lease")).await,
        Code::Conflict,
        "--start-unasked deny",
    );
    let instead = SetReplication {
        start_unasked: Some(StartUnasked::Deny),
        ..fence("lease=3")
    };
    let chosen = set(instead).await.expect("one instead of the other");
    assert_eq!(seconds(chosen.lease), Some(3));
    lease_on(&pollux, |lease| seconds(lease) == Some(3)).await;

    // A primary whose replica is lost needs a person's word to start, and to end it.
    drop(pollux);
    refused(start(&castor).await, Code::Unreachable, "may run on host");
    let ended = castor.client.disable_replication("web").await;
    refused(ended, Code::Unreachable, "--force --because STATEMENT");
    castor.client.replication("web").await.expect("it stays");
    let lost = castor
        .client
        .disable_replication_because("web", "host pollux has burnt down: 100 %")
        .await;
    assert!(lost.expect("a person's word").untold.is_some());
    let none = castor.client.replication("web").await;
    refused(none, Code::Conflict, "not replicated");
}

#[tokio::test]
async fn a_primary_starts_without_an_answer_only_if_a_person_chose_that_and_says_so() {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let all = to_pollux("all");
    let enabled = castor.client.enable_replication("web", &all).await;
    assert_eq!(enabled.expect("made").start_unasked, StartUnasked::Deny);
    drop(pollux);
    refused(start(&castor).await, Code::Unreachable, "may run on host");
    let allow = SetReplication {
        start_unasked: Some(StartUnasked::Allow),
        ..SetReplication::default()
    };
    let set = castor.client.set_replication("web", &allow).await;
    assert_eq!(set.expect("set").start_unasked, StartUnasked::Allow);
    // It gets as far as its supervisor, which here is none.
    let begun = start(&castor).await.expect_err("a stand-in supervises it");
    assert_eq!(begun.code, Code::Failed, "{begun}");
    let told = castor.client.events(&EventQuery::default()).await;
    let told = told.expect("listed").into_iter();
    let kinds: Vec<EventKind> = told.map(|event| event.kind).collect();
    assert!(kinds.contains(&EventKind::StartedUnasked), "{kinds:?}");
}

/// Ends polluxd, does something to its folders, and starts it anew.
async fn meanwhile(mut host: Host, name: &str, done: impl FnOnce()) -> Host {
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    done();
    host.restarted(name).await
}

#[tokio::test]
async fn a_vm_whose_folder_was_restored_does_not_start_unasked_until_its_partner_was_heard() {
    let (castor, pollux) = trusting().await;
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let all = to_pollux("all");
    let made = castor.client.enable_replication("web", &all).await;
    let vm = made.expect("made").vm;
    let choose = |castor: &Host, choice| {
        let client = castor.client.clone();
        let set = SetReplication {
            start_unasked: Some(choice),
            ..SetReplication::default()
        };
        async move { client.set_replication("web", &set).await.expect("set") }
    };
    choose(&castor, StartUnasked::Allow).await;
    let state = castor.path().join("state");
    let file = state.join(format!("vms/{vm}/standing.toml"));
    let backup = fs::read_to_string(&file).expect("read");
    choose(&castor, StartUnasked::Deny).await;
    choose(&castor, StartUnasked::Allow).await;
    let last = fs::read_to_string(&file).expect("read");
    let pollux = ended(pollux);

    // What was stored last starts, as a person chose.
    let castor = castor.restarted("castor").await;
    let begun = start(&castor).await.expect_err("a stand-in supervises it");
    assert_eq!(begun.code, Code::Failed, "{begun}");

    // What was stored before does not, and says so; also after another start of polluxd.
    let put = |text: String| {
        let file = file.clone();
        move || fs::write(file, text).expect("restored")
    };
    let mut castor = meanwhile(castor, "castor", put(backup.clone())).await;
    for _ in 0..2 {
        refused(
            start(&castor).await,
            Code::Unreachable,
            "restored from a backup",
        );
        let status = castor.client.vm("web").await.expect("shown").vm.status;
        assert!(status.contains("stored last"), "{status}");
        assert!(status.contains("--force --because"), "{status}");
        // Whoever lists them waits until those of before are kept.
        let kept = castor.client.events(&EventQuery::default()).await;
        kept.expect("listed");
        castor = castor.restarted("castor").await;
    }
    let told = castor.client.events(&EventQuery::default()).await;
    let told = told.expect("listed").into_iter();
    let told = told.filter(|event| event.kind == EventKind::Restored);
    assert_eq!(told.count(), 1, "noticed once");
    // The one that was stored last before that is an old one now.
    let castor = meanwhile(castor, "castor", put(last.clone())).await;
    refused(
        start(&castor).await,
        Code::Unreachable,
        "restored from a backup",
    );
    // So is one without its copy outside of it.
    let copies = state.join("stamps");
    let castor = meanwhile(castor, "castor", || {
        put(last.clone())();
        fs::remove_dir_all(&copies).expect("removed");
    });
    let castor = castor.await;
    refused(
        start(&castor).await,
        Code::Unreachable,
        "restored from a backup",
    );

    // Its partner knows: that this host is its primary, and may start.
    let pollux = Host::start_in(pollux, "pollux").await;
    pollux.receives().await;
    castor.trusts(&pollux).await;
    let limit = Instant::now() + Duration::from_secs(60);
    while castor
        .client
        .vm("web")
        .await
        .expect("shown")
        .vm
        .status
        .contains("stored last")
    {
        assert!(Instant::now() < limit, "it is never heard");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begun = start(&castor).await.expect_err("a stand-in supervises it");
    assert_eq!(begun.code, Code::Failed, "{begun}");

    // The folders of an older Pollux have no stamps, and no copies lie outside: nothing is noticed.
    drop(pollux);
    let older = last.split("[stamp]").next().expect("text").to_owned();
    let rest = last.split("[stamp]").nth(1).expect("it has one");
    let rest = rest.find("\n[").map_or("", |at| &rest[at..]).to_owned();
    let castor = meanwhile(castor, "castor", || {
        put(older + &rest)();
        fs::remove_dir_all(&copies).expect("removed");
    });
    let castor = castor.await;
    let begun = start(&castor).await.expect_err("a stand-in supervises it");
    assert_eq!(begun.code, Code::Failed, "{begun}");
}

/// Ends polluxd; its folder.
fn ended(mut host: Host) -> tempfile::TempDir {
    host.daemon.kill().expect("kill");
    host.daemon.wait().expect("reap");
    let elsewhere = tempfile::tempdir().expect("scratch");
    std::mem::replace(&mut host.folder, elsewhere)
}
