//! The commands that lead out of every stop, as data: what refuses to run a VM names one of them,
//! `docs/who-may-run.md` lists them, and the model check follows them from every state to a VM that
//! runs on one host.

/// A command that a person gives about one VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Command {
    /// Start it where it belongs.
    Start,
    /// The same, on a person's word.
    ForceStart,
    /// Ask its guest to shut down.
    Stop,
    /// End its guest.
    Kill,
    /// Start the replica.
    Failover,
    /// The same, on a person's word.
    ForceFailover,
    /// Start the replica from an older point.
    FailoverOlder,
    /// The same, on a person's word.
    ForceFailoverOlder,
    /// Give it free again, which was prepared for a planned failover; or call a failover off.
    CancelFailover,
    /// End the relationship.
    Remove,
    /// Make another VM from the disks.
    Copy,
}

/// All of them.
pub const COMMANDS: [Command; 11] = [
    Command::Start,
    Command::ForceStart,
    Command::Stop,
    Command::Kill,
    Command::Failover,
    Command::ForceFailover,
    Command::FailoverOlder,
    Command::ForceFailoverOlder,
    Command::CancelFailover,
    Command::Remove,
    Command::Copy,
];

/// How a refusal says that the same command is heeded on a person's word.
const WITH_FORCE: &str = "with --force --because STATEMENT";

impl Command {
    /// What is typed; `VM` stands for the VM's name.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Start => "pollux vm start VM",
            Self::ForceStart => "pollux vm start VM --force --because STATEMENT",
            Self::Stop => "pollux vm stop VM",
            Self::Kill => "pollux vm kill VM",
            Self::Failover => "pollux failover start VM",
            Self::ForceFailover => "pollux failover start VM --force --because STATEMENT",
            Self::FailoverOlder => "pollux failover start VM --point POINT",
            Self::ForceFailoverOlder => {
                "pollux failover start VM --point POINT --force --because STATEMENT"
            }
            Self::CancelFailover => "pollux failover cancel VM",
            Self::Remove => "pollux replica remove VM",
            Self::Copy => "pollux vm create NAME --image FILE",
        }
    }

    /// What it does, in the words of the documentation.
    #[must_use]
    pub fn does(self) -> &'static str {
        match self {
            Self::Start => "starts it in its current term, once the partner was asked",
            Self::ForceStart => {
                "the same when the partner does not answer; on a host that stood down it opens a \
                 term above the partner's, if the VM does not run there"
            }
            Self::Stop => "asks the guest to shut down",
            Self::Kill => "ends the guest, one that is held still too",
            Self::Failover => {
                "starts the replica from its newest point, once the primary stood down or its \
                 lease is over"
            }
            Self::ForceFailover => {
                "the same when the primary does not answer, or does not give way"
            }
            Self::FailoverOlder => "starts it from an older point: what came later is passed over",
            Self::ForceFailoverOlder => "the same when the primary does not answer or give way",
            Self::CancelFailover => {
                "gives it free that was prepared for a planned failover; on the host that took over \
                 it calls that off, so that the VM starts on the other one again"
            }
            Self::Remove => {
                "ends the relationship, on both hosts if the partner answers; the disks and points \
                 stay"
            }
            Self::Copy => "makes another VM from a disk that a host which stood down has kept",
        }
    }

    /// The same on a person's word.
    #[must_use]
    pub fn forced(self) -> Option<Self> {
        match self {
            Self::Start | Self::ForceStart => Some(Self::ForceStart),
            Self::Failover | Self::ForceFailover => Some(Self::ForceFailover),
            Self::FailoverOlder | Self::ForceFailoverOlder => Some(Self::ForceFailoverOlder),
            _ => None,
        }
    }

    /// The commands that `way_out` names to somebody whose command `tried` about the VM `name` was
    /// refused.
    #[must_use]
    pub fn named(way_out: &str, name: &str, tried: Self) -> Vec<Self> {
        let typed = |command: &Self| {
            let text = command.text().replace("VM", name);
            way_out.contains(&format!("`{text}`"))
        };
        let mut named: Vec<_> = COMMANDS.into_iter().filter(typed).collect();
        if way_out.contains(WITH_FORCE) {
            named.extend(tried.forced());
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_that_a_way_out_names_are_found_and_no_others() {
        let named = |way_out| Command::named(way_out, "web", Command::Failover);
        let text = "start it there with `pollux vm start web`";
        assert_eq!(named(text), [Command::Start]);
        let text = "take it back: `pollux vm start web --force --because STATEMENT`";
        assert_eq!(named(text), [Command::ForceStart]);
        let text = "if you know better, say why with --force --because STATEMENT";
        assert_eq!(named(text), [Command::ForceFailover]);
        assert_eq!(named("`pollux vm start other`"), []);
        assert_eq!(named("start it"), []);
    }
}
