//! The program `decap`: what it unwraps, what it drops, and what it must not touch.

use std::{collections::BTreeMap, net::IpAddr};

use tests::{
    dataplane::{Action, Decap, expect::difference},
    packet::{
        Extension, Frame, Ip, Link, Packet, Payload, Tcp, check,
        ip::MF,
        link::{SERVICE_VLAN, VLAN},
        protocol,
        tcp::ACK,
    },
};

const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8::10"];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn decap() -> impl std::ops::Deref<Target = Decap> {
    Decap::shared(&VIPS.map(ip))
}

fn link() -> Link {
    Link::new([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
}

fn inner(v6: bool) -> Packet {
    let (client, vip) = match v6 {
        false => (ip("198.51.100.7"), ip("203.0.113.10")),
        true => (ip("2001:db8:c::7"), ip("2001:db8::10")),
    };
    let segment = Tcp::new(40_001, 80, ACK).numbers(1000, 2000).payload(b"thirteen byte");
    Packet::tcp(Ip::new(client, vip), segment)
}

fn outer(v6: bool) -> Ip {
    match v6 {
        false => Ip::new(ip("10.2.0.254"), ip("10.2.0.9")),
        true => Ip::new(ip("fd00:2::fe"), ip("fd00:2::9")),
    }
}

/// Every combination of versions: inner, outer.
const VERSIONS: [(bool, bool); 4] = [(false, false), (true, true), (false, true), (true, false)];

fn tunnelled((v6_inner, v6_outer): (bool, bool)) -> Frame {
    Frame::new(link(), inner(v6_inner).within(outer(v6_outer)))
}

/// What the kernel must get.
fn stripped(sent: &Frame) -> Frame {
    sent.with(|frame| {
        let inner = frame.packet.as_inner().clone();
        frame.packet = inner;
    })
}

#[track_caller]
fn run(name: &str, sent: &[u8], metadata: usize) -> (Action, Vec<u8>, BTreeMap<&'static str, u64>) {
    let decap = decap();
    let before = decap.counters();
    let output = decap.run(sent, metadata);
    let mut counted = decap.counters();
    for (label, count) in before {
        *counted.get_mut(label).expect("counters do not fall") -= count;
    }
    counted.retain(|_, count| *count > 0);
    let sum: u64 = counted.values().sum();
    assert_eq!(sum, 1, "{name}: one frame, and {counted:?}");
    (output.action, output.frame, counted)
}

/// Asserts the verdict, the counter and, unless the frame is dropped, every byte.
#[track_caller]
fn check(name: &str, sent: &[u8], action: Action, frame: &[u8], counter: &'static str) {
    let (verdict, seen, counted) = run(name, sent, 0);
    assert_eq!((verdict, &counted), (action, &BTreeMap::from([(counter, 1)])), "{name}");
    if action != Action::Drop {
        assert!(seen == frame, "{name}: {}", difference(frame, &seen));
    }
}

#[track_caller]
fn unwraps(name: &str, sent: &Frame, expected: &Frame) {
    let expected = expected.bytes();
    check(name, &sent.bytes(), Action::Pass, &expected, "decapsulated");
    let verified = check::verify(&expected);
    assert!(verified.is_ok(), "{name}: {verified:?}");
}

#[track_caller]
fn passes(name: &str, sent: &Frame, counter: &'static str) {
    let sent = sent.bytes();
    check(name, &sent, Action::Pass, &sent, counter);
}

#[track_caller]
fn drops(name: &str, sent: &Frame, counter: &'static str) {
    check(name, &sent.bytes(), Action::Drop, &[], counter);
}

#[test]
fn every_combination_of_versions_is_unwrapped() {
    for versions in VERSIONS {
        let sent = tunnelled(versions);
        unwraps(&format!("inner v6, outer v6: {versions:?}"), &sent, &stripped(&sent));
    }
}

#[test]
fn up_to_two_vlan_tags_are_kept() {
    for versions in VERSIONS {
        for tags in [vec![(VLAN, 0x2064)], vec![(SERVICE_VLAN, 0x0065), (VLAN, 0x2064)]] {
            let sent = tunnelled(versions).with(|frame| frame.link.tags = tags);
            unwraps(&format!("{versions:?} {:?}", sent.link.tags), &sent, &stripped(&sent));
        }
        let tags = vec![(SERVICE_VLAN, 1), (VLAN, 2), (VLAN, 3)];
        passes("three tags", &tunnelled(versions).with(|f| f.link.tags = tags), "pass_not_for_us");
    }
}

#[test]
fn headers_with_options_and_extensions_are_unwrapped() {
    for versions in VERSIONS {
        for words in [1_usize, 5, 10] {
            let options = vec![1; words * 4];
            if !versions.1 {
                let sent = tunnelled(versions).with(|f| f.packet.ip.options = options.clone());
                unwraps(&format!("{words} words of outer options"), &sent, &stripped(&sent));
            }
            if !versions.0 {
                let sent =
                    tunnelled(versions).with(|f| f.packet.as_inner().ip.options = options.clone());
                unwraps(&format!("{words} words of inner options"), &sent, &stripped(&sent));
            }
        }
    }
    let extension = Extension::padding(protocol::DESTINATION_OPTIONS, 2);
    let sent = tunnelled((true, true))
        .with(|f| f.packet.as_inner().ip.extensions = vec![extension.clone()]);
    unwraps("inner destination options", &sent, &stripped(&sent));
    // No edge sends them, so they are somebody else's.
    let sent = tunnelled((true, true)).with(|f| f.packet.ip.extensions = vec![extension.clone()]);
    passes("outer destination options", &sent, "pass_not_for_us");
}

#[test]
fn short_frames_keep_their_padding() {
    let sent = tunnelled((false, false)).with(|frame| frame.padding = vec![0xaa; 5]);
    unwraps("padding behind the outer packet", &sent, &stripped(&sent));
}

#[test]
fn a_frame_of_several_pages_is_unwrapped() {
    for versions in VERSIONS {
        let sent = tunnelled(versions).with(|frame| {
            frame.packet.as_inner().as_tcp().payload = (0..8000).map(|n| n as u8).collect();
        });
        unwraps("8000 bytes of payload", &sent, &stripped(&sent));
    }
}

#[test]
fn ecn_leaves_the_tunnel_as_rfc_6040_says() {
    const NOT_ECT: u8 = 0;
    const ECT_1: u8 = 1;
    const ECT_0: u8 = 2;
    const CE: u8 = 3;
    // Figure 4 of the RFC: inner, outer, result.
    let cases = [
        (NOT_ECT, NOT_ECT, Some(NOT_ECT)),
        (NOT_ECT, ECT_0, Some(NOT_ECT)),
        (NOT_ECT, ECT_1, Some(NOT_ECT)),
        (NOT_ECT, CE, None),
        (ECT_0, NOT_ECT, Some(ECT_0)),
        (ECT_0, ECT_0, Some(ECT_0)),
        (ECT_0, ECT_1, Some(ECT_1)),
        (ECT_0, CE, Some(CE)),
        (ECT_1, NOT_ECT, Some(ECT_1)),
        (ECT_1, ECT_0, Some(ECT_1)),
        (ECT_1, ECT_1, Some(ECT_1)),
        (ECT_1, CE, Some(CE)),
        (CE, NOT_ECT, Some(CE)),
        (CE, ECT_0, Some(CE)),
        (CE, ECT_1, Some(CE)),
        (CE, CE, Some(CE)),
    ];
    for versions in VERSIONS {
        for (inner, outer, result) in cases {
            let name = format!("{versions:?}: inner {inner}, outer {outer}");
            let sent = tunnelled(versions).with(|frame| {
                frame.packet.ip.traffic_class = 0x88 | outer;
                frame.packet.as_inner().ip.traffic_class = 0xb8 | inner;
            });
            match result {
                None => drops(&name, &sent, "ecn_violation"),
                Some(ecn) => {
                    let expected = stripped(&sent).with(|f| f.packet.ip.traffic_class = 0xb8 | ecn);
                    unwraps(&name, &sent, &expected);
                }
            }
        }
    }
}

#[test]
fn what_is_not_for_us_is_left_alone() {
    for v6 in [false, true] {
        passes("no tunnel", &Frame::new(link(), inner(v6)), "pass_not_for_us");
    }
    for versions in VERSIONS {
        let other = |text: &str| {
            tunnelled(versions).with(|frame| frame.packet.as_inner().ip.dst = ip(text))
        };
        let sent = if versions.0 { other("2001:db8::11") } else { other("203.0.113.11") };
        passes("another destination in the tunnel", &sent, "pass_not_for_us");
        let sent = tunnelled(versions).with(|frame| frame.ether_type = Some(0x88cc));
        passes("another EtherType", &sent, "pass_not_for_us");
    }
    // An IPv6 address that only looks like a mapped IPv4 one in the map is the same key, on purpose:
    // such addresses are never on the wire (RFC 4291 section 2.5.5.2).
    for sent in [&[2; 14][..], &[0xff; 60][..]] {
        check("no IP at all", sent, Action::Pass, sent, "pass_not_for_us");
    }
}

#[test]
fn fragments_of_tunnel_packets_are_left_to_the_kernel() {
    for v6_inner in [false, true] {
        for fragment in [MF, 1, MF | 77, 0x1fff] {
            let sent = tunnelled((v6_inner, false)).with(|f| f.packet.ip.fragment = fragment);
            passes(&format!("IPv4, {fragment:#x}"), &sent, "pass_fragment");
        }
        for (offset, more) in [(0, true), (5, false), (0, false)] {
            let extension = Extension::fragment(offset, more);
            let sent =
                tunnelled((v6_inner, true)).with(|f| f.packet.ip.extensions = vec![extension]);
            passes(&format!("IPv6, offset {offset}, more: {more}"), &sent, "pass_fragment");
        }
    }
    let sent = Frame::new(link(), inner(true).clone()).with(|frame| {
        frame.packet.ip.extensions = vec![Extension::fragment(0, true)];
    });
    passes("a fragment without a tunnel", &sent, "pass_not_for_us");
}

#[test]
fn a_broken_outer_header_is_left_to_the_kernel() {
    for v6_inner in [false, true] {
        let v4 = |change: &dyn Fn(&mut Ip)| {
            tunnelled((v6_inner, false)).with(|frame| change(&mut frame.packet.ip))
        };
        for (name, sent) in [
            ("version", v4(&|ip| ip.version = Some(5))),
            ("header of 16 bytes", v4(&|ip| ip.header_words = Some(4))),
            ("length below the header's", v4(&|ip| ip.len = Some(19))),
            ("length beyond the frame", v4(&|ip| ip.len = Some(1000))),
            ("checksum", v4(&|ip| ip.checksum_error = 1)),
            (
                "checksum over options",
                v4(&|ip| {
                    ip.options = vec![1; 40];
                    ip.checksum_error = 0x100;
                }),
            ),
        ] {
            passes(&format!("outer IPv4, {name}"), &sent, "pass_malformed");
        }
        let v6 = |change: &dyn Fn(&mut Ip)| {
            tunnelled((v6_inner, true)).with(|frame| change(&mut frame.packet.ip))
        };
        for (name, sent) in [
            ("version", v6(&|ip| ip.version = Some(4))),
            ("length beyond the frame", v6(&|ip| ip.len = Some(1000))),
            ("no room for the inner header", v6(&|ip| ip.len = Some(19))),
        ] {
            passes(&format!("outer IPv6, {name}"), &sent, "pass_malformed");
        }
    }
}

#[test]
fn an_inner_packet_that_does_not_fit_is_dropped() {
    for versions in VERSIONS {
        let sent = |change: &dyn Fn(&mut Ip)| {
            tunnelled(versions).with(|frame| change(&mut frame.packet.as_inner().ip))
        };
        let whole = inner(versions.0).bytes().len() as u16;
        let beyond = if versions.0 { whole - 40 + 1 } else { whole + 1 };
        drops("one byte too long", &sent(&|ip| ip.len = Some(beyond)), "malformed");
        let sent_version = sent(&|ip| ip.version = Some(7));
        passes("of an unknown version", &sent_version, "pass_malformed");
        if !versions.0 {
            drops("header of 16 bytes", &sent(&|ip| ip.header_words = Some(4)), "malformed");
            drops("length below the header's", &sent(&|ip| ip.len = Some(19)), "malformed");
            drops(
                "header beyond the packet",
                &sent(&|ip| {
                    ip.header_words = Some(15);
                    ip.len = Some(59);
                }),
                "malformed",
            );
        }
        // Shorter than there was room for is right, and the rest becomes padding.
        let short = sent(&|ip| ip.len = Some(if versions.0 { 20 } else { 40 }));
        let expected = stripped(&short).bytes();
        check("shorter", &short.bytes(), Action::Pass, &expected, "decapsulated");
        let sent = tunnelled(versions).with(|frame| {
            let proto = if versions.0 { protocol::IPV6 } else { protocol::IPIP };
            frame.packet.payload = Payload::Raw(proto, Vec::new());
        });
        passes("nothing inside", &sent, "pass_malformed");
    }
}

#[test]
fn a_frame_cut_off_anywhere_is_passed_as_it_came() {
    for versions in VERSIONS {
        for tags in [vec![], vec![(VLAN, 5)], vec![(SERVICE_VLAN, 4), (VLAN, 5)]] {
            let whole = tunnelled(versions).with(|frame| frame.link.tags = tags).bytes();
            for len in tests::dataplane::SHORTEST..whole.len() {
                let sent = &whole[..len];
                let (action, frame, _) = run(&format!("{versions:?}, {len} bytes"), sent, 0);
                assert_eq!((action, frame.as_slice()), (Action::Pass, sent), "{len} bytes");
            }
        }
    }
}

#[test]
fn metadata_in_front_of_the_frame_is_no_obstacle() {
    for versions in VERSIONS {
        let sent = tunnelled(versions);
        let (action, frame, _) = run("metadata", &sent.bytes(), 8);
        let expected = stripped(&sent).bytes();
        assert_eq!(action, Action::Pass);
        assert!(frame == expected, "{}", difference(&expected, &frame));
    }
}
