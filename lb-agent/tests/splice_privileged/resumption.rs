//! What an agent leaves that dies in the midst of a splice, its successor finishes or undoes.

use lb_agent::{
    bpf::sys::Put,
    splice::plan::{self, AnyKeys, Frame},
};
use lb_common::addr::V4;
use lb_sidecar::splice::{Answer, Refusal};

use crate::site::{Connection, Ip, Site, same};

/// A connection that was spliced, by an agent that could not say so any more.
fn spliced(site: &Site) -> Connection {
    let mut connection = site.connect(Ip::V4);
    connection.assert_works();
    assert_eq!(connection.offer(&site.splicer), Answer::Spliced);
    connection
}

#[test]
fn a_finished_splice_is_one() {
    let site = Site::new();
    let connection = spliced(&site);
    let entries = site.entries(&connection);
    let successor = site.successor();
    assert_eq!(connection.offer(&successor), Answer::Spliced);
    assert_eq!(site.entries(&connection), entries);
    // It was there before this agent: the walk of the tables counts it.
    assert!(successor.load().snapshot().is_empty());
    // Also when the service has gone meanwhile: it is what it is.
    site.roster.set(Default::default());
    assert_eq!(connection.offer(&successor), Answer::Spliced);
}

#[test]
fn what_was_half_joined_is_joined() {
    let site = Site::new();
    for which in 0..2 {
        let connection = spliced(&site);
        let before = site.entries(&connection);
        site.remove_entry(&connection, which);
        let successor = site.successor();
        assert_eq!(connection.offer(&successor), Answer::Spliced);
        let after = site.entries(&connection);
        let sequences = |entries: [Option<crate::site::Entry>; 2]| {
            entries.map(|it| it.map(|it| (it.flow.seq_delta, it.flow.ack_delta, it.to)))
        };
        assert_eq!(sequences(after), sequences(before));
        assert_eq!(successor.load().snapshot().len(), 1);
    }
}

#[test]
fn sockets_that_were_stopped_are_spliced_or_set_free() {
    for repaired in [[true, true], [true, false], [false, true], [false, false]] {
        for forgotten in [false, true] {
            let site = Site::new();
            let mut connection = spliced(&site);
            site.remove_entry(&connection, 0);
            site.remove_entry(&connection, 1);
            for (socket, repaired) in connection.near().into_iter().zip(repaired) {
                if !repaired {
                    same(socket).resume().unwrap();
                }
            }
            if forgotten {
                site.forget_handshakes(&connection);
            }
            let answer = connection.offer(&site.successor());
            if forgotten {
                assert_eq!(answer, Answer::Refused(Refusal::UnknownHandshake));
                site.assert_untouched(&mut connection);
            } else {
                assert_eq!(answer, Answer::Spliced);
                assert_eq!(site.count(), 2);
            }
        }
    }
}

#[test]
fn half_a_splice_that_cannot_be_finished_is_undone() {
    let site = Site::new();
    for which in 0..2 {
        let mut connection = spliced(&site);
        site.remove_entry(&connection, which);
        site.forget_handshakes(&connection);
        let answer = connection.offer(&site.successor());
        assert_eq!(answer, Answer::Refused(Refusal::UnknownHandshake));
        site.assert_untouched(&mut connection);
    }
    // Nor may it be any more.
    let mut connection = spliced(&site);
    site.remove_entry(&connection, 0);
    site.roster.set(Default::default());
    assert_eq!(connection.offer(&site.successor()), Answer::Refused(Refusal::NotSpliced));
    site.assert_untouched(&mut connection);
}

#[test]
fn a_successor_removes_what_holds_packets_and_nothing_else() {
    let site = Site::new();
    let kept = spliced(&site);
    let entries = site.entries(&kept);
    let mut held = site.connect(Ip::V4);
    let Ok(AnyKeys::V4(keys)) = held.ends.keys() else { panic!("IPv4") };
    let pair = plan::hold(&keys, Frame { backend: 1, now: 0, route_epoch: 0 });
    let flows = site.flows::<V4>();
    flows.put(&keys.client, &pair.from_client, Put::New).unwrap();
    flows.put(&keys.backend, &pair.from_backend, Put::New).unwrap();
    assert_eq!(held.offer(&site.splicer), Answer::Refused(Refusal::TupleTaken));
    let successor = site.successor();
    assert_eq!(site.entries(&kept), entries);
    site.assert_untouched(&mut held);
    assert_eq!(held.offer(&successor), Answer::Spliced);
}
