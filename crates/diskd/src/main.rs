//! `pollux-diskd <config.json>`: serves the disks of one VM. Started by pollux-vmd.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result, bail};
use pollux_diskd::config::{CONTROL_SOCKET, Config, disk_socket};
use pollux_diskd::engine::{Disk, Engine};
use pollux_diskd::signals::Termination;
use pollux_diskd::stack::{Owned, run};
use pollux_diskd::tracker::Stats;
use pollux_diskd::{inherit, server, syscalls};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Orders that may wait for an owner.
const ORDERS: usize = 64;

/// A thread that panics takes everything down, in every build: half a diskd would leave the guest
/// hanging, a dead one is started again.
fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::abort();
    }));
}

fn main() -> Result<()> {
    abort_on_panic();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(
            EnvFilter::builder()
                .with_default_directive(LevelFilter::INFO.into())
                .from_env_lossy(),
        )
        .init();
    // Before there are threads, so that none has more.
    if let Err(error) = syscalls::give_up_others() {
        tracing::warn!(%error, "system calls are not filtered");
    }
    let termination = Termination::take().context("cannot take SIGTERM")?;
    // Before anything else is opened: the inherited numbers must mean what the supervisor meant.
    let mut sockets: HashMap<_, _> = inherit::listeners()?.into_iter().collect();
    let mut args = std::env::args_os().skip(1);
    let (Some(path), None) = (args.next(), args.next()) else {
        bail!("usage: pollux-diskd <config.json>");
    };
    let path = PathBuf::from(path);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Config = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a configuration", path.display()))?;
    let boot = durable::boot_id().context("cannot tell which boot this is")?;
    let control = sockets
        .remove(CONTROL_SOCKET)
        .with_context(|| format!("no socket named `{CONTROL_SOCKET}` was passed"))?;

    let (opened, opening) = mpsc::channel();
    let mut disks = Vec::new();
    for disk in config.disks.clone() {
        let name = disk_socket(disk.slot);
        let listener = sockets
            .remove(&name)
            .with_context(|| format!("no socket named `{name}` was passed"))?;
        let (orders, mailbox) = ring::mailbox(ORDERS);
        let stats = Arc::new(Stats::default());
        disks.push(Disk {
            id: disk.id,
            size: disk.size,
            orders,
            stats: Arc::clone(&stats),
        });
        let owned = Owned {
            config: disk,
            boot,
            term: config.term,
            listener,
            orders: mailbox,
            stats,
        };
        let opened = opened.clone();
        std::thread::Builder::new()
            .name("owner".to_owned())
            .spawn(move || {
                let ready = opened.clone();
                let outcome = run(owned, || {
                    let _ = ready.send(Ok(()));
                });
                if let Err(error) = outcome {
                    let _ = opened.send(Err(error));
                }
            })
            .context("cannot start an owner thread")?;
    }
    drop(opened);
    for _ in 0..disks.len() {
        opening.recv().context("an owner thread ended")??;
    }
    tracing::info!(vm = %config.vm, term = config.term, disks = disks.len(), "serving");
    let engine = Arc::new(Engine::new(&config, disks, Vec::new()));
    server::serve(&control, &engine, termination)
        .context("the control socket failed")?
        .context("not all is durable")
}
