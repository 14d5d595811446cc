//! The flow table is full: newcomers go on from the handshake table, and nobody is thrown out.

use lb_common::{
    addr::{V4, V6},
    flow::Flow,
    outcome::Event,
};
use tests::{
    dataplane::{Dataplane, Scenario, id},
    packet::{
        Frame, Tcp,
        tcp::{ACK, PSH},
    },
};

use crate::{
    connection::{CLIENT, Connection, SERVER, name, services},
    keys::{Family, tuple},
};

/// Fills the flow table but for so many entries.
fn fill<A: Family>(plane: &mut Dataplane, but: usize) -> Vec<lb_common::addr::Tuple<A>> {
    let somebody = tests::dataplane::scenario::client(A::LEN == 16);
    let mut keys = Vec::new();
    for port in 1..10_000 {
        let key = tuple::<A>(std::net::SocketAddr::new(somebody.ip(), port), somebody);
        if !A::enter_flow(plane, &key, &Flow { to: key, ..Flow::default() }) {
            break;
        }
        keys.push(key);
    }
    assert_eq!(keys.len(), 64, "the table has been filled");
    for key in keys.split_off(keys.len() - but) {
        A::remove_flow(plane, &key);
    }
    keys
}

fn goes_on<A: Family>(service: u16, but: usize) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let others = fill::<A>(&mut plane, but);
    let connection = Connection::new(&plane, service, A::LEN == 16);
    let name = format!("{}, room for {but}", name(service, A::LEN == 16));
    let syn = connection.syn();
    plane.check(&name, &syn.bytes(), &connection.syn_goes_up(&syn));
    if connection.is_nat() {
        let answer = connection.syn_ack();
        plane.check(&name, &answer.bytes(), &connection.goes_down(&answer));
    }
    let ack = connection.handshake_ack();
    let full = |frame: &Frame| connection.goes_up(frame).counts(service, Event::FlowTableFull);
    plane.check(&name, &ack.bytes(), &full(&ack));
    // Far beyond the numbers of the handshake: the flow must not end for want of room.
    for sent in [0, 1000, 60_000, 1 << 20, 1 << 30, 3 << 30] {
        let (seq, acked) = (CLIENT.wrapping_add(1 + sent), SERVER.wrapping_add(1 + sent));
        let data = connection.up(Tcp::new(0, 0, ACK | PSH).numbers(seq, acked).payload(b"data"));
        plane.check(&format!("{name}, {sent} bytes"), &data.bytes(), &full(&data));
        if connection.is_nat() {
            let data = connection.down(Tcp::new(0, 0, ACK | PSH).numbers(acked, seq));
            plane.check(&name, &data.bytes(), &connection.goes_down(&data));
        }
    }
    let mut left = A::flow_keys(&plane);
    assert_eq!(left.len(), others.len(), "nobody was thrown out, and nothing is left over");
    left.retain(|key| !others.contains(key));
    assert_eq!(left, [], "nobody else came in");

    for key in &others[..2] {
        A::remove_flow(&mut plane, key);
    }
    let (seq, acked) = (CLIENT.wrapping_add(5 + (3 << 30)), SERVER.wrapping_add(1 + (3 << 30)));
    let data = connection.up(Tcp::new(0, 0, ACK | PSH).numbers(seq, acked).payload(b"room"));
    plane.check(&format!("{name}, room again"), &data.bytes(), &connection.opens(&data));
}

#[test]
fn a_connection_goes_on_from_the_handshake_table() {
    for (service, v6) in services() {
        match v6 {
            false => goes_on::<V4>(service, 0),
            true => goes_on::<V6>(service, 0),
        }
    }
    // One entry is not enough for `nat`, and half a connection must not stay in it.
    goes_on::<V4>(id::NAT, 1);
    goes_on::<V6>(id::NAT, 1);
}
