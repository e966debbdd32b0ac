//! Ids, sizes, specifications, states, and the rules between states. No I/O.
//!
//! Everything that more than one process must agree on and that is not a file
//! format of its own lives here: what a virtual machine is ([`VmSpec`]), how
//! points in its history are named ([`PointId`], [`Lineage`]), which states it
//! may go through ([`VmState`], [`Relationship`](ReplicationState)), and how a
//! refusal is told to a person ([`Problem`]).

mod choice;
mod disk;
mod fence;
mod history;
mod id;
mod keep;
mod problem;
mod size;
mod spec;
mod start;
mod state;

pub use choice::{DiskChoice, ParseDiskChoiceError};
pub use disk::{
    Bus, CheckpointName, CheckpointSpec, DiskSpec, MAX_CHECKPOINTS, OverlaySpec, free_slot,
};
pub use fence::{FenceChoice, ParseFenceChoiceError};
pub use history::{Lineage, LineageError, PointId, Since, Term};
pub use id::{
    BootId, CheckpointId, DiskId, ParseIdError, RelationshipId, SeedId, StampId, StoreId, TermId,
    VmId,
};
pub use keep::{Going, Grain, Keep, KeepError, Span, Step};
pub use problem::{Code, Problem};
pub use size::{BLOCK_SIZE, Bytes, ParseBytesError, REGION_SIZE, SECTOR_SIZE};
pub use spec::{DirectBoot, Generation, GenerationId, MAX_DISKS, SpecError, VmName, VmSpec};
pub use start::{ParseStartUnaskedError, StartUnasked};
pub use state::{Health, Mode, ReplicationState, VmState};
