//! What does not fit does not start.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use model::{Bytes, Code, Problem, VmId};

/// What QEMU needs beside the guest's memory.
const OVERHEAD: Bytes = Bytes(96 << 20);

/// Memory of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HostMemory {
    /// All of it.
    pub(crate) total: Bytes,
    /// What could be had without swapping (`MemAvailable`, proc_meminfo(5)).
    pub(crate) available: Bytes,
}

impl HostMemory {
    /// Reads `/proc/meminfo`.
    pub(crate) fn read() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/meminfo")?)
            .ok_or_else(|| io::Error::other("/proc/meminfo lacks MemTotal or MemAvailable"))
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| -> Option<Bytes> {
            let line = text.lines().find(|line| line.starts_with(name))?;
            let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            kib.checked_mul(1024).map(Bytes)
        };
        Some(Self {
            total: field("MemTotal:")?,
            available: field("MemAvailable:")?,
        })
    }
}

/// How much another guest may have: neither more than is available now, nor so much that all
/// guests together could use more than the host has, both less the host's reserve.
pub(crate) fn room(host: HostMemory, guests: Bytes, reserve: Bytes) -> Bytes {
    let now = host.available.0;
    let promised = host.total.0.saturating_sub(guests.0);
    Bytes(now.min(promised).saturating_sub(reserve.0))
}

/// Memory promised to guests that run or are being started.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    promised: Mutex<HashMap<VmId, Bytes>>,
}

impl Ledger {
    /// Promises `memory` to `vm`, called `thing` in the refusal, if it fits.
    pub(crate) fn admit(
        &self,
        vm: VmId,
        thing: &str,
        memory: Bytes,
        reserve: Bytes,
    ) -> Result<(), Problem> {
        let host = HostMemory::read().map_err(|error| Problem::failed("host memory", &error))?;
        let mut promised = self.lock();
        let room = room(host, sum(&promised), reserve);
        let needed = Bytes(memory.0.saturating_add(OVERHEAD.0));
        if needed > room {
            return Err(Problem::new(
                Code::Full,
                thing,
                format!(
                    "needs {needed} of memory ({memory} for the guest), and the host has {room} \
                     left for guests"
                ),
                format!(
                    "Stop another VM, or give this one less memory ({reserve} is kept for the \
                     host: `memory_reserve` in host.toml)"
                ),
            ));
        }
        promised.insert(vm, needed);
        Ok(())
    }

    /// A guest that was found running.
    pub(crate) fn adopt(&self, vm: VmId, memory: Bytes) {
        let needed = Bytes(memory.0.saturating_add(OVERHEAD.0));
        self.lock().insert(vm, needed);
    }

    /// The guest of `vm` is gone.
    pub(crate) fn release(&self, vm: VmId) {
        self.lock().remove(&vm);
    }

    /// What is promised in sum.
    pub(crate) fn promised(&self) -> Bytes {
        sum(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Bytes>> {
        // Each change is one call on the map: a panic elsewhere leaves it whole.
        self.promised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(promised: &HashMap<VmId, Bytes>) -> Bytes {
    Bytes(
        promised
            .values()
            .fold(0, |sum, bytes| sum.saturating_add(bytes.0)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn memory_that_guests_may_still_touch_is_not_promised_twice() {
        let host = HostMemory {
            total: Bytes(16 * GIB),
            available: Bytes(15 * GIB),
        };
        // 12 GiB promised and hardly touched yet.
        assert_eq!(room(host, Bytes(12 * GIB), Bytes(GIB)), Bytes(3 * GIB));
        assert_eq!(room(host, Bytes(0), Bytes(GIB)), Bytes(14 * GIB));
        assert_eq!(room(host, Bytes(20 * GIB), Bytes(GIB)), Bytes(0));
    }

    #[test]
    fn meminfo_is_read_in_kibibytes() {
        let text = "MemTotal:       2048 kB\nMemFree: 1 kB\nMemAvailable:   1024 kB\n";
        let memory = HostMemory::parse(text).expect("both are there");
        assert_eq!(memory.total, Bytes(2 << 20));
        assert_eq!(memory.available, Bytes(1 << 20));
        assert!(HostMemory::parse("MemTotal: x kB").is_none());
    }

    #[test]
    fn what_does_not_fit_is_refused_and_promised_nothing() {
        let ledger = Ledger::default();
        let problem = ledger
            .admit(VmId::random(), "VM `big`", Bytes(1 << 60), Bytes(0))
            .expect_err("no host has that");
        assert_eq!(problem.code, Code::Full);
        assert_eq!(ledger.promised(), Bytes(0));
    }
}
