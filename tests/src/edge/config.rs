//! The edge's configuration file as a value, which a test changes and writes again.
//!
//! It only has the keys that tests turn; the rest are the product's defaults, but for the tables: those
//! of a test are small.

mod l7;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::owner::unique_name;

pub use l7::{DrainConfig, L7Config, SidecarConfig};

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    Nat,
    Dsr,
    Ipip,
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nat => "nat",
            Self::Dsr => "dsr",
            Self::Ipip => "ipip",
        })
    }
}

/// A whole file.
#[derive(Clone, Debug)]
pub struct EdgeConfig {
    pub name: String,
    pub interfaces: Vec<String>,
    pub xdp: &'static str,
    pub source_addresses: Vec<IpAddr>,
    pub nat_ports: RangeInclusive<u16>,
    pub reset_rate: u32,
    /// The file with the token for changes over TCP.
    pub admin_token_file: Option<PathBuf>,
    pub vip_addresses: &'static str,
    /// Entries of each flow table.
    pub flows: u32,
    pub handshakes: u32,
    pub sidecar: SidecarConfig,
    /// Prefixes whose packets are dropped.
    pub deny: Vec<String>,
    pub services: Vec<ServiceConfig>,
}

impl EdgeConfig {
    /// Where the agent of every edge has its admin API: each edge has a loopback of its own.
    pub const ADMIN: &str = "127.0.0.1:9900";

    /// An edge with a name of its own, for pins lie outside of its namespace.
    #[must_use]
    pub fn new(interfaces: &[&str]) -> Self {
        Self {
            name: unique_name("edge"),
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            xdp: "native",
            source_addresses: Vec::new(),
            nat_ports: 1024..=60999,
            reset_rate: 1000,
            admin_token_file: None,
            vip_addresses: "auto",
            flows: 16_384,
            handshakes: 4096,
            sidecar: SidecarConfig::default(),
            deny: Vec::new(),
            services: Vec::new(),
        }
    }

    /// Whether anything is balanced request by request.
    #[must_use]
    pub fn has_l7(&self) -> bool {
        self.services.iter().any(|service| service.l7.is_some())
    }

    /// # Panics
    /// If there is no such service.
    pub fn service(&mut self, name: &str) -> &mut ServiceConfig {
        let found = self.services.iter_mut().find(|service| service.name == name);
        found.unwrap_or_else(|| panic!("the config has no service {name}"))
    }
}

/// One `[[service]]`.
#[derive(Clone, Debug)]
pub struct ServiceConfig {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    /// With `mode = "l4"`, as the next one.
    pub forward: Forward,
    pub affinity: &'static str,
    pub idle_timeout: Duration,
    /// Prefixes whose packets are dropped.
    pub deny: Vec<String>,
    pub close_timeout: Duration,
    /// Makes it a service with `mode = "l7"`.
    pub l7: Option<L7Config>,
    pub fail_open: bool,
    pub health: HealthConfig,
    pub backends: Vec<BackendConfig>,
    /// Further tables, as they stand in the file: pools and routes.
    pub tables: String,
}

impl ServiceConfig {
    #[must_use]
    pub fn new(name: &str, listen: impl Into<Vec<SocketAddr>>, forward: Forward) -> Self {
        Self {
            name: name.to_owned(),
            listen: listen.into(),
            forward,
            affinity: "none",
            idle_timeout: Duration::from_secs(3600),
            deny: Vec::new(),
            close_timeout: Duration::from_secs(30),
            l7: None,
            fail_open: true,
            health: HealthConfig::default(),
            backends: Vec::new(),
            tables: String::new(),
        }
    }

    /// # Panics
    /// If there is no such backend.
    pub fn backend(&mut self, name: &str) -> &mut BackendConfig {
        let found = self.backends.iter_mut().find(|backend| backend.name == name);
        found.unwrap_or_else(|| panic!("the config has no backend {name}"))
    }
}

/// `[service.health]`.
#[derive(Clone, Debug)]
pub struct HealthConfig {
    pub kind: &'static str,
    pub path: Option<&'static str>,
    pub port: Option<u16>,
    pub interval: Duration,
    pub timeout: Duration,
    pub rise: u32,
    pub fall: u32,
    /// Further keys, as they stand in the file.
    pub more: String,
}

impl Default for HealthConfig {
    /// Brisk, so that tests are; and patient enough with two processors that have much else to do.
    fn default() -> Self {
        Self {
            kind: "tcp",
            path: None,
            port: None,
            interval: Duration::from_millis(250),
            timeout: Duration::from_millis(250),
            rise: 2,
            fall: 4,
            more: String::new(),
        }
    }
}

impl HealthConfig {
    /// Asks for what a chat server can do.
    #[must_use]
    pub fn websocket() -> Self {
        Self { kind: "websocket", path: Some("/chat"), ..Self::default() }
    }

    /// Within which time a dead backend must be noticed.
    #[must_use]
    pub fn bound(&self) -> Duration {
        self.interval * self.fall + self.timeout
    }
}

/// One `[[service.backend]]`.
#[derive(Clone, Debug)]
pub struct BackendConfig {
    pub name: String,
    pub address: SocketAddr,
    pub weight: u32,
    /// Gives it no new clients, and takes it from those that it has: `mode = "l7"` only.
    pub drain: bool,
}

impl BackendConfig {
    #[must_use]
    pub fn new(name: &str, address: SocketAddr) -> Self {
        Self { name: name.to_owned(), address, weight: 100, drain: false }
    }
}

fn millis(duration: Duration) -> String {
    format!("\"{}ms\"", duration.as_millis())
}

fn quoted<T: fmt::Display>(values: &[T]) -> String {
    let values: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
    format!("[{}]", values.join(", "))
}

impl fmt::Display for EdgeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.nat_ports.start(), self.nat_ports.end());
        writeln!(f, "[edge]")?;
        writeln!(f, "name = \"{}\"", self.name)?;
        writeln!(f, "interfaces = {}", quoted(&self.interfaces))?;
        writeln!(f, "xdp = \"{}\"", self.xdp)?;
        writeln!(f, "source_addresses = {}", quoted(&self.source_addresses))?;
        writeln!(f, "nat_ports = \"{first}-{last}\"")?;
        writeln!(f, "hash_seed = \"same on every edge\"")?;
        writeln!(f, "admin = \"{}\"", Self::ADMIN)?;
        writeln!(f, "reset_rate = {}", self.reset_rate)?;
        if let Some(file) = &self.admin_token_file {
            writeln!(f, "admin_token_file = {file:?}")?;
        }
        writeln!(f, "vip_addresses = \"{}\"", self.vip_addresses)?;
        writeln!(f, "access = {{ deny = {} }}", quoted(&self.deny))?;
        writeln!(f, "\n[edge.tables]")?;
        writeln!(f, "flows_ipv4 = {0}\nflows_ipv6 = {0}", self.flows)?;
        writeln!(f, "handshakes = {}", self.handshakes)?;
        if self.has_l7() {
            write!(f, "\n{}", self.sidecar)?;
        }
        self.services.iter().try_for_each(|service| write!(f, "\n{service}"))
    }
}

impl fmt::Display for ServiceConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[[service]]")?;
        writeln!(f, "name = \"{}\"", self.name)?;
        writeln!(f, "listen = {}", quoted(&self.listen))?;
        match &self.l7 {
            Some(l7) => write!(f, "{l7}")?,
            None => {
                writeln!(f, "forward = \"{}\"", self.forward)?;
                writeln!(f, "affinity = \"{}\"", self.affinity)?;
            }
        }
        writeln!(f, "idle_timeout = {}", millis(self.idle_timeout))?;
        writeln!(f, "access = {{ deny = {} }}", quoted(&self.deny))?;
        writeln!(f, "close_timeout = {}", millis(self.close_timeout))?;
        writeln!(f, "fail_open = {}", self.fail_open)?;
        writeln!(f, "health = {}", self.health)?;
        for BackendConfig { name, address, weight, drain } in &self.backends {
            writeln!(f, "\n[[service.backend]]")?;
            writeln!(f, "name = \"{name}\"\naddress = \"{address}\"\nweight = {weight}")?;
            if *drain {
                writeln!(f, "drain = true")?;
            }
        }
        f.write_str(&self.tables)
    }
}

impl fmt::Display for HealthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ kind = \"{}\"", self.kind)?;
        if let Some(path) = self.path {
            write!(f, ", path = \"{path}\"")?;
        }
        if let Some(port) = self.port {
            write!(f, ", port = {port}")?;
        }
        let (interval, timeout) = (millis(self.interval), millis(self.timeout));
        write!(f, ", interval = {interval}, timeout = {timeout}")?;
        let comma = if self.more.is_empty() { "" } else { ", " };
        write!(f, ", rise = {}, fall = {}{comma}{} }}", self.rise, self.fall, self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_reads_what_is_written() {
        let listen = ["203.0.113.10:80".parse().unwrap(), "[2001:db8::10]:80".parse().unwrap()];
        let mut config = EdgeConfig::new(&["eth0", "eth1"]);
        config.source_addresses = vec!["10.2.0.1".parse().unwrap(), "fd02::1".parse().unwrap()];
        config.nat_ports = 20_000..=20_009;
        let mut service = ServiceConfig::new("chat", listen, Forward::Nat);
        service.health = HealthConfig { port: Some(9100), ..HealthConfig::websocket() };
        for (name, address) in [("chat-1", "10.2.0.2:9000"), ("chat-1-v6", "[fd02::2]:9000")] {
            service.backends.push(BackendConfig::new(name, address.parse().unwrap()));
        }
        service.backend("chat-1").weight = 7;
        config.services.push(service);
        let (read, _) = lb_agent::config::parse("edge.toml", &config.to_string()).unwrap();
        assert_eq!(read.edge.name, config.name);
        assert_eq!(read.edge.nat_ports, 20_000..=20_009);
        let service = &read.services[0];
        assert_eq!(service.listen, config.services[0].listen);
        assert_eq!(service.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [7, 100]);
    }

    #[test]
    fn the_bound_is_the_one_of_the_reference() {
        let health = HealthConfig { fall: 3, ..HealthConfig::default() };
        assert_eq!(health.bound(), Duration::from_millis(1_000));
    }
}
