//! The agent, as an operator runs it.

use anyhow::Result;
use tests::edge::{BackendConfig, Edge, EdgeConfig, Forward, ServiceConfig};

use crate::site::{SOURCE, Site, VIP, backends};

/// Where nobody connects to.
const OTHER_PORT: u16 = 81;
const INTERFACES: [&str; 2] = ["eth0", "eth1"];

/// An agent whose program sees another proxy's packets and passes them.
pub fn beside(site: &Site) -> Result<Edge> {
    let mut config = EdgeConfig::new(&INTERFACES);
    config.source_addresses = vec![SOURCE.into()];
    let mut service = ServiceConfig::new("other", [(VIP, OTHER_PORT).into()], Forward::Nat);
    for (n, address) in backends().into_iter().enumerate() {
        service.backends.push(BackendConfig::new(&format!("other-{n}"), address));
    }
    config.services.push(service);
    Edge::start(&site.edge, config)
}
