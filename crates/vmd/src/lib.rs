//! The supervisor of one VM: holds sockets, starts and reaps diskd and QEMU.

pub mod config;
pub mod control;
