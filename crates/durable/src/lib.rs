//! Files that are replaced atomically and locked exclusively.
//!
//! - [`replace`]: after a crash at any instant the file has its old content or
//!   its new one; after the call returned, the new one. [`create_folder`] and
//!   [`remove`] promise the same of a folder and of an absence.
//! - [`Lock`]: at most one process works on a file; the kernel drops the lock
//!   with its holder, so that nothing is left to clean up.
//! - [`Folder`] and [`File`]: the few calls that crash-safe formats are made of,
//!   so that a test can cut the power between any two of them.
//! - [`Group`]: those who wait for a flush at the same time share one.
//! - [`boot_id`]: tells state that survived `kill -9` from state of before a reboot; [`boot_time`]
//!   is the clock that nobody sets.

mod boot;
mod direct;
mod folder;
mod group;
mod lock;
mod replace;

pub use boot::{boot_id, boot_time};
pub use direct::Aligned;
pub use folder::{File, Folder, OsFile, OsFolder};
pub use group::{FEW, FileSystem, Flushed, Group, Need, OsFileSystem};
pub use lock::{Lock, LockError};
pub use replace::{create_folder, remove, replace, replace_in};
