//! Content of a segment, and the listing of where it has any.

use std::path::{Path, PathBuf};

use journal::{SegmentReader, Source};
use model::{Bytes, Code, Problem};
use serde::Serialize;

use super::pieces::{Content, Pieces};
use super::{Range, exact, find_disk, open, thing, wrong};
use crate::args::Part;
use crate::new_file::NewFile;
use crate::run::write_out;
use crate::show::{Shown, columns, finish, list as rows};

/// Written at once.
static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
/// More are counted, not listed, for people.
const LISTED: usize = 5;

/// What was copied.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Copied {
    /// None: to standard output.
    file: Option<PathBuf>,
    /// Position of the disk in the segment.
    disk: usize,
    #[serde(flatten)]
    range: Range,
    /// Of it, content that lies in frames.
    content: Bytes,
    /// Of it, what the segment says reads as zeroes.
    zeroes: Bytes,
    /// What the segment does not hold: written as zeroes.
    absent: Vec<Range>,
}

/// Copies what was asked for to standard output, or into the new file `to`; `progress` is told the
/// bytes that were written, and all there are.
pub(crate) async fn copy(
    path: &Path,
    part: &Part,
    to: Option<&Path>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Copied, Problem> {
    let reader = open(path)?;
    let disk = find_disk(path, &reader.header().disks, part.disk.as_deref())?;
    let range = range(path, &reader, disk, part)?;
    let mut out = match to {
        Some(to) => Out::File(NewFile::new(to)?),
        None => Out::Standard,
    };
    let mut copied = Copied {
        file: to.map(Path::to_owned),
        disk,
        range,
        content: Bytes(0),
        zeroes: Bytes(0),
        absent: Vec::new(),
    };
    for piece in Pieces::new(path, &reader, disk, range) {
        let piece = piece?;
        let len = piece.range.length.0;
        let goes_on = match piece.content {
            Content::Bytes(bytes) => {
                copied.content.0 += len;
                out.append(&bytes)?
            }
            Content::Zero => {
                copied.zeroes.0 += len;
                out.skip(len).await?
            }
            Content::Absent => {
                let joined = copied
                    .absent
                    .last_mut()
                    .is_some_and(|last| last.join(piece.range));
                if !joined {
                    copied.absent.push(piece.range);
                }
                out.skip(len).await?
            }
        };
        if !goes_on {
            // Nobody reads any more.
            return Ok(copied);
        }
        progress(piece.range.end() - range.at.0, range.length.0);
        // Ctrl-C is heard in between.
        tokio::task::yield_now().await;
    }
    if let (Out::File(file), Some(to)) = (out, to) {
        file.finish(to)?;
    }
    Ok(copied)
}

enum Out {
    Standard,
    File(NewFile),
}

impl Out {
    /// Returns whether anybody takes more.
    fn append(&mut self, bytes: &[u8]) -> Result<bool, Problem> {
        match self {
            Self::Standard => write_out(bytes),
            Self::File(file) => file.append(bytes).map(|()| true),
        }
    }

    async fn skip(&mut self, mut len: u64) -> Result<bool, Problem> {
        if let Self::File(file) = self {
            return file.skip(len).map(|()| true);
        }
        while len > 0 {
            let part = usize::try_from(len).map_or(ZEROES.len(), |len| len.min(ZEROES.len()));
            if !write_out(&ZEROES[..part])? {
                return Ok(false);
            }
            len -= part as u64;
            tokio::task::yield_now().await;
        }
        Ok(true)
    }
}

/// The range that was asked for, the whole disk unless said.
fn range(path: &Path, reader: &SegmentReader, disk: usize, part: &Part) -> Result<Range, Problem> {
    let size = reader.header().disks[disk].size.0;
    let at = part.at.map_or(0, |at| at.0);
    let rest = size.saturating_sub(at);
    let length = part.length.map_or(rest, |length| length.0);
    let end = at
        .checked_add(length)
        .filter(|end| at < size && *end <= size);
    let refuse = || {
        let asked = format!("{} at {}", exact(Bytes(length)), exact(Bytes(at)));
        Problem::new(
            Code::Invalid,
            thing(path),
            format!(
                "has a disk {disk} of {}, and {asked} lies outside",
                exact(Bytes(size))
            ),
            "Choose --at and --length inside of it",
        )
    };
    end.map(|end| Range::new(at, end)).ok_or_else(refuse)
}

impl Copied {
    /// What the segment did not hold, for people; nothing if it held all.
    pub(crate) fn notice(&self) -> Option<String> {
        let sum = self.absent.iter().map(|range| range.length.0).sum();
        let first: Vec<String> = self
            .absent
            .iter()
            .take(LISTED)
            .map(Range::to_string)
            .collect();
        let more = match self.absent.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        (sum > 0).then(|| {
            format!(
                "{} of {} are not in the segment and were written as zeroes: {}{more} \
                 (`--index` lists what is in it)",
                Bytes(sum),
                self.range.length,
                first.join(", ")
            )
        })
    }
}

impl Shown for Copied {
    fn table(&self) -> String {
        let absent = self.absent.iter().map(|range| range.length.0).sum();
        let file = self.file.as_ref().map(|file| file.display().to_string());
        rows(vec![
            ("File", file.unwrap_or_default()),
            ("Size", self.range.length.to_string()),
            ("Content", self.content.to_string()),
            ("Zeroes", self.zeroes.to_string()),
            ("Not in the segment", Bytes(absent).to_string()),
        ])
    }
}

/// What a segment holds of which disks.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Listing(Vec<Entry>);

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Entry {
    disk: u16,
    #[serde(flatten)]
    range: Range,
    /// None: it reads as zeroes.
    frame: Option<u32>,
}

/// What of the range that was asked for the segment holds; of all disks, unless one is named.
pub(crate) fn list(path: &Path, part: &Part) -> Result<Listing, Problem> {
    let reader = open(path)?;
    let disks = &reader.header().disks;
    let whole = part.disk.is_none() && part.at.is_none() && part.length.is_none();
    let asked = if whole {
        let all = disks.iter().map(|disk| Some(Range::new(0, disk.size.0)));
        all.collect()
    } else {
        let disk = find_disk(path, disks, part.disk.as_deref())?;
        let mut one = vec![None; disks.len()];
        one[disk] = Some(range(path, &reader, disk, part)?);
        one
    };
    let mut all = Vec::new();
    for run in reader.runs() {
        let run = run.map_err(|error| wrong(path, &error))?;
        let Some(Some(asked)) = asked.get(usize::from(run.disk)) else {
            continue;
        };
        let held = Range::of(&run);
        let (from, to) = (held.at.0.max(asked.at.0), held.end().min(asked.end()));
        if from < to {
            all.push(Entry {
                disk: run.disk,
                range: Range::new(from, to),
                frame: match run.source {
                    Source::Zero => None,
                    Source::Frame { frame, .. } => Some(frame),
                },
            });
        }
    }
    Ok(Listing(all))
}

impl Shown for Listing {
    fn table(&self) -> String {
        let mut table = columns(&["Disk", "At", "Length", "Content"]);
        for Entry { disk, range, frame } in &self.0 {
            table.add_row([
                disk.to_string(),
                exact(range.at),
                exact(range.length),
                frame.map_or_else(|| "zeroes".to_owned(), |frame| format!("frame {frame}")),
            ]);
        }
        finish(&table)
    }
}
