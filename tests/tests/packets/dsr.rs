//! `dsr`: nothing changes but the MAC addresses and the TTL; and the TTL everywhere else.

use lb_common::outcome::DropReason;
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{
        Tcp,
        tcp::{ACK, PSH},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

#[test]
fn only_the_mac_addresses_and_the_ttl_change() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::DSR, v6);
        connection.open(&mut plane);
        let sent = connection
            .up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(&[3; 1000]));
        let (before, output) = (sent.bytes(), plane.run(&sent.bytes()));
        let changed: Vec<usize> =
            (0..before.len()).filter(|&at| before[at] != output.frame[at]).collect();
        let ttl = if v6 { vec![21] } else { vec![22, 24, 25] };
        assert!(
            changed.iter().all(|at| *at < 12 || ttl.contains(at)),
            "v6: {v6}, the bytes {changed:?} have changed"
        );
        plane.check("every byte", &before, &connection.goes_up(&sent));
    }
}

#[test]
fn a_ttl_that_has_run_out() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let data = connection.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1));
        for ttl in [0, 1] {
            let sent = data.with(|frame| frame.packet.ip.ttl = ttl).bytes();
            let expected = Expect::drop(service, DropReason::TtlExceeded);
            plane.check(&format!("{}, TTL {ttl}", name(service, v6)), &sent, &expected);
        }
        for ttl in [2, 255] {
            let sent = data.with(|frame| frame.packet.ip.ttl = ttl);
            plane.check(&format!("TTL {ttl}"), &sent.bytes(), &connection.goes_up(&sent));
        }
        if connection.is_nat() {
            let data = connection.down(Tcp::new(0, 0, ACK).numbers(SERVER + 1, CLIENT + 1));
            let sent = data.with(|frame| frame.packet.ip.ttl = 1).bytes();
            let expected = Expect::drop(service, DropReason::TtlExceeded);
            plane.check("from the backend", &sent, &expected);
        }
    }
}

#[test]
fn frames_of_several_buffers() {
    for (service, v6) in services() {
        let scenario = Scenario::usual().with(|scenario| {
            scenario.next_hops.values_mut().for_each(|hop| hop.mtu = 9100);
        });
        let mut plane = Dataplane::fresh(scenario);
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let payload: Vec<u8> = (0..8900).map(|n| (n / 7) as u8).collect();
        let sent = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(&payload);
        let sent = connection.up(sent);
        plane.check(&name(service, v6), &sent.bytes(), &connection.goes_up(&sent));
    }
}
