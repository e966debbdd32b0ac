//! What the receiver needs of the host it runs on.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use journal::{Header, Root};
use model::{Lineage, Problem, RelationshipId, VmId};

use crate::standing::Role;
use crate::wire::{Enrol, PartnerStanding, Tip};

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
    /// Name of the peer that it is bound to.
    pub partner: String,
    /// What this host is in it now.
    pub role: Role,
    /// Folder for what is being received, on the journal's file system; made when needed.
    pub incoming: PathBuf,
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
    /// The journal's type; polluxd's is [`journal::Journal`].
    type Receipts: Receipts;

    /// This host's name.
    fn name(&self) -> &str;

    /// Makes the folder, journal and standing of a replica VM, durably. The same request again
    /// succeeds; refused if the VM exists and is not `principal`'s replica of that relationship,
    /// its name is taken, the peer may not replicate here, or no space is left.
    fn enrol(
        &self,
        principal: &Principal,
        vm: VmId,
        enrol: Enrol,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The relationship of `vm`, if it has one.
    fn relation(&self, vm: VmId) -> impl Future<Output = Option<Relation>> + Send;

    /// The partner told its lineage: [`Standing::meet`](crate::standing::Standing::meet), stop
    /// the guest if that says so, store what changed, then tell.
    fn contact(
        &self,
        vm: VmId,
        theirs: &Lineage,
    ) -> impl Future<Output = Result<PartnerStanding, Problem>> + Send;

    /// The partner wants to open `asked`: [`Standing::stand_down`](crate::standing::Standing::stand_down),
    /// stored before this returns. Ends the VM's replication driver.
    fn stand_down(
        &self,
        vm: VmId,
        asked: &Lineage,
    ) -> impl Future<Output = Result<(), Problem>> + Send;

    /// Whether a segment file of `len` bytes may be received for `vm`: [`Code::Full`](model::Code::Full)
    /// when the store's limit or its reserve of space is reached.
    fn admit(&self, vm: VmId, len: u64) -> impl Future<Output = Result<(), Problem>> + Send;

    /// The journal of a replica VM, opened when first asked for.
    fn shelf(
        &self,
        vm: VmId,
    ) -> impl Future<Output = Result<Shelf<Self::Receipts>, Problem>> + Send;

    /// A segment was committed: for events and measures.
    fn received(&self, vm: VmId, header: &Header, file_len: u64);

    /// Ends the relationship. The VM's folder stays, as a VM that belongs to this host's users.
    fn remove(&self, vm: VmId) -> impl Future<Output = Result<(), Problem>> + Send;
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

    /// Whether the segment may come.
    fn check(&self, header: &Header, root: Root) -> Verdict;

    /// Verifies the whole segment file, moves it into the journal (or applies it and removes it)
    /// and publishes it durably.
    ///
    /// # Errors
    /// [`Problem`]; nothing was published then. The file may be gone if it does not verify.
    fn take(&mut self, file: &Path, header: &Header, root: Root) -> Result<(), Problem>;
}
