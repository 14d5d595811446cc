//! IPv6 extension headers: walked up to a bound, and kept.

use lb_common::outcome::{DropReason, Event, NO_SERVICE};
use tests::{
    dataplane::{Dataplane, Expect, Scenario, id},
    packet::{Extension, Frame, protocol},
};

use crate::connection::{Connection, name};

const SERVICES: [u16; 3] = [id::NAT, id::DSR, id::IPIP6];

fn with(connection: &Connection, extensions: &[Extension]) -> Frame {
    connection.syn().with(|frame| frame.packet.ip.extensions = extensions.to_vec())
}

fn padding(number: u8) -> Extension {
    Extension::padding(number, 1)
}

#[test]
fn headers_that_may_come_before_tcp() {
    use protocol::{DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING};
    let atomic = || Extension::fragment(0, false);
    let cases = [
        ("hop by hop", vec![padding(HOP_BY_HOP)]),
        ("routing", vec![padding(ROUTING)]),
        ("destination options", vec![padding(DESTINATION_OPTIONS)]),
        ("an atomic fragment", vec![atomic()]),
        ("a long one", vec![Extension::padding(DESTINATION_OPTIONS, 8)]),
        ("two", vec![padding(HOP_BY_HOP), padding(DESTINATION_OPTIONS)]),
        ("an atomic fragment behind another", vec![padding(HOP_BY_HOP), atomic()]),
        (
            "one of each kind, in the order of RFC 8200",
            vec![
                padding(HOP_BY_HOP),
                padding(DESTINATION_OPTIONS),
                padding(ROUTING),
                atomic(),
                padding(DESTINATION_OPTIONS),
            ],
        ),
        ("six", vec![padding(DESTINATION_OPTIONS); 6]),
    ];
    for (what, extensions) in cases {
        let mut plane = Dataplane::fresh(Scenario::usual());
        for service in SERVICES {
            let connection = Connection::new(&plane, service, true);
            let sent = with(&connection, &extensions);
            let name = format!("{}, {what}", name(service, true));
            plane.check(&name, &sent.bytes(), &connection.syn_goes_up(&sent));
        }
    }
}

#[test]
fn more_headers_than_are_walked() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    for service in SERVICES {
        let connection = Connection::new(&plane, service, true);
        for count in [7, 8, 20] {
            let extensions = vec![padding(protocol::DESTINATION_OPTIONS); count];
            let sent = with(&connection, &extensions).bytes();
            let expected = Expect::drop(NO_SERVICE, DropReason::ExtensionHeaders);
            plane.check(&format!("{count} headers"), &sent, &expected);
        }
    }
}

#[test]
fn fragments_and_headers_that_end_too_early() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, true);
    let drop = |reason| Expect::drop(NO_SERVICE, reason);
    for (offset, more) in [(0, true), (1, false), (0x1fff, true)] {
        for before in [vec![], vec![padding(protocol::HOP_BY_HOP)]] {
            let mut extensions = before;
            extensions.push(Extension::fragment(offset, more));
            let sent = with(&connection, &extensions).bytes();
            plane.check(&format!("offset {offset}"), &sent, &drop(DropReason::Fragment));
        }
    }
    // The header claims more than the packet has.
    for eights in [20, 100, 255] {
        let mut extension = padding(protocol::DESTINATION_OPTIONS);
        extension.rest[0] = eights;
        let sent = with(&connection, &[extension]).bytes();
        plane.check(&format!("{eights} times 8 bytes"), &sent, &drop(DropReason::Truncated));
    }
}

#[test]
fn fragments_of_other_protocols_are_the_hosts() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, true);
    for proto in [protocol::UDP, protocol::ICMPV6, 50] {
        for (offset, more) in [(0, true), (1, false), (0x1fff, true)] {
            let sent = with(&connection, &[Extension::fragment(offset, more)])
                .with(|frame| frame.packet.ip.proto = Some(proto))
                .bytes();
            let expected = Expect::pass(&sent, Event::PassNotService);
            plane.check(&format!("protocol {proto}, offset {offset}"), &sent, &expected);
        }
    }
}

#[test]
fn headers_behind_which_nothing_is_for_us() {
    let mut plane = Dataplane::fresh(Scenario::usual());
    let connection = Connection::new(&plane, id::NAT, true);
    for proto in [50, 51, 59, 135, 139, 253] {
        let sent = with(&connection, &[padding(protocol::DESTINATION_OPTIONS)])
            .with(|frame| frame.packet.ip.proto = Some(proto))
            .bytes();
        let expected = Expect::pass(&sent, Event::PassNotService);
        plane.check(&format!("protocol {proto}"), &sent, &expected);
    }
}
