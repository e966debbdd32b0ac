//! What the disks hold that are copied.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};

use crate::load::xorshift;

const MIB: usize = 1 << 20;

/// A new file of `len` bytes, whole MiB: of four MiB one is a hole, one is written zeroes, one can be
/// compressed to about a quarter, and one cannot be compressed. Gives how much is not zeroes.
pub(super) fn mixed(path: &Path, len: u64) -> Result<u64> {
    let write = || {
        let file = File::create(path)?;
        file.set_len(len)?;
        let mut part = vec![0; MIB];
        let mut random = 0x9e37_79b9_7f4a_7c15;
        let mut nonzero = 0;
        for (kind, at) in (0..4).cycle().zip((0..len).step_by(MIB)) {
            match kind {
                0 => continue,
                1 => part.fill(0),
                2 => compressible(&mut part, &mut random),
                _ => noise(&mut part, &mut random),
            }
            file.write_all_at(&part, at)?;
            nonzero += if kind > 1 { MIB as u64 } else { 0 };
        }
        file.sync_all()?;
        Ok::<_, std::io::Error>(nonzero)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

/// Fills `part` with what no program can make smaller.
pub(super) fn noise(part: &mut [u8], random: &mut u64) {
    for word in part.chunks_mut(8) {
        word.copy_from_slice(&xorshift(random).to_le_bytes()[..word.len()]);
    }
}

/// Records as databases have them: a quarter is different from one to the next.
fn compressible(part: &mut [u8], random: &mut u64) {
    for record in part.chunks_mut(64) {
        record.fill(b'.');
        let len = record.len().min(16);
        noise(&mut record[..len], random);
    }
}
