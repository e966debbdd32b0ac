//! The three nouns of the block stack: [`Device`], [`Image`], [`Store`].
//!
//! ```text
//!   front end --Op--> Device (tracker, overlay, ...) --Op--> Device (image over store)
//!                                                              |            |
//!                                                    Image: ranges      Store: owned bytes
//!                                                      to places          to a file
//! ```
//!
//! - A [`Device`] runs one [`Op`] at a time per call, any number of them at once.
//!   The operation owns its memory and gives it back when done.
//! - An [`Image`] says where the content of a range is and never carries payload.
//! - A [`Store`] moves owned bytes to and from a file.
//!
//! A [`Gate`] is the device under which a running stack is exchanged.
//!
//! Everything here lives on one owner thread (see `ring`): futures are not `Send`,
//! nothing is locked. Operations run to completion: they are spawned and drained,
//! never dropped while the kernel may still touch their memory.

mod buffer;
mod claim;
mod device;
mod gate;
mod image;
mod store;
mod wait;

pub use buffer::Buffer;
pub use claim::{Claim, Claims};
pub use device::{Device, Done, Fault, Op};
pub use gate::{Gate, Swapped};
pub use image::{Image, Place};
pub use store::Store;
pub use wait::Waiters;
