//! What this process may do: capabilities, bpffs, open files.

use nix::sys::resource::{Resource, getrlimit};

use super::Finding;
use crate::{
    bpf::{capabilities, pins},
    config::Config,
};

/// Descriptors that a busy worker should be able to have: two for each relayed connection.
const FILES: u64 = 65_536;

pub struct Facts {
    /// What is missing, with its remedy.
    capabilities: Option<String>,
    bpffs: bool,
    /// The hard limit of descriptors.
    files: u64,
}

pub fn gather() -> Facts {
    Facts {
        capabilities: capabilities::check().err().map(|error| format!("{error:#}")),
        bpffs: pins::is_bpffs(pins::BPFFS.as_ref()),
        files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
    }
}

pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let capabilities = match &facts.capabilities {
        None => Finding::ok("capabilities", "all that the agent needs"),
        Some(missing) => {
            let (what, remedy) = missing.split_once(": ").unwrap_or((missing, "run as root"));
            Finding::problem("capabilities", what, remedy)
        }
    };
    let bpffs = match facts.bpffs {
        true => Finding::ok("bpffs", format!("mounted at {}", pins::BPFFS)),
        false => Finding::warning(
            "bpffs",
            format!("not mounted at {}; the agent will mount it", pins::BPFFS),
            format!("mount -t bpf bpf {}, and let /etc/fstab do so at boot", pins::BPFFS),
        ),
    };
    let mut findings = vec![capabilities, bpffs];
    if config.l7().next().is_some() {
        findings.push(files(facts.files));
    }
    findings
}

fn files(limit: u64) -> Finding {
    let (thing, what) = ("open files", format!("{limit} for each worker"));
    if limit >= FILES {
        return Finding::ok(thing, what);
    }
    let what = format!("{what}: about {} relayed connections", limit / 2);
    Finding::warning(thing, what, format!("LimitNOFILE={FILES} or more in the systemd unit"))
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{config, short},
        *,
    };

    #[test]
    fn what_may_be_missing() {
        let (l4, l7) = (config("", ""), config("", "mode = \"l7\""));
        let good = Facts { capabilities: None, bpffs: true, files: 1_048_576 };
        assert_eq!(short(&judge(&good, &l4)), ["ok capabilities", "ok bpffs"]);
        assert_eq!(short(&judge(&good, &l7))[2], "ok open files");
        let missing = "this process lacks CAP_BPF (to create BPF maps): run lb-agent as root";
        let bad = Facts { capabilities: Some(missing.into()), bpffs: false, files: 1_024 };
        let findings = judge(&bad, &l7);
        let wanted = ["problem capabilities", "warning bpffs", "warning open files"];
        assert_eq!(short(&findings), wanted);
        assert_eq!(findings[0].remedy.as_deref(), Some("run lb-agent as root"));
        assert!(findings[2].what.contains("about 512 relayed"), "{}", findings[2].what);
    }
}
