//! Serves the control socket.
//!
//! A thread per connection, at most [`MAX_CONNECTIONS`]. A line that is no request is refused and the
//! connection goes on; a line that is too long ends it.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

use model::{Code, Problem};

use crate::control::{MAX_LINE, Reply, Request};
use crate::engine::Engine;
use crate::signals::Termination;

/// Most control connections at once; more wait in the listening queue.
const MAX_CONNECTIONS: usize = 16;
/// After a connection that could not be accepted.
const PAUSE: Duration = Duration::from_millis(100);

/// What to do after an answer.
#[derive(Debug)]
pub(crate) enum Next {
    GoOn,
    Exit(Result<(), Problem>),
}

/// Accepts connections until a request or a signal asks for the end. Returns what came of closing the
/// disks; a request was answered then.
///
/// # Errors
/// When the socket cannot accept.
pub fn serve(
    listener: &UnixListener,
    engine: &Arc<Engine>,
    termination: Termination,
) -> io::Result<Result<(), Problem>> {
    let (slots, freed) = std::sync::mpsc::sync_channel(MAX_CONNECTIONS);
    let (accepted, connections) = std::sync::mpsc::channel();
    let (exit, exits) = std::sync::mpsc::channel::<io::Result<Result<(), Problem>>>();
    for _ in 0..MAX_CONNECTIONS {
        let _ = slots.send(());
    }
    // The flag belongs to the socket, which the supervisor made and others have had.
    listener.set_nonblocking(false)?;
    let acceptor = listener.try_clone()?;
    let (failed, freeing) = (exit.clone(), slots.clone());
    std::thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || {
            while freed.recv().is_ok() {
                match acceptor.accept() {
                    Ok((stream, _)) => {
                        if accepted.send(stream).is_err() {
                            return;
                        }
                    }
                    Err(error) if is_passing(&error) => {
                        // Nobody took the place.
                        let _ = freeing.send(());
                        tracing::warn!(%error, "cannot take a control connection in; trying on");
                        std::thread::sleep(PAUSE);
                    }
                    Err(error) => {
                        let _ = failed.send(Err(error));
                        return;
                    }
                }
            }
        })?;
    let (ending, engine) = (Arc::clone(engine), Arc::clone(engine));
    let ended = exit.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let outcome = termination.wait().map(|()| ending.close().map(drop));
            let _ = ended.send(outcome);
        })?;
    std::thread::Builder::new()
        .name("control".to_owned())
        .spawn(move || {
            for stream in connections {
                let (engine, slots, exit) = (Arc::clone(&engine), slots.clone(), exit.clone());
                let freeing = slots.clone();
                let spawned = std::thread::Builder::new()
                    .name("connection".to_owned())
                    .spawn(move || {
                        match converse(&stream, &engine) {
                            Ok(Next::Exit(closed)) => {
                                let _ = exit.send(Ok(closed));
                            }
                            Ok(Next::GoOn) => {}
                            Err(error) => {
                                tracing::debug!(%error, "a control connection ended");
                            }
                        }
                        let _ = slots.send(());
                    });
                if let Err(error) = spawned {
                    tracing::error!(%error, "cannot start a thread for a control connection");
                    let _ = freeing.send(());
                }
            }
        })?;
    exits.recv().unwrap_or(Ok(Ok(())))
}

/// Too many open files, no memory, a client that went away: the guests go on meanwhile.
fn is_passing(error: &io::Error) -> bool {
    let errors = [
        libc::EINTR,
        libc::ECONNABORTED,
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
    ];
    error
        .raw_os_error()
        .is_some_and(|error| errors.contains(&error))
}

fn converse(stream: &UnixStream, engine: &Engine) -> io::Result<Next> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limit = MAX_LINE as u64 + 1;
        lines.by_ref().take(limit).read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(Next::GoOn);
        }
        if line.len() > MAX_LINE || line.last() != Some(&b'\n') {
            let reason = format!("is not a line of at most {MAX_LINE} bytes");
            answer(stream, &refused(reason))?;
            return Ok(Next::GoOn);
        }
        let (reply, next) = match serde_json::from_slice(&line) {
            Ok(request) => run(request, engine),
            Err(error) => (not_understood(&error), Next::GoOn),
        };
        let answered = answer(stream, &reply);
        if let Next::Exit(_) = next {
            // Whether or not anybody hears of it.
            return Ok(next);
        }
        answered?;
    }
}

/// The answer to a line that is no request.
pub(crate) fn not_understood(error: &serde_json::Error) -> Reply {
    refused(format!("is not understood: {error}"))
}

fn refused(reason: String) -> Reply {
    Reply::Refused {
        problem: Problem::new(Code::Invalid, "a request to pollux-diskd", reason, ""),
    }
}

fn answer(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(reply)?;
    bytes.push(b'\n');
    stream.write_all(&bytes)
}

pub(crate) fn run(request: Request, engine: &Engine) -> (Reply, Next) {
    let mut next = Next::GoOn;
    let outcome = match request {
        Request::Status => engine.status(),
        Request::Track {
            relationship,
            begin,
            sent,
            but,
        } => engine.track(relationship, begin.then_some(&*sent), &but),
        Request::TrackAbove { relationship } => engine.track_above(relationship),
        Request::Untrack => engine.untrack(),
        Request::Seed {
            header,
            disk,
            from,
            limit,
            file,
        } => engine.seed(&header, disk, from, limit, &file),
        Request::Prepare {
            header,
            disk,
            from,
            limit,
            file,
        } => engine.prepare(&header, disk, from, limit, &file),
        Request::Cut {
            header,
            whole,
            slice,
            file,
        } => engine.cut(header, &whole, slice, &file),
        Request::Reload => engine.reload(),
        Request::Drain {
            disk,
            checkpoint,
            limit,
        } => engine.drain(disk, checkpoint, limit),
        Request::Confirm { file } => engine.confirm(&file),
        Request::Suspect => engine.suspect(),
        Request::SuspectRegions { disk, regions } => engine.suspect_regions(disk, &regions),
        Request::Differing { disk, from } => engine.differing(disk, from),
        Request::Hashes { disk, from, limit } => engine.hashes(disk, from, limit),
        Request::Compared { disk, regions } => engine.compared(disk, &regions),
        Request::Regions { disk, from, limit } => engine.regions(disk, from, limit),
        Request::Mark { disk, regions } => engine.mark(disk, &regions),
        Request::FoldBack { file } => engine.fold_back(&file),
        Request::Shutdown => {
            let closed = engine.close();
            next = Next::Exit(closed.clone().map(drop));
            closed
        }
    };
    let reply = outcome.unwrap_or_else(|problem| Reply::Refused { problem });
    (reply, next)
}
