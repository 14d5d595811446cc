//! Says it when pools lose their last backend or get one back, when zones help each other, and when tunnels do not fit. Once, not with each change.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::input::{World, mtu_towards, tunnel_overhead, tunnel_source};
use crate::{
    choice::Mode,
    config::{Config, Forward},
    events::{Events, Kind, News},
    netlink::NetState,
    nexthop::NextHops,
    state::{Family, desired::Desired},
};

/// Smallest MTU that IPv6 allows (RFC 8200 section 5), and what IPv4 hosts at least take (RFC 791 section 3.1).
const LEAST_MTU: [(&str, u32); 2] = [("IPv4", 576), ("IPv6", 1_280)];

/// What was said last.
#[derive(Debug, Default)]
pub struct Alarms {
    /// By service, and by the clients' IP version where that makes a difference.
    pools: BTreeMap<(String, Option<Family>), Mode>,
    tunnels: BTreeSet<String>,
    events: Events,
}

impl Alarms {
    /// Nothing has been said yet.
    #[must_use]
    pub fn new(events: Events) -> Self {
        Self { events, ..Self::default() }
    }

    /// Compares with last time, and logs the difference.
    pub fn tell(&mut self, world: World<'_>, desired: &Desired) {
        let lists = [
            (&desired.fail_open, Mode::Panic),
            (&desired.empty, Mode::Nobody),
            (&desired.spilling, Mode::Spill),
        ];
        let pools = lists.into_iter().flat_map(|(pools, mode)| {
            pools.iter().map(move |pool| ((pool.service.clone(), Some(pool.clients)), mode))
        });
        self.tell_pools(pools.collect(), true);
        let tunnels = tunnel_problems(world.config, world.network, world.next_hops);
        for problem in tunnels.difference(&self.tunnels) {
            tracing::warn!("{problem}");
        }
        self.tunnels = tunnels;
    }

    /// The same for the services of the sidecar.
    pub fn tell_l7(&mut self, modes: BTreeMap<String, Mode>) {
        let pools = modes.into_iter().map(|(service, mode)| ((service, None), mode));
        self.tell_pools(pools.filter(|(_, mode)| is_worth_a_word(*mode)).collect(), false);
    }

    /// Of l4 services or of l7 services.
    fn tell_pools(&mut self, now: BTreeMap<(String, Option<Family>), Mode>, l4: bool) {
        let mut before = std::mem::take(&mut self.pools);
        let others = before.extract_if(.., |(_, clients), _| clients.is_some() != l4).collect();
        for (pool, mode) in before.iter().filter(|(pool, mode)| now.get(*pool) != Some(*mode)) {
            tell_end(pool, *mode);
            self.note(pool, *mode, false);
        }
        for (pool, mode) in now.iter().filter(|(pool, mode)| before.get(*pool) != Some(*mode)) {
            tell_begin(pool, *mode);
            self.note(pool, *mode, true);
        }
        self.pools = others;
        self.pools.extend(now);
    }
}

impl Alarms {
    fn note(&self, (service, clients): &(String, Option<Family>), mode: Mode, begins: bool) {
        let (kind, text) = match (mode, begins) {
            (Mode::Panic, true) => (Kind::PanicBegan, "too few backends are up: all get clients"),
            (Mode::Panic, false) => (Kind::PanicEnded, "enough backends are up"),
            (Mode::Nobody, true) => {
                (Kind::TurningAwayBegan, "no backend is left: clients are turned away")
            }
            (Mode::Nobody, false) => (Kind::TurningAwayEnded, "there is a backend again"),
            (Mode::Spill, true) => {
                (Kind::SpillBegan, "too little of the own zone is up: others help")
            }
            (Mode::Spill, false) => (Kind::SpillEnded, "the own zone needs no help any more"),
            (Mode::All | Mode::Local, _) => return,
        };
        let text = match clients {
            Some(clients) => format!("{clients} clients: {text}"),
            None => text.to_owned(),
        };
        self.events.add(News::new(kind, text).of(service));
    }
}

fn is_worth_a_word(mode: Mode) -> bool {
    matches!(mode, Mode::Panic | Mode::Nobody | Mode::Spill)
}

fn tell_begin((service, clients): &(String, Option<Family>), mode: Mode) {
    let clients = clients.map(tracing::field::display);
    match mode {
        Mode::Panic => tracing::error!(
            service,
            clients,
            "TOO FEW BACKENDS ARE UP: failing open, new clients go to all of them as if they were up"
        ),
        Mode::Nobody => tracing::error!(
            service,
            clients,
            "NO BACKEND IS LEFT: new clients are turned away (all are down with fail_open = false, drain, or \
             have weight 0)"
        ),
        Mode::Spill => tracing::warn!(
            service,
            clients,
            "too little of the own zone is up: backends of other zones get newcomers, too"
        ),
        Mode::All | Mode::Local => {}
    }
}

fn tell_end((service, clients): &(String, Option<Family>), mode: Mode) {
    let clients = clients.map(tracing::field::display);
    match mode {
        Mode::Panic => tracing::info!(service, clients, "no longer failing open"),
        Mode::Nobody => tracing::info!(service, clients, "has a backend again"),
        Mode::Spill => tracing::info!(service, clients, "the own zone needs no help any more"),
        Mode::All | Mode::Local => {}
    }
}

/// Tunnels that cannot start, or leave too little room for packets.
pub fn tunnel_problems(
    config: &Config,
    network: &NetState,
    next_hops: &NextHops,
) -> BTreeSet<String> {
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
