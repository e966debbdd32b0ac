//! A pipelining NBD client, the same for every server.
//!
//! Simple replies only (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>): they are
//! what costs a server least. Requests that can go together go in one call.

use std::io::{BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::client::HANG;
use crate::load::{Client, Load, Pace};

const NBDMAGIC: &[u8; 8] = b"NBDMAGIC";
const IHAVEOPT: &[u8; 8] = b"IHAVEOPT";
/// Fixed newstyle, no zeroes at the end.
const CLIENT_FLAGS: u32 = 0b11;
const OPT_GO: u32 = 7;
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REQUEST: u32 = 0x2560_9513;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
/// Payload up to this is copied together with its request.
const SMALL: usize = 64 << 10;
/// What is received at once.
const RECEIVE: usize = 256 << 10;
/// Bytes of a simple reply without content.
const HEADER: usize = 16;

/// A connection after the handshake.
pub(crate) struct NbdClient {
    stream: UnixStream,
    received: BufReader<UnixStream>,
    /// Requests that were not sent yet.
    unsent: Vec<u8>,
    content: Vec<u8>,
    cookie: u64,
    load: Load,
}

impl NbdClient {
    /// Connects to `export`.
    pub(crate) fn connect(socket: &Path, export: &str, load: Load) -> Result<Self> {
        let stream = UnixStream::connect(socket)
            .with_context(|| format!("cannot connect to {}", socket.display()))?;
        stream.set_read_timeout(Some(HANG))?;
        let received = BufReader::with_capacity(RECEIVE, stream.try_clone()?);
        let mut client = Self {
            stream,
            received,
            unsent: Vec::new(),
            // Not zeroes, so that no server can take a short cut.
            content: vec![0xa5; load.pattern.block()],
            cookie: 0,
            load,
        };
        client
            .go(export)
            .with_context(|| format!("no export {export:?} at {}", socket.display()))?;
        Ok(client)
    }

    fn go(&mut self, export: &str) -> Result<()> {
        ensure!(&self.take::<8>()? == NBDMAGIC && &self.take::<8>()? == IHAVEOPT);
        let _flags = self.take::<2>()?;
        let name = export.as_bytes();
        let mut said = CLIENT_FLAGS.to_be_bytes().to_vec();
        said.extend(IHAVEOPT);
        said.extend(OPT_GO.to_be_bytes());
        said.extend(u32::try_from(name.len() + 6)?.to_be_bytes());
        said.extend(u32::try_from(name.len())?.to_be_bytes());
        said.extend(name);
        // No information is asked for; some comes anyhow.
        said.extend(0_u16.to_be_bytes());
        self.stream.write_all(&said)?;
        loop {
            ensure!(u64::from_be_bytes(self.take()?) == OPTION_REPLY);
            let _option = self.take::<4>()?;
            let kind = u32::from_be_bytes(self.take()?);
            let mut rest = vec![0; usize::try_from(u32::from_be_bytes(self.take()?))?];
            self.received.read_exact(&mut rest)?;
            match kind {
                REP_INFO => {}
                REP_ACK => return Ok(()),
                error => bail!("refused ({error:#x}): {}", String::from_utf8_lossy(&rest)),
            }
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        let read = self.received.read_exact(&mut bytes);
        read.context("the server hung up or answered nothing")?;
        Ok(bytes)
    }

    fn request(&mut self, at: u64) -> Result<()> {
        let write = self.load.pattern.writes();
        let command = if write { CMD_WRITE } else { CMD_READ };
        self.unsent.extend(REQUEST.to_be_bytes());
        self.unsent.extend(0_u16.to_be_bytes());
        self.unsent.extend(command.to_be_bytes());
        self.cookie += 1;
        self.unsent.extend(self.cookie.to_be_bytes());
        self.unsent.extend(at.to_be_bytes());
        let len = u32::try_from(self.content.len())?;
        self.unsent.extend(len.to_be_bytes());
        if write && self.content.len() <= SMALL {
            self.unsent.extend(&self.content);
        } else if write {
            self.send()?;
            self.stream.write_all(&self.content)?;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        self.stream.write_all(&self.unsent)?;
        self.unsent.clear();
        Ok(())
    }

    /// Takes one reply.
    fn reply(&mut self) -> Result<()> {
        let header = self.take::<HEADER>()?;
        let word = |at: usize| u32::from_be_bytes([0, 1, 2, 3].map(|n| header[at + n]));
        ensure!(word(0) == SIMPLE_REPLY, "that is no reply");
        ensure!(word(4) == 0, "an operation failed with error {}", word(4));
        if !self.load.pattern.writes() {
            self.received.read_exact(&mut self.content)?;
        }
        Ok(())
    }
}

impl Client for NbdClient {
    fn run(&mut self, pace: &mut Pace) -> Result<()> {
        let mut running = self.load.depth;
        for _ in 0..running {
            self.request(pace.offset())?;
        }
        while running > 0 {
            self.send()?;
            // The first is waited for; then those that came with it.
            let mut finished = 0;
            while finished == 0 || self.received.buffer().len() >= HEADER {
                self.reply()?;
                finished += 1;
            }
            if !pace.completed(finished) {
                running -= finished;
                continue;
            }
            for _ in 0..finished {
                self.request(pace.offset())?;
            }
        }
        Ok(())
    }
}
