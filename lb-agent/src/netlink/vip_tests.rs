use proptest::prelude::*;

use super::*;
use crate::netlink::{Address, LinkInfo, Route, Vlan, VlanTag};

const LO: u32 = 1;
const EDGE: u32 = 2;
const OTHER: u32 = 3;
const VLAN: u32 = 4;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(ifindex: u32, text: &str, prefix_len: u8, proto: u8) -> Address {
    Address { ifindex, addr: ip(text), prefix_len, proto }
}

/// lo; the edge's interface with 10.0.0.1/24 and 2001:db8::1/64 and VLAN 7 (10.7.0.1/24) on it; one that is not the
/// edge's with 10.9.0.1/24.
fn host() -> NetState {
    let link = |index, loopback| LinkInfo { index, loopback, up: true, ..LinkInfo::default() };
    let vlan = Vlan { parent: EDGE, tag: VlanTag { tpid: 0x8100, vid: 7 } };
    NetState {
        links: vec![
            link(LO, true),
            link(EDGE, false),
            link(OTHER, false),
            LinkInfo { vlan: Some(vlan), ..link(VLAN, false) },
        ],
        addresses: vec![
            address(LO, "127.0.0.1", 8, 0),
            address(EDGE, "10.0.0.1", 24, 0),
            address(EDGE, "2001:db8::1", 64, 0),
            address(OTHER, "10.9.0.1", 24, 0),
            address(VLAN, "10.7.0.1", 24, 0),
        ],
        ..NetState::default()
    }
}

fn plan(policy: VipPolicy, vips: &[&str], state: &NetState) -> Vec<VipOp> {
    let desired = vips.iter().map(|v| (ip(v), policy)).collect();
    plan_vips(&desired, &BTreeSet::from([EDGE]), state)
}

fn add(vip: &str, ifindex: u32) -> VipOp {
    VipOp::Add { vip: ip(vip), ifindex }
}

fn remove(vip: &str, ifindex: u32) -> VipOp {
    VipOp::Remove { vip: ip(vip), ifindex }
}

#[test]
fn auto_adds_only_what_lies_on_a_link_of_the_edge() {
    let vips =
        ["10.0.0.10", "10.7.0.10", "10.9.0.10", "203.0.113.10", "2001:db8::10", "2001:db9::10"];
    assert_eq!(
        plan(VipPolicy::Auto, &vips, &host()),
        [add("10.0.0.10", EDGE), add("10.7.0.10", VLAN), add("2001:db8::10", EDGE)]
    );
}

#[test]
fn always_puts_the_rest_on_loopback_and_never_adds_nothing() {
    let vips = ["10.0.0.10", "203.0.113.10"];
    assert_eq!(
        plan(VipPolicy::Always, &vips, &host()),
        [add("10.0.0.10", EDGE), add("203.0.113.10", LO)]
    );
    assert_eq!(plan(VipPolicy::Never, &vips, &host()), []);
}

#[test]
fn an_on_link_route_counts_as_a_link_but_neither_a_host_route_nor_a_default_route_does() {
    let mut state = host();
    let route = |prefix: &str| Route {
        prefix: prefix.parse().unwrap(),
        via: None,
        ifindex: EDGE,
        metric: 0,
        src: None,
        kind: RouteKind::Plain,
    };
    state.routes = vec![route("198.51.100.0/24"), route("0.0.0.0/0"), route("203.0.113.10/32")];
    let vips = ["198.51.100.1", "203.0.113.10", "192.0.2.1"];
    assert_eq!(plan(VipPolicy::Auto, &vips, &state), [add("198.51.100.1", EDGE)]);
}

#[test]
fn a_strangers_address_is_neither_doubled_nor_removed() {
    let mut state = host();
    state.addresses.push(address(OTHER, "10.0.0.10", 32, 0));
    assert_eq!(plan(VipPolicy::Always, &["10.0.0.10"], &state), []);
    assert_eq!(plan(VipPolicy::Auto, &[], &state), []);
}

#[test]
fn what_an_earlier_agent_left_is_kept_moved_or_removed() {
    let mut state = host();
    state.addresses.push(address(EDGE, "10.0.0.10", 32, IFA_PROTO_SLUICE));
    state.addresses.push(address(LO, "10.0.0.11", 32, IFA_PROTO_SLUICE));
    state.addresses.push(address(EDGE, "10.0.0.12", 32, IFA_PROTO_SLUICE));
    assert_eq!(
        plan(VipPolicy::Auto, &["10.0.0.10", "10.0.0.11"], &state),
        [add("10.0.0.11", EDGE), remove("10.0.0.11", LO), remove("10.0.0.12", EDGE)]
    );
    assert_eq!(plan(VipPolicy::Never, &["10.0.0.10"], &state).len(), 3);
}

fn apply(state: &mut NetState, op: VipOp) {
    match op {
        VipOp::Add { vip, ifindex } => {
            let prefix_len = if vip.is_ipv4() { 32 } else { 128 };
            state.addresses.push(Address {
                ifindex,
                addr: vip,
                prefix_len,
                proto: IFA_PROTO_SLUICE,
            });
        }
        VipOp::Remove { vip, ifindex } => state
            .addresses
            .retain(|a| (a.addr, a.ifindex, a.proto) != (vip, ifindex, IFA_PROTO_SLUICE)),
    }
}

proptest! {
    #[test]
    fn a_plan_converges_and_leaves_strangers_alone(
        desired in prop::collection::btree_map(
            (0u8..4, 2u8..12).prop_map(|(n, h)| IpAddr::from([10, n, 0, h])),
            prop::sample::select(vec![VipPolicy::Auto, VipPolicy::Always, VipPolicy::Never]),
            0..8,
        ),
        present in prop::collection::btree_set((0u8..4, 2u8..12, 1u32..5, any::<bool>()), 0..8),
    ) {
        let mut state = host();
        for (net, h, ifindex, ours) in present {
            let proto = if ours { IFA_PROTO_SLUICE } else { 0 };
            state.addresses.push(Address { ifindex, addr: IpAddr::from([10, net, 0, h]), prefix_len: 32, proto });
        }
        let strangers = |s: &NetState| -> Vec<_> {
            s.addresses.iter().filter(|a| a.proto != IFA_PROTO_SLUICE).copied().collect()
        };
        let before = strangers(&state);
        let interfaces = BTreeSet::from([EDGE]);
        for op in plan_vips(&desired, &interfaces, &state) {
            apply(&mut state, op);
        }
        prop_assert_eq!(before, strangers(&state));
        prop_assert_eq!(plan_vips(&desired, &interfaces, &state), vec![]);
    }
}
