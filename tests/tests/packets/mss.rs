//! The MSS in a SYN is lowered to what fits into the tunnel, wherever the option stands.

use lb_common::outcome::Event;
use tests::{
    dataplane::{Dataplane, Scenario},
    packet::{
        Frame, Tcp,
        tcp::{SYN, option},
    },
};

use crate::connection::{CLIENT, Connection, name, services};

const LIMIT: u16 = 1400;

fn clamping() -> Scenario {
    Scenario::usual().with(|scenario| {
        scenario.backends.values_mut().for_each(|backend| backend.mss_clamp = LIMIT);
    })
}

fn syn(connection: &Connection, before: &[u8], mss: u16, behind: &[u8]) -> Frame {
    let options: [&[u8]; 3] = [before, &option::mss(mss), behind];
    connection.up(Tcp::new(0, 0, SYN).numbers(CLIENT, 0).options(&options))
}

#[test]
fn at_every_place_among_the_options() {
    for (service, v6) in services() {
        for place in 0..=36 {
            let mut plane = Dataplane::fresh(clamping());
            let connection = Connection::new(&plane, service, v6);
            let nops = vec![1; place];
            let behind = vec![1; 36 - place];
            let sent = syn(&connection, &nops, 1460, &behind);
            let clamped = syn(&connection, &nops, LIMIT, &behind);
            let expected = connection.syn_goes_up(&clamped).counts(service, Event::MssClamped);
            let name = format!("{}, behind {place} bytes", name(service, v6));
            plane.check(&name, &sent.bytes(), &expected);
        }
    }
}

#[test]
fn only_if_it_is_too_large() {
    for (service, v6) in services() {
        for (mss, clamped) in [
            (0, false),
            (536, false),
            (1399, false),
            (1400, false),
            (1401, true),
            (8960, true),
            (65_535, true),
        ] {
            let mut plane = Dataplane::fresh(clamping());
            let connection = Connection::new(&plane, service, v6);
            let sent = syn(&connection, &[1, 1], mss, &[]);
            let mut expected =
                connection.syn_goes_up(&syn(&connection, &[1, 1], mss.min(LIMIT), &[]));
            if clamped {
                expected = expected.counts(service, Event::MssClamped);
            }
            plane.check(&format!("{}, {mss}", name(service, v6)), &sent.bytes(), &expected);
        }
    }
}

#[test]
fn a_syn_sent_again_is_clamped_again() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(clamping());
        let connection = Connection::new(&plane, service, v6);
        let (sent, clamped) =
            (syn(&connection, &[1], 1460, &[]), syn(&connection, &[1], LIMIT, &[]));
        let first = connection.syn_goes_up(&clamped).counts(service, Event::MssClamped);
        plane.check("first", &sent.bytes(), &first);
        let again = connection
            .goes_up(&clamped)
            .counts(service, Event::SynRetransmitted)
            .counts(service, Event::MssClamped);
        plane.check(&name(service, v6), &sent.bytes(), &again);
    }
}

#[test]
fn without_an_mss_there_is_nothing_to_lower() {
    for (service, v6) in services() {
        for options in [
            &[][..],
            &[1, 1, 1, 1],
            &[2, 3, 5, 0xff],
            &[0, 2, 4, 0x23, 0x28, 0, 0, 0],
            &[8, 0, 2, 4, 0x23, 0x28, 0, 0],
        ] {
            let mut plane = Dataplane::fresh(clamping());
            let connection = Connection::new(&plane, service, v6);
            let sent = connection.up(Tcp::new(0, 0, SYN).numbers(CLIENT, 0).options(&[options]));
            plane.check(&name(service, v6), &sent.bytes(), &connection.syn_goes_up(&sent));
        }
    }
}
