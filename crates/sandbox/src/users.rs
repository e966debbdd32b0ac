//! The users that processes of VMs run as.
//!
//! They have no name and no entry in `/etc/passwd`: 2^27 numbers from 2,010,000,000 on, which
//! systemd leaves unused (its containers end at 1,879,048,191 and its foreign range begins at
//! 2,147,352,576), and which lie past what SSSD and FreeIPA give to people (up to 2,000,200,000).

use std::fs;

use model::VmId;
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, capabilities};

const FIRST: u32 = 2_010_000_000;
const COUNT: u32 = 1 << 27;

/// The user, and the group of the same number, that the processes of `vm` run as when root starts
/// them. The same on every host. Two VMs of one host that share it (one pair in 134 million does)
/// are kept apart by Landlock alone.
#[must_use]
pub fn user_of(vm: VmId) -> u32 {
    let [.., a, b, c, d] = *vm.0.as_bytes();
    FIRST + u32::from_be_bytes([a, b, c, d]) % COUNT
}

/// Whether this process may start others as `user`.
///
/// # Errors
/// Why it may not.
pub fn can_become(user: u32) -> Result<(), String> {
    if !geteuid().is_root() {
        return Err("only root can give a VM a user of its own".to_owned());
    }
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::CHOWN;
    if !holds(needed) {
        let said = "a VM gets no user of its own: setuid, setgid or chown was taken from root";
        return Err(said.to_owned());
    }
    for map in ["uid_map", "gid_map"] {
        // Without user namespaces there is no map, and every number is good.
        let text = fs::read_to_string(format!("/proc/self/{map}")).unwrap_or_default();
        if !text.is_empty() && !is_mapped(&text, user) {
            return Err(format!(
                "a VM gets no user of its own: {user} does not exist in this user namespace ({map})"
            ));
        }
    }
    let groups = fs::read_to_string("/proc/self/setgroups").unwrap_or_default();
    if groups.trim() == "deny" {
        let said = "a VM gets no user of its own: this user namespace denies setgroups";
        return Err(said.to_owned());
    }
    Ok(())
}

/// Whether this process has these capabilities.
pub(crate) fn holds(needed: CapabilitySet) -> bool {
    capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// Whether `id` is in a map as of user_namespaces(7): inside, outside, length.
fn is_mapped(map: &str, id: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.nth(1)) {
            (Some(Ok(first)), Some(Ok(length))) => {
                (first..first.saturating_add(length)).contains(&u64::from(id))
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_in_the_map_of_its_namespace() {
        assert!(is_mapped("         0          0 4294967295\n", FIRST));
        assert!(!is_mapped("0 100000 65536\n", FIRST));
        assert!(is_mapped("0 100000 65536\n2010000000 7 1\n", FIRST));
        assert!(!is_mapped("2010000000 7 1\n", FIRST + 1));
        assert!(!is_mapped("nonsense\n", 0));
    }

    #[test]
    fn users_of_vms_lie_in_their_range_and_never_in_systemds() {
        for _ in 0..1000 {
            let user = user_of(VmId::random());
            assert!((2_010_000_000..2_147_352_576).contains(&user), "{user}");
        }
    }
}
