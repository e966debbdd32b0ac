//! The network between the two hosts: a wire to each.

use anyhow::Result;
use pollux_tests::Wire;

/// Breaks and is mended as a whole.
pub(super) struct Network([Wire; 2]);

impl Network {
    /// To hosts that listen on these ports.
    pub(super) fn to(ports: [u16; 2]) -> Result<Self> {
        Ok(Self([Wire::to(ports[0])?, Wire::to(ports[1])?]))
    }

    /// Where the host with that number is reached.
    pub(super) fn address(&self, host: usize) -> String {
        self.0[host].address()
    }

    pub(super) fn cut(&self) {
        self.0.iter().for_each(Wire::cut);
    }

    /// Breaks by itself once either wire carried so many bytes more.
    pub(super) fn cut_after(&self, bytes: u64) {
        self.0.iter().for_each(|wire| wire.cut_after(bytes));
    }

    /// Whether at least one way is broken.
    pub(super) fn is_cut(&self) -> bool {
        self.0.iter().any(Wire::is_cut)
    }

    pub(super) fn mend(&self) {
        self.0.iter().for_each(Wire::mend);
    }
}
