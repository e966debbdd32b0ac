//! `pollux replica server`, `authorize`, `deny`, `authorizations`.

use std::path::PathBuf;

use api::{
    Admits, Authorization, Authorize, Client, EnableReplicaServer, ReplicaServer, ReplicaStore,
    Unreceived,
};
use clap::{Args, Subcommand};
use model::{Bytes, Problem, VmName};

use crate::show::{Shown, columns, finish, list, or_dash};

#[derive(Debug, Subcommand)]
pub(crate) enum ServerVerb {
    /// Receive twins of other hosts' VMs; again, to change how
    Enable {
        /// IP address and port to listen on; unless said, as it was, at first polluxd's
        /// --replica-listen
        #[arg(long, value_name = "ADDRESS:PORT")]
        listen: Option<String>,
        /// From every trusted host, whatever authorizations say; so it is at first
        #[arg(long)]
        allow_any: bool,
        /// Folder that new twins come into unless an authorization names another; it becomes a replica
        /// store. Unless said, as it was, at first in polluxd's state folder
        #[arg(long, value_name = "FOLDER")]
        store: Option<PathBuf>,
    },
    /// Receive nothing any more; twins that are there stay, and can be started
    Disable,
    /// Whether twins are received, from whom, and where they lie
    Show,
}

#[derive(Debug, Args)]
pub(crate) struct AuthorizeArgs {
    /// Name of a trusted host, or `*.` and a domain
    pattern: String,
    /// Trust group: hosts that may be given each other's VMs, and compare with what the twins of them
    /// hold
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Most space that the twins of one such host may take here
    #[arg(long, value_name = "SIZE")]
    limit: Option<Bytes>,
    /// Folder that their new twins come into; it becomes a replica store. Unless said, the one of
    /// `pollux replica server enable --store`
    #[arg(long, value_name = "FOLDER")]
    store: Option<PathBuf>,
    /// A VM of this host from which such a host may have its twins filled (`pollux replica enable
    /// --seed-from`). By comparing it can find out what that VM holds. May be given several times
    #[arg(long = "copy", value_name = "VM")]
    copies: Vec<VmName>,
}

/// Carries out `pollux replica server`.
pub(crate) async fn server(client: &Client, verb: ServerVerb) -> Result<ReplicaServer, Problem> {
    match verb {
        ServerVerb::Enable {
            listen,
            allow_any,
            store,
        } => {
            let enable = EnableReplicaServer {
                listen,
                allow_any,
                store,
            };
            client.enable_replica_server(&enable).await
        }
        ServerVerb::Disable => client.disable_replica_server().await,
        ServerVerb::Show => client.replica_server().await,
    }
}

/// Carries out `pollux replica authorize`.
pub(crate) async fn authorize(
    client: &Client,
    args: AuthorizeArgs,
) -> Result<ReplicaServer, Problem> {
    let AuthorizeArgs {
        pattern,
        group,
        limit,
        store,
        copies,
    } = args;
    let authorize = Authorize {
        pattern,
        group,
        limit,
        store,
        copies,
    };
    client.authorize(&authorize).await
}

impl Shown for ReplicaServer {
    fn table(&self) -> String {
        let state = if self.enabled { "on" } else { "off" };
        let from = match (self.admits, self.authorizations) {
            (Admits::Any, 0) => "every trusted host".to_owned(),
            (Admits::Any, 1) => "every trusted host (1 authorization does not count)".to_owned(),
            (Admits::Any, n) => format!("every trusted host ({n} authorizations do not count)"),
            (Admits::Authorized, 0) => {
                "nobody: `pollux replica authorize` lets a host in".to_owned()
            }
            (Admits::Authorized, n) => format!("those that are authorized: {n}"),
        };
        let endpoint = match (self.listening, self.enabled) {
            (true, true) => self.listen.clone(),
            (true, false) => format!("{}, for partners of VMs of this host", self.listen),
            (false, _) => format!("{}, not open", self.listen),
        };
        let mut rows = vec![
            ("Replica server", state.to_owned()),
            ("Receives from", from),
            ("Replica endpoint", endpoint),
        ];
        rows.extend(self.stores.iter().map(|one| ("Replica store", store(one))));
        let mut text = list(rows);
        for store in &self.stores {
            if let Some(problem) = &store.problem {
                text += &format!("\n\nAway: {problem}");
            }
        }
        if let Some(problem) = &self.problem {
            text += &format!("\n\nNot open: {problem}");
        }
        for twin in &self.unreceived {
            let Unreceived {
                name,
                peer,
                problem,
                ..
            } = twin;
            text += &format!("\n\nNot received: VM `{name}` of host `{peer}`. {problem}");
        }
        text
    }
}

/// A store in one line.
fn store(store: &ReplicaStore) -> String {
    let twins = match store.twins {
        1 => "1 twin".to_owned(),
        n => format!("{n} twins"),
    };
    let space = match (store.free, store.total) {
        (Some(free), Some(total)) => format!("{free} of {total} free"),
        _ => "away".to_owned(),
    };
    let default = if store.default { ", for new twins" } else { "" };
    format!("{}: {twins}, {space}{default}", store.path.display())
}

/// Get-VMReplicationAuthorizationEntry's columns, and what it does not know.
impl Shown for Vec<Authorization> {
    fn table(&self) -> String {
        let mut table = columns(&["AllowedPS", "StorageLoc", "TrustGroup", "Limit", "Copies"]);
        for one in self {
            table.add_row([
                one.pattern.clone(),
                one.store.display().to_string(),
                or_dash(one.group.clone()),
                or_dash(one.limit),
                or_dash((!one.copies.is_empty()).then(|| {
                    let names = one.copies.iter().map(ToString::to_string);
                    names.collect::<Vec<_>>().join(", ")
                })),
            ]);
        }
        finish(&table)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_received_any_more_is_said_with_the_way_out() {
        let server = ReplicaServer {
            enabled: false,
            admits: Admits::Any,
            listen: "0.0.0.0:8443".to_owned(),
            listening: true,
            problem: None,
            stores: vec![
                ReplicaStore {
                    path: "/var/lib/pollux/replicas".into(),
                    default: true,
                    twins: 1,
                    total: Some(Bytes(4 << 30)),
                    free: Some(Bytes(1 << 30)),
                    problem: None,
                },
                ReplicaStore {
                    path: "/srv/replicas".into(),
                    default: false,
                    twins: 2,
                    total: None,
                    free: None,
                    problem: Some(Problem::new(
                        model::Code::Failed,
                        "replica store /srv/replicas of host `pollux`",
                        "is away",
                        "mount its disk",
                    )),
                },
            ],
            authorizations: 0,
            unreceived: vec![Unreceived {
                vm: model::VmId::random(),
                name: "web".parse().expect("a name"),
                peer: "castor".to_owned(),
                problem: Problem::new(
                    model::Code::Forbidden,
                    "host `pollux`",
                    "does not receive VMs: its replica server is off",
                    "run `pollux replica server enable` on `pollux`",
                ),
            }],
        };
        let text = server.table();
        for part in [
            "for partners of VMs",
            "/var/lib/pollux/replicas: 1 twin, 1 GiB of 4 GiB free, for new twins",
            "/srv/replicas: 2 twins, away",
            "Away: replica store /srv/replicas of host `pollux`: is away. Mount its disk",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let last = text.lines().last().expect("it has lines");
        assert!(
            last.starts_with("Not received: VM `web` of host `castor`."),
            "{last}"
        );
        assert!(last.contains("pollux replica server enable"), "{last}");
    }
}
