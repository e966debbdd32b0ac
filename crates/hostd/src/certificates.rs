//! What a person should know of the certificates that this host shows and trusts.

use jiff::Timestamp;
use model::{Code, Problem};
use replica::certificate::validity;
use replica::identity::Identity;
use replica::trust::Trust;

/// So long before its end an authority's certificate is warned of, in seconds.
const WARN_S: i64 = 30 * 86_400;

/// What is out of date at `now`, or will be within 30 days.
pub(crate) fn warnings(identity: &Identity, trust: &Trust, now: Timestamp) -> Vec<Problem> {
    let mut found: Vec<Problem> = identity.warning(now).into_iter().collect();
    let date = |second| {
        let at = Timestamp::from_second(second).unwrap_or(now);
        at.strftime("%Y-%m-%d").to_string()
    };
    for known in trust.list() {
        let name = &known.peer.name;
        let until = known.authority().and_then(validity).map(|(_, until)| until);
        if let Some(until) = until.filter(|until| until - now.as_second() < WARN_S) {
            found.push(Problem::new(
                Code::Conflict,
                format!("the authority that `{name}` is trusted by"),
                format!("is valid until {} only", date(until)),
                format!("run `pollux host trust {name} ADDRESS --authority FILE` with a new one"),
            ));
        }
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
        // An authority lives for thirty years, and the own certificate is renewed by itself.
        let late = now + jiff::SignedDuration::from_hours(24 * (30 * 365 - 29));
        let found = warnings(&own, &trust, late);
        let castors = found.iter().find(|one| one.thing.contains("`castor`"));
        let castors = castors.expect("its authority ends");
        assert!(castors.way_out.contains("--authority FILE"), "{castors}");
    }
}
