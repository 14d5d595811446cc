//! The description is held to the server, and the server to the description.

use std::collections::{BTreeMap, BTreeSet};

use super::{schema::Schema, *};
use crate::{
    events::{Events, Kind, News},
    overrides::Difference,
    run::{
        explain::{Chosen, Explanation, Step},
        status::{
            Backend, Certificate, Draining, Ejected, Flows, Health, Histogram, Interface,
            LastProbe, Listener, Outcomes, Requests, Route, Service, Sidecar, Status, Table,
            Traffic, Upgrade, Worker, XdpRuns,
        },
    },
};

fn description() -> Value {
    serde_json::from_str(OPENAPI).unwrap()
}

/// Methods and paths as the router has them.
fn routes() -> BTreeSet<(String, String)> {
    let code = include_str!("../mod.rs");
    let lines = code.lines().filter_map(|line| line.trim().strip_prefix(".route(\""));
    let routes = lines.map(|line| {
        let (path, rest) = line.split_once("\", ").unwrap();
        let (method, _) = rest.split_once('(').unwrap();
        (method.to_owned(), path.to_owned())
    });
    routes.collect()
}

#[test]
fn every_page_is_described_and_nothing_else() {
    let description = description();
    let paths = description["paths"].as_object().unwrap();
    let described = paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().keys().map(move |method| (method.clone(), path.clone()))
    });
    let described: BTreeSet<_> = described.collect();
    let routes = routes();
    assert!(routes.len() > 15, "{routes:?}");
    assert_eq!(described, routes);
}

#[test]
fn every_page_that_is_described_is_in_the_documentation() {
    let text = include_str!("../../../../../docs/admin.md");
    for (_, path) in routes() {
        let shown = path.replace("/{action}", "/drain");
        assert!(text.contains(&shown), "{path}");
    }
}

/// A page is answered so, and described so.
async fn promised(description: &Value, at: SocketAddr, page: &str, status: u16) {
    let (head, body) = get(at, page).await;
    assert!(head.contains(&format!(" {status} ")), "{page}: {head} {body}");
    let path = page.split('?').next().unwrap();
    let schema = Schema::of_answer(description, ("get", path), status);
    let value = serde_json::from_str(&body).unwrap();
    let schema = schema.unwrap_or_else(|| panic!("{page}: {status} is not described"));
    assert_eq!(schema.complaints(page, &value), Vec::<String>::new());
}

#[tokio::test]
async fn answers_are_what_is_promised() {
    let description = description();
    // What reads maps cannot answer without a data plane: the tests with one ask for that, too.
    let empty = View::new("edge-1");
    empty.events().add(News::new(Kind::BackendUp, "it is up").at("chat", "a"));
    let server = willing(empty);
    for path in [
        "/v1/status",
        "/v1/services",
        "/v1/backends",
        "/v1/counters",
        "/v1/openapi.json",
        "/v1/events",
    ] {
        promised(&description, server.address, path, 200).await;
    }
    let server = willing(view(""));
    for path in ["/v1/config", "/v1/config/diff"] {
        promised(&description, server.address, path, 200).await;
    }
}

#[tokio::test]
async fn refusals_are_what_is_promised() {
    let description = description();
    let starting = willing(View::new("edge-1"));
    for (page, status) in [
        ("/v1/flows", 503),
        ("/v1/config", 503),
        ("/v1/config/diff", 503),
        ("/v1/flows?limit=many", 422),
        ("/v1/flows?limit=0", 422),
        ("/v1/flows?limit=10001", 422),
        ("/v1/flows?client=nowhere", 422),
        ("/v1/flows?cursor=7", 422),
        ("/v1/flows?from=1", 422),
        ("/v1/events?limit=0", 422),
    ] {
        promised(&description, starting.address, page, status).await;
    }
    let server = willing(view(""));
    for page in ["/v1/status", "/v1/services", "/v1/backends", "/v1/counters", "/v1/flows"] {
        promised(&description, server.address, page, 500).await;
    }
}

fn counts(labels: &[&str]) -> BTreeMap<String, u64> {
    labels.iter().map(|it| ((*it).to_owned(), 1)).collect()
}

fn histogram() -> Histogram {
    Histogram { seconds: 1.5, counts: vec![(Some(100), 1), (None, 2)] }
}

fn outcomes() -> Outcomes {
    Outcomes { events: counts(&["syn_forwarded"]), drops: counts(&["fragment"]) }
}

/// With everything that a backend can have.
fn backend() -> Backend {
    let last =
        LastProbe { ok: false, error: Some("refused".into()), latency_ms: 0.5, ago_seconds: 1.0 };
    Backend {
        name: "a".into(),
        id: Some(1),
        key: Some("k".into()),
        address: "10.2.0.2:9000".into(),
        health: Health {
            state: "up".into(),
            since_seconds: 1.0,
            last: Some(last),
            probes: 2,
            failures: 1,
            history: "x0".into(),
        },
        weight: 100,
        effective_weight: 50,
        draining_until: Some(1),
        share: [("ipv4".to_owned(), 0.5)].into(),
        connections: 3,
        spliced: Some(1),
        traffic: Some(Traffic {
            to_backend_packets: 1,
            to_backend_bytes: 2,
            to_client_packets: 3,
            to_client_bytes: 4,
            picked: 5,
            opened: 6,
            closed: 7,
            reset: 8,
        }),
        requests: Some(Requests { picked: 1, failed: 2, bytes_in: 3, bytes_out: 4 }),
        pool: Some("default".into()),
        ejections: Some(1),
        ejected: Some(Ejected { seconds_left: 1.5, times: 1, reason: "answers of 5xx".into() }),
        why: "it is up".into(),
    }
}

/// With everything that services can have.
fn service(mode: &str) -> Service {
    Service {
        name: mode.to_owned(),
        mode: mode.to_owned(),
        id: Some(1),
        forward: (mode == "l4").then(|| "nat".to_owned()),
        affinity: "none".into(),
        listeners: vec![Listener { address: "203.0.113.10:80".into(), on_host: true }],
        fail_open: false,
        turned_away: false,
        connections: Some(3),
        relayed: Some(1),
        spliced: Some(1),
        ended: counts(&["idle"]),
        flows: [("relay".to_owned(), counts(&["open"]))].into(),
        times: [("request".to_owned(), histogram())].into(),
        outcomes: outcomes(),
        backends: vec![backend()],
        routes: vec![Route { name: "rooms".into(), requests: 1 }],
        pools_down: vec!["default".into()],
        spilling: Some(false),
    }
}

/// Of an edge that has something of everything. Each field is named, so that a new one comes here, too.
fn everything() -> Status {
    Status {
        edge: "edge-1".into(),
        version: "1".into(),
        pid: 1,
        ready: true,
        draining: Some(Draining { until: Some(1), connections: 2, relayed: 1, spliced: 1 }),
        uptime_seconds: 5,
        started: 1,
        upgrade: Some(Upgrade {
            id: "1".into(),
            program: "/usr/sbin/lb-agent".into(),
            from_version: "1".into(),
            from_program_id: 1,
            refused: Some("it has ended".into()),
        }),
        program_id: 1,
        adopted: false,
        config_generation: 1,
        config_taken: 1,
        config_refused: Some("it is empty".into()),
        certificates_refused: Some("they do not belong together".into()),
        interfaces: vec![Interface {
            name: "eth0".into(),
            attached: true,
            index: Some(2),
            xdp: Some("native".into()),
            problem: Some("it was there".into()),
        }],
        services: vec![service("l4"), service("l7")],
        outcomes: outcomes(),
        flows: Flows::default(),
        sidecar: Some(Sidecar {
            workers: vec![Worker {
                index: 0,
                pid: 1,
                state: "serving".into(),
                restarts: 0,
                connections: 1,
            }],
            log_lines_lost: 0,
            handovers: Some(histogram()),
        }),
        tables: vec![Table { name: "FLOWS4".into(), entries: 1, capacity: 2 }],
        certificates: vec![Certificate {
            service: "l7".into(),
            certificate: "/c.pem".into(),
            not_after: 1,
        }],
        handshakes: [("l4".to_owned(), histogram())].into(),
        xdp_runs: Some(XdpRuns { seconds: 0.5, runs: 12 }),
    }
}

/// A value and its schema have the same fields, and of the same types.
fn described(description: &Value, name: &str, value: &Value) {
    let schema = Schema::named(description, name);
    assert_eq!(schema.complaints(name, value), Vec::<String>::new());
    assert_eq!(schema.never_met(name, &[value]), Vec::<String>::new());
}

#[test]
fn every_field_is_described_with_its_type_and_no_other() {
    let description = description();
    described(&description, "Status", &serde_json::json!(everything()));
    let explanation = Explanation {
        service: "chat".into(),
        mode: "l7".into(),
        steps: vec![Step { by: "flow".into(), says: "none".into() }],
        newcomer: true,
        backend: Some(Chosen {
            name: "a".into(),
            address: "10.2.0.2:9000".parse().unwrap(),
            health: "up".into(),
            weight: 100,
        }),
    };
    described(&description, "Explanation", &serde_json::json!(explanation));
    let events = Events::default();
    events.add(News::new(Kind::BackendUp, "it is up").at("chat", "a"));
    described(&description, "Events", &serde_json::json!(events.page(None, 1)));

    let pace = serde_json::json!({ "since": 1, "deadline": 2, "rate": 3 });
    let added =
        serde_json::json!({ "address": "10.2.0.2:1", "weight": 1, "zone": "z", "pool": "p" });
    let overrides: Overrides = serde_json::from_value(serde_json::json!({
        "revision": 4,
        "edge": { "drain": { "begins": 1, "deadline": 2, "rate": 3 } },
        "services": { "chat": {
            "a": { "state": { "drain": pace }, "weight": 7, "removed": true },
            "b": { "state": { "maintenance": pace }, "added": added },
            "c": { "state": "serve" },
        } },
    }))
    .unwrap();
    described(&description, "Overrides", &serde_json::json!(overrides));
    let difference = Difference {
        service: Some("chat".into()),
        backend: Some("a".into()),
        key: "weight".into(),
        file: "100".into(),
        running: "7".into(),
    };
    let diff = serde_json::json!({ "revision": 1, "differences": [difference] });
    described(&description, "Diff", &diff);
}

#[test]
fn what_does_not_fit_is_found() {
    let description = description();
    let complaints = |change: fn(&mut Value)| {
        let mut value = serde_json::json!(everything());
        change(&mut value);
        Schema::named(&description, "Status").complaints("", &value)
    };
    assert_eq!(complaints(|it| it["pid"] = "1".into()), [".pid: \"1\" is no \"integer\""]);
    assert_eq!(complaints(|it| it["new"] = 1.into()), [".new: not described"]);
    let mode = |it: &mut Value| it["services"][1]["mode"] = "l5".into();
    let found = [".services.1.mode: \"l5\" is none of [\"l4\",\"l7\"]"];
    assert_eq!(complaints(mode), found);
    let weight = |it: &mut Value| it["services"][0]["backends"][0]["weight"] = (-1).into();
    assert_eq!(complaints(weight), [".services.0.backends.0.weight: -1 is below 0"]);
    let seconds = |it: &mut Value| it["handshakes"]["l4"] = serde_json::json!({ "counts": [] });
    assert_eq!(complaints(seconds), [".handshakes.l4.seconds: missing"]);
}

#[tokio::test]
async fn errors_have_the_form_that_is_promised() {
    let (path, line) = token_file("openapi", TOKEN);
    let server = willing(view(&line));
    let description = description();
    let problem = Schema::named(&description, "Problem");
    for (page, head, body) in [
        (DRAIN, String::new(), "{}"),
        (DRAIN, json(), "{"),
        (DRAIN, json(), "{\"a\": 1}"),
        ("/v1/nowhere", json(), "{}"),
        ("/v1/services", json(), "{}"),
    ] {
        let (status, answer) = post(server.address, page, &head, body).await;
        assert!(status >= 400);
        assert_eq!(problem.complaints(page, &answer), Vec::<String>::new());
    }
    std::fs::remove_file(path).unwrap();
}
