//! The metrics, alerts and dashboard as Prometheus' own tool reads them.

use std::{path::Path, process::Command, time::Duration};

use tests::{
    edge::{Forward, L7Config},
    process::{run, run_with_input},
    site::{Plan, WEB},
};

const SOON: Duration = Duration::from_secs(15);

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
    // What workers have to tell comes once a second.
    let told = |text: &str| text.contains("sluice_request_seconds_bucket{service=\"web\"");
    let start = std::time::Instant::now();
    let text = loop {
        let text = site.edge.get("/metrics").unwrap().body;
        if told(&text) {
            break text;
        }
        assert!(start.elapsed() < SOON, "{text}");
        std::thread::sleep(Duration::from_millis(50));
    };
    drop(chats);
    for metric in ["client_handshake_seconds", "backend_connect_seconds", "backend_answer_seconds"]
    {
        let line = format!("sluice_{metric}_count{{service=\"web\"}} ");
        let count = text.lines().find_map(|it| it.strip_prefix(&line)).map(str::parse::<u64>);
        assert!(count.is_some_and(|it| it.unwrap() >= 10), "{metric}: {text}");
    }
    let said = run_with_input(Command::new("promtool").args(["check", "metrics"]), &text).unwrap();
    assert_eq!(said.trim(), "");
}

#[test]
fn alerts_are_well_formed_and_fire_when_they_should() {
    run(Command::new("promtool").args(["check", "rules", &rules("sluice.rules.yml")])).unwrap();
    run(Command::new("promtool").args(["test", "rules", &rules("sluice.rules.test.yml")])).unwrap();
}
