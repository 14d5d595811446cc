//! Whether this process may do what an agent does, before the kernel says EPERM without a reason.

use std::{fmt, fs, io};

/// A privilege of capabilities(7) that the agent needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// Addresses and XDP on interfaces.
    NetAdmin,
    /// Raw sockets: resets of flows, packets that wait for a next hop.
    NetRaw,
    /// Mounting bpffs; stands for `Perfmon` and `Bpf` too.
    SysAdmin,
    /// What the verifier allows to programs of the size and kind of the data plane.
    Perfmon,
    /// Maps and programs.
    Bpf,
}

impl Capability {
    /// Bit in the kernel's capability sets.
    const fn bit(self) -> u32 {
        match self {
            Self::NetAdmin => 12,
            Self::NetRaw => 13,
            Self::SysAdmin => 21,
            Self::Perfmon => 38,
            Self::Bpf => 39,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Perfmon => "CAP_PERFMON",
            Self::Bpf => "CAP_BPF",
        }
    }

    const fn what_for(self) -> &'static str {
        match self {
            Self::NetAdmin => "to attach XDP programs and to change addresses",
            Self::NetRaw => "to reset flows and to send packets that waited for a next hop",
            Self::SysAdmin => "to mount bpffs at /sys/fs/bpf, which is not mounted yet",
            Self::Perfmon => "to load XDP programs",
            Self::Bpf => "to create BPF maps and to load programs",
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Capabilities that this process lacks.
#[derive(Debug, PartialEq, Eq)]
pub struct Missing(pub Vec<Capability>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|c| c.name()).collect();
        write!(f, "this process lacks ")?;
        for (n, capability) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { ", " };
            write!(f, "{separator}{capability} ({})", capability.what_for())?;
        }
        write!(
            f,
            ": run lb-agent as root, or add \"AmbientCapabilities={}\" to its systemd unit",
            names.join(" ")
        )?;
        if self.0.contains(&Capability::SysAdmin) {
            write!(f, " (or let root run \"mount -t bpf bpf /sys/fs/bpf\" once)")?;
        }
        Ok(())
    }
}

impl std::error::Error for Missing {}

/// Checks the effective capabilities of this process. `CAP_SYS_ADMIN` is needed only to mount bpffs
/// where that has not been done. Locked memory is no concern: maps count as memory of the cgroup since
/// Linux 5.11, which is older than what the data plane needs.
pub fn check() -> anyhow::Result<()> {
    let status = fs::read_to_string("/proc/self/status")?;
    let effective = effective(&status)
        .ok_or_else(|| io::Error::other("/proc/self/status: no line CapEff; is /proc mounted?"))?;
    let missing = missing(effective, !super::pins::is_bpffs(super::pins::BPFFS.as_ref()));
    if missing.0.is_empty() { Ok(()) } else { Err(missing.into()) }
}

/// The effective set in the text of `/proc/PID/status`.
fn effective(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// What a process with this effective set lacks.
fn missing(effective: u64, must_mount: bool) -> Missing {
    let has = |capability: Capability| effective & 1 << capability.bit() != 0;
    let admin = has(Capability::SysAdmin);
    let mut missing = Vec::new();
    for capability in [Capability::NetAdmin, Capability::NetRaw] {
        if !has(capability) {
            missing.push(capability);
        }
    }
    for capability in [Capability::Bpf, Capability::Perfmon] {
        if !has(capability) && !admin {
            missing.push(capability);
        }
    }
    if must_mount && !admin {
        missing.push(Capability::SysAdmin);
    }
    Missing(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = 0x1ff_ffff_ffff;

    fn without(capabilities: &[Capability]) -> u64 {
        capabilities.iter().fold(ALL, |set, c| set & !(1 << c.bit()))
    }

    #[test]
    fn the_effective_set_is_read_from_its_line() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t000001fffeffffff\nCapBnd:\t0\n";
        assert_eq!(effective(status), Some(0x1ff_feff_ffff));
        assert_eq!(effective("Name:\tx\n"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        use Capability::*;
        for (set, must_mount, wanted) in [
            (ALL, true, vec![]),
            (0, false, vec![NetAdmin, NetRaw, Bpf, Perfmon]),
            (0, true, vec![NetAdmin, NetRaw, Bpf, Perfmon, SysAdmin]),
            (without(&[SysAdmin]), false, vec![]),
            (without(&[SysAdmin]), true, vec![SysAdmin]),
            (without(&[Bpf, Perfmon]), false, vec![]),
            (without(&[Bpf, SysAdmin]), false, vec![Bpf]),
            (without(&[NetAdmin]), false, vec![NetAdmin]),
        ] {
            assert_eq!(missing(set, must_mount), Missing(wanted), "{set:x} {must_mount}");
        }
    }

    #[test]
    fn the_message_has_the_remedy() {
        let text = missing(without(&[Capability::NetRaw]), false).to_string();
        assert!(text.contains("CAP_NET_RAW (to reset flows"), "{text}");
        assert!(text.contains("AmbientCapabilities=CAP_NET_RAW\""), "{text}");
    }
}
