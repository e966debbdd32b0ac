//! From the command line to a running daemon, and its graceful end.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use durable::{Lock, LockError};
use model::{Code, Problem};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::host::Host;
use crate::http;
use crate::layout::{Layout, check_socket_path};
use crate::vm::access;

/// What polluxd is told when it starts.
#[derive(Debug, Clone)]
pub struct Options {
    /// Folder that survives a reboot.
    pub state: PathBuf,
    /// Folder of sockets, lost by a reboot.
    pub run: PathBuf,
    /// Name of the host; other hosts know it by that.
    pub name: String,
    /// Where other hosts reach it.
    pub replica_listen: SocketAddr,
    /// Where `pollux` reaches it.
    pub socket: PathBuf,
}

/// Runs polluxd until it is told to end (SIGTERM, SIGINT). VMs run on.
///
/// # Errors
/// A problem that keeps it from starting; nothing was changed but for folders made.
pub async fn serve(options: Options) -> Result<(), Problem> {
    replica::identity::check_host_name(&options.name).map_err(|error| {
        let way_out = "Name this host with --name";
        Problem::new(Code::Invalid, "host name", error.to_string(), way_out)
    })?;
    let layout = Layout::new(options.state, options.run)?;
    check_socket_path(&options.socket)?;
    for folder in [&layout.state, &layout.run] {
        durable::create_folder(folder).map_err(|error| cannot_make(folder, &error))?;
        access::let_pass(folder).map_err(|error| cannot_make(folder, &error))?;
    }
    let _only = lock(&layout.state)?;
    let host = Host::open(layout, &options.name, options.replica_listen).await?;
    let listener = listen(&options.socket)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        name = host.name(),
        state = %host.layout.state.display(),
        run = %host.layout.run.display(),
        socket = %options.socket.display(),
        "polluxd is up"
    );
    let (end, ending) = watch::channel(false);
    let signals = ended().map_err(|error| Problem::failed("signals", &error))?;
    let (listening, over) = (Arc::clone(&host), ending.clone());
    let peers = tokio::spawn(async move {
        let served = Arc::clone(&listening);
        listening.endpoint.run(served, over).await;
    });
    let mut signals = pin!(signals);
    // Whoever is told that the host is up may be asked by its peers.
    let is_ended = tokio::select! {
        _ = host.endpoint.settled() => false,
        () = &mut signals => true,
    };
    let api = axum::serve(listener, http::router(Arc::clone(&host)))
        .with_graceful_shutdown(until(ending));
    let api = tokio::spawn(async move { api.await });
    if !is_ended {
        signals.await;
    }
    tracing::info!("polluxd ends; its VMs run on");
    // Fails only when nobody listens any more.
    let _ = end.send(true);
    let _ = fs::remove_file(&options.socket);
    // A console may stay open for ever, and a request of it is never over: it is given up.
    let grace = std::time::Duration::from_secs(5);
    let _ = tokio::time::timeout(grace, async { tokio::join!(api, peers) }).await;
    tokio::task::block_in_place(|| host.keep_measures());
    Ok(())
}

/// One polluxd per state folder.
fn lock(state: &Path) -> Result<Lock, Problem> {
    Lock::exclusive(&state.join("lock")).map_err(|error| match error {
        LockError::Held { pid, .. } => {
            let by = pid.map_or_else(
                || "another process".to_owned(),
                |pid| format!("process {pid}"),
            );
            Problem::new(
                Code::Conflict,
                format!("state folder {}", state.display()),
                format!("is in use by another polluxd ({by})"),
                "Stop that one, or name another folder with --state",
            )
        }
        error => Problem::failed(format!("state folder {}", state.display()), &error),
    })
}

fn cannot_make(folder: &Path, error: &io::Error) -> Problem {
    let thing = format!("folder {}", folder.display());
    match error.kind() {
        io::ErrorKind::PermissionDenied => Problem::new(
            Code::Forbidden,
            thing,
            format!("cannot be made: {error}"),
            "Run polluxd as root, or name folders of your own with --state and --run",
        ),
        _ => Problem::failed(thing, error),
    }
}

/// Listens on the API's socket, mode 0600. The lock on the state folder is held, so a socket
/// that is there was left by a polluxd that was killed, or belongs to another state folder.
fn listen(socket: &Path) -> Result<UnixListener, Problem> {
    let thing = format!("socket {}", socket.display());
    if std::os::unix::net::UnixStream::connect(socket).is_ok() {
        return Err(Problem::new(
            Code::Conflict,
            thing,
            "is in use by another polluxd",
            "Name another folder with --run, or another socket with --socket",
        ));
    }
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Problem::failed(thing, &error));
        }
        _ => {}
    }
    // The mode that the socket is born with: nobody else can connect before it is narrowed.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(socket);
    rustix::process::umask(old);
    let listener = bound.map_err(|error| Problem::failed(&thing, &error))?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))
        .map_err(|error| Problem::failed(&thing, &error))?;
    Ok(listener)
}

/// Completes when the process is told to end.
fn ended() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn until(mut ending: watch::Receiver<bool>) {
    // An error means that the sender is gone: the end as well.
    let _ = ending.wait_for(|end| *end).await;
}
