//! Which backend a client gets. Needs root.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tests::chat::LoadConfig;
use tests::edge::Forward;
use tests::effort;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{CHAT, Plan};

#[test]
fn shares_follow_the_weights() {
    require_root();
    let plan = Plan::new(Forward::Nat, seed("shares"));
    let weights = [300, 200, 100];
    let site = plan
        .build_with(|config| {
            for backend in &mut config.service(CHAT).backends {
                let index = backend.name.as_bytes()[CHAT.len() + 1] - b'1';
                backend.weight = weights[usize::from(index)];
            }
            // So many chats at once keep two processors from answering probes in time.
            let patient = Duration::from_secs(5);
            let health = &mut config.service(CHAT).health;
            (health.interval, health.timeout) = (patient, patient);
            health.rise = 1;
        })
        .unwrap();
    let connections = effort::choose(600, 1500);
    // Only where they come to is looked at: those that are there leave the processors to those that come.
    let seldom = Duration::from_secs(1);
    let load = site.start(LoadConfig { interval: seldom, ..site.chats(connections) }).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    let (all, total) = (connections as f64, weights.iter().sum::<u32>());
    for (index, weight) in weights.into_iter().enumerate() {
        let part = f64::from(weight) / f64::from(total);
        let found = stats.backends[&format!("chat-{}", index + 1)].connections as f64;
        // The clients' ports are random: five standard deviations fail once in a million runs.
        let tolerance = 5.0 * (all * part * (1.0 - part)).sqrt();
        assert!((found - all * part).abs() < tolerance, "chat-{}: {found} of {all}", index + 1);
    }
}

#[test]
fn a_source_address_stays_with_its_backend() {
    require_root();
    const SOURCES: u8 = 21;
    let plan = Plan::new(Forward::Nat, seed("affinity"));
    let site = plan.build_with(|config| config.service(CHAT).affinity = "source").unwrap();
    let mut sources: Vec<IpAddr> = Vec::new();
    for host in 100..100 + SOURCES {
        site.lab
            .client(0)
            .ip(&format!(
                "address add 10.1.0.{host}/24 dev eth0\naddress add fd01::{host}/64 dev eth0 nodad"
            ))
            .unwrap();
        sources.push(format!("10.1.0.{host}").parse().unwrap());
        sources.push(format!("fd01::{host}").parse().unwrap());
    }
    // An odd number of sources and an even one of listeners: each source gets connections in turn.
    let connections = usize::from(SOURCES) * 6;
    let load = site.start(LoadConfig { sources, ..site.chats(connections) }).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    let mut backends: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for report in &stats.per_connection {
        let source = report.local.unwrap().ip();
        backends.entry(source).or_default().insert(report.backend.clone().unwrap());
    }
    assert_eq!(backends.len(), usize::from(SOURCES) * 2);
    assert!(backends.values().all(|of_source| of_source.len() == 1), "{backends:?}");
    for is_ipv4 in [true, false] {
        let of_version = backends.iter().filter(|(source, _)| source.is_ipv4() == is_ipv4);
        let used: BTreeSet<_> = of_version.flat_map(|(_, names)| names).collect();
        assert!(used.len() > 1, "all sources have one backend: {used:?}");
    }
}
