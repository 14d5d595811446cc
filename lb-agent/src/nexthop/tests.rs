use super::*;
use crate::netlink::{Address, LinkInfo, Neighbour, Route, RouteKind, Vlan};

mod limits;
mod properties;

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const VLAN: u32 = 4;
const QINQ: u32 = 5;
const MGMT: u32 = 6;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

fn mac(last: u8) -> Mac {
    [2, 0, 0, 0, 0, last]
}

/// `via` empty: on the link.
fn route(to: &str, via: &str, ifindex: u32) -> Route {
    let via = (!via.is_empty()).then(|| ip(via));
    Route { prefix: prefix(to), via, ifindex, metric: 0, src: None, kind: RouteKind::Plain }
}

fn neighbour(ifindex: u32, addr: &str, last: u8) -> Neighbour {
    Neighbour { ifindex, addr: ip(addr), mac: Some(mac(last)), reachable: true, permanent: false }
}

/// eth0 and eth1 run XDP; VLAN 7 is on eth1, and VLAN 9 inside it; mgmt does not run XDP.
fn links() -> Vec<LinkInfo> {
    let link = |index, vlan| LinkInfo {
        index,
        mac: Some(mac(index as u8)),
        mtu: 1500,
        up: true,
        vlan,
        ..LinkInfo::default()
    };
    let tag = |parent, tpid, vid| Some(Vlan { parent, tag: VlanTag { tpid, vid } });
    vec![
        link(ETH0, None),
        link(ETH1, None),
        link(VLAN, tag(ETH1, 0x88a8, 7)),
        link(QINQ, tag(VLAN, 0x8100, 9)),
        link(MGMT, None),
    ]
}

fn state(routes: Vec<Route>, neighbours: Vec<Neighbour>) -> NetState {
    NetState { links: links(), routes, neighbours, ..NetState::default() }
}

fn compute_after(previous: &NextHops, state: &NetState, backends: &[&str]) -> NextHops {
    let backends = backends.iter().map(|b| ip(b)).collect();
    NextHops::compute(previous, state, &BTreeSet::from([ETH0, ETH1]), &backends)
}

fn compute(state: &NetState, backends: &[&str]) -> NextHops {
    compute_after(&NextHops::default(), state, backends)
}

/// The key of the next hop for `addr`, None if the kernel is to be asked.
fn hop(hops: &NextHops, addr: &str) -> Option<Key> {
    hops.get(hops.lookup(ip(addr))).map(|n| n.key)
}

#[test]
fn a_gateway_route_leads_to_the_gateways_neighbour() {
    let state =
        state(vec![route("0.0.0.0/0", "10.0.0.1", ETH0)], vec![neighbour(ETH0, "10.0.0.1", 99)]);
    let hops = compute(&state, &[]);
    assert_eq!(
        hops.get(hops.lookup(ip("8.8.8.8"))),
        Some(&NextHop {
            key: (ETH0, ip("10.0.0.1")),
            egress: ETH0,
            dst_mac: mac(99),
            src_mac: mac(2),
            tags: vec![],
            mtu: 1500,
            ready: true,
            permanent: false,
        })
    );
    assert_eq!(hops.unresolved, []);
    assert_eq!(hops.lookup(ip("::1")), ASK_KERNEL);
}

#[test]
fn on_a_link_each_known_neighbour_has_a_host_prefix_and_the_default_route_does_not_catch_the_others()
 {
    let state = state(
        vec![route("0.0.0.0/0", "10.0.0.1", ETH0), route("10.0.0.0/24", "", ETH0)],
        vec![
            neighbour(ETH0, "10.0.0.1", 1),
            neighbour(ETH0, "10.0.0.7", 7),
            neighbour(ETH1, "10.0.0.8", 8),
        ],
    );
    let hops = compute(&state, &[]);
    assert_eq!(hop(&hops, "10.0.0.7"), Some((ETH0, ip("10.0.0.7"))));
    assert_eq!(hop(&hops, "10.0.0.9"), None, "unknown neighbour");
    assert_eq!(hop(&hops, "10.0.0.8"), None, "an entry on another link than the route's");
    assert_eq!(hop(&hops, "10.0.1.9"), Some((ETH0, ip("10.0.0.1"))));
}

#[test]
fn a_neighbour_entry_does_not_override_a_longer_route() {
    let state = state(
        vec![route("10.0.0.0/8", "", ETH0), route("10.1.0.0/16", "10.0.0.1", ETH0)],
        vec![neighbour(ETH0, "10.0.0.1", 1), neighbour(ETH0, "10.1.0.5", 5)],
    );
    assert_eq!(hop(&compute(&state, &[]), "10.1.0.5"), Some((ETH0, ip("10.0.0.1"))));
}

#[test]
fn reject_multipath_and_equal_routes_are_the_kernels_and_are_not_shadowed() {
    let kernel_only = |to| Route { kind: RouteKind::KernelOnly, ifindex: 0, ..route(to, "", 0) };
    let state = state(
        vec![
            route("0.0.0.0/0", "10.0.0.1", ETH0),
            kernel_only("192.0.2.0/24"),
            route("192.0.2.128/25", "10.0.0.1", ETH0),
            route("198.51.100.0/24", "10.0.0.1", ETH0),
            route("198.51.100.0/24", "10.0.0.2", ETH0),
            Route {
                kind: RouteKind::Selective,
                metric: 9,
                ..route("203.0.113.0/24", "10.0.0.2", ETH0)
            },
            route("203.0.113.0/24", "10.0.0.1", ETH0),
            route("172.16.0.0/12", "10.6.0.1", MGMT),
        ],
        vec![neighbour(ETH0, "10.0.0.1", 1)],
    );
    let hops = compute(&state, &[]);
    for addr in ["192.0.2.1", "198.51.100.1", "203.0.113.1", "172.16.0.1"] {
        assert_eq!(hop(&hops, addr), None, "{addr}");
    }
    for addr in ["192.0.2.129", "198.51.101.1"] {
        assert_eq!(hop(&hops, addr), Some((ETH0, ip("10.0.0.1"))), "{addr}");
    }
}

#[test]
fn the_lowest_metric_wins_even_if_it_is_the_kernels() {
    let with = |metric, route| Route { metric, ..route };
    let rejected = Route { kind: RouteKind::KernelOnly, ..route("2001:db8::/32", "", 0) };
    let state = state(
        vec![
            with(200, route("0.0.0.0/0", "10.0.0.2", ETH0)),
            with(100, route("0.0.0.0/0", "10.0.0.1", ETH0)),
            with(4_294_967_295, Route { prefix: prefix("::/0"), ..rejected }),
            with(1024, route("::/0", "fe80::1", ETH0)),
            with(10, rejected),
            with(20, route("2001:db8::/32", "fe80::1", ETH0)),
        ],
        vec![],
    );
    let hops = compute(&state, &[]);
    assert_eq!(hop(&hops, "8.8.8.8"), Some((ETH0, ip("10.0.0.1"))));
    assert_eq!(hop(&hops, "2001:db9::1"), Some((ETH0, ip("fe80::1"))));
    assert_eq!(hop(&hops, "2001:db8::1"), None);
}

#[test]
fn link_local_destinations_and_the_hosts_own_addresses_are_the_kernels() {
    let mut state = state(
        vec![
            route("::/0", "fe80::1", ETH0),
            route("fe80::/64", "", ETH0),
            route("2001:db8::/64", "", ETH0),
        ],
        vec![neighbour(ETH0, "fe80::1", 1), neighbour(ETH0, "2001:db8::9", 9)],
    );
    state.addresses.push(Address {
        ifindex: 1,
        addr: ip("2001:db8:1::10"),
        prefix_len: 128,
        proto: 0,
    });
    let hops = compute(&state, &["2001:db8:1::10"]);
    assert_eq!(hop(&hops, "fe80::1"), None);
    assert_eq!(hop(&hops, "2001:db8:1::10"), None);
    assert_eq!(hops.backends[&ip("2001:db8:1::10")], ASK_KERNEL);
    assert_eq!(hop(&hops, "2001:db8:1::11"), Some((ETH0, ip("fe80::1"))));
    assert_eq!(hop(&hops, "2001:db8::9"), Some((ETH0, ip("2001:db8::9"))));
}

#[test]
fn a_vlan_subinterface_becomes_tags_on_the_physical_device() {
    let mut state = state(
        vec![route("10.7.0.0/24", "", VLAN), route("10.9.0.0/24", "", QINQ)],
        vec![neighbour(VLAN, "10.7.0.1", 1), neighbour(QINQ, "10.9.0.1", 2)],
    );
    state.links[2].mtu = 1496;
    let hops = compute(&state, &[]);
    let outer = VlanTag { tpid: 0x88a8, vid: 7 };
    let inner = VlanTag { tpid: 0x8100, vid: 9 };
    let one = hops.get(hops.lookup(ip("10.7.0.1"))).unwrap();
    assert_eq!(
        (one.egress, one.src_mac, one.mtu, &one.tags),
        (ETH1, mac(VLAN as u8), 1496, &vec![outer])
    );
    let two = hops.get(hops.lookup(ip("10.9.0.1"))).unwrap();
    assert_eq!((two.egress, &two.tags), (ETH1, &vec![outer, inner]));

    // XDP on the subinterface itself sees and sends untagged frames.
    let on_vlan =
        NextHops::compute(&NextHops::default(), &state, &BTreeSet::from([VLAN]), &BTreeSet::new());
    let one = on_vlan.get(on_vlan.lookup(ip("10.7.0.1"))).unwrap();
    assert_eq!((one.egress, one.tags.len()), (VLAN, 0));
}

#[test]
fn an_unknown_neighbour_of_a_gateway_or_backend_is_to_be_resolved_and_keeps_its_id_when_it_is() {
    let routes = vec![route("0.0.0.0/0", "10.0.0.1", ETH0), route("10.0.0.0/24", "", ETH0)];
    let before = compute(&state(routes.clone(), vec![]), &["10.0.0.7", "192.0.2.7"]);
    assert_eq!(before.unresolved, [(ETH0, ip("10.0.0.1")), (ETH0, ip("10.0.0.7"))]);
    let gateway = before.lookup(ip("192.0.2.7"));
    assert_eq!(
        before.backends,
        BTreeMap::from([
            (ip("10.0.0.7"), before.lookup(ip("10.0.0.7"))),
            (ip("192.0.2.7"), gateway)
        ])
    );
    assert!(!before.get(gateway).unwrap().ready);

    let known = vec![neighbour(ETH0, "10.0.0.1", 1), neighbour(ETH0, "10.0.0.7", 7)];
    let after = compute_after(&before, &state(routes, known), &["10.0.0.7", "192.0.2.7"]);
    assert_eq!(after.unresolved, []);
    assert_eq!(before.backends, after.backends);
    assert_eq!(before.lookup(ip("8.8.8.8")), after.lookup(ip("8.8.8.8")));
    assert!(after.table.iter().flatten().all(|n| n.ready));
    assert_eq!(after.to_keep_fresh().count(), 2);
}

#[test]
fn a_link_that_is_down_makes_its_next_hops_unready_and_asks_for_nothing() {
    let mut state = state(vec![route("0.0.0.0/0", "10.7.0.1", VLAN)], vec![]);
    state.links[1].up = false;
    let hops = compute(&state, &[]);
    assert!(!hops.get(1).unwrap().ready);
    assert_eq!(hops.unresolved, []);
}

#[test]
fn an_id_is_not_given_away_in_the_computation_that_frees_it() {
    let gateway = |via| state(vec![route("0.0.0.0/0", via, ETH0)], vec![]);
    let first = compute(&gateway("10.0.0.1"), &[]);
    let second = compute_after(&first, &gateway("10.0.0.2"), &[]);
    let third = compute_after(&second, &gateway("10.0.0.3"), &[]);
    let ids = [first, second, third].map(|hops| hops.lookup(ip("8.8.8.8")));
    assert_eq!(ids, [1, 2, 1]);
}
