//! Settings of the kernel that keep connections away, or slow them down.

use std::fs;

use super::Finding;
use crate::{config::Config, netlink::NetState, run::port_warning};

/// Handshakes that may wait to be accepted.
const BACKLOG: u32 = 1_024;

/// What is set; none where it cannot be read.
#[derive(Clone, Default)]
pub struct Facts {
    /// How the host's own connections could meet those of `nat`.
    ports: Option<String>,
    /// By interface, the stricter of its own and that of all.
    rp_filter: Vec<(String, u32)>,
    tcp_timestamps: Option<u32>,
    tcp_tw_reuse: Option<u32>,
    somaxconn: Option<u32>,
    bpf_stats: Option<u32>,
    bpf_jit_harden: Option<u32>,
}

pub fn gather(config: &Config, state: &NetState) -> Facts {
    let on_host = state.addresses.iter().map(|it| it.addr).collect();
    let of_all = read("net/ipv4/conf/all/rp_filter").unwrap_or(0);
    let rp_filter = config.edge.interfaces.iter().filter_map(|name| {
        let own = read(&format!("net/ipv4/conf/{name}/rp_filter"))?;
        Some((name.clone(), own.max(of_all)))
    });
    Facts {
        ports: port_warning(config, &on_host),
        rp_filter: rp_filter.collect(),
        tcp_timestamps: read("net/ipv4/tcp_timestamps"),
        tcp_tw_reuse: read("net/ipv4/tcp_tw_reuse"),
        somaxconn: read("net/core/somaxconn"),
        bpf_stats: read("kernel/bpf_stats_enabled"),
        bpf_jit_harden: read("net/core/bpf_jit_harden"),
    }
}

fn read(path: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/{path}")).ok()?.trim().parse().ok()
}

pub fn judge(facts: &Facts, config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(warning) = &facts.ports {
        let (what, remedy) = warning.rsplit_once(": ").unwrap_or((warning, "see docs/config.md"));
        findings.push(Finding::warning("source ports", what, remedy));
    }
    let mut warn = |when: bool, name: &str, what: &str, value: u32| {
        if when {
            findings.push(Finding::warning(name, what, format!("sysctl {name}={value}")));
        }
    };
    warn(
        facts.bpf_stats.is_some_and(|value| value > 0),
        "kernel.bpf_stats_enabled",
        "every run of the program is timed, which costs more than it does",
        0,
    );
    warn(
        facts.bpf_jit_harden.is_some_and(|value| value > 1),
        "net.core.bpf_jit_harden",
        "programs of root are blinded, too: slower code",
        1,
    );
    if config.l7().next().is_some() {
        for (name, _) in facts.rp_filter.iter().filter(|(_, value)| *value == 1) {
            let key = format!("net.ipv4.conf.{name}.rp_filter");
            let what =
                "strict: clients whose way back is another interface never reach the sidecar";
            warn(true, &key, what, 2);
        }
        let spliced = config.l7().filter_map(|service| service.l7()).any(|l7| l7.splice);
        warn(
            spliced && facts.tcp_timestamps == Some(0),
            "net.ipv4.tcp_timestamps",
            "off: only clients and backends without timestamps fit each other, and few are spliced",
            1,
        );
        warn(
            facts.tcp_tw_reuse == Some(0),
            "net.ipv4.tcp_tw_reuse",
            "off: ports of connections to backends rest for a minute each",
            1,
        );
        warn(
            facts.somaxconn.is_some_and(|value| value < BACKLOG),
            "net.core.somaxconn",
            "few clients can wait to be accepted, and a burst of them is refused",
            4_096,
        );
    }
    if findings.is_empty() {
        findings.push(Finding::ok("sysctls", "nothing in the way"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{config, short},
        *,
    };

    #[test]
    fn what_is_worth_a_warning_depends_on_the_mode() {
        let (l4, l7) = (config("", ""), config("", "mode = \"l7\""));
        for config in [&l4, &l7] {
            assert_eq!(short(&judge(&Facts::default(), config)), ["ok sysctls"]);
        }
        let bad = Facts {
            ports: Some("[edge] nat_ports: they meet: sysctl x=1".into()),
            rp_filter: vec![("eth0".into(), 1), ("eth1".into(), 2)],
            tcp_timestamps: Some(0),
            tcp_tw_reuse: Some(0),
            somaxconn: Some(128),
            bpf_stats: Some(1),
            bpf_jit_harden: Some(2),
        };
        let of_all = [
            "warning source ports",
            "warning kernel.bpf_stats_enabled",
            "warning net.core.bpf_jit_harden",
        ];
        let findings = judge(&bad, &l4);
        assert_eq!(short(&findings), of_all);
        assert_eq!(findings[0].remedy.as_deref(), Some("sysctl x=1"));
        let of_sidecar = [
            "warning net.ipv4.conf.eth0.rp_filter",
            "warning net.ipv4.tcp_timestamps",
            "warning net.ipv4.tcp_tw_reuse",
            "warning net.core.somaxconn",
        ];
        assert_eq!(short(&judge(&bad, &l7)), [&of_all[..], &of_sidecar].concat());
        let relaying = config("", "mode = \"l7\"\nsplice = \"off\"");
        assert!(!short(&judge(&bad, &relaying)).contains(&of_sidecar[1].to_owned()));
    }
}
