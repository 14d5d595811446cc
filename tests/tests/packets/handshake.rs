//! How connections begin: SYN, SYN-ACK, ACK, and what may come in between.

use lb_common::{
    addr::{Tuple, V4, V6},
    flow::{Flow, flags as flow_flags, forward},
    handshake::{Handshake, Offer, flags, offers},
    outcome::{DropReason, Event},
};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{
        Tcp,
        tcp::{ACK, CWR, ECE, FIN, PSH, RST, SYN, option},
    },
};

use crate::{
    connection::{CLIENT, Connection, SERVER, VERSIONS, name, services},
    keys::{Family, answers, client_key},
};

#[test]
fn from_the_first_syn_to_data_in_both_directions() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let (mut seq, mut ack) = (CLIENT + 1, SERVER + 1);
        for len in [1, 2, 517, 1400] {
            let up =
                connection.up(Tcp::new(0, 0, ACK | PSH).numbers(seq, ack).payload(&vec![7; len]));
            let name = format!("{}, {len} bytes", name(service, v6));
            plane.check(&name, &up.bytes(), &connection.goes_up(&up));
            seq += len as u32;
            if connection.is_nat() {
                let data = Tcp::new(0, 0, ACK | PSH).numbers(ack, seq).payload(&vec![8; len]);
                let down = connection.down(data);
                plane.check(&name, &down.bytes(), &connection.goes_down(&down));
                ack += len as u32;
            }
        }
    }
}

#[test]
fn every_bit_that_is_not_ours_is_kept() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let segment = Tcp {
            window: 1,
            urgent: 0xabcd,
            flags: ACK | PSH | ECE | CWR | 0x20,
            ..Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1).options(&[
                option::NOP,
                option::NOP,
                &option::timestamps(0xdead_beef, 0x0102_0304),
                &[253, 6, 1, 2, 3, 4],
            ])
        };
        let up = connection.up(segment).with(|frame| {
            frame.packet.ip.traffic_class = 0xb9;
            frame.packet.ip.id = 0xffff;
            frame.packet.ip.fragment = 0;
            frame.packet.ip.flow_label = 0xf_ffff;
        });
        plane.check(&name(service, v6), &up.bytes(), &connection.goes_up(&up));
    }
}

#[test]
fn a_wrong_checksum_stays_wrong() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        connection.open(&mut plane);
        for error in [1, 0x100, 0x8000, 0xfffe] {
            let up = connection
                .up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1).payload(b"odd"))
                .with(|frame| frame.packet.as_tcp().checksum_error = error);
            let output = plane.run(&up.bytes());
            let verdict = tests::packet::check::verify(&output.frame);
            assert!(verdict.is_err(), "off by {error:#x}, and nobody would notice");
        }
    }
}

#[test]
fn a_syn_sent_again_goes_the_same_way() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        for _ in 0..3 {
            let expected = connection.goes_up(&syn).counts(service, Event::SynRetransmitted);
            plane.check(&name(service, v6), &syn.bytes(), &expected);
        }
    }
}

fn reservation_lost<A: Family>() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, A::LEN == 16);
    let syn = connection.syn();
    plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
    A::remove_handshake(&mut plane, &answers(&connection));
    plane.check("the port is reserved again", &syn.bytes(), &connection.syn_goes_up(&syn));
    let answer = connection.syn_ack();
    plane.check("so the answer comes back", &answer.bytes(), &connection.goes_down(&answer));

    // Meanwhile the port has become another client's: nothing of ours may go there.
    let mut theirs = A::handshake(&plane, &answers(&connection)).unwrap();
    theirs.flow.to.dport ^= 1;
    A::enter_handshake(&mut plane, &answers(&connection), &theirs);
    let ack = connection.handshake_ack();
    plane.check("ACK", &ack.bytes(), &Expect::drop(id::NAT, DropReason::HandshakeMismatch));
    assert_eq!(A::handshake(&plane, &answers(&connection)), Some(theirs), "theirs stays theirs");
}

/// A flood of SYNs can push out one half of a handshake and leave the other.
#[test]
fn a_reservation_that_was_pushed_out_is_made_anew_and_never_stolen() {
    reservation_lost::<V4>();
    reservation_lost::<V6>();
}

fn dated<A: Family>() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, A::LEN == 16);
    let before = lb_agent::bpf::sys::now_ticks();
    let syn = connection.syn();
    plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
    for key in [client_key(&connection), answers(&connection)] {
        let seen = A::handshake(&plane, &key).unwrap().flow.last_seen;
        // The coarse clock may be a tick behind.
        assert!(seen.wrapping_sub(before.wrapping_sub(1)) < 1000, "{seen} after {before}");
    }
}

/// Or nobody could tell the unfinished from those under way.
#[test]
fn handshakes_are_dated() {
    dated::<V4>();
    dated::<V6>();
}

#[test]
fn a_client_that_starts_over_before_it_is_answered() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let again = syn.with(|frame| frame.packet.as_tcp().seq = 5);
        plane.check(&name(service, v6), &again.bytes(), &connection.syn_goes_up(&again));
    }
}

#[test]
fn an_acknowledgement_that_completes_nothing_is_dropped() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let mismatch = Expect::drop(service, DropReason::HandshakeMismatch);
        if connection.is_nat() {
            let early = connection.handshake_ack();
            plane.check("before the SYN-ACK", &early.bytes(), &mismatch);
            let answer = connection.syn_ack();
            plane.check("SYN-ACK", &answer.bytes(), &connection.goes_down(&answer));
        }
        let wrong = |seq: u32, ack: u32| connection.up(Tcp::new(0, 0, ACK).numbers(seq, ack));
        let guesses = [0, 0x4000_0000, 0xffff, u32::MAX / 2];
        for guess in guesses {
            let sent = match connection.is_nat() {
                true => wrong(CLIENT + 1, SERVER.wrapping_sub(guess)),
                false => wrong(CLIENT.wrapping_sub(guess), SERVER + 1),
            };
            let name = format!("{}, {guess} before", name(service, v6));
            plane.check(&name, &sent.bytes(), &mismatch);
        }
        let late = match connection.is_nat() {
            true => wrong(CLIENT + 1, SERVER + 1 + 0x1_0000),
            false => wrong(CLIENT + 1 + 0x1_0000, SERVER + 1),
        };
        plane.check("beyond the slack", &late.bytes(), &mismatch);
        for flags in [0, FIN, PSH] {
            let sent = connection.up(Tcp::new(0, 0, flags).numbers(CLIENT + 1, SERVER + 1));
            plane.check(&format!("flags {flags:#x}"), &sent.bytes(), &mismatch);
        }
        let ack = connection.handshake_ack();
        plane.check("the right one", &ack.bytes(), &connection.opens(&ack));
    }
}

#[test]
fn data_may_complete_a_handshake() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        if connection.is_nat() {
            let answer = connection.syn_ack();
            for time in ["SYN-ACK", "SYN-ACK again"] {
                plane.check(time, &answer.bytes(), &connection.goes_down(&answer));
            }
        }
        // The bare ACK was lost; with Fast Open the data may be further on.
        let data = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1 + 1000, SERVER + 1 + 500);
        let data = connection.up(data.payload(b"GET / HTTP/1.1\r\n\r\n"));
        plane.check(&name(service, v6), &data.bytes(), &connection.opens(&data));
    }
}

#[test]
fn a_handshake_that_is_refused_or_given_up() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let refusal = connection.down(Tcp::new(0, 0, RST | ACK).numbers(0, CLIENT + 1));
        plane.check("refused", &refusal.bytes(), &connection.goes_down(&refusal));
        let given_up = connection.up(Tcp::new(0, 0, RST).numbers(CLIENT + 1, 0));
        plane.check("given up", &given_up.bytes(), &connection.goes_up(&given_up));
    }
    for (service, v6) in services().filter(|(service, _)| ![id::NAT, id::AFFINE].contains(service))
    {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let given_up = connection.up(Tcp::new(0, 0, RST).numbers(CLIENT + 1, 0));
        plane.check(&name(service, v6), &given_up.bytes(), &connection.goes_up(&given_up));
    }
}

fn remembers<A: Family>() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, A::LEN == 16);
    let syn = connection.syn().with(|frame| frame.packet.as_tcp().flags |= ECE | CWR);
    plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
    let answer = connection.syn_ack().with(|frame| frame.packet.as_tcp().flags |= ECE);
    plane.check("SYN-ACK", &answer.bytes(), &connection.goes_down(&answer));
    let (client, server) = (client_key::<A>(&connection), answers::<A>(&connection));
    let everything =
        offers::SACK | offers::TIMESTAMPS | offers::WINDOW_SCALE | offers::ECN | offers::MSS;

    let up: Handshake<A> = A::handshake(&plane, &client).unwrap();
    assert_eq!(up.offer, Offer { tsval: 77, mss: 1460, window_scale: 7, flags: everything });
    assert_eq!(
        (up.isn, up.peer_isn, up.flags & flags::ANSWERED),
        (CLIENT, SERVER, flags::ANSWERED)
    );
    assert_eq!((up.flow.to, up.flow.backend), (server.reversed(), connection.backend));
    assert_eq!((up.flow.forward, up.flow.flags & flow_flags::TO_CLIENT), (forward::NAT, 0));

    let down: Handshake<A> = A::handshake(&plane, &server).unwrap();
    assert_eq!(down.offer, Offer { tsval: 99, mss: 1440, window_scale: 9, flags: everything });
    assert_eq!(down.isn, SERVER);
    assert_eq!((down.flow.to, down.flow.flags), (client.reversed(), flow_flags::TO_CLIENT));
}

#[test]
fn what_each_side_offered_is_remembered() {
    remembers::<V4>();
    remembers::<V6>();
}

fn enters<A: Family>(service: u16) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, service, A::LEN == 16);
    connection.open(&mut plane);
    let client: Tuple<A> = client_key(&connection);
    let up: Flow<A> = A::flow(&plane, &client).expect("the client's flow is there");
    assert_eq!((up.seq_next, up.ack), (CLIENT + 1, SERVER + 1));
    assert_eq!((up.backend, up.packets), (connection.backend, 1));
    let bytes = connection.handshake_ack().packet.bytes().len() as u64;
    assert_eq!((up.bytes, up.flags), (bytes, 0));
    assert_eq!([up.seq_delta, up.ack_delta, up.tsval_delta, up.tsecr_delta], [0; 4]);
    let mut flows = A::flow_keys(&plane).len();
    if connection.is_nat() {
        let server = answers::<A>(&connection);
        let down: Flow<A> = A::flow(&plane, &server).expect("the other direction, too");
        assert_eq!((up.to, down.to), (server.reversed(), client.reversed()));
        assert_eq!((down.seq_next, down.ack), (SERVER + 1, CLIENT + 1));
        assert_eq!((down.flags, down.packets), (flow_flags::TO_CLIENT, 0));
        flows -= 1;
    } else {
        assert_eq!(up.to, client, "the tuple is kept");
    }
    assert_eq!(flows, 1, "nothing else is entered");
    assert_eq!(A::handshake_keys(&plane).len(), 0, "nothing is left behind");
}

#[test]
fn a_completed_handshake_is_in_the_flow_table_and_nowhere_else() {
    for (service, v6) in services() {
        match v6 {
            false => enters::<V4>(service),
            true => enters::<V6>(service),
        }
    }
}

fn offer_of(options: &[&[u8]]) -> Offer {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, false);
    let syn = connection.up(Tcp::new(0, 0, SYN).numbers(CLIENT, 0).options(options));
    plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
    V4::handshake(&plane, &client_key(&connection)).unwrap().offer
}

#[test]
fn options_however_they_are_packed() {
    let mss = option::mss(1234);
    let all = [0xfe, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let with_mss = Offer { mss: 1234, flags: offers::MSS, ..Offer::default() };
    let cases: [(&str, Vec<&[u8]>, Offer); 12] = [
        ("none", vec![], Offer::default()),
        ("MSS alone", vec![&mss], with_mss),
        ("MSS behind one NOP", vec![option::NOP, &mss], with_mss),
        ("MSS behind three NOPs", vec![&[1, 1, 1], &mss], with_mss),
        ("MSS at the very end", vec![&[1; 36], &mss], with_mss),
        ("MSS behind an unknown option", vec![&all, &mss], with_mss),
        ("MSS behind the end of the list", vec![option::END, &mss], Offer::default()),
        ("an option of length 0 ends the list", vec![&[253, 0], &mss], Offer::default()),
        ("an option of length 1 ends the list", vec![&[253, 1], &mss], Offer::default()),
        ("an option longer than the header", vec![&mss, &[253, 200, 0, 0]], with_mss),
        ("MSS of the wrong length", vec![&[2, 3, 5], option::NOP], Offer::default()),
        ("a kind without its length", vec![&mss, &[1, 1, 1, 253]], with_mss),
    ];
    for (name, options, expected) in cases {
        assert_eq!(offer_of(&options), expected, "{name}");
    }
}
