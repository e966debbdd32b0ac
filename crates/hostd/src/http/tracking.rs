//! The route of tracking: what the disk server tells, and what of it a person should look at.

use std::sync::Arc;

use api::{Epochs, Finding, FoldedBack, IntentLog, Tracked, TrackedDisk, Tracking};
use axum::Json;
use axum::extract::{Path, State};
use diskd::control::{DiskStatus, EpochStatus, LogStatus, TrackingStatus};
use model::{Bytes, Code, DiskId, DiskSpec, Health, Problem, RelationshipId};
use replica::standing::Role;

use super::Answered;
use crate::host::Host;
use crate::vm::View;
use crate::vm::observe::state;
use crate::vm::relation::Relation;

/// More than this part of the cuts given up is a warning, in percent.
const GIVEN_UP: u64 = 20;
/// Of fewer cuts than this a part says nothing.
const FEW: u64 = 10;

pub(super) async fn show(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Tracking> {
    let vm = host.find(&vm)?;
    let view = vm.view();
    let relation = tracked_for(&view)?;
    let status = vm.supervisor.diskd_status().await.ok_or_else(|| {
        let log = view.home.path.join("diskd.log");
        let way_out = format!(
            "It is started again by itself; if it is not, {} says why",
            log.display()
        );
        let reason = "has no disk server that answers, so nobody can tell";
        Problem::new(Code::Unreachable, view.thing(), reason, way_out)
    })?;
    let specs = view.home.spec.disks.iter();
    let disks = specs.filter(|spec| relation.disks.contains(&spec.id));
    let disks: Vec<Seen> = disks.map(|spec| Seen::of(spec, &status.disks)).collect();
    let findings = findings(relation.id, &disks, &status.epochs);
    Ok(Json(Tracking {
        vm: vm.id,
        name: view.home.spec.name.clone(),
        relationship: relation.id,
        peer: relation.partner.clone(),
        state: state(&view, &relation, true),
        health: worst(&findings),
        findings,
        disks: disks.iter().map(|disk| disk.tell(relation.id)).collect(),
        epochs: epochs(status.epochs),
    }))
}

/// The relationship that the VM is tracked for here.
fn tracked_for(view: &View) -> Result<Relation, Problem> {
    let refuse = |reason: String, way_out: &str| {
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    };
    let Some(relation) = &view.relation else {
        let reason = "is not replicated, so its changes are not tracked".to_owned();
        return refuse(reason, "`pollux replica enable` replicates it");
    };
    let partner = &relation.partner;
    match (view.standing.role, &view.standing.stood_down) {
        (Role::Replica, _) => refuse(
            format!("is received here; its changes are tracked on its primary host, `{partner}`"),
            "Ask there",
        ),
        (Role::FailedOver, _) => refuse(
            "was taken over here and is not replicated, so its changes are not tracked".to_owned(),
            "",
        ),
        (Role::Primary, Some(_)) => refuse(
            format!("was taken over by host `{partner}`, so nothing is written or tracked here"),
            "Ask there",
        ),
        (Role::Primary, None) => Ok(relation.clone()),
    }
}

/// A disk as `vm.toml` has it, and as the disk server tells it if it serves it.
struct Seen {
    slot: u8,
    id: DiskId,
    size: Bytes,
    status: Option<DiskStatus>,
}

impl Seen {
    fn of(spec: &DiskSpec, served: &[DiskStatus]) -> Self {
        Self {
            slot: spec.slot,
            id: spec.id,
            size: spec.size,
            status: served.iter().find(|disk| disk.id == spec.id).cloned(),
        }
    }

    fn tell(&self, relationship: RelationshipId) -> TrackedDisk {
        let status = self.status.as_ref();
        let status = status.and_then(|status| tracking(relationship, status));
        TrackedDisk {
            slot: self.slot,
            id: self.id,
            size: self.size,
            tracked: status.map(tracked),
        }
    }
}

/// What is tracked of a disk for this relationship; an earlier one's does not count.
fn tracking(relationship: RelationshipId, disk: &DiskStatus) -> Option<&TrackingStatus> {
    let tracking = disk.tracking.as_ref();
    tracking.filter(|tracking| tracking.relationship == relationship)
}

fn tracked(status: &TrackingStatus) -> Tracked {
    Tracked {
        marked: status.marked,
        sealed: status.sealed,
        unconfirmed: status.unconfirmed,
        suspect: status.suspect,
        armed: status.armed,
        log: match &status.log {
            LogStatus::Kept => IntentLog::Kept,
            LogStatus::Lost { why } => IntentLog::Lost { why: why.clone() },
        },
        commits: status.commits,
        sweeps: status.sweeps,
    }
}

fn epochs(status: EpochStatus) -> Epochs {
    Epochs {
        cuts: status.cuts,
        abandoned: status.abandoned,
        folded_back: status.folded_back,
        last_fold_back: status.last_fold_back.map(|last| FoldedBack {
            why: last.why,
            time: last.time,
        }),
        pause_last_us: status.pauses.last_us,
        pause_longest_us: status.pauses.longest_us,
        pause_p50_us: status.pauses.p50_us,
        pause_p99_us: status.pauses.p99_us,
        copied: status.copied,
    }
}

fn worst(findings: &[Finding]) -> Health {
    let all = findings.iter().map(|finding| finding.health);
    all.max().unwrap_or(Health::Normal)
}

/// What a person should know.
fn findings(relationship: RelationshipId, disks: &[Seen], epochs: &EpochStatus) -> Vec<Finding> {
    let mut all = Vec::new();
    for disk in disks {
        let of_disk = disk_findings(relationship, disk.status.as_ref());
        all.extend(of_disk.into_iter().map(|(health, what, way_out)| Finding {
            health,
            disk: Some(disk.slot),
            what,
            way_out: way_out.to_owned(),
        }));
    }
    let often = |times: u64| {
        let all = epochs.cuts.saturating_add(epochs.abandoned);
        all >= FEW && times.saturating_mul(100) > all.saturating_mul(GIVEN_UP)
    };
    let mut of_vm = |what: String, way_out: &str| {
        all.push(Finding {
            health: Health::Warning,
            disk: None,
            what,
            way_out: way_out.to_owned(),
        });
    };
    if often(epochs.abandoned) {
        of_vm(
            format!(
                "{} cuts were given up because a disk did not stop issuing writes in time",
                epochs.abandoned
            ),
            "The host is short of processors, or its storage stalls; points come late until that \
             is better",
        );
    }
    if often(epochs.folded_back) {
        let why = epochs.last_fold_back.as_ref();
        let why = why.map_or_else(String::new, |last| format!("; the last time: {}", last.why));
        of_vm(
            format!("{} points were not made in time{why}", epochs.folded_back),
            "Make room for the outbox in the VM's folder, choose a longer time between points, or \
             raise `copy_budget` in host.toml",
        );
    }
    all
}

fn disk_findings(
    relationship: RelationshipId,
    disk: Option<&DiskStatus>,
) -> Vec<(Health, String, &'static str)> {
    let Some(disk) = disk else {
        let what = "is not served, so nothing of it is known".to_owned();
        let way_out = "`pollux vm upgrade` opens the disks of the VM anew";
        return vec![(Health::Critical, what, way_out)];
    };
    let mut found = Vec::new();
    if disk.flush_failed {
        found.push((
            Health::Critical,
            "could not be made durable, and takes no more writes; all of it will be compared with \
             the twin"
                .to_owned(),
            "Mend its storage, then end the VM with `pollux vm kill` and start it again",
        ));
    }
    if disk.replaced {
        found.push((
            Health::Critical,
            "has another file, or none, in the place of the one that is open; what is written goes \
             to the one that has no name any more"
                .to_owned(),
            "End the VM with `pollux vm stop` if it runs; its next start opens the file that is \
             there then",
        ));
    }
    let Some(tracking) = tracking(relationship, disk) else {
        let what = "is not tracked yet".to_owned();
        let way_out = "That begins by itself; `pollux replica status` tells what it waits for";
        found.push((Health::Warning, what, way_out));
        return found;
    };
    if tracking.suspect.0 > 0 {
        found.push((
            Health::Warning,
            format!(
                "has {} of which nobody can tell whether they differ from the twin",
                tracking.suspect
            ),
            "They are compared by themselves as soon as the twin can be reached; no point is made \
             until then",
        ));
    }
    if let LogStatus::Lost { why } = &tracking.log {
        found.push((
            Health::Warning,
            format!("has no write-intent log, so all of it is compared after a power cut: {why}"),
            "Remove the cause, then `pollux vm upgrade` opens the disks anew with a log",
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(relationship: RelationshipId) -> DiskStatus {
        DiskStatus {
            id: DiskId::random(),
            size: Bytes(1 << 30),
            connected: true,
            waiting_for_room: 0,
            overlays: Vec::new(),
            dirty: Bytes(4096),
            reads: 0,
            writes: 0,
            flushes: 0,
            flush_failed: false,
            replaced: false,
            tracking: Some(TrackingStatus {
                relationship,
                marked: Bytes(4096),
                sealed: Bytes(0),
                unconfirmed: Bytes(1 << 20),
                suspect: Bytes(0),
                armed: Bytes(2 << 20),
                log: LogStatus::Kept,
                commits: 3,
                sweeps: 1,
            }),
        }
    }

    fn seen(status: Option<DiskStatus>) -> Seen {
        Seen {
            slot: 2,
            id: DiskId::random(),
            size: Bytes(1 << 30),
            status,
        }
    }

    fn found(relationship: RelationshipId, disk: DiskStatus, epochs: &EpochStatus) -> Vec<Finding> {
        findings(relationship, &[seen(Some(disk))], epochs)
    }

    #[test]
    fn a_disk_whose_changes_wait_is_as_it_should_be() {
        let relationship = RelationshipId::random();
        let epochs = EpochStatus {
            cuts: 100,
            abandoned: 20,
            folded_back: 24,
            ..EpochStatus::default()
        };
        let all = found(relationship, disk(relationship), &epochs);
        assert_eq!(all, []);
        assert_eq!(worst(&all), Health::Normal);
    }

    #[test]
    fn what_a_power_cut_would_cost_or_did_cost_is_a_warning_with_its_way_out() {
        let relationship = RelationshipId::random();
        let mut one = disk(relationship);
        if let Some(tracking) = &mut one.tracking {
            tracking.suspect = Bytes(64 << 20);
            tracking.log = LogStatus::Lost {
                why: "no space left".to_owned(),
            };
        }
        let all = found(relationship, one, &EpochStatus::default());
        assert_eq!(worst(&all), Health::Warning);
        let [suspect, log] = &all[..] else {
            panic!("{all:?}");
        };
        assert_eq!((suspect.disk, log.disk), (Some(2), Some(2)));
        assert!(suspect.what.contains("64 MiB"), "{suspect:?}");
        assert!(log.what.contains("no space left"), "{log:?}");
        assert!(all.iter().all(|finding| !finding.way_out.is_empty()));
    }

    #[test]
    fn a_failed_flush_and_a_disk_that_nobody_serves_are_critical() {
        let relationship = RelationshipId::random();
        let failed = DiskStatus {
            flush_failed: true,
            ..disk(relationship)
        };
        let all = found(relationship, failed, &EpochStatus::default());
        assert_eq!(worst(&all), Health::Critical);
        let all = findings(relationship, &[seen(None)], &EpochStatus::default());
        assert_eq!(worst(&all), Health::Critical);
    }

    #[test]
    fn marks_of_another_relationship_do_not_count() {
        let relationship = RelationshipId::random();
        for other in [
            disk(RelationshipId::random()),
            DiskStatus {
                tracking: None,
                ..disk(relationship)
            },
        ] {
            assert!(tracking(relationship, &other).is_none());
            let all = found(relationship, other, &EpochStatus::default());
            assert!(all[0].what.contains("not tracked yet"), "{all:?}");
        }
    }

    #[test]
    fn more_than_a_fifth_of_the_cuts_given_up_is_a_warning_and_few_say_nothing() {
        let relationship = RelationshipId::random();
        let mut epochs = EpochStatus {
            cuts: 79,
            abandoned: 21,
            ..EpochStatus::default()
        };
        let all = found(relationship, disk(relationship), &epochs);
        assert!(all[0].what.contains("21 cuts"), "{all:?}");
        epochs = EpochStatus {
            cuts: 50,
            folded_back: 11,
            last_fold_back: Some(diskd::control::FoldedBack {
                why: "the outbox is full".to_owned(),
                time: jiff::Timestamp::UNIX_EPOCH,
            }),
            ..EpochStatus::default()
        };
        let all = found(relationship, disk(relationship), &epochs);
        assert!(all[0].what.contains("the outbox is full"), "{all:?}");
        assert!(all[0].way_out.contains("copy_budget"), "{all:?}");
        epochs.cuts = 9;
        assert_eq!(found(relationship, disk(relationship), &epochs), []);
    }
}
