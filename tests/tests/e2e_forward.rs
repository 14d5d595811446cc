//! Every way of forwarding carries every byte, over both IP versions and bad wires. Needs root.

use std::time::Duration;

use lb_common::outcome::{DropReason, Event};
use tests::edge::Forward;
use tests::effort;
use tests::ping::ping;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{BULK, CHAT, Plan, Site};
use tests::topology::Arms;

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(120);
/// Chats at a time; they take turns over the listeners and so over the IP versions.
const CHATS: usize = 24;

fn plan(forward: Forward, what: &str) -> Plan {
    Plan::new(forward, seed(what))
}

/// Chats and bulk streams on bad wires, and the proof that XDP and nobody else forwarded them.
fn carries_everything(site: &Site) {
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    load.wait_progress(effort::choose(15, 300), LATER).unwrap();
    for target in site.listeners(BULK) {
        let report = site.echo(target, effort::choose(512 << 10, 8 << 20)).unwrap();
        assert!(report.backend.starts_with(BULK), "{report:?}");
    }
    load.wait_progress(5, LATER).unwrap();
    site.smoothen();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    assert!(stats.backends.len() > 1, "{stats}");

    let status = site.edge.status().unwrap();
    let sum = |service: &str, counter: &str| -> u64 {
        let config = site.edge.config().services.iter().find(|it| it.name == service).unwrap();
        config.backends.iter().map(|it| status.counter(service, &it.name, counter)).sum()
    };
    assert_eq!(sum(CHAT, "opened"), stats.sessions, "{status}");
    assert_eq!(sum(BULK, "opened"), site.listeners(BULK).len() as u64, "{status}");
    assert!(sum(CHAT, "to_backend_packets") >= stats.messages, "{status}");
    let returns = sum(CHAT, "to_client_packets");
    let through_edge = site.edge.config().services[0].forward == Forward::Nat;
    assert_eq!(returns >= stats.messages, through_edge, "{status}");
    for reason in [DropReason::Inconsistent, DropReason::NoBackend, DropReason::NatPortsExhausted] {
        assert_eq!(status.dropped(reason), 0, "{reason}: {status}");
    }
}

#[test]
fn nat_carries_every_byte() {
    require_root();
    carries_everything(&plan(Forward::Nat, "nat").build().unwrap());
}

#[test]
fn nat_with_one_arm_carries_every_byte() {
    require_root();
    let plan = Plan { arms: Arms::One, ..plan(Forward::Nat, "nat with one arm") };
    carries_everything(&plan.build().unwrap());
}

#[test]
fn nat_in_generic_mode_carries_every_byte() {
    require_root();
    let plan = plan(Forward::Nat, "nat in generic mode");
    let site = plan.build_with(|config| config.xdp = "generic").unwrap();
    let link = site.edge.namespace().exec("ip", &["link", "show", "eth0"]).unwrap();
    assert!(link.contains("xdpgeneric"), "{link}");
    carries_everything(&site);
}

#[test]
fn dsr_carries_every_byte() {
    require_root();
    carries_everything(&plan(Forward::Dsr, "dsr").build().unwrap());
}

#[test]
fn dsr_with_one_arm_carries_every_byte() {
    require_root();
    let plan = Plan { arms: Arms::One, ..plan(Forward::Dsr, "dsr with one arm") };
    carries_everything(&plan.build().unwrap());
}

#[test]
fn ipip_carries_every_byte() {
    require_root();
    carries_everything(&plan(Forward::Ipip, "ipip").build().unwrap());
}

#[test]
fn ipv4_in_ipv6_carries_every_byte() {
    require_root();
    let plan = Plan { v4_in_v6: true, ..plan(Forward::Ipip, "IPv4 in IPv6") };
    carries_everything(&plan.build().unwrap());
}

#[test]
fn what_does_not_fit_the_tunnel_is_answered_and_the_transfer_completes() {
    require_root();
    for v4_in_v6 in [false, true] {
        let plan = Plan { backends: 1, v4_in_v6, ..plan(Forward::Ipip, "path MTU") };
        let site = plan.build().unwrap();
        for target in site.listeners(BULK) {
            let before = site.edge.status().unwrap().event(Event::PacketTooBigSent);
            site.echo(target, effort::choose(4 << 20, 16 << 20)).unwrap();
            let after = site.edge.status().unwrap().event(Event::PacketTooBigSent);
            assert!(after > before, "{target}: no packet was too big");
        }
    }
}

#[test]
fn addresses_that_only_xdp_has_answer_pings() {
    require_root();
    let plan = Plan { backends: 1, ..plan(Forward::Nat, "ping") };
    let mut site = plan.build().unwrap();
    let client = site.lab.client(0);
    let answers = |payload: &[u8]| {
        let vips = site.lab.vips().iter();
        vips.map(|vip| ping(client, *vip, payload, SOON).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(answers(b"is anybody there?"), [true; 2]);
    assert_eq!(answers(&[7; 1400]), [true; 2]);
    let status = site.edge.status().unwrap();
    assert_eq!(status.event(Event::EchoAnswered), 4, "{status}");
    // Nobody but XDP has the address: it answers without an agent, too.
    site.edge.kill().unwrap();
    for vip in site.lab.vips() {
        assert!(ping(site.lab.client(0), *vip, b"and now?", SOON).unwrap());
    }
}
