//! The last stage: interface, MAC addresses, VLAN tags, and next hops that are not resolved.

use lb_common::outcome::{DropReason, Event};
use tests::{
    dataplane::{
        Dataplane, Expect, Punted, Scenario, hop, id,
        scenario::{EDGE_MAC, OTHER_INTERFACE},
    },
    netns::Netns,
    packet::{
        Frame, Link, Tcp,
        link::{SERVICE_VLAN, VLAN},
        tcp::{ACK, PSH},
    },
};

use crate::connection::{CLIENT, Connection, SERVER, VERSIONS, name, services};

fn every_hop(scenario: &mut Scenario, change: impl Fn(&mut lb_common::next_hop::NextHop)) {
    scenario.next_hops.values_mut().for_each(change);
}

fn data_up(connection: &Connection) -> Frame {
    connection.up(Tcp::new(0, 0, ACK | PSH).numbers(CLIENT + 1, SERVER + 1).payload(b"up"))
}

fn data_down(connection: &Connection) -> Frame {
    connection.down(Tcp::new(0, 0, ACK | PSH).numbers(SERVER + 1, CLIENT + 1).payload(b"down"))
}

#[test]
fn another_interface_means_a_redirect() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        plane.change(|scenario| every_hop(scenario, |hop| hop.ifindex = OTHER_INTERFACE));
        let sent = data_up(&connection);
        let expected = Expect::redirect(connection.forwarded(&sent).bytes())
            .to_backend(connection.backend, sent.packet.bytes().len());
        plane.check(&name(service, v6), &sent.bytes(), &expected);
        if connection.is_nat() {
            let sent = data_down(&connection);
            let expected = Expect::redirect(connection.returned(&sent).bytes())
                .to_client(connection.backend, sent.packet.bytes().len());
            plane.check(&name(service, v6), &sent.bytes(), &expected);
        }
    }
}

#[test]
fn every_depth_of_tags_comes_in_and_goes_out() {
    let depths = [vec![], vec![(VLAN, 0x2064)], vec![(SERVICE_VLAN, 0x0065), (VLAN, 0x2064)]];
    for (service, v6) in services() {
        for going_out in &depths {
            let scenario = Scenario::usual().with(|scenario| {
                let of = |scenario: &Scenario, id| scenario.next_hops[&id];
                let tagged = of(scenario, hop::TAGGED);
                let double = of(scenario, hop::DOUBLE_TAGGED);
                every_hop(scenario, |hop| {
                    let like = match going_out.len() {
                        0 => return,
                        1 => tagged,
                        _ => double,
                    };
                    (hop.tags_len, hop.tags) = (like.tags_len, like.tags);
                });
                scenario.next_hops.get_mut(&hop::ROUTER).unwrap().ifindex = OTHER_INTERFACE;
            });
            let mut plane = Dataplane::fresh(scenario);
            let connection = Connection::new(&plane, service, v6);
            for (n, coming_in) in depths.iter().enumerate() {
                let sent = connection.syn().with(|frame| {
                    frame.link.tags = coming_in.clone();
                    frame.packet.as_tcp().seq = n as u32;
                });
                let out = connection.forwarded(&sent).with(|f| f.link.tags = going_out.clone());
                let name = format!("{}: {coming_in:x?} to {going_out:x?}", name(service, v6));
                plane.check_by(&name, &sent.bytes(), |_| {
                    Expect::transmit(out.bytes())
                        .to_backend(connection.backend, sent.packet.bytes().len())
                        .counts(service, Event::SynForwarded)
                        .backend(
                            connection.backend,
                            lb_common::counters::BackendCounters {
                                picked: 1,
                                ..Default::default()
                            },
                        )
                });
            }
        }
    }
}

#[test]
fn a_packet_for_an_unresolved_backend_goes_to_the_agent() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        plane.change(|scenario| {
            scenario.backends.values_mut().for_each(|it| it.next_hop = hop::UNRESOLVED);
        });
        for tags in [vec![], vec![(SERVICE_VLAN, 1), (VLAN, 2)]] {
            let sent = data_up(&connection).with(|frame| frame.link.tags = tags);
            let expected =
                Expect::punted(service).to_backend(connection.backend, sent.packet.bytes().len());
            plane.check(&name(service, v6), &sent.bytes(), &expected);
            let backend = if service == id::DSR { connection.backend } else { 0 };
            let packet = connection.forwarded(&sent).packet.bytes();
            assert_eq!(plane.tables.punted(), [Punted { backend, packet }]);
        }
    }
}

/// Ethernet pads what is shorter than its least frame; the agent sends packets, not frames.
#[test]
fn the_agent_gets_no_padding() {
    for (service, v6) in services() {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, service, v6);
        connection.open(&mut plane);
        plane.change(|scenario| {
            scenario.backends.values_mut().for_each(|it| it.next_hop = hop::UNRESOLVED);
        });
        let sent = data_up(&connection);
        let padded = sent.with(|frame| frame.padding = vec![0xee; 6]);
        let expected =
            Expect::punted(service).to_backend(connection.backend, sent.packet.bytes().len());
        plane.check(&name(service, v6), &padded.bytes(), &expected);
        let backend = if service == id::DSR { connection.backend } else { 0 };
        let packet = connection.forwarded(&sent).packet.bytes();
        assert_eq!(plane.tables.punted(), [Punted { backend, packet }]);
    }
}

#[test]
fn a_packet_for_a_client_without_a_route_goes_to_the_agent() {
    for v6 in VERSIONS {
        for (what, unresolved) in [("no route", None), ("unresolved", Some(hop::UNRESOLVED))] {
            let scenario = Scenario::usual().with(|scenario| {
                scenario.routes.clear();
                if let Some(hop) = unresolved {
                    scenario.route("0.0.0.0/0", hop);
                    scenario.route("::/0", hop);
                }
            });
            let mut plane = Dataplane::fresh(scenario);
            let connection = Connection::new(&plane, id::NAT, v6);
            let syn = connection.syn();
            plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
            let answer = connection.syn_ack();
            let expected =
                Expect::punted(id::NAT).to_client(connection.backend, answer.packet.bytes().len());
            plane.check(what, &answer.bytes(), &expected);
            let packet = connection.returned(&answer).packet.bytes();
            assert_eq!(plane.tables.punted(), [Punted { backend: 0, packet }]);
        }
    }
}

#[test]
fn the_longest_prefix_decides_where_a_client_is() {
    for v6 in VERSIONS {
        let scenario = Scenario::usual().with(|scenario| {
            let narrow = if v6 { "2001:db8:c::/64" } else { "198.51.100.0/29" };
            scenario.route(narrow, hop::ELSEWHERE);
        });
        let mut plane = Dataplane::fresh(scenario);
        let connection = Connection::new(&plane, id::NAT, v6);
        let syn = connection.syn();
        plane.check("SYN", &syn.bytes(), &connection.syn_goes_up(&syn));
        let answer = connection.syn_ack();
        let expected = Expect::redirect(connection.returned(&answer).bytes())
            .to_client(connection.backend, answer.packet.bytes().len());
        plane.check("SYN-ACK", &answer.bytes(), &expected);
    }
}

#[test]
fn flows_follow_a_change_of_routes() {
    for v6 in VERSIONS {
        let mut plane = Dataplane::fresh(Scenario::usual());
        let connection = Connection::new(&plane, id::NAT, v6);
        connection.open(&mut plane);
        let sent = data_down(&connection);
        plane.check("before", &sent.bytes(), &connection.goes_down(&sent));
        plane.change(|scenario| {
            scenario.route(if v6 { "::/0" } else { "0.0.0.0/0" }, hop::DOUBLE_TAGGED);
        });
        plane.check("the epoch is the same", &sent.bytes(), &connection.goes_down(&sent));
        plane.change(|scenario| scenario.edge.route_epoch += 1);
        let out = connection
            .returned(&sent)
            .with(|frame| frame.link.tags = vec![(SERVICE_VLAN, 0x0065), (VLAN, 0x2064)]);
        let expected =
            Expect::transmit(out.bytes()).to_client(connection.backend, sent.packet.bytes().len());
        plane.check("a new epoch", &sent.bytes(), &expected);
        plane.check("and ever after", &sent.bytes(), &expected);
    }
}

/// Interface `v0` in a namespace whose kernel forwards, with a backend and the client beyond it.
fn routing_namespace() -> Netns {
    let netns = Netns::new("fib").unwrap();
    netns.sysctls(&[("ipv4/conf/all/forwarding", "1"), ("ipv6/conf/all/forwarding", "1")]).unwrap();
    let lines = "\
        link add v0 type veth peer name v1
        link set v0 address 02:00:00:00:00:01
        link set v0 up
        link set v1 up
        addr add 10.2.0.254/24 dev v0
        addr add fd00:2::fe/64 dev v0 nodad";
    for line in lines.lines() {
        netns.ip(line.trim()).unwrap();
    }
    netns
}

#[test]
fn where_the_agents_table_has_no_answer_the_kernels_fib_is_asked() {
    let netns = routing_namespace();
    let handle = netns.handle().clone();
    for v6 in VERSIONS {
        for service in [id::NAT, id::IPIP6] {
            let mut plane = Dataplane::fresh(Scenario::usual());
            let connection = Connection::new(&plane, service, v6);
            connection.open(&mut plane);
            plane.change(|scenario| {
                scenario.backends.values_mut().for_each(|it| it.next_hop = 0);
            });
            handle.enter().unwrap();
            let sent = data_up(&connection);
            let counted = |expected: Expect| {
                expected.to_backend(connection.backend, sent.packet.bytes().len())
            };
            let expected = counted(Expect::punted(service));
            plane.check("no neighbour yet", &sent.bytes(), &expected);
            assert_eq!(plane.tables.punted().len(), 1);

            let server = connection.server.ip();
            netns.ip(&format!("neigh replace {server} lladdr 02:00:00:00:77:01 dev v0")).unwrap();
            let out = connection.forwarded(&sent).with(|frame| {
                frame.link = Link::new([2, 0, 0, 0, 0x77, 1], EDGE_MAC);
            });
            let expected = counted(Expect::redirect(out.bytes()).counts(service, Event::FibLookup));
            plane.check("with a neighbour", &sent.bytes(), &expected);

            let prefix = if server.is_ipv6() { 128 } else { 32 };
            netns.ip(&format!("route add unreachable {server}/{prefix}")).unwrap();
            let expected = counted(Expect::drop(service, DropReason::NoRoute));
            plane.check("unreachable", &sent.bytes(), &expected);
            netns.ip(&format!("route del unreachable {server}/{prefix}")).unwrap();
        }
    }
}
