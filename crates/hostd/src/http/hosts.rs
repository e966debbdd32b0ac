//! Routes of the host and its peers.

use std::sync::Arc;
use std::time::Duration;

use api::{GiveCertificate, HostStatus, Identity, Peer, Revoke, Revoked, TrustPeer};
use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use model::{Code, Problem};
use replica::authorization::Pattern;
use replica::certificate::read_authority;
use replica::identity::Fingerprint;
use replica::revocation::Revoked as RevokedList;
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
    Ok(Json(tell_identity(&host)))
}

fn tell_identity(host: &Host) -> Identity {
    Identity {
        name: host.name().to_owned(),
        address: host.address(),
        fingerprint: host.identity.fingerprint().to_string(),
        given: host.identity.is_given(),
        valid_until: host.identity.valid_until(Timestamp::now()),
    }
}

pub(super) async fn give(
    State(host): State<Arc<Host>>,
    Body(given): Body<GiveCertificate>,
) -> Answered<Identity> {
    let identity = Arc::clone(&host.identity);
    blocking(move || {
        let GiveCertificate {
            certificate,
            key,
            authority,
        } = &given;
        identity.give(certificate, key, authority, Timestamp::now())
    })
    .await?;
    Ok(Json(tell_identity(&host)))
}

pub(super) async fn take_back(State(host): State<Arc<Host>>) -> Answered<Identity> {
    let identity = Arc::clone(&host.identity);
    blocking(move || identity.take_back()).await?;
    Ok(Json(tell_identity(&host)))
}

pub(super) async fn revoke(
    State(host): State<Arc<Host>>,
    Body(given): Body<Revoke>,
) -> Answered<Revoked> {
    let list = RevokedList::from_pem(&given.list)?;
    let authority = blocking(move || host.trust.revoke(list)).await?;
    Ok(Json(Revoked {
        authority: authority.to_string(),
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
    let (peer, unseen) = peer(&wanted).await?;
    let told = Peer {
        unseen,
        ..tell(&peer)
    };
    let list = match (&wanted.revoked, &wanted.authority) {
        (None, _) => None,
        (Some(list), Some(authority)) => Some(checked(list, authority)?),
        (Some(_), None) => {
            let reason = "comes without its authority's certificate";
            let way_out = "give that with --authority, or the list alone to `pollux host revoke`";
            let thing = "the list of revoked certificates";
            return Err(Problem::new(Code::Invalid, thing, reason, way_out).into());
        }
    };
    blocking(move || {
        host.trust.trust(peer)?;
        list.map_or(Ok(()), |list| host.trust.revoke(list).map(drop))
    })
    .await?;
    Ok(Json(told))
}

/// What an authority took back, if it did.
fn checked(list: &str, authority: &str) -> Result<RevokedList, Problem> {
    let list = RevokedList::from_pem(list)?;
    let made = read_authority(authority).is_ok_and(|authority| list.is_from(&authority));
    if made {
        return Ok(list);
    }
    Err(Problem::new(
        Code::Invalid,
        "the list of revoked certificates",
        "is not from the authority that is given with it",
        "",
    ))
}

/// The peer that is meant, and why it could not be asked, if it should have been.
async fn peer(wanted: &TrustPeer) -> Result<(trust::Peer, Option<Problem>), Problem> {
    let (name, at, limit) = (&wanted.name, &wanted.address, wanted.limit);
    let pattern = trust::check_peer(name, at)?;
    let fingerprint = match (&wanted.fingerprint, &wanted.authority) {
        (None, Some(authority)) => {
            return Ok((trust::Peer::new(name, at, authority, limit)?, None));
        }
        (Some(fingerprint), None) => fingerprint,
        (None, None) | (Some(_), Some(_)) => {
            let reason = "is known by its fingerprint or by its authority's certificate";
            let way_out = "give the one or the other";
            let thing = format!("host `{name}`");
            return Err(Problem::new(Code::Invalid, thing, reason, way_out));
        }
    };
    let fingerprint: Fingerprint = fingerprint.parse().map_err(|error| {
        let way_out = "`pollux host identity` on that host shows it";
        let error: replica::identity::ParseFingerprintError = error;
        Problem::new(Code::Invalid, "fingerprint", error.to_string(), way_out)
    })?;
    let unseen = || trust::Peer::unseen(name, at, fingerprint, limit);
    if let Pattern::Domain(_) = pattern {
        return Ok((unseen()?, None));
    }
    match tls::fetch_authority(at, ASK_LIMIT).await {
        Ok(presented) => {
            let authority = presented.accept(name, fingerprint, UnixTime::now())?;
            Ok((trust::Peer::new(name, at, &authority, limit)?, None))
        }
        // One that receives nothing and has no partner yet does not listen.
        Err(problem) => Ok((unseen()?, Some(problem))),
    }
}

pub(super) async fn untrust(
    State(host): State<Arc<Host>>,
    Path(name): Path<String>,
) -> Answered<()> {
    // Whoever is trusted by its own name does not need its domain's.
    let lets_in = |partner: &str| {
        let trusted = host.trust.get(partner);
        trusted.is_ok_and(|trusted| trusted.known.peer.name.to_string() == name)
    };
    let bound = host.vms().into_iter().map(|vm| vm.view()).find(|view| {
        let relation = view.relation.as_ref();
        relation.is_some_and(|relation| lets_in(&relation.partner))
    });
    if let Some(view) = bound {
        let problem = Problem::new(
            Code::Conflict,
            format!("host `{name}`"),
            format!("lets the partner of {} in", view.thing()),
            "End that first with `pollux replica remove`",
        );
        return Err(problem.into());
    }
    blocking(move || host.trust.remove(&name)).await?;
    Ok(Json(()))
}

fn tell(peer: &trust::Peer) -> Peer {
    Peer {
        name: peer.name.to_string(),
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
