//! A SYN where there is a flow: a client that uses its port again, a duplicate, or a forgery.

use lb_common::{
    addr::{V4, V6},
    counters::BackendCounters,
    outcome::Event,
};
use tests::{
    dataplane::{Dataplane, Scenario, id},
    packet::{
        Frame, Tcp,
        tcp::{ACK, FIN, PSH, RST, SYN},
    },
};

use crate::{
    connection::{CLIENT, Connection, SERVER, name, services},
    keys::{Family, answers, client_key},
    ports::translated,
};

/// Initial sequence numbers of the second connection.
const CLIENT2: u32 = 0x3000_0000;
const SERVER2: u32 = 0xb000_0000;

fn second_syn(connection: &Connection, seq: u32) -> Frame {
    connection.up(Tcp::new(0, 0, SYN).numbers(seq, 0))
}

fn opened(service: u16, v6: bool) -> (std::sync::MutexGuard<'static, Dataplane>, Connection) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, service, v6);
    connection.open(&mut plane);
    (plane, connection)
}

#[test]
fn a_syn_on_a_closing_flow_starts_afresh() {
    for (service, v6) in services() {
        for flags in [FIN | ACK, RST] {
            let (mut plane, connection) = opened(service, v6);
            let end = connection.up(Tcp::new(0, 0, flags).numbers(CLIENT + 1, SERVER + 1));
            plane.run(&end.bytes());
            if connection.is_nat() && flags != RST {
                let end = connection.down(Tcp::new(0, 0, flags).numbers(SERVER + 1, CLIENT + 2));
                plane.run(&end.bytes());
            }
            // Older than the old connection's numbers, as after a reboot of the client.
            for seq in [CLIENT2, 7] {
                let syn = second_syn(&connection, seq);
                let mut expected = connection.syn_goes_up(&syn);
                if seq == CLIENT2 {
                    expected = expected.counts(service, Event::FlowReplaced);
                }
                let name = format!("{}, ended by {flags:#x}", name(service, v6));
                plane.check(&name, &syn.bytes(), &expected);
            }
            let syn = second_syn(&connection, CLIENT2);
            plane.check("again", &syn.bytes(), &connection.syn_goes_up(&syn));
            complete(&mut plane, &connection, false);
        }
    }
}

/// The second connection's handshake, from the SYN-ACK on.
#[track_caller]
fn complete(plane: &mut Dataplane, connection: &Connection, replaces: bool) {
    if connection.is_nat() {
        let answer =
            connection.down(Tcp::new(0, 0, SYN | ACK).numbers(SERVER2, CLIENT2.wrapping_add(1)));
        plane.check("SYN-ACK", &answer.bytes(), &connection.goes_down(&answer));
    }
    let ack = connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT2 + 1, SERVER2 + 1));
    let mut expected = connection.opens(&ack);
    if replaces {
        expected = expected.counts(connection.service, Event::FlowReplaced);
    }
    plane.check("ACK", &ack.bytes(), &expected);
    let data = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT2 + 1, SERVER2 + 1).payload(b"new");
    let data = connection.up(data);
    plane.check("data", &data.bytes(), &connection.goes_up(&data));
}

#[test]
fn a_syn_on_a_live_flow_replaces_it_when_it_is_completed() {
    for (service, v6) in services() {
        let (mut plane, old) = opened(service, v6);
        let syn = second_syn(&old, CLIENT2);
        let new = if old.is_nat() {
            // The old port belongs to the old flow until that is gone.
            translated(&mut plane, &old, &syn)
        } else {
            plane.check(&name(service, v6), &syn.bytes(), &old.syn_goes_up(&syn));
            old.clone()
        };
        let data = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(b"old");
        let data = old.up(data);
        plane.check("meanwhile the old one goes on", &data.bytes(), &old.goes_up(&data));
        if old.is_nat() {
            let data = Tcp::new(0, 0, ACK | PSH).numbers(SERVER + 1, CLIENT + 4).payload(b"old");
            let data = old.down(data);
            plane.check("in both directions", &data.bytes(), &old.goes_down(&data));
        }
        complete(&mut plane, &new, true);
    }
}

fn leaves_nothing<A: Family>() {
    let (mut plane, old) = opened(id::NAT, A::LEN == 16);
    let syn = second_syn(&old, CLIENT2);
    let new = translated(&mut plane, &old, &syn);
    complete(&mut plane, &new, true);
    let mut flows = A::flow_keys(&plane);
    flows.sort_by_key(|key| key.words_of_ports());
    let mut expected = vec![client_key::<A>(&new), answers::<A>(&new)];
    expected.sort_by_key(|key| key.words_of_ports());
    assert_eq!(flows, expected, "two entries, both of the new connection");
}

trait Ports {
    fn words_of_ports(&self) -> (u16, u16);
}

impl<A> Ports for lb_common::addr::Tuple<A> {
    fn words_of_ports(&self) -> (u16, u16) {
        (self.sport, self.dport)
    }
}

#[test]
fn the_old_connection_leaves_nothing_behind() {
    leaves_nothing::<V4>();
    leaves_nothing::<V6>();
}

#[test]
fn an_old_duplicate_of_the_syn_changes_nothing() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        for seq in [CLIENT, CLIENT.wrapping_sub(0x1000_0000)] {
            let syn = second_syn(&connection, seq);
            plane.check(&name(service, v6), &syn.bytes(), &connection.goes_up(&syn));
        }
        let data = connection
            .up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(b"still"));
        plane.check("data", &data.bytes(), &connection.goes_up(&data));
    }
}

#[test]
fn a_forged_syn_cannot_take_a_live_flow_over() {
    for (service, v6) in services() {
        let (mut plane, old) = opened(service, v6);
        let syn = second_syn(&old, CLIENT2);
        plane.run(&syn.bytes());
        // Whoever forged the SYN has not seen the SYN-ACK, and must guess.
        for guess in [0, 1, 2, 0x1_0000, 0x8000_0000] {
            let ack = Tcp::new(0, 0, ACK | PSH)
                .numbers(CLIENT.wrapping_add(guess), SERVER.wrapping_add(guess))
                .payload(b"!");
            let ack = old.up(ack);
            plane.check(&name(service, v6), &ack.bytes(), &old.goes_up(&ack));
        }
    }
}

#[test]
fn a_syn_from_the_backends_side_is_only_forwarded() {
    // Simultaneous open does not exist here; what comes on the answers' tuple goes to the client.
    for v6 in [false, true] {
        let (mut plane, connection) = opened(id::NAT, v6);
        let syn = connection.down(Tcp::new(0, 0, SYN).numbers(5, 0));
        plane.check("SYN of the backend", &syn.bytes(), &connection.goes_down(&syn));
    }
}

#[test]
fn counters_of_backends_follow_a_restart() {
    let (mut plane, old) = opened(id::NAT, false);
    let syn = second_syn(&old, CLIENT2);
    let new = translated(&mut plane, &old, &syn);
    complete(&mut plane, &new, true);
    let counters = plane.tables.counters().backends[&old.backend];
    let BackendCounters { picked, opened, closed, reset, .. } = counters;
    assert_eq!((picked, opened, closed, reset), (2, 2, 0, 0));
}

fn port_lost<A: Family>() {
    let (mut plane, old) = opened(id::NAT, A::LEN == 16);
    let syn = second_syn(&old, CLIENT2);
    let new = translated(&mut plane, &old, &syn);
    plane.run(&new.down(Tcp::new(0, 0, SYN | ACK).numbers(SERVER2, CLIENT2 + 1)).bytes());
    let mut theirs = A::handshake(&plane, &answers(&new)).unwrap();
    theirs.flow.to.dport ^= 1;
    A::enter_handshake(&mut plane, &answers(&new), &theirs);
    plane.run(&new.up(Tcp::new(0, 0, ACK).numbers(CLIENT2 + 1, SERVER2 + 1)).bytes());
    assert_eq!(A::handshake(&plane, &answers(&new)), Some(theirs), "theirs stays theirs");
    assert_eq!(A::flow(&plane, &answers(&new)), None, "no flow on their port");
    assert!(A::flow(&plane, &answers(&old)).is_some(), "the old connection stays");
}

/// Under a flood the newcomer's port can become another's before its handshake is completed.
#[test]
fn a_newcomer_whose_port_was_lost_replaces_nothing() {
    port_lost::<V4>();
    port_lost::<V6>();
}
