//! The route of metrics.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use futures_util::stream;
use model::Problem;

use super::Refusal;
use super::measures::measures;
use crate::host::Host;
use crate::metrics::{CONTENT_TYPE, text};

/// Disk servers that are asked at one time.
const AT_ONCE: usize = 16;

pub(super) async fn show(State(host): State<Arc<Host>>) -> Result<Response, Refusal> {
    let asked = stream::iter(host.vms())
        .filter(|vm| std::future::ready(vm.view().relation.is_some()))
        .map(|vm| async move { measures(&vm).await })
        .buffered(AT_ONCE);
    // One whose relationship ended meanwhile is not told of.
    let all: Vec<_> = asked.filter_map(|one| async { one.ok() }).collect().await;
    let text = text(all).map_err(|error| Problem::failed("metrics", &error))?;
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response())
}
