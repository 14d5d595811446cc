//! `lb-agent doctor` on a host that is well, and on one that is not.

use std::{fs, net::TcpListener, path::Path};

use lb_agent::bpf::lock::RUN_DIR;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    edge::{ADMIN, Edge, VIP},
    network::{text, wait_until},
    sidecar::config,
};

const BACKENDS: [(&str, &str); 1] = [("b2", "10.2.0.2:9000")];

/// Exit code, and what was found of each thing.
fn examined(edge: &Edge, config: &str) -> (Option<i32>, Vec<(String, String, String)>) {
    edge.save(config);
    let output = edge.output(&format!("doctor --json --config {}", edge.config_file().display()));
    let findings: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output)));
    let of = |it: &Value, key: &str| it[key].as_str().unwrap_or_default().to_owned();
    let findings = findings.iter().map(|it| (of(it, "level"), of(it, "thing"), of(it, "what")));
    (output.status.code(), findings.collect())
}

fn level<'a>(findings: &'a [(String, String, String)], thing: &str) -> Option<&'a str> {
    findings.iter().find(|it| it.1 == thing).map(|it| it.0.as_str())
}

#[test]
fn a_host_that_is_well_has_no_problem() {
    let edge = Edge::new();
    let (code, findings) = examined(&edge, &config(&edge, "", &BACKENDS));
    let problems: Vec<_> = findings.iter().filter(|it| it.0 == "problem").collect();
    assert!(problems.is_empty() && code == Some(0), "{problems:?}");
    for thing in
        ["kernel", "BPF JIT", "BPF features", "capabilities", "interface front0", "XDP on back0"]
    {
        assert_eq!(level(&findings, thing), Some("ok"), "{thing}: {findings:?}");
    }
    assert_eq!(level(&findings, &format!("port {ADMIN} of admin API")), Some("ok"), "{findings:?}");
    let lock = Path::new(RUN_DIR).join(format!("{}.lock", edge.name));
    assert!(!lock.exists(), "it changes nothing");
}

#[test]
fn what_is_wrong_is_found_with_a_remedy() {
    let edge = Edge::new();
    let taken = edge.netns.run(|| TcpListener::bind(ADMIN)).unwrap();
    edge.netns.ip("link set front0 down");
    let config = config(&edge, "", &[("b2", "10.2.0.2:9000"), ("far", "10.9.0.2:9000")]);
    let config = config.replacen("[\"front0\", \"back0\"]", "[\"front0\", \"back0\", \"eth9\"]", 1);
    let (code, findings) = examined(&edge, &config);
    assert_eq!(code, Some(1));
    let port = format!("port {ADMIN} of admin API");
    for thing in ["interface front0", "interface eth9", "way to 10.9.0.2", &port] {
        assert_eq!(level(&findings, thing), Some("problem"), "{thing}: {findings:?}");
    }
    drop(taken);

    let output = edge.output(&format!("doctor --config {}", edge.config_file().display()));
    let text = text(&output);
    assert!(text.contains("problem interface eth9: there is none\n        create it"), "{text}");
    assert!(text.contains("3 problems"), "{text}");
}

#[test]
fn an_edge_that_runs_is_not_in_its_own_way() {
    let mut edge = Edge::new();
    let config = config(&edge, "", &BACKENDS);
    edge.start(&config);
    let (code, findings) = examined(&edge, &config);
    assert_eq!((code, level(&findings, "ports")), (Some(0), Some("ok")), "{findings:?}");
    let foreign = findings.iter().any(|it| it.2.contains("is not this edge's"));
    assert!(!foreign, "{findings:?}");
}

#[test]
fn workers_that_have_lost_their_agent_are_not_to_be_ended() {
    let mut edge = Edge::new();
    let config = config(&edge, "", &BACKENDS);
    edge.start(&config);
    wait_until("the workers serve", || {
        edge.status().sidecar.is_some_and(|it| it.workers.iter().all(|it| it.state == "serving"))
    });
    edge.signal(Signal::SIGKILL);
    edge.wait();
    let lock = Path::new(RUN_DIR).join(format!("{}.lock", edge.name));
    let before = fs::read_to_string(&lock).unwrap();
    let (code, findings) = examined(&edge, &config);
    let port = format!("port {VIP} of service \"chat\"");
    assert_eq!((code, level(&findings, &port)), (Some(0), Some("ok")), "{findings:?}");
    assert_eq!(fs::read_to_string(&lock).unwrap(), before, "it changes nothing");
}
