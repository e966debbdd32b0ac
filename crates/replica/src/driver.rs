//! Carries out what [`Sender`] decides: one task per relationship, no decision of its own.
//!
//! Requests to the partner run beside the loop and are dropped when the sender abandons them;
//! what the source does is never dropped half-way, also not when the driver is told to stop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use journal::compare::BlockHashes;
use model::DiskId;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::link::{Link, LinkError};
use crate::report::LinkReport;
use crate::sender::{Event, Now, Output, Sender};
use crate::source::{Plan, Progress, Source, Staged};
use crate::wire::{
    Basis, Compare, CompareAnswer, Configuration, Configure, Digest, Offer, RegionDigest,
};

/// What a person may tell a running driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stop sending; changes go on being tracked.
    Suspend,
    /// Go on, now.
    Resume,
    /// Verify the replica's newest point against the disks, under a number of the caller's
    /// ([`Verification::number`](crate::report::Verification::number)), beside the sending.
    Verify(u64),
    /// Nobody waits for that verification any more.
    VerifyNoMore(u64),
    /// Cut the next point now, whenever it is due.
    Hurry,
    /// End the driver. A staged segment stays in the outbox.
    Stop,
}

/// Commands that may wait.
pub const COMMANDS: usize = 8;

type Task = Pin<Box<dyn Future<Output = Event> + Send>>;

/// How a driver begins.
#[derive(Debug, Clone)]
pub struct Begin {
    /// What is to be done.
    pub plan: Plan,
    /// What was recorded last, for the first report; [`Source::track`] is asked again.
    pub progress: Progress,
    /// Whether a person suspended it before.
    pub suspended: bool,
    /// Seeds the jitter of retries.
    pub chance: u64,
    /// The configuration that the plan has, and what becomes of it.
    pub configuration: watch::Receiver<Arc<Configuration>>,
}

/// Replicates until it is told to stop, the other end of `commands` is dropped, or the partner
/// took over.
pub async fn run<S: Source, L: Link>(
    source: Arc<S>,
    link: Arc<L>,
    begin: Begin,
    mut commands: mpsc::Receiver<Command>,
    reports: watch::Sender<LinkReport>,
) {
    let Begin {
        plan,
        progress,
        suspended,
        chance,
        mut configuration,
    } = begin;
    let mut driver = Driver {
        lineage: Arc::new(plan.lineage.clone()),
        sender: Sender::new(plan, progress, chance),
        source,
        link,
        started: Instant::now(),
        local: FuturesUnordered::new(),
        remote: FuturesUnordered::new(),
        contact: FuturesUnordered::new(),
        wake: None,
        offering: None,
        offered: None,
    };
    let first = if suspended {
        Event::Suspend
    } else {
        Event::Resume
    };
    driver.apply(first);
    let mut stopping = false;
    loop {
        reports.send_if_modified(|last| {
            let report = driver.sender.report();
            let changed = last != report;
            if changed {
                last.clone_from(report);
            }
            changed
        });
        if driver.local.is_empty() && (stopping || driver.sender.is_over()) {
            return;
        }
        let wake = driver.wake;
        let event = tokio::select! {
            // In order: what was started comes before what is to be started.
            biased;
            command = commands.recv(), if !stopping => match command {
                Some(Command::Suspend) => Event::Suspend,
                Some(Command::Resume) => Event::Resume,
                Some(Command::Verify(number)) => Event::Verify(number),
                Some(Command::VerifyNoMore(number)) => Event::VerifyNoMore(number),
                Some(Command::Hurry) => Event::Hurry,
                Some(Command::Stop) | None => {
                    stopping = true;
                    Event::Suspend
                }
            },
            Ok(()) = configuration.changed() => {
                Event::Changed(configuration.borrow_and_update().clone())
            }
            Some(event) = driver.local.next() => event,
            Some(event) = driver.remote.next() => event,
            Some(event) = driver.contact.next() => event,
            () = sleep(wake), if wake.is_some() => {
                driver.wake = None;
                Event::Tick
            }
        };
        driver.apply(event);
    }
}

async fn sleep(until: Option<Instant>) {
    if let Some(until) = until {
        tokio::time::sleep_until(until).await;
    }
}

struct Driver<S, L> {
    sender: Sender,
    source: Arc<S>,
    link: Arc<L>,
    lineage: Arc<model::Lineage>,
    started: Instant,
    /// What the source does; never dropped.
    local: FuturesUnordered<Task>,
    /// Requests to the partner; dropped when abandoned.
    remote: FuturesUnordered<Task>,
    /// At most one.
    contact: FuturesUnordered<Task>,
    wake: Option<Instant>,
    /// The segment that is being offered.
    offering: Option<Staged>,
    /// The segment on its way, and what it was offered as.
    offered: Option<(Staged, Offer)>,
}

impl<S: Source, L: Link> Driver<S, L> {
    fn apply(&mut self, event: Event) {
        if let Event::Offered(Ok((offer, _))) = &event {
            self.offered = self.offering.take().map(|staged| (staged, offer.clone()));
        }
        let now = Now {
            since_start: self.started.elapsed(),
            wall: self.source.wall(),
        };
        for output in self.sender.apply(now, event) {
            self.carry_out(output);
        }
    }

    fn carry_out(&mut self, output: Output) {
        let (source, link) = (self.source.clone(), self.link.clone());
        match output {
            Output::Track => self.local(async move { Event::Tracked(source.track().await) }),
            Output::Seed(part) => {
                self.local(async move { Event::SeedStaged(source.seed(part).await) });
            }
            Output::Cut {
                since,
                above,
                disks,
            } => self.local(async move {
                Event::CutStaged(match source.reserve_sequence(above).await {
                    Ok(sequence) => source.cut(since, sequence, disks).await,
                    Err(problem) => Err(problem),
                })
            }),
            Output::Note { disk, regions } => {
                self.local(async move { Event::Noted(source.compared(disk, regions).await) });
            }
            Output::Mark { disk, regions } => {
                self.local(async move { Event::Marked(source.mark(disk, regions).await) });
            }
            Output::Suspect { issued } => {
                tracing::warn!(
                    issued,
                    "the replica's newest point is not the one that was sent last: all is compared"
                );
                self.local(async move { Event::Suspected(source.suspect(issued).await) });
            }
            Output::Persist(progress) => {
                self.local(async move { Event::Persisted(source.persist(progress).await) });
            }
            Output::Confirm(staged) => {
                self.local(async move { Event::Confirmed(source.confirm(&staged).await) });
            }
            Output::FoldBack(staged) => {
                self.local(async move { Event::FoldedBack(source.fold_back(&staged).await) });
            }
            Output::Gate(lineage) => {
                self.local(async move { Event::Gated(source.gate(&lineage).await) });
            }
            Output::Contact => {
                let lineage = self.lineage.clone();
                self.contact.push(Box::pin(async move {
                    Event::Contacted(link.contact(&lineage).await)
                }));
            }
            Output::Abandon => self.remote.clear(),
            Output::Sleep(since_start) => self.wake = Some(self.started + since_start),
            output => self.ask(output),
        }
    }

    /// Asks the partner.
    fn ask(&mut self, output: Output) {
        let (source, link) = (self.source.clone(), self.link.clone());
        match output {
            Output::AskTip => {
                let lineage = self.lineage.clone();
                self.remote(async move { Event::Tip(link.tip(&lineage).await) });
            }
            Output::Configure {
                configuration,
                revision,
            } => {
                let configure = Configure {
                    lineage: (*self.lineage).clone(),
                    revision,
                    configuration: (*configuration).clone(),
                };
                self.remote(async move { Event::Configured(link.configure(&configure).await) });
            }
            Output::Compare {
                disk,
                region,
                basis,
                issued,
            } => {
                let lineage = self.lineage.clone();
                // Only reads: may be dropped at any time.
                self.remote(async move {
                    Event::Answered(match source.hashes(disk, region).await {
                        Ok(ours) => {
                            let asked = ours.regions.iter();
                            let asked = asked.map(|ours| (ours.region, &ours.hashes));
                            let ask = question(&lineage, basis, issued, (disk, ours.size), asked);
                            let answer = compare(&*link, ask).await;
                            Ok((ours, answer))
                        }
                        Err(problem) => Err(problem),
                    })
                });
            }
            Output::Look {
                disk,
                region,
                tip,
                issued,
            } => {
                let lineage = self.lineage.clone();
                // Only reads: may be dropped at any time.
                self.remote(async move {
                    Event::Looked(match source.changing(disk, region).await {
                        Ok(ours) => {
                            let asked = ours.regions.iter();
                            let asked = asked.map(|ours| (ours.region, &ours.hashes));
                            let ask = question(
                                &lineage,
                                Basis::Point { point: tip },
                                issued,
                                (disk, ours.size),
                                asked,
                            );
                            let answer = compare(&*link, ask).await;
                            Ok((ours, answer))
                        }
                        Err(problem) => Err(problem),
                    })
                });
            }
            Output::Offer { staged, round } => {
                // Only reads: may be dropped at any time.
                self.offering = Some(staged.clone());
                self.remote(async move {
                    Event::Offered(match source.offer(&staged).await {
                        Ok(offer) => {
                            let offer = Offer { round, ..offer };
                            let answer = link.offer(&offer).await;
                            Ok((offer, answer))
                        }
                        Err(problem) => Err(problem),
                    })
                });
            }
            Output::Put(n) => {
                let Some((staged, offer)) = &self.offered else {
                    return;
                };
                let (staged, root) = (staged.clone(), offer.root);
                self.remote(async move {
                    let outcome = match source.chunk(&staged, n).await {
                        Ok(chunk) => Ok(link.put(root, n, chunk).await),
                        Err(problem) => Err(problem),
                    };
                    Event::Stored(n, outcome)
                });
            }
            Output::Commit => {
                let Some((_, offer)) = &self.offered else {
                    return;
                };
                let root = offer.root;
                self.remote(async move { Event::Committed(link.commit(root).await) });
            }
            _ => unreachable!("the others ask the partner nothing"),
        }
    }

    fn local(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        self.local.push(Box::pin(task));
    }

    fn remote(&mut self, task: impl Future<Output = Event> + Send + 'static) {
        self.remote.push(Box::pin(task));
    }
}

async fn compare<L: Link>(link: &L, ask: Option<Compare>) -> Result<CompareAnswer, LinkError> {
    match ask {
        Some(ask) => link.compare(&ask).await,
        None => Ok(CompareAnswer::Compared { differ: Vec::new() }),
    }
}

/// What to ask the replica about these regions of a disk of this size; none if there are none.
fn question<'a>(
    lineage: &model::Lineage,
    basis: Basis,
    issued: u64,
    (disk, size): (DiskId, model::Bytes),
    ours: impl Iterator<Item = (u64, &'a BlockHashes)>,
) -> Option<Compare> {
    let regions = ours.map(|(region, hashes)| RegionDigest {
        region,
        digest: Digest(hashes.digest()),
    });
    let regions: Vec<RegionDigest> = regions.collect();
    (!regions.is_empty()).then(|| Compare {
        lineage: lineage.clone(),
        basis,
        issued,
        disk,
        size,
        regions,
    })
}

#[cfg(test)]
#[path = "driver_tests/mod.rs"]
mod tests;
