//! What a segment says of itself.

use std::path::{Path, PathBuf};

use journal::segment::VERSION;
use journal::{Consistency, Content, Root, SegmentReader, Source};
use model::{Bytes, DiskId, Lineage, Problem, Since, Term, VmId};
use serde::Serialize;

use super::{Range, open, wrong};
use crate::show::{Shown, columns, exact_time, finish, harmless, list};

/// Everything but content.
#[derive(Debug, Serialize)]
pub(crate) struct SegmentInfo {
    file: PathBuf,
    version: u32,
    root: Root,
    vm: VmId,
    content: Content,
    /// The point that it is, as `pollux point list` shows it.
    point: Option<String>,
    time: jiff::Timestamp,
    consistency: Consistency,
    lineage: Lineage,
    disks: Vec<DiskInfo>,
    frames: u32,
    runs: u32,
    /// Before compression, zeroes included.
    held: Bytes,
    zeroes: Bytes,
    /// What frames take in the file.
    stored: Bytes,
    /// Content without zeroes, divided by what it takes.
    ratio: Option<f64>,
    file_length: Bytes,
}

#[derive(Debug, Serialize)]
struct DiskInfo {
    id: DiskId,
    size: Bytes,
    /// Of it, what the segment holds, zeroes included.
    held: Bytes,
    zeroes: Bytes,
    runs: u32,
}

impl SegmentInfo {
    pub(crate) fn read(path: &Path) -> Result<Self, Problem> {
        let reader = open(path)?;
        let (header, summary) = (reader.header().clone(), *reader.summary());
        let stored = reader.stored();
        Ok(Self {
            file: path.to_owned(),
            version: VERSION,
            root: summary.root,
            vm: header.vm,
            content: header.content,
            point: header.point().map(|point| point.to_string()),
            time: header.time,
            consistency: header.consistency,
            disks: disks(path, &reader)?,
            lineage: header.lineage,
            frames: summary.frames,
            runs: summary.runs,
            held: summary.content,
            zeroes: summary.zeroes,
            stored,
            ratio: ratio(Bytes(summary.content.0 - summary.zeroes.0), stored),
            file_length: summary.file_len,
        })
    }
}

fn disks(path: &Path, reader: &SegmentReader) -> Result<Vec<DiskInfo>, Problem> {
    let all = reader.header().disks.iter().map(|disk| DiskInfo {
        id: disk.id,
        size: disk.size,
        held: Bytes(0),
        zeroes: Bytes(0),
        runs: 0,
    });
    let mut disks: Vec<DiskInfo> = all.collect();
    for run in reader.runs() {
        let run = run.map_err(|error| wrong(path, &error))?;
        // The reader made sure that there is such a disk.
        let Some(disk) = disks.get_mut(usize::from(run.disk)) else {
            continue;
        };
        let length = Range::of(&run).length.0;
        disk.held.0 += length;
        disk.runs += 1;
        if run.source == Source::Zero {
            disk.zeroes.0 += length;
        }
    }
    Ok(disks)
}

/// To two digits, which is as much as anybody reads.
#[allow(clippy::cast_precision_loss, reason = "two digits are kept")]
fn ratio(content: Bytes, stored: Bytes) -> Option<f64> {
    let exact = content.0 as f64 / stored.0 as f64;
    (stored.0 > 0).then(|| (exact * 100.0).round() / 100.0)
}

impl Shown for SegmentInfo {
    fn table(&self) -> String {
        let (holds, since) = match self.content {
            Content::Seed { seed, part } => (
                format!("part {part} of initial replication {seed}"),
                "-".to_owned(),
            ),
            Content::Delta { sequence, since } => {
                let point = self.point.as_deref().unwrap_or_default();
                let since = match since {
                    Since::Point(point) => format!("point {point}"),
                    Since::Seed { seed, parts } => {
                        format!("initial replication {seed}, {parts} parts")
                    }
                };
                (format!("point {point}, sequence {sequence}"), since)
            }
        };
        let consistency = match self.consistency {
            Consistency::Crash => "crash",
            Consistency::Application => "application",
        };
        let ratio = self
            .ratio
            .map_or_else(String::new, |ratio| format!(", {ratio} : 1"));
        let mut rows = vec![
            ("File", self.file.display().to_string()),
            ("Format", format!("segment, version {}", self.version)),
            ("Root", self.root.to_string()),
            ("VM", self.vm.to_string()),
            ("Holds", holds),
            ("Changed since", since),
            ("Time (UTC)", exact_time(self.time)),
            ("Consistency", consistency.to_owned()),
        ];
        rows.extend(self.lineage.terms().iter().map(|one| ("Term", term(one))));
        rows.extend([
            (
                "Content",
                format!("{}, of it {} zeroes", self.held, self.zeroes),
            ),
            (
                "Frames",
                format!("{}, {} in the file{ratio}", self.frames, self.stored),
            ),
            ("Runs", self.runs.to_string()),
            ("File length", self.file_length.to_string()),
        ]);
        let mut table = columns(&["Disk", "Id", "Size", "Content", "Zeroes", "Runs"]);
        for (number, disk) in self.disks.iter().enumerate() {
            table.add_row([
                number.to_string(),
                disk.id.to_string(),
                disk.size.to_string(),
                disk.held.to_string(),
                disk.zeroes.to_string(),
                disk.runs.to_string(),
            ]);
        }
        format!("{}\n\n{}", list(rows), finish(&table))
    }
}

fn term(term: &Term) -> String {
    let from = term
        .parent
        .map_or_else(String::new, |parent| format!(", grew from point {parent}"));
    let id = term.id.to_string();
    // Whoever wrote the segment chose the name.
    let opener = harmless(&term.opener);
    format!("{} of host {opener}, {}{from}", term.number, &id[..8])
}
