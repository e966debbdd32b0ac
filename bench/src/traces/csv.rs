//! Traces in the format of the MSR Cambridge block traces (SNIA IOTTA, trace set 388), a line a request:
//!
//! ```text
//!   Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime
//!   128166372003061629,src1,0,Write,2264567808,8192,4061
//! ```
//!
//! Timestamp in 100 ns (from any instant on), offset and size in bytes, the type `Read` or `Write`; the
//! response time is not looked at. Lines may be out of order by a little: time never goes back here. A
//! file is of one disk. Reads are left out. A name that ends in `.zst` is decompressed; what is
//! compressed otherwise goes through the standard input.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Write, decompressed};

/// Longest line in bytes.
const MAX_LINE: u64 = 1024;

/// The writes in the file at `path`.
pub(super) fn open(path: &Path) -> Result<Box<dyn Iterator<Item = Result<Write>>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(if path.extension().is_some_and(|end| end == "zst") {
        Box::new(read(decompressed(file)?))
    } else {
        Box::new(read(file))
    })
}

/// The writes in `file`. Ends after the first error.
pub(super) fn read(file: impl Read) -> impl Iterator<Item = Result<Write>> {
    let mut reader = Reader {
        file: BufReader::new(file),
        line: String::new(),
        number: 0,
        begin: None,
        now: 0,
        disk: None,
    };
    let mut failed = false;
    std::iter::from_fn(move || {
        if failed {
            return None;
        }
        let write = reader.next_write();
        failed = write.is_err();
        let number = reader.number;
        write.with_context(|| format!("line {number}")).transpose()
    })
}

struct Reader<R> {
    file: BufReader<R>,
    line: String,
    number: u64,
    /// First timestamp, and how far the latest is from it.
    begin: Option<u64>,
    now: u64,
    /// Host and number of the disk.
    disk: Option<(String, String)>,
}

impl<R: Read> Reader<R> {
    fn next_write(&mut self) -> Result<Option<Write>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = (&mut self.file).take(MAX_LINE).read_line(&mut self.line)?;
            if read == 0 {
                return Ok(None);
            }
            ensure!(
                (read as u64) < MAX_LINE,
                "it is longer than {MAX_LINE} bytes"
            );
            if let Some(write) = self.parse()? {
                return Ok(Some(write));
            }
        }
    }

    /// A write, if it is one.
    fn parse(&mut self) -> Result<Option<Write>> {
        let fields: Vec<&str> = self.line.trim_end().split(',').collect();
        let [time, host, disk, kind, at, len, _took] = fields[..] else {
            bail!("it has {} fields instead of 7", fields.len());
        };
        if self.number == 1 && time == "Timestamp" {
            return Ok(None);
        }
        let (known_host, known_disk) = self
            .disk
            .get_or_insert_with(|| (host.to_owned(), disk.to_owned()));
        ensure!(
            known_host == host && known_disk == disk,
            "it is of disk {disk} of {host}, those before are of disk {known_disk} of {known_host}: \
             give one disk at a time"
        );
        let number = |what: &str, text: &str| -> Result<u64> {
            let number = text.parse();
            number.map_err(|error| anyhow!("the {what} `{text}` is no number: {error}"))
        };
        let time = number("timestamp", time)?;
        let begin = *self.begin.get_or_insert(time);
        self.now = self.now.max(time.saturating_sub(begin));
        match kind {
            "Read" => return Ok(None),
            "Write" => {}
            other => bail!("the type `{other}` is neither Read nor Write"),
        }
        Ok(Some(Write {
            time: Duration::from_micros(self.now / 10),
            at: number("offset", at)?,
            len: number("size", len)?,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Result<Vec<Write>> {
        read(text.as_bytes()).collect()
    }

    #[test]
    fn writes_are_read_from_a_public_trace_with_or_without_a_headline() {
        let lines = "128166372003061629,src1,0,Read,2264567808,8192,4061\r\n\
                     128166372013061629,src1,0,Write,4096,512,4061\n\
                     128166372008061629,src1,0,Write,8192,4096,1";
        let first = Write {
            time: Duration::from_secs(1),
            at: 4096,
            len: 512,
        };
        // Not before the one above it.
        let second = Write {
            at: 8192,
            len: 4096,
            ..first
        };
        let expected = vec![first, second];
        assert_eq!(all(lines).expect("read"), expected);
        let headline = "Timestamp,Hostname,DiskNumber,Type,Offset,Size,ResponseTime\n";
        assert_eq!(all(&format!("{headline}{lines}")).expect("read"), expected);
    }

    #[test]
    fn what_is_no_trace_is_refused_with_the_line_and_the_reason() {
        let good = "1,a,0,Write,0,512,0";
        for (bad, reason) in [
            ("1,a,0,Write,0,512", "6 fields"),
            ("1,a,0,Trim,0,512,0", "`Trim`"),
            ("1,a,0,Write,-5,512,0", "offset `-5`"),
            ("x,a,0,Write,0,512,0", "timestamp `x`"),
            ("1,a,1,Write,0,512,0", "one disk at a time"),
            (&"1".repeat(2000), "longer than"),
        ] {
            let error = all(&format!("{good}\n{bad}\n{good}\n")).expect_err(bad);
            let text = format!("{error:#}");
            assert!(text.contains("line 2") && text.contains(reason), "{text}");
        }
    }
}
