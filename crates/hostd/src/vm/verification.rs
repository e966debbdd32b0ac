//! What verifying a twin against its primary found, in words.

use model::{Bytes, DiskId, VmSpec};
use replica::report::Verification;

/// So many ranges are named; a program is told more of them.
const NAMED: usize = 3;

/// The number under which the VM has the disk.
pub(crate) fn slot(spec: &VmSpec, disk: DiskId) -> u8 {
    let found = spec.disks.iter().find(|one| one.id == disk);
    found.map_or(0, |one| one.slot)
}

/// How much is damaged, and where.
pub(crate) fn damage(found: &Verification, spec: &VmSpec) -> String {
    let named = found.damage.iter().take(NAMED).map(|range| {
        let (at, slot) = (Bytes(range.at), slot(spec, range.disk));
        format!("{} at {at} of disk {slot}", range.len)
    });
    let named = named.collect::<Vec<_>>().join(", ");
    let left = found.damage.len().saturating_sub(NAMED) as u64;
    match left.saturating_add(found.more) {
        0 => format!("{}: {named}", found.damaged),
        more => format!("{}: {named}, and {more} more ranges", found.damaged),
    }
}
