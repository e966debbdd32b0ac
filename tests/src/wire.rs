//! A network between two hosts that can be cut: a TCP relay on loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

/// Relays connections to one port until it is cut.
pub struct Wire {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    cut: AtomicBool,
    carried: AtomicU64,
    /// Cut by itself once so many bytes were carried; 0: never.
    cut_after: AtomicU64,
    /// Nothing comes back by a connection but what begins it.
    unanswered: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

impl Shared {
    fn open(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether what was read on its `way` by a connection is carried on.
    fn carries(&self, way: Way, begun: &Begun) -> bool {
        match way {
            Way::There => {
                let answered = begun.answered.load(Ordering::SeqCst);
                begun.asked.fetch_or(answered, Ordering::SeqCst);
                true
            }
            Way::Back => {
                begun.answered.store(true, Ordering::SeqCst);
                let asked = begun.asked.load(Ordering::SeqCst);
                !(asked && self.unanswered.load(Ordering::SeqCst))
            }
        }
    }

    fn cut(&self) {
        let mut open = self.open();
        self.cut.store(true, Ordering::SeqCst);
        for stream in open.drain(..) {
            // Both ends may be gone already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Keeps a stream for the cut; refused when the wire is cut already.
    fn keep(&self, stream: &TcpStream) -> Result<bool> {
        let mut open = self.open();
        if self.cut.load(Ordering::SeqCst) {
            return Ok(false);
        }
        open.push(stream.try_clone()?);
        Ok(true)
    }
}

impl Wire {
    /// A wire to `target` on loopback.
    ///
    /// # Errors
    /// No port can be had.
    pub fn to(target: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let accepting = Arc::clone(&shared);
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                if accepting.cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect(("127.0.0.1", target)) else {
                    continue;
                };
                if let (Ok(true), Ok(true)) = (accepting.keep(&near), accepting.keep(&far)) {
                    let begun = Arc::default();
                    relay(&accepting, (&near, &far), Way::There, &begun);
                    relay(&accepting, (&far, &near), Way::Back, &begun);
                }
            }
        });
        Ok(Self { port, shared })
    }

    /// The near end.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Bytes carried so far, both ways.
    #[must_use]
    pub fn carried(&self) -> u64 {
        self.shared.carried.load(Ordering::SeqCst)
    }

    /// Breaks every connection and takes no new one.
    pub fn cut(&self) {
        self.shared.cut();
    }

    /// Cuts itself in the middle of whatever is sent once `bytes` more were carried.
    pub fn cut_after(&self, bytes: u64) {
        self.shared
            .cut_after
            .store(self.carried() + bytes, Ordering::SeqCst);
    }

    /// Whether it is cut.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.shared.cut.load(Ordering::SeqCst)
    }

    /// Lets nothing come back by a connection, until it is mended, but what begins it (a handshake that takes
    /// one answer): what is asked is heard, and the answer lost.
    pub fn lose_answers(&self) {
        self.shared.unanswered.store(true, Ordering::SeqCst);
    }

    /// Takes connections again.
    pub fn mend(&self) {
        self.shared.unanswered.store(false, Ordering::SeqCst);
        self.shared.cut_after.store(0, Ordering::SeqCst);
        self.shared.cut.store(false, Ordering::SeqCst);
    }
}

/// How a connection has begun.
#[derive(Default)]
struct Begun {
    /// Something came back.
    answered: AtomicBool,
    /// And then something went there.
    asked: AtomicBool,
}

/// From whoever connected, or to them.
#[derive(Clone, Copy)]
enum Way {
    There,
    Back,
}

fn relay(shared: &Arc<Shared>, (from, to): (&TcpStream, &TcpStream), way: Way, begun: &Arc<Begun>) {
    let (Ok(mut from), Ok(mut to)) = (from.try_clone(), to.try_clone()) else {
        return;
    };
    let (shared, begun) = (Arc::clone(shared), Arc::clone(begun));
    thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            if !shared.carries(way, &begun) {
                continue;
            }
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
            let carried = shared.carried.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
            let after = shared.cut_after.load(Ordering::SeqCst);
            if after != 0 && carried >= after {
                shared.cut();
            }
        }
        // Nothing more comes this way; the other way may still be in use. Either end may be gone.
        let _ = from.shutdown(Shutdown::Read);
        let _ = to.shutdown(Shutdown::Write);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_wire_breaks_what_is_open_and_refuses_what_is_new_until_mended() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let wire = Wire::to(listener.local_addr().expect("bound").port()).expect("a wire");
        let talk = || -> std::io::Result<()> {
            let mut near = TcpStream::connect(wire.address())?;
            near.write_all(b"x")?;
            near.shutdown(Shutdown::Write)?;
            let mut rest = Vec::new();
            near.read_to_end(&mut rest)?;
            if rest == b"y" {
                Ok(())
            } else {
                Err(std::io::ErrorKind::UnexpectedEof.into())
            }
        };
        thread::spawn(move || {
            for mut far in listener.incoming().flatten() {
                let mut byte = [0];
                let _ = far.read_exact(&mut byte).and_then(|()| far.write_all(b"y"));
            }
        });
        let mut open = TcpStream::connect(wire.address()).expect("connected");
        open.write_all(b"x").expect("sent");
        open.read_exact(&mut [0]).expect("answered");
        wire.cut();
        assert_eq!(
            open.read(&mut [0]).unwrap_or(0),
            0,
            "the open connection is broken"
        );
        assert!(talk().is_err(), "a new one is refused");
        wire.mend();
        talk().expect("mended");
    }

    #[test]
    fn what_is_asked_by_a_wire_that_loses_answers_is_heard() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bound");
        let wire = Wire::to(listener.local_addr().expect("bound").port()).expect("a wire");
        let mut near = TcpStream::connect(wire.address()).expect("connected");
        let (mut far, _) = listener.accept().expect("relayed");
        let mut byte = [0];
        wire.lose_answers();
        for asked in 1..=2 {
            near.write_all(&[asked]).expect("sent");
            far.read_exact(&mut byte).expect("heard");
            assert_eq!(byte, [asked]);
            far.write_all(&[10 * asked]).expect("answered");
            if asked == 1 {
                near.read_exact(&mut byte).expect("what begins it");
                assert_eq!(byte, [10]);
            }
        }
        drop(far);
        let mut rest = Vec::new();
        near.read_to_end(&mut rest).expect("it ends");
        assert!(rest.is_empty(), "the answer is lost: {rest:?}");
    }
}
