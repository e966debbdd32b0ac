//! Rules that a test may break, to see that it would notice.

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// A commit returns after what it wrote was flushed.
    FlushBeforeAcknowledgement,
    /// What is in doubt after a crash counts only if it verifies.
    VerifyDoubts,
    /// Space is kept for writing the index anew.
    ReserveIndex,
    /// Space is kept for what segments take in the base.
    KeepOwed,
}

/// Whether `rule` is kept: always, but in tests that break it.
pub(crate) fn hold(rule: Rule) -> bool {
    #[cfg(test)]
    {
        BROKEN.with(std::cell::Cell::get) != Some(rule)
    }
    #[cfg(not(test))]
    {
        let _ = rule;
        true
    }
}

#[cfg(test)]
thread_local! {
    static BROKEN: std::cell::Cell<Option<Rule>> = const { std::cell::Cell::new(None) };
}

/// Does something while `rule` is broken on this thread.
#[cfg(test)]
pub(crate) fn broken<T>(rule: Rule, what: impl FnOnce() -> T) -> T {
    BROKEN.with(|broken| broken.set(Some(rule)));
    let outcome = what();
    BROKEN.with(|broken| broken.set(None));
    outcome
}
