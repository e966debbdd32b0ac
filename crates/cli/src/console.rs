//! The serial port of a guest on this terminal.

use std::io::{self, IsTerminal, Read};

use api::Client;
use model::Problem;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::run::write_out;

/// Ctrl-].
const LEAVE: u8 = 0x1d;

/// Connects this terminal to the serial port until Ctrl-] or until the guest is gone.
pub(crate) async fn attach(client: &Client, vm: &str) -> Result<(), Problem> {
    let (mut from_guest, mut to_guest) = tokio::io::split(client.console(vm).await?);
    let terminal = io::stdin().is_terminal();
    if terminal {
        eprintln!("Connected to VM `{vm}`; Ctrl-] leaves.\r");
    }
    let raw = Raw::enter();
    let mut keys = keyboard(terminal);
    let mut typing = true;
    let mut buffer = vec![0; 16 * 1024];
    let ended = loop {
        tokio::select! {
            read = from_guest.read(&mut buffer) => match read {
                Ok(0) => break Ok("the guest is gone"),
                Ok(len) => {
                    if !write_out(&buffer[..len])? {
                        break Ok("nobody reads any more");
                    }
                }
                Err(error) => break Err(Problem::failed("console", &error)),
            },
            typed = keys.recv(), if typing => match typed {
                Some(Typed::Bytes(bytes)) => {
                    if let Err(error) = to_guest.write_all(&bytes).await {
                        break Err(Problem::failed("console", &error));
                    }
                }
                Some(Typed::Leave) => break Ok("left the console"),
                // The end of piped input; what the guest answers is still shown.
                None => typing = false,
            },
        }
    };
    drop(raw);
    let how = ended?;
    if terminal {
        eprintln!("\n{how}");
    }
    Ok(())
}

enum Typed {
    Bytes(Vec<u8>),
    Leave,
}

/// Standard input as it comes. A thread, since a terminal is read by blocking.
fn keyboard(terminal: bool) -> mpsc::Receiver<Typed> {
    let (keys, typed) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        loop {
            let bytes = match io::stdin().lock().read(&mut buffer) {
                Ok(0) | Err(_) => return,
                Ok(len) => &buffer[..len],
            };
            let leave = bytes.iter().position(|byte| terminal && *byte == LEAVE);
            let sent =
                keys.blocking_send(Typed::Bytes(bytes[..leave.unwrap_or(bytes.len())].into()));
            if leave.is_some() {
                // Fails only when the console has ended.
                let _ = keys.blocking_send(Typed::Leave);
                return;
            }
            if sent.is_err() {
                return;
            }
        }
    });
    typed
}

/// A terminal that passes every key on; put back when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        match tcsetattr(&stdin, OptionalActions::Now, &raw) {
            Ok(()) => Self(Some(before)),
            Err(_) => Self(None),
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Fails only when the terminal is gone.
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}
