//! A disk as it was at a checkpoint, into a file: `qemu-img` reads diskd's read-only NBD export.
//!
//! The file appears under its name when it is whole; until then it has a hidden one beside it,
//! which is removed if the export fails.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use api::{DiskFormat, ExportedDisk, Progress};
use model::{Bytes, CheckpointId, Code, Problem};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::supervisor::Supervisor;

/// How long the disks of a VM that is off may take to be served.
const SERVED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Of what a failing qemu-img says, so much is told.
const MAX_SAID: u64 = 4096;

/// What is exported.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The disk, for messages.
    pub(crate) thing: String,
    /// diskd's NBD socket of the disk.
    pub(crate) socket: PathBuf,
    pub(crate) checkpoint: CheckpointId,
    pub(crate) size: Bytes,
}

impl Source {
    /// Waits until the disk is served with the checkpoint.
    pub(crate) async fn wait(&self, supervisor: &Supervisor) -> Result<(), Problem> {
        let deadline = Instant::now() + SERVED;
        loop {
            if let Some(status) = supervisor.diskd_status().await {
                let mut overlays = status.disks.iter().flat_map(|disk| &disk.overlays);
                let there = overlays.any(|overlay| overlay.checkpoint == self.checkpoint);
                if there && UnixStream::connect(&self.socket).await.is_ok() {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                let reason = "is not served, so it cannot be read";
                let way_out = "`pollux vm show` and diskd.log in the VM's folder say why";
                return Err(Problem::new(Code::Failed, &self.thing, reason, way_out));
            }
            sleep(POLL).await;
        }
    }

    fn options(&self) -> String {
        // A comma ends a value in QEMU's options, two stand for one.
        let path = self.socket.display().to_string().replace(',', ",,");
        format!(
            "driver=nbd,server.type=unix,server.path={path},export=checkpoint/{},reconnect-delay=60",
            self.checkpoint
        )
    }
}

/// Refuses a file that cannot be made.
pub(crate) fn check(file: &Path) -> Result<(), Problem> {
    let refuse = |code, reason: String, way_out: &str| {
        let thing = format!("file {}", file.display());
        Err(Problem::new(code, thing, reason, way_out))
    };
    if !file.is_absolute() || file.file_name().is_none() {
        let reason = "is not an absolute path of a file".to_owned();
        return refuse(Code::Invalid, reason, "Name it from the root on");
    }
    if file.symlink_metadata().is_ok() {
        let way_out = "Name another file, or remove that one";
        return refuse(Code::Conflict, "exists already".to_owned(), way_out);
    }
    match file.parent().map(fs::metadata) {
        Some(Ok(meta)) if meta.is_dir() => Ok(()),
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => {
            refuse(Code::Failed, format!("cannot be made: {error}"), "")
        }
        _ => refuse(
            Code::NotFound,
            "cannot be made: its folder does not exist".to_owned(),
            "Make the folder first, on the host of polluxd",
        ),
    }
}

/// A file that is not whole; removed when dropped.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // Fails only when it was not made.
        let _ = fs::remove_file(&self.0);
    }
}

/// Exports `source` into the new file `file`. When `progress` answers false, it is given up.
pub(crate) async fn run<F: Future<Output = bool>>(
    source: &Source,
    file: &Path,
    format: DiskFormat,
    progress: impl Fn(Progress) -> F,
) -> Result<ExportedDisk, Problem> {
    let thing = format!("file {}", file.display());
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let partial = Partial(file.with_file_name(format!(".{name}.{}.partial", source.checkpoint)));
    let mut child = Command::new("qemu-img")
        .args(["convert", "-p", "--image-opts", "-O", &format.to_string()])
        .arg(source.options())
        .arg(&partial.0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let reason = format!("cannot be run: {error}");
            let way_out = "Install it (Debian: package qemu-utils)";
            Problem::new(Code::Failed, "qemu-img", reason, way_out)
        })?;
    let (out, errors) = (child.stdout.take(), child.stderr.take());
    let said = tokio::spawn(async move {
        let mut said = String::new();
        if let Some(errors) = errors {
            // What was read until it failed is told.
            let _ = errors.take(MAX_SAID).read_to_string(&mut said).await;
        }
        said
    });
    if let Some(out) = out {
        if !tell(out, source.size, progress).await {
            let reason = "was not made: whoever asked for it went away";
            return Err(Problem::new(Code::Conflict, thing, reason, ""));
        }
    }
    let ended = child
        .wait()
        .await
        .map_err(|error| Problem::failed("qemu-img", &error))?;
    let said = said.await.unwrap_or_default();
    if !ended.success() {
        let full = said.contains("No space left") || said.contains("quota exceeded");
        let (code, way_out) = if full {
            (Code::Full, "Make room there, or name a file elsewhere")
        } else {
            (Code::Failed, "")
        };
        let reason = format!("cannot be written: {}", said.trim());
        return Err(Problem::new(code, thing, reason, way_out));
    }
    let (from, to) = (partial.0.clone(), file.to_owned());
    let published = tokio::task::spawn_blocking(move || {
        fs::File::open(&from)?.sync_all()?;
        // Unlike rename, it never replaces a file that was made meanwhile.
        fs::hard_link(&from, &to)?;
        fs::metadata(&to)
    });
    let meta = match published.await {
        Ok(published) => published.map_err(|error| Problem::failed(&thing, &error))?,
        Err(error) => return Err(Problem::failed(&thing, &error)),
    };
    Ok(ExportedDisk {
        file: file.to_owned(),
        format,
        size: source.size,
        allocated: Bytes(meta.blocks().saturating_mul(512)),
    })
}

/// Tells how far qemu-img says that it is; false when nobody wants to know.
async fn tell<F: Future<Output = bool>>(
    mut out: impl AsyncRead + Unpin,
    size: Bytes,
    progress: impl Fn(Progress) -> F,
) -> bool {
    let mut buffer = [0; 1024];
    let mut text = String::new();
    let mut last = None;
    loop {
        let read = match out.read(&mut buffer).await {
            Ok(0) | Err(_) => return true,
            Ok(read) => read,
        };
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if let Some(percent) = percent(&text) {
            let done = Bytes(u64::try_from(u128::from(size.0) * percent / 10_000).unwrap_or(0));
            let what = "exporting".to_owned();
            let total = size;
            let now = Progress { what, done, total };
            if last.replace(done) != Some(done) && !progress(now).await {
                return false;
            }
        }
        let keep = text.rfind('(').unwrap_or(text.len());
        text.drain(..keep);
    }
}

/// The last `(12.34/100%)` of a text, in hundredths of a percent.
fn percent(text: &str) -> Option<u128> {
    let end = text.rfind("/100%)")?;
    let start = text[..end].rfind('(')? + 1;
    let (whole, part) = text[start..end].split_once('.')?;
    let (whole, part): (u128, u128) = (whole.trim().parse().ok()?, part.parse().ok()?);
    Some((whole * 100 + part).min(10_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_qemu_img_prints() {
        assert_eq!(
            percent("    (0.00/100%)\r    (12.34/100%)\r    (12."),
            Some(1234)
        );
        assert_eq!(percent("    (100.00/100%)\r\n"), Some(10_000));
        for text in ["", "(", "(x/100%)", "/100%)", "(1/100%)"] {
            assert_eq!(percent(text), None, "{text}");
        }
    }

    #[test]
    fn a_file_that_exists_or_cannot_be_made_is_refused() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = |name: &str| folder.path().join(name);
        check(&path("new.raw")).expect("it can be made");
        fs::write(path("old.raw"), "precious").expect("written");
        let code = |path: &Path| check(path).expect_err("refused").code;
        assert_eq!(code(&path("old.raw")), Code::Conflict);
        assert_eq!(code(&path("absent/new.raw")), Code::NotFound);
        assert_eq!(code(Path::new("new.raw")), Code::Invalid);
        assert_eq!(code(Path::new("/")), Code::Invalid);
    }
}
