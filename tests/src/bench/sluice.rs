//! The agent, as an operator runs it.

use std::time::Duration;

use crate::edge::{
    BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig, SidecarConfig,
};
use anyhow::Result;

use crate::bench::site::{SOURCE, Site, VIP, VIP_PORT};
use crate::tls::Files;

/// The only service of the agent.
pub const SERVICE: &str = "chat";
/// Where nobody connects to.
const OTHER_PORT: u16 = 81;
const FLOWS: u32 = 16_384;
const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// What differs from run to run.
#[derive(Clone, Copy, Debug)]
pub struct Sidecar {
    pub workers: u32,
    /// Whether connections are spliced after their upgrade, or relayed.
    pub spliced: bool,
    /// Entries of each flow table.
    pub flows: u32,
}

impl Sidecar {
    /// So many workers that relay.
    #[must_use]
    pub const fn relaying(workers: u32) -> Self {
        Self { workers, spliced: false, flows: FLOWS }
    }

    /// So many workers that have connections spliced.
    #[must_use]
    pub const fn splicing(workers: u32, flows: u32) -> Self {
        Self { workers, spliced: true, flows }
    }
}

/// The agent, and its sidecar before the backends.
pub fn start(site: &Site, sidecar: &Sidecar) -> Result<Edge> {
    serve(site, sidecar, None)
}

/// The same, and clients speak TLS.
pub fn secure(site: &Site, sidecar: &Sidecar, files: &Files) -> Result<Edge> {
    serve(site, sidecar, Some(files.clone()))
}

fn serve(site: &Site, sidecar: &Sidecar, tls: Option<Files>) -> Result<Edge> {
    let l7 = L7Config { logged: false, spliced: sidecar.spliced, tls, ..L7Config::default() };
    let edge = Edge::start(&site.edge, config(site, VIP_PORT, Some(l7), sidecar))?;
    edge.wait_all_up()?;
    Ok(edge)
}

/// An agent whose program sees another proxy's packets and passes them.
pub fn beside(site: &Site) -> Result<Edge> {
    Edge::start(&site.edge, config(site, OTHER_PORT, None, &Sidecar::relaying(1)))
}

fn config(site: &Site, port: u16, l7: Option<L7Config>, sidecar: &Sidecar) -> EdgeConfig {
    let mut config = EdgeConfig::new(&INTERFACES);
    config.source_addresses = vec![SOURCE.into()];
    config.flows = sidecar.flows;
    config.handshakes = sidecar.flows;
    config.sidecar = SidecarConfig { workers: sidecar.workers, ..SidecarConfig::default() };
    let mut service = ServiceConfig::new(SERVICE, [(VIP, port).into()], Forward::Nat);
    service.l7 = l7;
    service.health = HealthConfig { interval: Duration::from_secs(5), ..HealthConfig::default() };
    for (n, address) in site.backends().iter().enumerate() {
        service.backends.push(BackendConfig::new(&format!("chat-{n}"), *address));
    }
    config.services.push(service);
    config
}
