//! Route of a failover that is made final.

use std::sync::Arc;

use api::{JobLine, Progress};
use axum::extract::{Path, State};
use axum::response::Response;
use model::Bytes;
use tokio::sync::mpsc;

use super::Refusal;
use super::body::lines;
use crate::host::Host;
use crate::vm::{Message, View, Vm};

pub(super) async fn complete(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    // Refused before the work begins, as a refusal.
    vm.ask(|answer| Message::CompleteFailover { answer })
        .await?;
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        follow(&vm, &told).await;
        // Fails only when whoever asked went away.
        let _ = told.send(JobLine::Done(())).await;
    });
    Ok(lines(progress))
}

/// Tells how far it is, until it is done or nobody listens.
async fn follow(vm: &Vm, told: &mpsc::Sender<JobLine<()>>) {
    let mut seen = vm.watch();
    loop {
        let line = {
            let view = seen.borrow_and_update();
            if !view.is_completing() {
                return;
            }
            JobLine::Progress(so_far(&view))
        };
        if told.send(line).await.is_err() {
            return;
        }
        tokio::select! {
            changed = seen.changed() => if changed.is_err() { return },
            () = told.closed() => return,
        }
    }
}

fn so_far(view: &View) -> Progress {
    if let Some(merge) = view
        .merge
        .as_ref()
        .filter(|_| view.merging_checkpoint().is_some())
    {
        let what = match &merge.stuck {
            Some(problem) => format!("waiting: {problem}"),
            None => "merging what was written since the failover".to_owned(),
        };
        let (done, total) = (merge.done, merge.total);
        return Progress { what, done, total };
    }
    let completing = view.completing.clone().unwrap_or_default();
    let what = match completing.stuck {
        Some(problem) => format!("waiting: {problem}"),
        None if completing.total > 0 => format!(
            "merging the recovery points, {} of {}",
            completing.done, completing.total
        ),
        None => "merging the recovery points".to_owned(),
    };
    // Points differ in size: how many bytes are left is not known.
    let (done, total) = (Bytes(0), Bytes(0));
    Progress { what, done, total }
}
