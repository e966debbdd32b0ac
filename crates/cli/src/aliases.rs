//! Hyper-V's commands, for hands that know them: `pollux Get-VMReplication -VMName web`.
//!
//! ```text
//!   Enable-VMReplication -VMName web -ReplicaServerName pollux
//!     --this table--> --wide replica enable --to=pollux web --clap--> as if it had been typed so
//! ```
//!
//! As in PowerShell, names of commands and parameters are read without regard to case, a parameter
//! may be cut short as long as it is clear which is meant, `-Name value` and `-Name:value` are the
//! same, and the first parameters need no name. A parameter that means nothing here is refused by its
//! own name. Our global options (`-o json`, `--socket`) may stand anywhere.

use std::ffi::OsString;

use model::{Code, Problem};

/// A command of Hyper-V.
struct Alias {
    native: &'static str,
    ours: &'static [&'static str],
    parameters: &'static [Parameter],
    /// Parameters without which it means nothing.
    needs: &'static [&'static str],
}

struct Parameter {
    name: &'static str,
    to: To,
}

/// What a parameter becomes.
#[derive(Clone, Copy)]
enum To {
    /// An argument; may be given without its name.
    Argument,
    /// An option with the same value.
    Option(&'static str),
    /// The same; may be given without its name.
    Second(&'static str),
    /// An option with a number of seconds.
    Seconds(&'static str),
    /// A switch that makes it another command.
    Instead(&'static [&'static str]),
    /// One command for `$true`, another for `$false`; may be given without its name.
    Either(&'static [&'static str], &'static [&'static str]),
    /// A switch of ours if `$true`.
    Flag(&'static str),
    /// Only this value has a meaning here, and it goes without saying.
    Only(&'static str),
    /// A switch that changes nothing here.
    Nothing,
    /// Not here; why, and what to do.
    Not(&'static str),
}

const fn parameter(name: &'static str, to: To) -> Parameter {
    Parameter { name, to }
}

const VM_NAME: Parameter = parameter("VMName", To::Argument);
const AUTHENTICATION: Parameter = parameter("AuthenticationType", To::Only("Certificate"));
const TRUST: To =
    To::Not("It is told once, with `pollux host trust NAME ADDRESS:PORT FINGERPRINT`");

/// What every command of PowerShell takes.
const COMMON: &[Parameter] = &[
    parameter("Confirm", To::Nothing),
    parameter("Passthru", To::Nothing),
    parameter("Verbose", To::Nothing),
    parameter(
        "ComputerName",
        To::Not("Run it on that host; this one knows its own side only"),
    ),
    parameter(
        "WhatIf",
        To::Not("What a command does stands in its `--help`"),
    ),
    parameter("AsJob", To::Not("Put `&` behind the command")),
];

const ALIASES: &[Alias] = &[
    Alias {
        native: "Get-VMReplication",
        ours: &["replica", "status"],
        parameters: &[VM_NAME],
        needs: &[],
    },
    Alias {
        native: "Measure-VMReplication",
        ours: &["replica", "measure"],
        parameters: &[VM_NAME],
        needs: &[],
    },
    Alias {
        native: "Enable-VMReplication",
        ours: &["replica", "enable"],
        parameters: &[
            VM_NAME,
            parameter("ReplicaServerName", To::Second("--to")),
            parameter("ReplicationFrequencySec", To::Seconds("--frequency")),
            parameter("ReplicaServerPort", TRUST),
            parameter("CertificateThumbprint", TRUST),
            AUTHENTICATION,
            parameter("CompressionEnabled", To::Only("$true")),
        ],
        needs: &["VMName", "ReplicaServerName"],
    },
    Alias {
        native: "Set-VMReplication",
        ours: &["replica", "set"],
        parameters: &[
            VM_NAME,
            parameter("ReplicationFrequencySec", To::Seconds("--frequency")),
            parameter(
                "RecoveryHistory",
                To::Not("Say which points are kept: `pollux replica set VM --keep '24h:hourly'`"),
            ),
            parameter("Reverse", To::Instead(&["failover", "reverse"])),
            AUTHENTICATION,
            parameter("CompressionEnabled", To::Only("$true")),
        ],
        needs: &["VMName"],
    },
    Alias {
        native: "Stop-VMInitialReplication",
        ours: &["replica", "cancel"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Suspend-VMReplication",
        ours: &["replica", "pause"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Resume-VMReplication",
        ours: &["replica", "resume"],
        parameters: &[
            VM_NAME,
            // What may differ is compared by itself.
            parameter("Resynchronize", To::Nothing),
        ],
        needs: &["VMName"],
    },
    Alias {
        native: "Remove-VMReplication",
        ours: &["replica", "remove"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Reset-VMReplicationStatistics",
        ours: &["replica", "reset-statistics"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Start-VMFailover",
        ours: &["failover", "start"],
        parameters: &[
            VM_NAME,
            parameter("AsTest", To::Instead(&["failover", "test"])),
            parameter("Prepare", To::Instead(&["failover", "prepare"])),
            parameter("VMRecoverySnapshot", To::Option("--point")),
            parameter("VMRecoverySnapshotName", To::Option("--point")),
        ],
        needs: &["VMName"],
    },
    Alias {
        native: "Complete-VMFailover",
        ours: &["failover", "complete"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Stop-VMFailover",
        ours: &["failover", "stop-test", "--or-failover"],
        parameters: &[VM_NAME],
        needs: &["VMName"],
    },
    Alias {
        native: "Get-VMReplicationServer",
        ours: &["replica", "server", "show"],
        parameters: &[],
        needs: &[],
    },
    Alias {
        native: "Set-VMReplicationServer",
        ours: &["replica", "server", "show"],
        parameters: &[
            parameter(
                "ReplicationEnabled",
                To::Either(
                    &["replica", "server", "enable"],
                    &["replica", "server", "disable"],
                ),
            ),
            parameter("ReplicationAllowedFromAnyServer", To::Flag("--allow-any")),
            parameter("AllowedAuthenticationType", To::Only("Certificate")),
            parameter("DefaultStorageLocation", To::Option("--store")),
            parameter(
                "MonitoringInterval",
                To::Not("Set `monitoring_interval` in host.toml"),
            ),
            parameter(
                "CertificateAuthenticationPort",
                To::Not("Name address and port: `pollux replica server enable --listen`"),
            ),
        ],
        needs: &["ReplicationEnabled"],
    },
    Alias {
        native: "Get-VMReplicationAuthorizationEntry",
        ours: &["replica", "authorizations"],
        parameters: &[],
        needs: &[],
    },
    Alias {
        native: "New-VMReplicationAuthorizationEntry",
        ours: &["replica", "authorize"],
        parameters: &[
            parameter("AllowedPrimaryServer", To::Argument),
            parameter("ReplicaStorageLocation", To::Option("--store")),
            parameter("TrustGroup", To::Option("--group")),
        ],
        needs: &["AllowedPrimaryServer"],
    },
    Alias {
        native: "Remove-VMReplicationAuthorizationEntry",
        ours: &["replica", "deny"],
        parameters: &[parameter("AllowedPrimaryServer", To::Argument)],
        needs: &["AllowedPrimaryServer"],
    },
];

/// The command line in our words. One that is in them already comes back as it is.
///
/// # Errors
/// A problem that names the command or the parameter as it was typed.
pub fn translate(words: Vec<OsString>) -> Result<Vec<OsString>, Problem> {
    let texts: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let Some(at) = texts.as_deref().and_then(command) else {
        return Ok(words);
    };
    let texts = texts.unwrap_or_default();
    let alias = find(texts[at])?;
    let said = read(alias, &texts[at + 1..])?;
    let mut ours: Vec<String> = texts[..at].iter().map(|word| (*word).to_owned()).collect();
    ours.push("--wide".to_owned());
    ours.extend(said.command(alias));
    Ok(ours.into_iter().map(OsString::from).collect())
}

/// Whether errors are wanted as JSON, told before the command line is understood.
#[must_use]
pub fn wants_json(words: &[OsString]) -> bool {
    let next = |at: usize| words.get(at + 1).is_some_and(|word| word == "json");
    words.iter().enumerate().any(|(at, word)| {
        word == "-ojson"
            || word == "--output=json"
            || ((word == "-o" || word == "--output") && next(at))
    })
}

/// Where a command in Hyper-V's words stands.
fn command(words: &[&str]) -> Option<usize> {
    let mut at = 1;
    loop {
        let word = words.get(at)?;
        match ours(word) {
            Some(values) => at += 1 + values,
            None => break,
        }
    }
    let (verb, noun) = words[at].split_once('-')?;
    let letters = !verb.is_empty() && verb.bytes().all(|byte| byte.is_ascii_alphabetic());
    let of_vms = noun
        .get(..2)
        .is_some_and(|vm| vm.eq_ignore_ascii_case("vm"));
    (letters && of_vms).then_some(at)
}

/// Of a global option of ours: how many words follow it.
fn ours(word: &str) -> Option<usize> {
    match word {
        "-o" | "--output" | "--socket" => Some(1),
        "-w" | "--wide" | "-h" | "--help" => Some(0),
        _ if word.starts_with("--output=") || word.starts_with("--socket=") => Some(0),
        _ => None,
    }
}

fn find(word: &str) -> Result<&'static Alias, Problem> {
    let same = |alias: &&Alias| alias.native.eq_ignore_ascii_case(word);
    ALIASES.iter().find(same).ok_or_else(|| {
        let all: Vec<&str> = ALIASES.iter().map(|alias| alias.native).collect();
        let way_out = format!(
            "`pollux --help` lists Pollux's own commands; of Hyper-V's it knows {}",
            all.join(", ")
        );
        Problem::new(
            Code::Invalid,
            format!("`{word}`"),
            "is no command of Pollux",
            way_out,
        )
    })
}

/// What was said, in our words.
#[derive(Default)]
struct Said {
    instead: Option<&'static [&'static str]>,
    options: Vec<String>,
    arguments: Vec<String>,
    /// Names of the parameters that were given.
    given: Vec<&'static str>,
}

impl Said {
    fn command(self, alias: &Alias) -> Vec<String> {
        let command = self.instead.unwrap_or(alias.ours);
        let mut words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        words.extend(self.options);
        if !self.arguments.is_empty() {
            // What begins with a hyphen is a name all the same.
            words.push("--".to_owned());
            words.extend(self.arguments);
        }
        words
    }
}

fn read(alias: &'static Alias, words: &[&str]) -> Result<Said, Problem> {
    let refuse = |name: &str, reason: String, way_out: &str| {
        let thing = format!("`-{name}` of {}", alias.native);
        Problem::new(Code::Invalid, thing, reason, way_out)
    };
    let mut said = Said::default();
    let mut at = 0;
    while let Some(word) = words.get(at).copied() {
        at += 1;
        if let Some(values) = ours(word) {
            let own = words.get(at - 1..at + values).unwrap_or(&words[at - 1..]);
            said.options
                .extend(own.iter().map(|word| (*word).to_owned()));
            at += values;
            continue;
        }
        if word == "-?" {
            said.options.push("--help".to_owned());
            continue;
        }
        let (parameter, inline) = match word.strip_prefix('-') {
            Some(named) => {
                let (name, value) = match named.split_once(':') {
                    Some((name, value)) => (name, Some(value)),
                    None => (named, None),
                };
                (resolve(alias, name)?, value)
            }
            None => (unnamed(alias, &said, word)?, Some(word)),
        };
        let name = parameter.name;
        if said.given.contains(&name) {
            return Err(refuse(name, "is given twice".to_owned(), "Give it once"));
        }
        said.given.push(name);
        let on = inline.is_none_or(|value| !is_false(value));
        match parameter.to {
            To::Not(way_out) => {
                return Err(refuse(name, "has no meaning here".to_owned(), way_out));
            }
            To::Nothing => continue,
            To::Instead(command) => {
                if on {
                    said.instead = Some(command);
                }
                continue;
            }
            _ => {}
        }
        let value = match inline.or_else(|| words.get(at).copied()) {
            Some(value) if !value.is_empty() && (inline.is_some() || !value.starts_with('-')) => {
                value
            }
            _ => return Err(refuse(name, "needs a value".to_owned(), "")),
        };
        at += usize::from(inline.is_none());
        match parameter.to {
            To::Argument => said.arguments.push(value.to_owned()),
            To::Option(option) | To::Second(option) => {
                said.options.push(format!("{option}={value}"))
            }
            To::Seconds(option) => said.options.push(format!("{option}={value}s")),
            To::Only(only) if value.eq_ignore_ascii_case(only) => {}
            To::Only(only) => {
                let way_out = format!("Leave it out, or say {only}");
                let reason = format!("is always {only} here, and not {value}");
                return Err(refuse(name, reason, &way_out));
            }
            To::Either(yes, no) => match truth(value) {
                Some(truth) => said.instead = Some(if truth { yes } else { no }),
                None => return Err(not_a_truth(&refuse, name, value)),
            },
            To::Flag(flag) => match truth(value) {
                Some(true) => said.options.push(flag.to_owned()),
                Some(false) => {}
                None => return Err(not_a_truth(&refuse, name, value)),
            },
            To::Instead(_) | To::Nothing | To::Not(_) => {}
        }
    }
    if let Some(missing) = alias.needs.iter().find(|name| !said.given.contains(name)) {
        let asks = said
            .options
            .iter()
            .any(|option| option == "--help" || option == "-h");
        if !asks {
            let way_out = format!("`pollux {} --help` tells what it is", alias.ours.join(" "));
            return Err(refuse(missing, "is missing".to_owned(), &way_out));
        }
    }
    Ok(said)
}

fn not_a_truth(
    refuse: &impl Fn(&str, String, &str) -> Problem,
    name: &str,
    value: &str,
) -> Problem {
    let reason = format!("is $true or $false, and not {value}");
    refuse(
        name,
        reason,
        "In a shell write '$true': it takes `$` for its own",
    )
}

/// The shell may have taken `$true` for a variable of its own and left nothing of it; that is a
/// missing value, not a false one.
fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "$true" | "true" | "1" => Some(true),
        "$false" | "false" | "0" => Some(false),
        _ => None,
    }
}

fn is_false(value: &str) -> bool {
    truth(value) == Some(false)
}

/// The parameter that is meant by `name`, which may be cut short.
fn resolve(alias: &'static Alias, name: &str) -> Result<&'static Parameter, Problem> {
    let all = || alias.parameters.iter().chain(COMMON);
    // Its second name in PowerShell.
    let named = alias.parameters.iter().any(|one| one.name == VM_NAME.name);
    let name = if named && name.eq_ignore_ascii_case("Name") {
        VM_NAME.name
    } else {
        name
    };
    if let Some(exact) = all().find(|one| one.name.eq_ignore_ascii_case(name)) {
        return Ok(exact);
    }
    let begins = |one: &&Parameter| {
        let head = one.name.get(..name.len());
        !name.is_empty() && head.is_some_and(|head| head.eq_ignore_ascii_case(name))
    };
    let meant: Vec<&'static Parameter> = all().filter(begins).collect();
    let thing = format!("`-{name}` of {}", alias.native);
    let list = |some: &[&Parameter]| {
        let names: Vec<String> = some.iter().map(|one| format!("-{}", one.name)).collect();
        names.join(", ")
    };
    match &meant[..] {
        [one] => Ok(one),
        [] => {
            let known: Vec<&Parameter> = alias.parameters.iter().collect();
            let way_out = match list(&known) {
                none if none.is_empty() => "It takes none".to_owned(),
                known => format!("It takes {known}"),
            };
            Err(Problem::new(
                Code::Invalid,
                thing,
                "is no parameter that Pollux knows",
                way_out,
            ))
        }
        several => {
            let reason = format!("may be {}", list(several));
            Err(Problem::new(
                Code::Invalid,
                thing,
                reason,
                "Write more of its name",
            ))
        }
    }
}

/// The parameter that a value without a name is for.
fn unnamed(alias: &'static Alias, said: &Said, value: &str) -> Result<&'static Parameter, Problem> {
    let free = |one: &&Parameter| {
        matches!(one.to, To::Argument | To::Second(_) | To::Either(..))
            && !said.given.contains(&one.name)
    };
    alias.parameters.iter().find(free).ok_or_else(|| {
        let thing = format!("`{value}`");
        let reason = format!("is for no parameter of {}", alias.native);
        Problem::new(
            Code::Invalid,
            thing,
            reason,
            "Name the parameter that it is for",
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Arguments;

    fn words(line: &str) -> Vec<OsString> {
        std::iter::once("pollux")
            .chain(line.split(' '))
            .map(OsString::from)
            .collect()
    }

    fn ours(line: &str) -> String {
        let all = translate(words(line)).expect(line);
        // It is a command line of ours.
        Arguments::try_parse_from(&all).map(drop).expect(line);
        let all: Vec<String> = all[1..]
            .iter()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        all.join(" ")
    }

    fn refused(line: &str) -> String {
        let problem = translate(words(line)).expect_err(line);
        assert_eq!(problem.code, Code::Invalid, "{problem}");
        problem.to_string()
    }

    #[test]
    fn every_command_becomes_one_of_ours() {
        for (native, expected) in [
            ("Get-VMReplication", "--wide replica status"),
            (
                "Get-VMReplication -VMName web",
                "--wide replica status -- web",
            ),
            ("Measure-VMReplication web", "--wide replica measure -- web"),
            (
                "Enable-VMReplication -VMName web -ReplicaServerName pollux -ReplicationFrequencySec 30",
                "--wide replica enable --to=pollux --frequency=30s -- web",
            ),
            (
                "Suspend-VMReplication -Name web",
                "--wide replica pause -- web",
            ),
            (
                "Enable-VMReplication web pollux -ReplicationFrequencySec 30",
                "--wide replica enable --to=pollux --frequency=30s -- web",
            ),
            (
                "Set-VMReplicationServer $true",
                "--wide replica server enable",
            ),
            (
                "Enable-VMReplication web -ReplicaServerName pollux -AuthenticationType certificate",
                "--wide replica enable --to=pollux -- web",
            ),
            (
                "Set-VMReplication web -ReplicationFrequencySec 300",
                "--wide replica set --frequency=300s -- web",
            ),
            (
                "Set-VMReplication web -Reverse",
                "--wide failover reverse -- web",
            ),
            (
                "Stop-VMInitialReplication web",
                "--wide replica cancel -- web",
            ),
            ("Suspend-VMReplication web", "--wide replica pause -- web"),
            (
                "Resume-VMReplication web -Resynchronize",
                "--wide replica resume -- web",
            ),
            (
                "Remove-VMReplication -VMName web",
                "--wide replica remove -- web",
            ),
            (
                "Reset-VMReplicationStatistics web",
                "--wide replica reset-statistics -- web",
            ),
            ("Start-VMFailover web", "--wide failover start -- web"),
            (
                "Start-VMFailover web -AsTest -VMRecoverySnapshotName 4f1c09ab.7",
                "--wide failover test --point=4f1c09ab.7 -- web",
            ),
            (
                "Start-VMFailover web -AsTest:$false",
                "--wide failover start -- web",
            ),
            (
                "Start-VMFailover -Prepare -VMName web",
                "--wide failover prepare -- web",
            ),
            (
                "Complete-VMFailover -VMName web",
                "--wide failover complete -- web",
            ),
            ("Get-VMReplicationServer", "--wide replica server show"),
            (
                "Set-VMReplicationServer -ReplicationEnabled $true -ReplicationAllowedFromAnyServer $true",
                "--wide replica server enable --allow-any",
            ),
            (
                "Set-VMReplicationServer -ReplicationEnabled $false",
                "--wide replica server disable",
            ),
            (
                "Get-VMReplicationAuthorizationEntry",
                "--wide replica authorizations",
            ),
            (
                "Set-VMReplicationServer -ReplicationEnabled $true -DefaultStorageLocation /srv/twins",
                "--wide replica server enable --store=/srv/twins",
            ),
            (
                "New-VMReplicationAuthorizationEntry *.example.com -ReplicaStorageLocation /srv/a -TrustGroup a",
                "--wide replica authorize --store=/srv/a --group=a -- *.example.com",
            ),
            (
                "Remove-VMReplicationAuthorizationEntry castor",
                "--wide replica deny -- castor",
            ),
        ] {
            assert_eq!(ours(native), expected, "{native}");
        }
    }

    #[test]
    fn one_command_of_theirs_ends_a_test_and_a_failover() {
        let expected = "--wide failover stop-test --or-failover -- web";
        assert_eq!(ours("Stop-VMFailover web"), expected);
    }

    #[test]
    fn every_parameter_is_known_by_its_name_in_any_case() {
        for alias in ALIASES {
            for needed in alias.needs {
                assert!(
                    alias.parameters.iter().any(|one| one.name == *needed),
                    "{needed}"
                );
            }
            for parameter in alias.parameters.iter().chain(COMMON) {
                let found = resolve(alias, &parameter.name.to_uppercase()).expect(parameter.name);
                assert_eq!(found.name, parameter.name);
            }
        }
    }

    #[test]
    fn case_does_not_count_names_may_be_cut_short_and_values_may_follow_a_colon() {
        let expected = "--wide replica enable --to=pollux --frequency=300s -- web";
        for line in [
            "enable-vmreplication -vmname web -replicaservername pollux -replicationfrequencysec 300",
            "ENABLE-VMREPLICATION -VM:web -ReplicaServerN:pollux -Replication:300",
            "Enable-VMReplication web -ReplicaServerN pollux -replicationf 300 -Confirm:$false",
        ] {
            assert_eq!(ours(line), expected, "{line}");
        }
    }

    #[test]
    fn our_global_options_may_stand_anywhere() {
        assert_eq!(
            ours("--socket /s -o json Get-VMReplication web"),
            "--socket /s -o json --wide replica status -- web"
        );
        assert_eq!(
            ours("Get-VMReplication -o json web --socket=/s"),
            "--wide replica status -o json --socket=/s -- web"
        );
        assert!(wants_json(&words("Get-VMReplication -o json")));
        assert!(!wants_json(&words("Get-VMReplication -o table json")));
    }

    #[test]
    fn what_is_no_alias_comes_back_as_it_is() {
        for line in [
            "replica status web",
            "vm create my-vm",
            "--socket Get-VMReplication vm list",
            "-o",
            "foo-bar",
            "-VM",
        ] {
            assert_eq!(translate(words(line)).expect(line), words(line));
        }
        assert_eq!(
            translate(Vec::new()).expect("nothing"),
            Vec::<OsString>::new()
        );
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_own_name() {
        for (line, says) in [
            ("Get-VMReplicatoin", "`Get-VMReplicatoin`: is no command"),
            (
                "Get-VMReplication -Colour red",
                "`-Colour` of Get-VMReplication",
            ),
            ("Get-VMReplication -Colour red", "It takes -VMName"),
            ("Get-VMReplication a b", "`b`: is for no parameter"),
            (
                "Get-VMReplication -VMName",
                "`-VMName` of Get-VMReplication: needs a value",
            ),
            ("Get-VMReplication -VMName -Confirm", "needs a value"),
            ("Get-VMReplication -V web", "may be -VMName, -Verbose"),
            ("Get-VMReplication -VMName a -VMName b", "is given twice"),
            (
                "Get-VMReplication -ComputerName other",
                "Run it on that host",
            ),
            (
                "Enable-VMReplication web",
                "`-ReplicaServerName` of Enable-VMReplication: is missing",
            ),
            (
                "Enable-VMReplication web -ReplicaServer p",
                "-ReplicaServerName, -ReplicaServerPort",
            ),
            (
                "Enable-VMReplication web -ReplicaServerPort 443",
                "pollux host trust",
            ),
            (
                "Enable-VMReplication web -ReplicaServerName p -AuthenticationType Kerberos",
                "is always Certificate here, and not Kerberos",
            ),
            (
                "Set-VMReplicationServer -ReplicationEnabled yes",
                "$true or $false",
            ),
            (
                "Suspend-VMReplication",
                "`-VMName` of Suspend-VMReplication: is missing",
            ),
            ("Get-VMReplication -", "is no parameter"),
        ] {
            let said = refused(line);
            assert!(said.contains(says), "{line}: {said}");
        }
    }

    #[test]
    fn every_command_is_documented_and_nothing_else() {
        let page = include_str!("../../../docs/replication-health.md");
        let section = page
            .split("\n## The words of Hyper-V\n")
            .nth(1)
            .expect("a section");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        let listed: Vec<&str> = rows.filter_map(|row| row.split('`').next()).collect();
        let all: Vec<&str> = ALIASES.iter().map(|alias| alias.native).collect();
        assert_eq!(listed, all);
    }

    #[test]
    fn help_is_asked_for_without_what_is_needed() {
        let all = translate(words("Suspend-VMReplication -?")).expect("understood");
        assert_eq!(all.last(), Some(&OsString::from("--help")));
    }

    proptest::proptest! {
        #[test]
        fn no_words_make_it_panic(tail in proptest::collection::vec("[-:$a-zA-Zä ]{0,12}", 0..6)) {
            let mut all = words("Enable-VMReplication");
            all.extend(tail.into_iter().map(OsString::from));
            let _ = translate(all);
        }
    }
}
