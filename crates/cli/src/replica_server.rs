//! `pollux replica server`, `authorize`, `deny`, `authorizations`.

use api::{
    Admits, Authorization, Authorize, Client, EnableReplicaServer, ReplicaServer, Unreceived,
};
use clap::{Args, Subcommand};
use model::{Bytes, Problem};

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
    /// Trust group: hosts among which VMs may move. It is recorded; Pollux does not move VMs yet
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Most space that the twins of one such host may take here
    #[arg(long, value_name = "SIZE")]
    limit: Option<Bytes>,
}

/// Carries out `pollux replica server`.
pub(crate) async fn server(client: &Client, verb: ServerVerb) -> Result<ReplicaServer, Problem> {
    match verb {
        ServerVerb::Enable { listen, allow_any } => {
            let enable = EnableReplicaServer { listen, allow_any };
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
    } = args;
    let authorize = Authorize {
        pattern,
        group,
        limit,
    };
    client.authorize(&authorize).await
}

impl Shown for ReplicaServer {
    fn table(&self) -> String {
        let state = if self.enabled { "on" } else { "off" };
        let from = match (self.admits, self.authorizations) {
            (Admits::Any, 0) => "every trusted host".to_owned(),
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
        let mut text = list(vec![
            ("Replica server", state.to_owned()),
            ("Receives from", from),
            ("Replica store", self.store.display().to_string()),
            ("Replica endpoint", endpoint),
        ]);
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

/// Get-VMReplicationAuthorizationEntry's columns, and the limit.
impl Shown for Vec<Authorization> {
    fn table(&self) -> String {
        let mut table = columns(&["AllowedPS", "StorageLoc", "TrustGroup", "Limit"]);
        for one in self {
            table.add_row([
                one.pattern.clone(),
                one.store.display().to_string(),
                or_dash(one.group.clone()),
                or_dash(one.limit),
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
            store: "/var/lib/pollux/replicas".into(),
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
        assert!(text.contains("for partners of VMs"), "{text}");
        let last = text.lines().last().expect("it has lines");
        assert!(
            last.starts_with("Not received: VM `web` of host `castor`."),
            "{last}"
        );
        assert!(last.contains("pollux replica server enable"), "{last}");
    }
}
