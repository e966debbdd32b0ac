//! What is said of a process that ended: how, and its last words.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use vmd::control::Exit;

/// For people: how a QEMU ended; none when it simply exited.
pub(crate) fn describe(exit: Option<Exit>) -> Option<String> {
    match exit {
        None | Some(Exit::Code(0)) => None,
        Some(Exit::Code(code)) => Some(format!("QEMU ended with exit code {code}")),
        Some(Exit::Signal(signal)) => Some(format!("QEMU was ended by signal {signal}")),
    }
}

/// The last few lines of a log, of what was written from byte `start` on.
pub(crate) fn log_tail(log: &Path, start: u64) -> Option<String> {
    const MOST: u64 = 4096;
    let mut file = fs::File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    let from = start.max(len.saturating_sub(MOST));
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(MOST).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    let tail = lines[lines.len().saturating_sub(3)..].join("; ");
    (!tail.is_empty()).then_some(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_log_leaves_out_what_an_earlier_run_wrote() {
        let folder = tempfile::tempdir().expect("scratch");
        let log = folder.path().join("log");
        fs::write(&log, "old\n").expect("write");
        assert_eq!(log_tail(&log, 4), None);
        fs::write(&log, "old\none\n\ntwo\nthree\nfour\n").expect("write");
        assert_eq!(log_tail(&log, 4).as_deref(), Some("two; three; four"));
    }
}
