//! Which backend a client gets: the slot that the agent's ring has for the shared hash.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_agent::state::Family;
use lb_common::{
    counters::BackendCounters,
    flow::forward,
    outcome::{DropReason, Event},
    service::Backend,
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id, scenario},
    packet::{
        Tcp,
        tcp::{ACK, PSH},
    },
    seed::seed,
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

/// Clients whose ports differ: of two with the same port on one backend, `nat` gives one another.
fn random_clients(random: &mut StdRng, v6: bool) -> impl Iterator<Item = SocketAddr> {
    let ports = rand::seq::index::sample(random, 60_000, 50);
    ports.into_iter().map(move |port| SocketAddr::new(random_ip(random, v6), 1024 + port as u16))
}

fn random_ip(random: &mut StdRng, v6: bool) -> IpAddr {
    match v6 {
        false => IpAddr::from([
            random.random_range(1..127),
            random.random(),
            random.random(),
            random.random(),
        ]),
        true => IpAddr::from([
            0x2001,
            0xdb8,
            random.random(),
            0,
            0,
            random.random(),
            0,
            random.random(),
        ]),
    }
}

#[test]
fn the_agents_ring_says_where_a_connection_goes() {
    let mut random = StdRng::seed_from_u64(seed("the_agents_ring_says_where_a_connection_goes"));
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let mut seen = std::collections::BTreeSet::new();
        for client in random_clients(&mut random, v6) {
            let vip = scenario::listener(service, v6);
            let connection = Connection::between(&plane.scenario, client, vip);
            let syn = connection.syn();
            let name = format!("{}, {client}", name(service, v6));
            plane.check(&name, &syn.bytes(), &connection.syn_goes_up(&syn));
            seen.insert(connection.backend);
        }
        let all = plane.scenario.members(service, if v6 { Family::V6 } else { Family::V4 });
        assert_eq!(seen.len(), all.len(), "all backends have their share");
    }
}

#[test]
fn another_seed_is_another_choice() {
    for v6 in VERSIONS {
        let picks = |text: &str| -> Vec<u16> {
            let scenario = Scenario::usual().with(|scenario| {
                scenario.edge.hash_seed = lb_common::hash::seed(text);
            });
            let mut plane = Dataplane::fresh(scenario);
            let vip = scenario::listener(id::DSR, v6);
            let clients = (0..40).map(|n| SocketAddr::new(scenario::client(v6).ip(), 5000 + n));
            let connections =
                clients.map(|client| Connection::between(&plane.scenario, client, vip));
            let connections: Vec<_> = connections.collect();
            for connection in &connections {
                let syn = connection.syn();
                plane.check(text, &syn.bytes(), &connection.syn_goes_up(&syn));
            }
            connections.iter().map(|connection| connection.backend).collect()
        };
        assert_ne!(picks("one"), picks("two"));
    }
}

#[test]
fn with_source_affinity_all_connections_of_a_client_go_to_one_backend() {
    let mut random = StdRng::seed_from_u64(seed("with_source_affinity"));
    for v6 in VERSIONS {
        let plane = Dataplane::fresh(Scenario::usual());
        let picked = || -> BTreeMap<u16, u64> {
            let backends = plane.tables.counters().backends;
            backends.into_iter().map(|(id, it)| (id, it.picked)).filter(|it| it.1 > 0).collect()
        };
        let mut before = BTreeMap::new();
        for client in random_clients(&mut random, v6).take(20) {
            for port in 0..5 {
                let client = SocketAddr::new(client.ip(), 2000 + 9999 * port);
                let vip = scenario::listener(id::AFFINE, v6);
                plane.run(&Connection::between(&plane.scenario, client, vip).syn().bytes());
            }
            let after = picked();
            let rose: Vec<_> = after.iter().filter(|(id, n)| before.get(*id) != Some(*n)).collect();
            assert_eq!(rose.len(), 1, "{client}: from {before:?} to {after:?}");
            before = after;
        }
        assert_eq!(before.len(), 2, "not all clients at one backend: {before:?}");
        assert_eq!(before.values().sum::<u64>(), 100);
    }
}

#[test]
fn a_service_with_several_listeners_has_one_ring() {
    for v6 in VERSIONS {
        let first = scenario::listener(id::NAT, v6);
        let other: IpAddr = if v6 { "2001:db8::aa" } else { "203.0.113.170" }.parse().unwrap();
        let listeners = [
            first,
            SocketAddr::new(first.ip(), 443),
            SocketAddr::new(other, 80),
            SocketAddr::new(other, 8080),
        ];
        let scenario = Scenario::usual().with(|scenario| {
            listeners.iter().for_each(|at| scenario.listen(*at, id::NAT));
        });
        let mut plane = Dataplane::fresh(scenario);
        for (n, vip) in listeners.into_iter().enumerate() {
            let client = SocketAddr::new(scenario::client(v6).ip(), 6000 + n as u16);
            let connection = Connection::between(&plane.scenario, client, vip);
            connection.open(&mut plane);
            let data = connection
                .down(Tcp::new(0, 0, ACK | PSH).numbers(SERVER + 1, CLIENT + 1).payload(b"hello"));
            plane.check(&vip.to_string(), &data.bytes(), &connection.goes_down(&data));
        }
        let opened = plane.tables.counters().outcomes[&(id::NAT, Event::FlowOpened.into())];
        assert_eq!(opened, 4);
    }
}

#[test]
fn a_slot_whose_backend_is_gone_is_a_counted_drop() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let members = plane.scenario.backends.clone();
        plane.tables.blank_backends(members.keys().copied());
        let expected = Expect::drop(service, DropReason::Inconsistent);
        let syn = connection.syn().with(|frame| frame.packet.as_tcp().sport = 9);
        plane.check(&name(service, v6), &syn.bytes(), &expected);
        // A flow's own packets no longer show which service they were for.
        let data = connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1));
        let expected = Expect::drop(lb_common::outcome::NO_SERVICE, DropReason::Inconsistent);
        plane.check("data", &data.bytes(), &expected);
    }
}

#[test]
fn a_backend_of_another_service_is_never_picked() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let stolen = plane.scenario.backends[&connection.backend];
        plane.tables.set_backend(connection.backend, Backend { service: id::EMPTY, ..stolen });
        let expected = Expect::drop(service, DropReason::Inconsistent);
        plane.check(&name(service, v6), &connection.syn().bytes(), &expected);
    }
}

#[test]
fn traffic_is_counted_per_backend() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        for len in [0, 1, 1000] {
            let up = connection
                .up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1).payload(&vec![0; len]));
            plane.check("up", &up.bytes(), &connection.goes_up(&up));
        }
        let ip = if v6 { 40 } else { 20 };
        let syn = connection.syn().packet.bytes().len() as u64;
        let mut expected = BackendCounters {
            to_backend_packets: 5,
            to_backend_bytes: syn + 4 * (ip + 20) + 1001,
            picked: 1,
            opened: 1,
            ..BackendCounters::default()
        };
        if plane.scenario.services[&service].forward == forward::NAT {
            expected.to_client_packets = 1;
            expected.to_client_bytes = connection.syn_ack().packet.bytes().len() as u64;
        }
        let counters = plane.tables.counters().backends;
        assert_eq!(counters.into_iter().collect::<Vec<_>>(), [(connection.backend, expected)]);
    }
}
