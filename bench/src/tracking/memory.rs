//! Memory of diskd with a disk of 1 TiB of which 10 GiB are dirty at random: all that counts as resident,
//! which includes the pages of the state file that it has touched, and what that file takes of tmpfs.
//!
//! The guest discards the blocks: that marks them as a write does, and takes no room.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use diskd::config::Front;
use model::BLOCK_SIZE;

use super::primary::Primary;
use crate::figures::Goal;
use crate::figures::{Rows, number};
use crate::load::{Load, Pace, Pattern};
use crate::scratch::Scratch;
use crate::servers::{Diskd, Server};
use crate::side::{Place, run_folder};

const LOAD: Load = Load {
    pattern: Pattern::Discard,
    depth: 32,
    len: 1 << 40,
};
/// Bytes that are dirty at the end, and what is discarded at once.
const DIRTY: u64 = 10 << 30;
/// How often the memory is looked at while an epoch is staged.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn measure(rows: &mut Rows) -> Result<()> {
    if !rows.want("rss_1tib") {
        return Ok(());
    }
    eprintln!("memory");
    let (folder, run) = (Scratch::new(&Place::disk()?.folder)?, run_folder()?);
    // On tmpfs a hole is discarded soonest.
    let file = run.path().join("disk.raw");
    fs::File::create(&file)?.set_len(LOAD.len)?;
    let diskd = Diskd::new(run.path(), &file, Front::VhostUser)?;
    let mut primary = Primary::new(&diskd, folder.path());
    primary.prepare(&diskd)?;
    let server = diskd.start()?;
    let mut control = server.control()?;
    primary.go_on(&mut control)?;
    let mut client = server.connect(LOAD)?;
    let idle = resident(&server)?;
    client.run(&mut Pace::of(LOAD, DIRTY / BLOCK_SIZE))?;
    let dirty = resident(&server)?;

    let most = AtomicU64::new(dirty);
    let over = AtomicBool::new(false);
    let staged = thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                most.fetch_max(resident(&server).unwrap_or(0), Ordering::Relaxed);
                thread::sleep(LOOK);
            }
        });
        let staged = primary.cut(&mut control);
        over.store(true, Ordering::Relaxed);
        drop(looking);
        staged
    });
    let (staged, segment) = staged?;
    ensure!(
        staged.content.0 > DIRTY * 9 / 10,
        "only {} were staged",
        staged.content
    );
    primary.confirm(&mut control, &segment)?;
    let after = resident(&server)?;
    let tmpfs = fs::metadata(&diskd.disk().state)?.blocks() * 512;

    let mib = |bytes: u64| number(bytes) / number(1 << 20);
    let mut add = |what: &str, goal, bytes| {
        rows.add(format!("rss_1tib_{what}mib"), "MiB", goal, &[mib(bytes)]);
    };
    add("", Goal::AtMost(64.0), dirty);
    add("idle_", Goal::Reported, idle);
    add("staging_", Goal::AtMost(64.0), most.into_inner());
    add("confirmed_", Goal::Reported, after);
    add("tmpfs_", Goal::Reported, tmpfs);
    Ok(())
}

/// Resident bytes of `server`.
fn resident(server: &Server) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", server.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .context("the kernel does not say what is resident")?
        .parse()?;
    Ok(kib << 10)
}
