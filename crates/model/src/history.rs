//! Names of history: terms, their lineage, points.
//!
//! A *term* is one stretch of being the primary. Whoever takes over opens a new
//! one that names the point it grew from. The *lineage* is the path of terms
//! from the first to the current one; ancestry in it, not the number, decides
//! what is newer. Diverged histories are never joined by themselves.
//!
//! ```text
//!   term 1 (host-a)   1.1 -- 1.2 -- 1.3 -- 1.4      1.4 was never acknowledged
//!   term 2 (host-b)                    \-- 2.4 -- 2.5      parent point 1.3
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{SeedId, TermId};

/// A point in the history of a VM. Sequence numbers are reserved durably and never used twice
/// within a term, and a new term goes on counting above its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PointId {
    /// The term in which it was cut.
    pub term: TermId,
    /// Its number, from 1.
    pub sequence: u64,
}

/// What a segment builds on: it holds every block that changed after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Since {
    /// The content shipped by an initial replication.
    Seed {
        /// The initial replication.
        seed: SeedId,
        /// The number of its parts: whoever has fewer, or more, has another content.
        parts: u64,
    },
    /// An earlier point.
    Point(PointId),
}

/// One stretch of being the primary.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Term {
    /// Counts up along a lineage, from 1. Two hosts may open the same number: see `id`.
    pub number: u64,
    /// Random, so that two terms opened apart are never taken for the same.
    pub id: TermId,
    /// Name of the host that opened it.
    pub opener: String,
    /// The point it grew from; none for the first term of a VM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<PointId>,
}

/// A lineage that breaks its own rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineageError {
    /// There is always a first term.
    #[error("the lineage has no term")]
    Empty,
    /// More terms than [`Lineage::MAX_TERMS`].
    #[error("the lineage has {0} terms, more than {max}", max = Lineage::MAX_TERMS)]
    TooLong(usize),
    /// Numbers must rise, the first has no parent, each later one grows from the term before it.
    #[error("term {number} of the lineage {fault}")]
    Term {
        /// Number of the term at fault.
        number: u64,
        /// What is wrong with it.
        fault: &'static str,
    },
}

/// The path of terms from the first to the current one. Never empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<Term>", into = "Vec<Term>")]
pub struct Lineage(Vec<Term>);

impl Lineage {
    /// More takeovers than a VM sees in its life; bounds what a reader allocates.
    pub const MAX_TERMS: usize = 4096;
    /// Longest name of an opener in bytes: host names are shorter. With the number of terms it
    /// bounds what a partner can make this host store.
    pub const MAX_OPENER: usize = 255;

    /// The lineage of a new VM, opened by the host `opener`.
    #[must_use]
    pub fn begin(opener: &str) -> Self {
        Self(vec![Term {
            number: 1,
            id: TermId::random(),
            opener: opener.to_owned(),
            parent: None,
        }])
    }

    /// This lineage up to `parent`, continued by a new term that `opener` opens there.
    ///
    /// None if `parent` does not lie on this lineage.
    #[must_use]
    pub fn branch(&self, parent: PointId, opener: &str) -> Option<Self> {
        let at = self.0.iter().position(|term| term.id == parent.term)?;
        if !self.contains(parent) {
            return None;
        }
        let mut terms = self.0[..=at].to_vec();
        // Above every number seen, so that a person comparing two hosts is not misled.
        let number = self.current().number.checked_add(1)?;
        terms.push(Term {
            number,
            id: TermId::random(),
            opener: opener.to_owned(),
            parent: Some(parent),
        });
        Some(Self(terms))
    }

    /// The terms, the first one first.
    #[must_use]
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// The last term.
    #[must_use]
    pub fn current(&self) -> &Term {
        &self.0[self.0.len() - 1]
    }

    /// Whether `point` may lie on this lineage: its term does, and the next term did not
    /// branch off before it.
    #[must_use]
    pub fn contains(&self, point: PointId) -> bool {
        let Some(at) = self.0.iter().position(|term| term.id == point.term) else {
            return false;
        };
        let after_own_parent = self.0[at]
            .parent
            .is_none_or(|parent| parent.sequence < point.sequence);
        let before_branch = self
            .0
            .get(at + 1)
            .and_then(|next| next.parent)
            .is_none_or(|parent| point.sequence <= parent.sequence);
        after_own_parent && before_branch
    }

    /// The number of the next point in the current term, when all up to `used` may have been used:
    /// above those and above the point that the term grew from. None when there is none left.
    #[must_use]
    pub fn next_sequence(&self, used: u64) -> Option<u64> {
        let grown = self.current().parent.map_or(0, |parent| parent.sequence);
        used.max(grown).checked_add(1)
    }

    /// Whether `self` is `ancestor`, or continues it from a point on it.
    #[must_use]
    pub fn descends_from(&self, ancestor: &Lineage) -> bool {
        self.0.len() >= ancestor.0.len() && self.0[..ancestor.0.len()] == ancestor.0[..]
    }

    /// Whether the current term of `older` lies on this lineage, but is not its current term:
    /// whoever still runs in `older` was succeeded.
    #[must_use]
    pub fn succeeds(&self, older: &Lineage) -> bool {
        self.0[..self.0.len() - 1]
            .iter()
            .any(|term| term.id == older.current().id)
    }
}

impl TryFrom<Vec<Term>> for Lineage {
    type Error = LineageError;

    fn try_from(terms: Vec<Term>) -> Result<Self, Self::Error> {
        if terms.len() > Self::MAX_TERMS {
            return Err(LineageError::TooLong(terms.len()));
        }
        let first = terms.first().ok_or(LineageError::Empty)?;
        let fault = |term: &Term, fault| {
            Err(LineageError::Term {
                number: term.number,
                fault,
            })
        };
        if let Some(term) = terms.iter().find(|t| t.opener.len() > Self::MAX_OPENER) {
            return fault(term, "names an opener that is no host name");
        }
        if first.parent.is_some() {
            return fault(first, "is the first and names a parent point");
        }
        for pair in terms.windows(2) {
            let (before, term) = (&pair[0], &pair[1]);
            if term.number <= before.number {
                return fault(term, "does not count above the one before it");
            }
            let Some(parent) = term.parent else {
                return fault(term, "names no parent point");
            };
            if parent.term != before.id {
                return fault(term, "grew from a point outside the term before it");
            }
            if before
                .parent
                .is_some_and(|earlier| parent.sequence <= earlier.sequence)
            {
                return fault(term, "grew from a point before its parent's own parent");
            }
        }
        Ok(Self(terms))
    }
}

impl From<Lineage> for Vec<Term> {
    fn from(lineage: Lineage) -> Self {
        lineage.0
    }
}

/// `term-prefix.sequence`, for people.
impl fmt::Display for PointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let term = self.term.0.simple().to_string();
        f.pad(&format!("{}.{}", &term[..8], self.sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(lineage: &Lineage, sequence: u64) -> PointId {
        PointId {
            term: lineage.current().id,
            sequence,
        }
    }

    #[test]
    fn a_branch_keeps_what_came_before_its_parent_and_nothing_after() {
        let first = Lineage::begin("host-a");
        let second = first
            .branch(point(&first, 3), "host-b")
            .expect("3 lies on it");
        assert!(second.contains(point(&first, 3)));
        assert!(!second.contains(point(&first, 4)));
        assert!(second.contains(point(&second, 4)));
        assert!(!second.contains(point(&second, 3)));
        assert_eq!(first.next_sequence(0), Some(1));
        assert_eq!(second.next_sequence(1), Some(4), "above its parent");
        assert_eq!(second.next_sequence(7), Some(8));
        assert_eq!(second.next_sequence(u64::MAX), None);
        assert!(second.succeeds(&first) && !first.succeeds(&second));
        assert!(second.descends_from(&first) && !first.descends_from(&second));
    }

    #[test]
    fn two_takeovers_from_one_point_do_not_succeed_each_other() {
        let first = Lineage::begin("host-a");
        let left = first.branch(point(&first, 3), "host-b").expect("on it");
        let right = first.branch(point(&first, 3), "host-c").expect("on it");
        assert!(!left.succeeds(&right) && !right.succeeds(&left));
        assert!(left.branch(point(&right, 4), "host-b").is_none());
    }

    #[test]
    fn a_lineage_from_outside_is_checked() {
        let first = Lineage::begin("host-a");
        let second = first.branch(point(&first, 3), "host-b").expect("on it");
        let good: Vec<Term> = second.clone().into();
        assert_eq!(Lineage::try_from(good.clone()), Ok(second));
        assert_eq!(Lineage::try_from(vec![]), Err(LineageError::Empty));
        assert!(Lineage::try_from(vec![good[1].clone()]).is_err());
        let mut long = good.clone();
        long[0].opener = "x".repeat(Lineage::MAX_OPENER + 1);
        assert!(Lineage::try_from(long).is_err());
        assert!(Lineage::try_from(vec![good[0].clone(), good[0].clone()]).is_err());
        let mut stray = good.clone();
        stray[1].parent = Some(PointId {
            term: TermId::random(),
            sequence: 3,
        });
        assert!(Lineage::try_from(stray).is_err());
    }
}
