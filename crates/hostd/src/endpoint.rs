//! Where peers reach this host, and when.
//!
//! ```text
//!   the server is on ───────────────────┐
//!                                       ├─▶ wanted: an address ──▶ listens there
//!   a VM or twin here has a partner ────┘           or none    ──▶ no port is open
//! ```
//!
//! Whose server is off still listens while one of its VMs has a partner: that one must be able to
//! ask whether the VM runs here. What may be asked then is decided by the receiver. An address that
//! cannot be listened on keeps nothing else from working: it is tried again, and told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use model::{Code, Problem};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::host::Host;
use crate::receive;

/// After this long it is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What became of a wish to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listening {
    /// On no port.
    No,
    /// As was wished.
    At {
        /// The wish.
        wanted: SocketAddr,
        /// The address that was bound: with its port, if any would do.
        bound: SocketAddr,
    },
    /// The operating system refuses.
    Refused {
        /// The wish.
        wanted: SocketAddr,
        /// Why.
        problem: Problem,
    },
}

impl Listening {
    /// The wish that this came of.
    fn wanted(&self) -> Option<SocketAddr> {
        match self {
            Self::No => None,
            Self::At { wanted, .. } | Self::Refused { wanted, .. } => Some(*wanted),
        }
    }
}

/// The port of the replica endpoint.
#[derive(Debug)]
pub(crate) struct Endpoint {
    wanted: watch::Sender<Option<SocketAddr>>,
    now: watch::Sender<Listening>,
}

impl Default for Endpoint {
    fn default() -> Self {
        Self {
            wanted: watch::Sender::new(None),
            now: watch::Sender::new(Listening::No),
        }
    }
}

impl Endpoint {
    /// Listen there from now on, or nowhere.
    pub(crate) fn want(&self, address: Option<SocketAddr>) {
        self.wanted.send_if_modified(|wanted| {
            let changed = *wanted != address;
            *wanted = address;
            changed
        });
    }

    /// What became of it so far.
    pub(crate) fn now(&self) -> Listening {
        self.now.borrow().clone()
    }

    /// Waits until the last wish was carried out, or refused.
    pub(crate) async fn settled(&self) -> Listening {
        let mut now = self.now.subscribe();
        let settled = now.wait_for(|now| now.wanted() == *self.wanted.borrow());
        // An error would mean that the sender is gone, and this has it.
        settled.await.map_or(Listening::No, |now| now.clone())
    }

    /// Tells, once for each reason, that the wish cannot be carried out for now.
    fn refused(&self, wanted: SocketAddr, problem: Problem) {
        let refused = Listening::Refused { wanted, problem };
        self.now.send_if_modified(|now| {
            let news = *now != refused;
            if let (true, Listening::Refused { problem, .. }) = (news, &refused) {
                tracing::error!(%problem, "peers cannot connect");
                *now = refused;
            }
            news
        });
    }

    /// Listens as wished, and serves, until `ending`.
    pub(crate) async fn run(&self, host: Arc<Host>, ending: watch::Receiver<bool>) {
        let mut wishes = self.wanted.subscribe();
        loop {
            let mut end = ending.clone();
            let wanted = *wishes.borrow_and_update();
            let Some(wanted) = wanted else {
                self.now.send_replace(Listening::No);
                tokio::select! {
                    _ = wishes.changed() => continue,
                    _ = end.wait_for(|end| *end) => return,
                }
            };
            let bound = bind(wanted).await;
            match bound.and_then(|bound| Ok((bound, receive::config(&host)?))) {
                Ok(((listener, bound), config)) => {
                    tracing::info!(replica = %bound, "peers can connect");
                    self.now.send_replace(Listening::At { wanted, bound });
                    host.identity.reached_at(host.address());
                    let over = async {
                        tokio::select! {
                            _ = wishes.changed() => {}
                            _ = end.wait_for(|end| *end) => {}
                        }
                    };
                    receive::serve(Arc::clone(&host), listener, config, over).await;
                    if *ending.borrow() {
                        return;
                    }
                    if *self.wanted.borrow() != Some(wanted) {
                        continue;
                    }
                }
                Err(problem) => self.refused(wanted, problem),
            }
            // Refused, or ended by itself: not at once again.
            tokio::select! {
                _ = wishes.changed() => {}
                () = tokio::time::sleep(AGAIN) => {}
                _ = end.wait_for(|end| *end) => return,
            }
        }
    }
}

/// Listens at `address`.
///
/// # Errors
/// What the operating system says, and the way out.
pub(crate) async fn bind(address: SocketAddr) -> Result<(TcpListener, SocketAddr), Problem> {
    let refused = |error: std::io::Error| {
        Problem::new(
            Code::Conflict,
            format!("replica endpoint {address}"),
            format!("cannot be listened on: {error}"),
            "Choose another with `pollux replica server enable --listen ADDRESS:PORT`",
        )
    };
    let listener = TcpListener::bind(address).await.map_err(refused)?;
    let bound = listener.local_addr().map_err(refused)?;
    Ok((listener, bound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_stays_refused_is_told_once_and_again_when_the_reason_changes() {
        let endpoint = Endpoint::default();
        let mut told = endpoint.now.subscribe();
        let wanted: SocketAddr = "192.0.2.1:8443".parse().expect("an address");
        let problem = |reason: &str| Problem::new(Code::Conflict, "endpoint", reason, "");
        for (reason, news) in [("in use", true), ("in use", false), ("not here", true)] {
            endpoint.refused(wanted, problem(reason));
            assert_eq!(
                told.has_changed().expect("it has a sender"),
                news,
                "{reason}"
            );
            told.mark_unchanged();
            let problem = problem(reason);
            assert_eq!(endpoint.now(), Listening::Refused { wanted, problem });
        }
    }
}
