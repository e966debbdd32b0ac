//! The data-plane process of one VM: vhost-user-blk, tracker, epochs, control socket.

pub mod config;
pub mod control;
pub mod vhost_user;
