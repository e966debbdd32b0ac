//! A VM's serial port: live, and what it wrote.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper_util::rt::TokioIo;
use model::{Code, Problem};
use tokio::io::{AsyncReadExt, AsyncSeekExt, copy_bidirectional};
use tokio::net::UnixStream;

use super::Refusal;
use crate::host::Host;

/// The end of a serial log that is shown, in bytes.
const MAX_LOG: u64 = 16 << 20;

pub(super) async fn attach(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
    mut request: Request,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let view = vm.view();
    let refuse = |code, reason: &str, way_out: &str| -> Refusal {
        Problem::new(code, view.thing(), reason, way_out).into()
    };
    let wanted = request.headers().get(header::UPGRADE);
    if wanted.is_none_or(|protocol| protocol.as_bytes() != api::CONSOLE_PROTOCOL.as_bytes()) {
        let reason = "its console needs an upgrade of the connection";
        return Err(refuse(Code::Invalid, reason, "Use `pollux vm console`"));
    }
    let machine = view.home.machine.as_ref().filter(|_| view.guest.is_some());
    let Some(machine) = machine else {
        return Err(refuse(
            Code::Conflict,
            "does not run, so it has no console",
            "`pollux vm console NAME --log` shows what it wrote",
        ));
    };
    let Ok(only) = Arc::clone(&vm.console).try_lock_owned() else {
        return Err(refuse(
            Code::Conflict,
            "has its console open elsewhere",
            "Leave that one first, with Ctrl-]",
        ));
    };
    let socket = vm.supervisor.qemu_paths(machine).console;
    let mut serial = UnixStream::connect(&socket)
        .await
        .map_err(|error| Problem::failed(view.thing(), &error))?;
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        if let Ok(upgraded) = upgrade.await {
            // It ends when either side goes away; that is no error.
            let _ = copy_bidirectional(&mut TokioIo::new(upgraded), &mut serial).await;
        }
        drop(only);
    });
    Ok((
        StatusCode::SWITCHING_PROTOCOLS,
        [
            (header::CONNECTION, "upgrade"),
            (header::UPGRADE, api::CONSOLE_PROTOCOL),
        ],
    )
        .into_response())
}

pub(super) async fn log(
    State(host): State<Arc<Host>>,
    Path(vm): Path<String>,
) -> Result<Response, Refusal> {
    let vm = host.find(&vm)?;
    let view = vm.view();
    let failed = |error: std::io::Error| Problem::failed(view.thing(), &error);
    let Some(machine) = &view.home.machine else {
        let reason = "is a twin that never ran on this host";
        let way_out = "Fail it over to start it here";
        return Err(Problem::new(Code::Conflict, view.thing(), reason, way_out).into());
    };
    let mut text = Vec::new();
    match tokio::fs::File::open(vm.supervisor.qemu_paths(machine).serial_log).await {
        Ok(mut file) => {
            let len = file.metadata().await.map_err(failed)?.len();
            let start = len.saturating_sub(MAX_LOG);
            file.seek(std::io::SeekFrom::Start(start))
                .await
                .map_err(failed)?;
            file.take(MAX_LOG)
                .read_to_end(&mut text)
                .await
                .map_err(failed)?;
        }
        // It was never started.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error).into()),
    }
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from(text)).into_response())
}
