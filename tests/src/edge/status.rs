//! What the agent says of itself, and the flows that it lists.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use lb_common::outcome::{DropReason, Event};
use serde::Deserialize;
use serde_json::Value;

/// An answer to `/v1/status`.
#[derive(Clone, Debug)]
pub struct Status(Value);

impl Status {
    pub(super) fn parse(body: &str) -> Result<Self> {
        serde_json::from_str(body).map(Self).with_context(|| format!("not JSON: {body}"))
    }

    fn service(&self, name: &str) -> Option<&Value> {
        self.0["services"].as_array()?.iter().find(|service| service["name"] == name)
    }

    fn backend(&self, service: &str, name: &str) -> Option<&Value> {
        let backends = self.service(service)?["backends"].as_array()?;
        backends.iter().find(|backend| backend["name"] == name)
    }

    /// Whether the agent knows a backend.
    #[must_use]
    pub fn has(&self, service: &str, backend: &str) -> bool {
        self.backend(service, backend).is_some()
    }

    /// A backend's configured weight.
    #[must_use]
    pub fn weight(&self, service: &str, backend: &str) -> Option<u64> {
        self.backend(service, backend)?["weight"].as_u64()
    }

    /// What came from the configuration: services with their backends' names, addresses and weights.
    #[must_use]
    pub fn configured(&self) -> Vec<(String, Vec<[Value; 3]>)> {
        let services = self.0["services"].as_array().into_iter().flatten();
        let backends = |service: &Value| {
            let backends = service["backends"].as_array().into_iter().flatten();
            backends
                .map(|it| ["name", "address", "weight"].map(|key| it[key].clone()))
                .collect::<Vec<_>>()
        };
        services.map(|it| (it["name"].to_string(), backends(it))).collect()
    }

    /// Whether a backend's health probes succeed.
    #[must_use]
    pub fn is_up(&self, service: &str, backend: &str) -> bool {
        self.backend(service, backend).is_some_and(|it| it["health"]["state"] == "up")
    }

    /// Whether a backend has failed.
    #[must_use]
    pub fn is_down(&self, service: &str, backend: &str) -> bool {
        self.backend(service, backend).is_some_and(|it| it["health"]["state"] == "down")
    }

    /// Whether a service sends to backends that are down, since all are.
    #[must_use]
    pub fn fails_open(&self, service: &str) -> bool {
        self.service(service).is_some_and(|it| it["fail_open"] == true)
    }

    /// A counter of a backend, by its name in [`lb_common::counters::BackendCounters`].
    #[must_use]
    pub fn counter(&self, service: &str, backend: &str, counter: &str) -> u64 {
        let backend = self.backend(service, backend);
        backend.and_then(|it| it["traffic"][counter].as_u64()).unwrap_or_default()
    }

    /// How many connections a backend has.
    #[must_use]
    pub fn connections(&self, service: &str, backend: &str) -> u64 {
        let backend = self.backend(service, backend);
        backend.and_then(|it| it["connections"].as_u64()).unwrap_or_default()
    }

    /// How often an event was counted, over all services and beside them.
    #[must_use]
    pub fn event(&self, event: Event) -> u64 {
        self.outcome("events", event.label())
    }

    /// How many packets were dropped for a reason, over all services and beside them.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.outcome("drops", reason.label())
    }

    /// Microseconds in which half of all hand-overs to XDP were done, by the agent's histogram: the bound of
    /// the bucket that has the median. None without any.
    #[must_use]
    pub fn median_handover(&self) -> Option<f64> {
        let counts = self.0["sidecar"]["handovers"]["counts"].as_array()?;
        let of = |bucket: &Value| bucket[1].as_u64().unwrap_or_default();
        let half = counts.iter().map(of).sum::<u64>().div_ceil(2).max(1);
        let mut seen = 0;
        let median = counts.iter().find(|bucket| {
            seen += of(bucket);
            seen >= half
        })?;
        Some(median[0].as_f64().unwrap_or(f64::INFINITY))
    }

    /// How often a service's workers have counted something.
    #[must_use]
    pub fn happened(&self, service: &str, label: &str) -> u64 {
        let service = self.service(service);
        service.and_then(|it| it["outcomes"]["events"][label].as_u64()).unwrap_or_default()
    }

    /// What has been counted of a service, by label.
    #[must_use]
    pub fn events(&self, service: &str) -> BTreeMap<String, u64> {
        let events = self.service(service).and_then(|it| it["outcomes"]["events"].as_object());
        let events = events.into_iter().flatten();
        events.filter_map(|(label, count)| Some((label.clone(), count.as_u64()?))).collect()
    }

    /// What a service's workers have counted of splices, by label.
    #[must_use]
    pub fn splices(&self, service: &str) -> BTreeMap<String, u64> {
        let mut events = self.events(service);
        events.retain(|label, _| label.starts_with("splice"));
        events
    }

    fn outcome(&self, kind: &str, label: &str) -> u64 {
        let services = self.0["services"].as_array().into_iter().flatten();
        // Zeros are left out.
        let of = |it: &Value| it["outcomes"][kind][label].as_u64().unwrap_or_default();
        services.chain([&self.0]).map(of).sum()
    }

    /// The sidecar's workers.
    #[must_use]
    pub fn workers(&self) -> Vec<Worker> {
        let workers = self.0["sidecar"]["workers"].as_array().into_iter().flatten();
        workers.filter_map(|worker| Worker::deserialize(worker).ok()).collect()
    }

    /// Those workers that take new connections.
    #[must_use]
    pub fn serving(&self) -> Vec<Worker> {
        self.workers().into_iter().filter(Worker::is_serving).collect()
    }

    /// How many requests a route of a service has had.
    #[must_use]
    pub fn route(&self, service: &str, route: &str) -> u64 {
        let routes = self.service(service).and_then(|it| it["routes"].as_array());
        let found = routes.into_iter().flatten().find(|it| it["name"] == route);
        found.and_then(|it| it["requests"].as_u64()).unwrap_or_default()
    }

    /// Id of the XDP program.
    #[must_use]
    pub fn program_id(&self) -> u64 {
        self.0["program_id"].as_u64().unwrap_or_default()
    }

    /// Why a program that was to take the agent's place has not come up, if that was so.
    #[must_use]
    pub fn refused_upgrade(&self) -> Option<&str> {
        self.0["upgrade"]["refused"].as_str()
    }

    /// How many configurations the agent has taken over.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.0["config_generation"].as_u64().unwrap_or_default()
    }

    /// Why the last change of the file was refused, if it was.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.0["config_refused"].as_str()
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// One of the sidecar's processes.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Worker {
    pub index: u16,
    pub pid: u32,
    pub state: String,
    /// Client connections that it has open.
    pub connections: u64,
}

impl Worker {
    /// Whether it takes new connections; one that has retired finishes what it has.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.state == "serving"
    }
}

/// A flow of `lb-agent flows --json`, as far as it does not change with every packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct FlowLine {
    pub service: String,
    pub client: SocketAddr,
    pub listener: SocketAddr,
    pub backend: String,
    pub nat: Option<Translated>,
    pub forward: String,
    pub state: String,
}

/// The two ends of a `nat` flow on the backend's side.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Translated {
    pub edge: SocketAddr,
    pub backend: SocketAddr,
}

impl FlowLine {
    /// Neither end has begun to close it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.state == "established"
    }

    /// XDP carries it between the two connections that the sidecar had.
    #[must_use]
    pub fn is_spliced(&self) -> bool {
        self.forward == "splice"
    }

    pub(super) fn parse(text: &str) -> Result<Vec<Self>> {
        let parse = |line| serde_json::from_str(line).with_context(|| format!("no flow: {line}"));
        text.lines().map(parse).collect()
    }
}
