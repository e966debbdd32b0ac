//! Keeps the run files few.
//!
//! ```text
//!   segments read themselves   |||||||||||||||| 16         -> a file
//!   files of one size class    [==][==][==][==]  4         -> one of the next class
//!   a file of gone segments    [xxxx=]                     -> a smaller one, or none
//! ```
//!
//! So their number grows with the logarithm of what the journal holds, and each entry is written
//! anew once for each class. Which step comes next is a pure function ([`next_step`]).
//!
//! A new file is durable before those that it takes the place of are removed. Whatever is
//! interrupted: each file that is there says what it covers, and the rest is read from the
//! segments.

use std::collections::BTreeSet;
use std::sync::Arc;

use durable::Folder;

use super::entry::ENTRY;
use super::folder::{list, open_all, publish};
use super::layout::MEMBER;
use super::{Input, Member, RunFile, build, join};
use crate::stored::Stored;
use crate::{Journal, JournalError, SegmentError};

/// When something is done.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// So many segments get a file,
    segments: usize,
    /// or segments of so many blocks.
    blocks: u64,
    /// So many files of one class become one.
    files: usize,
}

const LIMITS: Limits = Limits {
    segments: 16,
    blocks: 16_384,
    files: FAN_OUT,
};

/// A file of a class is up to so many times as large as the smallest one of it.
const FAN_OUT: usize = 4;
/// Files that are smaller than this are of one class.
const SMALLEST: u64 = 64 << 10;
/// Most segments, or files, that are read at once.
const AT_ONCE: usize = 64;

/// What the journal knows of its run files.
#[derive(Debug, Default)]
pub(crate) struct Tended {
    /// Held by a running [`Tidy`] as well.
    token: Arc<()>,
    seen: Option<Seen>,
}

impl Tended {
    /// Segments are gone whose numbers may come again.
    pub(crate) fn forget(&mut self) {
        self.seen = None;
    }
}

/// Segments that were there when tidying began last.
#[derive(Debug, Clone, Copy)]
struct Seen {
    newest: u64,
    count: usize,
}

/// The run files of a journal on their way to be few. Borrows nothing, so that it can run on another
/// thread while the journal goes on taking points in and merging them.
#[derive(Debug)]
pub struct Tidy {
    folder: Arc<dyn Folder>,
    segments: Vec<Stored>,
    limits: Limits,
    token: Arc<()>,
}

/// Done: see [`Journal::finish_tidy`].
#[derive(Debug)]
pub struct Tidied {
    seen: Seen,
    token: Arc<()>,
}

impl Journal {
    /// Begins to tidy the run files, if there is something to do and it is not being done.
    ///
    /// Needs no lock beyond the call; nothing that the journal says depends on the outcome, only
    /// how fast points are opened and read.
    #[must_use]
    pub fn begin_tidy(&self) -> Option<Tidy> {
        if Arc::strong_count(&self.tended.token) > 1 {
            return None;
        }
        let segments = &self.index.segments;
        let is_due = match self.tended.seen {
            // What an earlier process left is not known.
            None => !segments.is_empty(),
            Some(seen) => {
                let new = segments.iter().rev().map(Stored::of);
                let new = new.take_while(|segment| segment.member().sequence > seen.newest);
                let (count, blocks) = new.fold((0, 0_u64), |(count, blocks), segment| {
                    (count + 1, blocks.saturating_add(segment.blocks()))
                });
                // Merged, squashed.
                let gone = (seen.count + count).saturating_sub(segments.len());
                count >= LIMITS.segments || blocks >= LIMITS.blocks || gone >= LIMITS.segments
            }
        };
        is_due.then(|| self.tidy(LIMITS))
    }

    fn tidy(&self, limits: Limits) -> Tidy {
        Tidy {
            folder: self.folder.clone(),
            segments: self.index.segments.iter().map(Stored::of).collect(),
            limits,
            token: self.tended.token.clone(),
        }
    }

    /// A tidy that does something for a journal of few segments too.
    #[cfg(test)]
    pub(crate) fn tidy_eagerly(&self, segments: usize) -> Tidy {
        self.tidy(Limits {
            segments,
            blocks: u64::MAX,
            files: 2,
        })
    }

    /// Notes that the run files are tidy.
    pub fn finish_tidy(&mut self, tidied: Tidied) {
        // Of this journal: one that was opened anew looks for itself.
        if Arc::ptr_eq(&self.tended.token, &tidied.token) {
            self.tended.seen = Some(tidied.seen);
        }
    }
}

/// A run file that there is.
#[derive(Debug)]
struct Known {
    /// Its length, about.
    size: u64,
    /// Number of segments that it covers,
    segments: usize,
    /// and of those the positions of the ones that the journal has.
    live: Vec<u32>,
}

/// What is done next.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// A file of the segments at these positions.
    Build(Vec<usize>),
    /// One file of these.
    Join(Vec<usize>),
    /// These files say nothing that others don't.
    Remove(Vec<usize>),
}

impl Tidy {
    /// Does all that there is to do. The journal may change meanwhile.
    ///
    /// # Errors
    /// A failed read or write. What was done until then stays.
    pub fn run(self) -> Result<Tidied, JournalError> {
        let mut work = Work {
            folder: &*self.folder,
            segments: &self.segments,
            limits: self.limits,
            files: Vec::new(),
            skipped: BTreeSet::new(),
        };
        let mut left_out = list(&*self.folder)?;
        for (name, file) in open_all(&*self.folder, &[])? {
            left_out.retain(|other| *other != name);
            work.add(name, file)?;
        }
        for damaged in left_out {
            work.remove(&damaged)?;
        }
        while let Some(step) = work.next_step() {
            work.take(&step)?;
        }
        let newest = self
            .segments
            .last()
            .map_or(0, |last| last.member().sequence);
        Ok(Tidied {
            seen: Seen {
                newest,
                count: self.segments.len(),
            },
            token: self.token,
        })
    }
}

struct Work<'a> {
    folder: &'a dyn Folder,
    segments: &'a [Stored],
    limits: Limits,
    files: Vec<(String, RunFile, Known)>,
    /// Segments that went, or that are damaged.
    skipped: BTreeSet<usize>,
}

impl Work<'_> {
    fn position(&self, member: &Member) -> Option<u32> {
        let at = self
            .segments
            .binary_search_by_key(&member.sequence, |segment| segment.member().sequence)
            .ok()
            .filter(|at| self.segments[*at].member() == *member)?;
        u32::try_from(at).ok()
    }

    /// Takes note of a file; removes it if it is damaged.
    fn add(&mut self, name: String, file: RunFile) -> Result<(), JournalError> {
        let mut live = Vec::new();
        let listed = file.members(|_, member| live.extend(self.position(&member)));
        match listed {
            Ok(()) => {}
            Err(error) if error.is_damage() => {
                tracing::warn!(file = name, %error, "removes a damaged run file");
                return self.remove(&name);
            }
            Err(source) => return Err(JournalError::run(&name, source)),
        }
        let segments = file.segments() as usize;
        let known = Known {
            size: file.entries() * ENTRY as u64 + (segments * MEMBER) as u64,
            segments,
            live,
        };
        self.files.push((name, file, known));
        Ok(())
    }

    fn next_step(&self) -> Option<Step> {
        let files: Vec<&Known> = self.files.iter().map(|(_, _, known)| known).collect();
        let blocks = |at: usize| match self.skipped.contains(&at) {
            true => None,
            false => Some(self.segments[at].blocks()),
        };
        next_step(self.limits, self.segments.len(), blocks, &files)
    }

    fn take(&mut self, step: &Step) -> Result<(), JournalError> {
        match step {
            Step::Build(segments) => self.build(segments),
            Step::Join(files) => self.join(files),
            Step::Remove(files) => self.remove_all(files),
        }
    }

    fn build(&mut self, segments: &[usize]) -> Result<(), JournalError> {
        let mut inputs = Vec::new();
        for at in segments {
            let segment = self.segments[*at];
            match segment.open(self.folder) {
                Ok(reader) => inputs.push(Input {
                    member: segment.member(),
                    name: segment.file(),
                    reader,
                }),
                // Whoever reads it is told what is wrong with it; or it went into the base.
                Err(error) if is_its_own(&error) => {
                    tracing::info!(file = segment.file(), %error, "no run file of a segment");
                    self.skipped.insert(*at);
                }
                Err(error) => return Err(error),
            }
        }
        if inputs.is_empty() {
            return Ok(());
        }
        let name = publish(self.folder, |into| build(&inputs, into))?;
        self.open(name)
    }

    fn join(&mut self, files: &[usize]) -> Result<(), JournalError> {
        let chosen: Vec<&RunFile> = files.iter().map(|at| &self.files[*at].1).collect();
        let is_live = |member: &Member| self.position(member).is_some();
        match publish(self.folder, |into| join(&chosen, is_live, into)) {
            Ok(name) => {
                // Of the same content as one of them: there is nothing to remove.
                let replaced = files.iter().copied();
                let replaced = replaced
                    .filter(|at| self.files[*at].0 != name)
                    .collect::<Vec<_>>();
                if replaced.len() < files.len() {
                    return self.remove_all(&replaced);
                }
                self.remove_all(files)?;
                self.open(name)
            }
            Err(JournalError::Run { name, source }) if source.is_damage() => {
                let is_damaged = |at: &usize| {
                    let read = self.files[*at].1.iter().find_map(Result::err);
                    read.is_some_and(|error| error.is_damage())
                };
                let damaged: Vec<usize> = files.iter().copied().filter(is_damaged).collect();
                if damaged.is_empty() {
                    return Err(JournalError::run(&name, source));
                }
                tracing::warn!(%source, "removes damaged run files");
                self.remove_all(&damaged)
            }
            Err(error) => Err(error),
        }
    }

    fn open(&mut self, name: String) -> Result<(), JournalError> {
        let file = self
            .folder
            .open_read(&name)
            .map_err(|source| JournalError::io("open", &name, source))?;
        let file = RunFile::open(file).map_err(|source| JournalError::run(&name, source))?;
        self.add(name, file)
    }

    fn remove_all(&mut self, files: &[usize]) -> Result<(), JournalError> {
        for at in files {
            self.remove(&self.files[*at].0)?;
        }
        let mut at = 0..;
        self.files
            .retain(|_| at.next().is_some_and(|at| !files.contains(&at)));
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), JournalError> {
        match self.folder.remove(name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|source| JournalError::io("remove", name, source)),
        }
    }
}

/// Whether the segment is to blame, not the operating system.
fn is_its_own(error: &JournalError) -> bool {
    match error {
        JournalError::Missing(_) | JournalError::IndexDamaged(_) => true,
        JournalError::Segment { source, .. } => match source {
            SegmentError::Io { source, .. } => source.kind() == std::io::ErrorKind::UnexpectedEof,
            _ => true,
        },
        _ => false,
    }
}

/// What to do about `files`, for a journal of so many `segments`, of which `blocks` gives the size unless
/// no file can be made of it.
fn next_step(
    limits: Limits,
    segments: usize,
    blocks: impl Fn(usize) -> Option<u64>,
    files: &[&Known],
) -> Option<Step> {
    // How many files cover each segment.
    let mut covers = vec![0_u32; segments];
    for at in files.iter().flat_map(|file| &file.live) {
        covers[*at as usize] += 1;
    }
    if let Some(needless) = needless(&covers, files) {
        return Some(Step::Remove(needless));
    }
    let uncovered = (0..segments).filter(|at| covers[*at] == 0);
    let mut bare = Vec::new();
    let mut sum = 0_u64;
    for at in uncovered {
        if let Some(blocks) = blocks(at) {
            bare.push(at);
            sum = sum.saturating_add(blocks);
        }
        if bare.len() == AT_ONCE {
            break;
        }
    }
    if bare.len() >= limits.segments || sum >= limits.blocks {
        return Some(Step::Build(bare));
    }
    let mostly_gone = |file: &&Known| file.live.len() * 2 < file.segments;
    if let Some(at) = files.iter().position(mostly_gone) {
        return Some(Step::Join(vec![at]));
    }
    let mut classes: Vec<Vec<usize>> = Vec::new();
    for (at, file) in files.iter().enumerate() {
        let class = (file.size / SMALLEST).max(1).ilog(FAN_OUT as u64) as usize
            + usize::from(file.size >= SMALLEST);
        if classes.len() <= class {
            classes.resize_with(class + 1, Vec::new);
        }
        classes[class].push(at);
    }
    let full = classes
        .into_iter()
        .find(|files| files.len() >= limits.files);
    full.map(|mut files| {
        files.truncate(AT_ONCE);
        Step::Join(files)
    })
}

/// Files all of whose segments are gone, or covered by files that stay; the smallest go first.
fn needless(covers: &[u32], files: &[&Known]) -> Option<Vec<usize>> {
    let mut covers = covers.to_vec();
    let mut order: Vec<usize> = (0..files.len()).collect();
    order.sort_by_key(|at| files[*at].live.len());
    let mut needless = Vec::new();
    for at in order {
        let live = &files[at].live;
        if live.iter().all(|at| covers[*at as usize] > 1) {
            for at in live {
                covers[*at as usize] -= 1;
            }
            needless.push(at);
        }
    }
    (!needless.is_empty()).then_some(needless)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { cases: crate::cases(64), ..ProptestConfig::default() })]

        #[test]
        fn the_files_stay_few_and_cover_all_but_the_newest_segments(
            commits in 1..600_usize, kept in 1..400_usize, blocks in 0..3000_u64,
        ) {
            let mut files: Vec<Known> = Vec::new();
            let mut written = 0;
            for newest in 1..=commits {
                let count = newest.min(kept);
                // Retention: the oldest one goes when a new one has come.
                if newest > kept {
                    for file in &mut files {
                        file.live.retain(|at| *at != 0);
                        for at in &mut file.live {
                            *at -= 1;
                        }
                    }
                }
                let mut steps = 0;
                while let Some(step) =
                    next_step(LIMITS, count, |_| Some(blocks), &files.iter().collect::<Vec<_>>())
                {
                    steps += 1;
                    prop_assert!(steps < 100, "ends");
                    let (made, gone) = match step {
                        Step::Build(segments) => (
                            segments.iter().filter_map(|at| u32::try_from(*at).ok()).collect(),
                            vec![],
                        ),
                        Step::Join(joined) => {
                            let live = joined.iter().flat_map(|at| files[*at].live.clone());
                            (live.collect::<BTreeSet<u32>>().into_iter().collect(), joined)
                        }
                        Step::Remove(gone) => (vec![], gone),
                    };
                    let mut at = 0..;
                    files.retain(|_| at.next().is_some_and(|at| !gone.contains(&at)));
                    if !made.is_empty() {
                        let size = made.len() as u64 * (blocks * ENTRY as u64 + MEMBER as u64);
                        written += size;
                        files.push(Known { size, segments: made.len(), live: made });
                    }
                }
                let covered: BTreeSet<u32> =
                    files.iter().flat_map(|file| file.live.iter().copied()).collect();
                prop_assert!(count - covered.len() < LIMITS.segments);
                prop_assert!((count - covered.len()) as u64 * blocks < LIMITS.blocks);
                prop_assert!(files.len() <= 12, "{} files", files.len());
            }
            let once = commits as u64 * (blocks * ENTRY as u64 + MEMBER as u64);
            prop_assert!(written <= 9 * once, "{written} for {once}");
        }
    }
}
