//! Virtual machines: their folders, their processes, and the task that owns each of them.

pub(crate) mod access;
pub(crate) mod change;
pub(crate) mod complete;
pub(crate) mod create;
mod disks;
mod ended;
pub(crate) mod export;
mod fence;
pub(crate) mod folder;
mod follow;
mod guest;
mod handle;
pub(crate) mod launch;
mod lease;
pub(crate) mod leasing;
mod merge;
pub(crate) mod observe;
pub(crate) mod opened;
mod owner;
mod power;
pub(crate) mod progress;
pub(crate) mod relation;
pub(crate) mod reload;
mod replicate;
mod rights;
pub(crate) mod room;
pub(crate) mod source;
mod state;
pub(crate) mod supervisor;
pub(crate) mod takeover;
mod tracking;
pub(crate) mod unsent;
pub(crate) mod verification;

pub(crate) use handle::{Home, Message, View, Vm};
