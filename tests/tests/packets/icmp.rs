//! ICMP errors about our flows: carried to the end whose segment they are about.

use lb_common::outcome::{DropReason, Event, NO_SERVICE};
use tests::{
    dataplane::{
        Dataplane, Expect, Scenario, id,
        scenario::{self, EDGE_MAC, ROUTER_MAC},
    },
    packet::{
        Frame, Icmp, Ip, Link, Packet, Payload, Tcp,
        icmp::quote,
        protocol,
        tcp::{ACK, PSH},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

/// A router on the way, which reports the error.
fn router(v6: bool) -> std::net::IpAddr {
    if v6 { "2001:db8:ffff::1" } else { "192.0.2.1" }.parse().unwrap()
}

fn error(link: Link, quoted: &Packet, icmp: impl Fn(Vec<u8>) -> Icmp, bytes: usize) -> Frame {
    let ip = Ip::new(router(quoted.ip.is_v6()), quoted.ip.src);
    Frame::new(link, Packet::icmp(ip, icmp(quote(quoted, bytes))))
}

/// The segment that the VIP has sent to the client, as a router there has seen it.
fn to_client(connection: &Connection) -> Packet {
    let mut tcp = Tcp::new(connection.vip.port(), connection.client.port(), ACK | PSH)
        .numbers(SERVER + 1, CLIENT + 1)
        .payload(&[5; 600]);
    tcp.window = 77;
    let mut ip = Ip::new(connection.vip.ip(), connection.client.ip());
    ip.ttl = 3;
    Packet::tcp(ip, tcp)
}

/// An error about a segment to the client comes from the router.
fn from_router() -> Link {
    Link::new(EDGE_MAC, ROUTER_MAC)
}

/// What the backend must get of an error about a segment to the client: its own segment, quoted.
fn for_backend(connection: &Connection, sent: &Frame, quoted: &Packet, bytes: usize) -> Frame {
    let mut quoted = quoted.clone();
    if connection.is_nat() {
        (quoted.ip.src, quoted.ip.dst) = (connection.server.ip(), connection.source.ip());
        // The checksum of a quoted segment covers what is not quoted; it stays as it was.
        let original = to_client(connection);
        let tcp = quoted.as_tcp();
        (tcp.sport, tcp.dport) = (connection.server.port(), connection.source.port());
        let mut whole = quoted.bytes();
        let at = quoted.ip.header_len() + 16;
        let before = original.bytes();
        whole[at..at + 2].copy_from_slice(&before[at..at + 2]);
        whole.truncate(quoted.ip.header_len() + bytes);
        return sent.with(|frame| {
            frame.link = Link::new(scenario::mac(connection.backend), EDGE_MAC);
            frame.packet.ip.ttl -= 1;
            (frame.packet.ip.src, frame.packet.ip.dst) =
                (connection.source.ip(), connection.server.ip());
            set_body(&mut frame.packet, whole);
        });
    }
    connection.forwarded(sent)
}

fn set_body(packet: &mut Packet, body: Vec<u8>) {
    match &mut packet.payload {
        Payload::Icmp(icmp) => icmp.body = body,
        other => panic!("not ICMP: {other:?}"),
    }
}

fn carried(service: u16, frame: &Frame) -> Expect {
    Expect::transmit(frame.bytes()).counts(service, Event::IcmpErrorForwarded)
}

type MakeIcmp = fn(bool, Vec<u8>) -> Icmp;

/// Kinds of errors, for both versions.
const KINDS: [(&str, MakeIcmp); 4] = [
    ("packet too big", |v6, quoted| Icmp::packet_too_big(v6, 1280, quoted)),
    ("TTL exceeded", Icmp::time_exceeded),
    ("unreachable", |v6, quoted| Icmp::new(if v6 { 1 } else { 3 }, 1, [0; 4], quoted)),
    ("parameter problem", |v6, quoted| Icmp::new(if v6 { 4 } else { 12 }, 0, [0, 0, 0, 6], quoted)),
];

#[test]
fn an_error_about_a_segment_to_the_client_goes_to_the_backend() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let quoted = to_client(&connection);
        for (kind, icmp) in KINDS {
            // Eight bytes are what RFC 792 asks for; other routers quote more.
            for bytes in [8, 9, 16, 17, 20, 21, 548] {
                let sent = error(from_router(), &quoted, |body| icmp(v6, body), bytes);
                let expected = for_backend(&connection, &sent, &quoted, bytes);
                let name = format!("{}, {kind}, {bytes} bytes of TCP", name(service, v6));
                plane.check(&name, &sent.bytes(), &carried(service, &expected));
            }
        }
    }
}

#[test]
fn an_error_about_a_segment_to_the_backend_goes_to_the_client() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        connection.open(&mut plane);
        let data = connection
            .up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(&[6; 300]));
        plane.check("data", &data.bytes(), &connection.goes_up(&data));
        let at_backend = connection.forwarded(&data).packet;
        for (kind, icmp) in KINDS {
            for bytes in [8, 40, 300] {
                let link = Link::new(EDGE_MAC, scenario::mac(connection.backend));
                let sent = error(link, &at_backend, |body| icmp(v6, body), bytes);
                let mut quoted = data.packet.clone();
                quoted.ip.ttl -= 1;
                let mut body = quote(&quoted, bytes);
                if bytes >= 18 {
                    let at = quoted.ip.header_len() + 16;
                    body[at..at + 2].copy_from_slice(&at_backend.bytes()[at..at + 2]);
                }
                let expected = sent.with(|frame| {
                    frame.link = Link::new(ROUTER_MAC, EDGE_MAC);
                    frame.packet.ip.ttl -= 1;
                    (frame.packet.ip.src, frame.packet.ip.dst) =
                        (connection.vip.ip(), connection.client.ip());
                    set_body(&mut frame.packet, body);
                });
                let name = format!("v6: {v6}, {kind}, {bytes} bytes of TCP");
                plane.check(&name, &sent.bytes(), &carried(id::NAT, &expected));
            }
        }
    }
}

#[test]
fn an_error_during_the_handshake_is_carried_too() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let quoted = to_client(&connection);
        let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(v6, body), 8);
        let expected = for_backend(&connection, &sent, &quoted, 8);
        plane.check(&name(service, v6), &sent.bytes(), &carried(service, &expected));
    }
}

#[test]
fn an_error_about_no_flow() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        let quoted = to_client(&connection);
        let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(v6, body), 8);
        // With the others the backend may know of it, and the hash says which.
        let expected = match connection.is_nat() {
            true => Expect::drop(service, DropReason::NoFlow),
            false => carried(service, &for_backend(&connection, &sent, &quoted, 8)),
        };
        plane.check(&name(service, v6), &sent.bytes(), &expected);
    }
}

#[test]
fn options_in_either_header_are_kept() {
    for service in [id::NAT, id::DSR, id::IPIP, id::IPIP6] {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, false);
        connection.open(&mut plane);
        for (outer, inner) in [(1_usize, 0_usize), (10, 0), (0, 1), (0, 10), (10, 10)] {
            let mut quoted = to_client(&connection);
            quoted.ip.options = vec![1; inner * 4];
            let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(false, body), 8)
                .with(|frame| frame.packet.ip.options = vec![1; outer * 4]);
            let expected = for_backend(&connection, &sent, &quoted, 8);
            let name = format!("{}, {outer} and {inner} words", name(service, false));
            plane.check(&name, &sent.bytes(), &carried(service, &expected));
        }
    }
}

#[test]
fn errors_that_quote_too_little() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let quoted = to_client(&connection);
        let whole = quote(&quoted, 8).len();
        for len in 0..whole {
            let cut = |mut body: Vec<u8>| {
                body.truncate(len);
                Icmp::time_exceeded(v6, body)
            };
            let sent = error(from_router(), &quoted, cut, 8);
            let expected = Expect::drop(NO_SERVICE, DropReason::Truncated);
            let name = format!("{}, {len} of {whole} bytes", name(service, v6));
            plane.check(&name, &sent.bytes(), &expected);
            // What stands behind the packet's end does not count.
            let padded = sent.with(|frame| frame.padding = quote(&quoted, 8)[len..].to_vec());
            plane.check(&name, &padded.bytes(), &expected);
        }
        // Less than an ICMP header.
        for len in 0..8 {
            let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(v6, body), 8);
            let bytes = sent.packet.bytes()[sent.packet.ip.header_len()..][..len].to_vec();
            let proto = if v6 { protocol::ICMPV6 } else { protocol::ICMP };
            let sent = sent.with(|frame| frame.packet.payload = Payload::Raw(proto, bytes));
            let expected = Expect::drop(NO_SERVICE, DropReason::Truncated);
            plane.check(&format!("{len} bytes of ICMP"), &sent.bytes(), &expected);
        }
    }
}

#[test]
fn errors_that_are_none_of_our_business() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        connection.open(&mut plane);
        let time_exceeded = |body: Vec<u8>| Icmp::time_exceeded(v6, body);
        let with = |change: &dyn Fn(&mut Packet)| {
            let mut quoted = to_client(&connection);
            change(&mut quoted);
            error(from_router(), &quoted, time_exceeded, 8)
        };
        let elsewhere = if v6 { "2001:db8::999" } else { "203.0.113.99" }.parse().unwrap();
        let cases = [
            ("UDP", with(&|quoted| quoted.ip.proto = Some(protocol::UDP))),
            ("another version", with(&|quoted| quoted.ip.version = Some(9))),
            ("not from a VIP", with(&|quoted| quoted.ip.src = elsewhere)),
            ("from another port", with(&|quoted| quoted.as_tcp().sport = 81)),
        ];
        for (name, sent) in cases {
            let sent = sent.bytes();
            plane.check(name, &sent, &Expect::pass(&sent, Event::PassNotService));
        }
        if !v6 {
            for change in [
                &(|quoted: &mut Packet| quoted.ip.header_words = Some(4)) as &dyn Fn(&mut Packet),
                &|quoted: &mut Packet| quoted.ip.fragment = 5,
            ] {
                let sent = with(change).bytes();
                plane.check("quoted header", &sent, &Expect::pass(&sent, Event::PassNotService));
            }
        }
    }
}

#[test]
fn an_error_whose_ttl_has_run_out() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let quoted = to_client(&connection);
        let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(v6, body), 8);
        for ttl in [0, 1] {
            let sent = sent.with(|frame| frame.packet.ip.ttl = ttl);
            let expected = Expect::drop(service, DropReason::TtlExceeded);
            plane.check(&name(service, v6), &sent.bytes(), &expected);
        }
    }
}

#[test]
fn an_error_too_big_for_the_tunnel_is_dropped() {
    for (service, v6) in [(id::IPIP, false), (id::IPIP6, false), (id::IPIP6, true)] {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        let mut quoted = to_client(&connection);
        quoted.as_tcp().payload = vec![5; 1430];
        let sent = error(from_router(), &quoted, |body| Icmp::time_exceeded(v6, body), 1440);
        assert!(sent.packet.bytes().len() > 1480);
        let expected = Expect::drop(service, DropReason::TooBig);
        plane.check(&name(service, v6), &sent.bytes(), &expected);
    }
}
