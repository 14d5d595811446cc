//! The ways to backends: routes, interfaces, neighbours, and room in tunnels.

use std::{collections::BTreeSet, net::IpAddr};

use super::Finding;
use crate::{
    config::Config,
    netlink::NetState,
    nexthop::NextHops,
    run::{route_towards, tunnel_problems},
};

pub fn judge(state: &NetState, config: &Config) -> Vec<Finding> {
    let interfaces: BTreeSet<u32> = {
        let links = config.edge.interfaces.iter().filter_map(|name| state.link_named(name));
        links.map(|link| link.index).collect()
    };
    let backends = config.services.iter().flat_map(|service| &service.backends);
    let backends: BTreeSet<IpAddr> = backends.map(|backend| backend.address.ip()).collect();
    let next_hops = NextHops::compute(&NextHops::default(), state, &interfaces, &backends);
    let ways = backends.iter().filter_map(|ip| way(*ip, state, &interfaces, &next_hops));
    let mut findings: Vec<Finding> = ways.collect();
    if findings.is_empty() {
        let count = backends.len();
        findings.push(Finding::ok("ways to backends", format!("all {count} addresses have one")));
    }
    let limits = next_hops.limits.iter().map(ToString::to_string);
    findings.extend(limits.map(|limit| split(Finding::warning, "next hops", &limit)));
    let tunnels = tunnel_problems(config, state, &next_hops);
    findings.extend(tunnels.iter().map(|problem| split(Finding::problem, "tunnels", problem)));
    findings
}

/// Messages of the agent have the remedy at their end.
fn split(level: fn(String, String, String) -> Finding, thing: &str, message: &str) -> Finding {
    let (what, remedy) = message.rsplit_once(": ").unwrap_or((message, "see docs/agent.md"));
    level(thing.to_owned(), what.to_owned(), remedy.to_owned())
}

/// What is wrong with the way to a backend, if anything is.
fn way(
    ip: IpAddr,
    state: &NetState,
    interfaces: &BTreeSet<u32>,
    next_hops: &NextHops,
) -> Option<Finding> {
    let thing = format!("way to {ip}");
    let Some(route) = route_towards(state, ip) else {
        return Some(Finding::problem(
            thing,
            "no route",
            format!("ip route add {ip}/.. via ..., or a default route"),
        ));
    };
    let id = next_hops.backends.get(&ip).copied().unwrap_or(0);
    let Some(hop) = next_hops.get(id) else {
        let name = state.link(route.ifindex).map_or("?", |link| link.name.as_str());
        let remedy =
            format!("name {name} in [edge] interfaces, if clients' packets are to go that way");
        let what =
            format!("by {name}, on which there is no XDP program: the kernel looks each packet up");
        return (!interfaces.contains(&route.ifindex))
            .then(|| Finding::warning(thing, what, remedy));
    };
    let (_, neighbour) = hop.key;
    (!hop.ready).then(|| {
        let what = format!("neighbour {neighbour} has not answered yet");
        Finding::warning(
            thing,
            what,
            format!("ping {neighbour}; if nobody answers, look at its link and VLAN"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::tests::{config, short},
        *,
    };
    use crate::netlink::{Address, LinkInfo, Neighbour, Prefix, Route, RouteKind};

    /// `eth0` with the backend's subnet, and `mgmt`.
    fn state() -> NetState {
        let link = |index, name: &str, mtu| LinkInfo {
            index,
            name: name.to_owned(),
            mac: Some([2; 6]),
            mtu,
            up: true,
            ..LinkInfo::default()
        };
        let addr: IpAddr = "10.2.0.1".parse().unwrap();
        NetState {
            links: vec![link(2, "eth0", 1_500), link(3, "mgmt", 1_500)],
            addresses: vec![Address { ifindex: 2, addr, prefix_len: 24, proto: 0 }],
            routes: vec![route("10.2.0.0", 24, 2)],
            neighbours: vec![Neighbour {
                ifindex: 2,
                addr: "10.2.0.2".parse().unwrap(),
                mac: Some([4; 6]),
                reachable: true,
                permanent: false,
            }],
            ..NetState::default()
        }
    }

    fn route(prefix: &str, len: u8, ifindex: u32) -> Route {
        Route {
            prefix: Prefix::new(prefix.parse().unwrap(), len),
            via: None,
            ifindex,
            metric: 0,
            src: None,
            kind: RouteKind::Plain,
        }
    }

    #[test]
    fn backends_need_a_route_and_a_neighbour() {
        let config = config("", "");
        assert_eq!(short(&judge(&state(), &config)), ["ok ways to backends"]);
        let mut silent = state();
        silent.neighbours.clear();
        let findings = judge(&silent, &config);
        assert_eq!(short(&findings), ["warning way to 10.2.0.2"]);
        assert!(findings[0].what.contains("10.2.0.2 has not answered"), "{}", findings[0].what);
        let mut elsewhere = state();
        elsewhere.routes = vec![route("10.2.0.0", 24, 3)];
        let findings = judge(&elsewhere, &config);
        assert!(findings[0].what.starts_with("by mgmt"), "{findings:?}");
        let mut nowhere = state();
        nowhere.routes.clear();
        assert_eq!(short(&judge(&nowhere, &config)), ["problem way to 10.2.0.2"]);
    }

    #[test]
    fn tunnels_need_room() {
        let mut state = state();
        state.links[0].mtu = 580;
        let config = config("", "forward = \"ipip\"");
        let findings = judge(&state, &config);
        assert_eq!(short(&findings), ["ok ways to backends", "problem tunnels"]);
        let remedy = findings[1].remedy.as_deref().unwrap();
        assert_eq!(remedy, "raise the MTU of that link to 596 or more");
    }
}
