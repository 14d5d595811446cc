//! The data plane outlives the agent, and the agent outlives the interface. Needs root.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::chat::{Exchange, Load, exchange};
use tests::edge::{FlowLine, Forward};
use tests::effort;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{BULK, CHAT, Plan, Site};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(120);
const CHATS: usize = 40;

/// The chats' flows, without what changes with every packet.
fn flows(site: &Site) -> BTreeSet<FlowLine> {
    site.edge.flows().unwrap().into_iter().filter(|flow| flow.service == CHAT).collect()
}

/// All chats' flows, once each is open.
fn open_flows(site: &Site) -> BTreeSet<FlowLine> {
    let start = Instant::now();
    loop {
        let now = flows(site);
        if now.iter().all(FlowLine::is_open) {
            return now;
        }
        assert!(start.elapsed() < LATER, "not open: {now:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Waits until all these flows are in the table as they were. On a wire that flips bits a flow can seem
/// to end, until its sender's next segment shows that it goes on.
fn wait_for_same(site: &Site, before: &BTreeSet<FlowLine>) {
    let start = Instant::now();
    loop {
        let now = flows(site);
        if before.is_subset(&now) {
            return;
        }
        let lost: Vec<_> = before.difference(&now).collect();
        assert!(start.elapsed() < LATER, "not as they were: {lost:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn nothing_was_lost(site: &Site, load: Load) {
    site.smoothen();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
}

#[test]
fn flows_outlive_a_killed_agent_and_its_successor_adopts_them() {
    require_root();
    for forward in [Forward::Nat, Forward::Dsr] {
        let seed = seed("killed agent");
        let mut site = Plan::new(forward, seed).build().unwrap();
        let load = site.start(site.chats(CHATS)).unwrap();
        site.roughen();
        load.wait_progress(3, LATER).unwrap();
        let before = open_flows(&site);
        assert_eq!(before.len(), CHATS);

        // A stream that is under way from before the kill until after the restart.
        let target = site.listeners(BULK)[0];
        let plan = Exchange {
            timeout: LATER,
            ..Exchange::new(target, seed, effort::choose(2 << 20, 16 << 20))
        };
        let client = site.lab.client(0).handle().clone();
        let stream = std::thread::spawn(move || exchange(Some(&client), &plan));

        site.edge.kill().unwrap();
        load.wait_progress(effort::choose(5, 100), LATER).unwrap();
        wait_for_same(&site, &before);
        // Without an agent new clients get in, too.
        site.visit(4).unwrap();
        site.edge.run().unwrap();
        site.edge.wait_all_up().unwrap();
        load.wait_progress(effort::choose(5, 100), LATER).unwrap();
        wait_for_same(&site, &before);
        stream.join().unwrap().unwrap();
        nothing_was_lost(&site, load);
    }
}

#[test]
fn flows_outlive_an_agent_that_is_killed_again_and_again() {
    require_root();
    let mut site = Plan::new(Forward::Nat, seed("killed again and again")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    for _ in 0..effort::choose(3, 10) {
        // The next one may still be on its way.
        site.edge.kill().unwrap();
        site.edge.run().unwrap();
        load.wait_progress(2, LATER).unwrap();
    }
    site.edge.wait_all_up().unwrap();
    nothing_was_lost(&site, load);
}

#[test]
fn flows_outlive_an_upgrade() {
    require_root();
    let mut site = Plan::new(Forward::Nat, seed("upgrade")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    site.roughen();
    load.wait_progress(3, LATER).unwrap();
    let before = open_flows(&site);

    let scratch = OwnedDir::scratch("upgrade").unwrap();
    let successor = scratch.path().join("lb-agent");
    std::fs::copy(site.edge.agent(), &successor).unwrap();
    site.edge.terminate().unwrap();
    load.wait_progress(3, LATER).unwrap();
    site.edge.upgrade_to(&successor);
    site.edge.run().unwrap();
    let running = Path::new("/proc").join(site.edge.process().pid().to_string()).join("exe");
    assert_eq!(std::fs::read_link(running).unwrap(), successor);
    site.edge.wait_all_up().unwrap();
    load.wait_progress(effort::choose(5, 100), LATER).unwrap();
    wait_for_same(&site, &before);
    nothing_was_lost(&site, load);
}

#[test]
fn an_interface_that_goes_away_and_comes_back_is_served_again() {
    require_root();
    let site = Plan::new(Forward::Nat, seed("interface")).build().unwrap();
    let load = site.start(site.chats(CHATS)).unwrap();
    load.wait_progress(3, LATER).unwrap();
    for device in ["eth0", "eth1"] {
        let port = site.lab.edge().port(device);
        port.delete().unwrap();
        port.create().unwrap();
        // With another index, and nothing attached until the agent sees it.
        load.wait_progress(5, LATER).unwrap();
        site.edge.wait_all_up().unwrap();
        site.visit(10).unwrap();
        port.down().unwrap();
        port.up().unwrap();
        load.wait_progress(5, LATER).unwrap();
        port.unplug().unwrap();
        port.plug().unwrap();
        load.wait_progress(5, LATER).unwrap();
    }
    // Its backends were out of reach, and their clients perhaps reset: but no byte was wrong.
    let stats = load.wait_until(SOON, |stats| stats.connected == stats.connections).unwrap();
    assert_eq!(stats.wrong, 0, "{stats}");
    let stats = load.stop();
    assert_eq!(stats.wrong, 0, "{stats}");
}
