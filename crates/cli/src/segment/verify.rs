//! Every hash of a segment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use journal::{Root, SegmentError, SegmentReader, Source};
use model::{BLOCK_SIZE, Bytes, Code, Problem};
use serde::Serialize;

use super::{Range, open, thing, wrong};
use crate::show::{Shown, columns, finish, list};

/// More are counted, not listed, for people.
const LISTED: usize = 20;

/// What came of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Verified {
    file: PathBuf,
    /// Its identity, which is right.
    root: Root,
    frames: u32,
    /// Content that was read, before compression.
    checked: Bytes,
    damage: Vec<Damage>,
}

/// A frame that does not verify.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Damage {
    frame: u32,
    what: String,
    /// What of the disks is lost with it.
    lost: Vec<Lost>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Lost {
    disk: u16,
    #[serde(flatten)]
    range: Range,
}

impl Verified {
    /// The segment is damaged, if it is.
    pub(crate) fn problem(&self) -> Option<Problem> {
        let first = self.damage.first()?;
        let reason = match self.damage.len() {
            1 => format!("is damaged: {}", first.what),
            more => format!("is damaged in {more} frames; the first: {}", first.what),
        };
        let way_out = "Do not use it: take another copy of the segment";
        Some(Problem::new(
            Code::Failed,
            thing(&self.file),
            reason,
            way_out,
        ))
    }
}

/// Reads, hashes and decodes every frame, and goes on after one that is wrong; `progress` is told
/// the content that was read, and all there is.
///
/// # Errors
/// What is no segment, or has no structure that anything could be read by.
pub(crate) async fn verify(
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Verified, Problem> {
    let reader = open(path)?;
    let summary = *reader.summary();
    let total = summary.content.0 - summary.zeroes.0;
    let mut checked = 0;
    let mut damaged = BTreeMap::new();
    for number in 0..summary.frames {
        match reader.read_frame(number) {
            Ok(content) => checked += content.len() as u64,
            Err(error @ SegmentError::Io { .. }) => return Err(wrong(path, &error)),
            Err(error) => {
                let what = error.to_string();
                damaged.insert(
                    number,
                    Damage {
                        frame: number,
                        what,
                        lost: Vec::new(),
                    },
                );
            }
        }
        progress(checked, total);
        // Ctrl-C is heard in between.
        tokio::task::yield_now().await;
    }
    if !damaged.is_empty() {
        note_lost(path, &reader, &mut damaged)?;
    }
    Ok(Verified {
        file: path.to_owned(),
        root: summary.root,
        frames: summary.frames,
        checked: Bytes(checked),
        damage: damaged.into_values().collect(),
    })
}

/// Notes which blocks lie in frames that are damaged.
fn note_lost(
    path: &Path,
    reader: &SegmentReader,
    damaged: &mut BTreeMap<u32, Damage>,
) -> Result<(), Problem> {
    for run in reader.runs() {
        let run = run.map_err(|error| wrong(path, &error))?;
        let Source::Frame { frame, .. } = run.source else {
            continue;
        };
        let Some(Damage { lost, .. }) = damaged.get_mut(&frame) else {
            continue;
        };
        let (disk, range) = (run.disk, Range::of(&run));
        let last = lost.last_mut().filter(|last| last.disk == disk);
        if !last.is_some_and(|last| last.range.join(range)) {
            lost.push(Lost { disk, range });
        }
    }
    Ok(())
}

impl Shown for Verified {
    fn table(&self) -> String {
        let right = self.frames as usize - self.damage.len();
        let text = list(vec![
            ("File", self.file.display().to_string()),
            ("Root", self.root.to_string()),
            ("Frames", format!("{right} of {} are right", self.frames)),
            ("Content", format!("{} read", self.checked)),
        ]);
        if self.damage.is_empty() {
            return text;
        }
        let mut table = columns(&["Damaged", "Disk", "Blocks", "Lost"]);
        let lost = self
            .damage
            .iter()
            .flat_map(|damage| damage.lost.iter().map(move |lost| (damage.frame, lost)));
        let rows: Vec<_> = lost.collect();
        for (frame, Lost { disk, range }) in rows.iter().take(LISTED) {
            let (first, last) = (range.at.0 / BLOCK_SIZE, range.end() / BLOCK_SIZE - 1);
            table.add_row([
                format!("frame {frame}"),
                disk.to_string(),
                format!("{first} to {last}"),
                range.to_string(),
            ]);
        }
        let more = match rows.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!("\nand {more} more; `-o json` lists all"),
        };
        format!("{text}\n\n{}{more}", finish(&table))
    }
}
