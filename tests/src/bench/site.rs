//! The place of one proxy: a client, an edge and a backend, each in a namespace, in a row.
//!
//! ```text
//! client 10.1.0.2 ===veth=== 10.1.0.1 edge 10.2.0.1 ===veth=== 10.2.0.2 backend, three ports for each server
//! ```
//! Every proxy has such a place of its own, so that none finds another's connections in TIME_WAIT.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::{netns::Netns, process::Process};
use anyhow::{Context, Result};

use crate::bench::backend;

/// Where clients find the service.
pub const VIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const VIP_PORT: u16 = 80;

/// Where the edge connects from.
pub const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 1);
const BACKEND: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 2);
const FIRST_BACKEND_PORT: u16 = 9001;
/// That a server listens on: as many backends as it seems to be.
const PORTS: u16 = 3;
const SOON: Duration = Duration::from_secs(5);

pub struct Site {
    /// Before its namespace.
    _servers: Vec<Process>,
    backends: Vec<SocketAddr>,
    pub client: Netns,
    pub edge: Netns,
    _backend: Netns,
}

impl Site {
    /// With one server.
    pub fn build() -> Result<Self> {
        Self::with_servers(1)
    }

    /// With so many servers, each a process with descriptors of its own.
    pub fn with_servers(servers: u16) -> Result<Self> {
        let client = node("client")?;
        let edge = node("edge")?;
        let backend = node("backend")?;
        join(&edge, "eth0", "10.1.0.1/24", &client, "10.1.0.2/24")?;
        join(&edge, "eth1", &format!("{SOURCE}/24"), &backend, &format!("{BACKEND}/24"))?;
        client.ip("route add default via 10.1.0.1")?;
        backend.ip("route add default via 10.2.0.1")?;
        // For the clients that connect directly.
        edge.sysctl("ipv4/ip_forward", "1")?;
        let (mut processes, mut all) = (Vec::new(), Vec::new());
        for server in 0..servers {
            let first = FIRST_BACKEND_PORT + server * PORTS;
            let own = (first..first + PORTS).map(|port| SocketAddr::from((BACKEND, port)));
            let own: Vec<_> = own.collect();
            let mut command = backend.command(std::env::current_exe()?);
            command.arg("backend").args(own.iter().map(SocketAddr::to_string));
            let process = Process::spawn("backend", command)?;
            process.wait_for_line(SOON, |line| line == backend::READY)?;
            processes.push(process);
            all.extend(own);
        }
        // What XDP redirects into a veth needs NAPI at the peer, which GRO brings; and checksums that are left to a
        // device which is none would be corrupted by incremental updates.
        for end in [&client, &backend] {
            end.exec("ethtool", &["-K", "eth0", "tx", "off", "gro", "on"])?;
        }
        Ok(Self { _servers: processes, backends: all, client, edge, _backend: backend })
    }

    /// Where the backends are.
    #[must_use]
    pub fn backends(&self) -> &[SocketAddr] {
        &self.backends
    }
}

fn node(role: &str) -> Result<Netns> {
    let node = Netns::new(role)?;
    // Thousands of connections a second, each from a port of its own, which is free again after a second.
    node.sysctls(&[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_tw_reuse", "1")])?;
    Ok(node)
}

/// Connects a device of `edge` with `eth0` of the other.
fn join(
    edge: &Netns,
    device: &str,
    address: &str,
    other: &Netns,
    other_address: &str,
) -> Result<()> {
    let other_name = other.name();
    edge.ip(&format!(
        "link add {device} type veth peer name eth0 netns {other_name}\n\
         address add {address} dev {device}\nlink set {device} up"
    ))?;
    other
        .ip(&format!("address add {other_address} dev eth0\nlink set eth0 up"))
        .with_context(|| format!("{device} to {other_name}"))
}
