//! Which change sets lie between two points.
//!
//! Each edge says what changed from `since` to `point`, and so what changed from any point in
//! between to any other. From both ends the newer one goes back, edge by edge, until they meet: at
//! the same point, or because an edge passes the other end.

use model::{Lineage, PointId, Since};

/// A segment or a change set, as far as history goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edge {
    /// It has every block that changed after that,
    pub(crate) since: Since,
    /// up to that.
    pub(crate) point: PointId,
}

/// The positions of edges that together say what differs between `x` and `y`; none if they do
/// not. `lineage` orders the terms; one that is not on it was given up, and grew from one that is.
pub(crate) fn path(
    edges: &[Edge],
    lineage: Option<&Lineage>,
    x: PointId,
    y: PointId,
) -> Option<Vec<usize>> {
    let map = Map::of(edges, lineage);
    let (mut a, mut b) = (x, y);
    let mut used = Vec::new();
    while a != b {
        if map.is_newer(b, a) {
            std::mem::swap(&mut a, &mut b);
        }
        let number = map.down_from(a)?;
        used.push(number);
        let since = edges[number].since;
        if map.passes(a, since, b) {
            break;
        }
        match since {
            Since::Point(point) => a = point,
            Since::Seed { .. } => return None,
        }
    }
    used.sort_unstable();
    used.dedup();
    Some(used)
}

struct Map<'a> {
    edges: &'a [Edge],
    /// Positions of the edges, by term and number of their points, then the shortest first.
    order: Vec<usize>,
    lineage: Option<&'a Lineage>,
}

impl<'a> Map<'a> {
    fn of(edges: &'a [Edge], lineage: Option<&'a Lineage>) -> Self {
        let mut order: Vec<_> = (0..edges.len()).collect();
        let number = |since: Since| match since {
            Since::Point(point) => point.sequence,
            Since::Seed { .. } => 0,
        };
        order.sort_by_key(|at| {
            let edge = &edges[*at];
            let shortest = std::cmp::Reverse(number(edge.since));
            (edge.point.term, edge.point.sequence, shortest)
        });
        Self {
            edges,
            order,
            lineage,
        }
    }

    /// Position of the term in the lineage.
    fn rank(&self, point: PointId) -> Option<usize> {
        let terms = self.lineage?.terms();
        terms.iter().position(|term| term.id == point.term)
    }

    /// Whether `a` is the one to go back from, rather than `b`.
    fn is_newer(&self, a: PointId, b: PointId) -> bool {
        if a.term == b.term {
            return a.sequence > b.sequence;
        }
        match (self.rank(a), self.rank(b)) {
            (Some(a), Some(b)) => a > b,
            // A term that was given up.
            (a, b) => a.is_none() && b.is_some(),
        }
    }

    /// The edge to go back by from `point`: it ends there or as soon after as can be, and begins
    /// before it.
    fn down_from(&self, point: PointId) -> Option<usize> {
        let key = |at: &usize| (self.edges[*at].point.term, self.edges[*at].point.sequence);
        let first = self
            .order
            .partition_point(|at| key(at) < (point.term, point.sequence));
        let begins_before = |at: &&usize| match self.edges[**at].since {
            Since::Point(since) => since.term != point.term || since.sequence < point.sequence,
            Since::Seed { .. } => true,
        };
        self.order[first..]
            .iter()
            .take_while(|at| self.edges[**at].point.term == point.term)
            .find(begins_before)
            .copied()
    }

    /// Whether an edge that goes back from `a` to `since` passes `b`, or ends there.
    fn passes(&self, a: PointId, since: Since, b: PointId) -> bool {
        let is_before_a = if a.term == b.term {
            b.sequence <= a.sequence
        } else {
            let on_lineage = self
                .lineage
                .is_some_and(|lineage| lineage.contains(a) && lineage.contains(b));
            on_lineage && self.rank(b) < self.rank(a)
        };
        let since = match since {
            Since::Seed { .. } => return is_before_a,
            Since::Point(since) => since,
        };
        let is_after_since = if since.term == b.term {
            since.sequence <= b.sequence
        } else if b.term == a.term {
            // It begins in an earlier term than this.
            true
        } else {
            self.rank(since).is_some() && self.rank(since) < self.rank(b)
        };
        is_before_a && is_after_since
    }
}
