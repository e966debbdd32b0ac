//! Whether hardware virtualization works here, proven by using it.
//!
//! `/dev/kvm` may exist, open, and even run a BIOS, and still be of no use: under some
//! hypervisors it emulates, and stops at the first instruction that its emulator does not
//! know. So the probe starts a guest as [`crate::Machine`] would (`-cpu host`) with a tiny
//! firmware that does what every kernel does first: long mode, paging, locked and SSE
//! instructions, a trap. It reports through `isa-debug-exit`; anything else, or nothing
//! within the limit, means that guests are emulated (TCG), and the reason is kept for people.
#![allow(
    unsafe_code,
    reason = "the probe's process is told to die with its parent"
)]

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, Signal, set_parent_process_death_signal, setrlimit};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

/// What the guest writes to port 0xf4; QEMU exits with twice that, plus one.
const PROVEN: i32 = 0x10 * 2 + 1;
/// Firmware ends at 4 GiB, and its last 64 KiB also lie below 1 MiB.
const FIRMWARE_LEN: usize = 64 << 10;
/// Where the processor begins: a jump to the start of the image, at f000:0000.
const RESET_VECTOR: (usize, [u8; 5]) = (FIRMWARE_LEN - 16, [0xea, 0x00, 0x00, 0x00, 0xf0]);
/// How much of QEMU's complaints is kept.
const MAX_COMPLAINT: u64 = 16 << 10;

/// `probe.S`, assembled.
#[rustfmt::skip]
const IMAGE: [u8; 240] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x80, 0x66, 0xc7, 0x06, 0x00, 0x10, 0x03,
    0x20, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00, 0x20, 0x03, 0x30, 0x00, 0x00, 0x66, 0xc7, 0x06, 0x00,
    0x30, 0x83, 0x00, 0x00, 0x00, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0xe0, 0x00, 0x66, 0xb8, 0x20, 0x06,
    0x00, 0x00, 0x0f, 0x22, 0xe0, 0x66, 0xb8, 0x00, 0x10, 0x00, 0x00, 0x0f, 0x22, 0xd8, 0x66, 0xb9,
    0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x66, 0x0d, 0x00, 0x01, 0x00, 0x00, 0x0f, 0x30, 0x66, 0xb8,
    0x11, 0x00, 0x00, 0x80, 0x0f, 0x22, 0xc0, 0x66, 0xea, 0x5f, 0x00, 0x0f, 0x00, 0x08, 0x00, 0xb9,
    0xa0, 0x86, 0x01, 0x00, 0x48, 0xff, 0xc3, 0xf0, 0x48, 0x01, 0x1c, 0x25, 0x00, 0x40, 0x00, 0x00,
    0xf3, 0x0f, 0x7e, 0x04, 0x25, 0x00, 0x40, 0x00, 0x00, 0x66, 0x0f, 0xd4, 0xc8, 0xff, 0xc9, 0x75,
    0xe3, 0x31, 0xc0, 0x0f, 0xa2, 0xb8, 0xc1, 0x00, 0x0f, 0x00, 0x66, 0x89, 0x04, 0x25, 0x30, 0x50,
    0x00, 0x00, 0x66, 0xc7, 0x04, 0x25, 0x32, 0x50, 0x00, 0x00, 0x08, 0x00, 0x66, 0xc7, 0x04, 0x25,
    0x34, 0x50, 0x00, 0x00, 0x00, 0x8e, 0xc1, 0xe8, 0x10, 0x66, 0x89, 0x04, 0x25, 0x36, 0x50, 0x00,
    0x00, 0x0f, 0x01, 0x1c, 0x25, 0xe6, 0x00, 0x0f, 0x00, 0xcc, 0xb0, 0x10, 0xe6, 0xf4, 0xf4, 0xeb,
    0xfd, 0x48, 0xcf, 0x0f, 0x1f, 0x44, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x9b, 0x20, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x93, 0x00, 0x00,
    0x17, 0x00, 0xc8, 0x00, 0x0f, 0x00, 0xff, 0x0f, 0x00, 0x50, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
];

/// What runs the processors of guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's own processor, through `/dev/kvm`.
    Kvm,
    /// Emulation by QEMU: works everywhere, an order of magnitude slower.
    Tcg {
        /// Why KVM is not used.
        reason: String,
    },
}

/// The probe itself could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Its firmware could not be written.
    #[error("cannot write the firmware of the accelerator probe")]
    Firmware(#[source] io::Error),
    /// QEMU could not be started.
    #[error("cannot start {} for the accelerator probe", program.display())]
    Start {
        /// The executable.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Accelerator {
    /// Uses `/dev/kvm` for at most `limit` through the QEMU at `qemu`. No process is left
    /// when this returns, nor when the caller dies.
    ///
    /// # Errors
    /// [`ProbeError`]; that KVM does not work is no error.
    pub async fn probe(qemu: &Path, limit: Duration) -> Result<Self, ProbeError> {
        const DEVICE: &str = "/dev/kvm";
        if let Err(error) = OpenOptions::new().read(true).write(true).open(DEVICE) {
            let way_out = match error.kind() {
                io::ErrorKind::PermissionDenied => " (add this user to the group `kvm`)",
                _ => "",
            };
            let reason = format!("{DEVICE} cannot be opened: {error}{way_out}");
            return Ok(Self::Tcg { reason });
        }
        match run_guest(qemu, &["-accel", "kvm", "-cpu", "host"], limit).await? {
            Ok(()) => Ok(Self::Kvm),
            Err(reason) => Ok(Self::Tcg { reason }),
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kvm => f.write_str("KVM"),
            Self::Tcg { reason } => write!(f, "TCG ({reason})"),
        }
    }
}

/// Runs the probe's guest; the inner error says why it did not report.
async fn run_guest(
    qemu: &Path,
    accelerator: &[&str],
    limit: Duration,
) -> Result<Result<(), String>, ProbeError> {
    let firmware = firmware().map_err(ProbeError::Firmware)?;
    let mut command = Command::new(qemu);
    command
        .args(["-machine", "pc", "-nodefaults", "-no-user-config"])
        .args(["-display", "none", "-m", "1", "-no-reboot"])
        .args(accelerator)
        .args(["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .arg(firmware.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: between fork and exec the closure makes two system calls and allocates nothing.
    unsafe {
        command.pre_exec(|| {
            // QEMU aborts on a KVM that it cannot use: no core dumps of that.
            let none = Rlimit {
                current: Some(0),
                maximum: Some(0),
            };
            setrlimit(Resource::Core, none)?;
            Ok(set_parent_process_death_signal(Some(Signal::KILL))?)
        });
    }
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(source) => {
            let program = qemu.to_owned();
            return Err(ProbeError::Start { program, source });
        }
    };
    let complaints = child.stderr.take();
    let ended = timeout(limit, async {
        tokio::join!(child.wait(), read_complaints(complaints))
    });
    match ended.await {
        Ok((Ok(status), _)) if status.code() == Some(PROVEN) => Ok(Ok(())),
        Ok((Ok(status), complaint)) => Ok(Err(describe(status, &complaint))),
        Ok((Err(error), _)) => Ok(Err(format!("the probe guest was lost: {error}"))),
        Err(_elapsed) => {
            // Kills and reaps; fails only for a child that is already reaped.
            let _ = child.kill().await;
            Ok(Err(format!(
                "a probe guest on KVM did not finish within {} s",
                limit.as_secs_f64()
            )))
        }
    }
}

fn firmware() -> io::Result<tempfile::NamedTempFile> {
    let mut image = vec![0; FIRMWARE_LEN];
    image[..IMAGE.len()].copy_from_slice(&IMAGE);
    let (at, jump) = RESET_VECTOR;
    image[at..at + jump.len()].copy_from_slice(&jump);
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(&image)?;
    Ok(file)
}

async fn read_complaints(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut stream) = stream {
        // What cannot be read is not shown; the exit status decides.
        let _ = (&mut stream)
            .take(MAX_COMPLAINT)
            .read_to_end(&mut bytes)
            .await;
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn describe(status: ExitStatus, complaint: &str) -> String {
    let line = complaint
        .lines()
        .rfind(|line| !line.contains("warning:") && !line.trim().is_empty());
    match line {
        Some(line) => format!("a probe guest on KVM failed: {}", line.trim()),
        None => format!("a probe guest on KVM failed: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binary::tests::script;
    use std::fs;
    use std::time::Instant;

    const LIMIT: Duration = Duration::from_secs(20);

    async fn qemu() -> PathBuf {
        crate::Qemu::find()
            .await
            .expect("QEMU is installed")
            .program
    }

    #[tokio::test]
    async fn the_probe_guest_reports_on_a_processor_that_works() {
        let ran = run_guest(&qemu().await, &["-accel", "tcg", "-cpu", "max"], LIMIT).await;
        assert_eq!(ran.expect("it starts"), Ok(()));
    }

    #[tokio::test]
    async fn a_processor_without_long_mode_is_not_taken_for_one_that_works() {
        let limit = Duration::from_millis(1500);
        let ran = run_guest(&qemu().await, &["-accel", "tcg", "-cpu", "qemu32"], limit).await;
        ran.expect("it starts").expect_err("it cannot report");
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_killed_at_the_limit_and_reaped() {
        let folder = tempfile::tempdir().expect("scratch folder");
        let pid_file = folder.path().join("pid");
        let text = format!("echo $$ > {}; exec sleep 1000", pid_file.display());
        let program = script(folder.path(), &text);
        let mut limit = Duration::from_secs(1);
        let pid = loop {
            let begun = Instant::now();
            let ran = run_guest(&program, &[], limit).await;
            let reason = ran.expect("it starts").expect_err("it hangs");
            assert!(reason.contains("did not finish"), "{reason}");
            assert!(begun.elapsed() < limit + LIMIT);
            // On a busy host it may be killed before it has begun.
            match fs::read_to_string(&pid_file) {
                Ok(pid) if pid.ends_with('\n') => break pid,
                _ => limit *= 2,
            }
            assert!(limit < LIMIT, "it never begins");
        };
        assert!(!Path::new("/proc").join(pid.trim()).exists());
    }

    #[tokio::test]
    async fn the_reason_is_what_qemu_said_last() {
        let folder = tempfile::tempdir().expect("scratch folder");
        let program = script(
            folder.path(),
            "echo a warning: x >&2; echo no MSR >&2; exit 1",
        );
        let reason = run_guest(&program, &[], LIMIT).await.expect("it starts");
        assert_eq!(
            reason,
            Err("a probe guest on KVM failed: no MSR".to_owned())
        );
    }

    #[tokio::test]
    async fn the_probe_of_this_host_ends_within_its_limit() {
        let qemu = qemu().await;
        let begun = Instant::now();
        let found = Accelerator::probe(&qemu, Duration::from_secs(3)).await;
        println!("{}", found.expect("the probe can be done"));
        assert!(begun.elapsed() < Duration::from_secs(8));
    }
}
