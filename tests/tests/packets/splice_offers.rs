//! What is noted of the sidecar's connections, and that everything of them is left to the kernel.

use std::net::SocketAddr;

use lb_common::{
    flow::forward,
    handshake::{Handshake, Offer, offers},
    outcome::{DropReason, Event},
};
use tests::{
    dataplane::{
        Dataplane, Expect, Scenario, id,
        scenario::{EDGE_MAC, ROUTER_MAC},
    },
    packet::{
        Frame, Icmp, Ip, Link, Packet, Tcp,
        icmp::quote,
        tcp::{ACK, CWR, ECE, FIN, PSH, RST, SYN, option},
    },
};

use crate::{
    connection::VERSIONS,
    keys::{Family, tuple},
    splice::Splice,
};

fn syn(isn: u32, tsval: u32) -> Tcp {
    Tcp::new(0, 0, SYN | ECE | CWR).numbers(isn, 0).options(&[
        &option::mss(1_460),
        option::SACK_PERMITTED,
        &option::timestamps(tsval, 0),
        option::NOP,
        &option::window_scale(7),
    ])
}

const ALL: u8 =
    offers::SACK | offers::TIMESTAMPS | offers::WINDOW_SCALE | offers::MSS | offers::ECN;

fn offer(tsval: u32) -> Offer {
    Offer { tsval, mss: 1_460, window_scale: 7, flags: ALL }
}

fn setup(v6: bool) -> (std::sync::MutexGuard<'static, Dataplane>, Splice) {
    let plane = Dataplane::fresh(Scenario::usual());
    let splice = Splice::new(&plane, v6);
    (plane, splice)
}

/// What is noted of the sender of a segment.
fn noted(plane: &Dataplane, from: SocketAddr, to: SocketAddr) -> Option<(Offer, u32)> {
    match from {
        SocketAddr::V4(_) => noted_as::<lb_common::addr::V4>(plane, from, to),
        SocketAddr::V6(_) => noted_as::<lb_common::addr::V6>(plane, from, to),
    }
}

fn noted_as<A: Family>(
    plane: &Dataplane,
    from: SocketAddr,
    to: SocketAddr,
) -> Option<(Offer, u32)> {
    let key = tuple::<A>(from, to);
    assert!(A::flow(plane, &key).is_none());
    let Handshake { flow, offer, isn, .. } = A::handshake(plane, &key)?;
    assert_eq!((flow.forward, flow.backend, flow.to), (forward::SPLICE, 0, key));
    Some((offer, isn))
}

fn passed(frame: &Frame) -> Expect {
    Expect::pass(&frame.bytes(), Event::PassToSidecar)
}

fn was_noted(frame: &Frame, service: u16) -> Expect {
    passed(frame).counts(service, Event::OfferNoted)
}

#[test]
fn the_offer_of_a_client_is_noted_and_its_segments_pass() {
    for v6 in VERSIONS {
        let (mut plane, splice) = setup(v6);
        let sent = splice.up(syn(1_000, 77));
        plane.check("SYN", &sent.bytes(), &was_noted(&sent, id::SIDECAR));
        let of_client = |plane: &Dataplane| noted(plane, splice.client, splice.vip);
        assert_eq!(of_client(&plane), Some((offer(77), 1_000)));

        let again = splice.up(syn(1_000, 1_077));
        plane.check("the SYN again", &again.bytes(), &passed(&again));
        assert_eq!(of_client(&plane), Some((offer(77), 1_000)), "the earlier clock counts");

        for flags in [ACK, ACK | PSH, FIN | ACK, RST] {
            let sent = splice.up(Tcp::new(0, 0, flags).numbers(1_001, 2_001));
            plane.check(&format!("flags {flags:#x}"), &sent.bytes(), &passed(&sent));
        }

        let another = splice.up(syn(5_000, 99));
        let expected = was_noted(&another, id::SIDECAR);
        plane.check("another connection's SYN", &another.bytes(), &expected);
        assert_eq!(of_client(&plane), Some((offer(99), 5_000)));
    }
}

#[test]
fn a_segment_of_a_connection_that_was_not_noted_passes() {
    for v6 in VERSIONS {
        let (mut plane, splice) = setup(v6);
        for flags in [ACK, ACK | PSH, FIN | ACK, RST, SYN | ACK] {
            let sent = splice.up(Tcp::new(0, 0, flags).numbers(1_001, 2_001));
            plane.check(&format!("flags {flags:#x}"), &sent.bytes(), &passed(&sent));
            assert_eq!(noted(&plane, splice.client, splice.vip), None);
        }
    }
}

#[test]
fn the_offer_of_a_backend_is_noted() {
    for v6 in VERSIONS {
        let (mut plane, splice) = setup(v6);
        let answer = |isn, tsval| Tcp { flags: SYN | ACK | ECE, ..syn(isn, tsval) };
        let sent = splice.down(answer(9_000, 5));
        plane.check("SYN-ACK", &sent.bytes(), &was_noted(&sent, 0));
        let of_backend = |plane: &Dataplane| noted(plane, splice.server, splice.source);
        assert_eq!(of_backend(&plane), Some((offer(5), 9_000)));

        let again = splice.down(answer(9_000, 6));
        plane.check("the SYN-ACK again", &again.bytes(), &passed(&again));
        assert_eq!(of_backend(&plane), Some((offer(5), 9_000)));

        let data = splice.down(Tcp::new(0, 0, ACK).numbers(9_001, 1).payload(b"HTTP/1.1 101"));
        plane.check("data", &data.bytes(), &passed(&data));

        let another = splice.down(answer(12_000, 8));
        plane.check("the port's next connection", &another.bytes(), &was_noted(&another, 0));
        assert_eq!(of_backend(&plane), Some((offer(8), 12_000)));
    }
}

#[test]
fn nobody_elses_syn_ack_is_noted() {
    for v6 in VERSIONS {
        let (mut plane, mut splice) = setup(v6);
        splice.server.set_port(splice.server.port() + 1);
        let sent = splice.down(Tcp { flags: SYN | ACK, ..syn(9_000, 5) });
        let expected = Expect::pass(&sent.bytes(), Event::PassNotService);
        plane.check("another port of the backend", &sent.bytes(), &expected);
        assert_eq!(noted(&plane, splice.server, splice.source), None);
    }
}

#[test]
fn a_backend_is_no_listener() {
    for v6 in VERSIONS {
        let (mut plane, splice) = setup(v6);
        // The edge is a router as well: a client talks to the backend itself.
        let tcp = Tcp { sport: splice.client.port(), dport: splice.server.port(), ..syn(1, 1) };
        let ip = Ip::new(splice.client.ip(), splice.server.ip());
        let sent = Frame::new(Link::new(EDGE_MAC, ROUTER_MAC), Packet::tcp(ip, tcp));
        let expected = Expect::pass(&sent.bytes(), Event::PassNotService);
        plane.check("SYN to a backend", &sent.bytes(), &expected);
    }
}

#[test]
fn a_spoofed_syn_is_dropped() {
    for v6 in VERSIONS {
        let (mut plane, mut splice) = setup(v6);
        splice.client.set_ip(splice.vip.ip());
        let sent = splice.up(syn(1, 1));
        let expected = Expect::drop(id::SIDECAR, DropReason::SpoofedSource);
        plane.check("from the VIP itself", &sent.bytes(), &expected);
    }
}

#[test]
fn icmp_errors_about_the_sidecars_segments_are_the_kernels() {
    for v6 in VERSIONS {
        for known in [true, false] {
            let (mut plane, splice) = setup(v6);
            if known {
                let sent = splice.up(syn(1_000, 77));
                plane.check("SYN", &sent.bytes(), &was_noted(&sent, id::SIDECAR));
            }
            let tcp = Tcp::new(splice.vip.port(), splice.client.port(), ACK).payload(&[1; 900]);
            let quoted = Packet::tcp(Ip::new(splice.vip.ip(), splice.client.ip()), tcp);
            let router = if v6 { "2001:db8:ffff::1" } else { "192.0.2.1" };
            let ip = Ip::new(router.parse().unwrap(), splice.vip.ip());
            let icmp = Icmp::packet_too_big(v6, 1_280, quote(&quoted, 8));
            let sent = Frame::new(Link::new(EDGE_MAC, ROUTER_MAC), Packet::icmp(ip, icmp));
            plane.check(&format!("offer known: {known}"), &sent.bytes(), &passed(&sent));
        }
    }
}
