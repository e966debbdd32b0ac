//! Two stacks of a disk compared: what has to be done to go from one to the other.
//!
//! ```text
//!   old   base  a  b  c  d
//!   new   base  a     c     e  f
//!               |  |  |  |  '--'-- fresh: pushed on top
//!               |  |  |  thrown away: above what is kept, and replaced
//!               |  |  kept
//!               |  dropped: it was drained, nothing is missed without it
//! ```
//!
//! What is kept stays in its order, and what is fresh lies on top. Without anything fresh nothing is thrown
//! away. What lies below everything is exchanged in one way only: a recovery point for the file that holds
//! all of it, with overlays above, if whoever carries that out has made sure of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use model::{CheckpointId, PointId};

use crate::config::StackSpec;

/// A stack that cannot be, or that cannot be reached.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PlanError {
    /// Only what lies right above a point is the overlay of no checkpoint.
    #[error("the overlay {} must name its checkpoint, unless it lies right above a point", .0.display())]
    Checkpoint(PathBuf),
    /// A file has two uses.
    #[error("{} is named twice", .0.display())]
    Twice(PathBuf),
    /// A checkpoint has two overlays.
    #[error("checkpoint {0} is named twice")]
    SameCheckpoint(CheckpointId),
    /// Another disk.
    #[error("what lies below everything is another than before")]
    Base,
    /// Overlays are kept above others than before.
    #[error("the overlay {} would lie above another one than before", .0.display())]
    Order(PathBuf),
}

/// What lies below everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Base {
    Raw(PathBuf),
    Point { journal: PathBuf, point: PointId },
}

/// An overlay of a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) file: PathBuf,
    pub(crate) map: PathBuf,
    pub(crate) checkpoint: Option<CheckpointId>,
}

/// A stack as a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flat {
    pub(crate) base: Base,
    /// The lowest first.
    pub(crate) overlays: Vec<Over>,
}

impl Flat {
    pub(crate) fn of(spec: &StackSpec) -> Result<Self, PlanError> {
        let mut overlays = Vec::new();
        let mut at = spec;
        let base = loop {
            match at {
                StackSpec::Raw { file } => break Base::Raw(file.clone()),
                StackSpec::Point { journal, point } => {
                    break Base::Point {
                        journal: journal.clone(),
                        point: *point,
                    };
                }
                StackSpec::Overlay {
                    file,
                    map,
                    checkpoint,
                    below,
                } => {
                    overlays.push(Over {
                        file: file.clone(),
                        map: map.clone(),
                        checkpoint: *checkpoint,
                    });
                    at = below;
                }
            }
        };
        overlays.reverse();
        let flat = Self { base, overlays };
        flat.check()?;
        Ok(flat)
    }

    fn check(&self) -> Result<(), PlanError> {
        let mut paths: HashSet<&Path> = HashSet::new();
        let above_point = match &self.base {
            Base::Raw(file) => {
                paths.insert(file);
                false
            }
            Base::Point { .. } => true,
        };
        let mut checkpoints = HashSet::new();
        for (number, over) in self.overlays.iter().enumerate() {
            for path in [&over.file, &over.map] {
                if !paths.insert(path) {
                    return Err(PlanError::Twice(path.clone()));
                }
            }
            match over.checkpoint {
                None if above_point && number == 0 => {}
                None => return Err(PlanError::Checkpoint(over.file.clone())),
                Some(checkpoint) if !checkpoints.insert(checkpoint) => {
                    return Err(PlanError::SameCheckpoint(checkpoint));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Whether nothing in it can be written: a recovery point, and nothing above it.
    pub(crate) fn is_read_only(&self) -> bool {
        matches!(self.base, Base::Point { .. }) && self.overlays.is_empty()
    }

    /// The files that hold content, the lowest first.
    pub(crate) fn files(&self) -> Vec<&Path> {
        let base = match &self.base {
            Base::Raw(file) => Some(file),
            Base::Point { .. } => None,
        };
        let overlays = self.overlays.iter().map(|over| &over.file);
        base.into_iter()
            .chain(overlays)
            .map(PathBuf::as_path)
            .collect()
    }
}

/// How to go from one stack to another. Numbers are those of overlays in the old one, rising.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) kept: Vec<usize>,
    pub(crate) dropped: Vec<usize>,
    pub(crate) thrown_away: Vec<usize>,
    /// So many of the new stack's overlays, the last ones, are fresh.
    pub(crate) fresh: usize,
    /// The base was a point, and is to be the file that holds all of it.
    pub(crate) flattened: bool,
}

impl Plan {
    pub(crate) fn between(old: &Flat, new: &Flat) -> Result<Self, PlanError> {
        let flattened = match (&old.base, &new.base) {
            (old, new) if old == new => false,
            // A point that is only read stays so.
            (Base::Point { .. }, Base::Raw(_)) if !old.is_read_only() => true,
            _ => return Err(PlanError::Base),
        };
        let place = |over: &Over| old.overlays.iter().position(|one| one == over);
        let kept: Vec<usize> = new.overlays.iter().map_while(place).collect();
        let fresh = &new.overlays[kept.len()..];
        if let Some(late) = fresh.iter().find(|over| {
            let same = |one: &&Over| one.file == over.file || one.map == over.map;
            old.overlays.iter().find(same).is_some()
        }) {
            return Err(PlanError::Order(late.file.clone()));
        }
        if let Some(pair) = kept.windows(2).find(|pair| pair[0] >= pair[1]) {
            return Err(PlanError::Order(old.overlays[pair[1]].file.clone()));
        }
        let above = kept.last().map_or(0, |last| last + 1);
        let removed = (0..old.overlays.len()).filter(|number| !kept.contains(number));
        let (thrown_away, dropped) =
            removed.partition(|number| *number >= above && !fresh.is_empty());
        let fresh = fresh.len();
        Ok(Self {
            kept,
            dropped,
            thrown_away,
            fresh,
            flattened,
        })
    }
}

#[cfg(test)]
mod tests {
    use model::TermId;

    use super::*;

    /// Overlays of checkpoints, the lowest first.
    fn flat(overlays: &[CheckpointId]) -> Flat {
        Flat {
            base: Base::Raw("base".into()),
            overlays: overlays.iter().map(|id| over(Some(*id))).collect(),
        }
    }

    fn over(checkpoint: Option<CheckpointId>) -> Over {
        let name = checkpoint.map_or("none".to_owned(), |id| id.to_string());
        Over {
            file: name.clone().into(),
            map: format!("{name}.map").into(),
            checkpoint,
        }
    }

    fn plan(kept: &[usize], dropped: &[usize], thrown_away: &[usize], fresh: usize) -> Plan {
        Plan {
            kept: kept.to_vec(),
            dropped: dropped.to_vec(),
            thrown_away: thrown_away.to_vec(),
            fresh,
            flattened: false,
        }
    }

    #[test]
    fn overlays_are_pushed_dropped_and_replaced() {
        let [a, b, c, d] = std::array::from_fn(|_| CheckpointId::random());
        for (old, new, expected) in [
            (vec![], vec![], plan(&[], &[], &[], 0)),
            (vec![], vec![a], plan(&[], &[], &[], 1)),
            (vec![a], vec![a, b, c], plan(&[0], &[], &[], 2)),
            (vec![a, b, c], vec![a, c], plan(&[0, 2], &[1], &[], 0)),
            (vec![a, b, c], vec![a], plan(&[0], &[1, 2], &[], 0)),
            (vec![a, b, c], vec![a, d], plan(&[0], &[], &[1, 2], 1)),
            (vec![a, b, c], vec![b, d], plan(&[1], &[0], &[2], 1)),
            (vec![a, b], vec![c], plan(&[], &[], &[0, 1], 1)),
        ] {
            let (old, new) = (flat(&old), flat(&new));
            assert_eq!(Plan::between(&old, &new), Ok(expected), "{old:?} {new:?}");
        }
    }

    #[test]
    fn a_point_becomes_the_file_that_holds_it_and_nothing_else_is_exchanged() {
        let [a, b] = std::array::from_fn(|_| CheckpointId::random());
        let point = PointId {
            term: TermId::random(),
            sequence: 1,
        };
        let at_point = |overlays: &[CheckpointId]| Flat {
            base: Base::Point {
                journal: "journal".into(),
                point,
            },
            ..flat(overlays)
        };
        let flattened = |plan: Plan| Plan {
            flattened: true,
            ..plan
        };
        let to = |new: &[CheckpointId]| Plan::between(&at_point(&[a]), &flat(new));
        assert_eq!(to(&[a]), Ok(flattened(plan(&[0], &[], &[], 0))));
        assert_eq!(to(&[a, b]), Ok(flattened(plan(&[0], &[], &[], 1))));
        for (old, new) in [
            (at_point(&[]), flat(&[])),
            (flat(&[a]), at_point(&[a])),
            (
                at_point(&[a]),
                Flat {
                    base: Base::Point {
                        journal: "other".into(),
                        point,
                    },
                    ..flat(&[a])
                },
            ),
        ] {
            assert_eq!(Plan::between(&old, &new), Err(PlanError::Base));
        }
    }

    #[test]
    fn an_overlay_never_gets_above_another_one() {
        let [a, b, c] = std::array::from_fn(|_| CheckpointId::random());
        for (old, new) in [
            (vec![a, b], vec![b, a]),
            (vec![a, b], vec![a, c, b]),
            (vec![a], vec![c, a]),
        ] {
            let plan = Plan::between(&flat(&old), &flat(&new));
            assert!(matches!(plan, Err(PlanError::Order(_))), "{plan:?}");
        }
        // Its files for another checkpoint.
        let mut other = flat(&[a]);
        other.overlays[0].checkpoint = Some(c);
        assert!(Plan::between(&flat(&[a]), &other).is_err());
        let mut other = flat(&[a]);
        other.base = Base::Raw("other".into());
        assert_eq!(Plan::between(&flat(&[a]), &other), Err(PlanError::Base));
    }

    #[test]
    fn a_stack_that_cannot_be_is_refused() {
        let (a, point) = (
            CheckpointId::random(),
            PointId {
                term: TermId::random(),
                sequence: 1,
            },
        );
        let raw = || StackSpec::Raw {
            file: "base".into(),
        };
        let above = |over: Over, below| StackSpec::Overlay {
            file: over.file,
            map: over.map,
            checkpoint: over.checkpoint,
            below: Box::new(below),
        };
        let at_point = || StackSpec::Point {
            journal: "journal".into(),
            point,
        };
        assert!(Flat::of(&raw()).is_ok());
        let read_only = |stack| Flat::of(&stack).map(|flat| flat.is_read_only());
        assert_eq!(read_only(at_point()), Ok(true));
        assert_eq!(read_only(above(over(None), at_point())), Ok(false));
        assert_eq!(read_only(raw()), Ok(false));
        let twin = Flat::of(&above(over(Some(a)), above(over(None), at_point())));
        assert_eq!(twin.expect("checkpoint of a twin").files().len(), 2);
        for wrong in [
            above(over(None), raw()),
            above(over(None), above(over(Some(a)), raw())),
            above(over(Some(a)), above(over(Some(a)), raw())),
            above(
                Over {
                    map: "base".into(),
                    ..over(Some(a))
                },
                raw(),
            ),
        ] {
            assert!(Flat::of(&wrong).is_err(), "{wrong:?}");
        }
    }
}
