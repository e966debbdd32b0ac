//! After a failover: the host that took over is the primary, and the former one its replica.

use model::{Code, Lineage, Problem, StartUnasked};

use super::{Relationship, Role, Standing};
use crate::run::{Rank, rank};

impl Standing {
    /// This host took over, and its partner agreed to be the replica: it is the primary. Store the result
    /// before anything is sent.
    ///
    /// # Errors
    /// [`Problem`] when this host did not take over, or gave way itself since.
    pub fn reverse(&self, thing: &str) -> Result<Self, Problem> {
        if self.role == Role::Replica || self.stood_down.is_some() || self.partner.is_none() {
            let reason = "was not taken over by this host, or was taken over from it since";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
        // The partner is a replica that can take over again: it is asked before each start.
        let asks = Self {
            warrant: None,
            ..self.clone()
        };
        Ok(match self.role {
            // It was before, and had its own disks back meanwhile.
            Role::Primary => asks,
            Role::FailedOver | Role::Replica => Self {
                role: Role::Primary,
                received: None,
                fence: None,
                ..asks
            },
        })
    }

    /// This host stood down for the partner, which runs the VM in `theirs`, and becomes its replica. Store
    /// the result when everything else of a replica is durable. `runs`: the guest runs here.
    ///
    /// # Errors
    /// [`Problem`] when it runs, or did not stand down for that lineage.
    pub fn turn(
        &self,
        thing: &str,
        theirs: &Lineage,
        runs: bool,
        relationship: Relationship,
    ) -> Result<Self, Problem> {
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if runs {
            return refuse("runs on its host", crate::run::stop_there(thing));
        }
        let gave_way = match (&self.stood_down, self.role) {
            (_, Role::Replica) | (None, _) => false,
            (Some(known), _) => matches!(rank(known, theirs), Some(Rank::Same | Rank::Theirs)),
        };
        if !gave_way || rank(&self.lineage, theirs) != Some(Rank::Theirs) {
            let way_out = format!(
                "`pollux vm show {}` on both hosts tells which of the two it belongs to",
                crate::run::name(thing)
            );
            return refuse("has not given way to the host that asks", way_out);
        }
        Ok(Self {
            role: Role::Replica,
            lineage: theirs.clone(),
            warrant: None,
            fence: None,
            // What was asked before in the same relationship may still come.
            agreement: match relationship {
                Relationship::New => 0,
                Relationship::Same => self.agreement,
            },
            start_unasked: StartUnasked::default(),
            received: None,
            succession: None,
            stood_down: None,
            prepared: false,
            completed: false,
            attempt: None,
            ..self.clone()
        })
    }

    /// This host [turned](Self::turn) and has no point yet: it goes back to where it was before, in its
    /// `former` lineage, which gave way to the one that it is the replica of. The two stay partners, so that
    /// they meet whatever is done with either, unless their relationship has ended: `related`.
    ///
    /// # Errors
    /// [`Problem`] when it is no replica, or of none that succeeded `former`.
    pub fn give_back(&self, thing: &str, former: &Lineage, related: bool) -> Result<Self, Problem> {
        if self.role != Role::Replica || rank(former, &self.lineage) != Some(Rank::Theirs) {
            let reason = "did not become a replica with disks of its own";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
        Ok(Self {
            role: Role::Primary,
            partner: self.partner.clone().filter(|_| related),
            warrant: None,
            // The partner hears that this is no replica, and holds to no lease any more.
            fence: None,
            lineage: former.clone(),
            stood_down: Some(self.lineage.clone()),
            prepared: false,
            attempt: None,
            ..self.clone()
        })
    }
}
