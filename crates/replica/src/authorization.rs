//! Who may make twins on this host, and where: one pure decision.
//!
//! ```text
//!   off ────────────────────────▶ nobody
//!   any ────────────────────────▶ every trusted host, into the store of the rules
//!   authorized ─▶ castor.example.com    the entry of that name
//!              ─▶ *.example.com         or the one of its domain: `*` is one label, the first
//!              ─▶ nobody                into the store of the entry, else that of the rules
//! ```
//!
//! A name was proven by a certificate before it comes here. Entries are asked for every enrolment and
//! for all that fills a twin, so that one that is taken away counts at once; what keeps two hosts
//! from running one VM (standing, stand-down) is never refused here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use model::{Bytes, Code, Problem, VmName};
use serde::{Deserialize, Serialize};

use crate::identity::check_host_name;

/// Most entries.
pub const MAX_ENTRIES: usize = 1024;
/// Longest name of a trust group, in bytes.
const MAX_GROUP: usize = 64;

/// Names of hosts: one, or those of a domain. Text form: `castor.example.com`, `*.example.com`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// That name.
    Exact(String),
    /// Any one label before this domain.
    Domain(String),
}

/// Text that should have been a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a host name, nor `*.` and a domain (`castor.example.com`, `*.example.com`; `*` \
     stands for one whole label, the first)"
)]
pub struct ParsePatternError(String);

impl Pattern {
    /// Whether it names the host `name`.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(exact) => exact == name,
            Self::Domain(domain) => {
                let mut labels = name.splitn(2, '.');
                let first = labels.next().unwrap_or_default();
                // A certificate may be for `*.example.com`: that is no host.
                check_host_name(first).is_ok() && labels.next() == Some(domain.as_str())
            }
        }
    }
}

impl FromStr for Pattern {
    type Err = ParsePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParsePatternError(text.chars().take(100).collect());
        match text.strip_prefix("*.") {
            Some(domain) => check_host_name(domain).map(|()| Self::Domain(domain.to_owned())),
            None => check_host_name(text).map(|()| Self::Exact(text.to_owned())),
        }
        .map_err(|_wrong| refuse())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Domain(domain) => write!(f, "*.{domain}"),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = ParsePatternError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

/// Primaries among which a VM may move.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Group(String);

/// Text that should have been a [`Group`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a trust group (expected 1 to 64 letters, digits, `-`, `_` and `.`)")]
pub struct ParseGroupError(String);

impl FromStr for Group {
    type Err = ParseGroupError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if (1..=MAX_GROUP).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(ParseGroupError(text.chars().take(100).collect()))
        }
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for Group {
    type Error = ParseGroupError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Group> for String {
    fn from(group: Group) -> Self {
        group.0
    }
}

/// Primaries that may make twins here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Which.
    pub pattern: Pattern,
    /// Among whom their VMs may move; none: a VM stays with the primary that made its twin. Nothing moves
    /// VMs between primaries yet: until then a twin answers to the one that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Group>,
    /// Most space that the twins of one of them may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Bytes>,
    /// The store for their new twins; none: the one of the rules. Those that are there stay where they
    /// are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// VMs of this host from which they may have their twins filled. By comparing they can find out what
    /// those hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub copies: Vec<VmName>,
}

/// Who is let in while the server is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admits {
    /// Every trusted host, into the store of the rules; entries do not count.
    #[default]
    Any,
    /// Whom an entry names.
    Authorized,
}

/// The rules of one host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rules {
    /// Whether the server is on.
    pub enabled: bool,
    /// Who is let in then.
    pub admits: Admits,
    /// The store for new twins where no entry names one; none: in the host's state folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// At most one entry per pattern, and [`MAX_ENTRIES`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<Entry>,
}

/// Why a host is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The server is off.
    Off,
    /// No entry names it.
    Unnamed,
}

/// Whose it is what a disk on this host holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A twin's that this primary made.
    TwinOf(&'a str),
    /// That of a VM of this name that is at home here.
    Own(&'a VmName),
}

impl Rules {
    /// Whether `name` may make twins and fill them; the entry that lets it, but where any is let in.
    ///
    /// # Errors
    /// [`Denied`]
    pub fn admit(&self, name: &str) -> Result<Option<&Entry>, Denied> {
        if !self.enabled {
            return Err(Denied::Off);
        }
        match self.admits {
            Admits::Any => Ok(None),
            Admits::Authorized => self.entry(name).map(Some).ok_or(Denied::Unnamed),
        }
    }

    /// The store for a new twin of `name`, that is let in; none: in the host's state folder.
    #[must_use]
    pub fn store(&self, name: &str) -> Option<&Path> {
        let entry = self.admit(name).ok().flatten();
        let own = entry.and_then(|entry| entry.store.as_deref());
        own.or(self.store.as_deref())
    }

    /// The entry that speaks of `name`: its own before its domain's.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        let matching = || {
            let entries = self.entries.iter();
            entries.filter(|entry| entry.pattern.matches(name))
        };
        let exact = |entry: &&Entry| matches!(entry.pattern, Pattern::Exact(_));
        matching().find(exact).or_else(|| matching().next())
    }

    /// Whether the primary `asks` may read `content`, be it only by comparing hashes: whoever may ask
    /// what a block holds can find out. This is the one place where that is decided. Its own is its
    /// own; a host of the same group may as well, for a VM may move among those; a VM that is at home
    /// on this host belongs to none of them, but to whom the entry that counts names it as a copy.
    #[must_use]
    pub fn may_read(&self, asks: &str, content: Content<'_>) -> bool {
        match content {
            Content::TwinOf(primary) => self.may_continue(primary, asks),
            Content::Own(name) => {
                let entry = self.admit(asks).ok().flatten();
                entry.is_some_and(|entry| entry.copies.contains(name))
            }
        }
    }

    /// Whether `asks` may go on with a relationship that `bound` made: it is the same host, or the
    /// entries that speak of the two name one group.
    #[must_use]
    pub fn may_continue(&self, bound: &str, asks: &str) -> bool {
        if bound == asks {
            return true;
        }
        if self.admits == Admits::Any {
            return false;
        }
        let group = |name| self.entry(name).and_then(|entry| entry.group.as_ref());
        group(bound).is_some() && group(bound) == group(asks)
    }
}

impl Denied {
    /// As `asks` is told by `host`.
    #[must_use]
    pub fn problem(self, asks: &str, host: &str) -> Problem {
        match self {
            Self::Off => Problem::new(
                Code::Forbidden,
                format!("host `{host}`"),
                "does not receive VMs: its replica server is off",
                format!("run `pollux replica server enable` on `{host}`"),
            ),
            Self::Unnamed => Problem::new(
                Code::Forbidden,
                format!("host `{asks}`"),
                format!("is not among the hosts that may replicate to `{host}`"),
                format!("run `pollux replica authorize {asks}` on `{host}`"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(pattern: &str, group: Option<&str>) -> Entry {
        Entry {
            pattern: pattern.parse().expect("a pattern"),
            group: group.map(|group| group.parse().expect("a group")),
            limit: None,
            store: None,
            copies: Vec::new(),
        }
    }

    fn rules(entries: Vec<Entry>) -> Rules {
        Rules {
            enabled: true,
            admits: Admits::Authorized,
            store: None,
            entries,
        }
    }

    #[test]
    fn a_pattern_names_one_host_or_one_label_before_a_domain() {
        let domain: Pattern = "*.example.com".parse().expect("a pattern");
        assert!(domain.matches("castor.example.com"));
        for other in [
            "example.com",
            ".example.com",
            "*.example.com",
            "a.b.example.com",
            "castor.example.org",
            "castorexample.com",
            "*.example.com.evil.org",
            "",
        ] {
            assert!(!domain.matches(other), "{other}");
        }
        let exact: Pattern = "castor".parse().expect("a pattern");
        assert!(exact.matches("castor") && !exact.matches("castor.example.com"));
        assert_eq!(domain.to_string().parse(), Ok(domain));
        for bad in [
            "",
            "*",
            "*.",
            "a*.example.com",
            "a.*.com",
            "*.*.com",
            "**.com",
            "*.A.com",
        ] {
            assert!(bad.parse::<Pattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_group_is_a_plain_word() {
        assert!("cluster-1".parse::<Group>().is_ok());
        for bad in ["", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(bad.parse::<Group>().is_err(), "{bad}");
        }
    }

    #[test]
    fn while_the_server_is_off_nobody_is_let_in() {
        let off = Rules {
            enabled: false,
            ..rules(vec![entry("castor", None)])
        };
        assert_eq!(off.admit("castor"), Err(Denied::Off));
        let any = Rules::default();
        assert_eq!(any.admit("castor"), Err(Denied::Off), "off is the default");
    }

    #[test]
    fn any_lets_everybody_in_whatever_entries_say() {
        let any = Rules {
            admits: Admits::Any,
            ..rules(vec![entry("castor", Some("one"))])
        };
        assert_eq!(any.admit("castor"), Ok(None));
        assert_eq!(any.admit("leda"), Ok(None));
    }

    #[test]
    fn the_most_specific_entry_counts_wherever_it_stands() {
        let (exact, domain) = (entry("a.example.com", None), entry("*.example.com", None));
        for entries in [
            vec![exact.clone(), domain.clone()],
            vec![domain.clone(), exact.clone()],
        ] {
            let rules = rules(entries);
            assert_eq!(rules.admit("a.example.com"), Ok(Some(&exact)));
            assert_eq!(rules.admit("b.example.com"), Ok(Some(&domain)));
            assert_eq!(rules.admit("example.com"), Err(Denied::Unnamed));
            assert_eq!(rules.admit("a.b.example.com"), Err(Denied::Unnamed));
        }
        assert_eq!(rules(vec![]).admit("castor"), Err(Denied::Unnamed));
    }

    #[test]
    fn a_twin_is_made_in_the_store_of_the_entry_that_counts_else_in_that_of_the_rules() {
        let store = |entry: Entry, store: &str| Entry {
            store: Some(store.into()),
            ..entry
        };
        let all = Rules {
            store: Some("/srv/all".into()),
            ..rules(vec![
                store(entry("*.one.org", None), "/srv/one"),
                store(entry("x.one.org", None), "/srv/x"),
                entry("y.one.org", None),
            ])
        };
        for (name, wanted) in [
            ("a.one.org", "/srv/one"),
            ("x.one.org", "/srv/x"),
            ("y.one.org", "/srv/all"),
        ] {
            assert_eq!(all.store(name), Some(Path::new(wanted)), "{name}");
        }
        let any = Rules {
            admits: Admits::Any,
            ..all
        };
        assert_eq!(any.store("x.one.org"), Some(Path::new("/srv/all")));
        assert_eq!(rules(vec![entry("a", None)]).store("a"), None);
    }

    #[test]
    fn a_vm_moves_within_its_trust_group_only() {
        let all = rules(vec![
            entry("*.one.org", Some("one")),
            entry("x.one.org", Some("other")),
            entry("y.one.org", None),
            entry("leda", Some("one")),
            entry("zeus", None),
        ]);
        let may = |bound, asks| all.may_continue(bound, asks);
        assert!(may("a.one.org", "b.one.org") && may("b.one.org", "leda"));
        assert!(may("zeus", "zeus") && may("nobody", "nobody"));
        // The own entry takes it out of its domain's group.
        for (bound, asks) in [
            ("a.one.org", "x.one.org"),
            ("a.one.org", "y.one.org"),
            ("y.one.org", "a.one.org"),
            ("zeus", "leda"),
            ("zeus", "y.one.org"),
            ("leda", "nobody"),
        ] {
            assert!(!may(bound, asks), "{bound} {asks}");
        }
        let any = Rules {
            admits: Admits::Any,
            ..all
        };
        assert!(
            !any.may_continue("a.one.org", "b.one.org"),
            "no groups count"
        );
    }

    #[test]
    fn content_is_read_within_its_trust_group_only_and_what_is_at_home_here_where_it_is_named() {
        let all = rules(vec![
            entry("castor", Some("one")),
            entry("leda", Some("one")),
            entry("zeus", Some("two")),
            entry("hera", None),
            entry("hebe", None),
        ]);
        let twin_of = |primary, asks| all.may_read(asks, Content::TwinOf(primary));
        assert!(twin_of("castor", "castor") && twin_of("castor", "leda"));
        for (primary, asks) in [
            ("castor", "zeus"),
            ("castor", "hera"),
            ("hera", "hebe"),
            ("castor", "stranger"),
            ("stranger", "castor"),
        ] {
            assert!(!twin_of(primary, asks), "{primary} {asks}");
        }
        let any = Rules {
            admits: Admits::Any,
            ..all.clone()
        };
        assert!(any.may_read("hera", Content::TwinOf("hera")));
        assert!(!any.may_read("leda", Content::TwinOf("castor")));
        let name = |name: &str| name.parse::<VmName>().expect("a name");
        let (web, mail) = (name("web"), name("mail"));
        for asks in ["castor", "hera", "stranger"] {
            assert!(!all.may_read(asks, Content::Own(&web)), "{asks}");
        }
        // But to whom the entry that counts names it.
        let mut named = all;
        let entry = |pattern: &str| Entry {
            copies: vec![web.clone()],
            ..entry(pattern, None)
        };
        named.entries.push(entry("*.example.com"));
        assert!(named.may_read("argo.example.com", Content::Own(&web)));
        assert!(!named.may_read("argo.example.com", Content::Own(&mail)));
        assert!(!named.may_read("castor", Content::Own(&web)));
        let any = Rules {
            admits: Admits::Any,
            ..named.clone()
        };
        assert!(!any.may_read("argo.example.com", Content::Own(&web)));
        named.enabled = false;
        assert!(!named.may_read("argo.example.com", Content::Own(&web)));
    }

    #[test]
    fn a_refusal_names_the_command_that_mends_it_and_where() {
        let off = Denied::Off.problem("castor", "pollux");
        assert_eq!(off.code, Code::Forbidden);
        assert_eq!(
            off.way_out,
            "run `pollux replica server enable` on `pollux`"
        );
        let unnamed = Denied::Unnamed.problem("castor", "pollux");
        assert_eq!(
            unnamed.way_out,
            "run `pollux replica authorize castor` on `pollux`"
        );
    }
}
