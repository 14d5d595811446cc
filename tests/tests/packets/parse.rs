//! Frames that are no, or no right, TCP segments: what is dropped, and what is left to the kernel.

use lb_common::outcome::{DropReason, Event, NO_SERVICE};
use tests::{
    dataplane::{Dataplane, Expect, SHORTEST, Scenario, id},
    packet::{
        Frame, Ip, Payload, Tcp,
        ip::{DF, MF},
        link::{SERVICE_VLAN, VLAN},
        protocol,
        tcp::{ACK, FIN, RST, SYN},
    },
};

use crate::connection::{Connection, VERSIONS, name, services};

/// Broken packets are counted before a service is known.
fn dropped(reason: DropReason) -> Expect {
    Expect::drop(NO_SERVICE, reason)
}

#[track_caller]
fn passes(plane: &mut Dataplane, name: &str, sent: &[u8], event: Event) {
    plane.check(name, sent, &Expect::pass(sent, event));
}

/// The usual SYN to the `nat` service.
fn syn(plane: &Dataplane, v6: bool) -> Frame {
    Connection::new(plane, id::NAT, v6).syn()
}

#[test]
fn frames_cut_off_at_every_length() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        for tags in [vec![], vec![(VLAN, 5)], vec![(SERVICE_VLAN, 4), (VLAN, 5)]] {
            let connection = Connection::new(&plane, service, v6);
            let frame = connection.syn().with(|frame| frame.link.tags = tags);
            let whole = frame.bytes();
            let l3 = frame.link.len();
            let payload = l3 + if v6 { 40 } else { 20 };
            for len in SHORTEST..whole.len() {
                let sent = &whole[..len];
                let expected = match len {
                    len if len < l3 => Expect::pass(sent, Event::PassNotIp),
                    len if len < payload => Expect::pass(sent, Event::PassMalformed),
                    _ => dropped(DropReason::Truncated),
                };
                let name = format!("{}, {len} of {} bytes", name(service, v6), whole.len());
                plane.check(&name, sent, &expected);
            }
        }
    }
}

#[test]
fn frames_that_are_cut_off_but_not_for_a_vip_are_left_alone() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for v6 in VERSIONS {
        let whole = syn(&plane, v6).with(|frame| frame.packet.ip.dst = other_address(v6)).bytes();
        for len in 14 + if v6 { 40 } else { 20 }..whole.len() {
            passes(&mut plane, "cut off", &whole[..len], Event::PassNotService);
        }
    }
}

fn other_address(v6: bool) -> std::net::IpAddr {
    if v6 { "2001:db8::999" } else { "203.0.113.99" }.parse().unwrap()
}

type Change = fn(&mut Ip);

#[test]
fn ipv4_headers_that_contradict_themselves() {
    use DropReason::{BadIpHeader, Truncated};
    let mut plane = Dataplane::fresh(Scenario::usual());
    let with = |plane: &Dataplane, change: &dyn Fn(&mut Ip)| {
        syn(plane, false).with(|frame| change(&mut frame.packet.ip)).bytes()
    };
    let cases: [(&str, Change, DropReason); 8] = [
        ("header of 0 bytes", |ip| ip.header_words = Some(0), BadIpHeader),
        ("header of 16 bytes", |ip| ip.header_words = Some(4), BadIpHeader),
        (
            "header longer than the packet",
            |ip| {
                ip.header_words = Some(15);
                ip.len = Some(59);
            },
            BadIpHeader,
        ),
        ("length 0", |ip| ip.len = Some(0), BadIpHeader),
        ("length below the header's", |ip| ip.len = Some(19), BadIpHeader),
        ("one byte more than there is", |ip| ip.len = Some(61), Truncated),
        ("length 65535", |ip| ip.len = Some(0xffff), Truncated),
        ("a header only", |ip| ip.len = Some(20), Truncated),
    ];
    for (name, change, reason) in cases {
        let sent = with(&plane, &change);
        plane.check(name, &sent, &dropped(reason));
        // The same for an address that is no VIP is none of our business.
        let sent = with(&plane, &|ip| {
            change(ip);
            ip.dst = other_address(false);
        });
        passes(&mut plane, name, &sent, Event::PassNotService);
    }
    for version in [0, 5, 6, 15] {
        let sent = with(&plane, &|ip| ip.version = Some(version));
        passes(&mut plane, &format!("version {version}"), &sent, Event::PassMalformed);
    }
}

#[test]
fn ipv6_headers_that_contradict_themselves() {
    use DropReason::{BadIpHeader, Truncated};
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (name, len, reason) in [
        ("length beyond what an IP packet can have", 0xffff, BadIpHeader),
        ("the longest packet that there is", 0xffff - 40, Truncated),
        ("one byte more than there is", 41, Truncated),
        ("no room for TCP", 19, Truncated),
        ("nothing", 0, Truncated),
    ] {
        let sent = syn(&plane, true).with(|frame| frame.packet.ip.len = Some(len)).bytes();
        plane.check(name, &sent, &dropped(reason));
    }
    for version in [0, 4, 5, 15] {
        let sent = syn(&plane, true).with(|f| f.packet.ip.version = Some(version)).bytes();
        passes(&mut plane, &format!("version {version}"), &sent, Event::PassMalformed);
    }
}

#[test]
fn ipv4_options_are_kept() {
    for words in 1..=10_usize {
        let mut plane = Dataplane::fresh(Scenario::usual());
        for service in [id::NAT, id::DSR, id::IPIP, id::IPIP6] {
            let connection = Connection::new(&plane, service, false);
            let sent = connection.syn().with(|f| f.packet.ip.options = vec![1; words * 4]);
            let name = format!("{}, {words} words of options", name(service, false));
            plane.check(&name, &sent.bytes(), &connection.syn_goes_up(&sent));
        }
    }
}

#[test]
fn padding_behind_the_packet_is_carried_along() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        let connection = Connection::new(&plane, service, v6);
        let sent = connection.syn().with(|frame| frame.padding = vec![0xee; 6]);
        plane.check(&name(service, v6), &sent.bytes(), &connection.syn_goes_up(&sent));
    }
}

#[test]
fn fragments() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for fragment in [MF, MF | 1, 1, 0x1fff, DF | MF] {
        let frame = syn(&plane, false).with(|frame| frame.packet.ip.fragment = fragment);
        plane.check("of TCP", &frame.bytes(), &dropped(DropReason::Fragment));
        let other = frame.with(|frame| frame.packet.ip.dst = other_address(false)).bytes();
        passes(&mut plane, "not for a VIP", &other, Event::PassNotService);
        for proto in [protocol::UDP, protocol::ICMP] {
            let other = frame.with(|f| f.packet.payload = Payload::Raw(proto, vec![8; 40])).bytes();
            passes(&mut plane, "of another protocol", &other, Event::PassNotService);
        }
    }
    let connection = Connection::new(&plane, id::NAT, false);
    let sent = connection.syn().with(|frame| frame.packet.ip.fragment = 0);
    plane.check("fragments allowed", &sent.bytes(), &connection.syn_goes_up(&sent));
    // The highest of the three flags is reserved, and no reason to drop (RFC 3514 is none).
    plane.reset(Scenario::usual());
    let sent = connection.syn().with(|frame| frame.packet.ip.fragment = 0x8000 | DF);
    plane.check("reserved flag", &sent.bytes(), &connection.syn_goes_up(&sent));
}

#[test]
fn vlan_tags_of_every_depth() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        for (known, tags) in [
            (true, vec![]),
            (true, vec![(VLAN, 0x2064)]),
            (true, vec![(SERVICE_VLAN, 0x2064)]),
            (true, vec![(SERVICE_VLAN, 0x0065), (VLAN, 0x2064)]),
            (true, vec![(VLAN, 0x0065), (VLAN, 0x2064)]),
            (false, vec![(SERVICE_VLAN, 1), (SERVICE_VLAN, 2)]),
            (false, vec![(SERVICE_VLAN, 1), (VLAN, 2), (VLAN, 3)]),
            (false, vec![(VLAN, 1), (VLAN, 2), (SERVICE_VLAN, 3)]),
        ] {
            let name = format!("{}, {tags:x?}", name(service, v6));
            let sent = connection.syn().with(|frame| frame.link.tags = tags);
            if known {
                plane.reset(Scenario::usual());
                plane.check(&name, &sent.bytes(), &connection.syn_goes_up(&sent));
            } else {
                passes(&mut plane, &name, &sent.bytes(), Event::PassNotIp);
            }
        }
    }
}

#[test]
fn tcp_without_room_for_its_header() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        let whole = Connection::new(&plane, service, v6).syn();
        let segment = whole.packet.bytes()[whole.packet.ip.header_len()..].to_vec();
        for len in 0..segment.len() {
            let sent = whole.with(|frame| {
                frame.packet.payload = Payload::Raw(protocol::TCP, segment[..len].to_vec());
            });
            let reason = match len {
                0..20 => DropReason::Truncated,
                _ => DropReason::BadTcpHeader,
            };
            let name = format!("{}, {len} bytes of TCP", name(service, v6));
            plane.check(&name, &sent.bytes(), &dropped(reason));
            // The bytes that are missing stand behind the packet's end: they do not count.
            let padded = sent.with(|frame| frame.padding = segment[len..].to_vec());
            plane.check(&name, &padded.bytes(), &dropped(reason));
        }
    }
}

#[test]
fn tcp_headers_that_contradict_themselves() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for (service, v6) in services() {
        let connection = Connection::new(&plane, service, v6);
        for words in (0..5).chain(6..16) {
            let tcp = Tcp { header_words: Some(words), ..Tcp::new(0, 0, SYN) };
            let name = format!("{}, {words} words", name(service, v6));
            plane.check(&name, &connection.up(tcp).bytes(), &dropped(DropReason::BadTcpHeader));
        }
        for flags in [SYN | FIN, SYN | RST, SYN | FIN | RST, SYN | ACK | FIN, 0xff] {
            let name = format!("{}, flags {flags:#x}", name(service, v6));
            let sent = connection.up(Tcp::new(0, 0, flags));
            plane.check(&name, &sent.bytes(), &dropped(DropReason::BadTcpHeader));
        }
    }
}

#[test]
fn what_is_not_for_a_service_is_left_alone() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for v6 in VERSIONS {
        let frame = syn(&plane, v6);
        let other = frame.with(|frame| frame.packet.ip.dst = other_address(v6)).bytes();
        passes(&mut plane, "another address", &other, Event::PassNotService);
        for (flags, what) in [(SYN, "SYN"), (ACK, "ACK"), (RST, "RST"), (0, "no flag")] {
            let mut tcp = Tcp::new(40_001, 81, flags);
            (tcp.sport, tcp.dport) = (40_001, 81);
            let port = frame.with(|frame| frame.packet.payload = Payload::Tcp(tcp)).bytes();
            passes(&mut plane, &format!("another port, {what}"), &port, Event::PassToHost);
            // Port 0 stands for the address itself in the table of listeners.
            let tcp = Tcp { dport: 0, ..Tcp::new(40_001, 0, flags) };
            let zero = frame.with(|frame| frame.packet.payload = Payload::Tcp(tcp)).bytes();
            passes(&mut plane, &format!("port 0, {what}"), &zero, Event::PassToHost);
        }
        for proto in [protocol::UDP, protocol::IPIP, protocol::IPV6, 47, 50, 51, 59, 132, 255] {
            let raw =
                frame.with(|f| f.packet.payload = Payload::Raw(proto, vec![0x45; 64])).bytes();
            passes(&mut plane, &format!("protocol {proto}"), &raw, Event::PassNotService);
        }
        for ether_type in [0x0806, 0x88cc, 0x8847, 0x0000, 0x05dc] {
            let other = frame.with(|frame| frame.ether_type = Some(ether_type)).bytes();
            passes(&mut plane, &format!("EtherType {ether_type:#x}"), &other, Event::PassNotIp);
        }
    }
}
