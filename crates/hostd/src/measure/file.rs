//! Measures over a restart of polluxd.
//!
//! ```text
//!   RUN/measures/UUID.json     every few seconds; survives `kill -9`, not a reboot
//!   HOME/measures.json         every few minutes, synced; survives a power cut
//! ```
//!
//! The later of the two is taken. They are figures for people: what cannot be read is put aside,
//! and counted anew.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use model::{RelationshipId, VmId};
use serde::{Deserialize, Serialize};

use super::{Measured, VERSION};

const FILE: &str = "measures.json";
/// An honest one has some 900 bytes.
const MAX_LEN: u64 = 16 * 1024;
/// No interval is longer.
const LONGEST: SignedDuration = SignedDuration::from_hours(7 * 24);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// When it was written: by the clock of the host, and how often before.
    saved: Timestamp,
    serial: u64,
    measured: Measured,
}

/// Where the measures of one VM lie.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    home: PathBuf,
    run: PathBuf,
}

impl Files {
    /// Of the VM `vm`, whose folder is `home`; `run` is polluxd's run folder.
    pub(crate) fn new(home: &Path, run: &Path, vm: VmId) -> Self {
        Self {
            home: home.join(FILE),
            run: run.join("measures").join(format!("{vm}.json")),
        }
    }

    /// What was written last about `relationship`, and how often it was written. Blocking.
    pub(crate) fn read(&self, relationship: RelationshipId) -> Option<(Measured, u64)> {
        let files = [&self.home, &self.run];
        let found = files.into_iter().filter_map(|path| match read(path) {
            Ok(file) => file,
            Err(reason) => {
                let aside = path.with_extension("json.damaged");
                tracing::warn!(
                    file = %path.display(), reason, aside = %aside.display(),
                    "measures cannot be read: put aside, and counted anew"
                );
                // If that fails it is written over, which mends it as well.
                let _ = fs::rename(path, aside);
                None
            }
        });
        found
            .filter(|file| file.measured.relationship == relationship)
            .max_by_key(|file| file.serial)
            .map(|file| (file.measured, file.serial))
    }

    /// Writes what survives `kill -9`. Blocking.
    pub(crate) fn write(&self, measured: &Measured, serial: u64, now: Timestamp) -> io::Result<()> {
        if let Some(folder) = self.run.parent() {
            fs::create_dir_all(folder)?;
        }
        let temporary = self.run.with_extension("new");
        fs::write(&temporary, text(measured, serial, now)?)?;
        fs::rename(&temporary, &self.run)
    }

    /// Writes what survives a power cut. Blocking.
    pub(crate) fn write_durably(
        &self,
        measured: &Measured,
        serial: u64,
        now: Timestamp,
    ) -> io::Result<()> {
        durable::replace(&self.home, &text(measured, serial, now)?)
    }

    /// The relationship is over, or the VM gone. Blocking.
    pub(crate) fn remove(&self) {
        for path in [&self.home, &self.run] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(file = %path.display(), %error, "stays");
                }
                _ => {}
            }
        }
    }
}

fn text(measured: &Measured, serial: u64, saved: Timestamp) -> io::Result<Vec<u8>> {
    let file = File {
        saved,
        serial,
        measured: measured.clone(),
    };
    serde_json::to_vec_pretty(&file).map_err(io::Error::other)
}

/// None if there is none; the error says why it cannot be used.
fn read(path: &Path) -> Result<Option<File>, String> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_LEN + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    parse(&bytes).map(Some)
}

fn parse(bytes: &[u8]) -> Result<File, String> {
    if bytes.len() as u64 > MAX_LEN {
        return Err(format!("has more than {MAX_LEN} bytes"));
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let Measured {
        version,
        start,
        end,
        ..
    } = file.measured;
    if version != VERSION {
        return Err(format!("has version {version}; this build reads {VERSION}"));
    }
    if end <= start || end.duration_since(start) > LONGEST {
        return Err(format!("says an interval from {start} to {end}"));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Monitoring, Receipt};
    use super::*;

    fn now() -> Timestamp {
        "2026-11-29T01:00:00Z".parse().expect("a time")
    }

    fn measured() -> Measured {
        let mut measured = Measured::begin(RelationshipId::random(), Monitoring::default(), now());
        let receipt = Receipt {
            len: u64::MAX,
            cut: Some(now()),
        };
        measured.received(now(), receipt);
        measured
    }

    fn files() -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().expect("scratch");
        let (home, run) = (folder.path().join("home"), folder.path().join("run"));
        for folder in [&home, &run] {
            fs::create_dir(folder).expect("a folder");
        }
        let files = Files::new(&home, &run, VmId::random());
        (folder, files)
    }

    #[test]
    fn the_later_of_the_two_files_is_taken_whatever_the_clock_said() {
        let (_folder, files) = files();
        let (old, mut new) = (measured(), measured());
        new.relationship = old.relationship;
        new.reset(now());
        let earlier = now() - SignedDuration::from_hours(100);
        files.write_durably(&old, 7, now()).expect("written");
        assert_eq!(files.read(old.relationship), Some((old.clone(), 7)));
        files.write(&new, 8, earlier).expect("written");
        assert_eq!(files.read(old.relationship), Some((new.clone(), 8)));
        files.write_durably(&old, 9, earlier).expect("written");
        assert_eq!(files.read(old.relationship), Some((old.clone(), 9)));
        let other = RelationshipId::random();
        assert_eq!(files.read(other), None, "of another relationship");
        files.remove();
        assert_eq!(files.read(old.relationship), None);
        files.remove();
    }

    #[test]
    fn a_damaged_file_is_put_aside_and_the_other_one_counts() {
        let (_folder, files) = files();
        let good = measured();
        files.write_durably(&good, 3, now()).expect("written");
        files.write(&good, 4, now()).expect("written");
        fs::write(&files.run, "").expect("torn");
        assert_eq!(files.read(good.relationship), Some((good.clone(), 3)));
        assert!(!files.run.exists());
        assert!(files.run.with_extension("json.damaged").exists());
    }

    #[test]
    fn what_no_build_of_this_version_writes_is_refused() {
        let text = text(&measured(), 1, now()).expect("text");
        let text = String::from_utf8(text).expect("JSON");
        assert!(parse(text.as_bytes()).is_ok());
        let long = format!("{text}{}", " ".repeat(16 * 1024));
        for (bad, says) in [
            (
                text.replace("\"version\": 1", "\"version\": 2"),
                "version 2",
            ),
            (text.replace("\"serial\"", "\"colour\""), "colour"),
            (
                text.replace("2026-11-29T12:00:00Z", "2026-11-29T00:00:00Z"),
                "interval",
            ),
            (
                text.replace("2026-11-29T12:00:00Z", "2027-11-29T12:00:00Z"),
                "interval",
            ),
            (long, "more than"),
        ] {
            let reason = parse(bad.as_bytes()).err().expect(says);
            assert!(reason.contains(says), "{reason}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..2000),
            at in any::<prop::sample::Index>(),
            with in any::<u8>(),
        ) {
            let _ = parse(&bytes);
            let mut text = text(&measured(), 1, now()).expect("text");
            let at = at.index(text.len());
            text[at] = with;
            if let Ok(file) = parse(&text) {
                // Whatever it says, it can be counted on.
                let mut measured = file.measured;
                measured.received(now(), Receipt { len: u64::MAX, cut: Some(Timestamp::MIN) });
                measured.roll(Monitoring::default(), Timestamp::MAX);
                let _ = (measured.size_average(), measured.latency_average_ms());
                let _ = measured.compression_percent();
            }
        }
    }
}
