//! The judge: from a disk's content to what it proves, or what is wrong where.

use std::io;

use super::record::{BLOCK, Block, Commit, FIRST_SLOT_BLOCK, Record, RunId};

/// How the disk came to be what it is; see the module above for what follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// A recovery point, or a disk whose guest was killed: every write that was issued is
    /// whole, or not there, in the order of issue.
    Point,
    /// Any subset of what was not flushed may be missing or torn.
    PowerLoss,
}

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// The run.
    pub run: RunId,
    /// Records 1 to this number were flushed before the cut.
    pub committed: u64,
    /// The newest record that is there.
    pub newest: u64,
    /// Its time, in microseconds since 1970 by the guest's clock; 0 if there is none.
    pub newest_time: u64,
    /// How many records were read and found right.
    pub records_checked: u64,
}

/// What is wrong with the disk.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It could not be read.
    #[error("cannot read at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The workload never ran on it, or its first commit was lost.
    #[error("there is no commit record")]
    NoRun,
    /// A commit record is neither right nor zeroes, and no power was lost.
    #[error("commit record {0} is damaged")]
    Commit(u64),
    /// The commit record speaks of more slots than the disk has.
    #[error("the commit record counts {slots} slots, and the disk has room for {room}")]
    Size {
        /// In the commit record.
        slots: u64,
        /// On the disk.
        room: u64,
    },
    /// A record that was flushed, or issued before one that is there, is missing.
    #[error("slot {slot} holds {found}, and record {expected} must be there ({reason})")]
    Missing {
        /// The slot.
        slot: u64,
        /// What it holds.
        found: Found,
        /// The record that must be there at least.
        expected: u64,
        /// Why it must.
        reason: &'static str,
    },
    /// A slot holds bytes that nobody wrote.
    #[error("slot {slot} is damaged")]
    Damaged {
        /// The slot.
        slot: u64,
    },
    /// A record lies where it does not belong.
    #[error("slot {slot} holds record {number}, which belongs to slot {belongs}")]
    Misplaced {
        /// The slot.
        slot: u64,
        /// The record.
        number: u64,
        /// Its own slot.
        belongs: u64,
    },
    /// A record is there that was issued only after a commit that is not there.
    #[error(
        "record {number} is there, and the commit record says {committed} with batches of \
         {batch}"
    )]
    TooNew {
        /// The record.
        number: u64,
        /// What was committed.
        committed: u64,
        /// Records in a batch.
        batch: u64,
    },
}

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Nothing of this run.
    Nothing,
    /// A record that was torn.
    Torn,
    /// This record.
    Record(u64),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing of this run"),
            Self::Torn => f.write_str("a torn record"),
            Self::Record(number) => write!(f, "record {number}"),
        }
    }
}

pub(super) struct Commits {
    pub(super) newest: Option<Commit>,
    /// One that is neither right nor zeroes.
    damaged: Option<u64>,
}

type Read<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

pub(super) fn newest_commit(read: &mut Read<'_>) -> io::Result<Commits> {
    let mut commits = Commits {
        newest: None,
        damaged: None,
    };
    let mut block = Block::zeroed();
    for n in 0..FIRST_SLOT_BLOCK {
        read(n * BLOCK as u64, &mut block.0)?;
        match Commit::from_block(&block.0) {
            Some(commit) => {
                let newer = |old: Commit| old.generation < commit.generation;
                if commits.newest.is_none_or(newer) {
                    commits.newest = Some(commit);
                }
            }
            None if block.0.iter().all(|byte| *byte == 0) => {}
            None => commits.damaged = Some(n),
        }
    }
    Ok(commits)
}

/// Judges a disk of `len` bytes that `read` reads: it fills a block from a byte offset that is
/// a multiple of [`BLOCK`]. Memory: 8 bytes per slot.
///
/// # Errors
/// [`VerifyError`] says what is wrong where.
pub fn verify(
    len: u64,
    cut: Cut,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
) -> Result<Verified, VerifyError> {
    let room = (len / BLOCK as u64).saturating_sub(FIRST_SLOT_BLOCK);
    if room == 0 {
        return Err(VerifyError::NoRun);
    }
    let commits = match newest_commit(&mut read) {
        Ok(commits) => commits,
        Err(source) => return Err(VerifyError::Read { offset: 0, source }),
    };
    if let (Some(n), Cut::Point) = (commits.damaged, cut) {
        return Err(VerifyError::Commit(n));
    }
    let commit = commits.newest.ok_or(VerifyError::NoRun)?;
    if commit.slots > room {
        let slots = commit.slots;
        return Err(VerifyError::Size { slots, room });
    }
    let mut found = Verified {
        run: commit.run,
        committed: commit.committed,
        newest: 0,
        newest_time: 0,
        records_checked: 0,
    };
    let slots = read_slots(&commit, &mut read, &mut found)?;
    check(&commit, cut, &slots, found.newest)?;
    Ok(found)
}

/// Reads every slot. What is there must lie where it belongs and not be too new.
fn read_slots(
    commit: &Commit,
    read: &mut Read<'_>,
    found: &mut Verified,
) -> Result<Vec<Found>, VerifyError> {
    let limit = commit.committed + commit.batch;
    let mut block = Block::zeroed();
    let mut slots = Vec::new();
    for slot in 0..commit.slots {
        let offset = (FIRST_SLOT_BLOCK + slot) * BLOCK as u64;
        if let Err(source) = read(offset, &mut block.0) {
            return Err(VerifyError::Read { offset, source });
        }
        let record = match Record::from_block(&block.0) {
            Some(record) if record.run == commit.run && record.number > 0 => record,
            Some(_other_run) => {
                slots.push(Found::Nothing);
                continue;
            }
            None if block.0.iter().all(|byte| *byte == 0) => {
                slots.push(Found::Nothing);
                continue;
            }
            None => {
                slots.push(Found::Torn);
                continue;
            }
        };
        let (number, belongs) = (record.number, commit.slot(record.number));
        if belongs != slot || record.slot != slot {
            return Err(VerifyError::Misplaced {
                slot,
                number,
                belongs,
            });
        }
        if number > limit {
            return Err(VerifyError::TooNew {
                number,
                committed: commit.committed,
                batch: commit.batch,
            });
        }
        found.records_checked += 1;
        if number > found.newest {
            found.newest = number;
            found.newest_time = record.time;
        }
        slots.push(Found::Record(number));
    }
    Ok(slots)
}

/// Whether all that must be there is there.
fn check(commit: &Commit, cut: Cut, slots: &[Found], newest: u64) -> Result<(), VerifyError> {
    // With one writer the order of the numbers is the order of issue.
    let (must, reason) = if cut == Cut::Point && commit.writers == 1 && newest > commit.committed {
        (newest, "it was issued before one that is there")
    } else {
        (commit.committed, "it was flushed")
    };
    let limit = commit.committed + commit.batch;
    for turn in 1..=commit.slots {
        let slot = commit.slot(turn);
        let held = usize::try_from(slot).ok().and_then(|slot| slots.get(slot));
        let held = *held.unwrap_or(&Found::Nothing);
        // The newest record up to `number` that has this slot; 0 if none has.
        let newest_up_to = |number: u64| match number.checked_sub(turn) {
            Some(past) => turn + past / commit.slots * commit.slots,
            None => 0,
        };
        let expected = newest_up_to(must);
        match held {
            Found::Record(number) if number >= expected => {}
            Found::Nothing if expected == 0 => {}
            Found::Torn if cut == Cut::Point => return Err(VerifyError::Damaged { slot }),
            // Torn by a write in flight.
            Found::Torn if newest_up_to(limit) > newest_up_to(commit.committed) => {}
            Found::Torn if expected == 0 => return Err(VerifyError::Damaged { slot }),
            found => {
                return Err(VerifyError::Missing {
                    slot,
                    found,
                    expected,
                    reason,
                });
            }
        }
    }
    Ok(())
}
