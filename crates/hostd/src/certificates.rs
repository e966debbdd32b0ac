//! What a person should know of the certificates that this host shows and trusts.

use jiff::Timestamp;
use model::{Code, Problem};
use replica::certificate::validity;
use replica::identity::Identity;
use replica::trust::{Known, Trust};

/// So long before its end an authority's certificate is warned of, in seconds.
const WARN_S: i64 = 30 * 86_400;

/// What is out of date at `now`, or will be within 30 days.
pub(crate) fn warnings(identity: &Identity, trust: &Trust, now: Timestamp) -> Vec<Problem> {
    let mut found: Vec<Problem> = identity.warning(now).into_iter().collect();
    let date = |second| day(second, now);
    for known in trust.list() {
        let name = &known.peer.name;
        found.extend(of_authority(&known, now));
        let due = trust.revoked(&known).and_then(|revoked| revoked.next);
        if let Some(due) = due.filter(|due| *due < now.as_second()) {
            found.push(Problem::new(
                Code::Conflict,
                format!("the list of revoked certificates that counts for `{name}`"),
                format!("should have been followed by another on {}", date(due)),
                "get it from the authority, and run `pollux host revoke FILE`",
            ));
        }
    }
    found
}

/// What of that concerns a relationship with `peer`.
pub(crate) fn of(identity: &Identity, trust: &Trust, peer: &str, now: Timestamp) -> Vec<Problem> {
    let trusted = trust.get(peer).ok();
    let theirs = trusted.and_then(|trusted| of_authority(&trusted.known, now));
    identity.warning(now).into_iter().chain(theirs).collect()
}

/// Whether the authority that a peer is trusted by ends within 30 days.
fn of_authority(known: &Known, now: Timestamp) -> Option<Problem> {
    let name = &known.peer.name;
    let until = known.authority().and_then(validity).map(|(_, until)| until);
    let until = until.filter(|until| until - now.as_second() < WARN_S)?;
    Some(Problem::new(
        Code::Conflict,
        format!("the authority that `{name}` is trusted by"),
        format!("is valid until {} only", day(until, now)),
        format!("run `pollux host trust {name} ADDRESS --authority FILE` with a new one"),
    ))
}

fn day(second: i64, now: Timestamp) -> String {
    let at = Timestamp::from_second(second).unwrap_or(now);
    at.strftime("%Y-%m-%d").to_string()
}

#[cfg(test)]
mod tests {
    use replica::trust::Peer;

    use super::*;

    #[test]
    fn what_ends_within_thirty_days_is_warned_of_and_nothing_else() {
        let folder = tempfile::tempdir().expect("scratch");
        let now = Timestamp::now();
        let open = |name: &str| Identity::open(&folder.path().join(name), name, now);
        let (own, theirs) = (open("pollux").expect("made"), open("castor").expect("made"));
        let trust = Trust::open(&folder.path().join("peers")).expect("opens");
        let peer = Peer::new("castor", "castor:8443", &theirs.authority_pem(), None);
        trust.trust(peer.expect("good")).expect("trusted");
        assert_eq!(warnings(&own, &trust, now), []);
        assert_eq!(of(&own, &trust, "castor", now), []);
        // An authority lives for thirty years, and the own certificate is renewed by itself.
        let late = now + jiff::SignedDuration::from_hours(24 * (30 * 365 - 29));
        let found = warnings(&own, &trust, late);
        let castors = found.iter().find(|one| one.thing.contains("`castor`"));
        let castors = castors.expect("its authority ends");
        assert!(castors.way_out.contains("--authority FILE"), "{castors}");
        assert!(of(&own, &trust, "castor", late).contains(castors));
        assert!(!of(&own, &trust, "leda", late).contains(castors));
    }
}
