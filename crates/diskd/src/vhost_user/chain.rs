//! Walks a descriptor chain from its head (VIRTIO 1.2, section 2.7.5).
//!
//! Walking starts at a head index and not at the available ring, because after a
//! restart the requests in flight are known by their heads alone. Every field is the guest's
//! and read once. A chain that cannot be followed is malformed; one that can, but
//! names memory that the guest does not have, is still answered if its status byte is reachable.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::memory::{Area, Memory, Span};

/// Size of a descriptor in bytes.
pub(super) const DESCRIPTOR: usize = 16;

/// Most descriptors in one chain, indirect ones included; QEMU's own limit.
pub(super) const MAX_CHAIN: u32 = 1024;

/// A chain that was followed to its end.
#[derive(Debug)]
pub(super) struct Chain {
    /// What the device reads, in order.
    pub(super) readable: Span,
    /// What the device writes, in order.
    pub(super) writable: Span,
    /// Whether the last writable descriptor, which holds the status byte, is in `writable`.
    pub(super) answerable: bool,
    /// Whether some descriptor names memory that the guest does not have.
    pub(super) outside: bool,
}

/// Why a chain cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// A descriptor index is not in its table.
    #[error("descriptor {0} is outside its table")]
    Index(u16),
    /// More descriptors than any honest chain has: most likely a loop.
    #[error("the chain has more than {MAX_CHAIN} descriptors or loops")]
    TooLong,
    /// A readable descriptor after a writable one.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table inside an indirect table, or one with a successor.
    #[error("an indirect descriptor stands where none may")]
    Nested,
    /// An indirect table of a wrong size or outside guest memory.
    #[error("an indirect table of {0} bytes is empty, cut or outside guest memory")]
    Table(u32),
    /// The chain needs a feature that was not negotiated.
    #[error("an indirect descriptor without the feature")]
    NoIndirect,
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u32,
    next: u16,
}

fn descriptor(table: &Area, index: u16) -> Result<Descriptor, Malformed> {
    let at = usize::from(index) * DESCRIPTOR;
    if at + DESCRIPTOR > table.len() {
        return Err(Malformed::Index(index));
    }
    let [
        a0,
        a1,
        a2,
        a3,
        a4,
        a5,
        a6,
        a7,
        l0,
        l1,
        l2,
        l3,
        f0,
        f1,
        n0,
        n1,
    ] = table.read(at);
    Ok(Descriptor {
        address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        len: u32::from_le_bytes([l0, l1, l2, l3]),
        flags: u32::from(u16::from_le_bytes([f0, f1])),
        next: u16::from_le_bytes([n0, n1]),
    })
}

/// Follows the chain that starts at `head` of `table`.
pub(super) fn walk(
    table: &Area,
    head: u16,
    memory: &Arc<Memory>,
    indirect_allowed: bool,
) -> Result<Chain, Malformed> {
    let mut chain = Chain {
        readable: Span::new(memory),
        writable: Span::new(memory),
        answerable: false,
        outside: false,
    };
    let mut indirect: Option<Area> = None;
    let (mut index, mut seen, mut writing) = (head, 0, false);
    loop {
        let entry = descriptor(indirect.as_ref().unwrap_or(table), index)?;
        let has_next = entry.flags & VRING_DESC_F_NEXT != 0;
        if entry.flags & VRING_DESC_F_INDIRECT != 0 {
            if !indirect_allowed {
                return Err(Malformed::NoIndirect);
            }
            if indirect.is_some() || has_next {
                return Err(Malformed::Nested);
            }
            let refuse = Malformed::Table(entry.len);
            let len = usize::try_from(entry.len).ok().ok_or(refuse)?;
            if len == 0 || len % DESCRIPTOR != 0 {
                return Err(refuse);
            }
            indirect = Some(memory.area(entry.address, len).ok_or(refuse)?);
            index = 0;
            continue;
        }
        seen += 1;
        if seen > MAX_CHAIN {
            return Err(Malformed::TooLong);
        }
        if entry.flags & VRING_DESC_F_WRITE != 0 {
            writing = true;
            let inside = chain.writable.push(entry.address, entry.len);
            chain.outside |= !inside;
            if entry.len > 0 {
                chain.answerable = inside;
            }
        } else if writing {
            return Err(Malformed::Order);
        } else {
            chain.outside |= !chain.readable.push(entry.address, entry.len);
        }
        if !has_next {
            return Ok(chain);
        }
        index = entry.next;
    }
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
