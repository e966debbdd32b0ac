//! A process that tries what it may not, with its rights and without: what is refused to the one is
//! done by the other, so that each of these tests can fail.
//!
//! The process is this very program, told by an environment variable what it is.
#![allow(unsafe_code, reason = "system calls that are to be refused")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::VmId;
use pollux_sandbox::{Allowed, Confinement, Rights, allow_only, user_of};

/// Set for the process that tries: where, and what for.
const WHERE: &str = "POLLUX_ATTEMPT";
const TRIES: &str = "what_a_process_tries";
/// Set for the process that starts it, with these rights.
const RIGHTS: &str = "POLLUX_ATTEMPT_RIGHTS";
const STARTS: &str = "what_a_starter_does";
/// Somebody who is not root and owns nothing.
const NOBODY: u32 = 1_999_999;

fn checked(result: libc::c_long) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

type Attempt = Box<dyn Fn() -> io::Result<()>>;

/// What may be tried, by name. `folder` is the process's own; beside it lies `other`, of another VM.
#[allow(clippy::too_many_lines, reason = "a list")]
fn attempts(folder: &Path) -> Vec<(&'static str, Attempt)> {
    let said = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let victim: i32 = said("victim").parse().unwrap();
    let port: u16 = said("port").parse().unwrap();
    let other = folder.parent().unwrap().join("other");
    let own = folder.to_owned();
    let write = |path: PathBuf| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    };
    let socket = |family, kind| {
        // SAFETY: takes numbers.
        checked(unsafe { libc::socket(family, kind, 0) }.into())
    };
    vec![
        (
            "read /etc/shadow",
            Box::new(|| File::open("/etc/shadow").map(drop)),
        ),
        ("list /root", Box::new(|| fs::read_dir("/root").map(drop))),
        (
            "read another VM's disk",
            Box::new({
                let disk = other.join("disk.raw");
                move || File::open(&disk).map(drop)
            }),
        ),
        (
            "write another VM's disk",
            Box::new({
                let disk = other.join("disk.raw");
                move || OpenOptions::new().write(true).open(&disk).map(drop)
            }),
        ),
        (
            "write to /usr",
            Box::new(move || {
                let path = PathBuf::from(format!("/usr/pollux-attempt-{}", std::process::id()));
                write(path.clone())?;
                fs::remove_file(path)
            }),
        ),
        (
            "write to /tmp",
            Box::new(move || {
                let path = PathBuf::from(format!("/tmp/pollux-attempt-{}", std::process::id()));
                write(path.clone())?;
                fs::remove_file(path)
            }),
        ),
        (
            "connect by TCP",
            Box::new(move || TcpStream::connect(("127.0.0.1", port)).map(drop)),
        ),
        (
            "make an internet socket",
            Box::new(move || socket(libc::AF_INET, libc::SOCK_DGRAM)),
        ),
        (
            "make a netlink socket",
            Box::new(move || socket(libc::AF_NETLINK, libc::SOCK_RAW)),
        ),
        (
            "make a packet socket",
            Box::new(move || socket(libc::AF_PACKET, libc::SOCK_RAW)),
        ),
        (
            "trace another process",
            Box::new(move || {
                // SAFETY: takes numbers here.
                checked(unsafe { libc::ptrace(libc::PTRACE_SEIZE, victim, 0, 0) })
            }),
        ),
        (
            "read another process's memory",
            Box::new(move || File::open(format!("/proc/{victim}/environ")).map(drop)),
        ),
        (
            "signal another process",
            Box::new(move || {
                // SAFETY: signal 0 only asks whether one could be sent.
                checked(unsafe { libc::kill(victim, 0) }.into())
            }),
        ),
        (
            "become root",
            Box::new(|| {
                // SAFETY: takes a number.
                checked(unsafe { libc::setuid(0) }.into())
            }),
        ),
        (
            "mount",
            Box::new({
                let place = CString::new(own.join("mounted").to_str().unwrap()).unwrap();
                move || {
                    // SAFETY: both strings end with NUL.
                    unsafe {
                        let kind = c"tmpfs".as_ptr();
                        checked(
                            libc::mount(kind, place.as_ptr(), kind, 0, std::ptr::null()).into(),
                        )?;
                        checked(libc::umount(place.as_ptr()).into())
                    }
                }
            }),
        ),
        (
            "leave for a namespace",
            Box::new(|| {
                // SAFETY: takes a number.
                checked(unsafe { libc::unshare(libc::CLONE_NEWUTS) }.into())
            }),
        ),
        (
            "change the root folder",
            Box::new(|| {
                // SAFETY: the string ends with NUL.
                checked(unsafe { libc::chroot(c"/".as_ptr()) }.into())
            }),
        ),
        (
            "run a program",
            Box::new(|| Command::new("/usr/bin/true").status().map(drop)),
        ),
        (
            "use io_uring",
            Box::new(|| {
                let mut parameters = [0_u8; 120];
                // SAFETY: io_uring_params has 120 bytes.
                checked(unsafe {
                    libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr())
                })
            }),
        ),
        // And what it may.
        (
            "write its own folder",
            Box::new({
                let own = own.clone();
                move || {
                    fs::write(own.join("new"), "text")?;
                    fs::rename(own.join("new"), own.join("renamed"))?;
                    fs::remove_file(own.join("renamed"))
                }
            }),
        ),
        (
            "listen in its own folder and connect",
            Box::new(move || {
                let path = own.join("socket");
                let listener = UnixListener::bind(&path)?;
                UnixStream::connect(&path)?;
                listener.accept()?;
                fs::remove_file(path)
            }),
        ),
        (
            "read what it was given",
            Box::new({
                let image = folder.parent().unwrap().join("image.iso");
                move || File::open(&image).map(drop)
            }),
        ),
        (
            "write what it may read",
            Box::new({
                let image = folder.parent().unwrap().join("image.iso");
                move || OpenOptions::new().append(true).open(&image).map(drop)
            }),
        ),
        (
            "draw random bytes",
            Box::new(|| File::open("/dev/urandom").map(drop)),
        ),
        (
            "read its own maps",
            Box::new(|| File::open("/proc/self/maps").map(drop)),
        ),
        (
            "start a thread",
            Box::new(|| {
                std::thread::Builder::new().spawn(|| {})?.join().unwrap();
                Ok(())
            }),
        ),
    ]
}

const ALLOWED: [&str; 6] = [
    "write its own folder",
    "listen in its own folder and connect",
    "read what it was given",
    "draw random bytes",
    "read its own maps",
    "start a thread",
];

#[test]
fn what_a_process_tries() {
    if std::env::var_os(RIGHTS).is_some() {
        return;
    }
    let Some(folder) = std::env::var_os(WHERE).map(PathBuf::from) else {
        return;
    };
    for (name, attempt) in attempts(&folder) {
        let outcome = attempt().map_or_else(|error| error.to_string(), |()| "done".to_owned());
        println!("\n=={name}=={outcome}");
    }
    println!(
        "\n==rights=={}",
        fs::read_to_string("/proc/self/status")
            .unwrap()
            .replace('\n', "|")
    );
}

/// A host with two VMs, a process to attack and a TCP port.
struct Host {
    folder: tempfile::TempDir,
    victim: Child,
    _tcp: TcpListener,
    /// A child that another test forks meanwhile would hold this one's program open for writing.
    _alone: MutexGuard<'static, ()>,
}

static ALONE: Mutex<()> = Mutex::new(());

impl Host {
    /// All of it, and the victim, belong to `user`.
    fn of(user: u32) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["own", "own/mounted", "other"] {
            fs::create_dir(path(name)).unwrap();
        }
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut victim = Command::new("/bin/sleep");
        victim.arg("1000");
        if is_root() {
            victim.uid(user).gid(user);
        }
        let victim = victim.spawn().unwrap();
        fs::write(path("own/victim"), victim.id().to_string()).unwrap();
        fs::write(
            path("own/port"),
            tcp.local_addr().unwrap().port().to_string(),
        )
        .unwrap();
        fs::write(path("other/disk.raw"), "theirs").unwrap();
        fs::write(path("image.iso"), "image").unwrap();
        let host = Self {
            folder,
            victim,
            _tcp: tcp,
            _alone: alone,
        };
        for name in [
            "",
            "own",
            "own/mounted",
            "own/victim",
            "own/port",
            "other",
            "other/disk.raw",
            "image.iso",
        ] {
            let path = host.path(name);
            if is_root() {
                std::os::unix::fs::chown(&path, Some(user), Some(user)).unwrap();
            }
            let mode = if path.is_dir() { 0o711 } else { 0o600 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn rights(&self) -> Rights {
        Rights {
            write: vec![self.path("own")],
            read: vec![self.path("image.iso"), self.program()],
            ..Rights::default()
        }
    }

    /// A copy of this program that everybody can reach.
    fn program(&self) -> PathBuf {
        let program = self.path("attempt");
        if !program.exists() {
            fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        }
        program
    }

    /// What each attempt came to, of a process that `starter` starts with `rights`; and what it
    /// lacked.
    fn tries(&self, starter: u32, rights: &Rights) -> (BTreeMap<String, String>, Vec<String>) {
        let mut command = again(&self.program(), STARTS);
        command
            .env(WHERE, self.path("own"))
            .env(RIGHTS, serde_json::to_string(rights).unwrap());
        if is_root() && starter != 0 {
            command.uid(starter).gid(starter);
        }
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut found = text
            .lines()
            .filter_map(|line| line.strip_prefix("==")?.split_once("=="))
            .map(|(name, outcome)| (name.to_owned(), outcome.to_owned()))
            .collect::<BTreeMap<_, _>>();
        let errors = String::from_utf8_lossy(&output.stderr);
        let lacking = found.remove("lacking").expect(&errors);
        assert!(found.contains_key("rights"), "{text}{errors}");
        (found, serde_json::from_str(&lacking).unwrap())
    }
}

/// This program, as its test `role`.
fn again(program: &Path, role: &str) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", role, "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .current_dir("/");
    command
}

#[test]
fn what_a_starter_does() {
    let Some(rights) = std::env::var_os(RIGHTS) else {
        return;
    };
    let rights: Rights = serde_json::from_str(rights.to_str().unwrap()).unwrap();
    let program = std::env::current_exe().unwrap();
    let confinement = Confinement::prepare(&rights, &program)
        .unwrap()
        .map(Arc::new);
    let mut command = again(&program, TRIES);
    if let Some(confinement) = confinement.clone() {
        // SAFETY: `enter` is made for this.
        unsafe { command.pre_exec(move || confinement.enter()) };
    }
    command.env_remove(RIGHTS).status().unwrap();
    drop(command);
    let lacking = confinement.map_or_else(Vec::new, |confinement| {
        Arc::into_inner(confinement).unwrap().lacking()
    });
    println!("\n==lacking=={}", serde_json::to_string(&lacking).unwrap());
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Everything but `ALLOWED` is refused.
fn assert_confined(found: &BTreeMap<String, String>, lacking: &[String]) {
    for (name, outcome) in found {
        if name == "rights" {
            assert!(
                outcome.contains("NoNewPrivs:\t1|") && outcome.contains("Seccomp:\t2|"),
                "{outcome}"
            );
            assert!(outcome.contains("CapEff:\t0000000000000000|"), "{outcome}");
            assert!(outcome.contains("Umask:\t0077|"), "{outcome}");
        } else if ALLOWED.contains(&name.as_str()) {
            assert_eq!(outcome, "done", "{name}");
        } else if lacking.is_empty() {
            assert_ne!(outcome, "done", "{name}");
        } else {
            eprintln!("{name}: {outcome}; lacking: {lacking:?}");
        }
    }
}

/// Without rights to restrict it, the same process does all but `exceptions`.
fn assert_free(found: &BTreeMap<String, String>, exceptions: &[&str]) {
    for (name, outcome) in found {
        if name == "rights" {
            assert!(outcome.contains("NoNewPrivs:\t0|"), "{outcome}");
        } else if !exceptions.contains(&name.as_str()) {
            assert_eq!(outcome, "done", "{name}");
        }
    }
}

/// What somebody who is not root cannot do anyway.
const ROOTS: [&str; 9] = [
    "read /etc/shadow",
    "list /root",
    "write to /usr",
    "make a packet socket",
    "become root",
    "mount",
    "leave for a namespace",
    "change the root folder",
    // Another's rights to it depend on the host's settings.
    "trace another process",
];

#[test]
fn root_gives_a_process_a_user_of_its_own_and_nothing_else() {
    if !is_root() {
        eprintln!("not checked: only root can give users");
        return;
    }
    let user = user_of(VmId::random());
    let host = Host::of(user);
    let rights = Rights {
        user: Some(user),
        ..host.rights()
    };
    let (found, lacking) = host.tries(0, &rights);
    assert_confined(&found, &lacking);
    let status = &found["rights"];
    assert!(status.contains("CapBnd:\t0000000000000000|"), "{status}");
    assert!(
        status.contains(&format!("Uid:\t{user}\t{user}\t{user}\t{user}|")),
        "{status}"
    );
    assert!(
        status.contains(&format!("Gid:\t{user}\t{user}\t{user}\t{user}|")),
        "{status}"
    );
    assert!(
        status.contains("Groups:\t |") || status.contains("Groups:\t|"),
        "{status}"
    );

    assert_free(&host.tries(0, &Rights::default()).0, &[]);
}

#[test]
fn root_that_cannot_give_a_user_confines_a_process_all_the_same_and_says_so() {
    if !is_root() {
        return;
    }
    let host = Host::of(0);
    let (found, lacking) = host.tries(0, &host.rights());
    assert_eq!(lacking, ["runs as root, without its capabilities"]);
    // Becoming who it is changes nothing.
    let found = found
        .into_iter()
        .filter(|(name, _)| name != "become root")
        .collect();
    assert_confined(&found, &[]);
}

#[test]
fn a_starter_that_is_not_root_confines_a_process_with_its_own_user() {
    let starter = if is_root() {
        NOBODY
    } else {
        rustix::process::geteuid().as_raw()
    };
    let host = Host::of(starter);
    let (found, lacking) = host.tries(starter, &host.rights());
    assert_confined(&found, &lacking);
    assert_free(&host.tries(starter, &Rights::default()).0, &ROOTS);
}

#[test]
fn io_uring_is_for_those_who_were_given_it() {
    let host = Host::of(rustix::process::geteuid().as_raw());
    let free = host.tries(0, &Rights::default()).0["use io_uring"] == "done";
    let given = Rights {
        io_uring: true,
        ..host.rights()
    };
    let given = host.tries(0, &given).0["use io_uring"] == "done";
    assert_eq!(given, free);
    assert_ne!(host.tries(0, &host.rights()).0["use io_uring"], "done");
}

#[test]
fn a_path_that_is_not_there_gives_nothing() {
    let host = Host::of(rustix::process::geteuid().as_raw());
    let mut rights = host.rights();
    rights.read.push("/nowhere/image.iso".into());
    let (found, _) = host.tries(0, &rights);
    assert_eq!(found["write its own folder"], "done");
}

#[test]
fn one_that_reads_whatever_its_owner_reads_only_where_it_was_allowed_to() {
    if !is_root() {
        return;
    }
    let user = user_of(VmId::random());
    let host = Host::of(user);
    fs::set_permissions(host.path("image.iso"), fs::Permissions::from_mode(0o600)).unwrap();
    std::os::unix::fs::chown(host.path("image.iso"), Some(0), Some(0)).unwrap();
    let mut rights = Rights {
        user: Some(user),
        ..host.rights()
    };
    assert_ne!(host.tries(0, &rights).0["read what it was given"], "done");
    rights.read_any = true;
    let (mut found, lacking) = host.tries(0, &rights);
    let status = found.remove("rights").unwrap();
    assert!(status.contains("CapEff:\t0000000000000004|"), "{status}");
    assert_confined(&found, &lacking);
}

/// Calls that this test makes after it has given up the others.
const FEW: &[libc::c_long] = &[libc::SYS_write, libc::SYS_exit_group, libc::SYS_socket];

#[test]
fn a_call_that_is_not_allowed_ends_the_process_and_a_refused_one_does_not() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let status = |what: fn()| {
        // SAFETY: the child makes system calls only; what it allocates, it allocates after a fork
        // that glibc makes safe for malloc.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                let refused = &[libc::SYS_getppid];
                if allow_only(Allowed {
                    calls: FEW,
                    refused,
                })
                .is_err()
                {
                    libc::_exit(9);
                }
                what();
                libc::syscall(libc::SYS_exit_group, 7);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            status
        }
    };
    let exited = |status| (libc::WIFEXITED(status)).then(|| libc::WEXITSTATUS(status));
    let killed = |status| (libc::WIFSIGNALED(status)).then(|| libc::WTERMSIG(status));
    // SAFETY: these take numbers.
    unsafe {
        assert_eq!(exited(status(|| {})), Some(7));
        assert_eq!(
            exited(status(|| assert_eq!(libc::syscall(libc::SYS_getppid), -1))),
            Some(7)
        );
        assert_eq!(
            exited(status(|| assert!(
                libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) > 0
            ))),
            Some(7)
        );
        assert_eq!(
            killed(status(|| {
                libc::syscall(libc::SYS_getuid);
            })),
            Some(libc::SIGSYS)
        );
        assert_eq!(
            killed(status(|| {
                libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            })),
            Some(libc::SIGSYS)
        );
        assert_eq!(
            killed(status(|| {
                libc::fork();
            })),
            Some(libc::SIGSYS)
        );
    }
    #[cfg(target_arch = "x86_64")]
    {
        // The same call by its number in the x32 interface.
        // SAFETY: takes no arguments.
        let x32 = status(|| unsafe {
            {
                libc::syscall(libc::SYS_write | 0x4000_0000);
            }
        });
        assert_eq!(killed(x32), Some(libc::SIGSYS));
    }
}
