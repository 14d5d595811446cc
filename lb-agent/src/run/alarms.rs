//! Says it when pools lose their last backend or get one back, and when tunnels do not fit. Once, not with each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_sidecar::settings::Settings;

use super::{
    input::{World, mtu_towards, tunnel_overhead, tunnel_source},
    view_l7::{Nobody, nobody},
};
use crate::{
    config::Forward,
    state::desired::{Desired, Pool},
};

/// Smallest MTU that IPv6 allows (RFC 8200 section 5), and what IPv4 hosts at least take (RFC 791 section 3.1).
const LEAST_MTU: [(&str, u32); 2] = [("IPv4", 576), ("IPv6", 1_280)];

/// What was said last.
#[derive(Debug, Default)]
pub struct Alarms {
    fail_open: BTreeSet<Pool>,
    empty: BTreeSet<Pool>,
    tunnels: BTreeSet<String>,
    sidecar: BTreeMap<String, Nobody>,
}

impl Alarms {
    /// Compares with last time, and logs the difference.
    pub fn tell(&mut self, world: World<'_>, desired: &Desired) {
        let fail_open: BTreeSet<_> = desired.fail_open.iter().cloned().collect();
        let empty: BTreeSet<_> = desired.empty.iter().cloned().collect();
        for pool in fail_open.difference(&self.fail_open) {
            tracing::error!(
                service = pool.service,
                clients = %pool.clients,
                "ALL BACKENDS ARE DOWN: failing open, new connections go to all of them as if they were up"
            );
        }
        for pool in self.fail_open.difference(&fail_open) {
            tracing::info!(service = pool.service, clients = %pool.clients, "no longer failing open");
        }
        for pool in empty.difference(&self.empty) {
            tracing::error!(
                service = pool.service,
                clients = %pool.clients,
                "NO BACKEND IS LEFT: new connections are turned away (all are down with fail_open = false, or have \
                 weight 0)"
            );
        }
        for pool in self.empty.difference(&empty) {
            tracing::info!(service = pool.service, clients = %pool.clients, "has a backend again");
        }
        let tunnels = tunnel_problems(world);
        for problem in tunnels.difference(&self.tunnels) {
            tracing::warn!("{problem}");
        }
        (self.fail_open, self.empty, self.tunnels) = (fail_open, empty, tunnels);
    }

    /// The same for the services of the sidecar.
    pub fn tell_l7(&mut self, told: &Settings) {
        let now = told.services.iter().filter_map(|it| Some((it.name.clone(), nobody(it)?)));
        let now: BTreeMap<_, _> = now.collect();
        for (service, nobody) in &now {
            match nobody {
                _ if self.sidecar.get(service) == Some(nobody) => {}
                Nobody::FailingOpen => tracing::error!(
                    service,
                    "ALL BACKENDS ARE DOWN: failing open, new clients go to all of them as if they were up"
                ),
                Nobody::TurnedAway => tracing::error!(
                    service,
                    "NO BACKEND IS LEFT: new clients are turned away (all are down with fail_open = false, drain, or \
                     have weight 0)"
                ),
            }
        }
        for service in self.sidecar.keys().filter(|service| !now.contains_key(*service)) {
            tracing::info!(service, "has a backend again");
        }
        self.sidecar = now;
    }
}

/// Tunnels that cannot start, or leave too little room for packets.
fn tunnel_problems(world: World<'_>) -> BTreeSet<String> {
    let World { config, network, next_hops, .. } = world;
    let mut problems = BTreeSet::new();
    let tunnelled = config.l4().filter(|service| service.forward == Forward::Ipip);
    for service in tunnelled {
        for backend in &service.backends {
            let ip = backend.address.ip();
            let thing = format!("service {:?}: backend {:?}", service.name, backend.name);
            if tunnel_source(config, network, ip).is_none() {
                problems.insert(format!(
                    "{thing}: the host has no address of its own towards {ip} for the tunnel to start from: add one, \
                     or name it in [edge] source_addresses"
                ));
            }
            let mtu = mtu_towards(network, next_hops, ip);
            let room = mtu.saturating_sub(tunnel_overhead(ip));
            let carried = |addr: &IpAddr| service.forward.carries(*addr, ip);
            let listeners = service.listen.iter().map(|addr| addr.ip()).filter(carried);
            for v6 in listeners.map(|addr| addr.is_ipv6()).collect::<BTreeSet<_>>() {
                let (version, least) = LEAST_MTU[usize::from(v6)];
                if room < least {
                    problems.insert(format!(
                        "{thing}: the MTU of {mtu} towards {ip} leaves {room} bytes for packets in the tunnel, and \
                         {version} needs {least}: raise the MTU of that link to {} or more",
                        least + tunnel_overhead(ip)
                    ));
                }
            }
        }
    }
    problems
}
