//! Which points a journal takes in: the rule, a pure function of what it holds and what is offered.
//!
//! ```text
//!   journal    1.1 -- 1.2 -- 1.3                 newest: 1.3
//!   fits             since 1.2 ----> 1.4         it holds all that changed after 1.2
//!   gap                         since 1.4 -> 1.5 what changed from 1.3 to 1.4 is missing
//!   diverged            \-- 2.3 ----> 2.4        grew from 1.2: 1.3 is not of its history
//! ```
//!
//! The model check of who may run (`replica`) goes through every interleaving of two hosts with it.

use model::{Lineage, PointId, SeedId, Since, Term, TermId};

use crate::{Refusal, Root, Verdict};

/// What decides of a journal's content.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The initial replication that it began with.
    pub seed: SeedId,
    /// How many parts of that were received, while it goes on.
    pub parts: Option<u64>,
    /// The lineage of the newest point.
    pub lineage: Option<&'a Lineage>,
    /// The newest point.
    pub newest: Option<PointId>,
    /// The root of the point that is offered, if it is held already.
    pub known: Option<Root>,
}

/// A point that is offered: the current term of `lineage` cut it.
#[derive(Debug, Clone, Copy)]
pub struct Offered<'a> {
    /// The history it lies on.
    pub lineage: &'a Lineage,
    /// Its number in the current term of that.
    pub sequence: u64,
    /// What it builds on.
    pub since: Since,
    /// Its content.
    pub root: Root,
}

/// Whether a point may come: [`Verdict::Fits`] iff the newest point held lies on its lineage, and
/// `since` <= newest < sequence. The same point with the same root was taken before; with another
/// root it is an alarm.
///
/// # Errors
/// [`Refusal`]
pub fn accept(held: &Held<'_>, offered: &Offered<'_>) -> Result<Verdict, Refusal> {
    let point = PointId {
        term: offered.lineage.current().id,
        sequence: offered.sequence,
    };
    if let Some(known) = held.known {
        return if known == offered.root {
            Ok(Verdict::Have)
        } else {
            Err(Refusal::OtherRoot(point))
        };
    }
    if let Since::Seed { seed, .. } = offered.since {
        if seed != held.seed {
            return Err(Refusal::OtherSeed(seed));
        }
    }
    let Some(tip) = held.newest else {
        return match (offered.since, held.parts) {
            (Since::Seed { parts: needs, .. }, Some(has)) if needs != has => {
                Err(Refusal::Parts { needs, has })
            }
            (Since::Seed { .. }, Some(_)) => Ok(Verdict::Fits),
            _ => Err(Refusal::Seeding),
        };
    };
    let same_history = held
        .lineage
        .is_none_or(|ours| path(ours, tip.term) == path(offered.lineage, tip.term));
    if !offered.lineage.contains(tip) || !same_history {
        return Err(Refusal::Diverged(tip));
    }
    if tip.sequence >= offered.sequence {
        return Err(Refusal::NotNewer(tip));
    }
    match offered.since {
        Since::Point(since) if since.sequence > tip.sequence => Err(Refusal::Gap { since, tip }),
        _ => Ok(Verdict::Fits),
    }
}

/// The terms up to `term`; none if it is not among them.
fn path(lineage: &Lineage, term: TermId) -> Option<&[Term]> {
    let terms = lineage.terms();
    let at = terms.iter().position(|known| known.id == term)?;
    Some(&terms[..=at])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(of: u8) -> Root {
        Root([of; 32])
    }

    fn at(lineage: &Lineage, sequence: u64) -> PointId {
        PointId {
            term: lineage.current().id,
            sequence,
        }
    }

    #[test]
    fn a_point_fits_iff_the_newest_lies_on_its_history_and_it_holds_all_that_changed_since() {
        let first = Lineage::begin("host-a");
        let newest = at(&first, 3);
        let held = Held {
            seed: SeedId::random(),
            parts: None,
            lineage: Some(&first),
            newest: Some(newest),
            known: None,
        };
        let judge = |lineage: &Lineage, sequence, since| {
            let since = Since::Point(since);
            let root = root(1);
            let offered = Offered {
                lineage,
                sequence,
                since,
                root,
            };
            accept(&held, &offered)
        };
        assert_eq!(judge(&first, 4, at(&first, 3)), Ok(Verdict::Fits));
        assert_eq!(judge(&first, 9, at(&first, 1)), Ok(Verdict::Fits));
        let not_newer = Err(Refusal::NotNewer(newest));
        assert_eq!(judge(&first, 3, at(&first, 2)), not_newer);
        let since = at(&first, 4);
        let gap = Err(Refusal::Gap { since, tip: newest });
        assert_eq!(judge(&first, 5, since), gap);

        let later = first.branch(newest, "host-b").expect("on it");
        assert_eq!(judge(&later, 4, newest), Ok(Verdict::Fits));
        let before = first.branch(at(&first, 2), "host-b").expect("on it");
        let diverged = Err(Refusal::Diverged(newest));
        assert_eq!(judge(&before, 4, at(&first, 2)), diverged);
        let other = Lineage::begin("host-a");
        assert_eq!(judge(&other, 4, at(&other, 3)), diverged);
    }

    #[test]
    fn the_same_point_is_had_and_with_other_content_an_alarm() {
        let lineage = Lineage::begin("host-a");
        let held = Held {
            seed: SeedId::random(),
            parts: None,
            lineage: Some(&lineage),
            newest: Some(at(&lineage, 3)),
            known: Some(root(1)),
        };
        let offered = |root| Offered {
            lineage: &lineage,
            sequence: 3,
            since: Since::Point(at(&lineage, 2)),
            root,
        };
        assert_eq!(accept(&held, &offered(root(1))), Ok(Verdict::Have));
        let alarm = accept(&held, &offered(root(2))).expect_err("two contents");
        assert!(alarm.is_alarm());
    }

    #[test]
    fn the_first_point_builds_on_exactly_the_parts_that_came() {
        let lineage = Lineage::begin("host-a");
        let (ours, other) = (SeedId::random(), SeedId::random());
        let held = |parts| Held {
            seed: ours,
            parts,
            lineage: None,
            newest: None,
            known: None,
        };
        let judge = |parts, since| {
            let offered = Offered {
                lineage: &lineage,
                sequence: 1,
                since,
                root: root(1),
            };
            accept(&held(parts), &offered)
        };
        let seed = |seed, parts| Since::Seed { seed, parts };
        assert_eq!(judge(Some(2), seed(ours, 2)), Ok(Verdict::Fits));
        let parts = Err(Refusal::Parts { needs: 3, has: 2 });
        assert_eq!(judge(Some(2), seed(ours, 3)), parts);
        assert_eq!(
            judge(Some(2), seed(other, 2)),
            Err(Refusal::OtherSeed(other))
        );
        let point = Since::Point(at(&lineage, 1));
        assert_eq!(judge(Some(2), point), Err(Refusal::Seeding));
    }
}
