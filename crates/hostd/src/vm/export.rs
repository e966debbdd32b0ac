//! A disk as it was at a checkpoint or at a recovery point, into a file: `qemu-img` reads diskd's
//! read-only NBD export.
//!
//! The file appears under its name when it is whole. Until then it has none, so that nothing is left
//! of an export that fails, whatever is killed.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use api::{DiskFormat, ExportedDisk, Progress};
use model::{Bytes, CheckpointId, Code, Problem};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::supervisor::Supervisor;

/// How long the disks of a VM that is off may take to be served.
const SERVED: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);
/// Of what a failing qemu-img says, so much is told.
const MAX_SAID: u64 = 4096;
/// What setpriv ends with when it cannot run a program.
const NOT_RUN: i32 = 127;

/// What is exported.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The disk, for messages.
    pub(crate) thing: String,
    /// diskd's NBD socket of the disk.
    pub(crate) socket: PathBuf,
    /// The name of the export there.
    pub(crate) export: String,
    pub(crate) size: Bytes,
}

impl Source {
    /// Waits until the disk is served with the checkpoint.
    pub(crate) async fn wait(
        &self,
        supervisor: &Supervisor,
        checkpoint: CheckpointId,
    ) -> Result<(), Problem> {
        let deadline = Instant::now() + SERVED;
        loop {
            if let Some(status) = supervisor.diskd_status().await {
                let mut overlays = status.disks.iter().flat_map(|disk| &disk.overlays);
                let there = overlays.any(|overlay| overlay.checkpoint == checkpoint);
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
            "driver=nbd,server.type=unix,server.path={path},export={},open-timeout=60,reconnect-delay=60",
            self.export
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

/// Refuses a folder in which no file can be made.
pub(crate) fn check_folder(folder: &Path) -> Result<(), Problem> {
    let refuse = |code, reason: &str, way_out: &str| {
        let thing = format!("folder {}", folder.display());
        Err(Problem::new(code, thing, reason, way_out))
    };
    if !folder.is_absolute() {
        let reason = "is not an absolute path";
        return refuse(Code::Invalid, reason, "Name it from the root on");
    }
    match fs::metadata(folder) {
        Ok(meta) if meta.is_dir() => Ok(()),
        Ok(_) => refuse(Code::Conflict, "is no folder", "Name another one"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let way_out = "Make the folder first, on the host of polluxd";
            refuse(Code::NotFound, "does not exist", way_out)
        }
        Err(error) => refuse(Code::Failed, &format!("cannot be opened: {error}"), ""),
    }
}

/// A file that is not whole. Without a name it goes with the last process that has it open.
struct Partial {
    file: File,
    /// Where the file system wants a name; removed when dropped.
    name: Option<PathBuf>,
}

impl Partial {
    fn make(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match openat(CWD, folder, flags, Mode::RUSR | Mode::WUSR) {
            Ok(file) => Ok(Self {
                file: file.into(),
                name: None,
            }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => Self::named(path),
            Err(errno) => Err(errno.into()),
        }
    }

    fn named(path: &Path) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = path.with_file_name(format!(".{name}.{}.partial", uuid::Uuid::new_v4()));
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create_new(true).mode(0o600);
        Ok(Self {
            file: options.open(&name)?,
            name: Some(name),
        })
    }

    /// Gives it its name; unlike rename, never one that another file got meanwhile.
    fn publish(&self, path: &Path) -> io::Result<Metadata> {
        self.file.sync_all()?;
        let open = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
        self.file.metadata()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // What cannot be removed says by its name what it is.
            let _ = fs::remove_file(name);
        }
    }
}

/// An export that is whole and has no name yet; gone when dropped.
pub(crate) struct Whole {
    partial: Partial,
    file: PathBuf,
    format: DiskFormat,
    size: Bytes,
}

impl Whole {
    fn publish(&self) -> Result<ExportedDisk, Problem> {
        let published = self.partial.publish(&self.file);
        let meta = published.map_err(|error| failed(&thing(&self.file), &error))?;
        Ok(ExportedDisk {
            file: self.file.clone(),
            format: self.format,
            size: self.size,
            allocated: Bytes(meta.blocks().saturating_mul(512)),
        })
    }
}

/// Gives exports their names: all, or none if one cannot have it. Blocking.
pub(crate) fn publish(all: &[Whole]) -> Result<Vec<ExportedDisk>, Problem> {
    let mut named = Vec::new();
    for whole in all {
        match whole.publish() {
            Ok(exported) => named.push(exported),
            Err(problem) => {
                for exported in named {
                    // One that stays is whole.
                    let _ = fs::remove_file(exported.file);
                }
                return Err(problem);
            }
        }
    }
    Ok(named)
}

fn thing(file: &Path) -> String {
    format!("file {}", file.display())
}

fn failed(thing: &str, error: &io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            full(thing, &error.to_string())
        }
        _ => Problem::failed(thing, error),
    }
}

/// Exports `source` into what is to be the new file `file`. When `progress` answers false, it is
/// given up.
///
/// It blocks: qemu-img dies with the thread that started it, and so with polluxd.
pub(crate) fn run(
    source: &Source,
    file: &Path,
    format: DiskFormat,
    progress: impl Fn(Progress) -> bool,
) -> Result<Whole, Problem> {
    let thing = thing(file);
    let failed = |error: io::Error| failed(&thing, &error);
    let partial = Partial::make(file).map_err(|error| {
        failed(io::Error::new(
            error.kind(),
            format!("cannot be made: {error}"),
        ))
    })?;
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "qemu-img", "convert", "-p"])
        .args(["--image-opts", "-O", &format.to_string()])
        .arg(source.options())
        .arg("/proc/self/fd/0")
        .stdin(partial.file.try_clone().map_err(failed)?)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| cannot_run("setpriv", &error.to_string(), "util-linux"))?;
    let errors = child.stderr.take();
    let said = thread::spawn(move || {
        let mut said = String::new();
        if let Some(errors) = errors {
            // What was read until it failed is told.
            let _ = errors.take(MAX_SAID).read_to_string(&mut said);
        }
        said
    });
    let wanted = child
        .stdout
        .take()
        .is_none_or(|out| tell(out, source.size, progress));
    if !wanted {
        // Fails only when it has ended by itself.
        let _ = child.kill();
    }
    let ended = child
        .wait()
        .map_err(|error| Problem::failed("qemu-img", &error))?;
    let said = said.join().unwrap_or_default();
    if !wanted {
        let reason = "was not made: whoever asked for it went away";
        return Err(Problem::new(Code::Conflict, thing, reason, ""));
    }
    if ended.code() == Some(NOT_RUN) {
        return Err(cannot_run("qemu-img", said.trim(), "qemu-utils"));
    }
    if !ended.success() {
        let said = said.trim();
        if said.contains("No space left") || said.contains("quota exceeded") {
            return Err(full(&thing, said));
        }
        let reason = format!("cannot be written: {said}");
        return Err(Problem::new(Code::Failed, thing, reason, ""));
    }
    Ok(Whole {
        partial,
        file: file.to_owned(),
        format,
        size: source.size,
    })
}

fn full(thing: &str, reason: &str) -> Problem {
    let reason = format!("cannot be written: {reason}");
    let way_out = "Make room there, or name a file elsewhere";
    Problem::new(Code::Full, thing, reason, way_out)
}

fn cannot_run(program: &str, reason: &str, package: &str) -> Problem {
    let reason = format!("cannot be run: {reason}");
    let way_out = format!("Install it (Debian: package {package})");
    Problem::new(Code::Failed, program, reason, way_out)
}

/// Tells how far qemu-img says that it is; false when nobody wants to know.
fn tell(mut out: impl Read, size: Bytes, progress: impl Fn(Progress) -> bool) -> bool {
    let mut buffer = [0; 1024];
    let mut text = String::new();
    let mut last = None;
    loop {
        let read = match out.read(&mut buffer) {
            Ok(0) | Err(_) => return true,
            Ok(read) => read,
        };
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
        if let Some(percent) = percent(&text) {
            let done = Bytes(u64::try_from(u128::from(size.0) * percent / 10_000).unwrap_or(0));
            let what = "exporting".to_owned();
            let total = size;
            let now = Progress { what, done, total };
            if last.replace(done) != Some(done) && !progress(now) {
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
    fn a_file_that_is_not_whole_has_no_name_and_takes_no_others() {
        let folder = tempfile::tempdir().expect("scratch");
        let path = folder.path().join("new.raw");
        let names = || fs::read_dir(folder.path()).expect("read").count();
        for named in [false, true] {
            let make = || match named {
                false => Partial::make(&path),
                true => Partial::named(&path),
            };
            let mut partial = make().expect("made");
            std::io::Write::write_all(&mut partial.file, b"content").expect("written");
            assert!(!path.exists());
            partial.publish(&path).expect("published");
            drop(partial);
            assert_eq!(fs::read(&path).expect("read"), b"content");
            let late = make().expect("made");
            late.publish(&path).expect_err("another file has that name");
            drop(late);
            assert_eq!(names(), 1);
            fs::remove_file(&path).expect("removed");
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
