//! Makes one run file of many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io::Write;

use model::DiskId;

use super::entry::{At, Entry, Key};
use super::{Member, RunError, RunFile, RunWriter};

/// Position of a segment that is left out.
const NONE: u32 = u32::MAX;

/// Writes to `into` what `files` say of the segments of which `keep` holds: of two with one sequence it
/// holds for one at most. A segment that is in several files comes once. Takes 4 bytes for each segment of
/// each file, 40 for each that is kept, and a few pages.
///
/// Gives the hash of the footer and `into`.
///
/// # Errors
/// A damaged file, a failed read or write, [`RunError::Full`].
pub(crate) fn join<W: Write>(
    files: &[&RunFile],
    keep: impl Fn(&Member) -> bool,
    into: W,
) -> Result<(blake3::Hash, W), RunError> {
    let mut kept: BTreeMap<u64, Member> = BTreeMap::new();
    for file in files {
        file.members(|_, member| {
            if keep(&member) {
                kept.insert(member.sequence, member);
            }
        })?;
    }
    let kept: Vec<Member> = kept.into_values().collect();
    let mut disks: Vec<DiskId> = files
        .iter()
        .flat_map(|file| file.disks().iter().filter(|disk| disk.levels != 0))
        .map(|disk| disk.id)
        .collect();
    disks.sort_unstable();
    disks.dedup();

    let mut inputs = Vec::new();
    for file in files {
        let mut places = Vec::with_capacity(file.segments() as usize);
        file.members(|_, member| {
            let place = kept
                .binary_search_by_key(&member.sequence, |kept| kept.sequence)
                .ok()
                .filter(|place| kept[*place] == member);
            places.push(
                place
                    .and_then(|place| u32::try_from(place).ok())
                    .unwrap_or(NONE),
            );
        })?;
        let disk_of = file.disks().iter().map(|disk| {
            let place = disks.binary_search(&disk.id).ok();
            place
                .and_then(|place| u8::try_from(place).ok())
                .unwrap_or(0)
        });
        inputs.push(Input {
            entries: file.iter(),
            places,
            disk_of: disk_of.collect::<Vec<u8>>(),
        });
    }
    let mut writer = RunWriter::create(into, &disks, kept.iter().copied())?;
    merge(inputs, &mut writer)?;
    writer.finish()
}

/// Pushes what sorted `inputs` give, sorted; what comes twice, once.
pub(super) fn merge<W: Write>(
    mut inputs: Vec<impl Iterator<Item = Result<Entry, RunError>>>,
    writer: &mut RunWriter<W>,
) -> Result<(), RunError> {
    let mut heads = BinaryHeap::with_capacity(inputs.len());
    let mut next: Vec<Option<Entry>> = Vec::with_capacity(inputs.len());
    for (number, input) in inputs.iter_mut().enumerate() {
        let entry = input.next().transpose()?;
        heads.extend(entry.map(|entry| Reverse((entry.at, number))));
        next.push(entry);
    }
    let mut last: Option<At> = None;
    while let Some(Reverse((at, number))) = heads.pop() {
        let Some(entry) = next[number] else { continue };
        if last != Some(at) {
            writer.push(&entry)?;
            last = Some(at);
        }
        next[number] = inputs[number].next().transpose()?;
        heads.extend(next[number].map(|entry| Reverse((entry.at, number))));
    }
    Ok(())
}

/// The entries of a file, as they are in the new one: in the same order, because segments and disks are.
struct Input<'a> {
    entries: super::reader::Entries<'a>,
    /// Of each segment of the file, its position in the new one.
    places: Vec<u32>,
    /// Of each disk of the file, its position in the new one.
    disk_of: Vec<u8>,
}

impl Iterator for Input<'_> {
    type Item = Result<Entry, RunError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            // Pages were checked: both are there.
            let segment = self.places[entry.at.segment as usize];
            if segment == NONE {
                continue;
            }
            let key = entry.at.key;
            let disk = self.disk_of[usize::from(key.disk())];
            return Some(Ok(Entry {
                at: At {
                    key: Key::of(key.level(), disk, key.start()),
                    segment,
                },
                ..entry
            }));
        }
    }
}
