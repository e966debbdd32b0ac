//! Routes of the host and its peers.

use std::sync::Arc;
use std::time::Duration;

use api::{HostStatus, Identity, Peer, TrustPeer};
use axum::Json;
use axum::extract::{Path, State};
use model::{Code, Problem};
use replica::identity::Fingerprint;
use replica::{tls, trust};
use rustls_pki_types::UnixTime;

use super::body::Json as Body;
use super::{Answered, Refusal};
use crate::host::Host;

const ASK_LIMIT: Duration = Duration::from_secs(10);

pub(super) async fn status(State(host): State<Arc<Host>>) -> Answered<HostStatus> {
    Ok(Json(host.status().await?))
}

pub(super) async fn identity(State(host): State<Arc<Host>>) -> Answered<Identity> {
    Ok(Json(Identity {
        name: host.name().to_owned(),
        address: host.address(),
        fingerprint: host.identity.fingerprint().to_string(),
    }))
}

pub(super) async fn peers(State(host): State<Arc<Host>>) -> Answered<Vec<Peer>> {
    let peers = host.trust.list();
    Ok(Json(peers.iter().map(|peer| tell(&peer.peer)).collect()))
}

pub(super) async fn trust(
    State(host): State<Arc<Host>>,
    Body(wanted): Body<TrustPeer>,
) -> Answered<Peer> {
    if wanted.name == host.name() {
        let problem = Problem::new(
            Code::Invalid,
            format!("host `{}`", wanted.name),
            "is this host's own name",
            "Hosts that replicate to each other need different names (`polluxd --name`)",
        );
        return Err(problem.into());
    }
    trust::check_peer(&wanted.name, &wanted.address)?;
    let fingerprint: Fingerprint = wanted.fingerprint.parse().map_err(|error| {
        let way_out = "`pollux host identity` on that host shows it";
        let error: replica::identity::ParseFingerprintError = error;
        Problem::new(Code::Invalid, "fingerprint", error.to_string(), way_out)
    })?;
    let (name, at, limit) = (&wanted.name, &wanted.address, wanted.limit);
    let (peer, unseen) = match tls::fetch_authority(at, ASK_LIMIT).await {
        Ok(presented) => {
            let authority = presented.accept(name, fingerprint, UnixTime::now())?;
            (trust::Peer::new(name, at, &authority, limit)?, None)
        }
        // One that receives nothing and has no partner yet does not listen.
        Err(problem) => (
            trust::Peer::unseen(name, at, fingerprint, limit)?,
            Some(problem),
        ),
    };
    let told = Peer {
        unseen,
        ..tell(&peer)
    };
    blocking(move || host.trust.trust(peer)).await?;
    Ok(Json(told))
}

pub(super) async fn untrust(
    State(host): State<Arc<Host>>,
    Path(name): Path<String>,
) -> Answered<()> {
    host.trust.get(&name)?;
    let bound = host.vms().into_iter().map(|vm| vm.view()).find(|view| {
        view.relation
            .as_ref()
            .is_some_and(|relation| relation.partner == name)
    });
    if let Some(view) = bound {
        let problem = Problem::new(
            Code::Conflict,
            format!("host `{name}`"),
            format!("is the partner of {}", view.thing()),
            "End that first with `pollux replica remove`",
        );
        return Err(problem.into());
    }
    blocking(move || host.trust.remove(&name)).await?;
    Ok(Json(()))
}

fn tell(peer: &trust::Peer) -> Peer {
    Peer {
        name: peer.name.clone(),
        address: peer.address.clone(),
        fingerprint: peer.fingerprint.to_string(),
        limit: peer.store_limit,
        unseen: None,
    }
}

/// Runs what blocks where it may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Refusal> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done?),
        Err(error) => Err(Problem::failed("polluxd", &error).into()),
    }
}
