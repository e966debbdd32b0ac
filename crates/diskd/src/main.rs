//! `pollux-diskd <config.json>`: serves the disks of one VM. Started by pollux-vmd.
//! `pollux-diskd --version`: whether it can be run at all, before it takes another's place.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};

use anyhow::{Context, Result, bail};
use pollux_diskd::config::{CONTROL_SOCKET, Config, Front, READY, disk_socket, nbd_socket};
use pollux_diskd::engine::{Disk, Engine};
use pollux_diskd::fronts::Sockets;
use pollux_diskd::owner::{Owned, run};
use pollux_diskd::signals::Termination;
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
    if std::env::args_os()
        .nth(1)
        .is_some_and(|arg| arg == "--version")
    {
        println!("pollux-diskd {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
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
    let mut lacking = Vec::new();
    if let Err(error) = syscalls::give_up_others() {
        tracing::warn!(%error, "system calls are not filtered");
        lacking.push(format!("system calls are not filtered: {error}"));
    }
    let termination = Termination::take().context("cannot take SIGTERM")?;
    // Before anything else is opened: the inherited numbers must mean what the supervisor meant.
    let mut inherited: HashMap<_, _> = inherit::descriptors()?.into_iter().collect();
    let ready = inherited.remove(READY);
    let mut socket = |name: &str| inherited.remove(name).map(UnixListener::from);
    let mut args = std::env::args_os().skip(1);
    let (Some(path), None) = (args.next(), args.next()) else {
        bail!("usage: pollux-diskd <config.json>");
    };
    let path = PathBuf::from(path);
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let config: Config = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not a configuration", path.display()))?;
    let boot = durable::boot_id().context("cannot tell which boot this is")?;
    let missing = |name: &str| format!("no socket named `{name}` was passed");
    let control = socket(CONTROL_SOCKET).with_context(|| missing(CONTROL_SOCKET))?;

    let (opened, opening) = mpsc::channel();
    let mut disks = Vec::new();
    for disk in config.disks.clone() {
        let (virtio, nbd) = (disk_socket(disk.slot), nbd_socket(disk.slot));
        let sockets = match disk.front {
            Front::VhostUser => Sockets {
                vhost_user: Some(socket(&virtio).with_context(|| missing(&virtio))?),
                nbd: socket(&nbd),
            },
            Front::Nbd => Sockets {
                vhost_user: None,
                nbd: Some(socket(&nbd).with_context(|| missing(&nbd))?),
            },
        };
        let (orders, mailbox) = ring::mailbox(ORDERS);
        let stats = Arc::new(Stats::default());
        disks.push(Disk {
            id: disk.id,
            size: disk.size.0.into(),
            orders,
            stats: Arc::clone(&stats),
        });
        let owned = Owned {
            config: disk,
            boot,
            term: config.term,
            sockets,
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
    let engine = Arc::new(Engine::new(path, &config, disks, lacking));
    if let Some(ready) = ready {
        // Whoever started this process waits for it; if nobody does any more, that is no reason to end.
        let told = File::from(ready).write_all(b"1");
        if let Err(error) = told {
            tracing::warn!(%error, "cannot say that the disks are served");
        }
    }
    server::serve(&control, &engine, termination)
        .context("the control socket failed")?
        .context("not all is durable")
}
