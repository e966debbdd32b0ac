//! What a guest does that runs while its VM-Generation ID changes: Linux draws new random numbers, and says
//! so. No operation of Pollux changes it under a guest that runs. So a guest is saved here with its memory, as
//! QEMU's migration writes it, and goes on in the machine that [`Machine`] makes, under another ID.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use model::{Bytes, DirectBoot, Generation, GenerationId, VmSpec};
use pollux_qemu::{Accelerator, Machine, Qemu, Qmp, RunPaths};
use serde_json::json;
use testkit::guest::GuestImages;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// For a guest that boots without an accelerator, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(900);
/// What waits for a line.
const PROMPT: &str = "/ # ";
/// What Linux says (`add_vmfork_randomness` in its drivers/char/random.c).
const RESEEDED: &str = "crng reseeded due to virtual machine fork";

/// A guest of Linux on generation 2, which boots its kernel directly, without disks.
struct Scratch {
    folder: tempfile::TempDir,
    run: RunPaths,
    spec: VmSpec,
}

/// Its QEMU.
struct Guest {
    qemu: Child,
    qmp: Qmp,
}

impl Scratch {
    fn new() -> Self {
        let images = GuestImages::build_or_get_generic().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let run = RunPaths::new(folder.path(), folder.path());
        let direct = DirectBoot {
            kernel: images.kernel,
            initrd: Some(images.initrd),
            cmdline: "console=ttyS0 no_timer_check loglevel=3 panic=5".to_owned(),
        };
        let (name, memory) = ("a guest".parse().unwrap(), Bytes(256 << 20));
        let spec = VmSpec::new(
            name,
            Generation::Two,
            1,
            memory,
            false,
            Some(direct),
            vec![],
        );
        Self {
            folder,
            run,
            spec: spec.unwrap(),
        }
    }

    /// Where the memory of the guest is saved.
    fn saved(&self) -> PathBuf {
        self.folder.path().join("saved")
    }

    /// A QEMU for it; `arguments` beside those that Pollux gives.
    async fn start(&self, id: GenerationId, arguments: &[&str]) -> Guest {
        let accelerator = Accelerator::Tcg {
            reason: "the test says so".to_owned(),
        };
        let spec = VmSpec {
            generation_id: id,
            ..self.spec.clone()
        };
        let machine = Machine {
            spec: &spec,
            accelerator: &accelerator,
            run: &self.run,
            firmware: None,
        };
        let mut qemu = Command::new(Qemu::find().await.unwrap().program)
            .args(machine.arguments().unwrap())
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let qmp = tokio::select! {
            qmp = Qmp::connect(&self.run.qmp, LIMIT) => qmp.unwrap(),
            ended = qemu.wait() => panic!("QEMU ended: {}", ended.unwrap()),
        };
        assert_eq!(qmp.query_vm_generation_id().await.unwrap(), id);
        Guest { qemu, qmp }
    }

    /// What the guest said.
    fn log(&self) -> String {
        let log = std::fs::read(&self.run.serial_log).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Waits until it has said `what` since the first `after` bytes.
    async fn says(&self, after: usize, what: &str) {
        let said = async {
            while !self.log()[after..].contains(what) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let said = timeout(LIMIT, said).await;
        assert!(said.is_ok(), "it never said {what}: {}", self.log());
    }

    /// Types a line into its shell, and waits until that waits for the next.
    async fn type_in(&self, line: &str) {
        let before = self.log().len();
        let mut console = UnixStream::connect(&self.run.console).await.unwrap();
        let whole = format!("{line}; echo d''one\n");
        console.write_all(whole.as_bytes()).await.unwrap();
        self.says(before, "done").await;
    }

    /// Lets the saved guest go on under this ID until it answers, and said what is `expected`; what it said
    /// since.
    async fn goes_on(&self, id: GenerationId, expected: Option<&str>) -> String {
        let before = self.log().len();
        let from = format!("file:{}", self.saved().display());
        let guest = self.start(id, &["-incoming", &from]).await;
        let mut events = guest.qmp.events();
        // It runs as soon as all is read, as it did when it was saved.
        while !guest.qmp.query_status().await.unwrap().running {
            timeout(LIMIT, events.recv()).await.unwrap().unwrap();
        }
        self.type_in("true").await;
        if let Some(expected) = expected {
            // The kernel may be slower than the shell.
            self.says(before, expected).await;
        }
        guest.end().await;
        self.log()[before..].to_owned()
    }
}

impl Guest {
    /// Writes memory and devices of the guest to a file; it runs no more then.
    async fn save(&self, to: &Path) {
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        let mut happens = self.qmp.events();
        let qmp = &self.qmp;
        qmp.execute("migrate-set-capabilities", Some(events))
            .await
            .unwrap();
        let uri = format!("file:{}", to.display());
        qmp.execute("migrate", Some(json!({"uri": uri})))
            .await
            .unwrap();
        loop {
            let event = timeout(LIMIT, happens.recv()).await.unwrap().unwrap();
            let status = event.data["status"].as_str().unwrap_or_default();
            assert_ne!(status, "failed", "it cannot be saved");
            if event.name == "MIGRATION" && status == "completed" {
                return;
            }
        }
    }

    async fn end(mut self) {
        self.qmp.quit().await.unwrap();
        assert!(self.qemu.wait().await.unwrap().success());
    }
}

#[tokio::test]
async fn a_guest_that_goes_on_under_another_generation_id_draws_new_random_numbers() {
    let scratch = Scratch::new();
    let first = scratch.spec.generation_id;
    let guest = scratch.start(first, &[]).await;
    scratch.says(0, PROMPT).await;
    // From now on the kernel's own messages are seen, too.
    scratch.type_in("dmesg -n 8").await;
    guest.save(&scratch.saved()).await;
    guest.end().await;

    let said = scratch.goes_on(first, None).await;
    assert!(!said.contains(RESEEDED), "it is the same: {said}");
    // Whoever goes on from the same moment once more, as often as it is.
    for _ in 0..2 {
        scratch
            .goes_on(GenerationId::random(), Some(RESEEDED))
            .await;
    }
}
