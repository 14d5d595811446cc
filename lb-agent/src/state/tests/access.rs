//! Access lists: what stands in the maps, and whom a change lets through on the way.

use lb_common::access::lists;
use proptest::prelude::*;

use super::*;

fn prefix(text: &str) -> Prefix {
    let (addr, len) = text.split_once('/').unwrap();
    Prefix::new(addr.parse().unwrap(), len.parse().unwrap())
}

fn access(allow: &[&str], deny: &[&str]) -> Access {
    let prefixes = |texts: &[&str]| texts.iter().map(|text| prefix(text)).collect();
    Access { allow: prefixes(allow), deny: prefixes(deny) }
}

fn chat(forward: Forward) -> ServiceInput {
    ServiceInput { forward, ..service("chat", &["203.0.113.10:80"], &["10.2.0.2:9000"]) }
}

#[test]
fn lists_are_there_before_the_service_and_go_after_it() {
    let mut agent = Agent::new();
    let mut chat = chat(Forward::Nat);
    chat.access = access(&["198.51.100.0/24"], &[]);
    let mut input = input(vec![chat]);
    input.access = access(&[], &["192.0.2.0/24"]);
    assert_eq!(
        shown(&agent.reach(&input))[3..],
        [
            "edge: 1 IPv4 and 1 IPv6 source addresses, 64512 ports from 1024, route epoch 0",
            "access to service 1: 198.51.100.0/24 admitted",
            "access to the edge: 192.0.2.0/24 denied",
            "access to service 1: 0.0.0.0/0 denied",
            "access to service 1: ::/0 denied",
            "ring 1: new, for service 1",
            "service 1: nat, rings 1 (IPv4) and 0 (IPv6)",
            "address 203.0.113.10: a service's",
            "listener 203.0.113.10:80: service 1",
        ]
    );
    assert_eq!(agent.actual.services[&1].access, lists::EDGE | lists::SERVICE);
    input.services.clear();
    assert_eq!(
        shown(&agent.reach(&input)),
        [
            "backend 1: 10.2.0.2:9000 of service 1, next hop by the kernel",
            "listener 203.0.113.10:80: none",
            "address 203.0.113.10: no service's",
            "service 1: none",
            "access to service 1: 0.0.0.0/0 not listed",
            "access to service 1: 198.51.100.0/24 not listed",
            "access to service 1: ::/0 not listed",
        ]
    );
    assert_eq!(agent.actual.backends[&1].access, lists::EDGE, "flows to it are still the edge's");
}

#[test]
fn a_service_that_only_relays_is_in_the_maps_for_its_lists() {
    let mut agent = Agent::new();
    let mut input = input(vec![chat(Forward::Relay)]);
    agent.reach(&input);
    assert!(agent.actual.listeners.is_empty());
    input.access = access(&[], &["192.0.2.0/24"]);
    agent.reach(&input);
    let at: Endpoint = "203.0.113.10:80".parse::<SocketAddr>().unwrap().into();
    assert_eq!(agent.actual.listeners[&at].service, 1);
    input.access = Access::default();
    agent.reach(&input);
    assert!(agent.actual.listeners.is_empty() && agent.actual.access.is_empty());
    assert_eq!(agent.actual.services[&1].access, 0);
}

#[test]
fn an_allowed_prefix_of_length_zero_is_no_denial() {
    let everybody = access(&["0.0.0.0/0"], &["192.0.2.0/24"]).entries();
    assert!(everybody[&prefix("0.0.0.0/0")]);
    assert!(!everybody[&prefix("::/0")]);
}

/// A prefix of few, so that they meet.
fn some_prefix() -> impl Strategy<Value = Prefix> {
    (any::<u8>(), prop::sample::select(vec![0_u8, 4, 5, 6, 7, 8]))
        .prop_map(|(bits, len)| Prefix::new([bits, 0, 0, 0].into(), len))
}

fn some_access() -> impl Strategy<Value = Access> {
    let prefixes = || prop::collection::btree_set(some_prefix(), 0..6);
    (prefixes(), prefixes()).prop_map(|(allow, deny)| {
        let allow: BTreeSet<_> = allow.difference(&deny).copied().collect();
        Access { allow, deny }
    })
}

/// What XDP makes of the entries.
fn admits(access: &BTreeMap<(u16, Prefix), bool>, scope: u16, source: u8) -> bool {
    let addr = IpAddr::from([source, 0, 0, 0]);
    let of_scope = access.iter().filter(|((of, _), _)| *of == scope);
    let in_it = of_scope.filter(|((_, from), _)| Prefix::new(addr, from.prefix_len()) == *from);
    in_it.max_by_key(|((_, from), _)| from.prefix_len()).is_none_or(|(_, admit)| *admit)
}

proptest! {
    #[test]
    fn whom_the_lists_before_and_the_lists_now_admit_is_admitted_at_every_step(
        before in some_access(),
        now in some_access(),
    ) {
        let mut agent = Agent::new();
        let mut input = input(vec![chat(Forward::Nat)]);
        input.services[0].access = before;
        agent.reach(&input);
        let old = agent.actual.access.clone();
        input.services[0].access = now;
        let (desired, ops) = agent.plan(&input);
        let both: Vec<u8> = (0..=255)
            .filter(|&source| admits(&old, 1, source) && admits(&desired.access, 1, source))
            .collect();
        for op in &ops {
            agent.actual.apply(op);
            for &source in &both {
                prop_assert!(admits(&agent.actual.access, 1, source), "{source} after {op}");
            }
        }
        prop_assert_eq!(&agent.actual.access, &desired.access);
        prop_assert!(diff(&agent.actual, &desired).is_empty());
    }
}
