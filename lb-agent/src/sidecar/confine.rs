//! The first thing that a worker does: it makes sure that it has no privileges, and can win none.

use std::fs;

use anyhow::{Context, Result, bail};
use nix::{
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::geteuid,
};
use rustix::{
    process::{DumpableBehavior, set_dumpable_behavior},
    thread::{set_name, set_no_new_privs},
};

/// Refuses to go on with privileges, and gives up the ways to any.
pub fn confine() -> Result<()> {
    let status = fs::read_to_string("/proc/self/status").context("/proc/self/status")?;
    if geteuid().is_root() {
        bail!(
            "the sidecar does not run as root: `lb-agent run` starts it as the user of [edge.sidecar]"
        );
    }
    if let Some(set) = privileges(&status) {
        bail!(
            "the sidecar does not run with capabilities ({set}): `lb-agent run` starts it without any"
        );
    }
    set_no_new_privs(true).context("no_new_privs")?;
    // Nobody of the same user may look at the keys in its memory.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).context("dumpable")?;
    let _ = set_name(c"lb-sidecar");
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).context("RLIMIT_NOFILE")?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("RLIMIT_NOFILE")
}

/// The first set of capabilities in the text of `/proc/PID/status` that is not empty. The bounding set gives nothing by
/// itself, and nothing at all under no_new_privs.
fn privileges(status: &str) -> Option<&str> {
    let sets = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"];
    status.lines().find(|line| {
        let value = sets.iter().find_map(|set| line.strip_prefix(set));
        value.is_some_and(|value| value.trim().bytes().any(|digit| digit != b'0'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_capability_is_one_too_many() {
        let none = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
                    CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\n";
        assert_eq!(privileges(none), None);
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            let one = none.replace(&format!("{set}:\t00"), &format!("{set}:\t01"));
            assert!(privileges(&one).unwrap().starts_with(set), "{one}");
        }
    }
}
