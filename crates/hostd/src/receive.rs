//! The replica endpoint.

use std::sync::Arc;

use tokio::net::TcpListener;

use crate::host::Host;

/// Serves peers until `shutdown`.
pub(crate) async fn serve(
    host: Arc<Host>,
    listener: TcpListener,
    shutdown: impl Future<Output = ()>,
) {
    let trust = Arc::clone(&host.trust);
    let config = match replica::tls::server_config(&host.identity, Arc::clone(&trust)) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!(%error, "peers cannot be served");
            return;
        }
    };
    let limits = replica::tls::Limits::default();
    replica::tls::serve(
        listener,
        config,
        trust,
        axum::Router::new(),
        limits,
        shutdown,
    )
    .await;
}
