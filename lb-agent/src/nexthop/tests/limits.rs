//! What does not fit the tables is the kernel's, and said so.

use super::*;

#[test]
fn policy_rules_leave_the_family_to_the_kernel() {
    let mut state =
        state(vec![route("0.0.0.0/0", "10.0.0.1", ETH0), route("::/0", "fe80::1", ETH0)], vec![]);
    state.policy.v4 = true;
    let hops = compute(&state, &["192.0.2.1"]);
    assert_eq!((hop(&hops, "192.0.2.1"), hops.backends[&ip("192.0.2.1")]), (None, ASK_KERNEL));
    assert_eq!(hop(&hops, "2001:db8::1"), Some((ETH0, ip("fe80::1"))));
    assert_eq!(hops.limits, [Limit::PolicyRules { ipv6: false }]);
}

fn many(gateways: &[&str], count: u32) -> Vec<Route> {
    (0..count)
        .map(|n| Route {
            prefix: Prefix::new(IpAddr::from((0x0b00_0000 + (n << 8)).to_be_bytes()), 24),
            ..route("0.0.0.0/0", gateways[n as usize % gateways.len()], ETH0)
        })
        .collect()
}

#[test]
fn a_table_too_large_is_the_kernels_but_backends_keep_their_next_hops() {
    let mut routes = many(&["10.0.0.1", "10.0.0.2"], MAX_ROUTES as u32 + 1);
    routes.push(route("::/0", "fe80::1", ETH0));
    let hops = compute(&state(routes, vec![]), &["11.0.1.1"]);
    assert_eq!(hop(&hops, "11.0.1.1"), None);
    assert_eq!(hops.get(hops.backends[&ip("11.0.1.1")]).unwrap().key, (ETH0, ip("10.0.0.2")));
    assert_eq!(hop(&hops, "2001:db8::1"), Some((ETH0, ip("fe80::1"))));
    assert_eq!(hops.limits, [Limit::Routes { ipv6: false, prefixes: MAX_ROUTES + 1 }]);
}

#[test]
fn a_large_table_to_one_gateway_is_its_default_route() {
    let mut routes = many(&["10.0.0.1"], 20_000);
    routes.push(route("0.0.0.0/0", "10.0.0.1", ETH0));
    let hops = compute(&state(routes, vec![]), &[]);
    assert_eq!(hops.routes, BTreeMap::from([(prefix("0.0.0.0/0"), 1)]));
    assert_eq!(hops.limits, []);
}

#[test]
fn more_neighbours_than_room_leave_room_for_backends() {
    let neighbours: Vec<Neighbour> = (0..8000u32)
        .map(|n| Neighbour {
            addr: IpAddr::from((0x0a00_0000 + n).to_be_bytes()),
            ..neighbour(ETH0, "::", 1)
        })
        .collect();
    let state = state(vec![route("10.0.0.0/8", "", ETH0)], neighbours);
    let first = compute(&state, &[]);
    assert_eq!(first.routes.len(), MAX_NEIGHBOURS);
    assert_eq!(first.limits, [Limit::Neighbours { left_out: 8000 - MAX_NEIGHBOURS }]);
    let second = compute_after(&first, &state, &["10.0.27.88", "10.9.9.9"]);
    assert_eq!(hop(&second, "10.0.27.88"), Some((ETH0, ip("10.0.27.88"))));
    assert_eq!(hop(&second, "10.9.9.9"), Some((ETH0, ip("10.9.9.9"))));
}
