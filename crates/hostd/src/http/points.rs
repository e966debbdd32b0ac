//! Routes of recovery points.

use std::ops::Range;
use std::sync::Arc;

use api::Point;
use axum::Json;
use axum::body::{Body, Bytes as Chunk};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use journal::PointImage;
use model::{Bytes, Code, Problem};

use super::hosts::blocking;
use super::{Answered, Refusal};
use crate::host::Host;
use crate::twin::{Store, not_a_twin};
use crate::vm::Vm;

/// Content is read and sent in parts of this many bytes.
const PART: u64 = 1 << 20;

pub(super) async fn list(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Vec<Point>> {
    let store = store_of(&host.find(&vm)?)?;
    let points = blocking(move || store.points()).await?;
    let told = points.into_iter().map(|point| Point {
        id: point.id,
        time: point.time,
        consistency: point.consistency,
        size: if point.in_base {
            Bytes(0)
        } else {
            point.file_len
        },
        pinned: !point.pins.is_empty(),
    });
    Ok(Json(told.collect()))
}

/// The journal of a twin.
pub(super) fn store_of(vm: &Vm) -> Result<Store, Problem> {
    vm.store.clone().ok_or_else(|| not_a_twin(&vm.view()))
}

/// The content of a disk at a point, or the range of it that the request names.
pub(super) async fn disk(
    State(host): State<Arc<Host>>,
    Path((vm, point, disk)): Path<(String, String, usize)>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let store = store_of(&vm)?;
    let view = vm.view();
    let thing = view.thing();
    let Some(wanted) = view.home.spec.disks.get(disk) else {
        let reason = format!(
            "has {} disks; they count from 0",
            view.home.spec.disks.len()
        );
        let problem = Problem::new(
            Code::NotFound,
            format!("disk {disk} of {thing}"),
            reason,
            "",
        );
        return Err(problem.into());
    };
    let (id, size) = (wanted.id, wanted.size.0);
    let range = headers
        .get(header::RANGE)
        .map(|range| parse(range.to_str().unwrap_or_default(), size))
        .transpose()
        .map_err(|reason| Problem::new(Code::Invalid, "the request's Range", reason, ""))?;
    let image = blocking(move || {
        let point = store.find(&point)?;
        let failed = |error| Problem::failed(&thing, &error);
        let reader = store.with(|journal| journal.open_point(point).map_err(failed))?;
        reader.image(id).map_err(failed)
    })
    .await?;
    let status = match &range {
        Some(_) => StatusCode::PARTIAL_CONTENT,
        None => StatusCode::OK,
    };
    let asked = range.clone();
    let range = range.unwrap_or(0..size);
    let mut response = (
        status,
        [
            (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
            (
                header::CONTENT_LENGTH,
                (range.end - range.start).to_string(),
            ),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
        ],
        content(image, range),
    )
        .into_response();
    if let Some(range) = asked {
        let told = format!(
            "bytes {}-{}/{size}",
            range.start,
            range.end.saturating_sub(1)
        );
        if let Ok(told) = told.try_into() {
            response.headers_mut().insert(header::CONTENT_RANGE, told);
        }
    }
    Ok(response)
}

/// One range of RFC 9110 section 14.1.2: `bytes=a-` or `bytes=a-b`.
fn parse(text: &str, size: u64) -> Result<Range<u64>, String> {
    let bad = || format!("is `{text}`; `bytes=A-` and `bytes=A-B` are understood");
    let (start, end) = text
        .strip_prefix("bytes=")
        .and_then(|range| range.split_once('-'))
        .ok_or_else(bad)?;
    let start: u64 = start.parse().map_err(|_not_a_number| bad())?;
    let end = match end {
        "" => size,
        end => {
            let last: u64 = end.parse().map_err(|_not_a_number| bad())?;
            last.saturating_add(1).min(size)
        }
    };
    if start > end || (start == size && size > 0 && start != 0) {
        return Err(format!("lies outside the disk of {size} bytes"));
    }
    Ok(start..end)
}

fn content(image: PointImage, range: Range<u64>) -> Body {
    let parts = stream::unfold((Some(image), range), |(image, range)| async move {
        if range.is_empty() {
            return None;
        }
        let image = image?;
        let end = range.end.min(range.start.saturating_add(PART));
        let (start, len) = (range.start, end - range.start);
        let read = tokio::task::spawn_blocking(move || {
            let mut part = vec![0; usize::try_from(len).unwrap_or(0)];
            let read = image.read_at(start, &mut part);
            (image, read.map(|()| Chunk::from(part)))
        });
        match read.await {
            Ok((image, Ok(part))) => Some((Ok(part), (Some(image), end..range.end))),
            Ok((_, Err(error))) => {
                tracing::error!(%error, "a point cannot be read");
                // The connection breaks off: that is how the client learns of it.
                Some((Err(std::io::Error::other(error)), (None, range)))
            }
            Err(error) => Some((Err(std::io::Error::other(error)), (None, range))),
        }
    });
    Body::from_stream(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood_and_what_lies_outside_is_refused() {
        assert_eq!(parse("bytes=0-", 100), Ok(0..100));
        assert_eq!(parse("bytes=10-19", 100), Ok(10..20));
        assert_eq!(parse("bytes=10-1000", 100), Ok(10..100));
        for bad in [
            "",
            "bytes=",
            "bytes=-5",
            "10-20",
            "bytes=9-3",
            "bytes=100-",
            "bytes=101-",
        ] {
            assert!(parse(bad, 100).is_err(), "{bad}");
        }
    }
}
