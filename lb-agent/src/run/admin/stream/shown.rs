//! What is sent of a status: without what is another number each second though nothing has happened. Pure.

use serde::Serialize;

use crate::run::status::{self, Draining, Interface, Outcomes, Status, Table, Worker};

/// All but the services.
#[derive(Serialize)]
pub struct Edge<'a> {
    name: &'a str,
    version: &'a str,
    pid: u32,
    ready: bool,
    draining: &'a Option<Draining>,
    uptime_seconds: u64,
    config_refused: &'a Option<String>,
    certificates_refused: &'a Option<String>,
    interfaces: &'a [Interface],
    workers: &'a [Worker],
    tables: &'a [Table],
    /// Packets, of services and of none.
    drops: u64,
}

#[derive(Serialize)]
pub struct Service<'a> {
    name: &'a str,
    mode: &'a str,
    forward: Option<&'a str>,
    listeners: Vec<&'a str>,
    fail_open: bool,
    turned_away: bool,
    spilling: Option<bool>,
    pools_down: &'a [String],
    paths: Paths,
    drops: u64,
    backends: Vec<Backend<'a>>,
}

/// Client connections that are open, by what carries them.
#[derive(Serialize)]
struct Paths {
    /// XDP alone.
    l4: u64,
    /// The sidecar: requests and answers, or what comes after an upgrade.
    relay: u64,
    /// XDP, after the sidecar has accepted them.
    splice: u64,
}

#[derive(Serialize)]
struct Backend<'a> {
    name: &'a str,
    address: &'a str,
    pool: Option<&'a str>,
    health: &'a str,
    history: &'a str,
    /// Of the last probe, if it was good.
    latency_ms: Option<f64>,
    /// Of the last probe, if it was bad.
    error: Option<&'a str>,
    why: &'a str,
    weight: u32,
    effective_weight: u32,
    draining_until: Option<u64>,
    ejected: bool,
    connections: u64,
    /// Clients that it was given so far.
    picked: u64,
    /// Both ways, so far.
    bytes: u64,
    /// Connects and handshakes so far.
    failed: Option<u64>,
}

fn drops(outcomes: &Outcomes) -> u64 {
    outcomes.drops.values().sum()
}

impl<'a> From<&'a Status> for Edge<'a> {
    fn from(status: &'a Status) -> Self {
        let services = status.services.iter();
        Self {
            name: &status.edge,
            version: &status.version,
            pid: status.pid,
            ready: status.ready,
            draining: &status.draining,
            uptime_seconds: status.uptime_seconds,
            config_refused: &status.config_refused,
            certificates_refused: &status.certificates_refused,
            interfaces: &status.interfaces,
            workers: status.sidecar.as_ref().map(|it| it.workers.as_slice()).unwrap_or_default(),
            tables: &status.tables,
            drops: drops(&status.outcomes) + services.map(|it| drops(&it.outcomes)).sum::<u64>(),
        }
    }
}

impl<'a> From<&'a status::Service> for Service<'a> {
    fn from(service: &'a status::Service) -> Self {
        let open = |path: &str| {
            let states = service.flows.get(path);
            states.and_then(|states| states.get("open")).copied().unwrap_or(0)
        };
        let relay = open("http") + open("relay");
        let paths = Paths { l4: open("l4"), relay, splice: open("splice") };
        Self {
            name: &service.name,
            mode: &service.mode,
            forward: service.forward.as_deref(),
            listeners: service.listeners.iter().map(|it| it.address.as_str()).collect(),
            fail_open: service.fail_open,
            turned_away: service.turned_away,
            spilling: service.spilling,
            pools_down: &service.pools_down,
            paths,
            drops: drops(&service.outcomes),
            backends: service.backends.iter().map(Backend::from).collect(),
        }
    }
}

impl<'a> From<&'a status::Backend> for Backend<'a> {
    fn from(backend: &'a status::Backend) -> Self {
        let status::Backend { requests, traffic, health, .. } = backend;
        let of_sidecar = requests.as_ref().map(|it| (it.picked, it.bytes_in + it.bytes_out));
        let of_xdp =
            traffic.as_ref().map(|it| (it.picked, it.to_backend_bytes + it.to_client_bytes));
        let ((a, b), (c, d)) = (of_sidecar.unwrap_or_default(), of_xdp.unwrap_or_default());
        let last = health.last.as_ref();
        let tenths = |millis: f64| (millis * 10.0).round() / 10.0;
        Self {
            name: &backend.name,
            address: &backend.address,
            pool: backend.pool.as_deref(),
            health: &health.state,
            history: &health.history,
            latency_ms: last.filter(|last| last.ok).map(|last| tenths(last.latency_ms)),
            error: last.and_then(|last| last.error.as_deref()),
            why: &backend.why,
            weight: backend.weight,
            effective_weight: backend.effective_weight,
            draining_until: backend.draining_until,
            ejected: backend.ejected.is_some(),
            connections: backend.connections,
            picked: a + c,
            bytes: b + d,
            failed: requests.as_ref().map(|it| it.failed),
        }
    }
}
