//! `host.toml`: the host's own settings, read strictly. It may be absent.

use std::io;
use std::path::Path;

use model::{Bytes, Code, Keep, Problem};
use serde::Deserialize;

use crate::measure::Monitoring;

const FILE: &str = "host.toml";
const MAX_LEN: usize = 64 * 1024;

/// The host's own settings.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Memory kept for the host itself.
    pub memory_reserve: Bytes,
    /// Most memory for old content saved before a guest write, per disk; past it a cycle of
    /// replication is abandoned and its changes go with the next.
    pub copy_budget: Bytes,
    /// Space of the replica store's file system that stays free.
    pub store_reserve: Bytes,
    /// Which recovery points are kept of each twin.
    pub keep: Keep,
    /// Over which time a relationship is measured: `12h`, `2d`.
    pub monitoring_interval: Monitoring,
    /// Events that are kept.
    pub events: u32,
    /// Days for which they are kept.
    pub event_days: u16,
    /// A program and its arguments, run for events that may need a person.
    pub hook: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory_reserve: Bytes(512 << 20),
            copy_budget: Bytes(64 << 20),
            store_reserve: Bytes(1 << 30),
            keep: Keep::default(),
            monitoring_interval: Monitoring::default(),
            events: 100_000,
            event_days: 90,
            hook: Vec::new(),
        }
    }
}

impl Settings {
    /// Reads `host.toml` in the folder `state`.
    ///
    /// # Errors
    /// A problem that names the file and the key.
    pub fn read(state: &Path) -> Result<Self, Problem> {
        let path = state.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Problem::failed(path.display().to_string(), &error)),
        };
        let refuse = |reason: String| {
            Problem::new(
                Code::Invalid,
                path.display().to_string(),
                reason,
                "Correct the file, or remove it for the defaults",
            )
        };
        if text.len() > MAX_LEN {
            return Err(refuse(format!("has more than {MAX_LEN} bytes")));
        }
        let settings: Self = toml::from_str(&text)
            .map_err(|error| refuse(error.to_string().trim_end().to_owned()))?;
        if let Some(program) = settings.hook.first() {
            // No search path: which program runs shall not depend on who starts polluxd.
            if !Path::new(program).is_absolute() {
                return Err(refuse(format!(
                    "says the hook `{program}`, which is no absolute path"
                )));
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_setting_is_an_error_that_names_it_and_an_absent_file_is_none() {
        let folder = tempfile::tempdir().expect("scratch");
        assert_eq!(Settings::read(folder.path()), Ok(Settings::default()));
        let file = folder.path().join(FILE);
        std::fs::write(&file, "memory_reserve = \"1 GiB\"\n").expect("write");
        let settings = Settings::read(folder.path()).expect("good");
        assert_eq!(settings.memory_reserve, Bytes(1 << 30));
        assert_eq!(settings.keep, Keep::default());
        std::fs::write(&file, "keep = \"12:all\"\n").expect("write");
        let settings = Settings::read(folder.path()).expect("good");
        assert_eq!(settings.keep.to_string(), "12:all");
        std::fs::write(&file, "keep = \"1h:some\"\n").expect("write");
        let problem = Settings::read(folder.path()).expect_err("no policy");
        assert!(problem.reason.contains("`some` does not say"), "{problem}");
        let hook = "hook = [\"/bin/tell\", \"a b\"]\nmonitoring_interval = \"2d\"\n";
        std::fs::write(&file, hook).expect("write");
        let settings = Settings::read(folder.path()).expect("good");
        assert_eq!(settings.hook, ["/bin/tell", "a b"]);
        for (bad, says) in [
            ("hook = [\"tell\"]\n", "absolute"),
            ("monitoring_interval = \"5h\"\n", "12h"),
        ] {
            std::fs::write(&file, bad).expect("write");
            let problem = Settings::read(folder.path()).expect_err(says);
            assert!(problem.reason.contains(says), "{problem}");
        }
        std::fs::write(&file, "colour = 3\n").expect("write");
        let problem = Settings::read(folder.path()).expect_err("unknown");
        assert!(problem.reason.contains("colour"), "{problem}");
    }
}
