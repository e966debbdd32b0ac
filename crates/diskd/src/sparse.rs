//! Messages that a guest can cause again and again.

use std::sync::atomic::{AtomicU64, Ordering};

/// Lets the first, second, fourth, eighth... of them through.
#[derive(Debug, Default)]
pub(crate) struct Sparse(AtomicU64);

impl Sparse {
    /// How many there were, this one included, if it is to be said.
    pub(crate) fn next(&self) -> Option<u64> {
        let number = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        number.is_power_of_two().then_some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_million_times_the_same_is_said_twenty_times() {
        let sparse = Sparse::default();
        assert_eq!((0..1 << 20).filter_map(|_| sparse.next()).count(), 21);
        assert_eq!(Sparse::default().next(), Some(1));
    }
}
