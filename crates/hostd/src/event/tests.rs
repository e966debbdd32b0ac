//! The history: kept over a restart, bounded, and begun anew when it cannot be used.

use std::fs;

use proptest::prelude::*;

use super::*;

fn bounds() -> Bounds {
    Bounds {
        count: 1000,
        age: SignedDuration::from_hours(24 * 90),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_000_000_000 + second).expect("a time")
}

fn draft(what: &str) -> Draft {
    Draft::new(EventKind::State, Severity::Info, "web", what.to_owned())
}

fn keep(history: &mut History, count: u64, second: i64) -> Vec<Event> {
    let drafts = (0..count).map(|n| (draft(&format!("number {n}")), at(second)));
    history.keep(drafts.collect())
}

fn ids(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.id).collect()
}

fn all(history: &mut History) -> Vec<Event> {
    history.list(&Wanted::default()).expect("listed")
}

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("scratch");
    let path = folder.path().join("events.db");
    (folder, path)
}

#[test]
fn events_are_there_again_after_a_restart_and_numbers_go_on() {
    let (_folder, path) = scratch();
    let mut history = History::open(&path, bounds(), at(0));
    let kept = keep(&mut history, 3, 0);
    assert_eq!(ids(&kept), [1, 2, 3]);
    drop(history);
    let mut history = History::open(&path, bounds(), at(0));
    assert_eq!(all(&mut history), kept);
    assert_eq!(ids(&keep(&mut history, 1, 0)), [4]);
}

#[test]
fn they_are_found_by_vm_by_time_and_by_number() {
    let (_folder, path) = scratch();
    let mut history = History::open(&path, bounds(), at(0));
    keep(&mut history, 2, 0);
    let vm = VmId::random();
    history.keep(vec![(draft("of a VM").about(vm), at(50))]);
    keep(&mut history, 2, 100);
    let mut found = |wanted: Wanted| ids(&history.list(&wanted).expect("listed"));
    let of_vm = Wanted {
        vm: Some(vm),
        ..Wanted::default()
    };
    assert_eq!(found(of_vm), [3]);
    let since = Wanted {
        since: Some(at(50)),
        ..Wanted::default()
    };
    assert_eq!(found(since), [3, 4, 5]);
    let newest = Wanted {
        limit: Some(2),
        ..Wanted::default()
    };
    assert_eq!(found(newest), [4, 5]);
    let after = |after, limit| Wanted {
        after: Some(after),
        limit,
        ..Wanted::default()
    };
    assert_eq!(found(after(2, Some(2))), [3, 4]);
    assert_eq!(found(after(5, None)), [0; 0]);
    // Of a history before this one.
    assert_eq!(found(after(1000, None)), [1, 2, 3, 4, 5]);
    assert_eq!(found(after(u64::MAX, None)), [1, 2, 3, 4, 5]);
}

#[test]
fn the_oldest_go_by_count_and_by_age() {
    let (_folder, path) = scratch();
    let few = Bounds {
        count: 300,
        ..bounds()
    };
    let mut history = History::open(&path, few, at(0));
    for _ in 0..20 {
        keep(&mut history, 100, 0);
        assert!(
            all(&mut history).len() <= 600,
            "more than the bound and its slack"
        );
    }
    drop(history);
    let mut history = History::open(&path, few, at(0));
    let left = all(&mut history);
    assert_eq!(
        (left.len(), left.last().map(|event| event.id)),
        (300, Some(2000))
    );
    drop(history);
    let young = Bounds {
        age: SignedDuration::from_secs(10),
        ..few
    };
    let mut history = History::open(&path, young, at(11));
    assert!(all(&mut history).is_empty());
    assert_eq!(ids(&keep(&mut history, 1, 11)).len(), 1);
}

#[test]
fn a_history_that_is_no_database_or_of_another_version_is_put_aside_and_begun_anew() {
    let (folder, path) = scratch();
    for number in 1..=2 {
        if number == 1 {
            fs::write(
                &path,
                "this is no database, and long enough to be seen as none",
            )
            .expect("x");
        } else {
            let file = rusqlite::Connection::open(&path).expect("opened");
            file.pragma_update(None, "user_version", 99).expect("set");
        }
        let mut history = History::open(&path, bounds(), at(0));
        let told = keep(&mut history, 1, 0);
        let kinds: Vec<EventKind> = told.iter().map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::State, EventKind::HistoryLost]);
        assert_eq!(all(&mut history), told);
        assert!(
            folder
                .path()
                .join(format!("events.db.damaged-{number}"))
                .exists()
        );
    }
}

#[test]
fn one_that_is_damaged_while_it_is_open_is_begun_anew_and_no_event_is_lost_from_then_on() {
    let (_folder, path) = scratch();
    let mut history = History::open(&path, bounds(), at(0));
    keep(&mut history, 50, 0);
    let other = rusqlite::Connection::open(&path).expect("opened");
    other.execute_batch("DROP TABLE event").expect("dropped");
    drop(other);
    let told = keep(&mut history, 1, 0);
    assert_eq!(told[0].id, 51, "numbers go on");
    assert_eq!(told[1].kind, EventKind::HistoryLost);
    assert_eq!(all(&mut history), told);
}

#[test]
fn where_nothing_can_be_kept_events_are_told_all_the_same() {
    let (folder, _) = scratch();
    let path = folder.path().join("absent/events.db");
    let mut history = History::open(&path, bounds(), at(0));
    assert_eq!(ids(&keep(&mut history, 2, 0)), [1, 2]);
    history
        .list(&Wanted::default())
        .expect_err("nothing is there");
    fs::create_dir(folder.path().join("absent")).expect("made");
    let kept = keep(&mut history, 1, 0);
    assert_eq!(
        all(&mut history),
        kept,
        "it is kept again as soon as it can be"
    );
    assert_eq!(kept[0].id, 3);
}

#[test]
fn the_words_of_others_are_cut_at_a_limit() {
    let long = "ä".repeat(MAX_TEXT);
    let event = draft(&long).numbered(1, at(0));
    assert!(event.what.len() <= MAX_TEXT + 4 && event.what.ends_with(" ..."));
}

#[tokio::test]
async fn what_does_not_fit_into_the_queue_is_counted_and_that_is_told() {
    let (requests, asked) = sync_channel(2);
    let (told, mut followed) = broadcast::channel(BEHIND);
    let events = Events {
        requests,
        told: told.clone(),
        lost: AtomicU64::new(0),
        refusals: std::sync::Mutex::default(),
    };
    for n in 0..5 {
        events.record(draft(&format!("number {n}")));
    }
    let (_folder, path) = scratch();
    let thread = std::thread::spawn(move || {
        let history = History::open(&path, bounds(), at(0));
        serve(history, &asked, &told, None);
    });
    for n in 0..2 {
        assert_eq!(
            followed.recv().await.expect("kept").what,
            format!("number {n}")
        );
    }
    events.record(draft("last"));
    let lost = followed.recv().await.expect("told");
    assert_eq!(lost.kind, EventKind::HistoryLost);
    assert!(lost.what.starts_with("3 events"), "{lost:?}");
    assert_eq!(followed.recv().await.expect("kept").what, "last");
    drop(events);
    thread.join().expect("it ends with the last sender");
}

#[tokio::test]
async fn a_refusal_is_told_once_an_hour() {
    let (_folder, path) = scratch();
    let events = Events::begin(&path, bounds(), None).expect("begun");
    let problem = Problem::new(Code::Forbidden, "host `eve`", "may not", "");
    for _ in 0..10 {
        events.refused("eve", &problem);
    }
    events.refused("mallory", &problem);
    let all = events.list(Wanted::default()).await.expect("listed");
    let things: Vec<&str> = all.iter().map(|event| event.thing.as_str()).collect();
    assert_eq!(things, ["host eve", "host mallory"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_is_in_the_file_it_can_be_opened_and_events_are_kept(
        whole in any::<bool>(),
        bytes in proptest::collection::vec(any::<u8>(), 1..600),
        place in any::<prop::sample::Index>(),
    ) {
        let (_folder, path) = scratch();
        let mut content = Vec::new();
        if whole {
            let mut history = History::open(&path, bounds(), at(0));
            keep(&mut history, 20, 0);
            drop(history);
            content = fs::read(&path).expect("read");
        }
        let at_byte = place.index(content.len().max(1));
        let end = (at_byte + bytes.len()).min(content.len());
        if whole {
            content[at_byte..end].copy_from_slice(&bytes[..end - at_byte]);
        } else {
            content = bytes;
        }
        fs::write(&path, content).expect("written");
        let mut history = History::open(&path, bounds(), at(0));
        // It may be noticed only now.
        let _ = history.list(&Wanted::default());
        let kept = keep(&mut history, 1, 0);
        let left = all(&mut history);
        prop_assert!(left.contains(&kept[0]), "{left:?}");
    }
}
