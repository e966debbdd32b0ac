//! Routes of recovery points.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use api::{
    DamagedFile, ExportPoint, ExportedDisk, JobLine, LockPoint, OpenDisk, OpenPoint, OpenedPoint,
    Point, Progress, VerifiedReplica,
};
use axum::Json;
use axum::extract::{Path, State};
use axum::response::Response;
use journal::PointInfo;
use model::{Bytes, Code, PointId, Problem};
use tokio::sync::mpsc;

use super::body::{Json as Body, lines};
use super::hosts::blocking;
use super::{Answered, Refusal};
use crate::host::Host;
use crate::twin::{LOST, Lost, Store, not_a_twin};
use crate::vm::folder::Made;
use crate::vm::opened::{Opened, Wanted};
use crate::vm::{Home, Vm, export};

/// Of a verification is told whenever so much more was read.
const TOLD: u64 = 16 << 20;

pub(super) async fn list(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Answered<Vec<Point>> {
    let store = store_of(&host.find(&vm)?)?;
    let opened = store.opened.list();
    let points = blocking(move || store.points()).await?;
    let told = points.into_iter().map(|point| tell(point, &opened));
    Ok(Json(told.collect()))
}

fn tell(point: PointInfo, opened: &[Opened]) -> Point {
    let open = opened.iter().find(|one| one.point == point.id);
    Point {
        id: point.id,
        time: point.time,
        consistency: point.consistency,
        size: if point.in_base {
            Bytes(0)
        } else {
            point.file_len
        },
        pinned: !point.pins.is_empty(),
        open: open.map(disks).unwrap_or_default(),
        locked: point.locked,
    }
}

/// The journal of a twin.
pub(super) fn store_of(vm: &Vm) -> Result<Store, Problem> {
    vm.store.clone().ok_or_else(|| not_a_twin(&vm.view()))
}

pub(super) fn disks(opened: &Opened) -> Vec<OpenDisk> {
    let disks = opened.folder.spec.disks.iter();
    let told = disks.map(|disk| {
        let socket = opened.socket(disk);
        OpenDisk {
            slot: disk.slot,
            id: disk.id,
            size: disk.size,
            uri: OpenDisk::uri_of(&socket),
            socket,
        }
    });
    told.collect()
}

/// A twin and one of its points, or what this host wrote and never sent.
struct At {
    vm: Vm,
    store: Store,
    /// Where it is looked into.
    home: Home,
    point: PointId,
}

impl At {
    async fn find(host: &Host, vm: &str, point: String) -> Result<Self, Refusal> {
        let vm = host.find(vm)?;
        let (store, home) = (store_of(&vm)?, vm.view().home);
        let Lost { store, home, point } = blocking(move || match &*point {
            LOST => store.lost(&home.path),
            named => {
                let point = store.find(named)?;
                Ok(Lost { store, home, point })
            }
        })
        .await?;
        Ok(Self {
            vm,
            store,
            home,
            point,
        })
    }

    async fn open(
        &self,
        host: &Arc<Host>,
        disk: Option<&str>,
        made: Made,
    ) -> Result<Opened, Problem> {
        let wanted = Wanted {
            point: self.point,
            disk,
            made,
        };
        let opened = self
            .store
            .opened
            .open(host, &self.store, &self.home, wanted);
        opened.await
    }
}

pub(super) async fn open(
    State(host): State<Arc<Host>>,
    Path((vm, point)): Path<(String, String)>,
    Body(wanted): Body<OpenPoint>,
) -> Answered<OpenedPoint> {
    let at = At::find(&host, &vm, point).await?;
    // It is opened or not, whether whoever asked waits for it or goes away.
    let opening = tokio::spawn(async move {
        let opened = at.open(&host, wanted.disk.as_deref(), Made::Open).await?;
        Ok::<_, Problem>(OpenedPoint {
            point: opened.point,
            disks: disks(&opened),
        })
    });
    let failed = |error| Problem::failed("polluxd", &error);
    Ok(Json(opening.await.map_err(failed)??))
}

pub(super) async fn close(
    State(host): State<Arc<Host>>,
    Path((vm, point)): Path<(String, String)>,
) -> Answered<()> {
    let At {
        vm, store, point, ..
    } = At::find(&host, &vm, point).await?;
    let mut opened = store.opened.list().into_iter();
    let opened = opened.find(|one| one.point == point).ok_or_else(|| {
        let thing = format!("point {point} of {}", vm.view().thing());
        let way_out = "`pollux point list` shows which are";
        Problem::new(Code::Conflict, thing, "is not open", way_out)
    })?;
    let closing = tokio::spawn(async move { store.opened.close(&store, &opened).await });
    let failed = |error| Problem::failed("polluxd", &error);
    closing.await.map_err(failed)??;
    Ok(Json(()))
}

pub(super) async fn lock(
    State(host): State<Arc<Host>>,
    Path((vm, point)): Path<(String, String)>,
    Body(wanted): Body<LockPoint>,
) -> Answered<Point> {
    // Of the twin's own: what was never sent is kept until a person drops it.
    let store = store_of(&host.find(&vm)?)?;
    let journal = store.clone();
    let point = blocking(move || journal.find(&point)).await?;
    let opened = store.opened.list();
    let locked = blocking(move || {
        store.lock_point(point, wanted.until)?;
        let points = store.points()?;
        Ok(points.into_iter().find(|one| one.id == point))
    });
    let locked = locked.await?.expect("it is locked, so it is there");
    tracing::info!(vm, %point, until = %wanted.until, "locked");
    Ok(Json(tell(locked, &opened)))
}

pub(super) async fn export(
    State(host): State<Arc<Host>>,
    Path((vm, point)): Path<(String, String)>,
    Body(wanted): Body<ExportPoint>,
) -> Result<Response, Refusal> {
    let at = At::find(&host, &vm, point).await?;
    // Refused before the work begins.
    match &wanted.disk {
        Some(_) => export::check(&wanted.to)?,
        None => export::check_folder(&wanted.to)?,
    }
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let done = match at.open(&host, wanted.disk.as_deref(), Made::Export).await {
            Ok(opened) => {
                let done = run_export(&at, &opened, &wanted, &told).await;
                if let Err(problem) = at.store.opened.close(&at.store, &opened).await {
                    tracing::error!(%problem, "an export is left behind until polluxd starts");
                }
                done
            }
            Err(problem) => Err(problem),
        };
        let line = match done {
            Ok(exported) => JobLine::Done(exported),
            Err(problem) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

/// Every hash of the journal, while points are taken in and merged.
pub(super) async fn verify(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Result<Response, Refusal> {
    let store = store_of(&host.find(&vm)?)?;
    let (told, progress) = mpsc::channel(4);
    tokio::spawn(async move {
        let teller = told.clone();
        let done = blocking(move || run_verify(&store, &teller)).await;
        let line = match done {
            Ok(verified) => JobLine::Done(verified),
            Err(Refusal(problem)) => JobLine::Failed(problem),
        };
        // Fails only when whoever asked went away.
        let _ = told.send(line).await;
    });
    Ok(lines(progress))
}

fn run_verify(
    store: &Store,
    told: &mpsc::Sender<JobLine<VerifiedReplica>>,
) -> Result<VerifiedReplica, Problem> {
    let verify = store.with(|journal| Ok(journal.verify()))?;
    let mut next = 0;
    let report = verify.run(&mut |now| {
        if now.done.0 < next && !told.is_closed() {
            return ControlFlow::Continue(());
        }
        next = now.done.0 + TOLD;
        let progress = Progress {
            what: "verifying".to_owned(),
            done: now.done,
            total: now.total,
        };
        match told.blocking_send(JobLine::Progress(progress)) {
            Ok(()) => ControlFlow::Continue(()),
            // Nobody wants to know.
            Err(_) => ControlFlow::Break(()),
        }
    });
    let report = report.map_err(|error| Problem::failed(store.thing(), &error))?;
    let damage = report.damage.into_iter().map(|damage| DamagedFile {
        file: store.folder().join(&damage.file),
        what: Problem::failed("", &damage.fault).reason,
        more: damage.more,
        points: damage.points,
    });
    let verified = VerifiedReplica {
        read: report.read,
        damage: damage.collect(),
    };
    if !verified.damage.is_empty() {
        tracing::error!(twin = store.thing(), damage = ?verified.damage, "damaged");
    }
    let damage = damaged(store.thing(), &verified.damage);
    store.place().note_trouble(|noted| noted.damage = damage);
    Ok(verified)
}

/// Damage as the health of the twin tells it.
fn damaged(twin: &str, damage: &[DamagedFile]) -> Option<Problem> {
    let first = damage.first()?;
    let more = match damage.len() {
        1 => String::new(),
        n => format!(", and {} more files", n - 1),
    };
    let file = first.file.display();
    Some(Problem::new(
        Code::Failed,
        twin,
        format!("has a damaged journal: {file}: {}{more}", first.what),
        "`pollux replica verify` tells which points are hit; look at the disk that it lies on, and \
         verify again",
    ))
}

/// All files get their names when all are whole.
async fn run_export(
    at: &At,
    opened: &Opened,
    wanted: &ExportPoint,
    told: &mpsc::Sender<JobLine<Vec<ExportedDisk>>>,
) -> Result<Vec<ExportedDisk>, Problem> {
    let twin = at.vm.view().thing();
    let disks = &opened.folder.spec.disks;
    let sources = disks.iter().map(|disk| {
        let file = match &wanted.disk {
            Some(_) => wanted.to.clone(),
            None => {
                let name = format!("disk{}.{}", disk.slot, wanted.format);
                wanted.to.join(name)
            }
        };
        let source = export::Source {
            thing: format!("disk {} of point {} of {twin}", disk.slot, opened.point),
            socket: opened.socket(disk),
            export: "disk".to_owned(),
            size: disk.size,
        };
        (source, file)
    });
    let sources: Vec<(export::Source, PathBuf)> = sources.collect();
    for (_, file) in &sources {
        export::check(file)?;
    }
    let (format, told) = (wanted.format, told.clone());
    let total = Bytes(disks.iter().map(|disk| disk.size.0).sum());
    let exported = blocking(move || {
        let (mut whole, mut before) = (Vec::new(), 0);
        for (source, file) in &sources {
            let one = export::run(source, file, format, |progress| {
                let done = Bytes(before + progress.done.0);
                let progress = Progress {
                    done,
                    total,
                    ..progress
                };
                told.blocking_send(JobLine::Progress(progress)).is_ok()
            })?;
            whole.push(one);
            before += source.size.0;
        }
        export::publish(&whole)
    });
    exported.await.map_err(|Refusal(problem)| problem)
}
