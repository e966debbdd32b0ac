//! What the receiver needs of the host it runs on.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use journal::{
    Header, Journal, JournalError, PointReader, Refusal, Root, SeedReader, SegmentError,
};
use model::{Bytes, Code, DiskId, Lineage, PointId, Problem, RelationshipId, VmId};

use crate::standing::Role;
use crate::wire::{
    Configure, Enrol, LeaseAnswer, LeaseRequest, PartnerStanding, Reception, Reverse, Reversed, Tip,
};

/// Who is at the other end of a connection: a trusted peer, by the name it was accepted with.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// The peer's name.
    pub name: String,
}

/// A relationship, as this host keeps it; either side has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Its identity.
    pub id: RelationshipId,
    /// Earlier ones by which it may be called still: the partner was perhaps not told of this one.
    pub earlier: Vec<RelationshipId>,
    /// The VM, as problems name it: ``VM `web` ``.
    pub thing: String,
    /// Name of the peer that it is bound to.
    pub partner: String,
    /// What this host is in it now.
    pub role: Role,
    /// How it is received here, if this host is the replica.
    pub reception: Reception,
    /// Folder for what is being received ([`Journal::INCOMING`] of
    /// the journal's); the receiver makes it and owns what is in it.
    pub incoming: PathBuf,
}

impl Relation {
    /// Whether the partner may mean it by `named`.
    #[must_use]
    pub fn is_called(&self, named: RelationshipId) -> bool {
        self.id == named || self.earlier.contains(&named)
    }
}

/// The journal of a replica VM, while this host is its replica. Whoever takes over takes the
/// journal out while holding the lock, so that no commit can come after the chosen point.
pub type Shelf<J> = Arc<Mutex<Option<J>>>;

/// The host, as the receiver sees it. Implemented by polluxd over its VM folders.
///
/// Which peer asks was checked by TLS, and that it is the one the relationship is bound to by
/// the receiver. Implementations do one call per VM at a time, in the order of arrival, and
/// apart from starting that VM: a decision to start and the start count as one.
pub trait ReplicaHost: Send + Sync + 'static {
    /// The journal's type; polluxd's is [`Journal`].
    type Receipts: Receipts;

    /// This host's name.
    fn name(&self) -> &str;

    /// Whether `principal` may make twins here, and fill those it has
    /// ([`Rules::admit`](crate::authorization::Rules::admit)).
    fn admits(&self, principal: &Principal) -> Result<(), Problem>;

    /// Makes the folder, journal and standing of a replica VM, durably. The same request again
    /// succeeds; refused if the VM exists and is not `principal`'s replica of that relationship,
    /// its name is taken, or no space is left.
    fn enrol(
        &self,
        principal: &Principal,
        vm: VmId,
        enrol: Enrol,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// This host stood down for the primary and becomes its replica, durably: its disks become the base
    /// of the twin ([`Standing::turn`](crate::standing::Standing::turn)). The same request again
    /// succeeds. Where the disks may differ from the point that is named.
    fn reverse(
        &self,
        principal: &Principal,
        vm: VmId,
        reverse: Reverse,
    ) -> impl Future<Output = Result<Reversed, Problem>> + Send;

    /// The primary wants the twin to be like this from now on: the VM's specification and what the
    /// relationship keeps of it follow, durably. Any number of times.
    fn configure(
        &self,
        vm: VmId,
        wanted: Configure,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The relationship of `vm`, if it has one.
    fn relation(&self, vm: VmId) -> impl Future<Output = Option<Relation>> + Send;

    /// How the relationship `id` of `vm` is received at this moment; none if there is none any more.
    /// Asked with the lock of the [`Shelf`] held, so whoever pauses or ends it and takes that lock
    /// once afterwards knows that nothing is taken in from then on.
    fn reception(&self, vm: VmId, id: RelationshipId) -> Option<Reception>;

    /// The partner told its lineage, and perhaps when it opened its current term: [`Standing::meet`](crate::standing::Standing::meet), stop
    /// the guest if that says so, store what changed, then tell.
    fn contact(
        &self,
        vm: VmId,
        theirs: &Lineage,
        opened: Option<Timestamp>,
    ) -> impl Future<Output = Result<PartnerStanding, Problem>> + Send;

    /// The primary of the lineage `theirs` wants something about a lease, after the
    /// [contact](Self::contact): [`Standing::promise`](crate::standing::Standing::promise) or
    /// [`release`](crate::standing::Standing::release), stored before this returns; the time that it
    /// promised counts from then on.
    fn lease(
        &self,
        vm: VmId,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> impl Future<Output = Result<LeaseAnswer, Problem>> + Send;

    /// The partner wants to open `asked`: [`Standing::stand_down`](crate::standing::Standing::stand_down),
    /// stored before this returns. Ends the VM's replication driver.
    fn stand_down(
        &self,
        vm: VmId,
        asked: &Lineage,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// Whether `len` more bytes of the segment with this header may come for `vm` beside the `held` that its
    /// incoming file takes already: [`Code::Full`] when the store's limit or its reserve of space is reached.
    /// Asked for the length of the file when it is offered, and at its commit for what its content
    /// takes beyond that where it is not compressed.
    fn admit(
        &self,
        vm: VmId,
        header: &Header,
        len: u64,
        held: u64,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The journal of a replica VM. Opened if the shelf is empty and this host is still the
    /// replica: when first asked for, and after the receiver took it out because a commit failed.
    fn shelf(
        &self,
        vm: VmId,
    ) -> impl Future<Output = Result<Shelf<Self::Receipts>, Problem>> + Send;

    /// A segment was committed: for events and measures.
    fn received(&self, vm: VmId, header: &Header, file_len: u64);

    /// The partner ended the relationship. The VM's folder stays, as a VM that belongs to this
    /// host's users.
    fn remove(&self, vm: VmId) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The primary gave its initial replication up: the relationship ends, and what came of the twin
    /// is deleted. Refused when there is a recovery point: no primary can delete one.
    fn cancel(&self, vm: VmId) -> impl Future<Output = Result<(), Problem>> + Send;
}

/// Whether an offered segment may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It fits what is there.
    Fits,
    /// It is there already.
    Have,
    /// It does not fit.
    Unfit(Problem),
}

/// What a receiver does with a journal. Blocking.
pub trait Receipts: Send + 'static {
    /// What is there, durably.
    fn tip(&self) -> Tip;

    /// The disks that the newest point has.
    fn disks(&self) -> Vec<DiskId>;

    /// Whether the segment may come.
    fn check(&self, header: &Header, root: Root) -> Verdict;

    /// Verifies the whole segment `file` of [`Relation::incoming`], takes it from there and
    /// publishes it durably.
    ///
    /// # Errors
    /// [`Problem`]; nothing was published, unless its code is
    /// [`Code::Failed`]: then opening the journal again tells.
    fn take(&mut self, file: &Path, header: &Header, root: Root) -> Result<(), Problem>;

    /// Writes to the base what lies in the first `come` bytes of the segment `file` of
    /// [`Relation::incoming`], a part of an initial replication whose tables have come: `take` has that
    /// much less to do.
    ///
    /// # Errors
    /// [`Problem`]; nothing was published, and `take` tells what is wrong.
    fn ahead(&mut self, file: &Path, root: Root, come: u64) -> Result<(), Problem>;

    /// Opens `point`, which it holds, for reading.
    ///
    /// # Errors
    /// [`Problem`]
    fn open_point(&self, point: PointId) -> Result<Arc<PointReader>, Problem>;

    /// Opens what came of the initial replication, which is not complete, for reading; it is durable
    /// then.
    ///
    /// # Errors
    /// [`Problem`]
    fn open_seed(&self) -> Result<Arc<SeedReader>, Problem>;
}

impl Receipts for Journal {
    fn tip(&self) -> Tip {
        match Self::tip(self) {
            journal::Tip::Seeding {
                seed,
                next_part,
                last,
            } => Tip::Seeding {
                seed,
                parts: next_part,
                last,
            },
            journal::Tip::Point { point, root } => Tip::Point { point, root },
        }
    }

    fn disks(&self) -> Vec<DiskId> {
        self.newest_disks().iter().map(|disk| disk.id).collect()
    }

    fn check(&self, header: &Header, root: Root) -> Verdict {
        match Self::check(self, header, root) {
            journal::Verdict::Fits => Verdict::Fits,
            journal::Verdict::Have => Verdict::Have,
            journal::Verdict::Unfit(refusal) => Verdict::Unfit(unfit(header.vm, &refusal)),
        }
    }

    fn take(&mut self, file: &Path, header: &Header, root: Root) -> Result<(), Problem> {
        self.commit(name_of(file), root)
            .map(drop)
            .map_err(|error| not_taken(header.vm, &error))
    }

    fn ahead(&mut self, file: &Path, root: Root, come: u64) -> Result<(), Problem> {
        let laid = self.lay_ahead(name_of(file), root, Bytes(come));
        laid.map_err(|error| not_taken(self.vm(), &error))
    }

    fn open_point(&self, point: PointId) -> Result<Arc<PointReader>, Problem> {
        Self::open_point(self, point).map_err(|error| {
            let thing = format!("the journal of VM {}", self.vm());
            Problem::failed(thing, &error)
        })
    }

    fn open_seed(&self) -> Result<Arc<SeedReader>, Problem> {
        Self::open_seed(self).map_err(|error| {
            let thing = format!("the journal of VM {}", self.vm());
            Problem::failed(thing, &error)
        })
    }
}

fn name_of(file: &Path) -> &str {
    let name = file.file_name().and_then(|name| name.to_str());
    name.unwrap_or_default()
}

/// What the sender of a segment is told that could not be committed.
fn not_taken(vm: VmId, error: &JournalError) -> Problem {
    let thing = format!("the journal of VM {vm}");
    match error {
        JournalError::Refused(refusal) => unfit(vm, refusal),
        error if error.is_full() => full(thing, error),
        // It was not read: nobody knows what is in it.
        JournalError::Segment {
            source: SegmentError::Io { .. },
            ..
        } => Problem::failed(thing, error),
        JournalError::Segment { .. } | JournalError::NotOffered(_) => Problem {
            code: Code::Invalid,
            ..Problem::failed(thing, error)
        },
        error => Problem::failed(thing, error),
    }
}

/// No space is left for `thing` on this host.
pub(crate) fn full(thing: impl Into<String>, error: &(dyn std::error::Error + 'static)) -> Problem {
    Problem {
        code: Code::Full,
        way_out: "free space on the replica host, or give it more; it goes on by itself then"
            .to_owned(),
        ..Problem::failed(thing, error)
    }
}

fn unfit(vm: VmId, refusal: &Refusal) -> Problem {
    if refusal.is_alarm() {
        tracing::error!(%vm, %refusal, "two segments claim to be one point");
    }
    let thing = format!("the journal of VM {vm}");
    Problem::new(Code::Conflict, thing, refusal.to_string(), "")
}

#[cfg(test)]
mod tests {
    use std::io;

    use journal::segment::Site;

    use super::*;

    fn segment(source: SegmentError) -> JournalError {
        JournalError::Segment {
            name: "incoming/x".to_owned(),
            source,
        }
    }

    fn reading(kind: io::ErrorKind) -> SegmentError {
        SegmentError::Io {
            action: "read",
            site: Site::Frame(0),
            source: kind.into(),
        }
    }

    #[test]
    fn want_of_space_has_a_way_out_wherever_it_struck_and_is_told_from_damage() {
        let vm = VmId::random();
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            let base = JournalError::Io {
                action: "write the base from",
                name: "incoming/x".to_owned(),
                source: kind.into(),
            };
            for error in [base, segment(reading(kind))] {
                let problem = not_taken(vm, &error);
                assert_eq!(problem.code, Code::Full, "{error:?}");
                assert!(!problem.way_out.is_empty(), "{error:?}");
            }
        }
        let unread = segment(reading(io::ErrorKind::PermissionDenied));
        assert_eq!(not_taken(vm, &unread).code, Code::Failed);
        let damaged = segment(SegmentError::Damaged(Site::Frame(0)));
        assert_eq!(not_taken(vm, &damaged).code, Code::Invalid);
        let other = JournalError::Refused(Refusal::Vm);
        assert_eq!(not_taken(vm, &other).code, Code::Conflict);
    }
}
