//! Relayed connections outlive what happens at an edge, and end as they shall when they have to. Needs root.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::chat::{Failure, Load, LoadConfig};
use tests::edge::{DrainConfig, Forward, L7Config, Worker};
use tests::effort;
use tests::owner::OwnedDir;
use tests::privilege::require_root;
use tests::process::open_many_files;
use tests::seed::seed;
use tests::site::{CHAT, Plan, Site, WEB, server_name};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(120);
/// Where the number of connections does not matter.
const CHATS: usize = 90;

fn plan(what: &str, l7: L7Config) -> Plan {
    require_root();
    let l7 = L7Config { spliced: false, ..l7 };
    Plan { l7: Some(l7), ..Plan::new(Forward::Nat, seed(what)) }
}

/// Starts so many relayed chats and waits until all of them are open.
fn start(site: &Site, config: LoadConfig) -> Load {
    let load = Load::start(Some(site.lab.client(0)), config).unwrap();
    load.wait_connected(LATER).unwrap();
    load
}

fn nothing_was_lost(load: Load) {
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
}

/// The workers, once their counts say that so many connections are open.
fn workers(site: &Site, connections: usize) -> Vec<Worker> {
    let what = format!("{connections} connections are counted");
    let sum = |workers: &[Worker]| workers.iter().map(|it| it.connections).sum::<u64>();
    let wish = |status: &tests::edge::Status| sum(&status.workers()) == connections as u64;
    site.edge.wait_for(&what, SOON, wish).unwrap().0.workers()
}

fn pids(workers: &[Worker]) -> BTreeSet<u32> {
    workers.iter().map(|worker| worker.pid).collect()
}

/// New clients are served, over IPv4 and IPv6.
fn newcomers_are_served(site: &Site) {
    for target in site.listeners(WEB) {
        for _ in 0..4 {
            site.knock(target, None).unwrap();
        }
    }
}

#[test]
fn thousands_outlive_a_reload_a_killed_agent_and_the_death_of_others_backends() {
    const VICTIM: usize = 1;
    let connections = effort::choose(2_000, 15_000);
    open_many_files().unwrap();
    let plan = plan("thousands", L7Config::default());
    // Each address has some thousands of ports towards a backend.
    let sources: Vec<_> = (101..=104).map(|host| format!("10.2.0.{host}")).collect();
    let more_v6: Vec<_> = (1..=3).map(|host| format!("fd02::1:{host}")).collect();
    let lab = plan.topology().unwrap();
    for source in &sources {
        lab.edge().ip(&format!("address add {source}/24 dev eth1")).unwrap();
    }
    for source in &more_v6 {
        lab.edge().ip(&format!("address add {source}/64 dev eth1 nodad")).unwrap();
    }
    let mut config = plan.config(&lab);
    let more = sources.iter().chain(&more_v6).map(|it| it.parse::<IpAddr>().unwrap());
    config.source_addresses.extend(more);
    let mut site = plan.populate(lab, config).unwrap();

    // Mostly idle, as chats are.
    let load = LoadConfig {
        interval: effort::choose(Duration::from_secs(2), Duration::from_secs(10)),
        message: (1, 128),
        ramp: Duration::from_micros(600),
        connect_timeout: LATER,
        ..site.chats_of(WEB, connections)
    };
    let load = start(&site, load);
    let before = workers(&site, connections);
    for worker in &before {
        let share = worker.connections as f64 / connections as f64;
        assert!((0.4..=0.6).contains(&share), "not an even share: {before:?}");
    }

    site.edge.configure(|config| config.service(WEB).backend("chat-3").weight = 50).unwrap();
    site.edge.reload().unwrap();
    let applied = |status: &tests::edge::Status| status.weight(WEB, "chat-3") == Some(50);
    site.edge.wait_for("the reload is applied", SOON, applied).unwrap();
    load.wait_progress(1, LATER).unwrap();

    site.edge.kill().unwrap();
    load.wait_progress(1, LATER).unwrap();
    newcomers_are_served(&site);
    site.edge.run().unwrap();
    site.edge.wait_all_up().unwrap();
    load.wait_progress(1, LATER).unwrap();
    assert_eq!(pids(&workers(&site, connections)), pids(&before), "the agent found its workers");
    let stats = load.stats();
    assert_eq!((stats.errors, stats.reconnects), (0, 0), "{stats}");

    let victim = server_name(CHAT, VICTIM);
    let before = load.stats();
    let own = before.connected_to(&victim);
    assert!(own > 0, "{before}");
    site.kill_chat(VICTIM).unwrap();
    let moved = |stats: &tests::chat::LoadStats| {
        stats.connected == stats.connections && stats.connected_to(&victim) == 0
    };
    let now = load.wait_until(LATER, moved).unwrap();
    assert!(now.reconnects >= own, "{own} were with it: {now}");
    let now = load.wait_progress(1, LATER).unwrap();
    let disturbed = now.disturbed_beside(&before, &victim);
    assert!(disturbed.is_empty(), "{} of others: {:?}", disturbed.len(), disturbed[0]);
    let stats = load.stop();
    assert_eq!((stats.wrong, stats.connected), (0, 0), "{stats}");
}

#[test]
fn a_killed_worker_loses_only_its_own_and_is_replaced() {
    let site = plan("killed worker", L7Config::default()).build().unwrap();
    let load = start(&site, site.chats_of(WEB, CHATS));
    let before = workers(&site, CHATS);
    let [victim, other] = before.as_slice() else { panic!("not two: {before:?}") };
    assert!(victim.connections > 0 && other.connections > 0, "{before:?}");

    let pid = Pid::from_raw(victim.pid.cast_signed());
    kill(pid, Signal::SIGKILL).unwrap();
    // Its share of the newcomers waits in the backlog until its successor takes them.
    newcomers_are_served(&site);
    let stats = load.wait_until(SOON, |stats| stats.connected == CHATS as u64).unwrap();
    assert_eq!((stats.reconnects, stats.wrong), (victim.connections, 0), "{stats}");
    let after = workers(&site, CHATS);
    let [heir, same] = after.as_slice() else { panic!("not two: {after:?}") };
    assert_eq!((same.pid, heir.index), (other.pid, victim.index), "{after:?}");
    assert!(heir.pid != victim.pid && heir.is_serving(), "{after:?}");
    load.wait_progress(3, SOON).unwrap();
    assert_eq!(load.stop().wrong, 0);
}

#[test]
fn an_upgrade_loses_nothing_and_the_old_workers_finish() {
    // Longer than the site, which is unloaded with the program in it.
    let scratch = OwnedDir::scratch("upgrade").unwrap();
    let mut site = plan("l7 upgrade", L7Config::default()).build().unwrap();
    let load = start(&site, site.chats_of(WEB, CHATS));
    let before = pids(&workers(&site, CHATS));

    let successor = scratch.path().join("lb-agent");
    std::fs::copy(site.edge.agent(), &successor).unwrap();
    site.edge.terminate().unwrap();
    load.wait_progress(3, LATER).unwrap();
    newcomers_are_served(&site);
    site.edge.upgrade_to(&successor);
    site.edge.run().unwrap();
    let taken_over = |status: &tests::edge::Status| {
        let serving = status.serving();
        serving.len() == before.len() && pids(&serving).is_disjoint(&before)
    };
    let (status, _) = site.edge.wait_for("new workers serve", SOON, taken_over).unwrap();
    for worker in status.serving() {
        let program = Path::new("/proc").join(worker.pid.to_string()).join("exe");
        assert_eq!(std::fs::read_link(program).unwrap(), successor);
    }
    newcomers_are_served(&site);
    load.wait_progress(5, LATER).unwrap();
    nothing_was_lost(load);
    // Those that were there before have nothing left to do.
    let gone = |status: &tests::edge::Status| pids(&status.workers()).is_disjoint(&before);
    site.edge.wait_for("the old workers are gone", SOON, gone).unwrap();
}

#[test]
fn a_draining_backend_keeps_its_own_until_the_deadline_and_closes_them_at_the_pace() {
    const DRAINED: &str = "chat-2";
    let deadline = Duration::from_secs(8);
    let drain = DrainConfig { deadline, rate: 10 };
    let mut site = plan("drain", L7Config { drain, ..L7Config::default() }).build().unwrap();
    let unhurried = Duration::from_millis(100);
    let load = start(&site, LoadConfig { interval: unhurried, ..site.chats_of(WEB, CHATS) });
    let target = site.listeners(WEB)[0];
    // A client of each backend.
    let mut cookies = std::collections::BTreeMap::new();
    while cookies.len() < 3 {
        let knock = site.knock(target, None).unwrap();
        cookies.insert(knock.backend.clone(), knock.cookie().unwrap().to_owned());
    }
    let own = load.stats().connected_to(DRAINED);
    assert!(own >= 20, "{}", load.stats());

    site.edge.configure(|config| config.service(WEB).backend(DRAINED).drain = true).unwrap();
    let start = Instant::now();
    site.edge.reload().unwrap();
    // From the moment at which it is known: nobody new.
    let mut newcomers = 0;
    while newcomers < 12 {
        let knock = site.knock(target, None).unwrap();
        newcomers = if knock.backend == DRAINED { 0 } else { newcomers + 1 };
        assert!(start.elapsed() < deadline, "newcomers still come to {DRAINED}");
    }
    let holder = site.knock(target, Some(&cookies[DRAINED])).unwrap();
    assert_eq!(holder.backend, DRAINED, "it keeps who belongs to it");
    let before = load.stats();
    assert!(start.elapsed() < deadline, "too slow a machine for this deadline");
    assert_eq!((before.errors, before.connected_to(DRAINED)), (0, own), "{before}");

    // After the deadline they are closed one by one: a tenth of a second each.
    let moved = |stats: &tests::chat::LoadStats| stats.errors > 0;
    load.wait_until(SOON, moved).unwrap();
    let first = Instant::now();
    assert!(first - start >= deadline - Duration::from_millis(100), "{:?}", first - start);
    let all = load.wait_until(SOON, |stats| {
        stats.connected == stats.connections && stats.connected_to(DRAINED) == 0
    });
    let all = all.unwrap();
    let took = first.elapsed();
    let paced = Duration::from_millis(100) * u32::try_from(own).unwrap();
    assert!(took >= paced.mul_f64(0.5), "{own} in {took:?}, not at the pace");
    assert!(took <= paced.mul_f64(2.0) + Duration::from_secs(2), "{own} in {took:?}");
    assert_eq!(all.failures.get(&Failure::Closed), Some(&own), "{all}");
    for client in all.per_connection.iter().filter(|it| it.errors > 0) {
        let error = client.last_error.as_deref().unwrap();
        assert!(error.contains("Restart"), "1012 it should be: {error}");
    }
    assert!(all.disturbed_beside(&before, DRAINED).is_empty(), "{all}");
    // Whoever belonged to it belongs to another one from now on.
    let holder = site.knock(target, Some(&cookies[DRAINED])).unwrap();
    assert_ne!(holder.backend, DRAINED);
    let again = site.knock(target, holder.cookie()).unwrap();
    assert_eq!((&again.backend, again.set_cookie), (&holder.backend, None));
    assert_eq!(load.stop().wrong, 0);
}
