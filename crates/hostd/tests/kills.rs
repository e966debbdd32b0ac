//! polluxd is killed at the instant at which one file is as it is wanted and the next one is not: between
//! any two of those that it writes to follow its primary, and to forget a relationship. No guest is started.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use api::EnableReplicaServer;
use jiff::Timestamp;
use model::Code;
use replica::client::{PeerClient, PeerLink};
use replica::identity::Identity;
use replica::link::Link;
use replica::standing::Standing;
use replica::trust::Trust;
use replica::wire::{Configuration, Configure, ConfigureAnswer, Contact};
use rustix::process::{Pid, Signal, kill_process};
use support::{Host, empty, refused, replicate_to};
use testkit::free_port;

/// So often a step is tried until polluxd dies right after it: the kill may come late on a busy machine.
const TRIES: usize = 200;
/// Nothing is answered later unless it hangs.
const LIMIT: Duration = Duration::from_secs(60);

/// Two hosts that trust each other. The second one is found again when it was started anew.
async fn trusting() -> (Host, Host) {
    let (castor, pollux) = (Host::start("castor").await, Host::start("pollux").await);
    castor.receives().await;
    let listen = EnableReplicaServer {
        listen: Some(format!("127.0.0.1:{}", free_port())),
        ..EnableReplicaServer::default()
    };
    let enabled = pollux.client.enable_replica_server(&listen).await;
    enabled.expect("enabled");
    castor.trusts(&pollux).await;
    pollux.trusts(&castor).await;
    let disks = vec![empty(1 << 20), empty(1 << 20)];
    castor.create("web", disks).await.expect("made");
    (castor, pollux)
}

/// Which file has the name; none has it, or another one than before, when that changes.
fn inode(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|meta| meta.ino())
}

/// Kills a polluxd as soon as another file, or none, has the name of the one that is watched.
struct Watch {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    fn kill(host: &Host, file: PathBuf) -> Self {
        let pid = i32::try_from(host.daemon.id()).expect("a process id");
        let pid = Pid::from_raw(pid).expect("not 0");
        let over = Arc::new(AtomicBool::new(false));
        let (ends, before) = (over.clone(), inode(&file));
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                if inode(&file) != before {
                    kill_process(pid, Signal::KILL).expect("it is there until it is reaped");
                    return;
                }
                std::thread::yield_now();
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it does not panic");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_killed_between_the_files_it_follows_with_is_told_the_same_again() {
    let (castor, mut pollux) = trusting().await;
    let made = castor
        .client
        .enable_replication("web", &replicate_to("pollux"))
        .await;
    let made = made.expect("made");
    let state = castor.path().join("state");
    // Asks as the primary's polluxd does.
    let identity = Identity::open(&state.join("identity"), "castor", Timestamp::now());
    let trust = Trust::open(&state.join("peers")).expect("read");
    let identity = Arc::new(identity.expect("read"));
    let client = Arc::new(PeerClient::new(identity, Arc::new(trust), "pollux"));
    let link = PeerLink::new(client, made.vm, made.relationship);
    let home = state.join("vms").join(made.vm.to_string());
    let standing = Standing::load(&home.join("standing.toml")).expect("read");
    let lineage = standing.expect("it is there").lineage;
    let contact = Contact::of(lineage.clone());
    let spec = castor.client.vm("web").await.expect("told").spec;
    let twin = pollux.path().join("state/replicas");
    let twin = twin.join(made.vm.to_string());
    let mut halfway = 0;
    for n in 0..TRIES {
        let mut configuration = Configuration {
            spec: spec.clone(),
            disks: spec.disks.iter().map(|disk| disk.id).collect(),
            frequency_s: 60 + u32::try_from(n).expect("small"),
            keep: None,
        };
        configuration.spec.name = format!("web {n}").parse().expect("a name");
        if n % 2 == 0 {
            configuration.spec.disks.truncate(1);
            configuration.disks.truncate(1);
        }
        let wanted = Configure {
            lineage: lineage.clone(),
            revision: configuration.revision(),
            configuration,
        };
        let file = ["vm.toml", "replication.toml"][n / 2 % 2];
        let watch = Watch::kill(&pollux, twin.join(file));
        // Whether the answer comes before the kill does not matter.
        let _ = link.configure(&wanted).await;
        drop(watch);
        pollux = pollux.restarted("pollux").await;
        let all = pollux.client.vms().await.expect("listed");
        assert_eq!(all.len(), 1, "{all:?}");
        let name = all[0].name.to_string();
        let is_new = pollux.client.vm(&name).await.expect("told").spec == wanted.configuration.spec;
        let told = link.meet(&contact, LIMIT).await.expect("answered");
        let revision = told.reception.expect("it is the replica").revision;
        // What it says that it follows it does follow.
        assert!(is_new || revision != Some(wanted.revision), "try {n}");
        halfway += usize::from(is_new && revision != Some(wanted.revision));
        let again = link.configure(&wanted).await.expect("answered");
        assert_eq!(again, ConfigureAnswer::Configured);
        let told = link.meet(&contact, LIMIT).await.expect("answered");
        let revision = told.reception.expect("it is the replica").revision;
        assert_eq!(revision, Some(wanted.revision));
        let name = wanted.configuration.spec.name.to_string();
        let shown = pollux.client.vm(&name).await.expect("under its new name");
        assert_eq!(shown.spec, wanted.configuration.spec);
        let shown = pollux.client.replication(&name).await.expect("told");
        let every_s = u64::from(wanted.configuration.frequency_s);
        assert_eq!(shown.every_s, Some(every_s));
        if n >= 8 && halfway >= 2 {
            return;
        }
    }
    panic!("it never died between the two files");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_killed_while_it_forgets_its_replica_forgets_it_afterwards() {
    let (mut castor, pollux) = trusting().await;
    let made = castor
        .client
        .enable_replication("web", &replicate_to("pollux"))
        .await;
    let vm = made.expect("made").vm;
    let home = castor.path().join("state/vms").join(vm.to_string());
    let staged = "outbox/1.delta";
    // Each with the one that goes next.
    let steps = [
        (staged, "progress.toml"),
        ("progress.toml", "standing.toml"),
        ("standing.toml", "replication.toml"),
        ("replication.toml", ""),
    ];
    for (file, next) in steps {
        let mut halfway = false;
        for _ in 0..TRIES {
            fs::create_dir_all(home.join("outbox")).expect("made");
            fs::write(home.join(staged), "content").expect("written");
            let before = inode(&home.join(next));
            let watch = Watch::kill(&castor, home.join(file));
            // Whether the answer comes before the kill does not matter.
            let _ = castor.client.disable_replication("web").await;
            drop(watch);
            castor = castor.restarted("castor").await;
            let died_there = inode(&home.join(next)) == before;
            if home.join("replication.toml").exists() {
                let told = castor.client.replication("web").await.expect("told");
                assert_eq!(told.peer, "pollux");
                let ended = castor.client.disable_replication("web").await;
                ended.expect("ended");
            }
            let ended = castor.client.replication("web").await;
            refused(ended, Code::Conflict, "not replicated");
            let left = ["replication.toml", "progress.toml", staged];
            let left: Vec<_> = left
                .iter()
                .filter(|name| home.join(name).exists())
                .collect();
            assert!(left.is_empty(), "{left:?}");
            let standing = Standing::load(&home.join("standing.toml")).expect("read");
            assert_eq!(standing.expect("it is there").partner, None);
            // Neither host is bound to the other.
            pollux.client.delete("web").await.expect("deleted");
            let made = castor
                .client
                .enable_replication("web", &replicate_to("pollux"))
                .await;
            made.expect("made anew");
            halfway |= died_there;
            if halfway {
                break;
            }
        }
        assert!(halfway, "it never died between {file} and {next}");
    }
}
