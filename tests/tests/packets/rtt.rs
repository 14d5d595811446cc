//! Round trips of handshakes: which are measured, and for which service.

use lb_common::rtt::HandshakeRtt;
use std::{thread, time::Duration};
use tests::{
    dataplane::{Dataplane, Scenario, id, scenario},
    packet::{
        Tcp,
        tcp::{ACK, RST},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

/// How many handshakes of a service were measured.
fn count(rtt: &HandshakeRtt) -> u64 {
    rtt.buckets.iter().sum()
}

#[test]
fn a_handshake_is_measured_from_the_syn_to_the_segment_that_completes_it() {
    const WAIT: Duration = Duration::from_millis(3);
    for (service, v6) in services() {
        let what = name(service, v6);
        let plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let start = std::time::Instant::now();
        plane.run(&connection.syn().bytes());
        if connection.is_nat() {
            plane.run(&connection.syn_ack().bytes());
        }
        assert_eq!(count(&plane.tables.handshake_rtt(service)), 0, "{what}");
        thread::sleep(WAIT);
        plane.run(&connection.handshake_ack().bytes());
        let most = start.elapsed();
        let rtt = plane.tables.handshake_rtt(service);
        assert_eq!(count(&rtt), 1, "{what}");
        let took = Duration::from_micros(rtt.micros);
        // A clock of microseconds.
        assert!(
            took + Duration::from_micros(2) >= WAIT && took <= most,
            "{what}: {took:?} of {most:?}"
        );
        let bucket = lb_common::rtt::bucket(rtt.micros as u32);
        assert_eq!(rtt.buckets[bucket], 1, "{what}");

        // Nothing that follows is.
        plane.run(&connection.handshake_ack().bytes());
        plane.run(&connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1)).bytes());
        assert_eq!(plane.tables.handshake_rtt(service), rtt, "{what}");
        for other in id::ALL.iter().filter(|it| **it != service) {
            assert_eq!(count(&plane.tables.handshake_rtt(*other)), 0, "{what}: not of {other}");
        }
    }
}

#[test]
fn a_syn_that_was_sent_again_is_not_measured() {
    for (service, v6) in services() {
        let plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        plane.run(&connection.syn().bytes());
        plane.run(&connection.syn().bytes());
        if connection.is_nat() {
            plane.run(&connection.syn_ack().bytes());
        }
        plane.run(&connection.handshake_ack().bytes());
        assert_eq!(count(&plane.tables.handshake_rtt(service)), 0, "{}", name(service, v6));
    }
}

#[test]
fn a_client_of_the_sidecar_is_measured_by_the_first_segment_after_its_syn() {
    for v6 in VERSIONS {
        let plane = Dataplane::fresh(Scenario::usual());
        let mut connection = Connection::new(&plane, id::NAT, v6);
        connection.vip = scenario::listener(id::SIDECAR, v6);
        let measured = || count(&plane.tables.handshake_rtt(id::SIDECAR));
        plane.run(&connection.syn().bytes());
        assert_eq!(measured(), 0);
        plane.run(&connection.handshake_ack().bytes());
        assert_eq!(measured(), 1);
        plane.run(&connection.handshake_ack().bytes());
        assert_eq!(measured(), 1, "once");

        // One that gives up, and one whose SYN came twice.
        connection.client.set_port(connection.client.port() + 1);
        plane.run(&connection.syn().bytes());
        plane.run(&connection.up(Tcp::new(0, 0, RST).numbers(CLIENT + 1, 0)).bytes());
        plane.run(&connection.handshake_ack().bytes());
        connection.client.set_port(connection.client.port() + 1);
        plane.run(&connection.syn().bytes());
        plane.run(&connection.syn().bytes());
        plane.run(&connection.handshake_ack().bytes());
        assert_eq!(measured(), 1);
    }
}
