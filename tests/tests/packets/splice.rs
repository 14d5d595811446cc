//! Spliced connections: what each end sends, and what it becomes on the other connection.

use std::{net::SocketAddr, sync::MutexGuard};

use lb_common::{
    counters::BackendCounters,
    flow::{Flow, flags, forward},
    outcome::{DropReason, Event},
};
use tests::{
    dataplane::{
        Dataplane, Expect, Scenario, id,
        scenario::{self, EDGE_MAC, ROUTER_MAC},
    },
    packet::{
        Frame, Icmp, Ip, Link, Packet, Payload, Tcp,
        icmp::quote,
        tcp::{ACK, CWR, ECE, FIN, PSH, RST, SYN, URG, option},
    },
};

use crate::{
    connection::VERSIONS,
    keys::{Family, tuple},
};

/// A number of the one connection is a number of the other plus this, modulo 2^32: all wrap around.
const CLIENT_TO_BACKEND: u32 = 0xf000_0001;
const BACKEND_TO_CLIENT: u32 = 0x2345_6789;
const CLIENT_CLOCK: u32 = 0x8000_0077;
const BACKEND_CLOCK: u32 = 0xffff_ff00;

/// What the client has sent and acknowledged last, in its own numbers.
pub const CLIENT: u32 = 0xffff_fff0;
pub const CLIENT_ACK: u32 = 0x1000_0000;

/// The backend's numbers for the same.
const BACKEND: u32 = CLIENT_ACK.wrapping_sub(BACKEND_TO_CLIENT);
const BACKEND_ACK: u32 = CLIENT.wrapping_add(CLIENT_TO_BACKEND);

/// A spliced connection, and its two entries.
pub struct Splice {
    pub client: SocketAddr,
    pub vip: SocketAddr,
    pub source: SocketAddr,
    pub server: SocketAddr,
    pub backend: u16,
    pub window_shift: i8,
    pub flags: u8,
}

impl Splice {
    pub fn new(plane: &Dataplane, v6: bool) -> Self {
        let scenario = &plane.scenario;
        let backend = scenario.backends.iter().find_map(|(&backend, it)| {
            let server = scenario.backend_addr(backend);
            (it.service == id::SIDECAR && server.is_ipv6() == v6).then_some((backend, server))
        });
        let (backend, server) = backend.unwrap();
        Self {
            client: scenario::client(v6),
            vip: scenario::listener(id::SIDECAR, v6),
            source: SocketAddr::new(scenario::edge_source(v6), 33_000),
            server,
            backend,
            window_shift: 0,
            flags: 0,
        }
    }

    /// Enters both flows, as the agent does.
    pub fn enter(&self, plane: &mut Dataplane) {
        match self.client {
            SocketAddr::V4(_) => self.enter_as::<lb_common::addr::V4>(plane),
            SocketAddr::V6(_) => self.enter_as::<lb_common::addr::V6>(plane),
        }
    }

    fn enter_as<A: Family>(&self, plane: &mut Dataplane) {
        let common =
            Flow { backend: self.backend, forward: forward::SPLICE, packets: 1, ..Flow::default() };
        let to_backend = Flow {
            to: tuple::<A>(self.source, self.server),
            seq_delta: CLIENT_TO_BACKEND,
            ack_delta: BACKEND_TO_CLIENT.wrapping_neg(),
            tsval_delta: CLIENT_CLOCK,
            tsecr_delta: BACKEND_CLOCK.wrapping_neg(),
            window_shift: self.window_shift,
            seq_next: CLIENT,
            ack: CLIENT_ACK,
            flags: self.flags,
            ..common
        };
        let to_client = Flow {
            to: tuple::<A>(self.vip, self.client),
            seq_delta: BACKEND_TO_CLIENT,
            ack_delta: CLIENT_TO_BACKEND.wrapping_neg(),
            tsval_delta: BACKEND_CLOCK,
            tsecr_delta: CLIENT_CLOCK.wrapping_neg(),
            window_shift: -self.window_shift,
            seq_next: BACKEND,
            ack: BACKEND_ACK,
            flags: self.flags | flags::TO_CLIENT,
            ..common
        };
        assert!(A::enter_flow(plane, &tuple(self.client, self.vip), &to_backend));
        assert!(A::enter_flow(plane, &tuple(self.server, self.source), &to_client));
    }

    /// A segment of the client, as it comes from the router. The ports are filled in.
    pub fn up(&self, mut tcp: Tcp) -> Frame {
        (tcp.sport, tcp.dport) = (self.client.port(), self.vip.port());
        let ip = Ip::new(self.client.ip(), self.vip.ip());
        Frame::new(Link::new(EDGE_MAC, ROUTER_MAC), Packet::tcp(ip, tcp))
    }

    /// A segment of the backend.
    pub fn down(&self, mut tcp: Tcp) -> Frame {
        (tcp.sport, tcp.dport) = (self.server.port(), self.source.port());
        let ip = Ip::new(self.server.ip(), self.source.ip());
        Frame::new(Link::new(EDGE_MAC, scenario::mac(self.backend)), Packet::tcp(ip, tcp))
    }

    /// What a segment becomes on the other side, its numbers and options aside.
    fn readdressed(&self, sent: &Frame, upwards: bool) -> Frame {
        sent.with(|frame| {
            let (mac, src, dst) = match upwards {
                true => (scenario::mac(self.backend), self.source, self.server),
                false => (ROUTER_MAC, self.vip, self.client),
            };
            frame.link = Link::new(mac, EDGE_MAC);
            frame.packet.ip.ttl -= 1;
            (frame.packet.ip.src, frame.packet.ip.dst) = (src.ip(), dst.ip());
            if let Payload::Tcp(tcp) = &mut frame.packet.payload {
                (tcp.sport, tcp.dport) = (src.port(), dst.port());
            }
        })
    }

    /// What the backend must get of a client's segment. `options` are the translated ones.
    pub fn translated_up(&self, sent: &Frame, options: &[u8]) -> Frame {
        self.readdressed(sent, true).with(|frame| {
            let tcp = frame.packet.as_tcp();
            tcp.seq = tcp.seq.wrapping_add(CLIENT_TO_BACKEND);
            if tcp.flags & ACK != 0 {
                tcp.ack = tcp.ack.wrapping_sub(BACKEND_TO_CLIENT);
            }
            tcp.options = options.to_vec();
        })
    }

    /// What the client must get of a backend's segment.
    pub fn translated_down(&self, sent: &Frame, options: &[u8]) -> Frame {
        self.readdressed(sent, false).with(|frame| {
            let tcp = frame.packet.as_tcp();
            tcp.seq = tcp.seq.wrapping_add(BACKEND_TO_CLIENT);
            if tcp.flags & ACK != 0 {
                tcp.ack = tcp.ack.wrapping_sub(CLIENT_TO_BACKEND);
            }
            tcp.options = options.to_vec();
        })
    }

    pub fn goes_up(&self, sent: &Frame, expected: &Frame) -> Expect {
        Expect::transmit(expected.bytes()).to_backend(self.backend, sent.packet.bytes().len())
    }

    pub fn goes_down(&self, sent: &Frame, expected: &Frame) -> Expect {
        Expect::transmit(expected.bytes()).to_client(self.backend, sent.packet.bytes().len())
    }

    /// A segment without options goes up, and comes out with the backend's numbers.
    #[track_caller]
    fn check_up(&self, plane: &mut Dataplane, name: &str, tcp: Tcp) {
        let sent = self.up(tcp);
        let expected = self.goes_up(&sent, &self.translated_up(&sent, &[]));
        plane.check(name, &sent.bytes(), &expected);
    }

    #[track_caller]
    fn check_down(&self, plane: &mut Dataplane, name: &str, tcp: Tcp) {
        let sent = self.down(tcp);
        let expected = self.goes_down(&sent, &self.translated_down(&sent, &[]));
        plane.check(name, &sent.bytes(), &expected);
    }

    fn flow<A: Family>(&self, plane: &Dataplane) -> (Option<Flow<A>>, Option<Flow<A>>) {
        let flow = |from, to| A::flow(plane, &tuple(from, to));
        (flow(self.client, self.vip), flow(self.server, self.source))
    }

    /// Whether both entries are there, or neither.
    #[track_caller]
    fn is_there(&self, plane: &Dataplane) -> bool {
        let there = match self.client {
            SocketAddr::V4(_) => {
                let (one, other) = self.flow::<lb_common::addr::V4>(plane);
                (one.is_some(), other.is_some())
            }
            SocketAddr::V6(_) => {
                let (one, other) = self.flow::<lb_common::addr::V6>(plane);
                (one.is_some(), other.is_some())
            }
        };
        assert_eq!(there.0, there.1, "half a connection");
        there.0
    }
}

/// Timestamps as the client sends them and as the backend gets them.
pub fn clocks_up(value: u32, echo: u32) -> ([u8; 10], [u8; 10]) {
    let there = (value.wrapping_add(CLIENT_CLOCK), echo.wrapping_sub(BACKEND_CLOCK));
    (option::timestamps(value, echo), option::timestamps(there.0, there.1))
}

/// Timestamps as the backend sends them and as the client gets them.
pub fn clocks_down(value: u32, echo: u32) -> ([u8; 10], [u8; 10]) {
    let there = (value.wrapping_add(BACKEND_CLOCK), echo.wrapping_sub(CLIENT_CLOCK));
    (option::timestamps(value, echo), option::timestamps(there.0, there.1))
}

/// A number that the client acknowledges, as the backend knows it; and the other way round.
pub fn acknowledged_up(number: u32) -> u32 {
    number.wrapping_sub(BACKEND_TO_CLIENT)
}

pub fn acknowledged_down(number: u32) -> u32 {
    number.wrapping_sub(CLIENT_TO_BACKEND)
}

pub fn spliced(v6: bool) -> (MutexGuard<'static, Dataplane>, Splice) {
    spliced_with(v6, |_| {})
}

fn spliced_with(
    v6: bool,
    change: impl FnOnce(&mut Splice),
) -> (MutexGuard<'static, Dataplane>, Splice) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let mut splice = Splice::new(&plane, v6);
    change(&mut splice);
    splice.enter(&mut plane);
    (plane, splice)
}

fn from_client(flags: u8) -> Tcp {
    Tcp::new(0, 0, flags).numbers(CLIENT, CLIENT_ACK)
}

fn from_backend(flags: u8) -> Tcp {
    Tcp::new(0, 0, flags).numbers(BACKEND, BACKEND_ACK)
}

#[test]
fn data_and_acknowledgements_change_their_numbers_both_ways() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        let hello = from_client(ACK | PSH).payload(b"hello, over the wrap of sequence numbers");
        splice.check_up(&mut plane, "data of the client", hello);
        splice.check_down(
            &mut plane,
            "data of the backend",
            from_backend(ACK).payload(&[7; 1_401]),
        );
        splice.check_up(&mut plane, "bare ACK", from_client(ACK));
        splice.check_down(&mut plane, "the other bare ACK", from_backend(ACK));
        let mut urgent = from_client(ACK | URG).payload(b"!");
        urgent.urgent = 1;
        splice.check_up(&mut plane, "urgent data", urgent);
    }
}

#[test]
fn windows_are_rescaled() {
    for v6 in VERSIONS {
        for (shift, window, there, back) in [
            (0, 500, 500, 500),
            (3, 500, 4_000, 62),
            (14, 3, 49_152, 1),
            (14, 5, 65_535, 1),
            (-7, 65_535, 511, 65_535),
            (-7, 100, 1, 12_800),
            (-14, 0, 0, 0),
        ] {
            let (mut plane, splice) = spliced_with(v6, |splice| splice.window_shift = shift);
            let name = format!("window {window}, shift {shift}");
            let with = |tcp: Tcp| Tcp { window, ..tcp };
            let sent = splice.up(with(from_client(ACK)));
            let mut expected = splice.translated_up(&sent, &[]);
            expected.packet.as_tcp().window = there;
            plane.check(&name, &sent.bytes(), &splice.goes_up(&sent, &expected));
            let sent = splice.down(with(from_backend(ACK)));
            let mut expected = splice.translated_down(&sent, &[]);
            expected.packet.as_tcp().window = back;
            plane.check(&name, &sent.bytes(), &splice.goes_down(&sent, &expected));
        }
    }
}

#[test]
fn ecn_passes_unless_one_side_has_none() {
    for v6 in VERSIONS {
        for (known, traffic_class) in
            [(true, 0xba), (true, 0xbb), (false, 0xba), (false, 0xbb), (false, 0xb8)]
        {
            let flags = if known { 0 } else { flags::NO_ECN };
            let (mut plane, splice) = spliced_with(v6, |splice| splice.flags = flags);
            let name = format!("ECN known to both: {known}, traffic class {traffic_class:#x}");
            let cleared = |frame: &mut Frame| {
                if !known {
                    frame.packet.ip.traffic_class &= !3;
                    frame.packet.as_tcp().flags &= !(ECE | CWR);
                }
            };
            let marked = |mut frame: Frame| {
                frame.packet.ip.traffic_class = traffic_class;
                frame
            };
            let sent = marked(splice.up(from_client(ACK | ECE | CWR).payload(b"abc")));
            let mut expected = splice.translated_up(&sent, &[]);
            cleared(&mut expected);
            plane.check(&name, &sent.bytes(), &splice.goes_up(&sent, &expected));
            let sent = marked(splice.down(from_backend(ACK | ECE)));
            let mut expected = splice.translated_down(&sent, &[]);
            cleared(&mut expected);
            plane.check(&name, &sent.bytes(), &splice.goes_down(&sent, &expected));
        }
    }
}

#[test]
fn what_comes_during_the_handover_is_dropped_for_tcp_to_send_again() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced_with(v6, |splice| splice.flags = flags::HOLD);
        let dropped = Expect::drop(id::SIDECAR, DropReason::SpliceHold);
        for flags in [ACK, ACK | PSH, FIN | ACK, SYN, SYN | ACK] {
            let name = format!("flags {flags:#x}");
            plane.check(&name, &splice.up(from_client(flags)).bytes(), &dropped);
            plane.check(&name, &splice.down(from_backend(flags)).bytes(), &dropped);
        }
        for flags in [RST, RST | ACK] {
            for sent in [splice.up(from_client(flags)), splice.down(from_backend(flags))] {
                let passed = Expect::pass(&sent.bytes(), Event::PassToSidecar);
                plane.check("nobody sends a RST again", &sent.bytes(), &passed);
            }
        }
        let error = error_to(&splice, from_router(), &quoted_by_router(&splice), 8);
        let passed = Expect::pass(&error.bytes(), Event::PassToSidecar);
        plane.check("an ICMP error is the socket's", &error.bytes(), &passed);
        assert!(splice.is_there(&plane));
    }
}

fn ended(expected: Expect, splice: &Splice, reset: bool) -> Expect {
    let rise = BackendCounters {
        closed: u64::from(!reset),
        reset: u64::from(reset),
        ..BackendCounters::default()
    };
    expected.backend(splice.backend, rise)
}

#[test]
fn fins_of_both_sides_close() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        splice.check_up(&mut plane, "the client's FIN", from_client(FIN | ACK));
        let half = from_backend(ACK | PSH).payload(b"still talking");
        splice.check_down(&mut plane, "half closed", half);
        let sent = splice.down(Tcp::new(0, 0, FIN | ACK).numbers(BACKEND + 13, BACKEND_ACK + 1));
        let expected = splice.goes_down(&sent, &splice.translated_down(&sent, &[]));
        plane.check("the backend's FIN", &sent.bytes(), &ended(expected, &splice, false));
        let last = Tcp::new(0, 0, ACK).numbers(CLIENT + 1, CLIENT_ACK + 14);
        splice.check_up(&mut plane, "the last ACK", last);
    }
}

#[test]
fn a_reset_counts_by_the_numbers_of_either_connection() {
    for v6 in VERSIONS {
        for (name, upwards, seq, counts) in [
            ("the client's next number", true, CLIENT, true),
            ("a number in the window", true, CLIENT + 5, false),
            ("the backend's next number", false, BACKEND, true),
            ("a number of the client's", false, CLIENT, false),
        ] {
            let (mut plane, splice) = spliced(v6);
            let reset = Tcp::new(0, 0, RST).numbers(seq, 0);
            let (sent, expected) = match upwards {
                true => {
                    let sent = splice.up(reset);
                    let expected = splice.goes_up(&sent, &splice.translated_up(&sent, &[]));
                    (sent, expected)
                }
                false => {
                    let sent = splice.down(reset);
                    let expected = splice.goes_down(&sent, &splice.translated_down(&sent, &[]));
                    (sent, expected)
                }
            };
            let expected = if counts { ended(expected, &splice, true) } else { expected };
            plane.check(name, &sent.bytes(), &expected);
        }
    }
}

#[test]
fn a_reset_behind_lost_segments_counts_by_what_the_other_side_acknowledged() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        // The client's data came past another edge: only the backend's acknowledgement tells.
        let ack = from_backend(ACK).numbers(BACKEND, BACKEND_ACK + 100);
        splice.check_down(&mut plane, "acknowledges what was not seen", ack);
        let sent = splice.up(Tcp::new(0, 0, RST).numbers(CLIENT.wrapping_add(100), 0));
        let expected = splice.goes_up(&sent, &splice.translated_up(&sent, &[]));
        plane.check("RST", &sent.bytes(), &ended(expected, &splice, true));
    }
}

#[test]
fn a_syn_on_a_living_splice_is_the_backends_to_answer() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        let syn = Tcp::new(0, 0, SYN).numbers(CLIENT.wrapping_add(70_000), 0);
        let sent = splice.up(syn);
        let expected = splice.goes_up(&sent, &splice.translated_up(&sent, &[]));
        plane.check("SYN", &sent.bytes(), &expected);
        splice.check_down(&mut plane, "challenge ACK", from_backend(ACK));
        // The client knows nothing of that connection.
        let sent = splice.up(Tcp::new(0, 0, RST).numbers(CLIENT, 0));
        let expected = splice.goes_up(&sent, &splice.translated_up(&sent, &[]));
        plane.check("RST", &sent.bytes(), &ended(expected, &splice, true));
        let sent = splice.up(Tcp::new(0, 0, SYN).numbers(CLIENT.wrapping_add(70_000), 0));
        let expected = Expect::pass(&sent.bytes(), Event::PassToSidecar)
            .counts(id::SIDECAR, Event::FlowReplaced)
            .counts(id::SIDECAR, Event::OfferNoted);
        plane.check("the SYN again", &sent.bytes(), &expected);
        assert!(!splice.is_there(&plane));
    }
}

/// The segment that the backend sent to the client, as a router on the way there has seen it.
fn quoted_by_router(splice: &Splice) -> Packet {
    let tcp = Tcp::new(splice.vip.port(), splice.client.port(), ACK)
        .numbers(CLIENT_ACK, CLIENT)
        .payload(&[5; 1_400]);
    Packet::tcp(Ip::new(splice.vip.ip(), splice.client.ip()), tcp)
}

/// The segment that the client sent to the backend, as a router on the way there has seen it.
fn quoted_behind(splice: &Splice) -> Packet {
    let tcp = Tcp::new(splice.source.port(), splice.server.port(), ACK)
        .numbers(BACKEND_ACK, BACKEND)
        .payload(&[5; 1_400]);
    Packet::tcp(Ip::new(splice.source.ip(), splice.server.ip()), tcp)
}

fn from_router() -> Link {
    Link::new(EDGE_MAC, ROUTER_MAC)
}

fn error_to(splice: &Splice, link: Link, quoted: &Packet, bytes: usize) -> Frame {
    let v6 = splice.vip.is_ipv6();
    let router = if v6 { "2001:db8:ffff::1" } else { "192.0.2.1" };
    let ip = Ip::new(router.parse().unwrap(), quoted.ip.src);
    let icmp = Icmp::packet_too_big(v6, 1_280, quote(quoted, bytes));
    Frame::new(link, Packet::icmp(ip, icmp))
}

/// An error as it goes on: the quoted segment is again what its sender has sent.
fn carried(splice: &Splice, sent: &Frame, quoted: &Packet, bytes: usize, upwards: bool) -> Frame {
    let mut original = quoted.clone();
    let (src, dst, seq) = match upwards {
        true => (splice.server, splice.source, acknowledged_up(CLIENT_ACK)),
        false => (splice.client, splice.vip, acknowledged_down(BACKEND_ACK)),
    };
    (original.ip.src, original.ip.dst) = (src.ip(), dst.ip());
    let tcp = original.as_tcp();
    (tcp.sport, tcp.dport, tcp.seq) = (src.port(), dst.port(), seq);
    // The numbers behind the first eight bytes, and the checksum over all of it, nobody looks at.
    let mut body = quote(&original, bytes);
    let (at, before) = (quoted.ip.header_len() + 8, quote(quoted, bytes));
    body[at..].copy_from_slice(&before[at..]);
    splice.readdressed(sent, upwards).with(|frame| match &mut frame.packet.payload {
        Payload::Icmp(icmp) => icmp.body = body,
        other => panic!("not ICMP: {other:?}"),
    })
}

#[test]
fn icmp_errors_quote_the_senders_own_numbers() {
    for v6 in VERSIONS {
        let (mut plane, splice) = spliced(v6);
        for bytes in [8, 20, 33, 548] {
            let quoted = quoted_by_router(&splice);
            let sent = error_to(&splice, from_router(), &quoted, bytes);
            let expected = carried(&splice, &sent, &quoted, bytes, true);
            let expected =
                Expect::transmit(expected.bytes()).counts(id::SIDECAR, Event::IcmpErrorForwarded);
            plane.check(&format!("to the backend, {bytes} bytes"), &sent.bytes(), &expected);

            let quoted = quoted_behind(&splice);
            let link = Link::new(EDGE_MAC, scenario::mac(splice.backend));
            let sent = error_to(&splice, link, &quoted, bytes);
            let expected = carried(&splice, &sent, &quoted, bytes, false);
            let expected =
                Expect::transmit(expected.bytes()).counts(id::SIDECAR, Event::IcmpErrorForwarded);
            plane.check(&format!("to the client, {bytes} bytes"), &sent.bytes(), &expected);
        }
    }
}
