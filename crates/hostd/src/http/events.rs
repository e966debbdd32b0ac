//! Routes of events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use api::{Event, EventQuery};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::response::sse::{Event as Line, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream;
use model::{Code, Problem, VmId};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use super::Answered;
use super::Refusal;
use crate::event::Wanted;
use crate::host::Host;

type Asked = Result<Query<EventQuery>, QueryRejection>;

pub(super) async fn list(State(host): State<Arc<Host>>, asked: Asked) -> Answered<Vec<Event>> {
    let wanted = wanted(&host, asked)?;
    Ok(Json(host.events.list(wanted).await?))
}

/// What is in the history, then what comes, until the client goes away.
pub(super) async fn follow(
    State(host): State<Arc<Host>>,
    asked: Asked,
) -> Result<Sse<impl Stream<Item = Result<Line, Infallible>>>, Refusal> {
    let wanted = wanted(&host, asked)?;
    // First, so that nothing falls between the two.
    let coming = host.events.follow();
    let waiting: VecDeque<Event> = host.events.list(wanted.clone()).await?.into();
    let last = waiting.back().map_or(0, |event| event.id);
    let follower = Follower {
        host,
        wanted,
        last,
        waiting,
        coming,
    };
    let lines = stream::unfold(follower, |mut follower| async {
        let event = follower.next().await?;
        let line = Line::default()
            .id(event.id.to_string())
            .event(event.kind.name())
            .json_data(&event);
        // Every event has a JSON form.
        Some((Ok(line.ok()?), follower))
    });
    Ok(Sse::new(lines).keep_alive(KeepAlive::default()))
}

fn wanted(host: &Host, asked: Asked) -> Result<Wanted, Problem> {
    let Query(asked) = asked.map_err(|error| {
        let way_out = "`pollux` and polluxd may be of different versions";
        let reason = format!("is not understood: {error}");
        Problem::new(Code::Invalid, "the request", reason, way_out)
    })?;
    // One that was deleted is named by its id.
    let vm = asked.vm.map(|vm| {
        let found = host.find(&vm).map(|vm| vm.id);
        found.or_else(|problem| vm.parse().map(VmId).map_err(|_not_an_id| problem))
    });
    Ok(Wanted {
        vm: vm.transpose()?,
        since: asked.since,
        after: asked.after,
        limit: asked.limit,
    })
}

/// Who reads events as they come.
struct Follower {
    host: Arc<Host>,
    wanted: Wanted,
    /// The highest number that was given out, or looked at.
    last: u64,
    waiting: VecDeque<Event>,
    coming: broadcast::Receiver<Event>,
}

impl Follower {
    /// None: no more can come.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                self.last = self.last.max(event.id);
                return Some(event);
            }
            match self.coming.recv().await {
                Ok(event) if event.id <= self.last => {}
                Ok(event) => {
                    self.last = event.id;
                    if self.wanted.vm.is_none() || self.wanted.vm == event.vm {
                        return Some(event);
                    }
                }
                // It reads more slowly than they come: the history has them.
                Err(RecvError::Lagged(_)) => {
                    let missed = Wanted {
                        after: Some(self.last),
                        limit: None,
                        ..self.wanted.clone()
                    };
                    self.waiting = self.host.events.list(missed).await.ok()?.into();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }
}
