//! A relationship, seen from outside its owner: measured, judged, told of.
//!
//! ```text
//!   owner --View-----------.
//!   driver --LinkReport----+--> Observed --> measures, health --> the API
//!   receiver --Receipt-----'        |--> events
//!                                   '--> files, every few seconds
//! ```
//!
//! Nothing waits for it: what it looks at is published anyway, and a report that it did not see is
//! in the next one's counters.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use api::{HealthMessage, Progress};
use jiff::{SignedDuration, Timestamp};
use model::{Bytes, Health, Mode, Problem, ReplicationState, VmId};
use replica::report::{LinkReport, Verification};
use replica::source::Position;
use replica::standing::Role;
use replica::wire::Filling;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::handle::View;
use super::relation::Relation;
use super::{succession, verification};
use crate::certificates;
use crate::event::notice::{Facts, Notices, Related, Verified};
use crate::event::{Draft, Events};
use crate::health::{self, Look, Onset};
use crate::host::Host;
use crate::measure::file::Files;
use crate::measure::pace::Pace;
use crate::measure::{Measured, Monitoring, Receipt, Tally, last_of};
use crate::twin::Store;

/// How often it looks when nothing happens, and writes what survives `kill -9`.
const TICK: Duration = Duration::from_secs(10);
/// How long what is known of certificates counts.
const CERTIFICATES: SignedDuration = SignedDuration::from_mins(1);
/// How often it writes what survives a power cut.
const DURABLE: SignedDuration = SignedDuration::from_mins(5);

/// Measures and health of the relationship of one VM, if it has one.
#[derive(Debug)]
pub(crate) struct Observed {
    host: Arc<Host>,
    files: Files,
    monitoring: Monitoring,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    measured: Option<Measured>,
    /// The driver's report that is counted, and how far.
    report: Option<watch::Receiver<LinkReport>>,
    counted: Tally,
    onset: Onset,
    pace: Pace,
    notices: Notices,
    /// What is to be known of certificates, and when that was looked at.
    certificates: Option<(Timestamp, Vec<Problem>)>,
    /// How often it was written.
    serial: u64,
    /// What was written last.
    written: Option<Measured>,
    /// When it was written durably, and as what number.
    durable: Option<(Timestamp, u64)>,
}

/// How a relationship is at one time.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) mode: Mode,
    pub(crate) state: ReplicationState,
    pub(crate) health: Health,
    pub(crate) messages: Vec<HealthMessage>,
    pub(crate) measured: Measured,
    /// How far it is with what it does before points flow, and how many bytes it does in a second.
    pub(crate) copying: Option<Progress>,
    pub(crate) per_second: Option<u64>,
    /// What went wrong and has not been made good.
    pub(crate) error: Option<Problem>,
    /// The last comparison of the replica's newest point with the disks.
    pub(crate) verification: Option<Verification>,
}

impl Observed {
    /// Of the VM `id`; reads what was measured before. Blocking, for a small file.
    pub(crate) fn open(host: &Arc<Host>, id: VmId, view: &View) -> Self {
        let files = Files::new(&view.home.path, &host.layout.run, id);
        let mut inner = Inner::default();
        let relation = view.relation.as_ref();
        if let Some((measured, serial)) = relation.and_then(|relation| files.read(relation.id)) {
            inner.notices = Notices::after(measured.told_state, measured.told_health);
            inner.written = Some(measured.clone());
            inner.measured = Some(measured);
            inner.serial = serial;
        }
        Self {
            host: Arc::clone(host),
            files,
            monitoring: host.settings.monitoring_interval,
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Figures: a panic elsewhere leaves them as good as they were.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what happened, and judges it; none without a relationship.
    pub(crate) fn look(&self, view: &View, now: Timestamp) -> Option<Seen> {
        let inner = &mut *self.lock();
        inner.count(view, self.monitoring, now);
        let relation = view.relation.as_ref()?;
        let measured = inner.measured.clone()?;
        let mode = mode(view);
        let state = state(view, relation, measured.last_cut.is_some());
        let report = view.report.as_ref().map(|report| report.borrow().clone());
        let copying = report
            .as_ref()
            .and_then(|report| copying(view, relation, report));
        let done = copying.as_ref().map(|copying| copying.done.0);
        let per_second = inner.pace.note(now, done);
        let (error, verification) = match report {
            Some(report) => (report.last_error, report.verification),
            None => (None, None),
        };
        let damage = verification.as_ref().filter(|last| last.is_damaged());
        let damage = damage.map(|last| verification::damage(last, &view.home.spec));
        let (away, trouble) = (view.home.place.away(), view.home.place.trouble());
        let certificates = inner.certificates(&self.host, &relation.partner, now);
        let succeeded = succession::succeeded(&view.standing).map(|how| how.to_string());
        let mut messages = health::messages(&Look {
            now,
            vm: view.home.spec.name.as_str(),
            peer: &relation.partner,
            mode,
            state,
            paused: relation.suspended,
            succeeded: succeeded.as_deref(),
            // A replica without a point cannot have taken over: it has its own disks back.
            taken_back: mode == Mode::Replica || (relation.reversed && measured.last_cut.is_none()),
            revocable: view.standing.revocable("").is_ok(),
            error: error.as_ref(),
            away: away.as_ref(),
            trouble: &trouble,
            certificates: &certificates,
            successful: measured.now.successful,
            missed: measured.now.missed,
            since: measured.since,
            enabled: measured.enabled,
            last_success: measured.last_success,
            latency_average_ms: measured.latency_average_ms(),
            unleased: view.unleased,
            damage: damage.as_deref(),
        });
        inner.onset.note(now, &messages);
        inner.onset.date(&mut messages);
        Some(Seen {
            mode,
            state,
            health: health::level(mode, &messages),
            messages,
            measured,
            copying,
            per_second,
            error,
            verification,
        })
    }

    /// What happened since it was asked last.
    fn news(&self, vm: VmId, view: &View, now: Timestamp) -> Vec<Draft> {
        let seen = self.look(view, now);
        let inner = &mut *self.lock();
        // Before the partner agreed there is none.
        let relation = view.relation.as_ref();
        let agreed = relation.filter(|_| view.standing.partner.is_some());
        let succeeded = succession::succeeded(&view.standing).map(|how| how.to_string());
        let related = agreed.zip(seen.as_ref()).map(|(relation, seen)| Related {
            peer: &relation.partner,
            succeeded: succeeded.as_deref(),
            received: seen.mode != Mode::Primary,
            // A driver that has just begun has not looked yet.
            state: Some(seen.state)
                .filter(|state| *state != ReplicationState::ReadyForInitialReplication),
            health: seen.health,
            messages: &seen.messages,
            error: seen.error.as_ref(),
            missed: seen.measured.now.missed,
            verified: seen.verification.as_ref().and_then(|last| {
                last.outcome.as_ref()?;
                Some(Verified {
                    number: last.number,
                    damage: (last.damaged.0 > 0)
                        .then(|| verification::damage(last, &view.home.spec)),
                    repaired: last.repaired,
                })
            }),
        });
        let drafts = inner.notices.notice(
            now,
            &Facts {
                vm,
                name: view.home.spec.name.as_str(),
                relation: related,
            },
        );
        if let Some(measured) = &mut inner.measured {
            (measured.told_state, measured.told_health) = inner.notices.told();
        }
        drafts
    }

    /// A segment was received.
    pub(crate) fn received(&self, now: Timestamp, receipt: Receipt) {
        let inner = &mut *self.lock();
        if let Some(measured) = &mut inner.measured {
            measured.roll(self.monitoring, now);
            measured.received(now, receipt);
        }
    }

    /// A test failover began.
    pub(crate) fn tested(&self, now: Timestamp) {
        if let Some(measured) = &mut self.lock().measured {
            measured.tested(now);
        }
    }

    /// Counters begin anew.
    pub(crate) fn reset(&self, view: &View, now: Timestamp) {
        let inner = &mut *self.lock();
        inner.count(view, self.monitoring, now);
        if let Some(measured) = &mut inner.measured {
            measured.reset(now);
        }
    }

    /// The newest point that the twin holds, if nothing was measured of it.
    fn found(&self, cut: Timestamp) {
        if let Some(measured) = &mut self.lock().measured {
            measured.last_cut = measured.last_cut.or(Some(cut));
            measured.last_success = measured.last_success.or(Some(cut));
        }
    }

    /// Writes what is new; durably from time to time, or because `last` says that nothing comes
    /// after it. Blocking.
    pub(crate) fn write(&self, now: Timestamp, last: bool) {
        let (measured, serial, durably) = {
            let inner = &mut *self.lock();
            let Some(measured) = inner.measured.clone() else {
                if inner.written.take().is_some() {
                    self.files.remove();
                }
                return;
            };
            let new = inner.written.as_ref() != Some(&measured);
            let durably = last
                || inner
                    .durable
                    .is_none_or(|(before, _)| now.duration_since(before).abs() >= DURABLE);
            let synced = inner
                .durable
                .is_some_and(|(_, serial)| serial == inner.serial);
            if !new && (synced || !durably) {
                return;
            }
            inner.serial += 1;
            inner.written = Some(measured.clone());
            if durably {
                inner.durable = Some((now, inner.serial));
            }
            (measured, inner.serial, durably)
        };
        let written = if durably {
            self.files.write_durably(&measured, serial, now)
        } else {
            self.files.write(&measured, serial, now)
        };
        if let Err(error) = written {
            // Figures for people; the next time may do.
            tracing::warn!(%error, "measures cannot be written");
            let inner = &mut *self.lock();
            (inner.written, inner.durable) = (None, None);
        }
    }
}

impl Inner {
    /// What ends soon of what the relationship with `partner` rests on.
    fn certificates(&mut self, host: &Host, partner: &str, now: Timestamp) -> Vec<Problem> {
        let fresh = |at: Timestamp| now.duration_since(at).abs() < CERTIFICATES;
        match &self.certificates {
            Some((at, found)) if fresh(*at) => found.clone(),
            _ => {
                let found = certificates::of(&host.identity, &host.trust, partner, now);
                self.certificates = Some((now, found.clone()));
                found
            }
        }
    }

    /// Brings the counters up to what is published.
    fn count(&mut self, view: &View, monitoring: Monitoring, now: Timestamp) {
        let Some(relation) = &view.relation else {
            self.measured = None;
            self.report = None;
            return;
        };
        let known = self.measured.take();
        let known = known.filter(|measured| measured.relationship == relation.id);
        let mut measured = known.unwrap_or_else(|| Measured::begin(relation.id, monitoring, now));
        measured.roll(monitoring, now);
        let same = match (&self.report, &view.report) {
            (Some(counted), Some(shown)) => counted.same_channel(shown),
            (None, None) => true,
            _ => false,
        };
        // What a driver that ended did last is in its report still.
        self.take(&mut measured);
        if !same {
            self.report = view.report.clone();
            self.counted = Tally::default();
            self.take(&mut measured);
        }
        measured.staged(&view.staged);
        self.measured = Some(measured);
    }

    fn take(&mut self, measured: &mut Measured) {
        let Some(report) = &self.report else { return };
        let report = report.borrow();
        let tally = Tally::of(&report);
        measured.add(&tally.since(&self.counted), last_of(&report));
        self.counted = tally;
    }
}

/// The side that this host is.
pub(crate) fn mode(view: &View) -> Mode {
    match view.standing.role {
        Role::Primary => Mode::Primary,
        Role::Replica | Role::FailedOver => Mode::Replica,
    }
}

/// State of the relationship. `has_points`: the twin, if it is here, has a point.
pub(crate) fn state(view: &View, relation: &Relation, has_points: bool) -> ReplicationState {
    match view.standing.role {
        Role::Primary | Role::FailedOver if view.standing.stood_down.is_some() => {
            ReplicationState::StoodDown
        }
        Role::FailedOver if view.standing.completed => ReplicationState::FailedOver,
        Role::FailedOver => ReplicationState::FailedOverWaitingCompletion,
        Role::Primary if view.standing.prepared => ReplicationState::PreparedForFailover,
        _ if relation.suspended => ReplicationState::Suspended,
        Role::Replica if hindered(view) => ReplicationState::Suspended,
        Role::Primary => {
            let ready = ReplicationState::ReadyForInitialReplication;
            let report = view.report.as_ref();
            report.map_or(ready, |report| report.borrow().state)
        }
        Role::Replica if has_points => ReplicationState::Replicating,
        Role::Replica => ReplicationState::InitialReplicationInProgress,
    }
}

/// Whether something but a person keeps the twin from taking anything in.
fn hindered(view: &View) -> bool {
    let place = &view.home.place;
    place.away().is_some() || place.trouble().full.is_some()
}

/// Observes until the owner has ended.
pub(crate) async fn run(
    vm: VmId,
    mut view: watch::Receiver<View>,
    store: Option<Store>,
    observed: Arc<Observed>,
    events: Arc<Events>,
) {
    let now = view.borrow().clone();
    let first = observed.look(&now, Timestamp::now());
    let unknown = first.is_some_and(|seen| seen.measured.last_cut.is_none());
    let mut unlooked = store.filter(|_| unknown);
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut report: Option<watch::Receiver<LinkReport>> = None;
    loop {
        let now = view.borrow_and_update().clone();
        if now.home.place.away().is_none() {
            if let Some(store) = unlooked.take() {
                find_latest(store, &observed).await;
            }
        }
        follow(&mut report, now.report.as_ref());
        for draft in observed.news(vm, &now, Timestamp::now()) {
            events.record(draft);
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() {
                // The VM was deleted.
                let _ = tokio::task::spawn_blocking(move || observed.files.remove()).await;
                return;
            },
            () = moved(report.as_mut()) => {}
            _ = tick.tick() => {
                let observed = Arc::clone(&observed);
                let written = move || observed.write(Timestamp::now(), false);
                // A panic was logged.
                let _ = tokio::task::spawn_blocking(written).await;
            }
        }
    }
}

/// Takes note of the newest point that the twin holds, of which nothing was measured.
async fn find_latest(store: Store, observed: &Observed) {
    // An error is told to whoever asks for the points.
    let points = tokio::task::spawn_blocking(move || store.points()).await;
    let points = points.ok().and_then(Result::ok);
    if let Some(last) = points.and_then(|mut all| all.pop()) {
        observed.found(last.time);
    }
}

/// Goes over to the report that is `shown` now, and takes it for seen.
fn follow(
    report: &mut Option<watch::Receiver<LinkReport>>,
    shown: Option<&watch::Receiver<LinkReport>>,
) {
    let same = match (report.as_ref(), shown) {
        (Some(followed), Some(shown)) => followed.same_channel(shown),
        _ => false,
    };
    if !same {
        *report = shown.cloned();
    }
    if let Some(report) = report {
        report.mark_unchanged();
    }
}

/// Waits until the driver tells something new, if it does.
async fn moved(report: Option<&mut watch::Receiver<LinkReport>>) {
    let Some(report) = report else {
        return std::future::pending().await;
    };
    // An error means that the driver ended, and the view will say so.
    if report.changed().await.is_err() {
        std::future::pending().await
    }
}

/// How far it is with what it does before points flow.
fn copying(view: &View, relation: &Relation, report: &LinkReport) -> Option<Progress> {
    let comparison = report.comparison.map(|so_far| Progress {
        what: "comparison with the twin".to_owned(),
        done: so_far.done,
        total: so_far.total,
    });
    // Before the initial replication goes on, what came of it may be compared.
    let before = report.filling.as_ref().map(filling).or(comparison);
    before.or_else(|| {
        let position = report.seeding?;
        Some(seeding(view, relation, position))
    })
}

/// How far a twin is filled from a copy.
pub(crate) fn filling(filling: &Filling) -> Progress {
    Progress {
        what: "copying at the replica".to_owned(),
        done: filling.done,
        total: filling.total,
    }
}

/// How far an initial replication is that has come to `position`.
fn seeding(view: &View, relation: &Relation, position: Position) -> Progress {
    let size_of = |id| {
        let mut disks = view.home.spec.disks.iter();
        disks
            .find(|disk| disk.id == id)
            .map_or(0, |disk| disk.size.0)
    };
    let sizes: Vec<u64> = relation.disks.iter().map(|id| size_of(*id)).collect();
    let whole: u64 = sizes.iter().take(position.disk).sum();
    Progress {
        what: "initial replication".to_owned(),
        done: Bytes(whole + position.from),
        total: Bytes(sizes.iter().sum()),
    }
}
