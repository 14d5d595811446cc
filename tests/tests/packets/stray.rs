//! Segments that are no SYN and belong to no flow.

use lb_common::outcome::{DropReason, Event};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{
        Extension, Frame, Ip, Packet, Tcp,
        link::{SERVICE_VLAN, VLAN},
        protocol,
        tcp::{ACK, FIN, PSH, RST, SYN},
    },
};

use crate::connection::{Connection, VERSIONS, name, services};

const NAT: [u16; 2] = [id::NAT, id::AFFINE];

/// The RST that answers a segment.
pub fn reset(sent: &Frame, seq: u32, ack: u32, flags: u8) -> Frame {
    let mut ip = Ip::new(sent.packet.ip.dst, sent.packet.ip.src);
    (ip.ttl, ip.id, ip.flow_label) = (64, 0, 0);
    let mut sent = sent.clone();
    let tcp = sent.packet.as_tcp();
    let mut rst = Tcp::new(tcp.dport, tcp.sport, flags).numbers(seq, ack);
    rst.window = 0;
    Frame::new(sent.link.turned(), Packet::tcp(ip, rst))
}

fn is_reset(service: u16, frame: &Frame) -> Expect {
    Expect::transmit(frame.bytes()).counts(service, Event::ResetSent)
}

#[test]
fn with_nat_nobody_can_know_it_so_it_is_reset() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        for service in NAT {
            let connection = Connection::new(&plane, service, v6);
            for (what, tcp, seq, ack, flags) in [
                ("ACK", Tcp::new(0, 0, ACK).numbers(5, 6), 6, 0, RST),
                ("SYN-ACK", Tcp::new(0, 0, SYN | ACK).numbers(5, 6), 6, 0, RST),
                ("FIN", Tcp::new(0, 0, FIN | ACK).numbers(5, 6), 6, 0, RST),
                ("data", Tcp::new(0, 0, ACK | PSH).numbers(5, 6).payload(b"1234567"), 6, 0, RST),
                ("no flags", Tcp::new(0, 0, 0).numbers(5, 6), 0, 5, RST | ACK),
                ("FIN without ACK", Tcp::new(0, 0, FIN).numbers(5, 6), 0, 6, RST | ACK),
                (
                    "FIN and data without ACK",
                    Tcp::new(0, 0, FIN | PSH).numbers(u32::MAX, 6).payload(b"1234"),
                    0,
                    4,
                    RST | ACK,
                ),
                (
                    "with options",
                    Tcp::new(0, 0, ACK).numbers(5, 0xffff_ffff).options(&[&[1; 40]]),
                    0xffff_ffff,
                    0,
                    RST,
                ),
            ] {
                for tags in [vec![], vec![(VLAN, 5)], vec![(SERVICE_VLAN, 4), (VLAN, 5)]] {
                    let sent = connection.up(tcp.clone()).with(|frame| {
                        frame.link.tags = tags;
                        frame.packet.ip.traffic_class = 0xb9;
                    });
                    let expected = is_reset(service, &reset(&sent, seq, ack, flags));
                    plane.check(
                        &format!("{}, {what}", name(service, v6)),
                        &sent.bytes(),
                        &expected,
                    );
                }
            }
        }
    }
}

#[test]
fn a_reset_has_neither_padding_nor_options_of_what_it_answers() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        let sent = connection.up(Tcp::new(0, 0, ACK).numbers(5, 6)).with(|frame| {
            frame.packet.ip.options = vec![1; 40];
            frame.packet.ip.extensions = vec![Extension::padding(protocol::DESTINATION_OPTIONS, 2)];
            frame.padding = vec![0xaa; 9];
        });
        let expected = is_reset(id::NAT, &reset(&sent, 6, 0, RST));
        plane.check("options", &sent.bytes(), &expected);
        let large = connection.up(Tcp::new(0, 0, ACK).numbers(5, 6).payload(&[9; 1400]));
        let expected = is_reset(id::NAT, &reset(&large, 6, 0, RST));
        plane.check("1400 bytes of data", &large.bytes(), &expected);
    }
}

#[test]
fn a_reset_is_never_answered_by_another() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        for service in NAT {
            let connection = Connection::new(&plane, service, v6);
            for flags in [RST, RST | ACK, RST | FIN] {
                let sent = connection.up(Tcp::new(0, 0, flags).numbers(5, 6));
                let expected = Expect::drop(service, DropReason::NoFlow);
                plane.check(&name(service, v6), &sent.bytes(), &expected);
            }
        }
    }
}

#[test]
fn where_the_backend_may_know_it_it_is_forwarded_by_hash() {
    for (service, v6) in services().filter(|(service, _)| !NAT.contains(service)) {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        for flags in [ACK, ACK | PSH, FIN | ACK, RST, 0, SYN | ACK] {
            let sent = connection.up(Tcp::new(0, 0, flags).numbers(5, 6).payload(b"data"));
            let expected = connection.goes_up(&sent).counts(service, Event::ForwardedByHash);
            let name = format!("{}, flags {flags:#x}", name(service, v6));
            plane.check(&name, &sent.bytes(), &expected);
        }
    }
}

#[test]
fn a_service_without_backends() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        let to_empty = |tcp: Tcp| {
            let vip = tests::dataplane::scenario::listener(id::EMPTY, v6);
            connection.up(tcp).with(|frame| frame.packet.ip.dst = vip.ip())
        };
        let syn = to_empty(Tcp::new(0, 0, SYN).numbers(5, 0));
        let expected = Expect::drop(id::EMPTY, DropReason::NoBackend);
        plane.check("SYN", &syn.bytes(), &expected);
        let ack = to_empty(Tcp::new(0, 0, ACK).numbers(5, 6));
        plane.check("ACK", &ack.bytes(), &is_reset(id::EMPTY, &reset(&ack, 6, 0, RST)));
    }
}
