//! While a failover is not final: it is made final, goes to another point, or is called off.

use model::{Code, Lineage, PointId, Problem, TermId};

use super::{Role, Standing, Warrant};
use crate::run::Evidence;

impl Standing {
    /// Makes a failover final, or finds that it is: the VM stays on the point that it was started from. Store
    /// the result before any other point goes. A primary may have been one of its partner's since it was
    /// failed over; whether it was is for the caller to know. So may one that was taken over from since: its
    /// disks are to become those of a replica.
    ///
    /// # Errors
    /// [`Problem`] when it is received here.
    pub fn complete(&self, thing: &str) -> Result<Self, Problem> {
        let name = crate::run::name(thing);
        if self.role == Role::Replica {
            let reason = "was not failed over to this host";
            let way_out = format!("`pollux failover start {name}` does that");
            return Err(Problem::new(Code::Conflict, thing, reason, way_out));
        }
        Ok(Self {
            completed: true,
            received: None,
            ..self.clone()
        })
    }

    /// The history of which another point may take the place of the one that the failover to this host is
    /// from.
    ///
    /// # Errors
    /// [`Problem`] when there is no such failover, or it is final.
    pub fn choosable(&self, thing: &str) -> Result<&Lineage, Problem> {
        let name = crate::run::name(thing);
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        match (self.role, &self.received) {
            (Role::Replica, _) => refuse(
                "was not failed over to this host",
                format!("`pollux failover start {name}` does that"),
            ),
            (Role::Primary, _) => refuse(
                "belongs to this host: there is no failover whose point could be another",
                format!("`pollux point export {name} POINT` takes out a point that is there still"),
            ),
            (Role::FailedOver, _) if self.completed => refuse(
                "has no other point to start from: its failover is complete",
                format!(
                    "what to go back to is kept from now on by `pollux disk checkpoint {name}`"
                ),
            ),
            (Role::FailedOver, None) => refuse(
                "was failed over by an older Pollux, which kept nothing of the history before that",
                format!("`pollux point export {name} POINT` takes a point out"),
            ),
            (Role::FailedOver, Some(received)) => Ok(received),
        }
    }

    /// Lets another point take the place of the one that the failover to this host is from: opens a term
    /// that grows from it, where the VM may be started. The term before is given up with all that was
    /// written in it. Store the result before QEMU starts.
    ///
    /// # Errors
    /// [`Problem`] when it [may not be chosen](Self::choosable), the VM may not be started here, or the
    /// partner is the replica already.
    pub fn another(
        &self,
        thing: &str,
        point: PointId,
        opener: &str,
        evidence: &Evidence,
    ) -> Result<Self, Problem> {
        self.another_as(thing, point, opener, evidence, TermId::random())
    }

    /// [`another`](Self::another) with the new term's id.
    pub(crate) fn another_as(
        &self,
        thing: &str,
        point: PointId,
        opener: &str,
        evidence: &Evidence,
        id: TermId,
    ) -> Result<Self, Problem> {
        let received = self.choosable(thing)?;
        if let Evidence::Says(theirs) | Evidence::Leased(theirs) = evidence {
            if theirs.role == Role::Replica && self.stood_down.is_none() {
                let partner = self.partner.as_deref().unwrap_or_default();
                let reason = format!("has host `{partner}` as its replica already");
                let name = crate::run::name(thing);
                let way_out = format!("`pollux failover reverse {name}` goes on with that");
                return Err(Problem::new(Code::Conflict, thing, reason, way_out));
            }
        }
        let started = self.start(thing, evidence)?;
        let warrant = match started.warrant {
            Some(Warrant::StoodDown) => Some(Warrant::StoodDownBefore),
            other => other,
        };
        Ok(Self {
            lineage: self.grown(thing, received, point, opener, id)?,
            warrant,
            ..started
        })
    }

    /// The history in which the VM is received here again if the failover to this host is called off.
    ///
    /// # Errors
    /// [`Problem`] when there is no such failover, or it is final.
    pub fn revocable(&self, thing: &str) -> Result<&Lineage, Problem> {
        let name = crate::run::name(thing);
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        let Some(partner) = &self.partner else {
            return refuse(
                "has no relationship any more in which this host could be the replica",
                format!("`pollux failover complete {name}` makes the failover to this host final"),
            );
        };
        let reversed =
            format!("`pollux failover reverse {name}` makes host `{partner}` its replica");
        let received = match (self.role, &self.received) {
            (Role::Replica | Role::Primary, _) => {
                return refuse(
                    "was not failed over to this host, or was replicated back since",
                    format!("`pollux vm show {name}` tells what it is"),
                );
            }
            (Role::FailedOver, _) if self.completed && self.stood_down.is_some() => {
                let reason =
                    "has no point to go back to: it was taken back when its failover was complete";
                return refuse(reason, crate::run::anew(thing));
            }
            (Role::FailedOver, _) if self.completed => {
                return refuse(
                    "has no point to go back to: its failover is complete",
                    reversed,
                );
            }
            (Role::FailedOver, None) => {
                let reason = "was failed over by an older Pollux, which kept nothing of the history before that";
                return refuse(reason, reversed);
            }
            (Role::FailedOver, Some(received)) => received,
        };
        match &self.stood_down {
            None => Ok(received),
            Some(theirs) if theirs.descends_from(received) => Ok(theirs),
            Some(theirs) => Err(crate::run::taken_back(thing, theirs)),
        }
    }

    /// Calls the failover to this host off: it is the replica again, with all its points, and gives up the
    /// term with all that was written in it. If it was taken back meanwhile, of the host that did that.
    /// `newest` is the newest point here. Store the result before what lies above the point goes. `runs`: the
    /// guest runs here, or is being started.
    ///
    /// # Errors
    /// [`Problem`] when it runs, or there is no such failover that [could be](Self::revocable).
    pub fn call_off(&self, thing: &str, newest: PointId, runs: bool) -> Result<Self, Problem> {
        let history = self.revocable(thing)?;
        if let Some(problem) = crate::run::restored(thing, self) {
            return Err(problem);
        }
        if !history.contains(newest) {
            return Err(crate::run::taken_back(thing, history));
        }
        if runs {
            return Err(crate::run::runs_here(thing));
        }
        Ok(Self {
            role: Role::Replica,
            lineage: history.clone(),
            warrant: None,
            fence: None,
            received: None,
            stood_down: None,
            opened: None,
            succession: None,
            prepared: false,
            // The partner may have given way to it: the next one is to be above it, as what outranked it is.
            attempt: match self.stood_down {
                None => Some(self.lineage.clone()),
                Some(_) => None,
            },
            ..self.clone()
        })
    }
}
