//! Bodies in and out: JSON, refusals, jobs.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use model::{Code, Problem};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// A handler's result.
pub(crate) type Answered<T> = Result<axum::Json<T>, Refusal>;

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        if self.0.code == Code::Failed {
            tracing::error!(problem = %self.0, "a request failed");
        }
        (status, axum::Json(self.0)).into_response()
    }
}

/// A request's body as JSON, read strictly. An empty one is an empty object.
#[derive(Debug)]
pub(crate) struct Json<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let refuse = |reason: String| {
            let way_out = "`pollux` and polluxd may be of different versions";
            Refusal(Problem::new(Code::Invalid, "the request", reason, way_out))
        };
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| refuse(format!("cannot be read: {error}")))?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        serde_json::from_slice(text)
            .map(Self)
            .map_err(|error| refuse(format!("is not understood: {error}")))
    }
}

/// Lines of JSON as they come.
pub(crate) fn lines<T: Serialize + Send + 'static>(
    lines: mpsc::Receiver<api::JobLine<T>>,
) -> Response {
    let body = stream::unfold(lines, |mut lines| async {
        let line = lines.recv().await?;
        let mut text = match serde_json::to_vec(&line) {
            Ok(text) => text,
            Err(error) => return Some((Err(error), lines)),
        };
        text.push(b'\n');
        Some((Ok(Bytes::from(text)), lines))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(body),
    )
        .into_response()
}
