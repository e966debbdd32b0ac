//! Stores of a replica server: twins in folders that an admin names, and what is said while one of those
//! is not mounted. No guest is started.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::{Authorize, EnableReplicaServer, HealthReason, ReplicaStore, Replication, StartFailover};
use model::{Code, Health, Problem, ReplicationState};
use support::{Host, empty, refused, replicate_to};
use testkit::free_port;

async fn replicate(host: &Host, vm: &str) -> Result<Replication, Problem> {
    let enable = replicate_to("pollux");
    host.client.enable_replication(vm, &enable).await
}

fn authorize(pattern: &str, store: Option<&Path>) -> Authorize {
    Authorize {
        pattern: pattern.to_owned(),
        group: None,
        limit: None,
        copies: Vec::new(),
        store: store.map(Path::to_owned),
    }
}

/// Two hosts that trust each other, and folders beside the second one's that may become stores.
async fn pair() -> (Host, Host, tempfile::TempDir) {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    castor.receives().await;
    // A host that starts anew is found there again.
    let listen = EnableReplicaServer {
        listen: Some(format!("127.0.0.1:{}", free_port())),
        ..EnableReplicaServer::default()
    };
    let enabled = pollux.client.enable_replica_server(&listen).await;
    enabled.expect("enabled");
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    for name in ["web", "db"] {
        let made = castor.create(name, vec![empty(1 << 20)]).await;
        made.expect("made");
    }
    let disks = tempfile::tempdir().expect("scratch");
    for name in ["one", "two"] {
        fs::create_dir(disks.path().join(name)).expect("made");
    }
    (castor, pollux, disks)
}

/// A folder of `disks`, by its own path.
fn store(disks: &tempfile::TempDir, name: &str) -> PathBuf {
    let root = fs::canonicalize(disks.path()).expect("it is there");
    root.join(name)
}

async fn shown(host: &Host) -> Vec<ReplicaStore> {
    host.client.replica_server().await.expect("told").stores
}

async fn shown_at(host: &Host, path: &Path) -> ReplicaStore {
    let stores = shown(host).await.into_iter();
    let mut found = stores.filter(|store| store.path == path);
    found.next().expect("it is listed")
}

/// Names in a folder, but of the file that marks a store.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    let names = entries.map(|entry| entry.expect("read").file_name());
    let names = names.map(|name| name.into_string().expect("UTF-8"));
    names.filter(|name| name != "pollux-store.toml").collect()
}

/// Asks for the twin's relationship until it is as it should be.
async fn until(host: &Host, good: impl Fn(&Replication) -> bool) -> Replication {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let told = host.client.replication("web").await.expect("told");
        if good(&told) {
            return told;
        }
        assert!(Instant::now() < deadline, "{told:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn is_away(told: &Replication) -> bool {
    let mut reasons = told.messages.iter().map(|message| message.reason);
    reasons.any(|reason| reason == HealthReason::StoreAway)
}

#[tokio::test]
async fn a_twin_is_made_in_the_store_of_its_primarys_entry_and_stays_there() {
    let (castor, pollux, disks) = pair().await;
    let (one, two) = (store(&disks, "one"), store(&disks, "two"));
    let client = &pollux.client;
    for (path, code, says) in [
        (store(&disks, "three"), Code::NotFound, "does not exist"),
        (PathBuf::from("one"), Code::Invalid, "absolute"),
        (pollux.path().join("state"), Code::Conflict, "inside"),
    ] {
        let path = if path.is_absolute() {
            fs::canonicalize(&path).unwrap_or(path)
        } else {
            path
        };
        refused(
            client.authorize(&authorize("castor", Some(&path))).await,
            code,
            says,
        );
    }
    assert_eq!(shown(&pollux).await.len(), 1, "nothing was changed");

    let all = EnableReplicaServer {
        store: Some(one.clone()),
        ..EnableReplicaServer::default()
    };
    client.enable_replica_server(&all).await.expect("enabled");
    replicate(&castor, "web").await.expect("agreed");
    assert_eq!(names(&one).len(), 1);
    let made = authorize("castor", Some(&two));
    client.authorize(&made).await.expect("authorized");
    replicate(&castor, "db").await.expect("agreed");
    let listed = client.authorizations().await.expect("listed");
    assert_eq!(listed[0].store, two);
    let stores: Vec<_> = shown(&pollux).await.into_iter().collect();
    let told: Vec<_> = stores
        .iter()
        .map(|store| (store.twins, store.default, store.problem.is_none()))
        .collect();
    assert_eq!(
        told,
        [(0, false, true), (1, true, true), (1, false, true)],
        "{stores:?}"
    );
    assert!(stores[2].free > Some(model::Bytes(0)) && stores[2].total >= stores[2].free);

    // What is taken away leaves the twins where they are.
    client.deny("castor").await.expect("denied");
    assert_eq!(shown_at(&pollux, &two).await.twins, 1);
    let pollux = pollux.restarted("pollux").await;
    assert_eq!(shown_at(&pollux, &two).await.twins, 1);
    let details = pollux.client.vm("db").await.expect("told");
    assert!(details.disks[0].file.starts_with(&two), "{details:?}");
    for vm in ["db", "web"] {
        let ended = pollux.client.disable_replication(vm).await;
        ended.expect("ended");
        pollux.client.delete(vm).await.expect("deleted");
    }
    assert!(names(&one).is_empty() && names(&two).is_empty());
    assert!(names(&pollux.path().join("state/replicas")).is_empty());
    let known = shown(&pollux).await;
    assert!(known.iter().all(|store| store.path != two), "{known:?}");
}

#[tokio::test]
async fn a_twin_whose_store_is_not_mounted_is_known_said_to_be_away_and_goes_on_when_it_is_back() {
    let (castor, pollux, disks) = pair().await;
    let (one, aside) = (store(&disks, "one"), store(&disks, "aside"));
    let made = authorize("castor", Some(&one));
    pollux.client.authorize(&made).await.expect("authorized");
    replicate(&castor, "web").await.expect("agreed");

    // The host starts before its disk is mounted.
    fs::rename(&one, &aside).expect("away");
    fs::create_dir(&one).expect("where it is mounted");
    let pollux = pollux.restarted("pollux").await;
    let told = until(&pollux, is_away).await;
    assert_eq!(
        (told.health, told.state),
        (Health::Critical, ReplicationState::Suspended)
    );
    let path = one.to_str().expect("UTF-8");
    let message = &told.messages[0];
    assert!(message.what.contains(path) && message.way_out.contains(path));
    let all = pollux.client.replications().await.expect("all are told of");
    assert_eq!(all.len(), 1);
    let away = shown_at(&pollux, &one).await;
    assert!(away.twins == 1 && away.free.is_none(), "{away:?}");
    assert!(away.problem.expect("why").way_out.contains(path));
    refused(pollux.client.points("web").await, Code::Failed, "is away");
    let failover = StartFailover::default();
    refused(
        pollux.client.failover("web", &failover).await,
        Code::Failed,
        path,
    );
    // Neither is a twin that is there made anew, nor another one in the empty folder.
    refused(replicate(&castor, "db").await, Code::Failed, "is away");
    assert_eq!(fs::read_dir(&one).expect("a folder").count(), 0);
    let vms = pollux.client.vms().await.expect("listed");
    assert_eq!(vms.len(), 1, "{vms:?}");

    // Another disk is no better.
    fs::write(
        one.join("pollux-store.toml"),
        "version = 1\nid = \"67e55044-10b1-426f-9247-bb680e5fe0c8\"\nhost = \"pollux\"\n",
    )
    .expect("written");
    refused(
        pollux.client.points("web").await,
        Code::Failed,
        "another store",
    );
    fs::remove_dir_all(&one).expect("unmounted");
    fs::rename(&aside, &one).expect("mounted");
    let told = until(&pollux, |told| !is_away(told)).await;
    assert_ne!(told.state, ReplicationState::Suspended);
    assert!(pollux.client.points("web").await.expect("there").is_empty());
    replicate(&castor, "db").await.expect("agreed");
    assert_eq!(names(&one).len(), 2);
}

#[tokio::test]
async fn a_twin_of_a_lost_store_is_given_up_and_what_turns_up_again_is_left_alone() {
    let (castor, pollux, disks) = pair().await;
    let (one, aside) = (store(&disks, "one"), store(&disks, "aside"));
    let made = authorize("castor", Some(&one));
    let client = &pollux.client;
    client.authorize(&made).await.expect("authorized");
    replicate(&castor, "web").await.expect("agreed");
    refused(
        client.delete_lost("web").await,
        Code::Conflict,
        "replicated",
    );
    client.disable_replication("web").await.expect("ended");
    refused(
        client.delete_lost("web").await,
        Code::Conflict,
        "--store-lost",
    );
    fs::rename(&one, &aside).expect("lost");
    // It may hold a locked point.
    refused(client.delete("web").await, Code::Failed, "is away");
    client.delete_lost("web").await.expect("given up");
    assert!(client.vms().await.expect("listed").is_empty());
    assert!(names(&pollux.path().join("state/replicas")).is_empty());
    fs::rename(&aside, &one).expect("it turns up");
    let pollux = pollux.restarted("pollux").await;
    assert_eq!(names(&one).len(), 1);
    // Its primary knows nothing of a twin any more, or is told so; a new one takes no other's place.
    let _ = castor.client.disable_replication("web").await;
    let id = names(&one).remove(0);
    refused(replicate(&castor, "web").await, Code::Conflict, &id);
    fs::rename(one.join(&id), one.join("old")).expect("moved away");
    replicate(&castor, "web").await.expect("agreed");
    drop(pollux);
}
