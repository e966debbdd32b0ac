//! Routes of the replica server.

use std::net::SocketAddr;
use std::path::{self, PathBuf};
use std::sync::Arc;

use api::{Authorization, Authorize, EnableReplicaServer, ReplicaServer, ReplicaStore, Unreceived};
use axum::Json;
use axum::extract::{Path, State};
use model::{Bytes, Code, Problem};
use replica::authorization::{Admits, Entry, MAX_ENTRIES, Pattern, Rules};
use replica::standing::Role;

use super::body::Json as Body;
use super::hosts::blocking;
use super::{Answered, Refusal};
use crate::endpoint::{self, Listening};
use crate::host::Host;
use crate::server::Kept;
use crate::stores::{self, Known};
use crate::vm::room;

pub(super) async fn show(State(host): State<Arc<Host>>) -> Answered<ReplicaServer> {
    told(&host).await
}

async fn told(host: &Arc<Host>) -> Answered<ReplicaServer> {
    let host = Arc::clone(host);
    Ok(Json(blocking(move || Ok(tell(&host))).await?))
}

pub(super) async fn enable(
    State(host): State<Arc<Host>>,
    Body(wanted): Body<EnableReplicaServer>,
) -> Answered<ReplicaServer> {
    let listen = wanted.listen.as_deref().map(address).transpose()?;
    let at = listen
        .or(host.server.get().listen)
        .unwrap_or(host.replica_listen);
    // Tried first: what cannot be listened on changes nothing.
    let serves_there = match host.endpoint.now() {
        Listening::At { wanted, bound } => at == wanted || at == bound,
        Listening::No | Listening::Refused { .. } => false,
    };
    if !serves_there {
        endpoint::bind(at).await.map(drop)?;
    }
    let store = match wanted.store {
        Some(path) => Some(found_or_made(&host, path).await?),
        None => None,
    };
    change(&host, move |kept| {
        kept.rules.enabled = true;
        if let Some(store) = store {
            kept.rules.store = list(kept, store)?;
        }
        kept.listen = listen.or(kept.listen);
        if wanted.allow_any {
            kept.rules.admits = Admits::Any;
        }
        Ok(())
    })
    .await
}

pub(super) async fn disable(State(host): State<Arc<Host>>) -> Answered<ReplicaServer> {
    change(&host, |kept| {
        kept.rules.enabled = false;
        Ok(())
    })
    .await
}

pub(super) async fn authorizations(State(host): State<Arc<Host>>) -> Answered<Vec<Authorization>> {
    let entries = host.server.rules(|rules| rules.entries.clone());
    let told = entries.into_iter().map(|entry| authorization(&host, entry));
    Ok(Json(told.collect()))
}

pub(super) async fn authorize(
    State(host): State<Arc<Host>>,
    Body(wanted): Body<Authorize>,
) -> Answered<ReplicaServer> {
    let pattern = pattern(&wanted.pattern)?;
    let group = wanted.group.as_deref().map(str::parse).transpose();
    let group = group.map_err(|error| {
        let error: replica::authorization::ParseGroupError = error;
        Problem::new(Code::Invalid, "trust group", error.to_string(), "")
    })?;
    let mut entry = Entry {
        pattern,
        group,
        limit: wanted.limit,
        store: None,
        copies: wanted.copies,
    };
    let store = match wanted.store {
        Some(path) => found_or_made(&host, path).await?,
        None => None,
    };
    change(&host, move |kept| {
        entry.store = list(kept, store)?;
        // An entry that counted for nothing would be taken for one that does.
        kept.rules.admits = Admits::Authorized;
        put(&mut kept.rules, entry)
    })
    .await
}

pub(super) async fn deny(
    State(host): State<Arc<Host>>,
    Path(given): Path<String>,
) -> Answered<ReplicaServer> {
    let pattern = pattern(&given)?;
    change(&host, move |kept| {
        let entries = &mut kept.rules.entries;
        let before = entries.len();
        entries.retain(|entry| entry.pattern != pattern);
        if entries.len() == before {
            return Err(Problem::new(
                Code::NotFound,
                format!("authorization `{pattern}`"),
                "does not exist on this host",
                "`pollux replica authorizations` lists them",
            ));
        }
        Ok(())
    })
    .await
}

/// The store that a person means; none: the default one. Made if it is none yet.
async fn found_or_made(host: &Arc<Host>, path: PathBuf) -> Result<Option<Known>, Refusal> {
    if path == host.layout.replicas() {
        return Ok(None);
    }
    let host = Arc::clone(host);
    blocking(move || stores::add(&path, &host.layout, host.name(), &known(&host)).map(Some)).await
}

/// The stores that the settings name or that twins lie in.
fn known(host: &Host) -> Vec<Known> {
    let mut known = host.server.get().stores;
    for vm in host.vms() {
        let place = vm.view().home.place;
        let volume = place.volume().map(|volume| volume.known().clone());
        known.extend(volume.filter(|one| !known.contains(one)));
    }
    known
}

/// Puts a store among those that the settings list; tells how rules name it.
fn list(kept: &mut Kept, store: Option<Known>) -> Result<Option<PathBuf>, Problem> {
    let Some(store) = store else { return Ok(None) };
    let other = |one: &&Known| (one.path == store.path) != (one.id == store.id);
    if let Some(other) = kept.stores.iter().find(other) {
        let thing = format!("replica store {}", store.path.display());
        let reason = format!("was changed meanwhile: {} is listed", other.path.display());
        return Err(Problem::new(Code::Conflict, thing, reason, "Try again"));
    }
    if !kept.stores.contains(&store) {
        kept.stores.push(store.clone());
    }
    Ok(Some(store.path))
}

/// Lists no store any more that no rule names. Its twins know it all the same.
fn unlist(kept: &mut Kept) {
    let rules = &kept.rules;
    let named = |store: &Known| {
        let mut own = rules
            .entries
            .iter()
            .filter_map(|entry| entry.store.as_ref());
        own.any(|path| *path == store.path) || rules.store.as_ref() == Some(&store.path)
    };
    kept.stores.retain(named);
}

/// Adds an entry, or puts it in the place of its pattern's.
fn put(rules: &mut Rules, entry: Entry) -> Result<(), Problem> {
    let mut entries = rules.entries.iter_mut();
    if let Some(same) = entries.find(|one| one.pattern == entry.pattern) {
        *same = entry;
    } else if rules.entries.len() < MAX_ENTRIES {
        rules.entries.push(entry);
        rules.entries.sort_by(|a, b| a.pattern.cmp(&b.pattern));
    } else {
        return Err(Problem::new(
            Code::Invalid,
            format!("authorization `{}`", entry.pattern),
            format!("would be one more than the {MAX_ENTRIES} that there may be"),
            "Authorize a domain (`*.example.com`), or deny what is not needed",
        ));
    }
    Ok(())
}

/// Changes the settings durably, and lets the endpoint follow.
async fn change(
    host: &Arc<Host>,
    change: impl FnOnce(&mut Kept) -> Result<(), Problem> + Send + 'static,
) -> Answered<ReplicaServer> {
    let changed = Arc::clone(host);
    let change = |kept: &mut Kept| change(kept).map(|()| unlist(kept));
    blocking(move || changed.server.change(change)).await?;
    host.follow_endpoint();
    host.endpoint.settled().await;
    told(host).await
}

fn address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse().map_err(|_error| {
        Problem::new(
            Code::Invalid,
            format!("address `{}`", text.chars().take(100).collect::<String>()),
            "is no IP address with a port",
            "Give one, such as `0.0.0.0:8443` or `[::]:8443`",
        )
    })
}

fn pattern(text: &str) -> Result<Pattern, Refusal> {
    text.parse().map_err(|error| {
        let error: replica::authorization::ParsePatternError = error;
        let way_out = "`pollux replica server enable --allow-any` lets every trusted host in";
        Problem::new(Code::Invalid, "authorization", error.to_string(), way_out).into()
    })
}

fn authorization(host: &Host, entry: Entry) -> Authorization {
    Authorization {
        pattern: entry.pattern.to_string(),
        store: entry
            .store
            .or_else(|| host.server.get().rules.store)
            .unwrap_or_else(|| host.layout.replicas()),
        group: entry.group.map(|group| group.to_string()),
        limit: entry.limit,
        copies: entry.copies,
    }
}

/// The stores, the default one first. Blocking.
fn tell_stores(host: &Host, rules: &Rules) -> Vec<ReplicaStore> {
    let twins = host.vms().into_iter().filter(|vm| vm.store.is_some());
    let places: Vec<_> = twins.map(|vm| vm.view().home.place).collect();
    let count = |test: &dyn Fn(Option<&Known>) -> bool| {
        let volumes = places.iter().map(|place| place.volume());
        let there = volumes.filter(|volume| test(volume.map(|volume| volume.known())));
        u64::try_from(there.count()).unwrap_or(u64::MAX)
    };
    let store = |path: &path::Path, default, twins, problem: Option<Problem>| {
        let space = match problem {
            Some(_) => None,
            None => room::space(path).ok(),
        };
        ReplicaStore {
            path: path.to_owned(),
            default,
            twins,
            total: space.map(|(total, _)| Bytes(total)),
            free: space.map(|(_, free)| Bytes(free)),
            problem,
        }
    };
    let own = host.layout.replicas();
    let mut all = vec![store(
        &own,
        rules.store.is_none(),
        count(&|known| known.is_none()),
        None,
    )];
    all.extend(known(host).into_iter().map(|known| {
        let default = rules.store.as_ref() == Some(&known.path);
        let twins = count(&|one| one == Some(&known));
        let problem = host.stores.get(&known).check().err();
        store(&known.path, default, twins, problem)
    }));
    all
}

fn tell(host: &Host) -> ReplicaServer {
    let kept = host.server.get();
    let (listening, problem) = match host.endpoint.now() {
        Listening::No => (false, None),
        Listening::At { .. } => (true, None),
        Listening::Refused { problem, .. } => (false, Some(problem)),
    };
    let twins = host.vms().into_iter().filter_map(|vm| {
        let view = vm.view();
        let relation = view
            .relation
            .filter(|_| view.standing.role == Role::Replica)?;
        let denied = kept.rules.admit(&relation.partner).err()?;
        Some(Unreceived {
            vm: vm.id,
            name: view.home.spec.name,
            problem: denied.problem(&relation.partner, host.name()),
            peer: relation.partner,
        })
    });
    ReplicaServer {
        enabled: kept.rules.enabled,
        admits: match kept.rules.admits {
            Admits::Any => api::Admits::Any,
            Admits::Authorized => api::Admits::Authorized,
        },
        listen: host.listens_at().to_string(),
        listening,
        problem,
        stores: tell_stores(host, &kept.rules),
        authorizations: u64::try_from(kept.rules.entries.len()).unwrap_or(u64::MAX),
        unreceived: twins.collect(),
    }
}
