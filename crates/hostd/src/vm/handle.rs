//! A VM as the rest of polluxd holds it: its mailbox, and what there is to see.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use api::{EventKind, Severity};
use jiff::Timestamp;
use model::{
    CheckpointSpec, Code, DiskChoice, DiskId, FenceChoice, Keep, Lineage, PointId, Problem,
    StartUnasked, VmId, VmName, VmSpec, VmState,
};
use replica::report::LinkReport;
use replica::run;
use replica::standing::{self, Override, Role, Standing};
use replica::wire::{Configure, LeaseAnswer, LeaseRequest, PartnerStanding, Reverse};
use tokio::sync::{mpsc, oneshot, watch};

use super::another::Choice;
use super::change::Change;
use super::complete::Completing;
use super::folder::{self, VmFolder};
use super::leasing::{self, Leasing};
use super::merge::Merging;
use super::observe::{self, Observed};
use super::owner::Owner;
use super::relation::{Relation, Terms};
use super::supervisor::{GuestRecord, Supervisor};
use super::turn::Turned;
use crate::event::Draft;
use crate::host::Host;
use crate::measure::StagedSums;
use crate::stores::Place;
use crate::twin::Store;

/// Wishes that wait in a mailbox; whoever sends more waits.
pub(super) const MAILBOX: usize = 32;

/// The answer to a message.
pub(crate) type Answer<T = ()> = oneshot::Sender<Result<T, Problem>>;

/// What is asked of an owner.
#[derive(Debug)]
pub(crate) enum Message {
    /// Run; answered when the guest runs.
    Start {
        /// A person's word that it does not run elsewhere.
        word: Option<Override>,
        answer: Answer,
    },
    /// Shut down; answered when the VM is off.
    Stop { timeout: Duration, answer: Answer },
    /// End the guest; answered when the VM is off.
    Kill { answer: Answer },
    /// Remove the folder and end the owner.
    Delete {
        /// Whether the store of the twin is lost, so that what lies there is left alone.
        lost: bool,
        answer: Answer,
    },
    /// The partner told its lineage.
    Contact {
        theirs: Lineage,
        /// When it opened its current term, if it said so.
        opened: Option<Timestamp>,
        answer: Answer<PartnerStanding>,
    },
    /// The primary of this lineage asks something about a lease.
    Lease {
        theirs: Lineage,
        asked: LeaseRequest,
        answer: Answer<LeaseAnswer>,
    },
    /// Hold to a lease from now on, or to none; answered when that is agreed on.
    Fence { wanted: FenceChoice, answer: Answer },
    /// Whether it starts when the partner gives no answer.
    StartUnasked {
        choice: StartUnasked,
        answer: Answer,
    },
    /// The partner wants to open this lineage.
    StandDown { asked: Lineage, answer: Answer },
    /// The partner runs the VM in this lineage.
    Superseded { lineage: Lineage, answer: Answer },
    /// Replicate to `peer`; answered when it agreed.
    Enable {
        peer: String,
        terms: Terms,
        answer: Answer,
    },
    /// Replicate in another way from now on.
    Set {
        every_s: Option<u32>,
        choice: Option<DiskChoice>,
        keep: Option<Keep>,
        answer: Answer,
    },
    /// Give the initial replication up; answered when the replica has forgotten it.
    Cancel { answer: Answer },
    /// The primary gave it up.
    Cancelled { answer: Answer },
    /// The primary wants its twin to be like this.
    Follow {
        wanted: Box<Configure>,
        answer: Answer,
    },
    /// End the relationship here, and at the partner if it can be reached.
    /// What kept the partner from being told is the answer.
    Disable {
        /// A person's word that the partner, which counts on a lease, is lost.
        word: Option<Override>,
        answer: Answer<Option<Problem>>,
    },
    /// The partner ended the relationship.
    Removed { answer: Answer<Option<Problem>> },
    /// Change its disks; answered when that is in force.
    Change { change: Change, answer: Answer },
    /// The guest let a disk go, later than anybody waited.
    LetGo(DiskId),
    /// Keep all disks as they are for an export; answered when nothing else is done with them.
    ExportBegins { answer: Answer },
    /// An export has ended.
    ExportEnds,
    /// Make this checkpoint, which is to go when the export ends.
    ExportPoint {
        checkpoint: CheckpointSpec,
        answer: Answer,
    },
    /// Something that was put off may be done now.
    GoOn,
    /// What serves the disks cannot be asked.
    DisksLost,
    /// Compare the replica's newest point with the disks, under this number; answered when that is
    /// wanted of what sends.
    Verify { number: u64, answer: Answer },
    /// Nobody waits for that any more.
    VerifyNoMore { number: u64 },
    /// Send or receive nothing, or go on.
    Suspend { suspended: bool, answer: Answer },
    /// Lock it for a planned failover and send its last changes; answered when that is durable.
    PrepareFailover { answer: Answer },
    /// Give it free again.
    CancelFailover { answer: Answer },
    /// Call the failover to this host off; answered when it is the replica again.
    CallOff {
        /// Whether what was written since the failover may go.
        dropping: bool,
        answer: Answer,
    },
    /// Make the failover final; answered when that is durable.
    CompleteFailover { answer: Answer },
    /// Give a twin that began with the disks of this host, and has no point yet, its disks back; answered
    /// with the VM's folder, and the owner ends.
    GiveBack { answer: Answer<PathBuf> },
    /// Start the twin; answered when the guest runs.
    Failover {
        point: PointId,
        /// Whether it was asked for as the newest one: then no newer one is passed over.
        newest: bool,
        /// A person's word that the primary cannot be running.
        word: Option<Override>,
        answer: Answer,
    },
    /// Start a VM that was failed over from another point; answered when the guest runs.
    Another { choice: Choice, answer: Answer },
    /// The partner took over and wants this host to be its replica; answered when it is, and the owner
    /// ends.
    Turn {
        asked: Box<Reverse>,
        answer: Answer<Turned>,
    },
    /// Replicate back to the host from which the VM was failed over; answered when that is the replica.
    Reverse {
        /// Which disks; none: all.
        choice: Option<DiskChoice>,
        answer: Answer,
    },
    /// Make a VM above a point, beside the twin; none: above what this host wrote and never sent. Answered
    /// with its folder.
    Test {
        point: Option<PointId>,
        name: VmName,
        answer: Answer<VmFolder>,
    },
}

/// Where a VM is at home, and what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    /// The folder that holds its standing and its relationship.
    pub(crate) path: PathBuf,
    /// Where its journal lies, of a twin.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) spec: VmSpec,
    /// What can be started; none for a twin that was not failed over.
    pub(crate) machine: Option<VmFolder>,
}

/// What everybody may see of a VM.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) home: Home,
    pub(crate) state: VmState,
    /// Why it is not as it should be.
    pub(crate) trouble: Option<String>,
    pub(crate) guest: Option<GuestRecord>,
    pub(crate) standing: Standing,
    pub(crate) relation: Option<Relation>,
    /// What the driver tells, on the primary while it runs.
    pub(crate) report: Option<watch::Receiver<LinkReport>>,
    /// How far the merge of a checkpoint is, while there is one.
    pub(crate) merge: Option<Merging>,
    /// Grants and promises of leases.
    pub(crate) leasing: leasing::Shared,
    /// Whether the guest is held because its lease is over; at the replica: whether the primary's is.
    pub(crate) unleased: bool,
    /// How far the completion of a failover is, while there is one.
    pub(crate) completing: Option<Completing>,
    /// The longest hold-up of the guest by a cut, in microseconds.
    pub(crate) pause_us: Arc<AtomicU64>,
    /// What was staged, until it is counted.
    pub(crate) staged: Arc<StagedSums>,
}

impl View {
    /// For messages: ``VM `web` ``.
    pub(crate) fn thing(&self) -> String {
        folder::thing(self.home.spec.name.as_str())
    }

    /// The checkpoint that is to go.
    pub(crate) fn merging_checkpoint(&self) -> Option<&CheckpointSpec> {
        let machine = self.home.machine.as_ref()?;
        machine.spec.checkpoints.iter().find(|one| one.merging)
    }

    /// Whether its changes are sent to a twin, so that its disks are served while it is off too.
    pub(crate) fn is_sent(&self) -> bool {
        self.relation.is_some()
            && self.standing.role == Role::Primary
            && self.standing.stood_down.is_none()
    }
}

/// A VM, as the rest of polluxd holds it.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) id: VmId,
    mailbox: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    pub(crate) supervisor: Supervisor,
    /// QEMU serves one console at a time.
    pub(crate) console: Arc<tokio::sync::Mutex<()>>,
    /// Held while a person changes its disks, so that two do it one after the other.
    pub(crate) disks: Arc<tokio::sync::Mutex<()>>,
    /// The journal, of a twin.
    pub(crate) store: Option<Store>,
    /// Measures and health of its relationship.
    pub(crate) observed: Arc<Observed>,
}

impl Vm {
    /// What there is to see now.
    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// What there is to see, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    /// Tells without waiting for an answer.
    pub(crate) async fn tell(&self, message: Message) {
        // Fails only when it was deleted meanwhile.
        let _ = self.mailbox.send(message).await;
    }

    /// Sends a message made of an answer's sender, and waits for the answer.
    pub(crate) async fn ask<T>(
        &self,
        message: impl FnOnce(Answer<T>) -> Message,
    ) -> Result<T, Problem> {
        let (answer, answered) = oneshot::channel();
        let gone = || {
            let reason = "was deleted meanwhile";
            Problem::new(Code::NotFound, self.view.borrow().thing(), reason, "")
        };
        if self.mailbox.send(message(answer)).await.is_err() {
            return Err(gone());
        }
        answered.await.unwrap_or_else(|_closed| Err(gone()))
    }

    /// Reads what is durable, adopts what runs, and starts the owner.
    pub(crate) async fn open(host: Arc<Host>, home: Home) -> Result<Self, Problem> {
        let id = home.spec.id;
        let thing = folder::thing(home.spec.name.as_str());
        let failed = |error: &(dyn std::error::Error + 'static)| Problem::failed(&thing, error);
        let found = Standing::load(&home.path.join(standing::FILE))
            .map_err(|error| failed(&error))?
            .ok_or_else(|| {
                let reason = format!("{} has no {}", home.path.display(), standing::FILE);
                Problem::new(
                    Code::Failed,
                    &thing,
                    reason,
                    "Restore the folder from a backup",
                )
            })?;
        let relation = Relation::read(&home.path)?;
        let next = with_partner(found.clone(), relation.as_ref());
        let standing = host.stamps.take_up(id, &thing, &home.path, &found, next)?;
        if standing.restored != found.restored {
            tell_restored(&host, &home.spec, &standing);
        }
        let supervisor = Supervisor::new(thing.clone(), host.layout.run_of(id));
        // A primary that was failed over to this host lies above a point until that is completed.
        let machine = home.machine.as_ref();
        let within = machine.is_some_and(|machine| machine.path != home.path);
        let store = (standing.role != Role::Primary || within).then(|| {
            let store = Store::new(home.place.clone(), thing, host.flushes.clone());
            let completed = standing.completed && standing.role != Role::Replica;
            let flat = machine.is_some_and(VmFolder::lies_on_files);
            store.after_failover(completed, flat).filled(&home.path)
        });
        let (mailbox, mail) = mpsc::channel(MAILBOX);
        let (seen, view) = watch::channel(View {
            home,
            state: VmState::Off,
            trouble: None,
            guest: None,
            standing,
            relation,
            report: None,
            merge: None,
            leasing: Arc::new(Leasing::begin(host.clock.now())),
            unleased: false,
            completing: None,
            pause_us: Arc::default(),
            staged: Arc::default(),
        });
        let observed = Observed::open(&host, id, &view.borrow());
        let events = Arc::clone(&host.events);
        Owner::begin(
            host,
            id,
            supervisor.clone(),
            seen,
            mailbox.clone(),
            mail,
            store.clone(),
        )
        .await;
        let vm = Self {
            id,
            mailbox,
            view,
            supervisor,
            console: Arc::default(),
            disks: Arc::default(),
            store,
            observed: Arc::new(observed),
        };
        let observing = observe::run(
            id,
            vm.watch(),
            vm.store.clone(),
            Arc::clone(&vm.observed),
            events,
        );
        tokio::spawn(observing);
        Ok(vm)
    }
}

/// Whoever has a relationship asks its partner before it starts, also if polluxd was killed before
/// that was written down: the partner may have agreed, and have every point since.
fn with_partner(mut standing: Standing, relation: Option<&Relation>) -> Standing {
    if standing.partner.is_none() {
        standing.partner = relation.map(|relation| relation.partner.clone());
    }
    standing
}

/// The folder of a VM was found to be another one than was stored last.
fn tell_restored(host: &Host, spec: &VmSpec, standing: &Standing) {
    let name = spec.name.as_str();
    let Some(problem) = run::restored(&folder::thing(name), standing) else {
        return;
    };
    tracing::warn!(vm = %spec.id, %problem, "its folder was restored");
    let draft = Draft {
        way_out: problem.way_out,
        ..Draft::new(EventKind::Restored, Severity::Warning, name, problem.reason)
    };
    host.events.record(draft.about(spec.id));
}

#[cfg(test)]
mod tests {
    use model::{RelationshipId, SeedId};
    use replica::run::{Evidence, may_start};

    use super::*;

    #[test]
    fn a_vm_whose_relationship_was_not_finished_asks_its_partner_before_it_starts() {
        let alone = Standing::primary(Lineage::begin("castor"));
        let unchanged = with_partner(alone.clone(), None);
        assert_eq!(unchanged, alone);
        let silent = Evidence::Unreachable("it does not answer".to_owned());
        may_start("VM `web`", &unchanged, &silent).expect("nobody else has it");

        let (id, seed) = (RelationshipId::random(), SeedId::random());
        let relation = Relation::new(id, "pollux", 30, seed, Vec::new());
        let related = with_partner(alone, Some(&relation));
        let problem = may_start("VM `web`", &related, &silent).expect_err("it may run there");
        assert!(problem.reason.contains("pollux"), "{problem}");
    }
}
