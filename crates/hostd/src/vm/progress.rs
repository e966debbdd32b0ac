//! What a primary must remember of its replication: `progress.toml` and `sequence.toml`.
//!
//! The sequence outlives the relationship: a number is never given twice in a term.

use std::io;
use std::path::Path;

use model::Problem;
use replica::source::Progress;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

const PROGRESS: &str = "progress.toml";
const SEQUENCE: &str = "sequence.toml";

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgressFile {
    version: u32,
    progress: Progress,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SequenceFile {
    version: u32,
    reserved: u64,
}

/// What was recorded last in the folder `home`.
pub(crate) fn read(home: &Path) -> Result<Option<Progress>, Problem> {
    let file: Option<ProgressFile> = read_toml(&home.join(PROGRESS))?;
    Ok(file.map(|file| file.progress))
}

/// Records progress durably.
pub(crate) fn write(home: &Path, progress: Progress) -> Result<(), Problem> {
    let file = ProgressFile {
        version: 1,
        progress,
    };
    write_toml(&home.join(PROGRESS), &file)
}

/// Forgets the progress of a relationship, durably.
pub(crate) fn forget(home: &Path) -> io::Result<()> {
    durable::remove(&home.join(PROGRESS))
}

/// The highest sequence number ever reserved; 0 when none was.
pub(crate) fn reserved(home: &Path) -> Result<u64, Problem> {
    let file: Option<SequenceFile> = read_toml(&home.join(SEQUENCE))?;
    Ok(file.map_or(0, |file| file.reserved))
}

/// Reserves all numbers up to `reserved`, durably.
pub(crate) fn reserve(home: &Path, reserved: u64) -> Result<(), Problem> {
    let file = SequenceFile {
        version: 1,
        reserved,
    };
    write_toml(&home.join(SEQUENCE), &file)
}

fn read_toml<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Problem> {
    let thing = || path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text)
            .map(Some)
            .map_err(|error| Problem::failed(thing(), &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Problem::failed(thing(), &error)),
    }
}

fn write_toml(path: &Path, value: &impl Serialize) -> Result<(), Problem> {
    let thing = || path.display().to_string();
    let text = toml::to_string_pretty(value).map_err(|error| Problem::failed(thing(), &error))?;
    durable::replace(path, text.as_bytes()).map_err(|error| Problem::failed(thing(), &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::{PointId, SeedId, TermId};
    use replica::source::Position;

    #[test]
    fn progress_and_sequence_read_back_and_the_sequence_outlives_the_progress() {
        let home = tempfile::tempdir().expect("scratch");
        let home = home.path();
        assert_eq!(read(home), Ok(None));
        assert_eq!(reserved(home), Ok(0));
        let seeding = Progress::Seeding {
            seed: SeedId::random(),
            part: 3,
            at: Position {
                disk: 1,
                from: 4096,
            },
            end: None,
            sent: Position {
                disk: 1,
                from: 8192,
            },
            round: 2,
        };
        let acknowledged = PointId {
            term: TermId::random(),
            sequence: 7,
        };
        let live = |compared| Progress::Live {
            acknowledged,
            compared,
        };
        for progress in [seeding, live(false), live(true)] {
            write(home, progress).expect("written");
            assert_eq!(read(home), Ok(Some(progress)));
        }
        reserve(home, 8).expect("reserved");
        forget(home).expect("forgotten");
        assert_eq!(read(home), Ok(None));
        assert_eq!(reserved(home), Ok(8));
    }
}
