//! What on this host would keep an edge from doing its work, each with the remedy.
//!
//! ```text
//! host -> facts (one struct for each area) -> judge (pure) -> findings
//! ```
//!
//! Gathering changes nothing: it reads files of the kernel and of the edge, asks netlink, and tries ports. Each area is
//! a file of its own; none knows another.

mod clock;
mod ethtool;
mod finding;
mod interfaces;
mod kernel;
mod network;
mod ports;
mod privileges;
mod sysctls;

use anyhow::Result;

pub use finding::{Finding, Level};

use crate::{bpf::lock::RUN_DIR, config::Config, netlink::Kernel};

/// Examines the host that this process runs on, for an edge with this configuration. Needs a tokio runtime.
pub async fn examine(config: &Config) -> Result<Vec<Finding>> {
    let state = Kernel::connect()?.snapshot().await?;
    let links = interfaces::gather(config, &state);
    let mut findings = kernel::judge(&kernel::gather());
    findings.extend(privileges::judge(&privileges::gather(), config));
    findings.extend(interfaces::judge(&links, config));
    findings.extend(network::judge(&state, config));
    findings.extend(ports::judge(&ports::gather(config, RUN_DIR.as_ref())));
    findings.extend(sysctls::judge(&sysctls::gather(config, &state), config));
    findings.extend(clock::judge(clock::gather()));
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration with these lines in `[edge]` and in the service.
    pub fn config(edge: &str, service: &str) -> Config {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            source_addresses = ["10.2.0.1"]
            hash_seed = "s"
            {edge}
            [[service]]
            name = "chat"
            listen = ["203.0.113.10:9000"]
            {service}
            [[service.backend]]
            name = "a"
            address = "10.2.0.2:9000"
            "#
        );
        crate::config::parse("edge.toml", &text).unwrap_or_else(|errors| panic!("{errors}")).0
    }

    /// Levels and areas, in short.
    pub fn short(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|it| format!("{} {}", it.level, it.thing)).collect()
    }
}
