//! Takes clients in, and ends them.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use block::Waiters;
use futures_util::future::{Either, select};
use ring::Ring;

use super::connection::{Connection, Ended};
use super::export::{Export, Exports};
use super::inbox::Inbox;
use super::negotiation::{MAX_OPTION, Negotiation, Next, Session, greeting};
use super::outbox::Segment;
use super::protocol::{Fields, Head, OPTION, OPTION_HEADER};
use super::transmission;

/// What clients may take, and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most clients at once.
    pub clients: usize,
    /// Most clients of read-only exports at once: they leave room for the guest.
    pub readers: usize,
    /// How long a client may take to choose an export.
    pub patience: Duration,
    /// How long a client may take to receive its last replies.
    pub linger: Duration,
    /// How long to wait after a client could not be taken in.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            clients: 16,
            readers: 12,
            patience: Duration::from_secs(10),
            linger: Duration::from_secs(2),
            pause: Duration::from_millis(100),
        }
    }
}

/// Everybody who is connected.
pub(super) struct Server {
    ring: Ring,
    exports: Exports,
    limits: Limits,
    /// The oldest first.
    clients: RefCell<Vec<Rc<Connection>>>,
    closing: Cell<bool>,
    accepting: Cell<bool>,
    changed: Waiters,
}

impl Server {
    pub(super) fn new(ring: &Ring, exports: Exports, limits: Limits) -> Rc<Self> {
        Rc::new(Self {
            ring: ring.clone(),
            exports,
            limits,
            clients: RefCell::default(),
            closing: Cell::new(false),
            accepting: Cell::new(true),
            changed: Waiters::default(),
        })
    }

    /// Whether there is a client that `wanted` of.
    pub(super) fn any(&self, wanted: impl Fn(&Connection) -> bool) -> bool {
        self.clients.borrow().iter().any(|client| wanted(client))
    }

    /// Serves others from now on. Clients of what is no longer there are hung up on, without an answer to
    /// what runs: from now on its content may be another one.
    pub(super) fn replace(&self, exports: Vec<Export>) {
        self.exports.replace(exports);
        let list = self.exports.list();
        for client in self.clients.borrow().iter() {
            let chosen = client.export();
            if chosen.is_some_and(|chosen| !list.iter().any(|export| export.is(&chosen))) {
                client.sever();
            }
        }
    }

    /// Takes nobody in any more, and answers what runs; returns when everybody is gone.
    pub(super) async fn close(&self) {
        self.closing.set(true);
        self.clients
            .borrow()
            .iter()
            .for_each(|client| client.close());
        self.changed.notify();
        let stopped = || (!self.accepting.get()).then_some(());
        self.changed.until(stopped).await;
        self.gone().await;
    }

    /// Waits until nobody is here.
    pub(super) async fn gone(&self) {
        let gone = || self.clients.borrow().is_empty().then_some(());
        self.changed.until(gone).await;
    }

    /// Takes clients in until the server is closed.
    pub(super) async fn accept_all(self: Rc<Self>, listener: UnixListener) {
        let mut failing = false;
        while !self.closing.get() {
            let next = self.accept(&listener).await;
            match next {
                Ok(Some(socket)) => {
                    failing = false;
                    self.take_in(socket);
                }
                Ok(None) => {}
                Err(error) => {
                    // Too many open files, no memory: it passes, and those who are here go on.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(%error, "cannot take an NBD client in; trying on");
                    }
                    let closing = pin!(self.changed.until(|| self.closing.get().then_some(())));
                    select(closing, pin!(self.ring.sleep(self.limits.pause))).await;
                }
            }
        }
        self.accepting.set(false);
        self.changed.notify();
    }

    async fn accept(&self, listener: &UnixListener) -> io::Result<Option<UnixStream>> {
        {
            let closing = pin!(self.changed.until(|| self.closing.get().then_some(())));
            let readable = pin!(self.ring.readable(listener.as_fd()));
            match select(closing, readable).await {
                Either::Left(_) => return Ok(None),
                Either::Right((outcome, _)) => outcome?,
            }
        }
        self.make_room().await;
        if self.closing.get() {
            return Ok(None);
        }
        match listener.accept() {
            Ok((socket, _)) => Ok(Some(socket)),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Waits until one more may come in. Who has not chosen an export yet makes room for who comes
    /// later, so that silent clients keep nobody out.
    async fn make_room(&self) {
        let full = || self.clients.borrow().len() >= self.limits.clients;
        if full() {
            let clients = self.clients.borrow();
            if let Some(silent) = clients.iter().find(|client| client.export().is_none()) {
                silent.sever();
            }
        }
        let room = || (!full() || self.closing.get()).then_some(());
        self.changed.until(room).await;
    }

    /// Serves the client at the other end of `socket`.
    pub(super) fn take_in(self: &Rc<Self>, socket: UnixStream) {
        let client = Connection::new(&self.ring, socket);
        self.clients.borrow_mut().push(Rc::clone(&client));
        self.ring.spawn(Rc::clone(&client).send_all());
        let server = Rc::clone(self);
        self.ring.spawn(async move {
            // However it ended, the socket says so.
            let _ = server.talk(&client).await;
            client.finish(server.limits.linger).await;
            let mut clients = server.clients.borrow_mut();
            clients.retain(|other| !Rc::ptr_eq(other, &client));
            drop(clients);
            server.changed.notify();
        });
    }

    /// From the greeting to the end.
    async fn talk(&self, client: &Rc<Connection>) -> Result<(), Ended> {
        let mut inbox = Inbox::new();
        let (session, answer) = {
            let negotiated = pin!(negotiate(client, &mut inbox, &self.exports));
            let patience = pin!(self.ring.sleep(self.limits.patience));
            match select(negotiated, patience).await {
                Either::Left((outcome, _)) => outcome?,
                Either::Right(_) => {
                    tracing::debug!("an NBD client took too long to choose an export");
                    client.sever();
                    return Err(Ended);
                }
            }
        };
        self.admit(client, &session).await?;
        say(client, answer);
        transmission::run(client, &session, &mut inbox).await
    }

    /// Lets a client go on to requests.
    async fn admit(&self, client: &Rc<Connection>, session: &Session) -> Result<(), Ended> {
        let export = &session.export;
        if export.read_only {
            let reads = |client: &&Rc<Connection>| client.export().is_some_and(|e| e.read_only);
            let readers = self.clients.borrow().iter().filter(reads).count();
            if readers >= self.limits.readers {
                tracing::warn!(export = export.name, "too many NBD clients; hung up");
                return Err(Ended);
            }
        } else {
            self.settle(client, export).await?;
        }
        // The exports may have changed meanwhile.
        let list = self.exports.list();
        if self.closing.get() || !list.iter().any(|other| other.is(export)) {
            return Err(Ended);
        }
        client.choose(export.clone());
        tracing::debug!(export = export.name, "an NBD client is served");
        Ok(())
    }

    /// Waits for what was written over connections to the same disk that their client has left.
    ///
    /// A client that lost its connection sends again over a new one what was not answered, and then
    /// more to the same place: a write of the old connection must not land after that.
    async fn settle(&self, client: &Rc<Connection>, export: &Export) -> Result<(), Ended> {
        let same = |other: &Connection| {
            other.export().is_some_and(|used| used.is(export)) && !std::ptr::eq(other, &**client)
        };
        for other in self.clients.borrow().iter() {
            if same(other) && other.is_hung_up() {
                other.sever();
            }
        }
        let left = || self.any(|other| same(other) && !other.is_open());
        self.changed.until(|| (!left()).then_some(())).await;
        if client.is_open() { Ok(()) } else { Err(Ended) }
    }
}

/// The handshake, up to the answer that ends it; that is not sent yet.
async fn negotiate(
    client: &Rc<Connection>,
    inbox: &mut Inbox,
    exports: &Exports,
) -> Result<(Session, Vec<u8>), Ended> {
    say(client, greeting());
    let flags = Fields(inbox.take(client, 4).await?).u32().ok_or(Ended)?;
    let mut negotiation = Negotiation::new(exports.clone(), flags).ok_or(Ended)?;
    loop {
        let mut fields = Fields(inbox.take(client, OPTION_HEADER).await?);
        let (magic, option, len) = (fields.u64(), fields.u32(), fields.u32());
        let (Some(OPTION), Some(option), Some(len)) = (magic, option, len) else {
            tracing::warn!("an NBD client sent something else than an option; hung up");
            return Err(Ended);
        };
        let mut answer = Vec::new();
        let next = if len > MAX_OPTION {
            inbox.skip(client, u64::from(len)).await?;
            negotiation.too_big(option, &mut answer)
        } else {
            let len = usize::try_from(len).map_err(|_none| Ended)?;
            let data = inbox.take(client, len).await?;
            negotiation.option(option, data, &mut answer)
        };
        match next {
            Next::Transmission(session) => return Ok((session, answer)),
            Next::Option => say(client, answer),
            Next::End => {
                say(client, answer);
                return Err(Ended);
            }
        }
        // One at a time: who doesn't read answers gets no more of them.
        client.is_sent().await;
    }
}

fn say(client: &Connection, bytes: Vec<u8>) {
    client.send(Segment {
        head: Head::from_vec(bytes),
        body: None,
        _content: None,
        _call: None,
    });
}
