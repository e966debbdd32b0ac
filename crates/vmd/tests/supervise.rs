//! The real `pollux-vmd` with small children.
#![allow(unsafe_code, reason = "a test diskd takes its inherited descriptors")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use model::VmId;
use pollux_vmd::config::{Config, Socket};
use pollux_vmd::control::{Exit, LEASE_GRACE, Lease, MAX_LINE, Program, Reply, Request, Status};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use sandbox::Rights;

const LIMIT: Duration = Duration::from_secs(60);
/// The test below that is a diskd when vmd starts it.
const ACCEPTOR: &str = "a_new_diskd_accepts_who_waited";

struct Vmd {
    child: Child,
    folder: tempfile::TempDir,
    config: Config,
}

impl Vmd {
    /// A vmd whose diskd is `sh -c script`, or this very program.
    fn start(script: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let (program, args) = match script {
            Some(script) => (PathBuf::from("/bin/sh"), vec!["-c".into(), script.into()]),
            None => {
                let args = ["--exact", ACCEPTOR, "--nocapture"].map(String::from);
                (std::env::current_exe().unwrap(), args.to_vec())
            }
        };
        let config = Config {
            vm: VmId::random(),
            control: path("vmd.sock"),
            diskd: Program {
                program,
                args,
                log: path("diskd.log"),
                rights: Rights::default(),
            },
            sockets: ["control", "disk.0"]
                .map(|name| Socket {
                    name: name.into(),
                    path: path(name),
                    user: None,
                })
                .into(),
            lacking: Vec::new(),
        };
        fs::write(path("vmd.json"), serde_json::to_vec(&config).unwrap()).unwrap();
        let child = spawn(&path("vmd.json"));
        let vmd = Self {
            child,
            folder,
            config,
        };
        vmd.ask(&Request::Status);
        vmd
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn connect(&self) -> UnixStream {
        // vmd needs a moment to begin to listen; there is no event for that from outside.
        let stream = eventually("vmd listens", || {
            UnixStream::connect(&self.config.control).ok()
        });
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn ask_raw(&self, bytes: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(bytes).unwrap();
        receive(stream)
    }

    fn ask(&self, request: &Request) -> Reply {
        self.ask_raw(&line(request))
    }

    fn status(&self) -> Status {
        match self.ask(&Request::Status) {
            Reply::Status(status) => status,
            other => panic!("{other:?}"),
        }
    }

    fn program(&self, script: &str) -> Program {
        Program {
            args: vec!["-c".into(), script.into()],
            program: "/bin/sh".into(),
            ..self.config.diskd.clone()
        }
    }

    /// Those of the configuration, and one more.
    fn more_sockets(&self) -> Vec<Socket> {
        let mut sockets = self.config.sockets.clone();
        sockets.push(Socket {
            name: "disk.1".into(),
            path: self.path("disk.1"),
            user: None,
        });
        sockets
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("diskd.log")).unwrap_or_default()
    }

    fn launch(&self, script: &str) -> Reply {
        self.ask(&Request::Launch(Program {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script.into()],
            log: self.path("guest.log"),
            rights: Rights::default(),
        }))
    }

    fn launched(&self, script: &str) -> u32 {
        match self.launch(script) {
            Reply::Status(status) => status.guest.expect("it runs"),
            other => panic!("{other:?}"),
        }
    }
}

impl Drop for Vmd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(config: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_pollux-vmd"))
        .arg("--config")
        .arg(config)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn line(request: &Request) -> Vec<u8> {
    let mut line = serde_json::to_vec(request).unwrap();
    line.push(b'\n');
    line
}

fn receive(stream: UnixStream) -> Reply {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn eventually<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn pid(pid: u32) -> Pid {
    Pid::from_raw(pid.try_into().unwrap()).unwrap()
}

/// Returns once the process has ended.
fn wait_gone(process: u32) {
    let Ok(fd) = pidfd_open(pid(process), PidfdFlags::empty()) else {
        return;
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let limit = rustix::event::Timespec {
        tv_sec: LIMIT.as_secs().try_into().unwrap(),
        tv_nsec: 0,
    };
    assert_eq!(poll(&mut fds, Some(&limit)).unwrap(), 1, "it still runs");
}

#[test]
fn diskd_inherits_its_sockets_by_name() {
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES; test -S /dev/fd/3 && test -S /dev/fd/4 && \
                  test -p /dev/fd/5 && test ! -e /dev/fd/6 && echo right; exec sleep 1000";
    let vmd = Vmd::start(Some(script));
    let log = eventually("diskd speaks", || {
        let log = fs::read_to_string(vmd.path("diskd.log")).ok()?;
        (log.lines().count() == 2).then_some(log)
    });
    assert_eq!(log, "3 control:disk.0:ready\nright\n");
    let mode = fs::metadata(vmd.path("disk.0"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let mode = fs::metadata(&vmd.config.control)
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// Started by vmd, this is a diskd that tells its process id to whoever connects.
fn be_a_diskd() -> ! {
    // SAFETY: vmd passes listening sockets from 3 on, and nothing else here knows them.
    let listener = unsafe { UnixListener::from_raw_fd(3) };
    loop {
        let (mut client, _) = listener.accept().unwrap();
        write!(client, "{}", std::process::id()).unwrap();
    }
}

#[test]
fn a_new_diskd_accepts_who_waited() {
    if std::env::var_os("LISTEN_FDNAMES").is_some() {
        be_a_diskd();
    }
    let vmd = Vmd::start(None);
    let served_by = || {
        let mut client = UnixStream::connect(vmd.path("control")).expect("never refused");
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text.parse::<u32>().unwrap()
    };
    let mut old = served_by();
    for restarts in 1..=3 {
        kill_process(pid(old), Signal::KILL).unwrap();
        wait_gone(old);
        let new = served_by();
        assert_ne!(new, old);
        let status = vmd.status();
        assert_eq!((status.diskd, status.diskd_restarts), (Some(new), restarts));
        old = new;
    }
}

#[test]
fn a_diskd_that_cannot_live_is_tried_again_and_not_in_a_busy_loop() {
    let vmd = Vmd::start(Some("exit 3"));
    eventually("some restarts", || {
        (vmd.status().diskd_restarts > 3).then_some(())
    });
    assert!(vmd.status().diskd_restarts < 50);
}

#[test]
fn both_children_die_with_vmd() {
    let mut vmd = Vmd::start(Some("exec sleep 1000"));
    let guest = vmd.launched("exec sleep 1000");
    let diskd = vmd.status().diskd.unwrap();
    vmd.child.kill().unwrap();
    vmd.child.wait().unwrap();
    wait_gone(guest);
    wait_gone(diskd);
}

#[test]
fn a_second_vmd_is_refused_and_the_first_keeps_its_sockets() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    let second = spawn(&vmd.path("vmd.json")).wait_with_output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("supervisor already"), "{said}");
    vmd.status();
    UnixStream::connect(vmd.path("disk.0")).expect("still held");
}

#[test]
fn sockets_of_a_vmd_that_was_killed_are_replaced() {
    let mut vmd = Vmd::start(Some("exec sleep 1000"));
    vmd.child.kill().unwrap();
    vmd.child.wait().unwrap();
    vmd.child = spawn(&vmd.path("vmd.json"));
    assert_eq!(vmd.status().pid, vmd.child.id());
    UnixStream::connect(vmd.path("disk.0")).expect("held anew");
}

#[test]
fn a_file_in_a_sockets_place_is_not_removed() {
    let mut vmd = Vmd::start(Some("exec sleep 1000"));
    assert_eq!(vmd.ask(&Request::Shutdown), Reply::Done);
    vmd.child.wait().unwrap();
    fs::write(vmd.path("disk.0"), "precious").unwrap();
    let second = spawn(&vmd.path("vmd.json")).wait_with_output().unwrap();
    assert!(!second.status.success());
    assert_eq!(fs::read(vmd.path("disk.0")).unwrap(), b"precious");
}

#[test]
fn one_guest_runs_at_a_time_and_its_end_is_told() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    let guest = vmd.launched("read line < /dev/null; exec sleep 1000");
    let mut waiter = vmd.connect();
    waiter
        .write_all(&line(&Request::WaitGuest { pid: guest }))
        .unwrap();
    assert!(matches!(vmd.launch("true"), Reply::Refused { .. }));
    let Reply::Status(killed) = vmd.ask(&Request::KillGuest) else {
        panic!("no status");
    };
    assert_eq!(
        (killed.guest, killed.last_exit),
        (None, Some(Exit::Signal(9)))
    );
    assert_eq!(receive(waiter), Reply::Status(killed));

    let guest = vmd.launched("exit 7");
    let Reply::Status(ended) = vmd.ask(&Request::WaitGuest { pid: guest }) else {
        panic!("no status");
    };
    assert_eq!((ended.guest, ended.last_exit), (None, Some(Exit::Code(7))));
}

#[test]
fn a_guest_that_cannot_be_started_is_told_with_the_reason() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    let reply = vmd.ask(&Request::Launch(Program {
        program: "/nowhere/qemu".into(),
        args: vec![],
        log: vmd.path("guest.log"),
        rights: Rights::default(),
    }));
    let Reply::Refused { problem } = reply else {
        panic!("{reply:?}");
    };
    assert!(problem.to_string().contains("/nowhere/qemu"), "{problem}");
    assert_eq!(vmd.status().guest, None);
}

#[test]
fn shutdown_kills_the_guest_before_diskd_is_asked_to_end() {
    let script = "trap 'kill -0 $(cat guest.pid) 2>/dev/null && echo guest runs; \
                  echo flushed; exit 0' TERM; cd \"$(dirname $(readlink /proc/$$/fd/1))\"; \
                  echo ready; while :; do sleep 1 & wait; done";
    let mut vmd = Vmd::start(Some(script));
    eventually("diskd is ready", || {
        let log = fs::read_to_string(vmd.path("diskd.log")).ok()?;
        log.contains("ready").then_some(())
    });
    let guest = vmd.launched("exec sleep 1000");
    fs::write(vmd.path("guest.pid"), guest.to_string()).unwrap();
    assert_eq!(vmd.ask(&Request::Shutdown), Reply::Done);
    let log = fs::read_to_string(vmd.path("diskd.log")).unwrap();
    assert_eq!(log, "ready\nflushed\n");
    assert!(!vmd.config.control.exists() && !vmd.path("disk.0").exists());
    // Whoever was answered may start the next one at once.
    let next = spawn(&vmd.path("vmd.json"));
    assert!(vmd.child.wait().unwrap().success());
    vmd.child = next;
    assert_eq!(vmd.status().pid, vmd.child.id());
}

#[test]
fn sigterm_is_a_shutdown() {
    let mut vmd = Vmd::start(Some(
        "trap 'echo flushed; exit 0' TERM; while :; do sleep 1 & wait; done",
    ));
    let guest = vmd.launched("exec sleep 1000");
    kill_process(pid(vmd.child.id()), Signal::TERM).unwrap();
    assert!(vmd.child.wait().unwrap().success());
    wait_gone(guest);
}

#[test]
fn hostile_lines_are_refused_and_others_served_on() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    for bad in [&b"\n"[..], b"\xff\xfe\n", b"[]\n"] {
        assert!(matches!(vmd.ask_raw(bad), Reply::Refused { .. }));
    }
    let long = vec![b' '; MAX_LINE + 1];
    assert!(matches!(vmd.ask_raw(&long), Reply::Refused { .. }));
    let mut idle = vmd.connect();
    idle.write_all(b"{\"request\":").unwrap();
    vmd.status();
}

#[test]
fn requests_sent_at_once_are_answered_in_order() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    let guest = vmd.launched("exec sleep 1000");
    let mut stream = vmd.connect();
    let requests = [Request::Status, Request::KillGuest, Request::Status];
    let lines: Vec<u8> = requests.iter().flat_map(line).collect();
    stream.write_all(&lines).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let replies: Vec<Reply> = BufReader::new(stream)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect();
    let guests: Vec<Option<u32>> = replies
        .iter()
        .map(|reply| match reply {
            Reply::Status(status) => status.guest,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(guests, [Some(guest), None, None]);
}

/// A diskd with `sockets` that says `word`, works alone, and serves until it is told to end.
fn serving(word: &str, sockets: usize) -> String {
    let ready = 3 + sockets;
    format!(
        "cd \"$(dirname $(readlink /proc/$$/fd/1))\"; exec 9>lock; flock -n 9 || echo beside; \
         echo {word}; echo >&{ready}; exec sleep 1000"
    )
}

fn serves(vmd: &Vmd) -> u32 {
    eventually("diskd serves", || {
        let status = vmd.status();
        status.ready.then_some(status.diskd?)
    })
}

#[test]
fn a_diskd_is_replaced_while_the_guest_runs_and_gets_sockets_that_are_new() {
    let vmd = Vmd::start(Some(&serving("old", 2)));
    let guest = vmd.launched("exec sleep 1000");
    let old = serves(&vmd);
    let waiting = UnixStream::connect(vmd.path("disk.0")).expect("held");
    let Reply::Status(status) = vmd.ask(&Request::Replace {
        diskd: vmd.program(&serving("new", 3)),
        sockets: vmd.more_sockets(),
    }) else {
        panic!("refused");
    };
    assert_eq!((status.guest, status.ready), (Some(guest), true));
    assert_eq!(status.diskd_restarts, 0);
    assert_ne!(status.diskd, Some(old));
    wait_gone(old);
    assert_eq!(vmd.log(), "old\nnew\n");
    UnixStream::connect(vmd.path("disk.1")).expect("held");
    // The sockets of both are the same ones: whoever waits is not turned away.
    let mut fds = [PollFd::new(&waiting, PollFlags::IN)];
    let now = rustix::event::Timespec::default();
    assert_eq!(poll(&mut fds, Some(&now)).unwrap(), 0, "still waiting");

    // It is this one that is started again from now on, and a socket can go.
    let new = status.diskd.unwrap();
    kill_process(pid(new), Signal::KILL).unwrap();
    wait_gone(new);
    serves(&vmd);
    assert_eq!(vmd.log(), "old\nnew\nnew\n");
    let fewer = vmd.config.sockets[..1].to_vec();
    let diskd = vmd.program(&serving("third", 1));
    let reply = vmd.ask(&Request::Replace {
        diskd,
        sockets: fewer,
    });
    assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
    assert!(!vmd.path("disk.0").exists() && !vmd.path("disk.1").exists());
}

#[test]
fn a_new_diskd_that_dies_before_it_serves_leaves_the_old_one_in_place() {
    let vmd = Vmd::start(Some(&serving("old", 2)));
    let guest = vmd.launched("exec sleep 1000");
    let old = serves(&vmd);
    let reply = vmd.ask(&Request::Replace {
        diskd: vmd.program("echo no such disk; exit 3"),
        sockets: vmd.more_sockets(),
    });
    let Reply::Refused { problem } = reply else {
        panic!("{reply:?}");
    };
    let text = problem.to_string();
    assert!(
        text.contains("code 3") && text.contains("no such disk"),
        "{text}"
    );
    assert_ne!(serves(&vmd), old);
    assert_eq!(vmd.log(), "old\nno such disk\nold\n");
    assert_eq!(vmd.status().guest, Some(guest));
    assert!(vmd.path("disk.0").exists() && !vmd.path("disk.1").exists());

    let mut nowhere = vmd.more_sockets();
    nowhere[2].path = vmd.path("nowhere/disk.1");
    let serving = serves(&vmd);
    let reply = vmd.ask(&Request::Replace {
        diskd: vmd.program("exit 0"),
        sockets: nowhere,
    });
    assert!(matches!(reply, Reply::Refused { .. }), "{reply:?}");
    assert_eq!(vmd.status().diskd, Some(serving), "nothing was ended");
}

#[test]
fn a_diskd_that_stands_still_with_its_lock_is_gone_before_another_is_started() {
    let vmd = Vmd::start(Some(&serving("old", 2)));
    let old = serves(&vmd);
    kill_process(pid(old), Signal::STOP).unwrap();
    eventually("it stands still", || {
        let stat = fs::read_to_string(format!("/proc/{old}/stat")).unwrap();
        stat.contains(") T ").then_some(())
    });
    let mut asker = vmd.connect();
    let request = Request::Replace {
        diskd: vmd.program(&serving("new", 2)),
        sockets: vmd.config.sockets.clone(),
    };
    asker.write_all(&line(&request)).unwrap();
    let again = vmd.ask(&request);
    assert!(
        matches!(again, Reply::Refused { .. }),
        "one at a time: {again:?}"
    );
    for _ in 0..10 {
        assert_eq!(vmd.status().diskd, Some(old));
    }
    assert_eq!(vmd.log(), "old\n");
    kill_process(pid(old), Signal::CONT).unwrap();
    let reply = receive(asker);
    assert!(
        matches!(&reply, Reply::Status(status) if status.ready),
        "{reply:?}"
    );
    // And without anybody's asking: one that died is reaped before its successor is started.
    let new = serves(&vmd);
    kill_process(pid(new), Signal::STOP).unwrap();
    kill_process(pid(new), Signal::KILL).unwrap();
    wait_gone(new);
    assert_ne!(serves(&vmd), new);
    assert_eq!(vmd.log(), "old\nnew\nnew\n", "none ran beside another");
}

#[test]
fn a_shutdown_ends_a_replacement_too() {
    let mut vmd = Vmd::start(Some(&serving("old", 2)));
    serves(&vmd);
    let mut asker = vmd.connect();
    let request = Request::Replace {
        diskd: vmd.program("trap 'exit 0' TERM; echo new; while :; do sleep 1 & wait; done"),
        sockets: vmd.more_sockets(),
    };
    asker.write_all(&line(&request)).unwrap();
    eventually("the new one runs", || {
        vmd.log().contains("new").then_some(())
    });
    assert_eq!(vmd.ask(&Request::Shutdown), Reply::Done);
    assert!(matches!(receive(asker), Reply::Refused { .. }));
    assert!(vmd.child.wait().unwrap().success());
    assert!(!vmd.path("disk.0").exists() && !vmd.path("disk.1").exists());
}

#[test]
fn confined_children_die_with_vmd_too() {
    let mut vmd = Vmd::start(Some("exec sleep 1000"));
    // Changing the user takes the signal away that a parent's death sends.
    let root = rustix::process::geteuid().is_root();
    let user = root.then_some(2_010_000_123);
    let reply = vmd.ask(&Request::Launch(Program {
        program: "/bin/sleep".into(),
        args: vec!["1000".into()],
        log: vmd.path("guest.log"),
        rights: Rights {
            user,
            read: vec![vmd.folder.path().to_owned()],
            ..Rights::default()
        },
    }));
    let Reply::Status(status) = reply else {
        panic!("{reply:?}");
    };
    let guest = status.guest.unwrap();
    let rights = fs::read_to_string(format!("/proc/{guest}/status")).unwrap();
    assert!(rights.contains("NoNewPrivs:\t1\n"), "{rights}");
    if let Some(user) = user {
        assert!(
            rights.contains(&format!("Uid:\t{user}\t{user}")),
            "{rights}"
        );
    }
    vmd.child.kill().unwrap();
    vmd.child.wait().unwrap();
    wait_gone(guest);
}

#[test]
fn a_socket_belongs_to_the_user_it_is_for() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let vmd = Vmd::start(Some(&serving("old", 2)));
    serves(&vmd);
    let mut sockets = vmd.more_sockets();
    sockets[2].user = Some(2_010_000_123);
    let diskd = vmd.program(&serving("new", 3));
    let reply = vmd.ask(&Request::Replace { diskd, sockets });
    assert!(matches!(reply, Reply::Status(_)), "{reply:?}");
    let owner =
        |name: &str| std::os::unix::fs::MetadataExt::uid(&fs::metadata(vmd.path(name)).unwrap());
    assert_eq!((owner("disk.0"), owner("disk.1")), (0, 2_010_000_123));
}

#[test]
fn a_vmd_without_descriptors_to_spare_waits_for_some_and_does_not_spin() {
    let mut vmd = Vmd::start(Some("exec sleep 1000"));
    let held = fs::read_dir(format!("/proc/{}/fd", vmd.child.id()))
        .unwrap()
        .count();
    let few = rustix::process::Rlimit {
        current: Some(u64::try_from(held).unwrap() + 2),
        maximum: rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum,
    };
    let vmd_pid = Pid::from_child(&vmd.child);
    let begun = Instant::now();
    rustix::process::prlimit(Some(vmd_pid), rustix::process::Resource::Nofile, few).unwrap();
    let mut clients: Vec<UnixStream> = (0..8).map(|_| vmd.connect()).collect();
    let said = vmd.child.stderr.take().unwrap();
    let counted = std::thread::spawn(move || {
        BufReader::new(said)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.contains("cannot accept"))
            .count()
    });
    // The first is served all the while; the last is not until there is room.
    for _ in 0..200 {
        clients[0].write_all(&line(&Request::Status)).unwrap();
        let mut reply = String::new();
        BufReader::new(&clients[0]).read_line(&mut reply).unwrap();
    }
    let last = clients.pop().unwrap();
    clients.clear();
    let mut asked = last.try_clone().unwrap();
    asked.write_all(&line(&Request::Status)).unwrap();
    assert!(matches!(receive(last), Reply::Status(_)));
    vmd.child.kill().unwrap();
    let warnings = counted.join().unwrap();
    // vmd tries again every 100 ms.
    let most = usize::try_from(begun.elapsed().as_millis() / 100).unwrap() + 2;
    assert!((1..=most).contains(&warnings), "{warnings} times");
}

/// The state letter of a process (proc(5), `stat`).
fn state_of(process: u32) -> char {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let after = stat.rsplit(") ").next().unwrap();
    after.chars().next().unwrap()
}

fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap(),
        now.tv_nsec.try_into().unwrap(),
    )
}

#[test]
fn a_guest_whose_lease_is_over_is_stopped_within_a_second_and_goes_on_with_the_next_one() {
    let vmd = Vmd::start(Some("exec sleep 1000"));
    let lease = |lease| match vmd.ask(&Request::Lease { lease }) {
        Reply::Status(status) => status,
        other => panic!("{other:?}"),
    };
    let until = |after: u64| Lease::Until {
        at: boot_time() + Duration::from_millis(after),
    };
    let give = |after: u64| {
        let at = boot_time() + Duration::from_millis(after);
        lease(Lease::Until { at });
        at
    };
    let stopped_after = |guest: u32, end: Duration| {
        eventually("it is stopped", || (state_of(guest) == 'T').then_some(()));
        let late = boot_time().saturating_sub(end);
        assert!(late >= LEASE_GRACE, "nobody else had the time to hold it");
        late
    };
    let end = give(300);
    let guest = vmd.launched("exec sleep 1000");
    let frozen = vmd.status().frozen;
    assert!(
        !frozen || boot_time() >= end + LEASE_GRACE,
        "it has a lease"
    );
    // A busy host may see it late, but not time after time.
    let mut late = stopped_after(guest, end);
    for _ in 0..4 {
        if late >= Duration::from_secs(1) {
            let end = give(300);
            eventually("it goes on", || (state_of(guest) != 'T').then_some(()));
            late = stopped_after(guest, end);
        }
    }
    assert!(late < Duration::from_secs(1), "{late:?}");
    assert!(vmd.status().frozen);

    // What ended already is no lease; polluxd does not hold what vmd had to stop.
    for ended in [until(0), Lease::Held] {
        let at_once = match ended {
            Lease::Until { at } => Lease::Until {
                at: at.saturating_sub(LEASE_GRACE),
            },
            other => other,
        };
        assert!(lease(at_once).frozen, "{ended:?}");
        assert_eq!(state_of(guest), 'T');
    }
    assert!(!lease(until(60_000)).frozen);
    eventually("it goes on", || (state_of(guest) != 'T').then_some(()));

    // Held by polluxd, or without a lease, nothing is over.
    for never in [Lease::Held, Lease::None] {
        let status = eventually("it has a lease until then", || {
            lease(until(0));
            Some(lease(never)).filter(|status| !status.frozen)
        });
        assert_eq!(status.lease, never);
        std::thread::sleep(LEASE_GRACE + Duration::from_millis(200));
        assert_ne!(state_of(guest), 'T', "{never:?}");
    }

    // One that is stopped ends like any other.
    let past = Lease::Until {
        at: Duration::from_nanos(1),
    };
    assert!(lease(past).frozen);
    assert!(matches!(vmd.ask(&Request::KillGuest), Reply::Status(_)));
    wait_gone(guest);
    let next = vmd.launched("exec sleep 1000");
    assert!(vmd.status().frozen, "its lease was over before it began");
    eventually("it is stopped", || (state_of(next) == 'T').then_some(()));
}
