//! Drivers that run, and how many seeds are tried.

use super::*;

pub(super) struct Running {
    pub(super) task: JoinHandle<()>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) reports: watch::Receiver<LinkReport>,
    pub(super) configurations: watch::Sender<Arc<Configuration>>,
}

/// Starts the driver of the replica's partner.
pub(super) fn start(shared: &Shared) -> Running {
    let wire = Wire {
        to: shared.clone(),
        name: wire::PARTNER,
    };
    start_with(shared, wire)
}

/// Starts the driver of the host whose disks are in `shared`.
pub(super) fn start_with(shared: &Shared, wire: Wire) -> Running {
    let (plan, progress, chance) = {
        let mut world = shared.world();
        let plan = Plan {
            thing: "VM `web`".to_owned(),
            partner: "host-b".to_owned(),
            disks: world.disks[..DISKS].to_vec(),
            lineage: world.lineage.clone(),
            base_stays: world.base_stays,
            configuration: world.configuration.clone(),
        };
        (plan, world.progress, world.chance.next())
    };
    let (commands, receiver) = mpsc::channel(COMMANDS);
    let state = ReplicationState::ReadyForInitialReplication;
    let (sender, reports) = watch::channel(LinkReport::new(state));
    let (configurations, configuration) = watch::channel(plan.configuration.clone());
    let task = tokio::spawn(run(
        Arc::new(shared.clone()),
        Arc::new(wire),
        Begin {
            plan,
            progress,
            suspended: false,
            chance,
            configuration,
        },
        receiver,
        sender,
    ));
    Running {
        task,
        commands,
        reports,
        configurations,
    }
}

pub(super) async fn wait_for(running: &Running, what: &str, good: impl Fn(&LinkReport) -> bool) {
    let limit = Duration::from_secs(3600);
    let mut reports = running.reports.clone();
    let waited = tokio::time::timeout(limit, reports.wait_for(|r| good(r))).await;
    match waited {
        Ok(Ok(_)) => {}
        Ok(Err(_)) => panic!("the driver ended before: {what}"),
        Err(_) => panic!("never: {what}: {:?}", *running.reports.borrow()),
    }
}

/// How many seeds are tried: as many as `POLLUX_SEEDS` says.
pub(super) fn seeds() -> u64 {
    told("POLLUX_SEEDS").unwrap_or(100)
}

pub(super) fn told(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The first `count` seeds, or the one that `POLLUX_SEED` names.
pub(super) fn chosen(count: u64) -> std::ops::Range<u64> {
    match told("POLLUX_SEED") {
        Some(seed) => seed..seed + 1,
        None => 1..count + 1,
    }
}

/// Tries the first `count` seeds; says which one failed, and what happened in all of them.
pub(super) fn try_seeds(count: u64, life: impl Fn(u64) -> Seen) -> Seen {
    let mut all = Seen::default();
    for seed in chosen(count) {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| life(seed)));
        match outcome {
            Ok(seen) => all.merge(&seen),
            Err(_) => panic!("seed {seed} failed; POLLUX_SEED={seed} repeats it"),
        }
    }
    println!("{} seeds: {:?}", chosen(count).count(), all.0);
    all
}

pub(super) fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime")
}
