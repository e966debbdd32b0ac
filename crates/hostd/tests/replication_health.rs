//! Measures and health of a relationship whose disk server serves nothing, on both its sides.

mod support;

use std::fs;
use std::time::{Duration, Instant};

use api::{EventKind, EventQuery, HealthReason, ReplicationHealth, Severity};
use model::{Code, Health, Mode};
use rustix::process::{Pid, Signal, kill_process};
use support::{Host, empty, refused, replicate_to};

/// Two hosts that trust each other, and a VM of the first that is replicated to the second.
async fn pair() -> (Host, Host) {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    for host in [&castor, &pollux] {
        host.receives().await;
    }
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    let made = castor.create("web", vec![empty(1 << 20)]).await;
    made.expect("made");
    enable(&castor).await;
    (castor, pollux)
}

async fn enable(castor: &Host) {
    let enable = replicate_to("pollux");
    let enabled = castor.client.enable_replication("web", &enable).await;
    enabled.expect("the peer agrees");
}

/// Asks until the answer is as it should be.
async fn until<T: std::fmt::Debug>(
    mut ask: impl AsyncFnMut() -> T,
    good: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let answer = ask().await;
        if good(&answer) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Health of the VM there, once it is so for this reason.
async fn health_because(host: &Host, reason: HealthReason) -> ReplicationHealth {
    until(
        async || host.client.health("web").await.expect("told"),
        |health| {
            let mut reasons = health.messages.iter().map(|message| message.reason);
            reasons.any(|one| one == reason)
        },
    )
    .await
}

async fn restart(mut host: Host, name: &str, signal: Signal) -> Host {
    let pid = i32::try_from(host.daemon.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process id"), signal).expect("it runs");
    host.daemon.wait().expect("reaped");
    let folder = std::mem::replace(&mut host.folder, tempfile::tempdir().expect("scratch"));
    Host::start_in(folder, name).await
}

#[tokio::test]
async fn both_sides_tell_why_they_are_not_healthy_and_what_to_do() {
    let (castor, pollux) = pair().await;
    let health = health_because(&castor, HealthReason::CannotWriteLog).await;
    assert_eq!(
        (health.health, health.mode),
        (Health::Warning, Mode::Primary)
    );
    assert!(
        health
            .messages
            .iter()
            .all(|one| one.since.is_some() && !one.way_out.is_empty())
    );

    let paused = castor.client.suspend_replication("web").await;
    assert_eq!(paused.expect("paused").health, Health::Warning);
    let health = health_because(&castor, HealthReason::Paused).await;
    assert_eq!(health.messages[0].way_out, "`pollux replica resume web`");

    let health = health_because(&pollux, HealthReason::InitialReplication).await;
    assert_eq!(
        (health.health, health.mode),
        (Health::Warning, Mode::Replica)
    );
    assert_eq!(pollux.client.all_health().await.expect("told"), [health]);

    let there = pollux.client.replication("web").await.expect("there");
    let here = castor.client.replication("web").await.expect("here");
    for one in [&here, &there] {
        assert_eq!(
            (&*one.primary_host, &*one.replica_host),
            ("castor", "pollux")
        );
        assert_eq!(one.replica_port, there.replica_port);
    }
    let metrics = castor.client.metrics().await.expect("told");
    let metrics = String::from_utf8(metrics).expect("text");
    let level = metrics
        .lines()
        .find(|line| line.starts_with("pollux_replication_health{"));
    assert!(level.is_some_and(|line| line.ends_with(" 2")), "{metrics}");
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    refused(castor.client.health("db").await, Code::NotFound, "db");
    castor.create("db", vec![]).await.expect("made");
    for refusal in [
        castor
            .client
            .health("db")
            .await
            .expect_err("not replicated"),
        castor
            .client
            .measures("db")
            .await
            .expect_err("not replicated"),
        castor
            .client
            .reset_measures("db")
            .await
            .expect_err("not replicated"),
    ] {
        refused::<()>(Err(refusal), Code::Conflict, "pollux replica enable");
    }
}

#[tokio::test]
async fn measures_survive_the_end_of_polluxd_and_go_with_the_relationship() {
    let (castor, _pollux) = pair().await;
    let measured = until(
        async || castor.client.measures("web").await.expect("measured"),
        |measures| measures.replication_failures > 0,
    )
    .await;
    assert!(measured.interval_start <= measured.since && measured.since < measured.interval_end);
    let paused = castor.client.suspend_replication("web").await;
    let folder = castor
        .path()
        .join("state/vms")
        .join(paused.expect("paused").vm.to_string());
    let mut before = castor.client.measures("web").await.expect("measured");

    let mut castor = restart(castor, "castor", Signal::TERM).await;
    let mut after = castor.client.measures("web").await.expect("measured");
    // What was under way when it was paused may have failed in between, or the interval have ended.
    if after.replication_failures > before.replication_failures
        || after.interval_start > before.interval_start
    {
        before = after;
        castor = restart(castor, "castor", Signal::TERM).await;
        after = castor.client.measures("web").await.expect("measured");
    }
    assert_eq!(
        (after.since, after.replication_failures),
        (before.since, before.replication_failures)
    );

    let reset = castor.client.reset_measures("web").await.expect("reset");
    assert_eq!(reset.replication_failures, 0);
    assert!(reset.since > before.since);
    // A killed polluxd leaves what it wrote last.
    let copy = castor
        .path()
        .join("run/measures")
        .join(format!("{}.json", reset.vm));
    until(
        async || fs::read_to_string(&copy).unwrap_or_default(),
        |text| text.contains(&reset.since.to_string()),
    )
    .await;
    let castor = restart(castor, "castor", Signal::KILL).await;
    let after = castor.client.measures("web").await.expect("measured");
    assert_eq!(after.since, reset.since);

    castor
        .client
        .disable_replication("web")
        .await
        .expect("ended");
    until(
        async || folder.join("measures.json").exists() || copy.exists(),
        |there| !there,
    )
    .await;
}

fn about_web() -> EventQuery {
    EventQuery {
        vm: Some("web".to_owned()),
        ..EventQuery::default()
    }
}

#[tokio::test]
async fn what_happens_is_kept_followed_and_there_again_after_a_kill() {
    let (castor, pollux) = pair().await;
    let mut stream = castor
        .client
        .follow_events(&about_web())
        .await
        .expect("followed");
    let mut kinds = Vec::new();
    while !kinds.contains(&EventKind::Error) {
        let event = stream.next().await.expect("goes on").expect("an event");
        assert_eq!(event.thing, "web");
        kinds.push(event.kind);
    }
    assert_eq!(kinds[0], EventKind::Enabled);
    assert_eq!(
        kinds
            .iter()
            .filter(|kind| **kind == EventKind::Error)
            .count(),
        1
    );

    let after = castor.client.events(&about_web()).await.expect("listed");
    let after = after.last().expect("events").id;
    castor
        .client
        .suspend_replication("web")
        .await
        .expect("paused");
    castor.client.reset_measures("web").await.expect("reset");
    castor
        .client
        .disable_replication("web")
        .await
        .expect("ended");
    let mut event = stream.next().await.expect("goes on").expect("an event");
    while event.kind != EventKind::Removed {
        event = stream.next().await.expect("goes on").expect("an event");
    }
    let query = EventQuery {
        after: Some(after),
        ..about_web()
    };
    let all = castor.client.events(&query).await.expect("listed");
    let kinds: Vec<EventKind> = all.iter().map(|event| event.kind).collect();
    assert!(kinds.contains(&EventKind::StatisticsReset), "{kinds:?}");
    assert_eq!(kinds.last(), Some(&EventKind::Removed));

    let castor = restart(castor, "castor", Signal::KILL).await;
    assert_eq!(castor.client.events(&query).await.expect("listed"), all);
    // One that is gone is found by its id.
    castor.client.delete("web").await.expect("deleted");
    refused(castor.client.events(&query).await, Code::NotFound, "web");
    let by_id = EventQuery {
        vm: all[0].vm.map(|vm| vm.to_string()),
        ..query
    };
    assert_eq!(castor.client.events(&by_id).await.expect("listed"), all);

    // The other side received it, and heard of the end.
    let there = until(
        async || {
            pollux
                .client
                .events(&EventQuery::default())
                .await
                .expect("listed")
        },
        |all| all.iter().any(|event| event.kind == EventKind::Removed),
    )
    .await;
    assert_eq!(there[0].kind, EventKind::Enabled);
    assert!(
        there[0].what.contains("received from host `castor`"),
        "{there:?}"
    );
}

#[tokio::test]
async fn a_host_that_may_not_replicate_here_is_told_of() {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    for host in [&castor, &pollux] {
        host.receives().await;
    }
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    let authorize = api::Authorize {
        pattern: "*.example.com".to_owned(),
        group: None,
        limit: None,
        store: None,
        copies: Vec::new(),
    };
    pollux
        .client
        .authorize(&authorize)
        .await
        .expect("authorized");
    castor
        .create("web", vec![empty(1 << 20)])
        .await
        .expect("made");
    let wanted = replicate_to("pollux");
    for _ in 0..2 {
        let enabled = castor.client.enable_replication("web", &wanted).await;
        refused(enabled, Code::Forbidden, "authorize castor");
    }
    let all = pollux
        .client
        .events(&EventQuery::default())
        .await
        .expect("listed");
    let [refusal] = &all[..] else {
        panic!("{all:?}");
    };
    assert_eq!(
        (refusal.kind, refusal.severity),
        (EventKind::Refused, Severity::Warning)
    );
    assert_eq!(refusal.thing, "host castor");
    assert!(refusal.way_out.contains("authorize castor"), "{refusal:?}");
}
