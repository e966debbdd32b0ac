//! Virtual machines: their folders, their processes, and the task that owns each of them.

pub(crate) mod create;
pub(crate) mod folder;
pub(crate) mod launch;
mod owner;
mod progress;
pub(crate) mod relation;
mod replicate;
pub(crate) mod source;
mod state;
pub(crate) mod supervisor;
pub(crate) mod takeover;

pub(crate) use owner::{Home, Message, View, Vm};
