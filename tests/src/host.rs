//! A polluxd with a state folder of its own, and the command line that drives it.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use testkit::free_port;

use crate::{interrupted, until};

/// How long a host may refuse what it does in the end.
const PATIENCE: Duration = Duration::from_secs(180);
/// The exit code of `pollux` when another host or process does not answer in time.
const UNREACHABLE: i32 = 6;

/// Folders of a test or of the demo: state below `target/`, sockets in a short path.
pub struct Scratch {
    state: PathBuf,
    run: tempfile::TempDir,
}

impl Scratch {
    /// State in `target/<what>`, emptied first, and kept afterwards to be looked at.
    ///
    /// # Errors
    /// The folders cannot be made.
    pub fn new(what: &str) -> Result<Self> {
        let state = target_folder()?.join(what);
        if state.exists() {
            fs::remove_dir_all(&state)
                .with_context(|| format!("cannot empty {}", state.display()))?;
        }
        fs::create_dir_all(&state)?;
        let run = short_folder()?;
        interrupted::remember(run.path());
        Ok(Self { state, run })
    }

    /// Where state lies.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        interrupted::forget(self.run.path());
    }
}

/// A socket's path may have 107 bytes, and a checkout may lie deep: sockets lie in a folder of
/// their own with a short path, on tmpfs if there is one.
fn short_folder() -> Result<tempfile::TempDir> {
    let shm = Path::new("/dev/shm");
    let parent = if tempfile::tempfile_in(shm).is_ok() {
        shm
    } else {
        Path::new("/tmp")
    };
    let folder = tempfile::Builder::new()
        .prefix("pollux-")
        .tempdir_in(parent)?;
    // The processes of a VM have users of their own, who pass through here.
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

/// `target/` of the build that this program is part of.
fn target_folder() -> Result<PathBuf> {
    Ok(programs()?
        .parent()
        .context("programs lie in a folder of target/")?
        .to_owned())
}

/// The folder with `polluxd`, `pollux`, `pollux-vmd` and `pollux-diskd` of the same build.
fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own
        .ancestors()
        .skip(1)
        .find(|folder| folder.join("polluxd").is_file())
        .with_context(|| format!("no polluxd above {}: run `make build`", own.display()))?;
    Ok(folder.to_owned())
}

/// Copies the programs of a host into `folder`.
fn install(folder: &Path) -> Result<()> {
    let built = programs()?;
    fs::create_dir_all(folder)?;
    for program in ["polluxd", "pollux-vmd", "pollux-diskd"] {
        fs::copy(built.join(program), folder.join(program))?;
    }
    Ok(())
}

/// What `pollux` said when it refused.
#[derive(Debug)]
pub struct Refusal {
    /// Its exit code.
    pub exit: i32,
    /// Its standard error.
    pub message: String,
}

/// One host: a polluxd and all that it started.
pub struct Host {
    name: String,
    state: PathBuf,
    run: PathBuf,
    port: u16,
    programs: PathBuf,
    daemon: Option<Child>,
    echo: bool,
    /// Whom polluxd runs as, if not as whoever runs this.
    user: Option<u32>,
}

impl Host {
    /// Starts the host `name` with its own folders in `scratch` and a free port.
    ///
    /// # Errors
    /// polluxd does not come up.
    pub fn start(name: &str, scratch: &Scratch) -> Result<Self> {
        Self::start_from(programs()?, name, scratch.state.join(name), scratch, None)
    }

    /// As [`Host::start`], with copies of the host's programs that the test may replace.
    ///
    /// # Errors
    /// polluxd does not come up.
    pub fn start_installed(name: &str, scratch: &Scratch) -> Result<Self> {
        let installed = scratch.state.join("bin");
        install(&installed)?;
        Self::start_from(installed, name, scratch.state.join(name), scratch, None)
    }

    /// As [`Host::start_installed`], for the user `uid` and with everything in `home`, which becomes
    /// that user's. For root only.
    ///
    /// # Errors
    /// polluxd does not come up.
    pub fn start_as(uid: u32, name: &str, home: &Path, scratch: &Scratch) -> Result<Self> {
        let (installed, state) = (home.join("bin"), home.join(name));
        install(&installed)?;
        let run = scratch.run.path().join(name);
        for folder in [&state, &run] {
            fs::create_dir_all(folder)?;
            chown(folder, Some(uid), Some(uid))?;
        }
        chown(home, Some(uid), Some(uid))?;
        Self::start_from(installed, name, state, scratch, Some(uid))
    }

    fn start_from(
        programs: PathBuf,
        name: &str,
        state: PathBuf,
        scratch: &Scratch,
        user: Option<u32>,
    ) -> Result<Self> {
        let port = free_port();
        let run = scratch.run.path().join(name);
        fs::create_dir_all(&state)?;
        fs::create_dir_all(&run)?;
        let mut host = Self {
            name: name.to_owned(),
            state,
            run,
            port,
            programs,
            daemon: None,
            echo: false,
            user,
        };
        host.start_daemon()?;
        Ok(host)
    }

    /// Prints every command line before it is run.
    pub fn echo(&mut self) {
        self.echo = true;
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Port of its replica endpoint on loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its state folder.
    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// The folder with the sockets of the VM with this id.
    #[must_use]
    pub fn run_of(&self, vm: &str) -> PathBuf {
        self.run.join(&vm.replace('-', "")[..12])
    }

    /// The control socket of the diskd of the VM with this id.
    #[must_use]
    pub fn diskd_socket(&self, vm: &str) -> PathBuf {
        self.run_of(vm).join("diskd.sock")
    }

    /// polluxd with this host's folders, not started.
    ///
    /// # Errors
    /// It was not built.
    pub fn daemon_command(&self) -> Result<Command> {
        let program = self.programs.join("polluxd");
        let mut command = match self.user {
            None => Command::new(program),
            Some(uid) => {
                let mut command = Command::new("setpriv");
                command.args([
                    "--clear-groups",
                    &format!("--reuid={uid}"),
                    &format!("--regid={uid}"),
                ]);
                command.arg(program);
                command
            }
        };
        command
            .arg("--state")
            .arg(&self.state)
            .arg("--run")
            .arg(&self.run)
            .args(["--name", &self.name, "--replica-listen"])
            .arg(format!("127.0.0.1:{}", self.port))
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Starts polluxd (again) and waits until it answers.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_daemon(&mut self) -> Result<()> {
        ensure!(
            self.daemon.is_none(),
            "polluxd of {} runs already",
            self.name
        );
        let log = self.state.with_extension("log");
        let file = File::options().create(true).append(true).open(&log)?;
        let mut child = self
            .daemon_command()?
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        let answered = until(Duration::from_secs(60), "polluxd answers", || {
            if let Some(status) = child.try_wait()? {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("polluxd ended with {status}: {said}");
            }
            Ok(self
                .command(&["-o", "json", "host", "status"])?
                .output()?
                .status
                .success()
                .then_some(()))
        });
        self.daemon = Some(child);
        answered
    }

    /// `kill -9` of polluxd alone: its VMs run on.
    ///
    /// # Errors
    /// It cannot be reaped.
    pub fn kill_daemon(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill()?;
            daemon.wait()?;
        }
        Ok(())
    }

    /// `kill -9` of everything that the host runs.
    ///
    /// # Errors
    /// Something survives.
    pub fn kill_everything(&mut self) -> Result<()> {
        self.kill_daemon()?;
        kill_all_that_name(&self.run)
    }

    /// Ends everything that the host runs in order, as a host does that shuts down: its guests must
    /// be off.
    ///
    /// # Errors
    /// Something does not end.
    pub fn shut_down(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            send(daemon.id(), Signal::TERM)?;
            daemon.wait()?;
        }
        for (pid, name) in self.processes()? {
            if name == "pollux-vmd" {
                send(pid, Signal::TERM)?;
            }
        }
        until(Duration::from_secs(30), "all processes ended", || {
            Ok(self.processes()?.is_empty().then_some(()))
        })
    }

    /// Removes what a start of the machine finds gone: all that lies on tmpfs. Nothing may run.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn lose_memory(&self) -> Result<()> {
        fs::remove_dir_all(&self.run)?;
        Ok(fs::create_dir(&self.run)?)
    }

    /// The processes that the host runs now but for its polluxd, each by its id and its program.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<(u32, String)>> {
        let daemon = self.daemon.as_ref().map(Child::id);
        let mut found = Vec::new();
        for pid in processes_that_name(&self.run)? {
            // One that ended meanwhile has no name.
            let Ok(name) = fs::read_to_string(format!("/proc/{pid}/comm")) else {
                continue;
            };
            let name = name.trim().to_owned();
            // The command line of a user is none of the host's processes.
            if Some(pid) != daemon && name != "pollux" {
                found.push((pid, name));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Process id of polluxd, while it runs.
    #[must_use]
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon.as_ref().map(Child::id)
    }

    /// Whether polluxd was started and not killed.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.daemon.is_some()
    }

    /// The command line of this host with `args`, not run.
    ///
    /// # Errors
    /// It was not built.
    pub fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs()?.join("pollux"));
        command
            .arg("--socket")
            .arg(self.run.join("api.sock"))
            .args(args)
            .stdin(Stdio::null());
        Ok(command)
    }

    /// Runs `pollux` with `args` until it does what may be refused for a moment: by a host that is to let go
    /// of a VM and is still busy with it, or because a busy one did not answer in time. What was refused must
    /// have changed nothing.
    ///
    /// # Errors
    /// It goes on refusing for three minutes; the error is what it said last.
    pub fn insist(&self, args: &[&str]) -> Result<String> {
        patiently(|| self.pollux(args))
    }

    /// As [`Host::insist`], of `pollux -o json`.
    ///
    /// # Errors
    /// As there.
    pub fn insist_json(&self, args: &[&str]) -> Result<Value> {
        patiently(|| self.json(args))
    }

    /// Runs `pollux` with `args` and gives what it printed.
    ///
    /// # Errors
    /// It refuses; the error is what it said.
    pub fn pollux(&self, args: &[&str]) -> Result<String> {
        if self.echo {
            println!("\n{}$ pollux {}", self.name, quoted(args));
        }
        let output = self.command(args)?.stderr(Stdio::piped()).output()?;
        let (out, err) = (
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        if self.echo {
            print!("{out}{err}");
        }
        ensure!(
            output.status.success(),
            "pollux {}: {} {err}",
            quoted(args),
            output.status
        );
        Ok(out.into_owned())
    }

    /// Runs `pollux -o json` with `args`, never echoed.
    ///
    /// # Errors
    /// It refuses, or does not print JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        let output = self.command(&["-o", "json"])?.args(args).output()?;
        ensure!(
            output.status.success(),
            "pollux {}: {}",
            quoted(args),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Runs `pollux` with `args`, which must be refused.
    ///
    /// # Errors
    /// It is not refused.
    pub fn refused(&self, args: &[&str]) -> Result<Refusal> {
        let output = self.command(args)?.output()?;
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        let exit = output
            .status
            .code()
            .context("pollux was ended by a signal")?;
        ensure!(exit != 0, "pollux {} was not refused", quoted(args));
        Ok(Refusal { exit, message })
    }

    /// As [`Host::refused`], for what is `expected`. A host that is busy does not always answer another one in
    /// time: unless that is expected, it is asked again.
    ///
    /// # Errors
    /// It is not refused, or the other one does not answer for three minutes.
    pub fn refused_for(
        &self,
        args: &[&str],
        expected: impl Fn(&Refusal) -> bool,
    ) -> Result<Refusal> {
        let mut last = String::new();
        let refused = until(PATIENCE, "there is an answer", || {
            let refusal = self.refused(args)?;
            let answered = refusal.exit != UNREACHABLE || expected(&refusal);
            last.clone_from(&refusal.message);
            Ok(answered.then_some(refusal))
        });
        refused.with_context(|| format!("pollux {}: {last}", quoted(args)))
    }

    /// As [`Host::refused_for`], for a reason with this exit code.
    ///
    /// # Errors
    /// As there, or it has another one.
    pub fn refused_with(&self, exit: i32, args: &[&str]) -> Result<Refusal> {
        let refusal = self.refused_for(args, |refusal| refusal.exit == exit)?;
        ensure!(refusal.exit == exit, "pollux {}: {refusal:?}", quoted(args));
        Ok(refusal)
    }

    /// Makes two hosts trust each other; `self` reaches `other` at `address`.
    ///
    /// # Errors
    /// One refuses.
    pub fn trust_each_other(&self, other: &Host, address: &str) -> Result<()> {
        self.trust(other, address)?;
        other.trust(self, &format!("127.0.0.1:{}", self.port))
    }

    /// Trusts `other`, which is reached at `address`.
    ///
    /// # Errors
    /// It is refused.
    pub fn trust(&self, other: &Host, address: &str) -> Result<()> {
        let there = other.json(&["host", "identity"])?;
        let fingerprint = text(&there, "/fingerprint")?;
        self.pollux(&["host", "trust", &other.name, address, fingerprint])?;
        Ok(())
    }

    /// What the guest of `vm` wrote to its serial port.
    ///
    /// # Errors
    /// There is no such VM.
    pub fn serial_log(&self, vm: &str) -> Result<String> {
        let output = self.command(&["vm", "console", vm, "--log"])?.output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Waits for a line of the guest's serial log, after the first `after` bytes of it, that
    /// contains `marker`; gives the line.
    ///
    /// # Errors
    /// It does not come within `limit`; the error shows the end of the log.
    pub fn serial_line(
        &self,
        vm: &str,
        after: usize,
        marker: &str,
        limit: Duration,
    ) -> Result<String> {
        self.serial(vm, after, marker, limit, |new| {
            // Only whole lines: the rest may still come.
            let whole = &new[..new.rfind('\n').map_or(0, |end| end + 1)];
            let found = whole.lines().find(|line| line.contains(marker));
            Ok(found.map(str::to_owned))
        })
    }

    /// Waits until `look` finds `what` in the guest's serial log after the first `after` bytes of it.
    ///
    /// # Errors
    /// It does not come within `limit`, or `look` fails; the error shows the end of the log.
    pub fn serial<T>(
        &self,
        vm: &str,
        after: usize,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&str) -> Result<Option<T>>,
    ) -> Result<T> {
        let found = until(limit, &format!("the guest says `{what}`"), || {
            let log = self.serial_log(vm)?;
            look(log.get(after..).unwrap_or_default())
        });
        found.with_context(|| {
            let log = self.serial_log(vm).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(15).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            format!(
                "the serial log of {vm} on {} ends: {}",
                self.name,
                tail.join("\n")
            )
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.kill_everything() {
            eprintln!("cannot clean up host {}: {error:#}", self.name);
        }
    }
}

/// Field at `path` (a JSON pointer) as text.
///
/// # Errors
/// There is none.
pub fn text<'a>(object: &'a Value, path: &str) -> Result<&'a str> {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .with_context(|| format!("no text at {path} in {object}"))
}

/// Field at `path` (a JSON pointer) as a number.
///
/// # Errors
/// There is none.
pub fn json_u64(object: &Value, path: &str) -> Result<u64> {
    object
        .pointer(path)
        .and_then(Value::as_u64)
        .with_context(|| format!("no number at {path} in {object}"))
}

/// Asks until it is done.
fn patiently<T>(ask: impl Fn() -> Result<T>) -> Result<T> {
    let mut refusal = None;
    let done = until(PATIENCE, "it is done", || {
        Ok(ask().map_err(|refused| refusal = Some(refused)).ok())
    });
    done.map_err(|error| refusal.take().unwrap_or(error))
}

fn quoted(args: &[&str]) -> String {
    let quote = |arg: &&str| {
        let plain = !arg.is_empty() && !arg.contains(|c: char| " '\"$*&;|<>()".contains(c));
        if plain {
            (*arg).to_owned()
        } else {
            format!("'{}'", arg.replace('\'', r"'\''"))
        }
    };
    args.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// `kill -9` of every process of which the command line names something in `folder`.
pub(crate) fn kill_all_that_name(folder: &Path) -> Result<()> {
    until(
        Duration::from_secs(30),
        "all processes of the host are gone",
        || {
            let left = processes_that_name(folder)?;
            for pid in &left {
                // It may be gone already; the next look tells.
                let _ = kill(*pid);
            }
            Ok(left.is_empty().then_some(()))
        },
    )
}

/// `kill -9`.
///
/// # Errors
/// There is no such process.
pub fn kill(pid: u32) -> Result<()> {
    send(pid, Signal::KILL)
}

/// Stops a process where it is.
///
/// # Errors
/// There is none.
pub fn freeze(pid: u32) -> Result<()> {
    send(pid, Signal::STOP)
}

/// Lets a process go on that was stopped.
///
/// # Errors
/// There is none.
pub fn thaw(pid: u32) -> Result<()> {
    send(pid, Signal::CONT)
}

fn send(pid: u32, signal: Signal) -> Result<()> {
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.with_context(|| format!("{pid} is no process id"))?;
    kill_process(process, signal).with_context(|| format!("there is no process {pid}"))
}

/// Processes of which the command line names something in `folder`.
///
/// # Errors
/// `/proc` cannot be read.
pub fn processes_that_name(folder: &Path) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    let needle = format!("{}/", folder.display());
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A process that ended meanwhile, or whose end is only to be reaped, has none.
        let Ok(line) = fs::read(entry.path().join("cmdline")) else {
            continue;
        };
        let ours = pid != std::process::id();
        if ours
            && String::from_utf8_lossy(&line)
                .replace('\0', "/")
                .contains(&needle)
        {
            found.push(pid);
        }
    }
    Ok(found)
}
