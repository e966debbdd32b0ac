//! The lease that a primary holds to, and its replica answers for.

use std::cmp::Ordering;

use model::{Code, Lineage, Problem, StartUnasked};

use super::{Role, Standing};
use crate::lease::Fence;
use crate::run::{Rank, rank};
use crate::wire::{LeaseAnswer, LeaseRequest, PartnerStanding};

impl Standing {
    /// From now on this host runs the VM only as long as its replica renews a lease of this length.
    /// `theirs`: the number of the agreement that the replica knows, if it is a later one. Store the
    /// result before the first grant is asked for, and let the grant that is held end no later
    /// ([`Grant::cut_to`](crate::lease::Grant::cut_to)).
    ///
    /// # Errors
    /// [`Problem`] when it has no replica, or starts without an answer.
    pub fn hold_to(&self, thing: &str, fence: Fence, theirs: u64) -> Result<Self, Problem> {
        let name = crate::run::name(thing);
        let refuse = |reason: &str, way_out: String| {
            Err(Problem::new(Code::Conflict, thing, reason, way_out))
        };
        if self.role != Role::Primary || self.partner.is_none() {
            let way_out = format!("`pollux replica enable {name}` makes one");
            return refuse("has no replica that could renew a lease", way_out);
        }
        if self.start_unasked == StartUnasked::Allow {
            let reason = "starts without an answer of its replica, and a lease needs one";
            let way_out = format!("choose: `pollux replica set {name} --start-unasked deny`");
            return refuse(reason, way_out);
        }
        Ok(Self {
            fence: Some(fence),
            agreement: self.next_agreement(theirs)?,
            ..self.clone()
        })
    }

    /// The number of the next agreement about a lease.
    ///
    /// # Errors
    /// [`Problem`] when there is none left.
    pub fn next_agreement(&self, theirs: u64) -> Result<u64, Problem> {
        self.agreement.max(theirs).checked_add(1).ok_or_else(|| {
            let reason = "was agreed on too often";
            Problem::new(Code::Invalid, "the lease", reason, "")
        })
    }

    /// The primary of the lineage `theirs` asks for a lease, by the agreement of this number. None: it
    /// gets no grant. Store the result before it is answered, and count its time from the answer on.
    #[must_use]
    pub fn promise(&self, theirs: &Lineage, fence: Fence, agreement: u64) -> Option<Self> {
        let known = match agreement.cmp(&self.agreement) {
            Ordering::Greater => true,
            // What ended does not come back by a question that was asked before.
            Ordering::Equal => self.fence == Some(fence),
            Ordering::Less => false,
        };
        (known && self.is_replica_of(theirs)).then(|| Self {
            fence: Some(fence),
            agreement,
            ..self.clone()
        })
    }

    /// The primary of the lineage `theirs` wants to hold to no lease any more, by the agreement of
    /// this number. None: that is not agreed on. Store the result before it is answered.
    #[must_use]
    pub fn release(&self, theirs: &Lineage, agreement: u64) -> Option<Self> {
        let known = match agreement.cmp(&self.agreement) {
            Ordering::Greater => true,
            Ordering::Equal => self.fence.is_none(),
            Ordering::Less => false,
        };
        (known && self.is_replica_of(theirs)).then(|| self.released(agreement))
    }

    /// What a primary of the lineage `theirs` that `asked` about a lease is answered, and the standing
    /// from then on if it is as that one wants; store it before.
    #[must_use]
    pub fn answer_lease(
        &self,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> (Option<Self>, LeaseAnswer) {
        let next = match asked.fence {
            Some(fence) => self.promise(theirs, fence, asked.agreement),
            None => self.release(theirs, asked.agreement),
        };
        let agreement = next.as_ref().unwrap_or(self).agreement;
        let granted = next.is_some();
        (next, LeaseAnswer { granted, agreement })
    }

    /// Whether a lease that this host holds to, and for which it was `answered`, is to be agreed on anew: one
    /// of the two was restored, or an answer was lost; or the replica took over and called that off, and
    /// counts on none.
    #[must_use]
    pub fn must_agree_anew(&self, theirs: &PartnerStanding, answered: LeaseAnswer) -> bool {
        let receives = theirs.role == Role::Replica
            && rank(&self.lineage, &theirs.lineage) == Some(Rank::Same);
        let known = match answered.agreement.cmp(&self.agreement) {
            Ordering::Greater => true,
            Ordering::Equal => receives,
            Ordering::Less => false,
        };
        self.fence.is_some() && !answered.granted && known
    }

    /// Without a lease, by the agreement of this number. At the primary only once its replica has
    /// [released](Self::release) it.
    #[must_use]
    pub fn released(&self, agreement: u64) -> Self {
        Self {
            fence: None,
            agreement,
            ..self.clone()
        }
    }

    /// The partner answered what was asked by the agreement of this number. One that took over and was
    /// succeeded is no replica any more: it counts on no lease, and renews none.
    #[must_use]
    pub fn without_replica(&self, theirs: &PartnerStanding, agreement: u64) -> Self {
        let over = self.fence.is_some()
            && agreement == self.agreement
            && theirs.role != Role::Replica
            && rank(&self.lineage, &theirs.lineage) == Some(Rank::Ours);
        if over {
            self.released(agreement.saturating_add(1))
        } else {
            self.clone()
        }
    }

    fn is_replica_of(&self, theirs: &Lineage) -> bool {
        self.role == Role::Replica && rank(&self.lineage, theirs) == Some(Rank::Same)
    }
}
