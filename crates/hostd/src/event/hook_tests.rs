use model::VmId;

use super::super::{Bounds, Draft};
use super::*;

fn event() -> Event {
    Event {
        id: 7,
        time: jiff::Timestamp::UNIX_EPOCH,
        kind: EventKind::Health,
        severity: Severity::Error,
        vm: Some(VmId::random()),
        thing: "web".to_owned(),
        what: "health went from Normal to Critical".to_owned(),
        way_out: String::new(),
        messages: Vec::new(),
    }
}

fn command(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn it_gets_the_event_on_its_standard_input_and_no_shell_sees_its_arguments() {
    let folder = tempfile::tempdir().expect("scratch");
    let file = folder.path().join("got");
    let to = format!("of={}", file.display());
    let dd = command(&["/bin/dd", "status=none", &to]);
    tell(&dd, &event(), LIMIT).await.expect("told");
    let got: Event = serde_json::from_slice(&std::fs::read(&file).expect("there")).expect("JSON");
    assert_eq!(got, event_like(&got));
    // Were a shell in between, this would be a command.
    let odd = command(&["/bin/test", "$(false)", "=", "$(false)"]);
    tell(&odd, &event(), LIMIT)
        .await
        .expect("equal as they stand");
}

fn event_like(got: &Event) -> Event {
    Event {
        vm: got.vm,
        ..event()
    }
}

#[tokio::test]
async fn one_that_fails_or_is_not_there_is_told_with_what_it_said() {
    let failing = command(&["/bin/sh", "-c", "echo no mail here >&2; exit 3"]);
    let reason = tell(&failing, &event(), LIMIT).await.expect_err("3");
    assert!(reason.contains("exit status: 3: no mail here"), "{reason}");
    let absent = command(&["/absent/program"]);
    let reason = tell(&absent, &event(), LIMIT).await.expect_err("absent");
    assert!(
        reason.contains("/absent/program cannot be started"),
        "{reason}"
    );
    // One that does not read, and says too much.
    let loud = command(&[
        "/bin/sh",
        "-c",
        "exec 0<&-; yes >&2 & head -c 200000 /dev/zero >&2",
    ]);
    tell(&loud, &event(), LIMIT).await.expect("it ended well");
}

#[tokio::test]
async fn one_that_does_not_end_is_killed_with_what_it_started() {
    let folder = tempfile::tempdir().expect("scratch");
    let file = folder.path().join("pid");
    let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
    let endless = command(&["/bin/sh", "-c", &script]);
    let mut pid = String::new();
    // On a busy host it may be killed before it has started anything.
    for seconds in [2, 8, 32] {
        let told = tell(&endless, &event(), Duration::from_secs(seconds)).await;
        let reason = told.expect_err("killed");
        let says = format!("did not end within {seconds} s");
        assert!(reason.contains(&says), "{reason}");
        pid = std::fs::read_to_string(&file).unwrap_or_default();
        if pid.ends_with('\n') {
            break;
        }
    }
    assert!(pid.ends_with('\n'), "it never starts anything");
    let proc = format!("/proc/{}/stat", pid.trim());
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    // Gone, or dead and not reaped by whoever inherited it.
    while std::fs::read_to_string(&proc).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(std::time::Instant::now() < deadline, "it lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn its_failure_is_an_event_that_it_is_not_told_of() {
    let folder = tempfile::tempdir().expect("scratch");
    let (hook, events) = mpsc::channel(QUEUE);
    let bounds = Bounds {
        count: 1000,
        age: jiff::SignedDuration::from_hours(24),
    };
    let path = folder.path().join("events.db");
    let history = Arc::new(Events::begin(&path, bounds, Some(hook)).expect("begun"));
    tokio::spawn(run(command(&["/bin/false"]), events, Arc::clone(&history)));
    let mut followed = history.follow();
    history.record(Draft::new(
        EventKind::Health,
        Severity::Error,
        "web",
        "health is Critical".to_owned(),
    ));
    let first = followed.recv().await.expect("an event");
    let second = followed.recv().await.expect("another");
    assert_eq!(
        (first.kind, second.kind),
        (EventKind::Health, EventKind::HookFailed)
    );
    assert!(second.what.contains("event 1"), "{second:?}");
    // Had it been told of its failure, that would have failed as well, and come before this one.
    history.record(Draft::new(
        EventKind::State,
        Severity::Info,
        "web",
        "x".to_owned(),
    ));
    assert_eq!(
        followed.recv().await.expect("a third").kind,
        EventKind::State
    );
    assert!(!is_told(EventKind::HookFailed));
}
