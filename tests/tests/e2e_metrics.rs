//! The metrics, alerts and dashboard as Prometheus' own tool reads them.

use std::{path::Path, process::Command, time::Duration};

use tests::{
    edge::{Forward, L7Config},
    process::{run, run_with_input},
    site::{Plan, WEB},
};

const SOON: Duration = Duration::from_secs(15);

/// Each handshake is in each of these.
const HANDSHAKES: [&str; 3] =
    ["client_handshake_seconds", "backend_connect_seconds", "backend_answer_seconds"];

/// Of the service of the chats; 0 if there is none yet.
fn count(text: &str, metric: &str) -> u64 {
    let line = format!("sluice_{metric}_count{{service=\"{WEB}\"}} ");
    let count = text.lines().find_map(|it| it.strip_prefix(&line));
    count.map_or(0, |it| it.parse().unwrap())
}

fn rules(name: &str) -> String {
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/prometheus");
    packaging.join(name).to_str().unwrap().to_owned()
}

#[test]
fn what_an_edge_with_traffic_shows_is_without_fault() {
    let mut plan = Plan::new(Forward::Nat, 6);
    plan.l7 = Some(L7Config::default());
    let site = plan.build().unwrap();
    site.visit(10).unwrap();
    let chats = site.start(site.chats_of(WEB, 10)).unwrap();
    chats.wait_progress(1, SOON).unwrap();
    // What workers have to tell comes once a second, and from each of them by itself.
    let start = std::time::Instant::now();
    let text = loop {
        let text = site.edge.get("/metrics").unwrap().body;
        if HANDSHAKES.iter().all(|metric| count(&text, metric) >= 10) {
            break text;
        }
        assert!(start.elapsed() < SOON, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(chats);
    let said = run_with_input(Command::new("promtool").args(["check", "metrics"]), &text).unwrap();
    assert_eq!(said.trim(), "");
}

#[test]
fn alerts_are_well_formed_and_fire_when_they_should() {
    run(Command::new("promtool").args(["check", "rules", &rules("sluice.rules.yml")])).unwrap();
    run(Command::new("promtool").args(["test", "rules", &rules("sluice.rules.test.yml")])).unwrap();
}
