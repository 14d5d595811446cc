//! Every refusal leaves both connections as they were.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    os::fd::AsFd,
    time::Duration,
};

use lb_agent::{
    bpf::sys::{Put, drop_filter},
    splice::Roster,
    splice::plan::AnyKeys,
};
use lb_common::{
    addr::{Tuple, V4},
    flow::{Flow, forward},
    handshake::Handshake,
};
use lb_sidecar::splice::{Answer, Refusal};

use crate::site::{CAPACITY, Connection, Ip, Noted, Site, same};

fn assert_refused(site: &Site, connection: &mut Connection, refusal: Refusal) {
    assert_eq!(connection.offer(&site.splicer), Answer::Refused(refusal));
    site.assert_untouched(connection);
}

fn keys(connection: &Connection) -> lb_agent::splice::plan::Keys<V4> {
    let Ok(AnyKeys::V4(keys)) = connection.ends.keys() else { panic!("IPv4") };
    keys
}

#[test]
fn what_nobody_wants_spliced_is_not() {
    let site = Site::new();
    let mut connection = site.connect(Ip::V4);
    let known = site.roster.get();
    site.roster.set(Roster::default());
    assert_refused(&site, &mut connection, Refusal::NotSpliced);
    site.roster.set(Roster::clone(&known));
    assert_eq!(connection.offer(&site.splicer), Answer::Spliced);
}

#[test]
fn data_under_way_is_waited_for() {
    let site = Site::new();
    for which in 0..2 {
        let mut connection = site.connect(Ip::V4);
        let far = connection.far()[which].try_clone().unwrap();
        (&far).write_all(b"unread").unwrap();
        crate::splice::wait_until("it has come", || {
            !same(connection.near()[which]).facts().unwrap().quiet
        });
        assert_eq!(connection.offer(&site.splicer), Answer::Refused(Refusal::Busy));
        let mut near: &TcpStream = connection.near()[which];
        near.read_exact(&mut [0; 6]).unwrap();
        site.assert_untouched(&mut connection);
    }
}

#[test]
fn data_that_is_not_acknowledged_is_waited_for() {
    let site = Site::new();
    for (which, netns, device) in [(0, &site.client, "c0"), (1, &site.server, "s0")] {
        let mut connection = site.connect(Ip::V4);
        // The far end's answers are lost.
        let other = Tc::drop_all(netns, device);
        let mut near: &TcpStream = connection.near()[which];
        near.write_all(b"unheard").unwrap();
        assert_eq!(connection.offer(&site.splicer), Answer::Refused(Refusal::Busy));
        drop(other);
        let mut far: &TcpStream = connection.far()[which];
        far.read_exact(&mut [0; 7]).unwrap();
        connection.wait_quiet();
        site.assert_untouched(&mut connection);
        assert_eq!(connection.offer(&site.splicer), Answer::Spliced);
    }
}

/// Who always has something to say soon puts off what it owes until then. It is not waited for: the next one would only
/// come with the next data.
#[test]
fn acknowledgements_that_are_put_off_are_asked_for() {
    let site = Site::new();
    for which in 0..2 {
        // Unless the 40 ms for which an acknowledgement can be put off are over before the offer.
        let (mut connection, before) = loop {
            let connection = site.connect(Ip::V4);
            let far = socket2::SockRef::from(connection.far()[which]);
            far.set_tcp_quickack(false).unwrap();
            let mut near: &TcpStream = connection.near()[which];
            near.write_all(b"heard").unwrap();
            let mut far: &TcpStream = connection.far()[which];
            far.read_exact(&mut [0; 5]).unwrap();
            let before = site.window_probes();
            if connection.offer(&site.splicer) == Answer::Refused(Refusal::Busy) {
                break (connection, before);
            }
        };
        assert_eq!(site.window_probes(), before + 1);
        connection.wait_quiet();
        site.assert_untouched(&mut connection);
        assert_eq!(connection.offer(&site.splicer), Answer::Spliced);
    }
}

/// TCP sends everything again but a RST: in the midst of an attempt it is the sockets' own.
#[test]
fn a_reset_is_heard_while_all_else_is_dropped() {
    let site = Site::new();
    for is_client in [true, false] {
        let Connection { client, accepted, upstream, backend, .. } = site.connect(Ip::V4);
        let (mut far, mut near) = if is_client { (client, accepted) } else { (backend, upstream) };
        let filter = drop_filter().unwrap();
        let socket = same(&near);
        socket.stop(filter.as_fd()).unwrap();
        socket.repair().unwrap();
        far.write_all(b"lost").unwrap();
        socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
        drop(far);
        crate::splice::wait_until("it is reset", || !socket.facts().unwrap().established);
        socket.resume().unwrap();
        let error = near.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
}

/// A device of a namespace that sends nothing.
struct Tc<'a>(&'a crate::netns::Netns, &'a str);

impl<'a> Tc<'a> {
    fn drop_all(netns: &'a crate::netns::Netns, device: &'a str) -> Self {
        netns.ip(&format!("link set {device} down"));
        Self(netns, device)
    }
}

impl Drop for Tc<'_> {
    fn drop(&mut self) {
        self.0.ip(&format!("link set {} up", self.1));
    }
}

#[test]
fn a_side_that_has_closed_stays_relayed() {
    let site = Site::new();
    for which in 0..2 {
        let connection = site.connect(Ip::V4);
        connection.far()[which].shutdown(Shutdown::Write).unwrap();
        crate::splice::wait_until("it is known", || {
            !same(connection.near()[which]).facts().unwrap().established
        });
        assert_eq!(connection.offer(&site.splicer), Answer::Refused(Refusal::Closing));
        assert_eq!(site.entries(&connection), [None, None]);
        // The other direction goes on.
        let (mut near, mut far) = (connection.near()[which], connection.far()[which]);
        near.write_all(b"still").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
    }
}

#[test]
fn a_side_that_was_reset_is_gone() {
    let site = Site::new();
    let connection = site.connect(Ip::V4);
    socket2::SockRef::from(&connection.client).set_linger(Some(std::time::Duration::ZERO)).unwrap();
    let Connection { client, accepted, upstream, backend, ends } = connection;
    drop(client);
    crate::splice::wait_until("it is known", || !same(&accepted).facts().unwrap().established);
    let connection =
        Connection { client: upstream.try_clone().unwrap(), accepted, upstream, backend, ends };
    assert_eq!(connection.offer(&site.splicer), Answer::Refused(Refusal::Closing));
}

#[test]
fn options_that_one_leg_lacks_are_no_match() {
    for (option, refusal) in [("tcp_timestamps", Refusal::Timestamps), ("tcp_sack", Refusal::Sack)]
    {
        for of_client in [true, false] {
            let site = Site::new();
            let netns = if of_client { &site.client } else { &site.server };
            netns.sysctl(&format!("net/ipv4/{option}"), "0");
            let mut connection = site.connect(Ip::V4);
            assert_refused(&site, &mut connection, refusal);
        }
    }
}

#[test]
fn segments_must_fit_both_ways() {
    let site = Site::new();
    for which in 0..2 {
        let mut connection = site.connect(Ip::V4);
        let mut handshakes = [noted(&site, &connection, 0), noted(&site, &connection, 1)];
        handshakes[which].offer.mss = 1_400;
        let [syn, syn_ack] = handshakes;
        site.note(keys(&connection), syn, syn_ack);
        assert_refused(&site, &mut connection, Refusal::Mss);
    }
}

fn noted(site: &Site, connection: &Connection, which: usize) -> Noted {
    use lb_agent::bpf::{specs::names, sys::HashFd};
    let table: HashFd<Tuple<V4>, Handshake<V4>> =
        HashFd::open(&site.pins.map_path(names::HANDSHAKES4)).unwrap();
    let keys = keys(connection);
    let Handshake { isn, offer, .. } =
        table.lookup(&[keys.client, keys.backend][which]).unwrap().unwrap();
    Noted { isn, offer }
}

#[test]
fn ip_versions_do_not_mix() {
    let site = Site::new();
    for (front, back) in [(Ip::V4, Ip::V6), (Ip::V6, Ip::V4), (Ip::V6, Ip::Mapped)] {
        let mut connection = site.connect_with(front, back);
        assert_refused(&site, &mut connection, Refusal::IpVersions);
    }
}

#[test]
fn without_its_handshake_a_connection_stays_relayed() {
    let site = Site::new();
    let mut unseen = site.connect_unseen(Ip::V4, Ip::V4);
    assert_refused(&site, &mut unseen, Refusal::UnknownHandshake);
    // Those of another connection with the same tuple: found out when both are stopped.
    for which in 0..2 {
        let mut connection = site.connect(Ip::V4);
        let mut handshakes = [noted(&site, &connection, 0), noted(&site, &connection, 1)];
        handshakes[which].isn = handshakes[which].isn.wrapping_add(1);
        let [syn, syn_ack] = handshakes;
        site.note(keys(&connection), syn, syn_ack);
        assert_refused(&site, &mut connection, Refusal::UnknownHandshake);
    }
}

#[test]
fn a_full_table_means_relay() {
    let site = Site::new();
    let flows = site.flows::<V4>();
    let other = |n: u32| Tuple { src: V4(n), ..Tuple::default() };
    for free in 0..2 {
        for n in 0..CAPACITY - free {
            let _ = flows.put(&other(n), &Flow::default(), Put::New);
        }
        if free == 1 {
            assert!(flows.delete(&other(CAPACITY - 1)).unwrap());
        }
        let mut connection = site.connect(Ip::V4);
        assert_refused(&site, &mut connection, Refusal::TableFull);
        assert_eq!(site.count() as u32, CAPACITY - free);
    }
}

#[test]
fn a_tuple_that_is_taken_stays_its_owners() {
    let site = Site::new();
    let flows = site.flows::<V4>();
    for which in 0..2 {
        let mut connection = site.connect(Ip::V4);
        let key = [keys(&connection).client, keys(&connection).backend][which];
        let owners = Flow { to: key, forward: forward::NAT, backend: 2, ..Flow::default() };
        flows.put(&key, &owners, Put::New).unwrap();
        assert_eq!(connection.offer(&site.splicer), Answer::Refused(Refusal::TupleTaken));
        assert_eq!(flows.lookup(&key).unwrap(), Some(owners));
        assert!(flows.delete(&key).unwrap());
        site.assert_untouched(&mut connection);
    }
}

#[test]
fn both_ways_must_be_known_and_lead_through_xdp() {
    let site = Site::new();
    let mut connection = site.connect(Ip::V4);
    for (to_client, to_backend) in [(0, 1_002), (1_001, 0)] {
        site.write_ways(to_client, to_backend);
        assert_refused(&site, &mut connection, Refusal::UnknownNextHop);
    }
    site.write_ways(1_001, 1_002);
    let known = site.roster.get();
    let ends = connection.ends;
    for (to_client, to_backend) in [(true, false), (false, true)] {
        site.attach_only(to_client, to_backend);
        let mut roster = Roster::clone(&site.roster.get());
        roster.listener(ends.listener, crate::site::SERVICE);
        roster.backend(crate::site::SERVICE, ends.backend, crate::site::BACKEND);
        site.roster.set(roster);
        assert_refused(&site, &mut connection, Refusal::NoXdp);
    }
    site.roster.set(Roster::clone(&known));
    assert_eq!(connection.offer(&site.splicer), Answer::Spliced);
}
