//! Sources that no client can have.

use std::net::{IpAddr, SocketAddr};

use lb_common::outcome::DropReason;
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id, scenario},
    packet::{
        Icmp, Tcp,
        tcp::{ACK, FIN, RST, SYN},
    },
};

use crate::connection::{Connection, VERSIONS, name, services};

fn impossible(v6: bool) -> Vec<IpAddr> {
    let texts: &[&str] = match v6 {
        false => &[
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "224.0.0.1",
            "239.1.2.3",
            "240.0.0.1",
            "255.255.255.255",
        ],
        true => &["::", "::1", "ff02::1", "ff0e::1234"],
    };
    let mut sources: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
    sources.extend(id::ALL.map(|service| scenario::listener(service, v6).ip()));
    sources
}

#[test]
fn no_segment_from_an_impossible_source_is_forwarded_or_answered() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        let connection = Connection::new(&plane, service, v6);
        for source in impossible(v6) {
            for flags in [SYN, ACK, FIN | ACK, RST] {
                let sent = connection
                    .up(Tcp::new(0, 0, flags).numbers(1, 2))
                    .with(|frame| frame.packet.ip.src = source);
                let name = format!("{}, flags {flags:#x} from {source}", name(service, v6));
                let expected = Expect::drop(service, DropReason::SpoofedSource);
                plane.check(&name, &sent.bytes(), &expected);
            }
        }
    }
}

#[test]
fn from_the_vip_to_the_vip() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        let mut connection = Connection::new(&plane, service, v6);
        connection.client = SocketAddr::new(connection.vip.ip(), connection.vip.port());
        let expected = Expect::drop(service, DropReason::SpoofedSource);
        plane.check("the same port, too", &connection.syn().bytes(), &expected);
    }
}

#[test]
fn unusual_sources_that_are_right() {
    for text in ["1.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255", "10.0.0.1"] {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let client = SocketAddr::new(text.parse().unwrap(), 5000);
        let vip = scenario::listener(id::NAT, false);
        let connection = Connection::between(&plane.scenario, client, vip);
        let sent = connection.syn();
        plane.check(text, &sent.bytes(), &connection.syn_goes_up(&sent));
    }
    for text in ["::2", "fe80::1", "fd00::1", "100::1", "feff::1"] {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let client = SocketAddr::new(text.parse().unwrap(), 5000);
        let vip = scenario::listener(id::NAT, true);
        let connection = Connection::between(&plane.scenario, client, vip);
        let sent = connection.syn();
        plane.check(text, &sent.bytes(), &connection.syn_goes_up(&sent));
    }
}

#[test]
fn pings_from_impossible_sources_are_not_answered() {
    for v6 in VERSIONS {
        let vip = scenario::listener(id::NAT, v6).ip();
        let scenario = Scenario::usual().with(|scenario| scenario.xdp_only(vip));
        let mut plane = Dataplane::fresh(scenario);
        for source in impossible(v6) {
            let sent = crate::echo::ping(v6, vip, Icmp::echo(v6, false, b"hello"))
                .with(|frame| frame.packet.ip.src = source);
            let expected = Expect::drop(lb_common::outcome::NO_SERVICE, DropReason::SpoofedSource);
            plane.check(&format!("ping from {source}"), &sent.bytes(), &expected);
        }
    }
}
