//! Lines of the control socket into a diskd that serves one small disk: for fuzzing.
//!
//! Parsing and handling are those of the process. Two things are kept from the lines: files that they
//! name lie in the folder of the disk, whatever their names say, and nothing shuts the disk down.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};

use model::{BLOCK_SIZE, BootId, Bytes, CheckpointId, DiskId, VmId};
use uuid::Uuid;

use crate::config::{Config, DiskConfig, Front, StackSpec};
use crate::control::{MAX_LINE, Reply, Request};
use crate::engine::{Disk, Engine};
use crate::fronts::Sockets;
use crate::owner::{Owned, run};
use crate::server;
use crate::tracker::Stats;

/// The VM, its disk and its checkpoint: lines may name them.
pub const ID: Uuid = Uuid::from_u128(0x67e5_5044_10b1_426f_9247_bb68_0e5f_e0c8);

struct Scene {
    folder: PathBuf,
    engine: Engine,
}

/// Answers every line of `bytes` as the process does. Lines of one process act on the same disk.
///
/// # Panics
/// When an answer cannot be told and understood again, or a thread of the disk has ended.
pub fn control(bytes: &[u8]) {
    static SCENE: OnceLock<Mutex<Scene>> = OnceLock::new();
    let scene = SCENE.get_or_init(|| Mutex::new(Scene::new()));
    let scene = scene.lock().unwrap_or_else(PoisonError::into_inner);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        if line.len() > MAX_LINE {
            continue;
        }
        let reply = match serde_json::from_slice(line) {
            Ok(Request::Shutdown) => continue,
            Ok(request) => server::run(scene.confined(request), &scene.engine).0,
            Err(error) => server::not_understood(&error),
        };
        let told = serde_json::to_vec(&reply).expect("every answer has a JSON form");
        let heard: Reply = serde_json::from_slice(&told).expect("and is understood");
        assert_eq!(heard, reply);
    }
    let alive = scene.engine.status();
    assert!(alive.is_ok(), "the disk is served: {alive:?}");
}

impl Scene {
    /// A disk with a checkpoint, in a folder of its own that is left to the system to remove.
    fn new() -> Self {
        let name = format!("pollux-fuzz-control-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).expect("a folder");
        let path = |name: &str| folder.join(name);
        let size = Bytes(64 * BLOCK_SIZE);
        let raw = std::fs::File::create(path("raw")).expect("a file");
        raw.set_len(size.0).expect("room");
        let disk = DiskConfig {
            id: DiskId(ID),
            slot: 0,
            front: Front::VhostUser,
            size,
            stack: StackSpec::Overlay {
                file: path("overlay"),
                map: path("map"),
                checkpoint: Some(CheckpointId(ID)),
                below: Box::new(StackSpec::Raw { file: path("raw") }),
            },
            state: path("state"),
            tracking: path("tracking"),
        };
        let config = Config {
            vm: VmId(ID),
            term: 1,
            generation: 1,
            disks: vec![disk.clone()],
            copy_budget: Bytes(1 << 20),
        };
        let file = path("diskd.json");
        let text = serde_json::to_vec(&config).expect("it has a JSON form");
        std::fs::write(&file, text).expect("written");
        let socket = path("socket");
        // Of an earlier process with this number.
        let _ = std::fs::remove_file(&socket);
        let (orders, mailbox) = ring::mailbox(64);
        let owned = Owned {
            config: disk,
            boot: BootId(ID),
            term: 1,
            sockets: Sockets {
                vhost_user: Some(UnixListener::bind(&socket).expect("a socket")),
                nbd: None,
            },
            orders: mailbox,
            stats: Arc::new(Stats::default()),
        };
        let stats = Arc::clone(&owned.stats);
        let (opened, opening) = mpsc::channel();
        std::thread::spawn(move || {
            let outcome = run(owned, || {
                let _ = opened.send(());
            });
            outcome.expect("the disk can be opened");
        });
        opening.recv().expect("the disk is served");
        let disks = vec![Disk {
            id: DiskId(ID),
            size: size.0.into(),
            orders,
            stats,
        }];
        Self {
            engine: Engine::new(file, &config, disks, Vec::new()),
            folder,
        }
    }

    /// The request with its files in the folder of the disk.
    fn confined(&self, mut request: Request) -> Request {
        if let Request::Seed { file, .. }
        | Request::Prepare { file, .. }
        | Request::Cut { file, .. }
        | Request::Confirm { file }
        | Request::FoldBack { file } = &mut request
        {
            let name = file.file_name().unwrap_or("segment".as_ref()).to_owned();
            // Not one of the disk's own.
            let outbox = self.folder.join("outbox");
            let _ = std::fs::create_dir(&outbox);
            *file = outbox.join(Path::new(&name));
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_kinds_are_answered() {
        control(b"");
        control(b"{\"request\":\"status\"}\n{\"request\":\"nothing\"}\n\xff\n");
        let drain = format!(
            "{{\"request\":\"drain\",\"disk\":\"{ID}\",\"checkpoint\":\"{ID}\",\"limit\":\"1MiB\"}}\n"
        );
        for line in [
            format!("{{\"request\":\"track\",\"relationship\":\"{ID}\",\"begin\":true}}\n"),
            format!("{{\"request\":\"hashes\",\"disk\":\"{ID}\",\"from\":0,\"limit\":9}}\n"),
            format!("{{\"request\":\"regions\",\"disk\":\"{ID}\",\"from\":0,\"limit\":9}}\n"),
            "{\"request\":\"reload\"}\n".to_owned(),
            drain.clone(),
            drain,
            "{\"request\":\"fold-back\",\"file\":\"/etc/passwd\"}\n".to_owned(),
            "{\"request\":\"shutdown\"}\n".to_owned(),
            "{\"request\":\"untrack\"}\n".to_owned(),
        ] {
            control(line.as_bytes());
        }
        let mut rng = testkit::Rng::new(1);
        for _ in 0..2000 {
            let len = rng.index(64);
            control(&rng.bytes(len));
        }
    }
}
