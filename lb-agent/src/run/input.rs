//! From the configuration, the backends' health and the host's network to what the maps depend on. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_common::{hash, next_hop};
use tokio::time::Instant;

use super::{checks::key, liveness::Liveness};
use crate::{
    choice::{Rule, is_local},
    config::{self, Config, VipAddresses},
    netlink::{
        NetState, Route,
        state::is_link_local,
        vip::{IFA_PROTO_SLUICE, VipPolicy},
    },
    nexthop::{self, NextHops},
    state::{
        Prefix,
        access::Access,
        desired::{Affinity, BackendInput, Forward, Input, ServiceInput},
    },
};

/// What an Ethernet link carries if nothing better is known, in bytes.
const USUAL_MTU: u32 = 1_500;

/// What the input is made from.
#[derive(Clone, Copy)]
pub struct World<'a> {
    pub config: &'a Config,
    pub liveness: &'a Liveness,
    pub network: &'a NetState,
    pub next_hops: &'a NextHops,
    pub now: Instant,
}

/// All that the maps depend on.
#[must_use]
pub fn input(world: World<'_>) -> Input {
    let World { config, network, next_hops, .. } = world;
    let edge = &config.edge;
    let (first, last) = (*edge.nat_ports.start(), *edge.nat_ports.end());
    let on_host = network.addresses.iter().map(|it| it.addr);
    // What the sidecar listens on is the kernel's, now or soon, with all that is sent to it.
    let of_kernel: BTreeSet<IpAddr> = on_host.chain(addresses(config.l7())).collect();
    Input {
        hash_seed: hash::seed(&edge.hash_seed),
        nat_port_first: first,
        nat_port_count: last - first + 1,
        source_addresses: edge.source_addresses.clone(),
        services: config.services.iter().map(|service| service_input(world, service)).collect(),
        xdp_only: addresses(config.l4()).filter(|vip| !of_kernel.contains(vip)).collect(),
        next_hops: next_hops
            .table
            .iter()
            .enumerate()
            .filter_map(|(id, hop)| Some((u16::try_from(id).ok()?, in_map(hop.as_ref()?))))
            .collect(),
        routes: next_hops
            .routes
            .iter()
            .map(|(to, id)| (Prefix::new(to.addr(), to.len()), short(*id)))
            .collect(),
        retired_next_hops: next_hops
            .backends
            .iter()
            .map(|(addr, id)| (*addr, short(*id)))
            .collect(),
        access: access(&edge.access),
    }
}

/// The services by name, listeners and backends alone: all that ids depend on.
#[must_use]
pub fn skeleton(config: &Config) -> Vec<ServiceInput> {
    let nowhere = NextHops::default();
    let world = World {
        config,
        liveness: &Liveness::default(),
        network: &NetState::default(),
        next_hops: &nowhere,
        now: Instant::now(),
    };
    config.services.iter().map(|service| service_input(world, service)).collect()
}

/// The addresses of all listeners, and when the host must have them. What the sidecar listens on is of no use before
/// the host has it.
#[must_use]
pub fn vips(config: &Config) -> BTreeMap<IpAddr, VipPolicy> {
    let (of_xdp, of_sidecar) = match config.edge.vip_addresses {
        VipAddresses::Auto => (VipPolicy::Auto, VipPolicy::Always),
        VipAddresses::Always => (VipPolicy::Always, VipPolicy::Always),
        VipAddresses::Never => (VipPolicy::Never, VipPolicy::Never),
    };
    let of_xdp = addresses(config.l4()).map(|vip| (vip, of_xdp));
    of_xdp.chain(addresses(config.l7()).map(|vip| (vip, of_sidecar))).collect()
}

fn addresses<'a>(
    services: impl Iterator<Item = &'a config::Service>,
) -> impl Iterator<Item = IpAddr> {
    services.flat_map(|service| &service.listen).map(|addr| addr.ip())
}

fn service_input(world: World<'_>, service: &config::Service) -> ServiceInput {
    ServiceInput {
        name: service.name.clone(),
        listeners: service.listen.clone(),
        forward: match (service.l7().is_some(), service.forward) {
            (true, _) if is_spliced(service) => Forward::Splice,
            (true, _) => Forward::Relay,
            (false, config::Forward::Nat) => Forward::Nat,
            (false, config::Forward::Dsr) => Forward::Dsr,
            (false, config::Forward::Ipip) => Forward::Ipip,
        },
        affinity: match service.affinity {
            config::Affinity::None => Affinity::None,
            config::Affinity::Source => Affinity::Source,
        },
        backends: service.backends.iter().map(|it| backend_input(world, service, it)).collect(),
        rule: Rule::of(&world.config.edge, service),
        access: access(&service.access),
    }
}

fn access(lists: &config::Access) -> Access {
    let prefix = |&(addr, len): &(IpAddr, u8)| Prefix::new(addr, len);
    Access {
        allow: lists.allow.iter().map(prefix).collect(),
        deny: lists.deny.iter().map(prefix).collect(),
    }
}

/// Whether connections of an l7 service may be spliced.
#[must_use]
pub fn is_spliced(service: &config::Service) -> bool {
    service.l7().is_some_and(|l7| l7.splice)
}

fn backend_input(
    world: World<'_>,
    service: &config::Service,
    backend: &config::Backend,
) -> BackendInput {
    let World { config, liveness, network, next_hops, now } = world;
    let key = key(&service.name, backend);
    let ip = backend.address.ip();
    BackendInput {
        name: backend.name.clone(),
        addr: backend.address,
        weight: liveness.weight(&key, backend.weight, service.health.slow_start, now),
        up: liveness.is_live(&key),
        next_hop: next_hops.backends.get(&ip).map_or(next_hop::FIB, |id| short(*id)),
        // Flows that began while the service was one of tunnels go on in them.
        tunnel_source: tunnel_source(config, network, ip),
        mss_clamp: match service.forward {
            config::Forward::Ipip => tunnel_mss(service, ip, mtu_towards(network, next_hops, ip)),
            config::Forward::Nat | config::Forward::Dsr => 0,
        },
        whole_weight: backend.weight,
        local: is_local(&config.edge, backend),
    }
}

/// The address from which tunnels to a backend start: a configured one, else the one which the host itself would use.
#[must_use]
pub fn tunnel_source(config: &Config, network: &NetState, to: IpAddr) -> Option<IpAddr> {
    let same_version = |addr: &&IpAddr| addr.is_ipv4() == to.is_ipv4();
    if let Some(configured) = config.edge.source_addresses.iter().find(same_version) {
        return Some(*configured);
    }
    let route = route_towards(network, to)?;
    let on_link = network.addresses.iter().find(|address| {
        address.ifindex == route.ifindex
            && address.addr.is_ipv4() == to.is_ipv4()
            && address.proto != IFA_PROTO_SLUICE
            && !is_link_local(address.addr)
    });
    route.src.or_else(|| on_link.map(|address| address.addr))
}

/// Largest IP packet that the link towards an address takes, in bytes.
#[must_use]
pub fn mtu_towards(network: &NetState, next_hops: &NextHops, to: IpAddr) -> u32 {
    let known = next_hops.backends.get(&to).and_then(|id| next_hops.get(*id)).map(|hop| hop.mtu);
    let by_route =
        || Some(network.link(route_towards(network, to)?.ifindex)?.mtu).filter(|mtu| *mtu > 0);
    known.or_else(by_route).unwrap_or(USUAL_MTU)
}

/// The route that a packet to an address takes, by the main table.
#[must_use]
pub fn route_towards(network: &NetState, to: IpAddr) -> Option<&Route> {
    let routes = network.routes.iter().filter(|route| route.prefix.contains(to));
    routes.max_by_key(|route| (route.prefix.len(), Reverse(route.metric)))
}

/// Bytes that the tunnel to a backend adds.
#[must_use]
pub fn tunnel_overhead(backend: IpAddr) -> u32 {
    ip_header(backend.is_ipv6())
}

/// The largest segment that fits the tunnel, for clients of every IP version that the service has.
fn tunnel_mss(service: &config::Service, backend: IpAddr, mtu: u32) -> u16 {
    const TCP_HEADER: u32 = 20;
    let inner_ipv6 =
        service.listen.iter().any(|it| it.is_ipv6() && service.forward.carries(it.ip(), backend));
    let room = mtu.saturating_sub(tunnel_overhead(backend) + ip_header(inner_ipv6) + TCP_HEADER);
    u16::try_from(room).unwrap_or(u16::MAX)
}

const fn ip_header(ipv6: bool) -> u32 {
    if ipv6 { 40 } else { 20 }
}

/// Ids are below [`nexthop::MAX_NEXT_HOPS`].
fn short(id: u32) -> u16 {
    u16::try_from(id).unwrap_or(next_hop::FIB)
}

fn in_map(hop: &nexthop::NextHop) -> next_hop::NextHop {
    let mut tags = [[0; 2]; 2];
    for (to, tag) in tags.iter_mut().zip(&hop.tags) {
        *to = [tag.tpid.to_be(), tag.vid.to_be()];
    }
    next_hop::NextHop {
        ifindex: if hop.ready { hop.egress } else { 0 },
        mtu: u16::try_from(hop.mtu).unwrap_or(u16::MAX),
        tags_len: 4 * hop.tags.len().min(2) as u8,
        dst: hop.dst_mac,
        src: hop.src_mac,
        tags,
        ..next_hop::NextHop::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{self, Address, LinkInfo, RouteKind, VlanTag};

    fn config(service: &str) -> Config {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            nat_ports = "2000-2999"
            hash_seed = "seed"
            {service}
            "#
        );
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    fn tunnels() -> Config {
        config(
            r#"
            [[service]]
            name = "uploads"
            listen = ["203.0.113.11:443", "[2001:db8::11]:443"]
            forward = "ipip"
            [[service.backend]]
            name = "four"
            address = "10.2.0.2:443"
            [[service.backend]]
            name = "six"
            address = "[2001:db8:3::2]:443"
            "#,
        )
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn network() -> NetState {
        let address =
            |addr: &str, proto| Address { ifindex: 2, addr: ip(addr), prefix_len: 24, proto };
        let route = |prefix: &str, len| Route {
            prefix: netlink::Prefix::new(ip(prefix), len),
            via: None,
            ifindex: 2,
            metric: 0,
            src: None,
            kind: RouteKind::Plain,
        };
        NetState {
            links: vec![LinkInfo {
                index: 2,
                name: "eth0".into(),
                mtu: 9_000,
                ..Default::default()
            }],
            addresses: vec![
                address("203.0.113.11", IFA_PROTO_SLUICE),
                address("10.2.0.1", 0),
                address("fe80::1", 0),
                address("2001:db8:3::1", 0),
            ],
            routes: vec![route("10.2.0.0", 24), route("2001:db8:3::", 64)],
            ..NetState::default()
        }
    }

    fn input_of(config: &Config, network: &NetState, next_hops: &NextHops) -> Input {
        let mut liveness = Liveness::default();
        liveness.follow(config, |_, _| None);
        input(World { config, liveness: &liveness, network, next_hops, now: Instant::now() })
    }

    #[test]
    fn edges_settings_are_taken_over() {
        let input = input_of(&tunnels(), &network(), &NextHops::default());
        assert_eq!(input.hash_seed, hash::seed("seed"));
        assert_eq!((input.nat_port_first, input.nat_port_count), (2_000, 1_000));
        assert_eq!(
            input.xdp_only,
            BTreeSet::from([ip("2001:db8::11")]),
            "the other is on the host"
        );
        assert!(input.services[0].backends.iter().all(|backend| backend.up));
    }

    #[test]
    fn l7_services_are_in_the_maps_and_their_vips_never_without_the_host() {
        let mut config = config(
            r#"
            [[service]]
            name = "uploads"
            forward = "dsr"
            listen = ["203.0.113.10:81", "203.0.113.12:81"]
            backend = [{ address = "10.2.0.2:81" }]
            [[service]]
            name = "chat"
            mode = "l7"
            listen = ["203.0.113.10:80", "[2001:db8::10]:80"]
            backend = [{ address = "10.2.0.2:9000" }, { address = "[2001:db8:3::2]:9000" }]
            [[service]]
            name = "rooms"
            mode = "l7"
            splice = "off"
            listen = ["203.0.113.10:82"]
            backend = [{ address = "10.2.0.2:9000" }]
            "#,
        );
        let input = input_of(&config, &network(), &NextHops::default());
        assert_eq!(input.xdp_only, BTreeSet::from([ip("203.0.113.12")]));
        let [uploads, chat, rooms] = input.services.as_slice() else { panic!() };
        assert_eq!((uploads.forward, chat.forward), (Forward::Dsr, Forward::Splice));
        assert_eq!((rooms.forward, rooms.backends.len()), (Forward::Relay, 1));
        assert_eq!((chat.listeners.len(), chat.backends.len()), (2, 2));
        assert_eq!(skeleton(&config).len(), 3);
        config.services.truncate(1);
        let input = input_of(&config, &network(), &NextHops::default());
        assert_eq!(input.xdp_only.len(), 2);
    }

    #[test]
    fn tunnels_start_at_the_hosts_own_address_and_leave_room_for_their_headers() {
        let input = input_of(&tunnels(), &network(), &NextHops::default());
        let [four, six] = input.services[0].backends.as_slice() else { panic!() };
        assert_eq!(four.tunnel_source, Some(ip("10.2.0.1")));
        assert_eq!(six.tunnel_source, Some(ip("2001:db8:3::1")));
        // Only IPv4 clients go through the IPv4 tunnel.
        assert_eq!(four.mss_clamp, 9_000 - 20 - 20 - 20);
        assert_eq!(six.mss_clamp, 9_000 - 40 - 40 - 20);
    }

    #[test]
    fn tunnels_of_a_service_that_has_given_them_up_go_on() {
        let mut config = tunnels();
        config.services[0].forward = config::Forward::Dsr;
        let input = input_of(&config, &network(), &NextHops::default());
        let four = &input.services[0].backends[0];
        assert_eq!((four.tunnel_source, four.mss_clamp), (Some(ip("10.2.0.1")), 0));
    }

    #[test]
    fn a_configured_source_wins() {
        let mut config = tunnels();
        config.edge.source_addresses = vec![ip("10.9.9.9")];
        assert_eq!(tunnel_source(&config, &network(), ip("10.2.0.2")), Some(ip("10.9.9.9")));
    }

    #[test]
    fn next_hops_are_written_as_they_stand_on_the_wire() {
        let hop = nexthop::NextHop {
            key: (3, ip("10.2.0.2")),
            egress: 2,
            dst_mac: [1; 6],
            src_mac: [2; 6],
            tags: vec![VlanTag { tpid: 0x8100, vid: 100 }],
            mtu: 70_000,
            ready: true,
            permanent: false,
        };
        let next_hops = NextHops {
            table: vec![None, Some(hop.clone()), Some(nexthop::NextHop { ready: false, ..hop })],
            routes: [(netlink::Prefix::new(ip("10.2.0.0"), 24), 1)].into(),
            backends: [(ip("10.2.0.2"), 1)].into(),
            ..NextHops::default()
        };
        let input = input_of(&tunnels(), &network(), &next_hops);
        let written = input.next_hops[&1];
        assert_eq!((written.ifindex, written.mtu, written.tags_len), (2, u16::MAX, 4));
        assert_eq!(written.tags[0].map(u16::from_be), [0x8100, 100]);
        assert_eq!(input.next_hops[&2].ifindex, 0, "not usable now");
        assert_eq!(input.routes[&Prefix::new(ip("10.2.0.0"), 24)], 1);
        assert_eq!(input.services[0].backends[0].next_hop, 1);
        assert_eq!(input.services[0].backends[1].next_hop, 0);
    }
}
