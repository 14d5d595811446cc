//! Single steps, with the operations spelled out.

use lb_common::{flow::forward, ring::NONE, service::listener_flags};

use super::*;

fn chat() -> ServiceInput {
    service("chat", &["203.0.113.10:80"], &["10.2.0.2:9000", "10.2.0.3:9000"])
}

fn poll() -> ServiceInput {
    service("poll", &["203.0.113.11:80"], &["10.2.0.2:9001", "10.2.0.3:9001"])
}

#[test]
fn the_first_config_is_written_bottom_up() {
    let mut chat = chat();
    chat.backends[0].next_hop = 1;
    let mut input = input(vec![chat]);
    input.xdp_only.insert("203.0.113.10".parse().unwrap());
    input.next_hops.insert(1, hop(9));
    input.routes.insert(Prefix::new("0.0.0.0".parse().unwrap(), 0), 1);
    assert_eq!(
        shown(&Agent::new().reach(&input)),
        [
            "next hop 1: 02:00:00:00:00:09 on interface 2, MTU 1500",
            "source address 0: 10.2.0.1",
            "source address 0: 2001:db8:2::1",
            "backend 1: 10.2.0.2:9000 of service 1, next hop 1",
            "backend 2: 10.2.0.3:9000 of service 1, next hop by the kernel",
            "route to 0.0.0.0/0: next hop 1",
            "edge: 1 IPv4 and 1 IPv6 source addresses, 64512 ports from 1024, route epoch 1",
            "ring 1: new, for service 1",
            "service 1: nat, rings 1 (IPv4) and 0 (IPv6)",
            "address 203.0.113.10: a service's, not on the host",
            "listener 203.0.113.10:80: service 1",
        ]
    );
}

#[test]
fn a_health_change_is_a_new_ring_and_the_switch() {
    let mut agent = Agent::new();
    let mut input = input(vec![chat(), poll()]);
    agent.reach(&input);
    input.services[0].backends[1].up = false;
    assert_eq!(
        shown(&agent.reach(&input)),
        ["ring 3: new, for service 1", "service 1: nat, rings 3 (IPv4) and 0 (IPv6)"]
    );
    assert!(agent.actual.rings[&3].iter().all(|&id| id == 1));
    assert_eq!(agent.actual.free_rings.back(), Some(&1), "what was freed last is used last");
}

#[test]
fn a_removed_service_goes_top_down_and_its_backends_when_released() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![chat(), poll()]));
    let only_chat = input(vec![chat()]);
    assert_eq!(
        shown(&agent.reach(&only_chat)),
        ["listener 203.0.113.11:80: none", "address 203.0.113.11: no service's", "service 2: none"]
    );
    assert_eq!(agent.ids.release(|id| id == 4), [3]);
    assert_eq!(shown(&agent.reach(&only_chat)), ["backend 3: none"]);
    assert_eq!(agent.ids.release(|_| false), [4]);
    assert_eq!(shown(&agent.reach(&only_chat)), ["backend 4: none"]);
}

#[test]
fn a_new_route_raises_the_epoch_before_the_old_next_hop_goes() {
    let mut agent = Agent::new();
    let default = Prefix::new("0.0.0.0".parse().unwrap(), 0);
    let mut input = input(vec![chat()]);
    input.next_hops.insert(1, hop(1));
    input.routes.insert(default, 1);
    agent.reach(&input);
    input.next_hops = [(2, hop(2))].into();
    input.routes.insert(default, 2);
    assert_eq!(
        shown(&agent.reach(&input)),
        [
            "next hop 2: 02:00:00:00:00:02 on interface 2, MTU 1500",
            "route to 0.0.0.0/0: next hop 2",
            "edge: 1 IPv4 and 1 IPv6 source addresses, 64512 ports from 1024, route epoch 2",
            "next hop 1: none",
        ]
    );
}

#[test]
fn an_agent_that_died_in_between_leaves_no_stale_next_hop() {
    let mut agent = Agent::new();
    let mut input = input(vec![chat()]);
    agent.reach(&input);
    let epoch = agent.actual.edge.route_epoch;
    input.next_hops.insert(1, hop(1));
    input.routes.insert(Prefix::new("0.0.0.0".parse().unwrap(), 0), 1);
    let (_, ops) = agent.plan(&input);
    let edge = ops.iter().position(|op| matches!(op, MapOp::SetEdge(_))).unwrap();
    ops[..edge].iter().for_each(|op| agent.actual.apply(op));
    agent.restart();
    agent.reach(&input);
    assert_eq!(agent.actual.edge.route_epoch, epoch + 1);
    assert!(agent.reach(&input).is_empty());
}

#[test]
fn with_all_backends_down_a_service_fails_open_or_is_empty_and_says_so() {
    let mut agent = Agent::new();
    let mut input = input(vec![chat()]);
    agent.reach(&input);
    input.services[0].backends.iter_mut().for_each(|backend| backend.up = false);
    let (desired, ops) = agent.plan(&input);
    assert_eq!(desired.fail_open[0].to_string(), "service \"chat\", IPv4 clients");
    assert!(desired.empty.is_empty());
    assert!(ops.is_empty(), "all live is the ring that it had");

    input.services[0].rule.fail_open = false;
    let (desired, ops) = agent.plan(&input);
    assert!(desired.fail_open.is_empty());
    assert_eq!(desired.empty[0].to_string(), "service \"chat\", IPv4 clients");
    assert_eq!(shown(&ops), ["service 1: nat, rings 0 (IPv4) and 0 (IPv6)"]);
}

#[test]
fn a_ring_has_the_backends_that_its_clients_can_reach() {
    for (forward, v4_clients, v6_clients) in [
        (Forward::Nat, [1].as_slice(), [2].as_slice()),
        (Forward::Dsr, &[1], &[2]),
        (Forward::Ipip, &[1, 2], &[2]),
    ] {
        let listeners = ["203.0.113.10:80", "[2001:db8::10]:80"];
        let mut mixed = service("mixed", &listeners, &["10.2.0.2:80", "[2001:db8:2::2]:80"]);
        mixed.forward = forward;
        let mut agent = Agent::new();
        agent.reach(&input(vec![mixed]));
        let rings = agent.actual.services[&1].rings;
        for (number, expected) in rings.into_iter().zip([v4_clients, v6_clients]) {
            let ids: BTreeSet<u16> = agent.actual.rings[&number].iter().copied().collect();
            assert!(ids.iter().eq(expected), "{forward:?}: {ids:?}");
            assert!(!ids.contains(&NONE));
        }
    }
}

#[test]
fn what_cannot_be_is_refused_with_its_name() {
    let fails = |input: Input| {
        let mut ids = Ids::recover(&Actual::empty(CAPACITY.rings), CAPACITY);
        ids.assign(&input.services).unwrap();
        desired(&input, &ids, &mut RingCache::default()).unwrap_err().to_string()
    };
    let twice = input(vec![chat(), service("again", &["203.0.113.10:80"], &["10.2.0.9:80"])]);
    let message = fails(twice);
    assert_eq!(message, "service \"again\": listener 203.0.113.10:80 is another service's already");

    let mut many = input(vec![]);
    many.source_addresses = (0..65).map(|n| [10, 0, 0, n].into()).collect();
    let message = fails(many);
    assert_eq!(
        message,
        "source address 10.0.0.64: only 64 IPv4 addresses can be used; remove some"
    );

    let mut no_ports = input(vec![]);
    no_ports.nat_port_count = 0;
    assert!(fails(no_ports).contains("no source ports"));
}

/// Of the sidecar.
fn rooms(forward: Forward) -> ServiceInput {
    let backends = ["10.2.0.2:9000", "10.2.0.3:9000"];
    ServiceInput { forward, ..service("rooms", &["203.0.113.12:80"], &backends) }
}

#[test]
fn what_the_sidecar_serves_has_ids_and_listeners_and_no_rings() {
    let mut agent = Agent::new();
    let mut input = input(vec![rooms(Forward::Splice)]);
    // Nobody is up, and that is nothing to say here: the sidecar picks.
    input.services[0].backends.iter_mut().for_each(|backend| backend.up = false);
    let (desired, ops) = agent.plan(&input);
    assert!(desired.empty.is_empty() && desired.fail_open.is_empty());
    assert_eq!(
        shown(&ops)[2..],
        [
            "backend 1: 10.2.0.2:9000 of service 1, next hop by the kernel",
            "backend 2: 10.2.0.3:9000 of service 1, next hop by the kernel",
            "edge: 1 IPv4 and 1 IPv6 source addresses, 64512 ports from 1024, route epoch 0",
            "service 1: the sidecar's, whose connections are spliced",
            "upstream 10.2.0.2:9000: of the sidecar",
            "upstream 10.2.0.3:9000: of the sidecar",
            "address 203.0.113.12: a service's",
            "listener 203.0.113.12:80: service 1",
        ]
    );
}

#[test]
fn without_splice_only_the_listeners_and_upstreams_go() {
    let mut agent = Agent::new();
    agent.reach(&input(vec![rooms(Forward::Splice), chat()]));
    let relayed = input(vec![rooms(Forward::Relay), chat()]);
    assert_eq!(
        shown(&agent.reach(&relayed)),
        [
            "service 1: the sidecar's, which relays",
            "listener 203.0.113.12:80: none",
            "address 203.0.113.12: no service's",
            "listener 10.2.0.3:9000: none",
            "listener 10.2.0.2:9000: none",
        ]
    );
    assert_eq!(agent.actual.services[&1].forward, forward::SPLICE);
    assert!([1, 2].iter().all(|id| agent.actual.backends[id].service == 1));
    agent.reach(&input(vec![rooms(Forward::Splice), chat()]));
    assert_eq!(agent.actual.backends.len(), 4, "and come back to the same ids");
}

#[test]
fn an_upstream_of_two_services_or_of_a_listener_has_one_entry() {
    let mut agent = Agent::new();
    let other = ServiceInput {
        forward: Forward::Splice,
        ..service("other", &["203.0.113.13:80"], &["10.2.0.2:9000", "203.0.113.10:80"])
    };
    agent.reach(&input(vec![rooms(Forward::Splice), other, chat()]));
    let at = |addr: &str| agent.actual.listeners[&addr.parse::<SocketAddr>().unwrap().into()];
    let shared = at("10.2.0.2:9000");
    assert_eq!((shared.service, shared.flags), (0, listener_flags::UPSTREAM));
    let both = at("203.0.113.10:80");
    assert_eq!((both.service, both.flags), (3, listener_flags::UPSTREAM));
    let ops = agent.reach(&input(vec![rooms(Forward::Splice), chat()]));
    assert_eq!(shown(&ops)[0], "listener 203.0.113.10:80: service 3");
    let ops = agent.reach(&input(vec![chat()]));
    assert!(shown(&ops).contains(&"listener 10.2.0.2:9000: none".to_owned()), "{ops:?}");
}

/// The backends of a ring, by the last byte of their addresses.
fn taken(agent: &Agent, desired: &Desired, clients: Family) -> BTreeSet<u8> {
    let service = agent.ids.service("chat").unwrap();
    let ring = desired.services[&service].rings[clients as usize].as_deref().unwrap();
    let ids: BTreeSet<u16> = ring.iter().copied().collect();
    let backends = agent.ids.backends().filter(|(id, _, _)| ids.contains(id));
    backends
        .map(|(_, _, addr)| match addr.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[3],
            std::net::IpAddr::V6(ip) => ip.octets()[15],
        })
        .collect()
}

#[test]
fn the_own_zone_and_panic_are_a_matter_of_each_pool() {
    let backends =
        ["10.2.0.2:80", "10.2.0.3:80", "10.2.0.4:80", "[2001:db8::5]:80", "[2001:db8::6]:80"];
    let mut input =
        input(vec![service("chat", &["203.0.113.10:80", "[2001:db8::10]:80"], &backends)]);
    let mut agent = Agent::new();
    let chat = &mut input.services[0];
    chat.rule = Rule { panic_threshold: 40, min_healthy_percent: Some(70), ..OPEN };
    for near in [0, 1, 3] {
        chat.backends[near].local = true;
    }
    let (desired, _) = agent.plan(&input);
    assert_eq!(taken(&agent, &desired, Family::V4), [2, 3].into());
    assert_eq!(taken(&agent, &desired, Family::V6), [5].into());
    assert!(desired.spilling.is_empty() && desired.fail_open.is_empty());

    // Half of the zone is not enough for IPv4 clients, and IPv6 clients do not notice.
    input.services[0].backends[0].up = false;
    let (desired, _) = agent.plan(&input);
    assert_eq!(taken(&agent, &desired, Family::V4), [3, 4].into());
    assert_eq!(taken(&agent, &desired, Family::V6), [5].into());
    assert_eq!(desired.spilling[0].to_string(), "service \"chat\", IPv4 clients");

    // A third of the pool is less than the threshold.
    input.services[0].backends[1].up = false;
    let (desired, _) = agent.plan(&input);
    assert_eq!(taken(&agent, &desired, Family::V4), [2, 3, 4].into());
    assert_eq!((desired.fail_open.len(), desired.spilling.len()), (1, 0));
}

/// Who has no weight is no part of it, be it up or down.
#[test]
fn shares_are_of_the_weight_that_is_given() {
    let mut input =
        input(vec![service("chat", &["203.0.113.10:80"], &["10.2.0.2:80", "10.2.0.3:80"])]);
    input.services[0].rule.panic_threshold = 100;
    let idle = &mut input.services[0].backends[1];
    (idle.weight, idle.up) = (0, false);
    let mut agent = Agent::new();
    let (desired, _) = agent.plan(&input);
    assert_eq!(taken(&agent, &desired, Family::V4), [2].into());
    assert!(desired.fail_open.is_empty());
}
