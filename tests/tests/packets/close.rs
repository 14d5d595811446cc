//! How connections end: FIN from either side, and RST with right and wrong numbers.

use lb_common::{
    addr::{V4, V6},
    counters::BackendCounters,
    flow::flags,
};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{
        Frame, Tcp,
        tcp::{ACK, FIN, PSH, RST},
    },
};

use crate::{
    connection::{CLIENT, Connection, SERVER, VERSIONS, name, services},
    keys::{Family, answers, client_key},
};

fn up(connection: &Connection, flags: u8, seq: u32, ack: u32) -> Frame {
    connection.up(Tcp::new(0, 0, flags).numbers(seq, ack))
}

fn down(connection: &Connection, flags: u8, seq: u32, ack: u32) -> Frame {
    connection.down(Tcp::new(0, 0, flags).numbers(seq, ack))
}

fn closed(expected: Expect, connection: &Connection) -> Expect {
    let rise = BackendCounters { closed: 1, ..BackendCounters::default() };
    expected.backend(connection.backend, rise)
}

fn reset(expected: Expect, connection: &Connection) -> Expect {
    let rise = BackendCounters { reset: 1, ..BackendCounters::default() };
    expected.backend(connection.backend, rise)
}

/// An open `nat` connection.
fn opened(service: u16, v6: bool) -> (std::sync::MutexGuard<'static, Dataplane>, Connection) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, service, v6);
    connection.open(&mut plane);
    (plane, connection)
}

#[test]
fn the_client_closes_first() {
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        let fin = up(&connection, FIN | ACK, CLIENT + 1, SERVER + 1);
        plane.check("FIN of the client", &fin.bytes(), &connection.goes_up(&fin));
        let ack = down(&connection, ACK, SERVER + 1, CLIENT + 2);
        plane.check("ACK of the backend", &ack.bytes(), &connection.goes_down(&ack));
        let rest = connection
            .down(Tcp::new(0, 0, ACK | PSH).numbers(SERVER + 1, CLIENT + 2).payload(b"rest"));
        plane.check("half closed, data goes on", &rest.bytes(), &connection.goes_down(&rest));
        let fin = down(&connection, FIN | ACK, SERVER + 5, CLIENT + 2);
        let expected = closed(connection.goes_down(&fin), &connection);
        plane.check("FIN of the backend", &fin.bytes(), &expected);
        plane.check("the same again", &fin.bytes(), &connection.goes_down(&fin));
        let last = up(&connection, ACK, CLIENT + 2, SERVER + 6);
        plane.check("last ACK", &last.bytes(), &connection.goes_up(&last));
    }
}

#[test]
fn the_backend_closes_first() {
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        let fin = down(&connection, FIN | ACK, SERVER + 1, CLIENT + 1);
        plane.check("FIN of the backend", &fin.bytes(), &connection.goes_down(&fin));
        let fin = up(&connection, FIN | ACK, CLIENT + 1, SERVER + 2);
        let expected = closed(connection.goes_up(&fin), &connection);
        plane.check("FIN of the client", &fin.bytes(), &expected);
        let last = down(&connection, ACK, SERVER + 2, CLIENT + 2);
        plane.check("last ACK", &last.bytes(), &connection.goes_down(&last));
    }
}

#[test]
fn where_only_the_client_is_seen_its_fin_closes() {
    for (service, v6) in services().filter(|(service, _)| ![id::NAT, id::AFFINE].contains(service))
    {
        let (mut plane, connection) = opened(service, v6);
        let fin = up(&connection, FIN | ACK, CLIENT + 1, SERVER + 1);
        let expected = closed(connection.goes_up(&fin), &connection);
        plane.check(&name(service, v6), &fin.bytes(), &expected);
        let last = up(&connection, ACK, CLIENT + 2, SERVER + 2);
        plane.check("last ACK", &last.bytes(), &connection.goes_up(&last));
    }
}

#[test]
fn a_fin_with_data_and_one_that_overtook_data() {
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        let fin = connection
            .up(Tcp::new(0, 0, FIN | ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(b"bye"));
        plane.check("FIN with data", &fin.bytes(), &connection.goes_up(&fin));
        let fin = down(&connection, FIN | ACK, SERVER + 1 + 30_000, CLIENT + 5);
        let expected = closed(connection.goes_down(&fin), &connection);
        plane.check("FIN behind a gap", &fin.bytes(), &expected);
    }
}

#[test]
fn a_fin_with_foreign_numbers_does_not_close() {
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        for seq in [CLIENT - 5, CLIENT + 0x2_0000, CLIENT ^ 0x8000_0000] {
            let fin = up(&connection, FIN | ACK, seq, SERVER + 1);
            plane.check("client", &fin.bytes(), &connection.goes_up(&fin));
        }
        let fin = down(&connection, FIN | ACK, SERVER + 1, CLIENT + 1);
        // Not both sides: so this does not close either.
        plane.check("backend", &fin.bytes(), &connection.goes_down(&fin));
    }
}

#[test]
fn a_reset_with_the_expected_number_ends_the_flow() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        let rst = up(&connection, RST, CLIENT + 1, 0);
        let expected = reset(connection.goes_up(&rst), &connection);
        plane.check(&name(service, v6), &rst.bytes(), &expected);
        plane.check("the same again", &rst.bytes(), &connection.goes_up(&rst));
    }
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        let data = down(&connection, ACK, SERVER + 1, CLIENT + 1);
        plane.check("backend", &data.bytes(), &connection.goes_down(&data));
        let rst = down(&connection, RST | ACK, SERVER + 1, CLIENT + 1);
        let expected = reset(connection.goes_down(&rst), &connection);
        plane.check("RST of the backend", &rst.bytes(), &expected);
    }
}

#[test]
fn a_reset_with_the_number_that_the_other_side_acknowledged_ends_the_flow() {
    for v6 in VERSIONS {
        let (mut plane, connection) = opened(id::NAT, v6);
        let data = connection
            .up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(&[1; 100]));
        plane.check("data", &data.bytes(), &connection.goes_up(&data));
        let ack = down(&connection, ACK, SERVER + 1, CLIENT + 51);
        plane.check("half of it acknowledged", &ack.bytes(), &connection.goes_down(&ack));
        let rst = up(&connection, RST, CLIENT + 51, 0);
        let expected = reset(connection.goes_up(&rst), &connection);
        plane.check("RST", &rst.bytes(), &expected);
    }
}

#[test]
fn a_reset_with_a_guessed_number_ends_nothing() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        for seq in [0, CLIENT, CLIENT + 2, CLIENT + 1000, CLIENT ^ 0x8000_0000] {
            let rst = up(&connection, RST, seq, 0);
            let name = format!("{}, {seq:#x}", name(service, v6));
            plane.check(&name, &rst.bytes(), &connection.goes_up(&rst));
        }
    }
}

/// A guess must not poison what is remembered: the right number is still known afterwards.
#[test]
fn after_wrong_guesses_the_right_reset_still_counts() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        for seq in [CLIENT + 2, CLIENT + 0x1000_0000] {
            let rst = up(&connection, RST, seq, 0);
            plane.check("a guess", &rst.bytes(), &connection.goes_up(&rst));
            plane.check("the same guess", &rst.bytes(), &connection.goes_up(&rst));
        }
        let rst = up(&connection, RST, CLIENT + 1, 0);
        let expected = reset(connection.goes_up(&rst), &connection);
        plane.check(&name(service, v6), &rst.bytes(), &expected);
    }
}

/// A forged segment must not teach the number that makes a forged RST right.
#[test]
fn data_from_beyond_any_window_teaches_nothing() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        for ahead in [1 << 25, 1 << 28, 0x7fff_ff00] {
            let data = up(&connection, ACK, CLIENT + 1 + ahead, SERVER + 1);
            plane.check("forged data", &data.bytes(), &connection.goes_up(&data));
            let rst = up(&connection, RST, CLIENT + 1 + ahead, 0);
            plane.check("and its RST", &rst.bytes(), &connection.goes_up(&rst));
        }
    }
}

/// Whoever has sent a RST has no connection to send on: the RST was another's.
#[test]
fn a_sender_that_goes_on_takes_its_reset_back() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        let rst = up(&connection, RST, CLIENT + 1, 0);
        let expected = reset(connection.goes_up(&rst), &connection);
        plane.check("RST", &rst.bytes(), &expected);
        let data = up(&connection, ACK, CLIENT + 1, SERVER + 1);
        plane.check("the client goes on", &data.bytes(), &connection.goes_up(&data));
        // It counts anew, so the flow was open.
        plane.check(&name(service, v6), &rst.bytes(), &expected);
    }
    let (rst, data) = ((true, RST, CLIENT + 1, 0), (true, ACK, CLIENT + 1, SERVER + 1));
    assert_eq!(table_after::<V4>(&[rst, data]), (0, 0));
    assert_eq!(table_after::<V6>(&[rst, data]), (0, 0));
    // What the other side had sent before it got the RST means nothing.
    let late = (false, ACK, SERVER + 1, CLIENT + 1);
    assert_eq!(table_after::<V4>(&[rst, late]), (flags::RESET, flags::PEER_RESET));
}

/// A flipped bit makes a FIN of any segment, and the edge does not verify checksums.
#[test]
fn data_behind_a_fin_takes_it_back() {
    for (service, v6) in services() {
        let (mut plane, connection) = opened(service, v6);
        let data = |at: u32, flags: u8, bytes: &[u8]| {
            connection.up(Tcp::new(0, 0, flags).numbers(at, SERVER + 1).payload(bytes))
        };
        let flipped = data(CLIENT + 1, FIN | ACK, b"abc");
        let expected = connection.goes_up(&flipped);
        let expected = match connection.is_nat() {
            true => expected,
            false => closed(expected, &connection),
        };
        plane.check("flipped", &flipped.bytes(), &expected);
        // What was flipped is sent again: that alone may be late, and proves nothing.
        let again = data(CLIENT + 1, ACK, b"abc");
        plane.check("again", &again.bytes(), &connection.goes_up(&again));
        let next = data(CLIENT + 4, ACK, b"d");
        plane.check("the next byte", &next.bytes(), &connection.goes_up(&next));
        let flags = match v6 {
            true => V6::flow(&plane, &client_key(&connection)).unwrap().flags,
            false => V4::flow(&plane, &client_key(&connection)).unwrap().flags,
        };
        assert_eq!(flags, 0, "{}", name(service, v6));
    }
}

/// The bare acknowledgement was lost on the way to the edge.
#[test]
fn a_fin_that_completes_the_handshake_is_a_fin() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        if connection.is_nat() {
            let answer = connection.syn_ack();
            plane.check("SYN-ACK", &answer.bytes(), &connection.goes_down(&answer));
        }
        plane.run(&up(&connection, FIN | ACK, CLIENT + 1, SERVER + 1).bytes());
        if connection.is_nat() {
            let fin = down(&connection, FIN | ACK, SERVER + 1, CLIENT + 2);
            let expected = closed(connection.goes_down(&fin), &connection);
            plane.check(&name(service, v6), &fin.bytes(), &expected);
        } else {
            let ended = match v6 {
                true => V6::flow(&plane, &client_key(&connection)).unwrap().is_closing(),
                false => V4::flow(&plane, &client_key(&connection)).unwrap().is_closing(),
            };
            assert!(ended, "{}", name(service, v6));
        }
    }
}

fn table_after<A: Family>(frames: &[(bool, u8, u32, u32)]) -> (u8, u8) {
    let (plane, connection) = opened(id::NAT, A::LEN == 16);
    for &(client, flags, seq, ack) in frames {
        let frame = match client {
            true => up(&connection, flags, seq, ack),
            false => down(&connection, flags, seq, ack),
        };
        plane.run(&frame.bytes());
    }
    let there = A::flow(&plane, &client_key(&connection)).unwrap();
    let back = A::flow(&plane, &answers(&connection)).unwrap();
    assert_eq!(there.is_closing(), back.is_closing(), "both entries know");
    (there.flags, back.flags & !flags::TO_CLIENT)
}

fn both_entries_know_how_it_ended<A: Family>() {
    let client_fin = (true, FIN | ACK, CLIENT + 1, SERVER + 1);
    let server_fin = (false, FIN | ACK, SERVER + 1, CLIENT + 1);
    let client_rst = (true, RST, CLIENT + 1, 0);
    let both = flags::FIN | flags::PEER_FIN;
    assert_eq!(table_after::<A>(&[]), (0, 0));
    assert_eq!(table_after::<A>(&[client_fin]), (flags::FIN, flags::PEER_FIN));
    assert_eq!(table_after::<A>(&[server_fin]), (flags::PEER_FIN, flags::FIN));
    assert_eq!(table_after::<A>(&[client_fin, server_fin]), (both, both));
    assert_eq!(table_after::<A>(&[client_rst]), (flags::RESET, flags::PEER_RESET));
}

#[test]
fn both_entries_of_a_connection_know_how_it_ended() {
    both_entries_know_how_it_ended::<V4>();
    both_entries_know_how_it_ended::<V6>();
}
