//! Comparing what the primary has with the replica's newest point, or with what came of the initial
//! replication, region by region.
//!
//! ```text
//!   lane taken --> what is being received is forgotten --> the tip is the named one?
//!                  (and nothing issued before is let in)      --> hash, tell what differs
//! ```
//!
//! After a power cut the primary may lack writes that it had sent: a segment of before the cut must
//! not be published once regions were compared without it. Its commit either holds the lane first,
//! and then the tip is another one, or finds that nothing is being received; its offer, should that
//! come late too, is refused for its sequence number. (Requests do not outlive the process that
//! reads them, so that memory is enough to remember this.)
//!
//! Parts of an initial replication have no such number. They are offered in a [`Round`] instead.
//!
//! What is read stays open from one request to the next, for at most [`IDLE`] without any. The base of an
//! initial replication does not change meanwhile: whoever offers a part closes it.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, State};
use journal::compare::BlockHashes;
use journal::{Content, Header, JournalError, PointReader, SeedReader, compare};
use model::{BLOCK_SIZE, Bytes, Code, DiskId, Problem, SeedId, TermId};
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::{
    Answer, Bound, Here, Lane, Receiving, Refusal, blocking, check_receives, forget, meet,
    read_json, taken,
};
use crate::host::{Receipts, ReplicaHost, Shelf};
use crate::wire::{
    Basis, Compare, CompareAnswer, Digest, MAX_BODY, MAX_COMPARED, Offer, RegionHashes, Tip,
};

/// After this long without a request the point is closed.
const IDLE: Duration = Duration::from_secs(120);

/// What the replica holds, open.
#[derive(Clone)]
enum Reader {
    Point(Arc<PointReader>),
    Seed(Arc<SeedReader>),
}

impl Reader {
    fn is_of(&self, basis: Basis) -> bool {
        match (self, basis) {
            (Self::Point(reader), Basis::Point { point }) => reader.point() == point,
            (Self::Seed(reader), Basis::Seed { seed, parts, .. }) => {
                reader.seed() == seed && reader.parts() == parts
            }
            _ => false,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Point(one), Self::Point(other)) => Arc::ptr_eq(one, other),
            (Self::Seed(one), Self::Seed(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    fn size(&self, disk: DiskId) -> Option<Bytes> {
        let of_it = |(id, _): &(DiskId, Bytes)| *id == disk;
        let found = match self {
            Self::Point(reader) => reader.disks().find(of_it),
            Self::Seed(reader) => reader.disks().find(of_it),
        };
        found.map(|(_, size)| size)
    }
}

/// What the last comparison read, open.
pub(super) struct Comparison {
    reader: Reader,
    used: Instant,
    idle: AbortHandle,
}

impl Drop for Comparison {
    fn drop(&mut self) {
        self.idle.abort();
    }
}

impl Comparison {
    /// Keeps `reader` open in `lane` until nobody used it for a while.
    fn new(reader: Reader, lane: &Lane) -> Self {
        let lane = Arc::downgrade(lane);
        let idle = tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(lane) = lane.upgrade() else {
                    return;
                };
                let mut receiving = lane.lock().await;
                if let Some(now) = &receiving.comparison {
                    if now.used.elapsed() < IDLE {
                        continue;
                    }
                }
                receiving.comparison = None;
                return;
            }
        });
        Self {
            reader,
            used: Instant::now(),
            idle: idle.abort_handle(),
        }
    }
}

/// What was issued before the last comparison and is not let in any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Issued {
    /// In this term,
    term: TermId,
    /// up to this sequence number.
    sequence: u64,
}

impl Issued {
    /// Why a segment that would fit may not come all the same.
    pub(super) fn refuses(self, header: &Header, thing: &str) -> Option<Problem> {
        let point = header.point()?;
        let old = point.term == self.term && point.sequence <= self.sequence;
        old.then(|| {
            let reason = format!("was sent point {point} before it was compared");
            Problem::new(Code::Conflict, thing, reason, "")
        })
    }
}

/// What came of an initial replication is compared for so many times. What was offered in an earlier
/// round is not let in any more: it may hold what was sent before a power cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round {
    seed: SeedId,
    number: u64,
}

impl Round {
    /// Why a part that would fit may not come all the same.
    pub(super) fn refuses(self, offer: &Offer, thing: &str) -> Option<Problem> {
        let Content::Seed { seed, part } = offer.header.content else {
            return None;
        };
        (seed == self.seed && offer.round < self.number).then(|| {
            let reason = format!("was sent part {part} before what had come was compared");
            Problem::new(Code::Conflict, thing, reason, "")
        })
    }
}

pub(super) async fn compare<H: ReplicaHost>(
    State(receiver): Here<H>,
    Extension(bound): Extension<Bound>,
    body: Body,
) -> Answer<Json<CompareAnswer>> {
    let asked: Compare = read_json(body, MAX_BODY).await?;
    check(&bound, &asked)?;
    let lane = receiver.lane(bound.vm);
    let mut receiving = lane.lock().await;
    check_receives(&*receiver.host, &bound)?;
    if let Some(lineage) = meet(&receiver, &bound, &asked.lineage).await? {
        return Ok(Json(CompareAnswer::Superseded { lineage }));
    }
    if let Err(later) = receiving.begin_round(asked.basis) {
        return Ok(Json(CompareAnswer::Late { round: later }));
    }
    if receiving.is_before(asked.basis) {
        forget(&bound, &mut receiving.incoming).await;
    }
    receiving.let_in_above(asked.lineage.current().id, asked.issued);
    let shelf = receiver.host.shelf(bound.vm).await?;
    let kept = receiving.comparison.take();
    let opened = kept.as_ref().map(|kept| kept.reader.clone());
    let found = blocking(move || open(&shelf, asked.basis, opened)).await?;
    let reader = match found {
        None => return Err(Refusal(taken(&bound))),
        Some(Err(tip)) => return Ok(Json(CompareAnswer::Moved { tip })),
        Some(Ok(reader)) => reader,
    };
    let mut comparison = match kept {
        Some(kept) if kept.reader.is(&reader) => kept,
        _ => Comparison::new(reader.clone(), &lane),
    };
    let thing = bound.thing();
    let differ = blocking(move || differ(&reader, &asked, &thing)).await?;
    comparison.used = Instant::now();
    receiving.comparison = Some(comparison);
    Ok(Json(CompareAnswer::Compared { differ }))
}

impl Receiving {
    /// Sequence numbers in `term` up to this one are not let in.
    pub(super) fn issued(&self, term: TermId) -> u64 {
        let known = self.issued.filter(|issued| issued.term == term);
        known.map_or(0, |issued| issued.sequence)
    }

    /// Lets no part in any more of an earlier round than the one of `basis`, if it has any.
    ///
    /// # Errors
    /// A later one, which was begun already.
    fn begin_round(&mut self, basis: Basis) -> Result<(), u64> {
        let Basis::Seed { seed, round, .. } = basis else {
            return Ok(());
        };
        match self.round {
            Some(now) if now.seed == seed && now.number > round => Err(now.number),
            _ => {
                self.round = Some(Round {
                    seed,
                    number: round,
                });
                Ok(())
            }
        }
    }

    /// Whether what is being received was offered before the comparison with `basis` began.
    fn is_before(&self, basis: Basis) -> bool {
        let offer = self.incoming.as_ref().map(|current| current.0.offer());
        match (offer.map(|offer| offer.header.content), basis) {
            (Some(Content::Seed { .. }), Basis::Seed { round, .. }) => {
                offer.is_some_and(|offer| offer.round < round)
            }
            _ => true,
        }
    }

    /// Lets nothing in any more that was issued in `term` up to `sequence`.
    fn let_in_above(&mut self, term: TermId, sequence: u64) {
        let sequence = sequence.max(self.issued(term));
        self.issued = Some(Issued { term, sequence });
    }
}

fn invalid(thing: &str, reason: String) -> Problem {
    Problem::new(Code::Invalid, thing, reason, "")
}

/// What can be told without the point.
fn check(bound: &Bound, asked: &Compare) -> Answer<()> {
    let regions = &asked.regions;
    let rising = regions.windows(2).all(|two| two[0].region < two[1].region);
    if regions.is_empty() || regions.len() > MAX_COMPARED || !rising {
        let reason = format!(
            "was asked about {} regions at once, not 1 to {MAX_COMPARED} in rising order",
            regions.len()
        );
        return Err(Refusal(invalid(&bound.thing(), reason)));
    }
    let past = |last: u64| compare::region(last, asked.size).is_none();
    if asked.size.0 % BLOCK_SIZE != 0 || regions.last().is_some_and(|last| past(last.region)) {
        let reason = format!(
            "was asked about regions past the end of a disk of {}",
            asked.size
        );
        return Err(Refusal(invalid(&bound.thing(), reason)));
    }
    Ok(())
}

/// What is at `basis` opened, or what the journal has in its place; none if this host is not the
/// replica any more. Blocking.
fn open<R: Receipts>(
    shelf: &Shelf<R>,
    basis: Basis,
    opened: Option<Reader>,
) -> Result<Option<Result<Reader, Tip>>, Problem> {
    let journal = shelf.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(journal) = journal.as_ref() else {
        return Ok(None);
    };
    let now = journal.tip();
    let holds = match (now, basis) {
        (Tip::Point { point, .. }, Basis::Point { point: named }) => point == named,
        (
            Tip::Seeding { seed, parts, .. },
            Basis::Seed {
                seed: named,
                parts: came,
                ..
            },
        ) => seed == named && parts == came,
        _ => false,
    };
    if !holds {
        return Ok(Some(Err(now)));
    }
    let reader = match (opened, basis) {
        (Some(opened), basis) if opened.is_of(basis) => opened,
        (_, Basis::Point { point }) => Reader::Point(journal.open_point(point)?),
        (_, Basis::Seed { .. }) => Reader::Seed(journal.open_seed()?),
    };
    Ok(Some(Ok(reader)))
}

/// The regions that are not what was asked. Blocking.
fn differ(reader: &Reader, asked: &Compare, thing: &str) -> Result<Vec<RegionHashes>, Problem> {
    let size = reader.size(asked.disk).ok_or_else(|| {
        invalid(
            thing,
            "was asked about a disk that it does not hold".to_owned(),
        )
    })?;
    if size > asked.size {
        let reason = format!(
            "has a disk of {size} here, and was asked about {}",
            asked.size
        );
        return Err(invalid(thing, reason));
    }
    let failed = |error| Problem::failed(format!("the journal of {thing}"), &error);
    let hashes: Box<dyn Fn(u64) -> Result<BlockHashes, JournalError>> = match reader {
        Reader::Point(reader) => {
            let image = reader.image(asked.disk).map_err(failed)?;
            Box::new(move |region| image.region_hashes(region, asked.size))
        }
        Reader::Seed(reader) => {
            Box::new(move |region| reader.region_hashes(asked.disk, region, asked.size))
        }
    };
    let mut differ = Vec::new();
    for region in &asked.regions {
        let hashes = hashes(region.region).map_err(failed)?;
        if Digest(hashes.digest()) != region.digest {
            differ.push(RegionHashes {
                region: region.region,
                hashes,
            });
        }
    }
    Ok(differ)
}
