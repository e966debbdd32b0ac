use std::process::Stdio;

use tokio::io::AsyncBufReadExt;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};

use super::*;
use crate::Qemu;

const LIMIT: Duration = Duration::from_secs(20);

struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Guest {
    /// A guest whose processors have nothing to run, with its QMP socket open.
    async fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("scratch folder");
        let socket = folder.path().join("qmp");
        // Bound by us, so that nobody has to wait for the file to appear.
        let listener = std::os::unix::net::UnixListener::bind(&socket).expect("bind");
        let qemu = Qemu::find().await.expect("QEMU is installed");
        let mut command = Command::new(qemu.program);
        command
            .args(["-nodefaults", "-display", "none", "-S", "-accel", "tcg"])
            .args(more)
            .args(["-chardev", "socket,id=qmp,fd=0,server=on,wait=off"])
            .args(["-mon", "chardev=qmp,mode=control"])
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
            .kill_on_drop(true);
        let child = command.spawn().expect("QEMU starts");
        Self { child, folder }
    }

    async fn connect(&self) -> Qmp {
        Qmp::connect(&self.folder.path().join("qmp"), LIMIT)
            .await
            .expect("QMP answers")
    }
}

#[tokio::test]
async fn a_real_qemu_answers_tells_events_and_quits() {
    let id = GenerationId::random();
    let device = format!("vmgenid,guid={id}");
    let mut guest = Guest::start(&["-machine", "pc", "-m", "32", "-device", &device]).await;
    let qmp = guest.connect().await;
    assert_eq!(qmp.query_vm_generation_id().await.expect("it has one"), id);
    let status = qmp.query_status().await.expect("it answers");
    assert_eq!(
        (status.running, status.status.as_str()),
        (false, "prelaunch")
    );

    let mut events = qmp.events();
    qmp.cont().await.expect("it goes on");
    assert_eq!(events.recv().await.expect("an event").name, "RESUME");
    qmp.stop().await.expect("it stops");
    assert_eq!(events.recv().await.expect("an event").name, "STOP");

    qmp.quit().await.expect("it quits");
    qmp.closed().await;
    assert!(guest.child.wait().await.expect("reaped").success());
    let gone = qmp.query_status().await.expect_err("it has gone");
    assert!(matches!(gone, QmpError::Gone), "{gone}");
}

#[tokio::test]
async fn a_refusal_carries_what_qemu_said_and_the_connection_goes_on() {
    let guest = Guest::start(&["-machine", "none"]).await;
    let qmp = guest.connect().await;
    let error = qmp
        .execute("no-such-command", None)
        .await
        .expect_err("refused");
    assert!(matches!(error, QmpError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("no-such-command"), "{error}");
    qmp.query_status().await.expect("it still answers");
}

#[tokio::test]
async fn many_commands_at_once_get_their_own_answers() {
    let guest = Guest::start(&["-machine", "none"]).await;
    let qmp = guest.connect().await;
    let (schema, status, version) = tokio::join!(
        qmp.execute("query-qmp-schema", None),
        qmp.query_status(),
        qmp.execute("query-version", None),
    );
    assert!(schema.expect("schema").is_array());
    status.expect("status");
    assert!(version.expect("version")["qemu"]["major"].is_u64());
}

/// A QEMU that sends `greeting` and then answers every line with `answer`.
async fn odd_qemu(folder: &Path, greeting: Vec<u8>, answer: Vec<u8>) -> PathBuf {
    let path = folder.join("qmp");
    let listener = UnixListener::bind(&path).expect("bind");
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.expect("accept");
        let (read, mut write) = stream.into_split();
        write.write_all(&greeting).await.expect("greeting");
        let mut lines = tokio::io::BufReader::new(read).lines();
        while let Ok(Some(_)) = lines.next_line().await {
            if write.write_all(&answer).await.is_err() {
                return;
            }
        }
    });
    path
}

const GREETING: &[u8] = b"{\"QMP\": {}}\n";

#[tokio::test]
async fn a_line_without_end_drops_the_connection() {
    let folder = tempfile::tempdir().expect("scratch folder");
    let endless = vec![b'x'; MAX_LINE + 70_000];
    let path = odd_qemu(folder.path(), GREETING.to_vec(), endless).await;
    let error = Qmp::connect(&path, LIMIT).await.expect_err("dropped");
    assert!(matches!(error, QmpError::Gone), "{error}");
}

#[tokio::test]
async fn what_is_not_qmp_is_refused() {
    for greeting in [&b"hello\n"[..], b"{}\n", b"[]\n"] {
        let folder = tempfile::tempdir().expect("scratch folder");
        let path = odd_qemu(folder.path(), greeting.to_vec(), Vec::new()).await;
        let error = Qmp::connect(&path, LIMIT).await.expect_err("refused");
        assert!(matches!(error, QmpError::Protocol { .. }), "{error}");
    }
}

#[tokio::test]
async fn events_may_come_before_the_greeting() {
    let folder = tempfile::tempdir().expect("scratch folder");
    let early = [&b"{\"event\": \"RESUME\"}\n"[..], GREETING].concat();
    let answer = b"{\"return\": {}, \"id\": 1}\n".to_vec();
    let path = odd_qemu(folder.path(), early, answer).await;
    Qmp::connect(&path, LIMIT).await.expect("it greets");
}

#[tokio::test]
async fn a_silent_qemu_costs_no_more_than_the_limit() {
    let folder = tempfile::tempdir().expect("scratch folder");
    let path = odd_qemu(folder.path(), GREETING.to_vec(), Vec::new()).await;
    let error = Qmp::connect(&path, Duration::from_millis(50))
        .await
        .expect_err("no answer");
    assert!(matches!(error, QmpError::Late { .. }), "{error}");
}

#[tokio::test]
async fn no_qemu_names_the_socket() {
    let path = Path::new("/nowhere/qmp");
    let mut limit = Duration::from_millis(50);
    let error = loop {
        match Qmp::connect(path, limit).await.expect_err("nobody there") {
            // On a busy host it may be late for its last look.
            QmpError::Late { .. } if limit < LIMIT => limit *= 2,
            error => break error,
        }
    };
    assert!(error.to_string().contains("/nowhere/qmp"), "{error}");
}

#[tokio::test]
async fn a_qemu_that_does_not_listen_yet_is_waited_for() {
    let folder = tempfile::tempdir().expect("scratch folder");
    let path = folder.path().join("qmp");
    let answer = b"{\"return\": {}, \"id\": 1}\n".to_vec();
    let (connected, ()) = tokio::join!(Qmp::connect(&path, LIMIT), async {
        sleep(2 * RETRY).await;
        odd_qemu(folder.path(), GREETING.to_vec(), answer).await;
    });
    connected.expect("it came");
}
