//! The owner's part in the guest that runs: found, watched, in doubt, gone.
//!
//! ```text
//!   polluxd starts --> looks --+--> none: off
//!                              +--> runs: adopted, watched --> gone
//!                              +--> no answer: in doubt
//!   watched, settling -------------- no answer: in doubt --> looks until there is one
//! ```
//!
//! A guest in doubt counts as running: the VM is not started, and does not stand down. Only a
//! supervisor that answers, or that is known to be dead, ends the doubt.

use std::time::Duration;

use model::{Problem, VmState};
use qemu::Qmp;
use tokio::sync::{broadcast, mpsc};
use tokio::time::sleep;
use vmd::control::{Lease, Status};

use super::ended::describe;
use super::folder::VmFolder;
use super::launch::Guest;
use super::owner::{Happening, Owner, refuse};
use super::room;
use super::state::{self, Event};
use super::supervisor::{GuestRecord, Supervisor};

/// How long a QEMU that was found has to answer.
const ADOPT_LIMIT: Duration = Duration::from_secs(10);
/// Nothing tells when a supervisor answers again, so it is asked this often.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A guest that somebody left running.
#[derive(Debug)]
pub(super) struct Found {
    guest: Guest,
    running: bool,
    /// Why it does not run.
    why: Why,
    /// How long vmd lets it run.
    lease: Lease,
    trouble: Option<String>,
}

/// Why the processors of a guest do not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Why {
    /// Somebody held them still.
    Held,
    /// It has no lease.
    Unleased,
    /// A disk failed.
    Fault,
    /// These disks have no room.
    NoRoom(Vec<u8>),
}

/// Looks for a guest; none only when there can be none. `known` is the one that ran last.
async fn find(
    supervisor: &Supervisor,
    machine: Option<&VmFolder>,
    known: Option<Guest>,
) -> Result<Option<Found>, Problem> {
    let status = supervisor.look().await?;
    let Some((pid, status)) = status.and_then(|status| Some((status.guest?, status))) else {
        return Ok(None);
    };
    let mut trouble = None;
    let guest = match known.filter(|guest| guest.record.pid == pid && guest.qmp.is_some()) {
        Some(guest) => guest,
        None => {
            let record = supervisor.recorded(pid).unwrap_or(GuestRecord {
                pid,
                started: jiff::Timestamp::now(),
                accelerator: api::Accelerator::Tcg,
            });
            let mut qmp = None;
            // One that is stopped answers nothing.
            if let Some(machine) = machine.filter(|_| !status.frozen) {
                let paths = supervisor.qemu_paths(machine);
                match Qmp::connect(&paths.qmp, ADOPT_LIMIT).await {
                    Ok(connected) => qmp = Some(connected),
                    Err(error) => trouble = Some(format!("its QEMU does not answer: {error}")),
                }
            }
            Guest { record, qmp }
        }
    };
    let mut why = match status.lease {
        Lease::Held => Why::Unleased,
        Lease::None | Lease::Until { .. } => Why::Held,
    };
    let running = match &guest.qmp {
        _ if status.frozen => {
            why = Why::Unleased;
            false
        }
        Some(qmp) => match qmp.query_status().await {
            Ok(status) => {
                if status.status == "io-error" {
                    why = fault(qmp).await;
                } else if let Some(recorded) = room::recorded(supervisor, pid) {
                    why = recorded;
                }
                status.running
            }
            Err(_) => false,
        },
        None => true,
    };
    Ok(Some(Found {
        guest,
        running,
        why,
        lease: status.lease,
        trouble,
    }))
}

impl Owner {
    /// Finds what runs of this VM already.
    pub(super) async fn adopt(&mut self) {
        let machine = self.view().home.machine;
        match find(&self.supervisor, machine.as_ref(), None).await {
            Ok(None) => {}
            Ok(Some(found)) => self.take_in(found).await,
            Err(problem) => self.doubt(&problem),
        }
    }

    /// Nobody can tell whether the guest runs, so it counts as running; looks until one can.
    pub(super) fn doubt(&mut self, problem: &Problem) {
        tracing::error!(vm = %self.id, %problem, "counts as running");
        self.show(|view| {
            let reason = &problem.reason;
            view.trouble = Some(format!("unknown, counts as running: {reason}"));
        });
        if std::mem::replace(&mut self.doubt, true) {
            return;
        }
        let view = self.view();
        self.host.ledger.adopt(self.id, view.home.spec.memory);
        if view.state == VmState::Off {
            self.enter(VmState::Starting);
        }
        if self.state() == VmState::Starting {
            self.enter(VmState::Running);
        }
        self.look_for_guest();
    }

    /// The doubt is over.
    pub(super) async fn found(&mut self, found: Option<Found>) {
        self.doubt = false;
        match found {
            Some(found) => {
                self.take_in(found).await;
                self.converge();
            }
            None => self.no_guest(Some("ended while its supervisor did not answer".to_owned())),
        }
        if self.guest.is_some() && !self.killing.is_empty() {
            self.end_guest();
        }
    }

    async fn take_in(&mut self, found: Found) {
        let Found {
            guest,
            running,
            why,
            lease,
            trouble,
        } = found;
        self.found_lease(lease);
        let spec = self.view().home.spec;
        self.host.ledger.adopt(self.id, spec.memory);
        self.show(|view| view.trouble = trouble);
        if self.state() == VmState::Off {
            self.enter(VmState::Starting);
        }
        match (self.state(), running) {
            (VmState::Stopping, true) => {}
            (_, true) => self.enter(VmState::Running),
            (_, false) => self.enter(VmState::Paused),
        }
        let pid = guest.record.pid;
        tracing::info!(vm = %self.id, pid, running, "adopted");
        self.watch(guest);
        if !running {
            self.held(pid, why).await;
        }
        if self.view().standing.stood_down.is_some() {
            // What failed was logged, and is tried again at the next contact.
            let _ = self.gate().await;
        }
        self.apply_lease().await;
    }

    /// Looks for the guest again, of which only the process is known.
    pub(super) fn look_for_guest(&self) {
        let (supervisor, known) = (self.supervisor.clone(), self.guest.clone());
        let machine = self.view().home.machine;
        self.spawn(async move {
            loop {
                if let Ok(found) = find(&supervisor, machine.as_ref(), known.clone()).await {
                    return Happening::Found(found);
                }
                sleep(LOOK_AGAIN).await;
            }
        });
    }

    /// From now on the guest's end is noticed, and whether its processors run.
    pub(super) fn watch(&mut self, guest: Guest) {
        let pid = guest.record.pid;
        if let Some(qmp) = guest.qmp.clone() {
            tokio::spawn(follow(qmp, pid, self.happen.clone()));
            let supervisor = self.supervisor.clone();
            tokio::spawn(room::watch(supervisor, pid, self.happen.clone()));
        }
        self.show(|view| view.guest = Some(guest.record.clone()));
        self.guest = Some(guest);
        let supervisor = self.supervisor.clone();
        self.spawn(async move {
            let status = supervisor.wait_guest(pid).await;
            Happening::Gone { pid, status }
        });
    }

    fn is_watched(&self, pid: u32) -> bool {
        self.guest
            .as_ref()
            .is_some_and(|guest| guest.record.pid == pid)
    }

    /// The wait for the guest's end is over.
    pub(super) fn gone(&mut self, pid: u32, status: Result<Status, Problem>) {
        if !self.is_watched(pid) {
            return;
        }
        match status {
            Ok(status) => self.no_guest(describe(status.last_exit)),
            // Perhaps only the connection broke.
            Err(problem) => self.doubt(&problem),
        }
    }

    fn no_guest(&mut self, trouble: Option<String>) {
        let trouble = trouble.filter(|_| self.killing.is_empty());
        if let Some(trouble) = &trouble {
            tracing::warn!(vm = %self.id, trouble, "the guest is gone");
        }
        self.guest = None;
        self.forget_room();
        self.forget_hold();
        self.deadline = None;
        self.show(|view| {
            view.guest = None;
            view.trouble = trouble;
        });
        self.host.ledger.release(self.id);
        self.settle();
    }

    /// The guest's processors were stopped or go on, by whomever.
    pub(super) async fn processors(&mut self, pid: u32, running: bool, why: Why) {
        if !self.is_watched(pid) {
            return;
        }
        let event = if running { Event::GoesOn } else { Event::Held };
        let next = state::after(self.state(), event);
        if next == self.state() {
            return;
        }
        self.enter(next);
        if running {
            self.forget_room();
            self.show(|view| view.trouble = None);
        } else {
            self.held(pid, why).await;
        }
        if running && self.view().standing.stood_down.is_some() {
            // What failed was logged, and is tried again at the next contact.
            let _ = self.gate().await;
        }
        if running {
            // Whoever let it go on does not know of its lease.
            self.apply_lease().await;
        }
    }

    /// Says why the guest does not run, and looks for room if that is what it lacks.
    async fn held(&mut self, pid: u32, why: Why) {
        let text = match why {
            Why::Unleased => return self.found_unleased(),
            // It was told already.
            Why::Held if self.lease.is_ours() || self.view().standing.stood_down.is_some() => {
                return;
            }
            // It was told already.
            Why::Held if self.waiting.is_some() => return,
            Why::Held => "paused, and not by Pollux",
            Why::Fault => "paused: I/O error on its disk",
            Why::NoRoom(slots) => {
                self.held_for_room = true;
                return self.no_room(pid, slots).await;
            }
        };
        self.show(|view| view.trouble = Some(text.to_owned()));
    }

    /// Ends the guest, whatever it does; the watch tells when it is gone.
    pub(super) fn end_guest(&self) {
        let supervisor = self.supervisor.clone();
        self.spawn(async move { Happening::Killed(supervisor.kill_guest().await.map(drop)) });
    }

    pub(super) fn killed(&mut self, done: Result<(), Problem>) {
        let Err(problem) = done else { return };
        tracing::error!(vm = %self.id, %problem, "cannot kill the guest");
        for answer in self.killing.drain(..) {
            refuse(answer, problem.clone());
        }
    }
}

/// Why a guest is held that QEMU held by itself.
async fn fault(qmp: &Qmp) -> Why {
    match qmp.without_room().await {
        Ok(slots) if !slots.is_empty() => Why::NoRoom(slots),
        _ => Why::Fault,
    }
}

/// Tells when the processors of the guest stop and go on, until QEMU goes.
async fn follow(qmp: Qmp, pid: u32, happen: mpsc::Sender<Happening>) {
    let mut events = qmp.events();
    let mut told = match qmp.query_status().await {
        Ok(status) if status.status == "io-error" => Some((false, fault(&qmp).await)),
        Ok(status) if status.status == "paused" => Some((false, Why::Held)),
        _ => None,
    };
    // The connection ends with the last who holds it.
    drop(qmp);
    let mut why = Why::Held;
    loop {
        if let Some((running, why)) = told.take() {
            let happening = Happening::Processors { pid, running, why };
            if happen.send(happening).await.is_err() {
                return;
            }
        }
        let event = match events.recv().await {
            Ok(event) => event,
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        match event.name.as_str() {
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                why = match (event.data["nospace"].as_bool(), why) {
                    // One disk that fails is the worse of the two.
                    (_, Why::Fault) | (Some(false) | None, _) => Why::Fault,
                    (Some(true), Why::NoRoom(slots)) => Why::NoRoom(slots),
                    (Some(true), Why::Held | Why::Unleased) => {
                        let node = event.data["node-name"].as_str().unwrap_or_default();
                        let slot = node.strip_prefix("disk").and_then(|n| n.parse().ok());
                        Why::NoRoom(slot.into_iter().collect())
                    }
                };
            }
            "STOP" => told = Some((false, std::mem::replace(&mut why, Why::Held))),
            "RESUME" => told = Some((true, Why::Held)),
            // It ends: its processors stop for good.
            "SHUTDOWN" => return,
            _ => {}
        }
    }
}
