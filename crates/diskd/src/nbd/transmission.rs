//! Takes one client's requests and starts them ("Transmission").
//!
//! Reads and writes are run in parts, so that a client has no more in memory than its window
//! whatever it asks for, and the disk works on one part while the next is received. A reply in one piece,
//! for clients without structured replies, is read part by part with nothing else between.

use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use block::Op;

use super::connection::{Connection, Ended};
use super::export::{Extents, LOOK, PIECES, is_zero};
use super::inbox::Inbox;
use super::negotiation::{MAX_PAYLOAD, Session};
use super::protocol::{Failure, Header, REQUEST_HEADER, command};
use super::reply::{Call, Part};
use super::request::Action;
use super::window::Permit;

/// Most bytes of one operation on the disk.
const PART: u64 = 1 << 20;

/// Shortest run of zeroes that is told instead of sent, in bytes; and the shortest read for which the
/// disk is asked where they are.
const HOLE: u64 = 64 << 10;

/// What the reply of a hole takes of the window, in bytes.
const HOLE_COST: usize = 128;

/// Most extents in a block status. The client asks again from where they end.
const EXTENTS: usize = 512;

/// Most steps of [`PIECES`] in which a block status is looked up. What comes after them is not in the
/// answer, though its last extent may go on there.
const STEPS: usize = 64;

/// Takes requests until the client ends, or breaks a rule after which nothing can be understood.
pub(super) async fn run(
    connection: &Rc<Connection>,
    session: &Session,
    inbox: &mut Inbox,
) -> Result<(), Ended> {
    loop {
        let bytes = inbox.take(connection, REQUEST_HEADER).await?;
        let header = bytes.first_chunk().and_then(Header::parse);
        let Some(header) = header else {
            tracing::warn!("an NBD client sent something else than a request; hung up");
            return Err(Ended);
        };
        if header.command == command::DISCONNECT {
            return Ok(());
        }
        let place = connection.until(|| connection.window.request()).await?;
        let call = Call::new(connection, session, &header, place);
        match Action::of(&header, session) {
            Ok(action) => start(&call, action, session, inbox).await?,
            Err(failure) => {
                if header.command == command::WRITE {
                    if header.len > MAX_PAYLOAD {
                        tracing::warn!(
                            bytes = header.len,
                            "an NBD client writes more than 32 MiB at once; hung up"
                        );
                        return Err(Ended);
                    }
                    inbox.skip(connection, u64::from(header.len)).await?;
                }
                call.end(Err(failure));
            }
        }
    }
}

async fn start(
    call: &Rc<Call>,
    action: Action,
    session: &Session,
    inbox: &mut Inbox,
) -> Result<(), Ended> {
    let change = |op| call.connection().spawn(Rc::clone(call).change(op, None));
    match action {
        Action::Read { range, .. } if range.is_empty() => call.end_empty(),
        Action::Read { range, whole } if session.structured => {
            return read(call, range, whole).await;
        }
        Action::Read { range, .. } if range.end - range.start > PART => {
            return stream(call, range).await;
        }
        Action::Read { range, .. } => return read_part(call, range).await,
        Action::Write { range } => return write(call, range, inbox).await,
        Action::Trim { range } | Action::WriteZeroes { range, .. } if range.is_empty() => {
            call.end(Ok(Part::Nothing));
        }
        Action::Flush => change(Op::Flush),
        Action::Trim { range } => change(Op::Discard {
            at: range.start,
            len: range.end - range.start,
        }),
        Action::WriteZeroes { range, unmap } => change(Op::WriteZeroes {
            at: range.start,
            len: range.end - range.start,
            unmap,
        }),
        Action::Status { range, one } => {
            let most = if one { 1 } else { EXTENTS };
            let connection = call.connection();
            connection.spawn(status(Rc::clone(call), range, most));
        }
    }
    Ok(())
}

/// Room for `bytes` of content, as soon as there is.
async fn room(connection: &Connection, bytes: usize) -> Result<Permit, Ended> {
    connection.until(|| connection.window.content(bytes)).await
}

/// Consecutive parts of a range, at most [`PART`] bytes each.
fn parts(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let count = (range.end - range.start).div_ceil(PART);
    (0..count).map(move |number| {
        let start = range.start + number * PART;
        start..range.end.min(start + PART)
    })
}

/// The length of a part.
fn length(range: &Range<u64>) -> usize {
    usize::try_from(range.end - range.start).expect("a part is at most 1 MiB, a hole 32 MiB")
}

/// Reads, for a client that takes chunks.
async fn read(call: &Rc<Call>, range: Range<u64>, whole: bool) -> Result<(), Ended> {
    let len = range.end - range.start;
    if whole || len < HOLE {
        if len > PART {
            let why = "more than 1 MiB in one chunk";
            call.end(Err(Failure::new(Failure::OVERFLOW, why)));
            return Ok(());
        }
        return read_part(call, range).await;
    }
    let runs = runs(call, range).await;
    let count = |(range, zero): &(Range<u64>, bool)| {
        if *zero {
            1
        } else {
            parts(range.clone()).count()
        }
    };
    call.split(runs.iter().map(count).sum());
    for (range, zero) in runs {
        if zero {
            let permit = room(call.connection(), HOLE_COST).await?;
            let (at, len) = (range.start, length(&range));
            call.end(Ok(Part::Hole { at, len, permit }));
            continue;
        }
        for part in parts(range) {
            read_part(call, part).await?;
        }
    }
    Ok(())
}

async fn read_part(call: &Rc<Call>, range: Range<u64>) -> Result<(), Ended> {
    let (at, len) = (range.start, length(&range));
    let permit = room(call.connection(), len).await?;
    let connection = call.connection();
    connection.spawn(Rc::clone(call).read(at, len, permit));
    Ok(())
}

/// Runs of zeroes and of anything in a range; those of zeroes are at least [`HOLE`] bytes long. Where
/// there are many more pieces than such runs could be, the rest is taken for anything.
async fn runs(call: &Call, range: Range<u64>) -> Vec<(Range<u64>, bool)> {
    let mut runs: Vec<(Range<u64>, bool)> = Vec::new();
    let put = |runs: &mut Vec<(Range<u64>, bool)>, range: Range<u64>, zero| match runs.last_mut() {
        _ if range.is_empty() => {}
        Some((last, same)) if *same == zero => last.end = range.end,
        _ => runs.push((range, zero)),
    };
    // The run of zeroes that is being looked at.
    let mut hole = range.start..range.start;
    let mut left = PIECES;
    let mut look = |piece: Range<u64>, place| {
        if is_zero(place) {
            hole.end = piece.end;
        } else {
            let long = hole.end - hole.start >= HOLE;
            put(&mut runs, hole.clone(), long);
            put(&mut runs, piece.clone(), false);
            hole = piece.end..piece.end;
        }
        left -= 1;
        if left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let disk = &call.export().disk;
    if disk.translate(range.clone(), &mut look).await.is_err() {
        // Nobody knows: reading it will tell.
        return vec![(range, false)];
    }
    let (rest, long) = (hole.end..range.end, hole.end - hole.start >= HOLE);
    put(&mut runs, hole, long);
    put(&mut runs, rest, false);
    runs
}

/// Reads, for a client that takes the content of a read in one piece only.
async fn stream(call: &Rc<Call>, range: Range<u64>) -> Result<(), Ended> {
    let connection = call.connection();
    // Everything else is answered first, so that nothing comes between.
    connection
        .until(|| connection.window.is_alone().then_some(()))
        .await?;
    for (number, part) in parts(range).enumerate() {
        let permit = room(connection, length(&part)).await?;
        let into = connection.memory(length(&part));
        let at = part.start;
        let running = connection.begin();
        let (outcome, buffer) = call.run(Op::Read { at, into }).await;
        drop(running);
        match (outcome, buffer) {
            (Ok(()), Some(buffer)) => call.stream(number == 0, buffer, permit),
            (Err(failure), _) if number == 0 => {
                call.end(Err(failure));
                return Ok(());
            }
            (Err(failure), _) => {
                // "Request types", simple replies: it was told already that there is no error.
                tracing::warn!(why = failure.why, "an NBD read failed half way; hung up");
                connection.sever();
                return Err(Ended);
            }
            (Ok(()), None) => unreachable!("a device gives the memory of a read back"),
        }
    }
    Ok(())
}

/// Receives content and writes it, part by part.
async fn write(call: &Rc<Call>, range: Range<u64>, inbox: &mut Inbox) -> Result<(), Ended> {
    if range.is_empty() {
        call.end(Ok(Part::Nothing));
        return Ok(());
    }
    let connection = call.connection();
    call.split(parts(range.clone()).count());
    for part in parts(range) {
        let len = length(&part);
        if call.failed() {
            inbox.skip(connection, len as u64).await?;
            call.end(Ok(Part::Nothing));
            continue;
        }
        let permit = room(connection, len).await?;
        let mut from = connection.memory(len);
        inbox.fill(connection, &mut from).await?;
        let at = part.start;
        let op = Op::Write { at, from };
        connection.spawn(Rc::clone(call).change(op, Some(permit)));
    }
    Ok(())
}

/// Looks up where the zeroes are, and gives way to others between. No further than the answer goes, and
/// a piece behind: a client that asks for one extent after the other has each piece looked at once or
/// twice, however many there are.
async fn status(call: Rc<Call>, range: Range<u64>, most: usize) {
    let mut extents = Extents::new(range.start, most);
    for _ in 0..STEPS {
        let step = extents.end..range.end.min(extents.end.saturating_add(LOOK));
        let until = step.end;
        let (mut full, mut seen) = (false, 0);
        let mut look = |piece: Range<u64>, place| {
            full = extents.add(&piece, is_zero(place)).is_break();
            seen += 1;
            if full || seen == PIECES {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        if call.export().disk.translate(step, &mut look).await.is_err() {
            // Nobody knows: reading it will tell.
            let rest = extents.end..until;
            full = extents.add(&rest, false).is_break();
        }
        if full || extents.end == range.end {
            break;
        }
        call.connection().ring().yield_now().await;
    }
    call.end_status(&extents.list);
}
