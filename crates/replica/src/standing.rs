//! How a VM stands on this host: its role, its lineage, and why it may run here.
//!
//! One durable file in the VM's folder. The right to run passes between two hosts like this:
//!
//! ```text
//!   host-b (replica)                              host-a (primary)
//!   prepare: names a new term, durable
//!        ---- stand-down {lineage + new term} --->  not running: stood_down = it, durable
//!        <--- stood down for that term -----------
//!   take_over: lineage + new term, durable
//!   start                                           start: refused, stood down
//! ```
//!
//! Another point takes the place of the one that a failover is from by a term that takes the place of the
//! one before: both grow from the history in which the VM was received, so that they never mix.
//!
//! A failover that is called off is that of a replica again: the term is given up, and the history goes on
//! in which the VM was received. The host that stood down for that term asks for the right to run as a
//! replica does, and goes on above its own disks:
//!
//! ```text
//!   host-b (failed over, off)                     host-a (stood down)
//!   call_off: the replica, durable
//!        <--- stand-down {lineage + new term} ----  prepare_return: names a new term, durable
//!   stood_down = it, durable
//!        ---- stood down for that term ---------->  take_over: lineage + new term, durable
//! ```
//!
//! The answer is worth something only while the attempt it names is open: a host that stands
//! down itself drops its attempt, so a late answer finds nothing to open. An override takes
//! the place of the answer; its term then meets the partner's at first contact, and the lower
//! one is gated. All transitions are pure functions from a standing to the next one; the caller
//! stores the result before it acts on it.
//!
//! Those after a failover lie beside this: [`not_final`], [`former`]; so do those of a [`lease`].
//!
//! What survives a crash: everything here; nothing else is needed to decide. Whether the file is the one
//! that was stored last the host tells by its [`Stamp`], of which it keeps a copy elsewhere.

mod former;
mod lease;
mod not_final;

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use model::{Bytes, Code, Lineage, PointId, Problem, StampId, StartUnasked, Term, TermId};
use serde::{Deserialize, Serialize};

use crate::lease::Fence;
use crate::run::{Evidence, Rank, rank};
use crate::wire::PartnerStanding;

/// Name of the file in a VM's folder.
pub const FILE: &str = "standing.toml";

const VERSION: u32 = 1;
/// Four of the longest lineages that a partner can tell fit; the rest is small.
const MAX_FILE: u64 = 16 << 20;
const MAX_STATEMENT: usize = 1000;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_first(agreement: &u64) -> bool {
    *agreement == 0
}

/// What this host is for a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The VM belongs here.
    Primary,
    /// It is received here and does not run.
    Replica,
    /// It was received here, and this host took over.
    FailedOver,
}

/// In which relationship a former primary becomes the replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relationship {
    /// In one of which nothing was heard here yet.
    New,
    /// In that in which it was the replica before, until it had its disks
    /// [given back](Standing::give_back).
    Same,
}

/// A person's word that the VM does not run elsewhere, or that it may run twice for a while.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// What they stated.
    pub statement: String,
    /// Who, as the API knows them.
    pub by: String,
    /// When.
    pub at: Timestamp,
}

/// Why the VM may be started in the current term without asking the partner again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Warrant {
    /// The partner stood down for the current term, durably.
    StoodDown,
    /// It stood down for a term that the current one took the place of, and may not know of this one.
    StoodDownBefore,
    /// The last recorded override; it ends at first contact.
    Override,
    /// The partner's lease was over when the current term was opened; this host renews it no more.
    Lease,
}

/// How it was on a host that learnt that it was succeeded without having stood down: for people, no
/// decision rests on it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Succession {
    /// When the partner opened its term, by its own clock, if it said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
    /// When the guest was held still here; none if it did not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Timestamp>,
    /// How much was written here and was not at the partner then, if anybody could tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsent: Option<Bytes>,
}

/// Tells one storing of a standing from every other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// Drawn for this storing.
    pub id: StampId,
    /// That of the one before; none if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<StampId>,
}

/// The folder is not the one that this host stored last: it was restored from a backup, or comes from
/// another host. What happened since the standing in it was stored is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restored {
    /// When that was noticed.
    pub noticed: Timestamp,
    /// The host that the VM was shared with when it was stored here last; as far as that is not known, the
    /// one that the folder tells of.
    pub shared_with: String,
}

/// How a VM stands on this host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Standing {
    version: u32,
    /// Of this storing; none in a file of an older Pollux, and in what was not stored yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stamp: Option<Stamp>,
    /// That the folder was restored, until the partner is heard of, or a person gives their word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<Restored>,
    /// Its role.
    pub role: Role,
    /// Name of the host at the other end of the relationship, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<String>,
    /// Why it may be started without asking.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warrant: Option<Warrant>,
    /// The lease that the primary holds to, or that the replica answers for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<Fence>,
    /// Number of what was agreed on last about a lease: that there is one, how long it is, or that
    /// there is none any more. Whatever names an earlier one came late.
    #[serde(default, skip_serializing_if = "is_first")]
    pub agreement: u64,
    /// Whether the VM starts here when the partner gives no answer.
    #[serde(default, skip_serializing_if = "StartUnasked::is_deny")]
    pub start_unasked: StartUnasked,
    /// The path of terms up to the one in which it runs, or is received, here.
    pub lineage: Lineage,
    /// The lineage in which it was received here, until the failover is final: another point of it may
    /// take the place of the one that the failover is from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub received: Option<Lineage>,
    /// The partner's lineage that this host gave way to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_down: Option<Lineage>,
    /// When the current term was opened here, if it was and that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opened: Option<Timestamp>,
    /// How it was when this host learnt that it was succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub succession: Option<Succession>,
    /// Whether everything was sent to the partner, or is being sent, for it to take over as planned: the
    /// VM does not start here until that is cancelled.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub prepared: bool,
    /// Whether the failover is complete: the VM stays on the point that it was started from, and all others
    /// go.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub completed: bool,
    /// The lineage that this host is about to open, or was when it gave up: the partner may know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Lineage>,
    /// Every override, the oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<Override>,
}

/// What a contact changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// The standing from now on; store it if it differs.
    pub standing: Standing,
    /// Whether the guest must be stopped, within a second and before the partner is answered.
    pub gate: bool,
}

/// The file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StandingError {
    /// The operating system refused.
    #[error("cannot access {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not what this build writes.
    #[error("{} is not a standing", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Names line and key.
        source: toml::de::Error,
    },
    /// Longer than any honest one.
    #[error("{} has {len} bytes, more than {MAX_FILE}", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// Written by a newer Pollux.
    #[error("{} has version {version}; this build reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl Standing {
    /// Of a new VM: the primary, without a partner.
    #[must_use]
    pub fn primary(lineage: Lineage) -> Self {
        Self {
            version: VERSION,
            stamp: None,
            restored: None,
            role: Role::Primary,
            partner: None,
            warrant: None,
            fence: None,
            agreement: 0,
            start_unasked: StartUnasked::Deny,
            lineage,
            received: None,
            stood_down: None,
            opened: None,
            succession: None,
            prepared: false,
            completed: false,
            attempt: None,
            overrides: Vec::new(),
        }
    }

    /// Of a VM that `partner` asked this host to receive.
    #[must_use]
    pub fn replica(partner: &str, lineage: Lineage) -> Self {
        Self {
            role: Role::Replica,
            partner: Some(partner.to_owned()),
            ..Self::primary(lineage)
        }
    }

    /// Reads the file; none if there is none.
    ///
    /// # Errors
    /// [`StandingError`]
    pub fn load(path: &Path) -> Result<Option<Self>, StandingError> {
        let io = |source| StandingError::Io {
            path: path.to_owned(),
            source,
        };
        let len = match std::fs::metadata(path) {
            Ok(meta) => meta.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        if len > MAX_FILE {
            let path = path.to_owned();
            return Err(StandingError::TooLong { path, len });
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let standing: Self = toml::from_str(&text).map_err(|source| StandingError::Syntax {
            path: path.to_owned(),
            source,
        })?;
        if standing.version != VERSION {
            return Err(StandingError::Version {
                path: path.to_owned(),
                version: standing.version,
            });
        }
        Ok(Some(standing))
    }

    /// Writes the file durably, with another [`Stamp`]: what is written.
    ///
    /// # Errors
    /// [`StandingError::Io`]
    pub fn store(&self, path: &Path) -> Result<Self, StandingError> {
        let stored = Self {
            stamp: Some(Stamp {
                id: StampId::random(),
                after: self.stamp.map(|stamp| stamp.id),
            }),
            ..self.clone()
        };
        let text = toml::to_string_pretty(&stored).expect("every field has a TOML form");
        match durable::replace(path, text.as_bytes()) {
            Ok(()) => Ok(stored),
            Err(source) => Err(StandingError::Io {
                path: path.to_owned(),
                source,
            }),
        }
    }

    /// The other host that has to do with the VM, as far as this one knows.
    #[must_use]
    pub fn shared_with(&self) -> Option<&str> {
        let known = self.restored.as_ref();
        let down = self.stood_down.as_ref();
        known
            .map(|restored| restored.shared_with.as_str())
            .or(self.partner.as_deref())
            .or_else(|| down.map(|theirs| theirs.current().opener.as_str()))
    }

    /// The folder is not the one that this host stored last, when the VM was `shared_with` that host:
    /// nothing in it gives a right to run. One that is shared with nobody stays as it is.
    #[must_use]
    pub fn restore(&self, noticed: Timestamp, shared_with: Option<&str>) -> Self {
        let Some(shared_with) = shared_with.or(self.shared_with()) else {
            return self.clone();
        };
        Self {
            warrant: None,
            restored: Some(Restored {
                noticed,
                shared_with: shared_with.to_owned(),
            }),
            ..self.clone()
        }
    }

    /// Why this standing does not say who may run, if its folder was restored. `heard`: the partner told
    /// how the VM stands there.
    #[must_use]
    pub fn doubt(&self, heard: bool) -> Option<&Restored> {
        let partner = self.partner.as_deref();
        // A partner of long ago does not know either.
        let knows = |restored: &Restored| partner == Some(restored.shared_with.as_str());
        let restored = self.restored.as_ref();
        restored.filter(|restored| !(heard && knows(restored)))
    }

    /// Names the term that this host is about to open, growing from `point`.
    ///
    /// # Errors
    /// [`Problem`] when it may simply be started here, or `point` is not of its history.
    pub fn prepare(&self, thing: &str, point: PointId, opener: &str) -> Result<Self, Problem> {
        self.prepare_as(thing, point, opener, TermId::random())
    }

    /// [`prepare`](Self::prepare) with the new term's id, so that a search repeats itself.
    pub(crate) fn prepare_as(
        &self,
        thing: &str,
        point: PointId,
        opener: &str,
        id: TermId,
    ) -> Result<Self, Problem> {
        if self.role != Role::Replica && self.stood_down.is_none() {
            return Err(Problem::new(
                Code::Conflict,
                thing,
                "belongs to this host already",
                format!(
                    "start it with `pollux vm start {}`",
                    crate::run::name(thing)
                ),
            ));
        }
        let attempt = self.grown(thing, &self.lineage, point, opener, id)?;
        Ok(Self {
            attempt: Some(attempt),
            ..self.clone()
        })
    }

    /// Whether this host, which stood down, asks the partner that answers so to stand down itself: it is a
    /// replica, by a failover that it called off, or that did not come about. Another host than the one that
    /// it stood down for knows nothing of that.
    #[must_use]
    pub fn may_return(&self, evidence: &Evidence) -> bool {
        let (Evidence::Says(theirs) | Evidence::Leased(theirs)) = evidence else {
            return false;
        };
        let opener = self.stood_down.as_ref().map(|theirs| theirs.current());
        let for_it = opener.is_some_and(|term| Some(&term.opener) == self.partner.as_ref());
        let gave_way = self.role != Role::Replica && for_it;
        gave_way && theirs.role == Role::Replica && !theirs.runs
    }

    /// Names the term in which this host, which stood down, goes on where it was if its partner, which called
    /// its failover off, stands down for it. `used`: the highest sequence number that this host used.
    ///
    /// # Errors
    /// [`Problem`] when this host did not stand down, or is a replica.
    pub fn prepare_return(&self, thing: &str, used: u64, opener: &str) -> Result<Self, Problem> {
        self.prepare_return_as(thing, used, opener, TermId::random())
    }

    /// [`prepare_return`](Self::prepare_return) with the new term's id.
    pub(crate) fn prepare_return_as(
        &self,
        thing: &str,
        used: u64,
        opener: &str,
        id: TermId,
    ) -> Result<Self, Problem> {
        if self.role == Role::Replica {
            let reason = "is received here, and has nothing of its own to go on from";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
        let none_left = || Problem::new(Code::Invalid, thing, "has no sequence number left", "");
        let point = PointId {
            term: self.lineage.current().id,
            sequence: self.lineage.next_sequence(used).ok_or_else(none_left)?,
        };
        self.prepare_as(thing, point, opener, id)
    }

    /// `history` up to `point`, and from there a new term.
    fn grown(
        &self,
        thing: &str,
        history: &Lineage,
        point: PointId,
        opener: &str,
        id: TermId,
    ) -> Result<Lineage, Problem> {
        let invalid = |reason: &str| Problem::new(Code::Invalid, thing, reason, "");
        let position = history
            .terms()
            .iter()
            .position(|term| term.id == point.term)
            .filter(|_| history.contains(point))
            .ok_or_else(|| {
                let reason = format!("has no point {point} in its history here");
                let name = crate::run::name(thing);
                let way_out = format!(
                    "`pollux failover start {name} --point POINT` takes it over from one of those \
                     that `pollux point list {name}` shows"
                );
                Problem::new(Code::Invalid, thing, reason, way_out)
            })?;
        let mut terms = history.terms()[..=position].to_vec();
        // Above the partner's as well: who takes over knowingly must win at first contact. And above what
        // was attempted before: the partner may have given way to that, and gives way to this then.
        let seen = [&self.stood_down, &self.attempt].into_iter().flatten();
        let number = seen
            .map(|lineage| lineage.current().number)
            .max()
            .unwrap_or(0)
            .max(self.lineage.current().number)
            .checked_add(1)
            .ok_or_else(|| invalid("has no term number left"))?;
        terms.push(Term {
            number,
            id,
            opener: opener.to_owned(),
            parent: Some(point),
        });
        Lineage::try_from(terms).map_err(|e| Problem::failed(thing, &e))
    }

    /// Opens the prepared term. Store the result before QEMU starts. `newest` is the newest point
    /// here, if the takeover is from that one and a person chose no other: no point may come
    /// between the call and the storing.
    ///
    /// # Errors
    /// [`Problem`] when the evidence does not allow it, or a point came since it was prepared.
    pub fn take_over(
        &self,
        thing: &str,
        evidence: &Evidence,
        newest: Option<PointId>,
    ) -> Result<Self, Problem> {
        let attempt = self.attempt.as_ref().ok_or_else(|| {
            let reason = "stood down for its partner since the takeover began";
            let name = crate::run::name(thing);
            let way_out = format!("`pollux failover start {name}` begins it again");
            Problem::new(Code::Conflict, thing, reason, way_out)
        })?;
        let warrant = crate::run::may_take_over(thing, self, attempt.current().id, evidence)?;
        crate::run::may_grow(thing, attempt.current().parent, newest)?;
        let (role, fence) = match self.role {
            // The replica goes on counting on it.
            Role::Primary => (Role::Primary, self.fence),
            Role::Replica | Role::FailedOver => (Role::FailedOver, None),
        };
        let received = match self.role {
            Role::Replica => Some(self.lineage.clone()),
            Role::Primary | Role::FailedOver => self.received.clone(),
        };
        // Who is the replica stands down for a term, and may take over again after that.
        let asks = role == Role::Primary && warrant != Warrant::Override;
        let mut next = Self {
            role,
            received,
            lineage: attempt.clone(),
            warrant: Some(warrant).filter(|_| !asks),
            fence,
            stood_down: None,
            restored: None,
            completed: self.completed && self.role != Role::Replica,
            attempt: None,
            ..self.clone()
        };
        next.record(evidence);
        Ok(next)
    }

    /// Of a VM that was failed over to this host and lies on disks of its own: without a partner it belongs
    /// to this host like any other. Nothing changes otherwise.
    #[must_use]
    pub fn settled(&self) -> Self {
        let alone = self.partner.is_none() && self.stood_down.is_none();
        if self.role == Role::Primary {
            // It is replicated back.
            return Self {
                completed: false,
                ..self.clone()
            };
        }
        if self.role != Role::FailedOver || !self.completed || !alone {
            return self.clone();
        }
        Self {
            role: Role::Primary,
            completed: false,
            ..self.clone()
        }
    }

    /// Opens a term above the one for which this host stood down, on a person's word: the partner
    /// is lost, and with it what it wrote since. The term grows from what this host has, which is
    /// past every number that it used (`used` is the highest). Store the result before QEMU starts.
    ///
    /// # Errors
    /// [`Problem`] when this host did not stand down, or there is no such word.
    pub fn take_back(
        &self,
        thing: &str,
        used: u64,
        opener: &str,
        evidence: &Evidence,
    ) -> Result<Self, Problem> {
        self.take_back_as(thing, used, opener, evidence, TermId::random())
    }

    /// [`take_back`](Self::take_back) with the new term's id.
    pub(crate) fn take_back_as(
        &self,
        thing: &str,
        used: u64,
        opener: &str,
        evidence: &Evidence,
        id: TermId,
    ) -> Result<Self, Problem> {
        let overridden = matches!(evidence, Evidence::Override(_));
        if self.role == Role::Replica || self.stood_down.is_none() || !overridden {
            return self.start(thing, evidence);
        }
        self.prepare_return_as(thing, used, opener, id)?
            .take_over(thing, evidence, None)
    }

    /// The standing with which the VM may be started in its current term. Store the result
    /// before QEMU starts. The caller keeps deciding, starting and
    /// [standing down](Self::stand_down) apart: one owner per VM.
    ///
    /// # Errors
    /// [`Problem`] when the evidence does not allow it.
    pub fn start(&self, thing: &str, evidence: &Evidence) -> Result<Self, Problem> {
        let warrant = crate::run::may_start(thing, self, evidence)?;
        let mut next = Self {
            warrant,
            restored: None,
            ..self.clone()
        };
        next.record(evidence);
        Ok(next)
    }

    fn record(&mut self, evidence: &Evidence) {
        if let Evidence::Override(word) = evidence {
            self.overrides.push(word.clone());
        }
    }

    /// Gives up the right to run in favour of the partner's new term. Store the result before
    /// the partner is answered. `runs`: the guest runs here, or is being started.
    ///
    /// # Errors
    /// [`Problem`] when it runs here, or the partner does not build on what this host has.
    pub fn stand_down(&self, thing: &str, asked: &Lineage, runs: bool) -> Result<Self, Problem> {
        crate::run::may_stand_down(thing, self, asked, runs)?;
        let stood_down = match &self.stood_down {
            Some(known) if rank(known, asked) == Some(Rank::Ours) => known.clone(),
            _ => asked.clone(),
        };
        Ok(Self {
            warrant: None,
            stood_down: Some(stood_down),
            prepared: false,
            attempt: None,
            ..self.clone()
        })
    }

    /// Locks the VM for a planned failover. Store the result before the last changes are sent.
    /// `runs`: the guest runs here, or is being started.
    ///
    /// # Errors
    /// [`Problem`] when it runs, or no partner could take over from here.
    pub fn prepare_failover(&self, thing: &str, runs: bool) -> Result<Self, Problem> {
        let name = crate::run::name(thing);
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if self.role == Role::Replica {
            let way_out = format!("`pollux failover prepare {name}` belongs on its own host");
            return refuse("is received here", way_out);
        }
        if self.partner.is_none() || self.stood_down.is_some() {
            let way_out = format!("`pollux replica enable {name}` makes one");
            return refuse("has no replica that could take over", way_out);
        }
        if runs {
            let way_out = format!("stop it first with `pollux vm stop {name}`");
            return refuse("runs", way_out);
        }
        Ok(Self {
            prepared: true,
            ..self.clone()
        })
    }

    /// Gives it free again.
    ///
    /// # Errors
    /// [`Problem`] when it is not prepared.
    pub fn cancel_failover(&self, thing: &str) -> Result<Self, Problem> {
        if !self.prepared {
            if let Some(theirs) = &self.stood_down {
                return Err(crate::run::taken_over(thing, self.role, theirs));
            }
            let reason = "is not prepared for a planned failover";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
        Ok(Self {
            prepared: false,
            ..self.clone()
        })
    }

    /// Whether the VM starts here when its partner gives no answer.
    ///
    /// # Errors
    /// [`Problem`] when it does not belong here, or holds to a lease.
    pub fn let_start_unasked(&self, thing: &str, choice: StartUnasked) -> Result<Self, Problem> {
        let name = crate::run::name(thing);
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if choice == StartUnasked::Allow && self.role != Role::Primary {
            let way_out = format!("`pollux replica set {name}` belongs on its own host");
            return refuse("is received here", way_out);
        }
        if choice == StartUnasked::Allow && self.fence.is_some() {
            let reason = "holds to a lease, which needs an answer of its replica";
            let way_out = format!("choose: `pollux replica set {name} --fence none`");
            return refuse(reason, way_out);
        }
        Ok(Self {
            start_unasked: choice,
            ..self.clone()
        })
    }

    /// The relationship ends. `told`: the partner was in contact, so that what it is is known
    /// ([`meet`](Self::meet)), ended it first, durably, and counts on no lease.
    ///
    /// A VM that was taken over elsewhere stays stood down, and a replica a replica: ending a
    /// relationship is no word about who runs it.
    ///
    /// # Errors
    /// [`Problem`] when the partner still counts on a lease, and no person takes the responsibility.
    pub fn end(&self, thing: &str, told: bool, word: Option<&Override>) -> Result<Self, Problem> {
        if self.role == Role::Primary && self.fence.is_some() && !told && word.is_none() {
            let partner = self.partner.as_deref().unwrap_or_default();
            let reason = format!(
                "holds to a lease, and host `{partner}`, which does not answer, takes over once it \
                 is over"
            );
            let name = crate::run::name(thing);
            let way_out = format!(
                "try `pollux replica remove {name}` again when it answers; if you know that it \
                 is lost, say so with --force --because STATEMENT"
            );
            return Err(Problem::new(Code::Unreachable, thing, reason, way_out));
        }
        let mut next = Self {
            fence: None,
            prepared: false,
            ..self.clone()
        };
        if self.role != Role::Replica {
            next.partner = None;
            next.warrant = None;
            next.start_unasked = StartUnasked::Deny;
        }
        next.overrides.extend(word.cloned());
        Ok(next)
    }

    /// Takes the partner's lineage into account. `stood_down` is the lineage for which it says
    /// that it stood down.
    ///
    /// # Errors
    /// [`Problem`] when the two lineages have nothing in common.
    pub fn meet(
        &self,
        thing: &str,
        theirs: &Lineage,
        stood_down: Option<&Lineage>,
    ) -> Result<Met, Problem> {
        let unrelated = || {
            let reason = "has another history on the partner: the two are not the same VM";
            Problem::new(Code::Conflict, thing, reason, crate::run::anew(thing))
        };
        let mut next = Self {
            restored: self.doubt(true).cloned(),
            ..self.clone()
        };
        let mut gate = false;
        match rank(&self.lineage, theirs).ok_or_else(unrelated)? {
            Rank::Theirs => {
                next.attempt = None;
                next.warrant = None;
                next.prepared = false;
                if self.role == Role::Replica {
                    // The primary opened a new term; its segments will follow.
                    if theirs.descends_from(&self.lineage) {
                        next.lineage = theirs.clone();
                        next.stood_down = None;
                    }
                } else {
                    gate = true;
                    if self
                        .stood_down
                        .as_ref()
                        .is_none_or(|known| rank(known, theirs) != Some(Rank::Ours))
                    {
                        next.stood_down = Some(theirs.clone());
                    }
                }
            }
            Rank::Same | Rank::Ours => {
                let for_us = stood_down
                    .is_some_and(|theirs| theirs.current().id == self.lineage.current().id);
                if self.role == Role::FailedOver && self.stood_down.is_none() && for_us {
                    next.warrant = Some(Warrant::StoodDown);
                } else if next.warrant == Some(Warrant::Override) {
                    // First contact: from now on the partner's word counts again. A primary counts on that
                    // only: its partner may become the replica again, and take over.
                    next.warrant = None;
                }
            }
        }
        Ok(Met {
            standing: next,
            gate,
        })
    }

    /// [`meet`](Self::meet), for an answer that only names the lineage that succeeded ours.
    ///
    /// # Errors
    /// As there.
    pub fn superseded(&self, thing: &str, theirs: &Lineage) -> Result<Met, Problem> {
        self.meet(thing, theirs, None)
    }

    /// What to answer the partner.
    #[must_use]
    pub fn tell(&self, runs: bool) -> PartnerStanding {
        PartnerStanding {
            role: self.role,
            lineage: self.lineage.clone(),
            runs,
            stood_down: self.stood_down.clone(),
            opened: self.opened,
        }
    }
}

impl Override {
    /// A recorded override.
    ///
    /// # Errors
    /// [`Problem`] when the statement says nothing, or too much.
    pub fn new(statement: &str, by: &str, at: Timestamp) -> Result<Self, Problem> {
        let statement = statement.trim();
        if statement.is_empty() || statement.len() > MAX_STATEMENT {
            return Err(Problem::new(
                Code::Invalid,
                "the override",
                format!("needs a statement of 1 to {MAX_STATEMENT} bytes"),
                "say why the VM cannot run on the other host, such as `host-a has burnt down`",
            ));
        }
        Ok(Self {
            statement: statement.to_owned(),
            by: by.to_owned(),
            at,
        })
    }
}

#[cfg(test)]
#[path = "standing_tests.rs"]
mod tests;
