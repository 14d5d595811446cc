//! The agent, as an operator runs it.

use std::time::Duration;

use anyhow::Result;
use tests::edge::{
    BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig, SidecarConfig,
};

use crate::site::{SOURCE, Site, VIP, VIP_PORT, backends};

/// Where nobody connects to.
const OTHER_PORT: u16 = 81;
const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// The agent, and as many workers of its sidecar, before the backends.
pub fn start(site: &Site, workers: u32) -> Result<Edge> {
    let l7 = L7Config { logged: false, ..L7Config::default() };
    let edge = Edge::start(&site.edge, config(VIP_PORT, Some(l7), workers))?;
    edge.wait_all_up()?;
    Ok(edge)
}

/// An agent whose program sees another proxy's packets and passes them.
pub fn beside(site: &Site) -> Result<Edge> {
    Edge::start(&site.edge, config(OTHER_PORT, None, 1))
}

fn config(port: u16, l7: Option<L7Config>, workers: u32) -> EdgeConfig {
    let mut config = EdgeConfig::new(&INTERFACES);
    config.source_addresses = vec![SOURCE.into()];
    config.sidecar = SidecarConfig { workers, ..SidecarConfig::default() };
    let mut service = ServiceConfig::new("chat", [(VIP, port).into()], Forward::Nat);
    service.l7 = l7;
    service.health = HealthConfig { interval: Duration::from_secs(5), ..HealthConfig::default() };
    for (n, address) in backends().into_iter().enumerate() {
        service.backends.push(BackendConfig::new(&format!("chat-{n}"), address));
    }
    config.services.push(service);
    config
}
