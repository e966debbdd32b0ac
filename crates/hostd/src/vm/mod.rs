//! Virtual machines: their folders, their processes, and the task that owns each of them.

pub(crate) mod create;
pub(crate) mod folder;
pub(crate) mod launch;
mod owner;
pub(crate) mod relation;
mod state;
pub(crate) mod supervisor;

pub(crate) use owner::{Home, Message, View, Vm};
