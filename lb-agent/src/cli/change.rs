//! `lb-agent drain`, `undrain`, `maintenance`, `weight`, `add-backend`, `remove-backend`: what operators change while the
//! edge runs.

use std::{net::SocketAddr, thread, time::Duration};

use anyhow::Result;
use clap::Args;
use hyper::Method;
use lb_agent::run::status::{Draining, Service, Status};
use serde_json::{Map, Value, json};

use super::client::{Client, Where, path};

/// Between two looks at what is left of a drain.
const LOOK: Duration = Duration::from_secs(1);

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
    /// Show what is left until nothing is
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

fn target<'a>(
    service: &'a Option<String>,
    backend: &'a Option<String>,
) -> Option<(&'a str, &'a str)> {
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

/// Shows what is left, as often as it changes, until nothing is.
fn wait(client: &Client, at: &Where, target: Option<(&str, &str)>) -> Result<()> {
    let mut before = None;
    loop {
        let left = match target {
            None => left_of_edge(client.get::<Status>("/v1/status")?.draining),
            Some((service, backend)) => {
                let service: Service = client.get(&path(&["services", service]))?;
                let backend = service.backends.iter().find(|it| it.name == backend);
                backend.map_or(
                    json!({ "connections": 0 }),
                    |it| json!({ "connections": it.connections, "spliced": it.spliced }),
                )
            }
        };
        if before.as_ref() != Some(&left) {
            match at.json {
                true => println!("{left}"),
                false => println!("{}", shown(&left)),
            }
        }
        if left["connections"] == json!(0) {
            return Ok(());
        }
        before = Some(left);
        thread::sleep(LOOK);
    }
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
