//! Source ports of `nat`: kept if free, else another; counted when there is none, never stolen.

use std::net::{IpAddr, SocketAddr, TcpListener};

use lb_common::{
    counters::BackendCounters,
    outcome::{DropReason, Event},
};
use tests::{
    dataplane::{Dataplane, Expect, Output, Scenario, id, scenario},
    packet::Frame,
};

use crate::connection::{Connection, VERSIONS};

/// The source address and port of a frame without VLAN tags, IP options and extension headers.
fn source_of(output: &Output) -> SocketAddr {
    let ip = &output.frame[14..];
    let (addr, ports): (IpAddr, usize) = match ip[0] >> 4 {
        4 => (<[u8; 4]>::try_from(&ip[12..16]).unwrap().into(), 20),
        _ => (<[u8; 16]>::try_from(&ip[8..24]).unwrap().into(), 40),
    };
    SocketAddr::new(addr, u16::from_be_bytes([ip[ports], ip[ports + 1]]))
}

/// Sends a SYN that must get another port than its own, which the connection then has.
#[track_caller]
pub fn translated(plane: &mut Dataplane, connection: &Connection, syn: &Frame) -> Connection {
    let mut new = connection.clone();
    let edge = plane.scenario.edge;
    plane.check_by("SYN that needs another port", &syn.bytes(), |output| {
        new.source = source_of(output);
        new.syn_goes_up(syn).counts(new.service, Event::PortTranslated)
    });
    let port = new.source.port();
    assert_ne!(port, connection.client.port());
    assert!(port >= edge.nat_port_first && port - edge.nat_port_first < edge.nat_port_count);
    assert!(plane.scenario.sources.contains(&new.source.ip()));
    new
}

/// Clients with the same port whose connections all go to the same backend.
fn rivals(scenario: &Scenario, v6: bool, count: usize) -> Vec<Connection> {
    let vip = scenario::listener(id::NAT, v6);
    let port = scenario::client(v6).port();
    let addresses = (1..=250_u8).map(|n| match v6 {
        false => IpAddr::from([198, 51, 100, n]),
        true => IpAddr::from([0x2001, 0xdb8, 0xc, 0, 0, 0, 0, u16::from(n)]),
    });
    let clients = addresses.map(|ip| SocketAddr::new(ip, port));
    let connections = clients.map(|client| Connection::between(scenario, client, vip));
    let mut connections: Vec<_> = connections.collect();
    let backend = connections[0].backend;
    connections.retain(|connection| connection.backend == backend);
    connections.truncate(count);
    assert_eq!(connections.len(), count);
    connections
}

fn complete(plane: &mut Dataplane, connection: &Connection) {
    let answer = connection.syn_ack();
    plane.check("SYN-ACK", &answer.bytes(), &connection.goes_down(&answer));
    let ack = connection.handshake_ack();
    plane.check("ACK", &ack.bytes(), &connection.opens(&ack));
}

#[test]
fn a_port_that_another_client_has_is_not_given_again() {
    for v6 in VERSIONS {
        for established in [false, true] {
            let mut plane = Dataplane::fresh(Scenario::usual());
            let rivals = rivals(&plane.scenario, v6, 8);
            let syn = rivals[0].syn();
            plane.check("first", &syn.bytes(), &rivals[0].syn_goes_up(&syn));
            let mut taken = vec![rivals[0].source];
            if established {
                complete(&mut plane, &rivals[0]);
            }
            for rival in &rivals[1..] {
                let rival = translated(&mut plane, rival, &rival.syn());
                assert!(!taken.contains(&rival.source), "{} twice", rival.source);
                taken.push(rival.source);
                complete(&mut plane, &rival);
            }
        }
    }
}

#[test]
fn a_port_outside_the_range_is_replaced() {
    for v6 in VERSIONS {
        for (first, count, port, kept) in [
            (1024, 64_512, 1023, false),
            (1024, 64_512, 1024, true),
            (1024, 64_512, 65_535, true),
            (10_000, 1_000, 9_999, false),
            (10_000, 1_000, 10_000, true),
            (10_000, 1_000, 10_999, true),
            (10_000, 1_000, 11_000, false),
        ] {
            let scenario = Scenario::usual().with(|scenario| {
                (scenario.edge.nat_port_first, scenario.edge.nat_port_count) = (first, count);
            });
            let mut plane = Dataplane::fresh(scenario);
            let client = SocketAddr::new(scenario::client(v6).ip(), port);
            let vip = scenario::listener(id::NAT, v6);
            let connection = Connection::between(&plane.scenario, client, vip);
            let syn = connection.syn();
            if kept {
                plane.check("kept", &syn.bytes(), &connection.syn_goes_up(&syn));
                complete(&mut plane, &connection);
            } else {
                let connection = translated(&mut plane, &connection, &syn);
                complete(&mut plane, &connection);
            }
        }
    }
}

#[test]
fn a_second_source_address_gives_the_same_port_again() {
    for v6 in VERSIONS {
        let second: IpAddr = if v6 { "fd00:2::fd" } else { "10.2.0.253" }.parse().unwrap();
        let scenario = Scenario::usual().with(|scenario| {
            scenario.sources.push(second);
            scenario.edge.sources[usize::from(v6)] = 2;
        });
        let mut plane = Dataplane::fresh(scenario);
        let rivals = rivals(&plane.scenario, v6, 3);
        let mut sources = Vec::new();
        for rival in &rivals[..2] {
            let mut rival = rival.clone();
            let syn = rival.syn();
            plane.check_by("the port is kept", &syn.bytes(), |output| {
                rival.source = source_of(output);
                rival.syn_goes_up(&syn)
            });
            assert_eq!(rival.source.port(), rival.client.port());
            complete(&mut plane, &rival);
            sources.push(rival.source.ip());
        }
        sources.sort();
        let mut both = vec![second, scenario::edge_source(v6)];
        both.sort();
        assert_eq!(sources, both);
        translated(&mut plane, &rivals[2], &rivals[2].syn());
    }
}

#[test]
fn when_all_ports_are_taken_the_newcomer_is_dropped_and_nobody_else_notices() {
    for v6 in VERSIONS {
        for established in [false, true] {
            let scenario = Scenario::usual().with(|scenario| {
                scenario.edge.nat_port_first = scenario::client(v6).port();
                scenario.edge.nat_port_count = 1;
            });
            let mut plane = Dataplane::fresh(scenario);
            let rivals = rivals(&plane.scenario, v6, 3);
            let syn = rivals[0].syn();
            plane.check("the only port", &syn.bytes(), &rivals[0].syn_goes_up(&syn));
            if established {
                complete(&mut plane, &rivals[0]);
            }
            for rival in &rivals[1..] {
                let expected = Expect::drop(id::NAT, DropReason::NatPortsExhausted);
                plane.check("no port", &rival.syn().bytes(), &expected);
            }
            if established {
                let data = rivals[0].syn_ack().with(|frame| {
                    frame.packet.as_tcp().flags = tests::packet::tcp::ACK;
                });
                plane.check("still there", &data.bytes(), &rivals[0].goes_down(&data));
            } else {
                complete(&mut plane, &rivals[0]);
            }
            let BackendCounters { picked, .. } =
                plane.tables.counters().backends[&rivals[0].backend];
            assert_eq!(picked, 1, "whoever got no port was not sent to a backend");
        }
    }
}

#[test]
fn without_a_source_address_nobody_is_forwarded() {
    for v6 in VERSIONS {
        let scenario = Scenario::usual().with(|scenario| {
            scenario.edge.sources[usize::from(v6)] = 0;
        });
        let mut plane = Dataplane::fresh(scenario);
        let connection = Connection::new(&plane, id::NAT, v6);
        let expected = Expect::drop(id::NAT, DropReason::NoSourceAddress);
        plane.check("SYN", &connection.syn().bytes(), &expected);
        let other = Connection::new(&plane, id::NAT, !v6);
        let syn = other.syn();
        plane.check("the other version works", &syn.bytes(), &other.syn_goes_up(&syn));
    }
}

#[test]
fn a_port_that_a_socket_of_the_host_has_is_left_to_it() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        // The test's thread is in the namespace of the test runs, as `fresh` has left it.
        let any: IpAddr = if v6 { [0_u16; 8].into() } else { [0; 4].into() };
        let socket = TcpListener::bind((any, connection.client.port())).unwrap();
        let other = translated(&mut plane, &connection, &connection.syn());
        complete(&mut plane, &other);
        drop(socket);
        let again = Connection::between(
            &plane.scenario,
            SocketAddr::new(connection.client.ip(), connection.client.port() + 1),
            connection.vip,
        );
        again.open(&mut plane);
    }
}
