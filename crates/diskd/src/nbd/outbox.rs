//! Replies on their way: all that are ready go in one call.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use block::Buffer;

use super::protocol::Head;
use super::reply::Call;
use super::socket::{self, Gather};
use super::window::Permit;

/// A reply, or a part of one.
pub(super) struct Segment {
    pub(super) head: Head,
    pub(super) body: Option<Buffer>,
    /// What it takes of the window, until it is sent.
    pub(super) _content: Option<Permit>,
    /// The request that it answers.
    pub(super) _call: Option<Rc<Call>>,
}

impl Segment {
    fn len(&self) -> usize {
        self.head.len() + self.body.as_ref().map_or(0, Buffer::len)
    }
}

/// Segments in the order in which they are sent.
#[derive(Default)]
pub(super) struct Outbox {
    segments: VecDeque<Segment>,
    /// Bytes of the first one that were sent.
    sent: usize,
}

impl Outbox {
    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn push(&mut self, segment: Segment) {
        self.segments.push_back(segment);
    }

    /// Everything; nothing of it is sent any more.
    pub(super) fn clear(&mut self) -> VecDeque<Segment> {
        self.sent = 0;
        std::mem::take(&mut self.segments)
    }

    /// Sends as much as there is room for. What was sent is put to `gone`; false when there was no room
    /// for all that was tried.
    pub(super) fn send(
        &mut self,
        socket: BorrowedFd<'_>,
        gone: &mut Vec<Segment>,
    ) -> io::Result<bool> {
        let mut gather = Gather::default();
        let mut skip = self.sent;
        for segment in &self.segments {
            if gather.is_full() {
                break;
            }
            gather.bytes(&segment.head, skip);
            skip = skip.saturating_sub(segment.head.len());
            if let Some(body) = &segment.body {
                gather.buffer(body, skip);
            }
            skip = 0;
        }
        let wanted = gather.len();
        let moved = socket::send(socket, &mut gather)?.unwrap_or(0);
        self.sent += moved;
        while let Some(first) = self.segments.front() {
            if self.sent < first.len() {
                break;
            }
            self.sent -= first.len();
            gone.extend(self.segments.pop_front());
        }
        Ok(moved == wanted)
    }
}
