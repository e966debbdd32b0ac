//! The replica endpoint: polluxd as the host of other hosts' twins.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use api::{EventKind, Severity};
use jiff::Timestamp;
use journal::{Header, Journal, NoRoom, Room};
use model::{Bytes, Code, DiskId, Keep, Lineage, Problem, RelationshipId, VmId, VmState};
use replica::authorization::Content;
use replica::host::{Principal, Relation, ReplicaHost, Shelf};
use replica::standing::Role;
use replica::tls::ServerConfig;
use replica::wire::{
    Configure, Enrol, LeaseAnswer, LeaseRequest, PartnerStanding, Reception, Reverse, Reversed,
};
use tokio::net::TcpListener;

use crate::event::Draft;
use crate::filling::Copy;
use crate::host::Host;
use crate::measure::Receipt;
use crate::twin::{self, device_of};
use crate::vm::branch::Branch;
use crate::vm::{self, Home, Message, Vm};

/// How peers are talked to.
///
/// # Errors
/// This host cannot show a certificate.
pub(crate) fn config(host: &Host) -> Result<Arc<ServerConfig>, Problem> {
    replica::tls::server_config(&host.identity, Arc::clone(&host.trust))
        .map_err(|error| Problem::failed("the certificate of this host", &error))
}

/// Serves peers until `shutdown`.
pub(crate) async fn serve(
    host: Arc<Host>,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    shutdown: impl Future<Output = ()>,
) {
    let trust = Arc::clone(&host.trust);
    let limits = replica::tls::Limits::default();
    let router = replica::receiver::router(Arc::new(Twins(host)));
    replica::tls::serve(listener, config, trust, router, limits, shutdown).await;
}

struct Twins(Arc<Host>);

impl Twins {
    fn vm(&self, id: VmId) -> Result<Vm, Problem> {
        self.0.vm(id).ok_or_else(|| {
            Problem::new(
                Code::NotFound,
                format!("VM {id}"),
                "does not exist on this host",
                "",
            )
        })
    }

    /// Most space for the twins of `peer`: what its authorization says, else what was said when it
    /// was trusted.
    fn limit(&self, peer: &str) -> Option<Bytes> {
        let authorized = self.0.server.rules(|rules| {
            let entry = rules.admit(peer).ok().flatten();
            entry.and_then(|entry| entry.limit)
        });
        let trusted = || self.0.trust.get(peer).ok();
        authorized.or_else(|| trusted().and_then(|trusted| trusted.known.peer.store_limit))
    }

    /// The answer to an enrolment of a VM that this host has: it may be the same again.
    fn enrolled_already(
        &self,
        principal: &Principal,
        vm: VmId,
        enrol: &Enrol,
    ) -> Result<(), Problem> {
        let view = self.vm(vm)?.view();
        let same = view.relation.as_ref().is_some_and(|relation| {
            relation.id == enrol.relationship && relation.partner == principal.name
        });
        if same {
            return Ok(());
        }
        let reason = format!("exists already on host `{}`", self.0.name());
        let way_out = format!(
            "`pollux vm delete {}` there deletes it, if it is not wanted any more",
            view.home.spec.name
        );
        Err(Problem::new(Code::Conflict, view.thing(), reason, way_out))
    }

    /// What the twin is to be filled from, if the primary `asks` for that and may.
    fn copy(&self, asks: &str, enrol: &Enrol) -> Result<Option<Copy>, Problem> {
        let Some(name) = &enrol.seed_from else {
            return Ok(None);
        };
        let (host, thing) = (&self.0, format!("VM `{name}`"));
        let allowed = host
            .server
            .rules(|rules| rules.may_read(asks, Content::Own(name)));
        let found = host
            .vms()
            .into_iter()
            .find(|vm| vm.view().home.spec.name == *name);
        // Whoever may not read it is not told whether it is there.
        let Some(vm) = found.filter(|_| allowed) else {
            let reason = format!(
                "is no VM of host `{}` from which twins of host `{asks}` may be filled",
                host.name()
            );
            let way_out = format!(
                "If it is there, `pollux replica authorize {asks} --copy {name}` there allows it"
            );
            return Err(Problem::new(Code::Forbidden, thing, reason, way_out));
        };
        let view = vm.view();
        let refuse = |reason: &str, way_out: &str| {
            let reason = format!("{reason} on host `{}`", host.name());
            Err(Problem::new(Code::Conflict, &thing, reason, way_out))
        };
        let machine = match &view.home.machine {
            Some(machine) if view.standing.role == Role::Primary && machine.origin.is_none() => {
                machine
            }
            _ => {
                let way_out = "`pollux point export` makes disks of one of its points there, and \
                               `pollux vm create --image` a VM of those";
                return refuse("is a twin, or lies above a point of one,", way_out);
            }
        };
        if let Some(relation) = &view.relation {
            let reason = format!("is replicated with host `{}`", relation.partner);
            return refuse(&reason, "End that there first with `pollux replica remove`");
        }
        if view.state != VmState::Off {
            return refuse("runs", "Stop it there first with `pollux vm stop`");
        }
        if !machine.spec.checkpoints.is_empty() {
            return refuse("has checkpoints", "Delete or apply them there first");
        }
        let of_id = |id: &DiskId| enrol.spec.disks.iter().find(|disk| disk.id == *id).cloned();
        let wanted: Vec<_> = enrol.disks.iter().filter_map(of_id).collect();
        match Copy::of(name, &machine.path, &machine.spec.disks, &wanted) {
            Ok(copy) => Ok(Some(copy)),
            Err(disk) => {
                let file = wanted.iter().find(|one| one.id == disk);
                let file = file.map(|one| one.file.display().to_string());
                let reason = format!(
                    "has no disk that would be the copy of `{}`: none of that name, and not as many",
                    file.unwrap_or_default()
                );
                refuse(&reason, "Choose other ones with `--disks`, or another copy")
            }
        }
    }

    /// The journals of the twins of `partner` but `this` one's.
    fn stores_of(&self, partner: Option<&str>, this: Option<VmId>) -> Vec<twin::Store> {
        let others = self.0.vms().into_iter();
        others
            .filter(|other| Some(other.id) != this)
            .filter(|other| {
                let relation = other.view().relation;
                relation.map(|relation| relation.partner).as_deref() == partner
            })
            .filter_map(|other| other.store)
            .collect()
    }

    fn store(&self, id: VmId) -> Result<(Vm, twin::Store), Problem> {
        let vm = self.vm(id)?;
        match vm.store.clone() {
            Some(store) => Ok((vm, store)),
            None => {
                let reason = "is no replica on this host";
                Err(Problem::new(Code::Conflict, vm.view().thing(), reason, ""))
            }
        }
    }

    async fn make_twin(
        &self,
        principal: &Principal,
        vm: VmId,
        enrol: Enrol,
    ) -> Result<(), Problem> {
        let host = &self.0;
        if enrol.spec.id != vm {
            let reason = "names two VMs";
            return Err(Problem::new(Code::Invalid, "the request", reason, ""));
        }
        // Held until the twin is among the VMs of this host.
        let Some(_reserved) = host.reserve_twin(vm, &enrol.spec.name)? else {
            return self.enrolled_already(principal, vm, &enrol);
        };
        let copy = self.copy(&principal.name, &enrol)?;
        let (limit, others) = (
            self.limit(&principal.name),
            self.stores_of(Some(&principal.name), None),
        );
        let spec = enrol.spec.clone();
        let (making, partner) = (Arc::clone(host), principal.name.clone());
        let made = tokio::task::spawn_blocking(move || {
            let into = twin::Into {
                replicas: &making.layout.replicas(),
                stores: &making.stores,
                volume: making.server.store(&partner, &making.stores)?,
            };
            if let Some(copy) = &copy {
                let said = limit.map(|limit| (partner.clone(), limit));
                let volume = into.volume.as_ref().map(|volume| volume.path());
                let folder = volume.unwrap_or(into.replicas).to_owned();
                admit_copy(&making, vm, copy, said.as_ref(), &others, &folder)?;
            }
            // Of a twin whose folder somebody removed by hand.
            making.stamps.forget(vm).map_err(|error| {
                Problem::failed(crate::vm::folder::thing(enrol.spec.name.as_str()), &error)
            })?;
            twin::make(&into, &partner, &enrol, copy.as_ref())
        });
        let (path, place) = made
            .await
            .map_err(|error| Problem::failed("polluxd", &error))??;
        let name = spec.name.to_string();
        let home = Home {
            path,
            place,
            spec,
            machine: None,
        };
        // Before anybody sees it and tells how it is.
        let what = format!("is received from host `{}`", principal.name);
        let draft = Draft::new(EventKind::Enabled, Severity::Info, &name, what);
        host.events.record(draft.about(vm));
        let twin = host.open_home(home).await?;
        // There is nothing yet, and what is begun from now on is nobody's leftover.
        host.adopt_points(&twin).await;
        tracing::info!(%vm, peer = principal.name, "is received from now on");
        Ok(())
    }

    /// It is told on the other host: that room is lacking here must be said.
    fn of_this_host(&self, problem: Problem) -> Problem {
        let name = self.0.name();
        if problem.code != Code::Full || problem.way_out.contains(name) {
            return problem;
        }
        let way_out = format!("Make room on host `{name}`");
        Problem { way_out, ..problem }
    }
}

impl ReplicaHost for Twins {
    type Receipts = Journal;

    fn name(&self) -> &str {
        self.0.name()
    }

    fn admits(&self, principal: &Principal) -> Result<(), Problem> {
        let (asks, host) = (&principal.name, self.0.name());
        self.0.server.rules(|rules| match rules.admit(asks) {
            Ok(_) => Ok(()),
            Err(denied) => {
                let problem = denied.problem(asks, host);
                self.0.events.refused(asks, &problem);
                Err(problem)
            }
        })
    }

    async fn enrol(&self, principal: &Principal, vm: VmId, enrol: Enrol) -> Result<(), Problem> {
        let made = self.make_twin(principal, vm, enrol).await;
        made.map_err(|problem| self.of_this_host(problem))
    }

    async fn reverse(
        &self,
        principal: &Principal,
        vm: VmId,
        reverse: Reverse,
    ) -> Result<Reversed, Problem> {
        let found = self.vm(vm)?;
        let view = found.view();
        let known = view.relation.as_ref();
        let known = known.filter(|_| view.standing.role == Role::Replica);
        if let Some(known) = known.filter(|known| known.id == reverse.enrol.relationship) {
            if known.seed != reverse.enrol.seed {
                let reason = "is the replica already, for an earlier request that came late";
                let way_out = format!(
                    "`pollux failover cancel {}` there takes that back; then ask again",
                    view.home.spec.name
                );
                return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out));
            }
            // Asked again.
            let branch = blocking(move || Branch::read(&view.home.place)).await?;
            let differs = branch.and_then(|(branch, _)| branch.differs());
            return Ok(Reversed { differs });
        }
        let name = &reverse.enrol.spec.name;
        // Held until the name is seen as the twin's.
        let _name = match view.home.spec.name == *name {
            true => None,
            false => Some(self.0.reserve(name)?),
        };
        let name = name.to_string();
        let ask = |answer| Message::Turn {
            asked: Box::new(reverse),
            answer,
        };
        let (home, reversed) = found.ask(ask).await?;
        let opened = self.0.open_twin(&home).await;
        self.0.leave_out(&home, opened.clone());
        opened?;
        tracing::info!(%vm, peer = principal.name, "is received from now on: it was taken over there");
        let what = format!(
            "became the replica of host `{}`, which had taken it over",
            principal.name
        );
        let draft = Draft::new(EventKind::Enabled, Severity::Warning, &name, what);
        self.0.events.record(draft.about(vm));
        Ok(reversed)
    }

    async fn configure(&self, vm: VmId, wanted: Configure) -> Result<(), Problem> {
        let ask = |answer| Message::Follow {
            wanted: Box::new(wanted),
            answer,
        };
        let followed = self.vm(vm)?.ask(ask).await;
        followed.map_err(|problem| self.of_this_host(problem))
    }

    async fn cancel(&self, vm: VmId) -> Result<(), Problem> {
        let ask = |answer| Message::Cancelled { answer };
        self.vm(vm)?.ask(ask).await
    }

    async fn relation(&self, vm: VmId) -> Option<Relation> {
        let vm = self.0.vm(vm)?;
        let view = vm.view();
        let thing = view.thing();
        let relation = view.relation?;
        let reception = received(&vm, &relation);
        // A replica hears of no other one than that in which it is fed.
        let earlier = match view.standing.role {
            Role::Replica => Vec::new(),
            Role::Primary | Role::FailedOver => relation.earlier.clone(),
        };
        Some(Relation {
            id: relation.id,
            earlier,
            thing,
            partner: relation.partner,
            role: view.standing.role,
            reception,
            incoming: view.home.place.journal().join(Journal::INCOMING),
        })
    }

    fn reception(&self, vm: VmId, id: RelationshipId) -> Option<Reception> {
        let vm = self.0.vm(vm)?;
        let relation = vm.view().relation?;
        (relation.id == id).then(|| received(&vm, &relation))
    }

    async fn contact(
        &self,
        vm: VmId,
        theirs: &Lineage,
        opened: Option<Timestamp>,
    ) -> Result<PartnerStanding, Problem> {
        let theirs = theirs.clone();
        let ask = |answer| Message::Contact {
            theirs,
            opened,
            answer,
        };
        self.vm(vm)?.ask(ask).await
    }

    async fn lease(
        &self,
        vm: VmId,
        theirs: &Lineage,
        asked: LeaseRequest,
    ) -> Result<LeaseAnswer, Problem> {
        let theirs = theirs.clone();
        let ask = |answer| Message::Lease {
            theirs,
            asked,
            answer,
        };
        self.vm(vm)?.ask(ask).await
    }

    async fn stand_down(&self, vm: VmId, asked: &Lineage) -> Result<(), Problem> {
        let asked = asked.clone();
        let ask = |answer| Message::StandDown { asked, answer };
        self.vm(vm)?.ask(ask).await
    }

    async fn admit(&self, vm: VmId, header: &Header, len: u64, held: u64) -> Result<(), Problem> {
        let (vm, store) = self.store(vm)?;
        let view = vm.view();
        let partner = view
            .relation
            .as_ref()
            .map(|relation| relation.partner.clone());
        let limit = partner.as_ref().and_then(|partner| self.limit(partner));
        let said = partner.clone().zip(limit);
        let others = self.stores_of(partner.as_deref(), Some(vm.id));
        let reserve = self.0.settings.store_reserve;
        let host = Arc::clone(&self.0);
        let place = view.home.place.clone();
        let keep = kept_points(&self.0, &vm);
        let full_store = store.clone();
        let checked = tokio::task::spawn_blocking(move || {
            let limit = limit.map(|limit| remaining(limit, &others)).transpose()?;
            let fits = || {
                store.with(|journal| {
                    // What is promised to one is not there for the next.
                    let _alone = host
                        .admitting
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    let room = Room {
                        limit,
                        reserve,
                        owed: owed_beside(&host, vm.id, store.folder()),
                    };
                    let fits = journal.would_fit(Bytes(len), Bytes(held), room);
                    if let Ok(owes) = &fits {
                        store.owe(*owes)?;
                    }
                    Ok(fits.map(drop))
                })
            };
            let mut fitting = fits()?;
            if matches!(fitting, Err(NoRoom::Free { .. })) {
                count_debts(&host, store.folder());
                fitting = fits()?;
            }
            fitting.map_err(|error| {
                let mut way_out = no_room(host.name(), said.as_ref());
                // What cannot be told is no way out.
                if let Ok(Some(held)) = store.held_back(&keep) {
                    let vm = &view.home.spec.name;
                    way_out.push_str(&format!(
                        ". `pollux failover lost-writes {vm} --drop` there gives up what it wrote and never \
                         sent, for whose sake {held} of older points are kept"
                    ));
                }
                Problem {
                    code: Code::Full,
                    way_out,
                    ..Problem::failed(view.thing(), &error)
                }
            })
        });
        let checked = checked
            .await
            .map_err(|error| Problem::failed("polluxd", &error))?;
        let full = checked.as_ref().err().cloned();
        let full = full.filter(|one| one.code == Code::Full);
        if full.is_some() {
            // No point comes that would begin it, and some may be too old by now, or held no more.
            let_points_go(&self.0, vm, full_store, Why::Full(header.time));
        }
        place.note_trouble(|noted| noted.full = full);
        checked
    }

    async fn shelf(&self, vm: VmId) -> Result<Shelf<Journal>, Problem> {
        let (vm, store) = self.store(vm)?;
        let opened = tokio::task::spawn_blocking(move || store.shelf(|| vm.view().standing.role));
        opened
            .await
            .map_err(|error| Problem::failed("polluxd", &error))?
    }

    fn received(&self, vm: VmId, header: &Header, file_len: u64) {
        let Ok((vm, store)) = self.store(vm) else {
            return;
        };
        let receipt = Receipt {
            len: file_len,
            cut: header.point().map(|_| header.time),
        };
        vm.observed.received(Timestamp::now(), receipt);
        tracing::debug!(vm = %vm.id, content = ?header.content, file_len, "received");
        if header.point().is_none() || vm.view().standing.role != Role::Replica {
            return;
        }
        let_points_go(&self.0, vm, store, Why::Retention);
    }

    async fn remove(&self, vm: VmId) -> Result<(), Problem> {
        let vm = self.vm(vm)?;
        vm.ask(|answer| Message::Removed { answer }).await.map(drop)
    }
}

/// Which points of a twin are kept.
pub(crate) fn kept_points(host: &Host, vm: &Vm) -> Keep {
    let wanted = vm.view().relation.and_then(|relation| relation.keep);
    wanted.unwrap_or_else(|| host.settings.keep.clone())
}

/// Why points go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    Retention,
    /// There is no room for the next one, which was cut then.
    Full(Timestamp),
}

/// Lets the others go, in the background.
pub(crate) fn let_points_go(host: &Arc<Host>, vm: Vm, store: twin::Store, why: Why) {
    let keep = kept_points(host, &vm);
    let reserve = host.settings.store_reserve;
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || {
        // It is open if a point has just come, and need not be otherwise.
        if let Err(problem) = store.shelf(|| vm.view().standing.role) {
            tracing::warn!(vm = %vm.id, %problem, "old points do not go now");
            return;
        }
        if let Err(problem) = drop_needless(&vm, &store) {
            tracing::warn!(vm = %vm.id, %problem, "its own disks are kept, which lost nothing");
        }
        let owed = owed_beside(&host, vm.id, store.folder());
        let kept = Bytes(reserve.0.saturating_add(owed.0));
        let room = match why {
            Why::Full(cut) => store.make_room(&keep, cut),
            Why::Retention => Ok(()),
        };
        let stay = room.and_then(|()| store.retain(&keep, kept)).err();
        if let Some(problem) = &stay {
            tracing::error!(vm = %vm.id, %problem, "old points do not go");
        }
        store.place().note_trouble(|noted| noted.stay = stay);
        if let Err(problem) = store.tidy() {
            tracing::warn!(vm = %vm.id, %problem, "run files are not made: points open slower");
        }
    });
}

/// What this host wrote before it was taken over from is kept no longer once there is a point, if the other
/// host has all of it. Blocking.
fn drop_needless(vm: &Vm, store: &twin::Store) -> Result<(), Problem> {
    let view = vm.view();
    if !Branch::is_needless(&view.home.place, &view.standing.lineage)? || store.points()?.is_empty()
    {
        return Ok(());
    }
    match store.drop_lost() {
        // Somebody looks into it. It is dropped with the next point.
        Err(problem) if problem.code == Code::Conflict => Ok(()),
        dropped => dropped.inspect(|()| {
            tracing::info!(vm = %vm.id, "nothing was lost: its own disks are kept no longer");
        }),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Problem::failed("polluxd", &error))?
}

/// What twins owe the file system on which `folder` lies, but the twin `this`. Blocking.
fn owed_beside(host: &Host, this: VmId, folder: &Path) -> Bytes {
    // If it is not there, whoever wants something of it tells.
    device_of(folder).map_or(Bytes(0), |device| host.owed_beside(this, device))
}

/// Finds out what twins really owe the file system on which `folder` lies: what is known of it at no cost
/// may be much more. Blocking.
fn count_debts(host: &Host, folder: &Path) {
    let Ok(device) = device_of(folder) else {
        return;
    };
    let stores = host.vms().into_iter().filter_map(|vm| vm.store);
    for store in stores.filter(|store| store.owes(device) > Bytes(0)) {
        if let Err(problem) = store.count_debt() {
            tracing::warn!(%problem, "what its points need in their base is not counted");
        }
    }
}

/// Whether there is room in `folder` for a twin that is filled from `copy`, beside the `others` of its
/// primary; `said` is what that one's twins may take. Blocking.
fn admit_copy(
    host: &Host,
    vm: VmId,
    copy: &Copy,
    said: Option<&(String, Bytes)>,
    others: &[twin::Store],
    folder: &Path,
) -> Result<(), Problem> {
    let thing = format!("VM `{}`", copy.from);
    let failed = |error: io::Error| Problem::failed(&thing, &error);
    let needed = Bytes(copy.allocated().map_err(failed)?);
    let left = said
        .map(|(_, limit)| remaining(*limit, others))
        .transpose()?;
    let stat = rustix::fs::statvfs(folder).map_err(|errno| failed(errno.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let owed = owed_beside(host, vm, folder);
    let kept = host.settings.store_reserve.0.saturating_add(owed.0);
    let free = free.saturating_sub(kept);
    let room = left.map_or(free, |left| left.0.min(free));
    if needed.0 > room {
        let reason = format!("holds {needed}, and there is room for {}", Bytes(room));
        let way_out = no_room(host.name(), said);
        return Err(Problem::new(Code::Full, &thing, reason, way_out));
    }
    Ok(())
}

/// What to do where nothing more fits on host `name`; `said` is whose twins are limited there, and to
/// what.
fn no_room(name: &str, said: Option<&(String, Bytes)>) -> String {
    let room = format!("Make room in the replica store of host `{name}`");
    match said {
        Some((peer, limit)) => format!(
            "{room}, or raise there the limit of {limit} for all twins of host `{peer}` together \
             (`--limit` of `pollux replica authorize` or `pollux host trust`)"
        ),
        None => room,
    }
}

fn received(vm: &Vm, relation: &vm::relation::Relation) -> Reception {
    Reception {
        paused: relation.suspended,
        revision: relation.revision,
        filling: vm.store.as_ref().and_then(|store| store.filling.now()),
    }
}

/// What is left of a peer's limit for one of its twins. Blocking.
fn remaining(limit: Bytes, others: &[twin::Store]) -> Result<Bytes, Problem> {
    let mut left = limit.0;
    for other in others {
        let taken = other.taken(|journal| {
            let failed = |error| Problem::failed("replica store", &error);
            let committed = journal.committed_len().map_err(failed)?;
            let incoming = incoming_len(&other.folder().join(Journal::INCOMING))
                .map_err(|error| Problem::failed("replica store", &error))?;
            Ok(committed.0.saturating_add(incoming))
        })?;
        left = left.saturating_sub(taken);
    }
    Ok(Bytes(left))
}

/// What the files that are being received in `folder` take in the file system.
fn incoming_len(folder: &Path) -> io::Result<u64> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut sum = 0_u64;
    for entry in entries {
        match entry?.metadata() {
            Ok(file) => sum = sum.saturating_add(file.blocks().saturating_mul(512)),
            // Taken in meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_as_it_was_set_and_where_only_the_disk_is_full_none_is() {
        let limited = no_room("pollux", Some(&("castor".to_owned(), Bytes(4 << 20))));
        for part in ["`pollux`", "limit of 4 MiB", "`castor`", "`--limit`"] {
            assert!(limited.contains(part), "{part}: {limited}");
        }
        assert!(!no_room("pollux", None).contains("limit"));
    }
}
