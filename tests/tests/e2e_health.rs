//! Backends that die and return: noticed in time, and nobody else feels it. Needs root.

use std::time::{Duration, Instant};

use tests::chat::{EchoServer, Failure, LoadStats};
use tests::edge::Forward;
use tests::effort;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{CHAT, Plan, Site};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);
const CHATS: usize = 60;
/// What two busy cores may add to the promised time: the agent's timers, and our own looking.
const SCHEDULING: Duration = Duration::from_millis(250);

const VICTIM: usize = 1;
const VICTIM_NAME: &str = "chat-2";

/// Waits until both addresses of the victim are known to be dead, and checks that it was in time.
fn noticed_in_time(site: &Site, since: Instant) {
    let bound = site.edge.config().services[0].health.bound();
    let both_down = |status: &tests::edge::Status| {
        status.is_down(CHAT, VICTIM_NAME) && status.is_down(CHAT, "chat-2-v6")
    };
    let (_, at) = site.edge.wait_for("the victim is down", SOON, both_down).unwrap();
    let took = at - since;
    eprintln!("noticed after {took:?}, to be noticed within {bound:?}");
    assert!(took <= bound + SCHEDULING, "noticed after {took:?}, later than {bound:?}");
}

fn nobody_else_was_disturbed(before: &LoadStats, now: &LoadStats) {
    let disturbed = now.disturbed_beside(before, VICTIM_NAME);
    assert!(disturbed.is_empty(), "{} connections, the first: {:?}", disturbed.len(), disturbed[0]);
    assert_eq!(now.wrong, 0, "{now}");
}

#[test]
fn a_killed_server_is_noticed_and_its_clients_move() {
    require_root();
    let mut site = Plan::new(Forward::Nat, seed("killed server")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    let before = load.wait_progress(3, LATER).unwrap();
    let victims = before.connected_to(VICTIM_NAME);
    assert!(victims > 0, "{before}");

    let killed = Instant::now();
    site.kill_chat(VICTIM).unwrap();
    noticed_in_time(&site, killed);
    let moved = |stats: &LoadStats| {
        stats.connected == stats.connections && stats.connected_to(VICTIM_NAME) == 0
    };
    load.wait_until(LATER, moved).unwrap();
    let now = load.wait_progress(effort::choose(5, 100), LATER).unwrap();
    assert!(now.reconnects >= victims, "{now}");
    nobody_else_was_disturbed(&before, &now);

    // It comes back and gets its share of new connections, and those who moved stay where they are.
    site.revive_chat(VICTIM).unwrap();
    site.edge.wait_all_up().unwrap();
    let newcomers = site.start(site.chats(CHATS)).unwrap();
    assert!(newcomers.stats().connected_to(VICTIM_NAME) > 0, "{}", newcomers.stats());
    let last = load.wait_progress(3, LATER).unwrap();
    assert_eq!((last.errors, last.sessions), (now.errors, now.sessions), "{last}");
    site.smoothen();
    for stats in [load.stop(), newcomers.stop()] {
        assert_eq!(stats.wrong, 0, "{stats}");
    }
}

#[test]
fn clients_of_a_machine_that_is_gone_are_reset() {
    require_root();
    let site = Plan::new(Forward::Nat, seed("machine that is gone")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    let before = load.wait_progress(3, LATER).unwrap();
    let victims = before.connected_to(VICTIM_NAME);
    assert!(victims > 0, "{before}");

    let cut = Instant::now();
    site.cut(VICTIM, true);
    noticed_in_time(&site, cut);
    let moved = |stats: &LoadStats| {
        stats.connected == stats.connections && stats.connected_to(VICTIM_NAME) == 0
    };
    // The machine says nothing any more: whoever has moved was told by the edge.
    load.wait_until(SOON, moved).unwrap();
    let now = load.wait_progress(5, LATER).unwrap();
    assert!(now.failures.get(&Failure::Reset).is_some_and(|n| *n >= victims), "{now}");
    assert!(!now.failures.contains_key(&Failure::Stalled), "{now}");
    nobody_else_was_disturbed(&before, &now);

    site.cut(VICTIM, false);
    site.edge.wait_all_up().unwrap();
    let newcomers = site.start(site.chats(CHATS)).unwrap();
    assert!(newcomers.stats().connected_to(VICTIM_NAME) > 0, "{}", newcomers.stats());
    for stats in [load.stop(), newcomers.stop()] {
        assert_eq!(stats.wrong, 0, "{stats}");
    }
}

/// A site whose chats are judged by another port, so that all can be dead without being so.
fn site_judged_by_another_port(fail_open: bool) -> (Site, Vec<EchoServer>) {
    const PROBED: u16 = 9900;
    let plan = Plan::new(Forward::Nat, seed("all down"));
    let lab = plan.topology().unwrap();
    let mut config = plan.config(&lab);
    let service = config.service(CHAT);
    service.fail_open = fail_open;
    service.health.kind = "tcp";
    service.health.path = None;
    service.health.port = Some(PROBED);
    let probed = lab.backends().iter().map(|backend| {
        let listen = [format!("0.0.0.0:{PROBED}"), format!("[::]:{PROBED}")];
        let listen = listen.map(|text| text.parse().unwrap());
        EchoServer::start(Some(backend), "probed", &listen).unwrap()
    });
    let probed = probed.collect();
    (plan.populate(lab, config).unwrap(), probed)
}

fn all_down(site: &Site) {
    let names: Vec<_> =
        site.edge.config().services[0].backends.iter().map(|b| b.name.clone()).collect();
    let down = |status: &tests::edge::Status| names.iter().all(|name| status.is_down(CHAT, name));
    site.edge.wait_for("all are down", SOON, down).unwrap();
}

#[test]
fn when_all_are_down_all_are_tried() {
    require_root();
    let (site, probed) = site_judged_by_another_port(true);
    assert!(!site.edge.status().unwrap().fails_open(CHAT));
    drop(probed);
    all_down(&site);
    site.edge.wait_for("it fails open", SOON, |status| status.fails_open(CHAT)).unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    let stats = load.wait_progress(5, LATER).unwrap();
    assert_eq!(stats.backends.len(), 3, "{stats}");
    site.smoothen();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

#[test]
fn when_all_are_down_and_that_is_wanted_nobody_gets_in() {
    require_root();
    let (site, probed) = site_judged_by_another_port(false);
    drop(probed);
    all_down(&site);
    let target = site.listeners(CHAT)[0];
    let connect = || std::net::TcpStream::connect_timeout(&target, Duration::from_millis(500));
    let denied = |_: &tests::edge::Status| site.lab.client(0).run(connect).is_err();
    site.edge.wait_for("nobody gets in", SOON, denied).unwrap();
    let status = site.edge.status().unwrap();
    assert!(status.dropped(lb_common::outcome::DropReason::NoBackend) > 0, "{status}");
}
