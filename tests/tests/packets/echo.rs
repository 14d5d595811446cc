//! Pings: answered for addresses that only the data plane has.

use std::net::IpAddr;

use lb_common::outcome::{Event, NO_SERVICE};
use tests::{
    dataplane::{
        Dataplane, Expect, Scenario, id,
        scenario::{self, EDGE_MAC, ROUTER_MAC},
    },
    packet::{Extension, Frame, Icmp, Ip, Link, Packet, link::VLAN, protocol},
};

use crate::connection::VERSIONS;

/// A client's ICMP message to an address.
pub fn ping(v6: bool, to: IpAddr, icmp: Icmp) -> Frame {
    let ip = Ip::new(scenario::client(v6).ip(), to);
    Frame::new(Link::new(EDGE_MAC, ROUTER_MAC), Packet::icmp(ip, icmp))
}

fn reply(sent: &Frame, icmp: Icmp) -> Frame {
    sent.with(|frame| {
        frame.link = sent.link.turned();
        (frame.packet.ip.src, frame.packet.ip.dst) = (sent.packet.ip.dst, sent.packet.ip.src);
        frame.packet.ip.ttl = 64;
        frame.packet.payload = tests::packet::Payload::Icmp(icmp);
    })
}

fn xdp_only(v6: bool) -> (Scenario, IpAddr) {
    let vip = scenario::listener(id::NAT, v6).ip();
    (Scenario::usual().with(|scenario| scenario.xdp_only(vip)), vip)
}

#[test]
fn a_ping_for_an_address_of_the_data_plane_is_answered() {
    for v6 in VERSIONS {
        let (scenario, vip) = xdp_only(v6);
        let mut plane = Dataplane::fresh(scenario);
        for body in [&b""[..], b"x", b"sixteen bytes...", &[0xff; 1400]] {
            for tags in [vec![], vec![(VLAN, 7)]] {
                for ttl in [1, 57, 64, 255] {
                    let sent = ping(v6, vip, Icmp::echo(v6, false, body)).with(|frame| {
                        frame.link.tags = tags.clone();
                        frame.packet.ip.ttl = ttl;
                    });
                    let expected = reply(&sent, Icmp::echo(v6, true, body));
                    plane.check(
                        &format!("v6: {v6}, {} bytes, TTL {ttl}", body.len()),
                        &sent.bytes(),
                        &Expect::transmit(expected.bytes()).counts(NO_SERVICE, Event::EchoAnswered),
                    );
                }
            }
        }
    }
}

#[test]
fn a_ping_with_ip_options_or_extensions_is_answered() {
    for v6 in VERSIONS {
        let (scenario, vip) = xdp_only(v6);
        let mut plane = Dataplane::fresh(scenario);
        let sent = ping(v6, vip, Icmp::echo(v6, false, b"hello")).with(|frame| {
            frame.packet.ip.options = vec![1; 12];
            frame.packet.ip.extensions = vec![Extension::padding(protocol::DESTINATION_OPTIONS, 1)];
        });
        let expected = reply(&sent, Icmp::echo(v6, true, b"hello"));
        let expected = Expect::transmit(expected.bytes()).counts(NO_SERVICE, Event::EchoAnswered);
        plane.check("options", &sent.bytes(), &expected);
    }
}

#[test]
fn other_pings_are_left_to_the_kernel() {
    for v6 in VERSIONS {
        let (scenario, vip) = xdp_only(v6);
        let mut plane = Dataplane::fresh(scenario);
        let host_vip = scenario::listener(id::DSR, v6).ip();
        let elsewhere: IpAddr = if v6 { "2001:db8::999" } else { "203.0.113.99" }.parse().unwrap();
        for (name, to, icmp) in [
            ("a VIP on the host", host_vip, Icmp::echo(v6, false, b"hello")),
            ("no VIP", elsewhere, Icmp::echo(v6, false, b"hello")),
            ("a reply", vip, Icmp::echo(v6, true, b"hello")),
            (
                "a timestamp, or a neighbour solicitation",
                vip,
                Icmp::new(if v6 { 135 } else { 13 }, 0, [0; 4], vec![0; 32]),
            ),
        ] {
            let sent = ping(v6, to, icmp).bytes();
            plane.check(name, &sent, &Expect::pass(&sent, Event::PassNotService));
        }
    }
}
