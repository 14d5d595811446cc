//! The status that the admin API gives, and that `lb-agent status` reads: plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Everything of an edge, at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Name of the edge.
    pub edge: String,
    /// Version of the agent.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// The data plane is attached and has the configuration.
    pub ready: bool,
    /// While the whole edge drains.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub draining: Option<Draining>,
    /// Since the agent started.
    pub uptime_seconds: u64,
    /// When it did, in seconds of Unix time.
    #[serde(default)]
    pub started: u64,
    /// How the agent replaced another program in its process, if it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub upgrade: Option<Upgrade>,
    /// Id of the XDP program.
    pub program_id: u32,
    /// Whether the maps were those of an earlier agent.
    pub adopted: bool,
    /// How many configurations were taken over since the start, the first included.
    pub config_generation: u64,
    /// When the one in force was taken over, in seconds of Unix time; 0 before the first.
    #[serde(default)]
    pub config_taken: u64,
    /// Why the last change of the file was refused, if it was: the edge runs with the configuration before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub config_refused: Option<String>,
    /// Why the last change of a certificate, its key or ticket keys was refused, if it was: those before are in force.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub certificates_refused: Option<String>,
    pub interfaces: Vec<Interface>,
    pub services: Vec<Service>,
    /// What became of packets that belong to no service. Zeros are left out, here and in services.
    pub outcomes: Outcomes,
    pub flows: Flows,
    /// The processes of l7 services, if there are any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sidecar: Option<Sidecar>,
    /// How full the tables are, as of the last walk through them.
    pub tables: Vec<Table>,
    /// Those that clients are shown.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub certificates: Vec<Certificate>,
    /// Round trips of TCP handshakes as XDP sees them, by service; see docs/metrics.md.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub handshakes: BTreeMap<String, Histogram>,
    /// Where the kernel has counted runs of the XDP program (`kernel.bpf_stats_enabled`).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub xdp_runs: Option<XdpRuns>,
}

/// Runs of the XDP program, counted by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct XdpRuns {
    /// Of all together.
    pub seconds: f64,
    pub runs: u64,
}

/// An upgrade in place: what it came from and to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgrade {
    /// As who asked for it has said.
    pub id: String,
    /// Path of the program that was to run from then on.
    pub program: String,
    /// Version of the agent before.
    pub from_version: String,
    /// Id of the XDP program before.
    pub from_program_id: u32,
    /// Why it did not come up: the agent before runs again.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub refused: Option<String>,
}

/// A certificate of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub service: String,
    /// Its file.
    pub certificate: String,
    /// When it ends, in seconds of Unix time.
    pub not_after: i64,
}

/// The edge takes no new l7 clients, and gives up those that it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Draining {
    /// When the last of them is cut off, in milliseconds of Unix time; none without an l7 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub until: Option<u64>,
    /// Client connections of l7 services open now, relayed and spliced ones included.
    pub connections: u64,
    /// Upgraded connections of them that workers relay.
    pub relayed: u64,
    /// And those that XDP carries.
    #[serde(default)]
    pub spliced: u64,
}

fn l4() -> String {
    "l4".to_owned()
}

/// The processes that serve l7 services.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sidecar {
    pub workers: Vec<Worker>,
    /// Access log lines that could not be written fast enough.
    pub log_lines_lost: u64,
    /// How long it took to splice connections.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub handovers: Option<Histogram>,
}

/// How long something took, since the agent's start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Histogram {
    /// Of all together.
    pub seconds: f64,
    /// How many took no longer than so many microseconds but longer than what is before; none: longer than all.
    pub counts: Vec<(Option<u64>, u64)>,
}

/// One process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worker {
    /// Its place.
    pub index: u16,
    pub pid: u32,
    /// `starting`, `joining` and `greeted` on the way to `serving`; in the end `retired`.
    pub state: String,
    /// How often a worker of this place ended unasked since the agent's start.
    pub restarts: u64,
    /// Client connections open.
    pub connections: u64,
}

/// An interface of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub attached: bool,
    /// Index, while attached.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<u32>,
    /// `native` or `generic`, while attached.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub xdp: Option<String>,
    /// Why it is not attached.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub problem: Option<String>,
}

/// A service with its pool.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    /// `l4` or `l7`.
    #[serde(default = "l4")]
    pub mode: String,
    /// Its number in the maps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<u16>,
    /// Of an l4 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub forward: Option<String>,
    pub affinity: String,
    pub listeners: Vec<Listener>,
    /// Too few backends are up, and all of them get clients nevertheless.
    pub fail_open: bool,
    /// No backend can be picked: clients are turned away.
    pub turned_away: bool,
    /// Client connections open now, relayed and spliced ones included, of an l7 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub connections: Option<u64>,
    /// Upgraded connections that workers relay now, of an l7 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub relayed: Option<u64>,
    /// Upgraded connections that XDP carries, of an l7 service: those that the last walk through the flow tables has
    /// found, and those that were spliced since.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spliced: Option<u64>,
    /// How spliced connections have ended since the agent's start, by the access log's `ended_by`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub ended: BTreeMap<String, u64>,
    /// Connections now by their path (`l4`, `http`, `relay`, `splice`) and state (`handshake`, `open`, `closing`); of the
    /// flow tables, as of the last walk through them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub flows: BTreeMap<String, BTreeMap<String, u64>>,
    /// How long things took in the sidecar, by the labels of its times.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub times: BTreeMap<String, Histogram>,
    /// What became of packets; of an l7 service, also of connections and requests.
    pub outcomes: Outcomes,
    pub backends: Vec<Backend>,
    /// Of an l7 service with routes: how many requests each had, in their order; last, those that none matched.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub routes: Vec<Route>,
    /// Of an l7 service with several pools: those whose backends get no new clients, see `fail_open` and `turned_away`.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub pools_down: Vec<String>,
    /// With zones: too little of the own one is up, and others get newcomers, too.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spilling: Option<bool>,
}

/// A route of an l7 service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub name: String,
    pub requests: u64,
}

/// Where a service listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listener {
    pub address: String,
    /// Whether the address is one of the host's; if not, routes bring its packets.
    pub on_host: bool,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    /// Its number in the maps.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<u16>,
    /// What stands for it in cookies, in an l7 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<String>,
    pub address: String,
    pub health: Health,
    /// As configured.
    pub weight: u32,
    /// As it is now: 0 while it is not live, less than `weight` while it starts slowly.
    pub effective_weight: u32,
    /// While it drains: until when, in milliseconds of Unix time.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub draining_until: Option<u64>,
    /// Part of the new connections by IP version of the client, `ipv4` and `ipv6`: 0 to 1.
    pub share: BTreeMap<String, f64>,
    /// Connections in the flow tables, as of the last walk through them; in an l7 service, connections, spliced ones
    /// included, and requests that count as load now.
    pub connections: u64,
    /// In an l7 service: those of the connections that XDP carries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub spliced: Option<u64>,
    /// What XDP has carried.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub traffic: Option<Traffic>,
    /// In an l7 service.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub requests: Option<Requests>,
    /// In an l7 service with several pools.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub pool: Option<String>,
    /// With outlier detection: how often it was ejected since the agent's start.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ejections: Option<u64>,
    /// While it is ejected.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ejected: Option<Ejected>,
    /// Why it gets clients, or gets none: for people.
    #[serde(default)]
    pub why: String,
}

/// A backend that failed its clients, and gets none for a while.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ejected {
    pub seconds_left: f64,
    /// The how manieth ejection it is, as far as they are not forgotten.
    pub times: u32,
    pub reason: String,
}

/// What the sidecar had to do with a backend, since each worker's start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Requests {
    pub picked: u64,
    /// Connects and handshakes that failed.
    pub failed: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

/// What health checks say.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// `up`, `down` or `unknown`.
    pub state: String,
    pub since_seconds: f64,
    /// The probe that ended last, if any has.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub last: Option<LastProbe>,
    pub probes: u64,
    pub failures: u64,
    /// The last probes, the oldest first, a character each: `x` failed; `0` to `9` by how long it took.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub history: String,
}

/// How a probe ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastProbe {
    pub ok: bool,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<String>,
    pub latency_ms: f64,
    pub ago_seconds: f64,
}

/// Traffic of a backend since its id was given to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Traffic {
    pub to_backend_packets: u64,
    pub to_backend_bytes: u64,
    pub to_client_packets: u64,
    pub to_client_bytes: u64,
    pub picked: u64,
    pub opened: u64,
    pub closed: u64,
    pub reset: u64,
}

/// What became of packets, by label.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcomes {
    pub events: BTreeMap<String, u64>,
    pub drops: BTreeMap<String, u64>,
}

/// Connections that left the tables by the agent's doing since it started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Flows {
    pub expired: u64,
    pub closed: u64,
    /// Handshakes that were never completed.
    #[serde(default)]
    pub abandoned: u64,
    pub orphans: u64,
    /// Their backend was down or gone.
    pub reset: u64,
    /// Spliced ones whose backend drained, or the edge.
    #[serde(default)]
    pub drained: u64,
    /// RST packets that could not be sent.
    pub unsent_resets: u64,
}

/// A table of the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    pub name: String,
    pub entries: u64,
    pub capacity: u64,
}
