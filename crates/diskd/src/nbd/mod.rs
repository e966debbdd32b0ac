//! Disks over NBD on a Unix socket: for guests without virtio, and for everybody who reads a disk or a
//! checkpoint while the guest runs.
//!
//! ```text
//!   client ==socket==> inbox --> negotiation            which export, which extensions
//!                        |           | Session
//!                        v           v
//!                      request --> transmission --spawn--> reply: block::Op, any order
//!                      (checked)     | window: room for it?   |
//!   client <==sendmsg== outbox <-----+------------------------'  all that are ready at once
//! ```
//!
//! Everything runs as tasks of the disk's owner: nothing is locked, and what a client writes takes the
//! same way as what a guest writes. Content is received into the memory that is written and sent from the
//! memory that was read into; only what comes along with small requests in one receive is copied once.
//!
//! | file | job |
//! |---|---|
//! | `server` | accepts, limits, ends clients |
//! | `connection` | one client's socket, tasks and memory |
//! | `inbox`, `outbox`, `socket` | receiving and sending many in one call; all unsafe code |
//! | `window` | how much of a client may be in memory |
//! | `negotiation` | the handshake, without I/O |
//! | `request`, `transmission`, `reply` | what is asked, how it is started, how it is answered |
//! | `export` | what is served under which name |
//! | `protocol` | numbers and layouts |
//! | `fuzzing` | a client's bytes in, the server's out; for tests |
//!
//! **Protocol** (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>): fixed newstyle
//! with `EXPORT_NAME`, `GO`, `INFO`, `LIST`, `ABORT`, structured replies and `base:allocation`. Not offered:
//! TLS (a Unix socket has owners), extended headers, `CACHE`, `RESIZE`, and `FAST_ZERO`, since what is below
//! can't tell before whether zeroing is fast. A flush over one connection is one of the whole disk, so that
//! clients may use several.
//!
//! **Hostile clients.** Every client has a window of its own and everybody's are bounded, so one that is
//! fast, slow, silent or greedy takes nothing from another. What can be answered is answered with an error;
//! after what can't be understood the client is hung up on. Who chooses no export in time is hung up on, and
//! before that when somebody else wants in.
//!
//! **The end.** [`Handle::shutdown`] answers what runs and leaves unanswered what was not taken, without an
//! error: QEMU (`reconnect-delay`) then sends it to whoever serves the disk next. A client that comes back
//! is let in only when nothing runs any more that it sent before. After `kill -9` that is so anyhow: the next
//! process first waits for the disk's lock.

mod connection;
mod export;
#[doc(hidden)]
pub mod fuzzing;
mod inbox;
mod negotiation;
mod outbox;
mod protocol;
mod reply;
mod request;
mod server;
mod socket;
mod transmission;
mod window;

use std::io;
use std::os::unix::net::UnixListener;
use std::rc::Rc;

use ring::Ring;

pub use export::{DEFAULT, Export};
pub use server::Limits;

use connection::Connection;
use export::Exports;
use server::Server;

/// Exports that are served. Dropped without [`Handle::shutdown`] they go on being served.
pub struct Handle {
    server: Rc<Server>,
}

/// Serves `exports` to whoever connects to `listener`, as tasks of `ring`, on whose owner thread this
/// must be called.
///
/// # Errors
/// When the listener cannot be made non-blocking.
pub fn serve(ring: &Ring, listener: UnixListener, exports: Vec<Export>) -> io::Result<Handle> {
    serve_within(ring, listener, exports, Limits::default())
}

/// [`serve`] with other limits.
///
/// # Errors
/// As [`serve`].
pub fn serve_within(
    ring: &Ring,
    listener: UnixListener,
    exports: Vec<Export>,
    limits: Limits,
) -> io::Result<Handle> {
    // The listener may be shared with a process that is about to die: it may take the connection.
    listener.set_nonblocking(true)?;
    let server = Server::new(ring, Exports::new(exports), limits);
    ring.spawn(Rc::clone(&server).accept_all(listener));
    Ok(Handle { server })
}

impl Handle {
    /// Whether a client uses an export that can be written: the guest.
    #[must_use]
    pub fn connected(&self) -> bool {
        self.server.any(is_guest)
    }

    /// Whether such a client is connected that has not hung up.
    #[must_use]
    pub fn guest_is_there(&self) -> bool {
        self.server
            .any(|client| is_guest(client) && !client.is_hung_up())
    }

    /// Serves other exports from now on. Clients of an export that stays (the same name, rights and disk)
    /// notice nothing; those of one that is gone are hung up on, and nothing that runs is answered: its
    /// content may change as soon as this returns.
    pub fn replace(&self, exports: Vec<Export>) {
        self.server.replace(exports);
    }

    /// Answers every request that runs, closes the connections and stops accepting.
    pub async fn shutdown(self) {
        self.server.close().await;
    }
}

fn is_guest(client: &Connection) -> bool {
    client.is_open() && client.export().is_some_and(|export| !export.read_only)
}
