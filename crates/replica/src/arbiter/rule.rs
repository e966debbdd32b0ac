//! The rules that can be switched off.

/// What must hold so that no promise is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    RefuseWhileRunning,
    AnswerNamesTheTerm,
    DropAttempt,
    Gate,
    StoodDownStays,
    StoreBeforeAnswer,
    StoreBeforeStart,
    BuildOn,
    AskFirst,
    OneRank,
    GrowFromNewest,
    OnlyReplicaTakes,
    CommitBeforeAck,
    ReserveBeforeCut,
    NotNewer,
    NoGap,
    OneContent,
    OneHistory,
    LeaseHolds,
    LeaseMargin,
    LeaseDrift,
    LeaseFromQuestion,
    LeaseRestart,
    LeaseToStart,
    FenceBeforeQuestion,
    FenceEndsTold,
    LeaseEndsTold,
    LeaseNumbered,
    LeaseCutShort,
    MeetBeforeEnd,
    TurnWhileOff,
    AnotherByRight,
    AnotherEndsReversal,
    CallOffWhileOff,
    CallOffLeavesTerm,
    ReturnedAsks,
    GivenBackMeets,
    AgreementStays,
    OneSeed,
    RestoredAsks,
}

/// All of them.
pub(super) const RULES: [Rule; 40] = [
    Rule::RefuseWhileRunning,
    Rule::AnswerNamesTheTerm,
    Rule::DropAttempt,
    Rule::Gate,
    Rule::StoodDownStays,
    Rule::StoreBeforeAnswer,
    Rule::StoreBeforeStart,
    Rule::BuildOn,
    Rule::AskFirst,
    Rule::OneRank,
    Rule::GrowFromNewest,
    Rule::OnlyReplicaTakes,
    Rule::CommitBeforeAck,
    Rule::ReserveBeforeCut,
    Rule::NotNewer,
    Rule::NoGap,
    Rule::OneContent,
    Rule::OneHistory,
    Rule::LeaseHolds,
    Rule::LeaseMargin,
    Rule::LeaseDrift,
    Rule::LeaseFromQuestion,
    Rule::LeaseRestart,
    Rule::LeaseToStart,
    Rule::FenceBeforeQuestion,
    Rule::FenceEndsTold,
    Rule::LeaseEndsTold,
    Rule::LeaseNumbered,
    Rule::LeaseCutShort,
    Rule::MeetBeforeEnd,
    Rule::TurnWhileOff,
    Rule::AnotherByRight,
    Rule::AnotherEndsReversal,
    Rule::CallOffWhileOff,
    Rule::CallOffLeavesTerm,
    Rule::ReturnedAsks,
    Rule::GivenBackMeets,
    Rule::AgreementStays,
    Rule::OneSeed,
    Rule::RestoredAsks,
];

impl Rule {
    /// Whether it is about recovery points.
    pub(super) fn is_of_points(self) -> bool {
        matches!(
            self,
            Self::GrowFromNewest
                | Self::OnlyReplicaTakes
                | Self::CommitBeforeAck
                | Self::ReserveBeforeCut
                | Self::NotNewer
                | Self::NoGap
                | Self::OneContent
                | Self::OneHistory
                | Self::AnotherEndsReversal
                | Self::CallOffLeavesTerm
                | Self::AgreementStays
                | Self::OneSeed
        )
    }

    /// Whether it is about leases.
    pub(super) fn is_of_leases(self) -> bool {
        matches!(
            self,
            Self::LeaseHolds
                | Self::LeaseMargin
                | Self::LeaseDrift
                | Self::LeaseFromQuestion
                | Self::LeaseRestart
                | Self::LeaseToStart
                | Self::FenceBeforeQuestion
                | Self::FenceEndsTold
                | Self::LeaseEndsTold
                | Self::LeaseNumbered
                | Self::LeaseCutShort
                | Self::MeetBeforeEnd
                | Self::AgreementStays
        )
    }

    /// What it says, in the words of the documentation.
    pub(super) fn says(self) -> &'static str {
        match self {
            Self::RefuseWhileRunning => "A host whose guest runs does not stand down.",
            Self::AnswerNamesTheTerm => "A stand-down counts for the term that it names only.",
            Self::DropAttempt => "Who stands down drops its own attempt to take over.",
            Self::Gate => "Whoever learns that it was succeeded holds its guest still.",
            Self::StoodDownStays => "Who stood down does not start.",
            Self::StoreBeforeAnswer => "A stand-down is durable before it is answered.",
            Self::StoreBeforeStart => "A term is durable before the guest starts in it.",
            Self::BuildOn => "A host stands down only for a lineage that builds on its own.",
            Self::AskFirst => "A partner that was not asked is no evidence.",
            Self::OneRank => "Both hosts find the same one of two lineages to be the lower.",
            Self::GrowFromNewest => {
                "A takeover grows from the newest point that is there when the term is opened, \
                 unless a person chose an older one."
            }
            Self::OnlyReplicaTakes => {
                "Only a replica takes points in; one that took over does not."
            }
            Self::CommitBeforeAck => "A point is durable before it is acknowledged.",
            Self::ReserveBeforeCut => {
                "A sequence number is reserved durably before a point is cut with it."
            }
            Self::NotNewer => "A point that is older than the newest is not taken in.",
            Self::NoGap => {
                "A point is taken in only if the journal has what it builds on, or newer."
            }
            Self::OneContent => "A point has one content; another by its name is an alarm.",
            Self::OneHistory => "A point is taken in only if the newest lies on its history.",
            Self::LeaseHolds => {
                "Under a lease the guest is held still within a second after its grant has ended."
            }
            Self::LeaseMargin => "The replica waits a margin longer than the lease.",
            Self::LeaseDrift => "The margin covers how far two clocks go apart.",
            Self::LeaseFromQuestion => "A grant counts from the sending of its question.",
            Self::LeaseRestart => {
                "A replica that was restarted counts as if it had answered until then."
            }
            Self::LeaseToStart => "Under a lease a start needs a grant that holds.",
            Self::FenceBeforeQuestion => {
                "The lease is durable before the first grant is asked for."
            }
            Self::FenceEndsTold => {
                "A lease ends with the relationship at the replica first, or on a person's word."
            }
            Self::LeaseEndsTold => {
                "A primary that is to hold to no lease any more holds to it until its replica counts \
                 on none."
            }
            Self::LeaseNumbered => {
                "Agreements about a lease are numbered: what ended does not come back by a late question."
            }
            Self::LeaseCutShort => {
                "A lease that is made shorter counts for the grant that is held already."
            }
            Self::MeetBeforeEnd => {
                "Two hosts are in contact before they end their relationship: which of them was \
                 succeeded stays known."
            }
            Self::TurnWhileOff => "A host whose guest runs does not become the replica.",
            Self::AnotherByRight => {
                "A failover goes to another point only where the VM may be started."
            }
            Self::AnotherEndsReversal => {
                "A failover that goes to another point does not go on with what was asked for of \
                 replicating back."
            }
            Self::CallOffWhileOff => "A failover is called off only while the guest is off.",
            Self::CallOffLeavesTerm => {
                "A host that calls its failover off goes back to the history in which it received, or \
                 in which the VM was taken back."
            }
            Self::ReturnedAsks => {
                "A primary asks before it starts although its partner stood down for it: that may have become \
                 the replica again, and taken over."
            }
            Self::GivenBackMeets => {
                "A replica that takes its own disks back stays in its relationship: the two meet."
            }
            Self::AgreementStays => {
                "A host that becomes the replica again knows what was agreed on before about a lease."
            }
            Self::OneSeed => {
                "The first point that goes back is taken in only above the disks that it was cut for."
            }
            Self::RestoredAsks => "A folder that was restored gives no right to run.",
        }
    }
}
