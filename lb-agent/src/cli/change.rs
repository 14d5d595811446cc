//! `lb-agent drain`, `undrain`, `maintenance`, `weight`, `add-backend`, `remove-backend`: what operators change while the
//! edge runs.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::{Result, bail};
use clap::Args;
use hyper::Method;
use lb_agent::{
    overrides::{Overrides, State},
    run::status::{Draining, Status},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::client::{Client, Where, path};

/// Between two looks at what is left of a drain.
const LOOK: Duration = Duration::from_secs(1);
/// An agent that has run for fewer seconds may not have counted yet: that nothing is left says nothing.
const COUNTED: u64 = 5;

#[derive(Args)]
pub struct Drain {
    /// Service of the backend
    #[arg(required_unless_present = "edge")]
    service: Option<String>,
    /// The backend
    #[arg(required_unless_present = "edge")]
    backend: Option<String>,
    /// The whole edge: all services of mode = "l7"
    #[arg(long, conflicts_with_all = ["service", "backend", "force"])]
    edge: bool,
    /// With --edge: for so long /readyz says no, and clients are still taken, so that routers withdraw the edge first
    #[arg(long, value_name = "DURATION", requires = "edge")]
    grace: Option<String>,
    /// How long clients that belong to the backend may stay, e.g. 30s; as configured without it
    #[arg(long, value_name = "DURATION")]
    deadline: Option<String>,
    /// Connections closed each second; as configured without it
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Even if no backend is left that takes clients
    #[arg(long)]
    force: bool,
    /// Show what is left until nothing is, also when another agent takes over; an error if the drain is called off before
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Undrain {
    /// Service of the backend
    #[arg(required_unless_present = "edge")]
    service: Option<String>,
    /// The backend
    #[arg(required_unless_present = "edge")]
    backend: Option<String>,
    /// The whole edge
    #[arg(long, conflicts_with_all = ["service", "backend"])]
    edge: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Maintenance {
    /// Service of the backend
    service: String,
    /// The backend
    backend: String,
    /// Connections closed each second; as configured without it
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// Even if no backend is left that takes clients
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Reset {
    /// Service of the backend
    service: String,
    /// The backend
    backend: String,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Weight {
    /// Service of the backend
    service: String,
    /// The backend
    backend: String,
    /// Its share of new clients, in relation to the other weights: 0 to 1000
    weight: u32,
    /// Even if no backend is left that takes clients
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Add {
    /// Service that it joins
    service: String,
    /// Its own address and port
    address: SocketAddr,
    /// What it is called; its address without it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Its share of new clients: 0 to 1000
    #[arg(long, value_name = "N")]
    weight: Option<u32>,
    /// Where the server stands
    #[arg(long, value_name = "NAME")]
    zone: Option<String>,
    /// Pool of the service that it joins; the default one without it
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Remove {
    /// Service that it leaves
    service: String,
    /// The backend
    backend: String,
    /// Even if no backend is left that takes clients
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    at: Where,
}

pub fn drain(arguments: &Drain) -> Result<()> {
    let Drain { grace, deadline, rate, force, at, .. } = arguments;
    let client = Client::new(at)?;
    let mut body = body(&[("deadline", json!(deadline)), ("rate", json!(rate))]);
    let target = target(&arguments.service, &arguments.backend);
    let to = match target {
        None => {
            body["grace"] = json!(grace);
            path(&["drain"])
        }
        Some((service, backend)) => {
            body["force"] = json!(force);
            of_backend(service, backend, "drain")
        }
    };
    let done = client.change(&Method::POST, &to, &body)?;
    match target {
        None => tell(at, &done, "the edge drains"),
        Some((service, backend)) => tell(at, &done, &format!("{service}/{backend} drains")),
    }
    if arguments.wait { wait(&client, at, target) } else { Ok(()) }
}

pub fn undrain(arguments: &Undrain) -> Result<()> {
    let client = Client::new(&arguments.at)?;
    let (to, what) = match target(&arguments.service, &arguments.backend) {
        None => (path(&["undrain"]), "the edge serves".to_owned()),
        Some((service, backend)) => {
            (of_backend(service, backend, "undrain"), format!("{service}/{backend} serves"))
        }
    };
    let done = client.change(&Method::POST, &to, &json!({}))?;
    tell(&arguments.at, &done, &what);
    Ok(())
}

pub fn maintenance(arguments: &Maintenance) -> Result<()> {
    let Maintenance { service, backend, rate, force, at } = arguments;
    let body = body(&[("rate", json!(rate)), ("force", json!(force))]);
    let to = of_backend(service, backend, "maintenance");
    let done = Client::new(at)?.change(&Method::POST, &to, &body)?;
    tell(
        at,
        &done,
        &format!("{service}/{backend} is in maintenance: it gets no clients, and loses its own"),
    );
    Ok(())
}

pub fn reset(arguments: &Reset) -> Result<()> {
    let Reset { service, backend, at } = arguments;
    let to = of_backend(service, backend, "reset-flows");
    let done = Client::new(at)?.change(&Method::POST, &to, &json!({}))?;
    tell(at, &done, &format!("{service}/{backend}: the connections that it has now are reset"));
    Ok(())
}

pub fn weight(arguments: &Weight) -> Result<()> {
    let Weight { service, backend, weight, force, at } = arguments;
    let body = json!({ "weight": weight, "force": force });
    let to = of_backend(service, backend, "weight");
    let done = Client::new(at)?.change(&Method::POST, &to, &body)?;
    tell(at, &done, &format!("{service}/{backend} has weight {weight}"));
    Ok(())
}

pub fn add(arguments: &Add) -> Result<()> {
    let Add { service, address, name, weight, zone, pool, at } = arguments;
    let optional = [
        ("name", json!(name)),
        ("weight", json!(weight)),
        ("zone", json!(zone)),
        ("pool", json!(pool)),
    ];
    let mut body = body(&optional);
    body["address"] = json!(address);
    let to = path(&["services", service, "backends"]);
    let done = Client::new(at)?.change(&Method::POST, &to, &body)?;
    tell(
        at,
        &done,
        &format!("{address} joins {service}, and gets clients after its first good probe"),
    );
    Ok(())
}

pub fn remove(arguments: &Remove) -> Result<()> {
    let Remove { service, backend, force, at } = arguments;
    let to = format!("{}?force={force}", path(&["services", service, "backends", backend]));
    let done = Client::new(at)?.change(&Method::DELETE, &to, &json!({}))?;
    tell(at, &done, &format!("{service}/{backend} is taken out"));
    Ok(())
}

fn target<'a>(service: &'a Option<String>, backend: &'a Option<String>) -> Target<'a> {
    Some((service.as_deref()?, backend.as_deref()?))
}

fn of_backend(service: &str, backend: &str, action: &str) -> String {
    path(&["services", service, "backends", backend, action])
}

/// Without what nobody has said.
fn body(values: &[(&str, Value)]) -> Value {
    let said = values.iter().filter(|(_, value)| !value.is_null());
    Value::Object(
        said.map(|(key, value)| ((*key).to_owned(), value.clone())).collect::<Map<_, _>>(),
    )
}

fn tell(at: &Where, done: &Value, what: &str) {
    match at.json {
        true => println!("{done}"),
        false => println!("{what} (revision {})", done["revision"]),
    }
}

/// What `drain` is about: a service and its backend, or the whole edge.
type Target<'a> = Option<(&'a str, &'a str)>;

/// As much of `/v1/config` as is needed here.
#[derive(Deserialize)]
struct Changed {
    overrides: Overrides,
}

/// Shows what is left, as often as it changes, until nothing is. Not every agent lives as long as a drain: waits for the
/// next one.
fn wait(client: &Client, at: &Where, target: Target<'_>) -> Result<()> {
    let mut before = None;
    loop {
        let status: Status = client.patiently("/v1/status", "drain");
        let (ready, counted) = (status.ready, status.uptime_seconds >= COUNTED);
        let (drains, left) = left(status, target);
        let over = left["connections"] == json!(0);
        // Of one that starts there is nothing to see yet.
        if ready && !drains {
            let Changed { overrides } = client.patiently("/v1/config", "drain");
            if !is_asked_for(&overrides, target) {
                let name = target.map(|(service, backend)| format!("{service}/{backend}"));
                let name = name.as_deref().unwrap_or("the edge");
                bail!("{name}: its drain was called off: `lb-agent events` shows when");
            }
        }
        if ready && (counted || !over) {
            if before.as_ref() != Some(&left) {
                match at.json {
                    true => println!("{left}"),
                    false => println!("{}", shown(&left)),
                }
            }
            if over {
                return Ok(());
            }
            before = Some(left);
        }
        thread::sleep(LOOK);
    }
}

/// Whether it can be seen to drain, and what is left: of a backend that was taken out, nothing.
fn left(status: Status, target: Target<'_>) -> (bool, Value) {
    let Some((service, backend)) = target else {
        return (status.draining.is_some(), left_of_edge(status.draining));
    };
    let service = status.services.iter().find(|it| it.name == service);
    let backend = service.and_then(|it| it.backends.iter().find(|it| it.name == backend));
    match backend {
        None => (true, json!({ "connections": 0 })),
        Some(it) => {
            let left = json!({ "connections": it.connections, "spliced": it.spliced });
            (it.draining_until.is_some(), left)
        }
    }
}

/// Whether somebody has asked for it. Not all of that is a drain in the status: an edge's may be announced, and a backend
/// that is down is no more than down.
fn is_asked_for(overrides: &Overrides, target: Target<'_>) -> bool {
    let Some((service, backend)) = target else {
        return overrides.edge_drain_begins().is_some();
    };
    let changed = overrides.services.get(service).and_then(|it| it.get(backend));
    matches!(changed.and_then(|it| it.state), Some(State::Drain(_) | State::Maintenance(_)))
}

/// One that is announced has nothing to show yet.
fn left_of_edge(draining: Option<Draining>) -> Value {
    match draining {
        None => json!({ "connections": null }),
        Some(Draining { connections, relayed, spliced, .. }) => {
            json!({ "connections": connections, "relayed": relayed, "spliced": spliced })
        }
    }
}

fn shown(left: &Value) -> String {
    if left["connections"].is_null() {
        return "clients are still taken".to_owned();
    }
    let mut text = format!("{} connections left", left["connections"]);
    for key in ["relayed", "spliced"].into_iter().filter(|key| !left[*key].is_null()) {
        text += &format!(", {} {key}", left[key]);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is shown, with these connections.
    fn status(draining: &Value, backend: &Value) -> Status {
        let mut status = json!({
            "edge": "e", "version": "0", "pid": 1, "ready": true, "uptime_seconds": 0, "program_id": 1,
            "adopted": false, "config_generation": 1, "interfaces": [], "tables": [],
            "outcomes": { "events": {}, "drops": {} },
            "flows": { "expired": 0, "closed": 0, "orphans": 0, "reset": 0, "unsent_resets": 0 },
            "services": [{
                "name": "chat", "affinity": "none", "listeners": [], "fail_open": false, "turned_away": false,
                "outcomes": { "events": {}, "drops": {} },
                "backends": [{
                    "name": "a", "address": "10.2.0.2:80", "weight": 100, "effective_weight": 0, "share": {},
                    "connections": 3,
                    "health": { "state": "up", "since_seconds": 1.0, "probes": 1, "failures": 0 },
                }],
            }],
        });
        if !draining.is_null() {
            status["draining"] = draining.clone();
        }
        if !backend.is_null() {
            status["services"][0]["backends"][0]["draining_until"] = backend.clone();
        }
        serde_json::from_value(status).unwrap()
    }

    fn overrides(text: &str) -> Overrides {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_drain_of_a_backend_goes_on_as_long_as_it_is_seen_or_asked_for() {
        let of = |name| Some(("chat", name));
        let (drains, shown) = left(status(&Value::Null, &json!(9_000)), of("a"));
        assert!(drains && shown["connections"] == json!(3));
        assert!(!left(status(&Value::Null, &Value::Null), of("a")).0);
        // A backend that is down does not show that it drains.
        for state in [r#"{ "drain": { "since": 1 } }"#, r#"{ "maintenance": { "since": 1 } }"#] {
            let all = overrides(&format!(
                r#"{{ "revision": 1, "services": {{ "chat": {{ "a": {{ "state": {state} }} }} }} }}"#
            ));
            assert!(is_asked_for(&all, of("a")) && !is_asked_for(&all, of("b")));
        }
        let serves = r#"{ "revision": 2, "services": { "chat": { "a": { "state": "serve" } } } }"#;
        assert!(!is_asked_for(&overrides(serves), of("a")), "called off");
        assert!(!is_asked_for(&overrides(r#"{ "revision": 2, "services": {} }"#), of("a")));
        let gone = left(status(&Value::Null, &Value::Null), of("b"));
        assert_eq!(gone, (true, json!({ "connections": 0 })), "taken out");
    }

    #[test]
    fn one_of_the_edge_goes_on_as_long_as_it_is_seen_or_announced() {
        let draining = json!({ "connections": 5, "relayed": 2, "spliced": 3 });
        let (drains, shown) = left(status(&draining, &Value::Null), None);
        assert!(drains && shown["connections"] == json!(5));
        assert!(!left(status(&Value::Null, &Value::Null), None).0);
        let of =
            |edge: &str| overrides(&format!(r#"{{ "revision": 1, {edge} "services": {{}} }}"#));
        assert!(is_asked_for(&of(r#""edge": { "drain": { "begins": 9000 } },"#), None));
        assert!(!is_asked_for(&of(r#""edge": "serve","#), None));
        assert!(!is_asked_for(&of(""), None));
    }
}
