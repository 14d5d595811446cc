//! Tunnels: the outer header, and packets that do not fit.

use lb_common::outcome::Event;
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{
        Extension, Frame, Icmp, Ip, Packet, Tcp,
        ip::DF,
        link::{SERVICE_VLAN, VLAN},
        protocol,
        tcp::{ACK, PSH},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, name};

const TUNNELS: [(u16, bool); 3] = [(id::IPIP, false), (id::IPIP6, false), (id::IPIP6, true)];

fn opened(service: u16, v6: bool) -> (std::sync::MutexGuard<'static, Dataplane>, Connection) {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, service, v6);
    connection.open(&mut plane);
    (plane, connection)
}

fn data(connection: &Connection, payload: usize) -> Frame {
    let tcp = Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1);
    connection.up(tcp.payload(&(0..payload).map(|n| n as u8).collect::<Vec<_>>()))
}

/// Data whose IP packet is so long.
fn sized(connection: &Connection, len: usize) -> Frame {
    data(connection, len - data(connection, 0).packet.bytes().len())
}

fn room(connection: &Connection) -> usize {
    1500 - if connection.server.is_ipv6() { 40 } else { 20 }
}

#[test]
fn the_traffic_class_is_copied_to_the_outer_header() {
    for (service, v6) in TUNNELS {
        let (mut plane, connection) = opened(service, v6);
        for traffic_class in [0, 1, 2, 3, 0xb8, 0xb9, 0xfc, 0xff] {
            let sent =
                data(&connection, 100).with(|frame| frame.packet.ip.traffic_class = traffic_class);
            let name = format!("{}, traffic class {traffic_class:#x}", name(service, v6));
            plane.check(&name, &sent.bytes(), &connection.goes_up(&sent));
        }
    }
}

#[test]
fn the_largest_packet_that_fits() {
    for (service, v6) in TUNNELS {
        let (mut plane, connection) = opened(service, v6);
        let sent = sized(&connection, room(&connection));
        plane.check(&name(service, v6), &sent.bytes(), &connection.goes_up(&sent));
    }
}

/// What says that a packet is too big.
fn too_big(connection: &Connection, sent: &Frame, quoted: usize) -> Expect {
    let v6 = connection.vip.is_ipv6();
    let mut body = sent.packet.bytes();
    body.truncate(quoted);
    let mut ip = Ip::new(connection.vip.ip(), connection.client.ip());
    (ip.ttl, ip.id, ip.fragment, ip.flow_label) = (64, 0, DF, 0);
    let icmp = Icmp::packet_too_big(v6, room(connection) as u16, body);
    let answer = Frame::new(sent.link.turned(), Packet::icmp(ip, icmp));
    Expect::transmit(answer.bytes()).counts(connection.service, Event::PacketTooBigSent)
}

#[test]
fn a_packet_that_does_not_fit_is_answered_with_the_size_that_does() {
    for (service, v6) in TUNNELS {
        let (mut plane, connection) = opened(service, v6);
        for len in [room(&connection) + 1, 1500] {
            for tags in [vec![], vec![(VLAN, 5)], vec![(SERVICE_VLAN, 4), (VLAN, 5)]] {
                let sent = sized(&connection, len).with(|frame| frame.link.tags = tags);
                let quoted = if v6 { 40 + 64 } else { 28 };
                let name = format!("{}, {len} bytes, {:?}", name(service, v6), sent.link.tags);
                plane.check(&name, &sent.bytes(), &too_big(&connection, &sent, quoted));
            }
        }
    }
}

#[test]
fn the_answer_quotes_the_ports_whatever_comes_before_them() {
    for words in [1, 5, 10] {
        for service in [id::IPIP, id::IPIP6] {
            let (mut plane, connection) = opened(service, false);
            let sent = sized(&connection, 1400 + 100 - words * 4)
                .with(|frame| frame.packet.ip.options = vec![1; words * 4]);
            let name = format!("{words} words of options");
            plane.check(&name, &sent.bytes(), &too_big(&connection, &sent, 68));
        }
    }
    let (mut plane, connection) = opened(id::IPIP6, true);
    let sent = sized(&connection, 1450).with(|frame| {
        frame.packet.ip.extensions = vec![Extension::padding(protocol::DESTINATION_OPTIONS, 5)];
    });
    plane.check("extension header", &sent.bytes(), &too_big(&connection, &sent, 104));
}

#[test]
fn the_answer_comes_back_to_the_edge_as_an_error_about_nothing_of_ours() {
    // A client that is itself a VIP cannot be: but its router may send the error back to us.
    let (mut plane, connection) = opened(id::IPIP, false);
    let sent = sized(&connection, 1500);
    let answer = plane.check_by("too big", &sent.bytes(), |_| too_big(&connection, &sent, 28));
    let output = plane.check_by("the answer again", &answer.frame, |output| {
        Expect::pass(&output.frame, Event::PassNotService)
    });
    assert_eq!(output.frame, answer.frame);
}

#[test]
fn frames_with_room_for_neither_header_are_dropped() {
    use lb_common::outcome::DropReason;
    use tests::dataplane::Action;
    for (service, v6) in TUNNELS {
        let (plane, connection) = opened(service, v6);
        let before = plane.tables.counters();
        // The kernel keeps 40 of the 256 bytes in front of a frame for itself.
        let output = plane.run_with_metadata(&data(&connection, 10).bytes(), 208);
        assert_eq!(output.action, Action::Drop, "{}", name(service, v6));
        let counted = plane.tables.counters().since(&before).outcomes;
        let expected = (service, DropReason::NoHeadroom.into());
        assert_eq!(counted.into_iter().collect::<Vec<_>>(), [(expected, 1)]);
    }
}
