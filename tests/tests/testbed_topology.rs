//! The networks carry traffic as they should, with no program of ours in the edge. Needs root.

use tests::privilege::require_root;
use tests::topology::{Arms, Return, Topology};

fn ping(lab: &Topology, target: impl std::fmt::Display) {
    let target = target.to_string();
    lab.client(0).exec("ping", &["-c1", "-W2", &target]).unwrap();
}

#[test]
fn a_device_can_go_down_away_and_come_back() {
    require_root();
    let lab = Topology::builder().backends(1).build().unwrap();
    let edge = lab.edge().port("eth1");
    let index = || lab.edge().run(|| nix::net::if_::if_nametoindex("eth1"));
    let first = index().unwrap();
    let reaches = || {
        ping(&lab, lab.backend(0).v4());
        ping(&lab, lab.backend(0).v6());
    };
    reaches();
    edge.down().unwrap();
    edge.up().unwrap();
    reaches();
    edge.unplug().unwrap();
    edge.plug().unwrap();
    reaches();
    edge.delete().unwrap();
    assert!(index().is_err());
    edge.create().unwrap();
    assert_ne!(index().unwrap(), first);
    reaches();
}

#[test]
fn both_arms_and_ways_of_return_connect_everybody() {
    require_root();
    for arms in [Arms::One, Arms::Two] {
        for returns in [Return::Edge, Return::Direct] {
            let lab = Topology::builder().backends(2).arms(arms).returns(returns).build().unwrap();
            assert_eq!(lab.router().is_some(), (arms, returns) == (Arms::Two, Return::Direct));
            for backend in lab.backends() {
                ping(&lab, backend.v4());
                ping(&lab, backend.v6());
            }
        }
    }
}
