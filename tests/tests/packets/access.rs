//! Allow and deny lists.

use lb_common::{
    access::EDGE,
    addr::{V4, V6},
    flow::{Flow, flags},
    outcome::{DropReason, Event},
    service::service_flags,
};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id, scenario},
    packet::{
        Tcp,
        tcp::{ACK, FIN, PSH, RST, SYN},
    },
};

use crate::{
    connection::{CLIENT, Connection, SERVER, VERSIONS, name, services},
    keys::{Family, client_key},
};

/// A prefix that the usual client is in.
fn of_client(v6: bool) -> &'static str {
    if v6 { "2001:db8:c::/48" } else { "198.51.100.0/24" }
}

/// The usual client alone.
fn client_alone(v6: bool) -> &'static str {
    if v6 { "2001:db8:c::7/128" } else { "198.51.100.7/32" }
}

/// A prefix that it is not in.
fn elsewhere(v6: bool) -> &'static str {
    if v6 { "2001:db8:d::/48" } else { "198.51.101.0/24" }
}

/// Entries by scope, whether the client is admitted to the service, and to others.
type Case = (&'static str, Vec<(u16, &'static str, bool)>, bool, bool);

fn lists(service: u16, v6: bool) -> Vec<Case> {
    let (near, alone, far) = (of_client(v6), client_alone(v6), elsewhere(v6));
    let all = if v6 { "::/0" } else { "0.0.0.0/0" };
    vec![
        ("the edge denies", vec![(EDGE, near, false)], false, false),
        ("the edge denies others", vec![(EDGE, far, false)], true, true),
        ("the edge allows", vec![(EDGE, near, true)], true, true),
        ("the edge allows others only", vec![(EDGE, far, true)], false, false),
        ("the service denies", vec![(service, near, false)], false, true),
        ("the service allows others only", vec![(service, far, true)], false, true),
        ("the service allows", vec![(service, near, true), (service, far, true)], true, true),
        ("denied, but for this one", vec![(EDGE, near, false), (EDGE, alone, true)], true, true),
        ("allowed, but for this one", vec![(EDGE, near, true), (EDGE, alone, false)], false, false),
        ("all are denied", vec![(EDGE, all, false)], false, false),
        (
            "the service allows whom the edge denies",
            vec![(EDGE, near, false), (service, alone, true)],
            false,
            false,
        ),
        (
            "the service denies whom the edge allows",
            vec![(EDGE, near, true), (service, alone, false)],
            false,
            true,
        ),
    ]
}

#[test]
fn a_syn_goes_where_the_lists_let_it() {
    for (service, v6) in services() {
        for (what, entries, admitted, others_admitted) in lists(service, v6) {
            let usual = Scenario::usual().with(|scenario| {
                entries
                    .iter()
                    .for_each(|(scope, prefix, admit)| scenario.list(*scope, prefix, *admit));
            });
            let mut plane = Dataplane::fresh(usual);
            let other = if service == id::NAT { id::AFFINE } else { id::NAT };
            for (service, admitted) in [(service, admitted), (other, others_admitted)] {
                let connection = Connection::new(&plane, service, v6);
                let syn = connection.syn();
                let expected = match admitted {
                    true => connection.syn_goes_up(&syn),
                    false => Expect::drop(service, DropReason::DeniedSource),
                };
                let name = format!("{what}: {}", name(service, v6));
                plane.tables.clear();
                plane.check(&name, &syn.bytes(), &expected);
            }
        }
    }
}

#[test]
fn an_established_connection_is_cut_and_comes_back_with_the_lists() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let data =
            connection.up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(b"x"));
        for scope in [EDGE, service] {
            plane.change(|scenario| scenario.list(scope, of_client(v6), false));
            let denied = Expect::drop(service, DropReason::DeniedSource);
            for flags in [ACK, ACK | PSH] {
                let sent = connection.up(Tcp::new(0, 0, flags).numbers(CLIENT + 9, SERVER + 1));
                let name = format!("{}, flags {flags:#x}", name(service, v6));
                plane.check(&name, &sent.bytes(), &denied);
            }
            plane.check("data", &data.bytes(), &denied);
            plane.change(|scenario| scenario.access.clear());
            plane.tables.clear();
            connection.open(&mut plane);
        }
        plane.change(|scenario| scenario.list(service, elsewhere(v6), false));
        plane.check("others are denied", &data.bytes(), &connection.goes_up(&data));
    }
}

fn flow<A: Family>(plane: &Dataplane, connection: &Connection) -> Flow<A> {
    A::flow(plane, &client_key(connection)).expect("the flow is there")
}

#[test]
fn a_denied_source_does_not_keep_its_flow_alive() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, false);
    connection.open(&mut plane);
    let before: Flow<V4> = flow(&plane, &connection);
    assert_eq!(before.flags & flags::TO_CLIENT, 0);
    plane.change(|scenario| scenario.list(EDGE, of_client(false), false));
    let sent = connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1));
    for _ in 0..3 {
        plane.check("ACK", &sent.bytes(), &Expect::drop(id::NAT, DropReason::DeniedSource));
    }
    let after: Flow<V4> = flow(&plane, &connection);
    assert_eq!((before.packets, before.last_seen), (after.packets, after.last_seen));
}

#[test]
fn the_sidecar_never_sees_a_denied_source() {
    for v6 in VERSIONS {
        for service_flags in [0, service_flags::RELAY] {
            let usual = Scenario::usual().with(|scenario| scenario.sidecar_flags = service_flags);
            let mut plane = Dataplane::fresh(usual);
            let mut connection = Connection::new(&plane, id::NAT, v6);
            connection.vip = scenario::listener(id::SIDECAR, v6);
            let ack = connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1)).bytes();
            plane.check("admitted", &ack, &Expect::pass(&ack, Event::PassToSidecar));
            plane.change(|scenario| scenario.list(id::SIDECAR, client_alone(v6), false));
            for flags in [SYN, ACK, FIN | ACK, RST] {
                let sent = connection.up(Tcp::new(0, 0, flags).numbers(CLIENT + 1, SERVER + 1));
                let denied = Expect::drop(id::SIDECAR, DropReason::DeniedSource);
                plane.check(&format!("flags {flags:#x}"), &sent.bytes(), &denied);
            }
        }
    }
}

#[test]
fn of_a_service_that_only_relays_no_handshake_is_noted() {
    for v6 in VERSIONS {
        let usual =
            Scenario::usual().with(|scenario| scenario.sidecar_flags = service_flags::RELAY);
        let mut plane = Dataplane::fresh(usual);
        let mut connection = Connection::new(&plane, id::NAT, v6);
        connection.vip = scenario::listener(id::SIDECAR, v6);
        let syn = connection.syn().bytes();
        plane.check("SYN", &syn, &Expect::pass(&syn, Event::PassToSidecar));
        assert_eq!(V4::handshake_keys(&plane).len() + V6::handshake_keys(&plane).len(), 0);
    }
}
