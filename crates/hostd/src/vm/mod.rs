//! Virtual machines: their folders, their processes, and the task that owns each of them.

pub(crate) mod access;
pub(crate) mod create;
mod ended;
pub(crate) mod folder;
mod guest;
mod handle;
pub(crate) mod launch;
mod owner;
mod power;
mod progress;
pub(crate) mod relation;
mod replicate;
mod rights;
pub(crate) mod source;
mod state;
pub(crate) mod supervisor;
pub(crate) mod takeover;
pub(crate) mod unsent;

pub(crate) use handle::{Home, Message, View, Vm};
