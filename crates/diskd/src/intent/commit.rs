//! Commits: led by whoever waits first.

use std::collections::BTreeSet;
use std::ops::Range;

use block::{Fault, Store};
use futures_util::future::join_all;

use super::page::{Content, WORDS, place};
use super::{FARTHEST, IntentLog, LogError, MAX_PRESSURE, Page, Rule, keeps};
use crate::turn::give_way;

/// A page that a commit writes, and to which copy of it.
struct Written {
    number: usize,
    content: Content,
    copy: usize,
}

impl<S: Store> IntentLog<S> {
    /// Notes what is wanted, and the pages in which it changes.
    pub(super) fn put(&self, regions: Range<u64>, set: bool) {
        let mut changed = self.changed.borrow_mut();
        self.wanted.put(regions, set, |word| {
            changed.insert(1 + word / WORDS);
        });
    }

    /// Commits, and makes the copies of every page alike.
    pub(super) async fn settle(&self) -> Result<(), LogError> {
        self.commit().await?;
        self.evens.set(true);
        self.commit().await
    }

    /// Returns when everything that is wanted now is durable.
    pub(super) async fn commit(&self) -> Result<(), LogError> {
        // One that runs took its pages already.
        let mine = self.begun.get() + 1;
        while self.ended.get() < mine {
            let leads = self.waiting.until(|| {
                if let Some(fault) = self.failed.get() {
                    return Some(Err(LogError::Write(fault)));
                }
                let done = self.ended.get() >= mine;
                (done || !self.leading.get()).then_some(Ok(!done))
            });
            if leads.await? {
                self.lead().await?;
            }
        }
        Ok(())
    }

    /// What a commit carries for whoever wants `regions`: some of the neighbourhood too.
    pub(super) fn want(&self, regions: Range<u64>) {
        self.cold.set(true);
        if self.wanted.all(regions.clone()) {
            return;
        }
        let end = self.regions();
        let width = 1 << self.pressure.get();
        let start = regions.start / width * width;
        let near = regions.end.next_multiple_of(width);
        let ahead = regions.end + self.wanted.run_before(regions.start, FARTHEST);
        self.put(start..near.max(ahead).min(end), true);
    }

    async fn lead(&self) -> Result<(), LogError> {
        self.leading.set(true);
        give_way().await;
        self.begun.set(self.begun.get() + 1);
        self.cold.set(false);
        let batch = self.take();
        let outcome = self.store_pages(&batch).await;
        if outcome.is_ok() {
            for written in &batch {
                self.pages.borrow_mut()[written.number] = Page {
                    generation: written.content.generation,
                    newest: written.copy,
                };
                if let Some(page) = written.number.checked_sub(1) {
                    self.armed.join(page, &written.content.words, &self.wanted);
                }
            }
            if !batch.is_empty() {
                self.made.set(self.made.get() + 1);
            }
            self.ended.set(self.begun.get());
            let pressure = self.pressure.get();
            self.pressure.set(if self.cold.get() {
                MAX_PRESSURE.min(pressure + 1)
            } else {
                pressure.saturating_sub(1)
            });
        }
        let outcome = outcome.map_err(|fault| self.fail(fault));
        self.leading.set(false);
        self.waiting.notify();
        outcome
    }

    pub(super) fn fail(&self, fault: Fault) -> LogError {
        let first = self.failed.get().unwrap_or(fault);
        self.failed.set(Some(first));
        LogError::Write(first)
    }

    /// The pages that a commit writes, as they are now.
    fn take(&self) -> Vec<Written> {
        let changed = self.changed.take();
        let mut uneven = self.uneven.borrow_mut();
        let evened = if self.evens.take() {
            std::mem::take(&mut *uneven)
        } else {
            BTreeSet::new()
        };
        let batch = changed.union(&evened).map(|number| {
            let page = self.pages.borrow()[*number];
            let content = Content {
                tag: self.tag,
                number: *number as u64,
                generation: page.generation + 1,
                words: match number.checked_sub(1) {
                    None => self.header(),
                    Some(page) => self.wanted.page(page),
                },
            };
            let older = keeps(Rule::OlderCopy) || !changed.contains(number);
            Written {
                number: *number,
                content,
                copy: if older { 1 - page.newest } else { page.newest },
            }
        });
        let batch = batch.collect();
        uneven.extend(changed);
        batch
    }

    async fn store_pages(&self, batch: &[Written]) -> Result<(), Fault> {
        let writes = batch.iter().map(|written| {
            let at = place(written.number, written.copy);
            self.store.write(at, written.content.seal())
        });
        for done in join_all(writes).await {
            done.outcome?;
        }
        if keeps(Rule::SyncBeforeRelease) && !batch.is_empty() {
            self.store.sync().await?;
        }
        Ok(())
    }

    fn header(&self) -> Vec<u64> {
        let mut words = vec![self.size.get()];
        for looks in [self.closed.get(), self.identity.get()] {
            words.push(u64::from(looks.is_some()));
            words.extend(looks.map_or([0; 4], |looks| looks.0));
        }
        words.resize(WORDS, 0);
        words
    }
}
