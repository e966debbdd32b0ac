//! When a diskd that died is started again.

use std::time::Duration;

/// One that served this long did not die of its start.
const SOUND: Duration = Duration::from_secs(1);
const FIRST: Duration = Duration::from_millis(20);
const MOST: Duration = Duration::from_secs(1);

/// At once, unless one after the other dies before it has served for a second.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    quick_deaths: u32,
}

impl Backoff {
    /// How long to wait after one that served for `served` has died; none if it never did, however
    /// long it lived.
    pub(crate) fn after(&mut self, served: Option<Duration>) -> Duration {
        if served.is_some_and(|served| served >= SOUND) {
            self.quick_deaths = 0;
            return Duration::ZERO;
        }
        self.quick_deaths = self.quick_deaths.saturating_add(1);
        match self.quick_deaths {
            1 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 2).min(10)).min(MOST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_death_costs_nothing_and_many_quick_ones_a_second_at_most() {
        let mut backoff = Backoff::default();
        let quick = Some(Duration::from_millis(1));
        assert_eq!(backoff.after(quick), Duration::ZERO);
        let mut last = Duration::ZERO;
        for _ in 0..100 {
            let wait = backoff.after(quick);
            assert!(wait >= last && wait > Duration::ZERO && wait <= MOST);
            last = wait;
        }
        assert_eq!(last, MOST);
        assert_eq!(backoff.after(None), MOST, "it never served");
        assert_eq!(backoff.after(Some(SOUND)), Duration::ZERO);
        assert_eq!(backoff.after(quick), Duration::ZERO);
    }
}
