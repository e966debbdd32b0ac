//! The management API over HTTP.

mod body;
mod completion;
mod console;
mod disks;
mod events;
mod failover;
mod hosts;
mod measures;
mod metrics;
mod planned;
mod points;
mod replication;
mod server;
mod tracking;
mod verification;
mod vms;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use model::{Code, Problem};

pub(crate) use body::{Answered, Refusal};
pub(crate) use vms::store_name;

use crate::host::Host;

/// Longest body with a list of revoked certificates, in bytes: as PEM, in JSON.
const MAX_LIST: usize = 2 * replica::revocation::MAX_LEN;

/// Every route of the API; see crate `api`.
pub fn router(host: Arc<Host>) -> Router {
    Router::new()
        .route("/v1/host", get(hosts::status))
        .route("/v1/host/identity", get(hosts::identity))
        .route(
            "/v1/host/certificate",
            put(hosts::give).delete(hosts::take_back),
        )
        .route(
            "/v1/host/revocations",
            post(hosts::revoke).layer(DefaultBodyLimit::max(MAX_LIST)),
        )
        .route("/v1/host/peers", get(hosts::peers).post(hosts::trust))
        .route("/v1/host/peers/{name}", delete(hosts::untrust))
        .route(
            "/v1/replica-server",
            get(server::show)
                .put(server::enable)
                .delete(server::disable),
        )
        .route(
            "/v1/replica-server/authorizations",
            get(server::authorizations).post(server::authorize),
        )
        .route(
            "/v1/replica-server/authorizations/{pattern}",
            delete(server::deny),
        )
        .route("/v1/vms", get(vms::list).post(vms::create))
        .route("/v1/vms/{vm}", get(vms::show).delete(vms::delete))
        .route("/v1/vms/{vm}/start", post(vms::start))
        .route("/v1/vms/{vm}/stop", post(vms::stop))
        .route("/v1/vms/{vm}/kill", post(vms::kill))
        .route("/v1/vms/{vm}/upgrade", post(disks::upgrade))
        .route("/v1/vms/{vm}/disks", get(disks::list).post(disks::create))
        .route("/v1/vms/{vm}/disks/attach", post(disks::attach))
        .route(
            "/v1/vms/{vm}/disks/{disk}",
            get(disks::show).delete(disks::detach),
        )
        .route("/v1/vms/{vm}/disks/{disk}/size", put(disks::resize))
        .route("/v1/vms/{vm}/disks/{disk}/export", post(disks::export))
        .route(
            "/v1/vms/{vm}/checkpoints",
            get(disks::checkpoints).post(disks::checkpoint),
        )
        .route("/v1/vms/{vm}/checkpoints/{name}/apply", post(disks::apply))
        .route("/v1/vms/{vm}/checkpoints/{name}/merge", post(disks::merge))
        .route("/v1/vms/{vm}/checkpoints/merge", post(disks::merge_all))
        .route("/v1/vms/{vm}/console", get(console::attach))
        .route("/v1/vms/{vm}/serial-log", get(console::log))
        .route("/v1/replications", get(replication::list))
        .route(
            "/v1/vms/{vm}/replication",
            get(replication::show)
                .put(replication::enable)
                .patch(replication::set)
                .delete(replication::disable),
        )
        .route(
            "/v1/vms/{vm}/replication/suspend",
            post(replication::suspend),
        )
        .route("/v1/vms/{vm}/replication/resume", post(replication::resume))
        .route("/v1/vms/{vm}/replication/cancel", post(replication::cancel))
        .route("/metrics", get(metrics::show))
        .route("/v1/events", get(events::list))
        .route("/v1/events/stream", get(events::follow))
        .route("/v1/replications/measures", get(measures::list))
        .route("/v1/replications/health", get(measures::all_health))
        .route(
            "/v1/vms/{vm}/replication/measures",
            get(measures::show).delete(measures::reset),
        )
        .route("/v1/vms/{vm}/replication/health", get(measures::health))
        .route("/v1/vms/{vm}/tracking", get(tracking::show))
        .route("/v1/vms/{vm}/replication/verify", post(points::verify))
        .route("/v1/vms/{vm}/replication/compare", post(verification::run))
        .route("/v1/vms/{vm}/points", get(points::list))
        .route(
            "/v1/vms/{vm}/points/{point}/open",
            post(points::open).delete(points::close),
        )
        .route("/v1/vms/{vm}/points/{point}/lock", put(points::lock))
        .route("/v1/vms/{vm}/points/{point}/export", post(points::export))
        .merge(failovers())
        .fallback(nothing)
        .method_not_allowed_fallback(not_like_that)
        .with_state(host)
}

/// Those of failovers, and of the way back.
fn failovers() -> Router<Arc<Host>> {
    Router::new()
        .route("/v1/vms/{vm}/failover", post(failover::start))
        .route(
            "/v1/vms/{vm}/failover/completion",
            post(completion::complete),
        )
        .route(
            "/v1/vms/{vm}/planned-failover",
            post(planned::prepare).delete(planned::cancel),
        )
        .route(
            "/v1/vms/{vm}/test-failover",
            post(failover::test).delete(failover::stop_test),
        )
        .route("/v1/vms/{vm}/replication/reverse", post(failover::reverse))
        .route(
            "/v1/vms/{vm}/lost-writes",
            get(failover::lost_writes).delete(failover::drop_lost_writes),
        )
}

async fn nothing(uri: axum::http::Uri) -> Response {
    let problem = Problem::new(
        Code::NotFound,
        uri.path().to_owned(),
        "is nothing that this polluxd knows",
        "`pollux` and polluxd may be of different versions",
    );
    Refusal(problem).into_response()
}

async fn not_like_that(method: axum::http::Method, uri: axum::http::Uri) -> Response {
    let problem = Problem::new(
        Code::Invalid,
        uri.path().to_owned(),
        format!("does not take {method}"),
        "",
    );
    Refusal(problem).into_response()
}
