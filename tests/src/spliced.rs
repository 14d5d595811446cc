//! A site whose upgraded connections are spliced: chat servers behind an edge that balances their handshakes.
//!
//! A splice needs one IP version from end to end, so there are two services, each with backends of its own
//! version: the same servers at their IPv4 and their IPv6 addresses.

mod watch;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::chat::{LoadConfig, ServerStats};
use crate::edge::{
    self, BackendConfig, Edge, EdgeConfig, FlowLine, Forward, HealthConfig, L7Config,
    ServiceConfig, Status,
};
use crate::link::{Impairment, Link};
use crate::netns::{NsHandle, NsTask, Stop};
use crate::process::{Process, binary};
use crate::topology::{Builder, Node, Topology};

pub use watch::Watch;

/// The services' names, in the order of their listeners: IPv4, IPv6.
pub const SERVICES: [&str; 2] = ["web4", "web6"];
const PORT: u16 = 80;
/// Where the servers listen.
pub const BACKEND_PORT: u16 = 9080;

/// So that a test need not wait long until nothing is left; longer than a delayed packet takes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(15);
/// Until all is forgotten that has closed, and all is spliced that can be.
const LATER: Duration = Duration::from_secs(90);

/// What to build.
#[derive(Clone, Debug)]
pub struct SplicedPlan {
    pub clients: usize,
    pub backends: usize,
    pub l7: L7Config,
    pub idle_timeout: Duration,
    pub health: HealthConfig,
    /// Emulated links, perfect until a test changes them, in place of veth pairs.
    pub wires: bool,
    pub seed: u64,
}

impl SplicedPlan {
    /// A client and three backends.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            clients: 1,
            backends: 3,
            l7: L7Config::default(),
            idle_timeout: Duration::from_secs(3600),
            health: HealthConfig::websocket(),
            wires: false,
            seed,
        }
    }

    /// Builds it and waits until every backend is up.
    pub fn build(self) -> Result<SplicedSite> {
        let lab = self.topology().build()?;
        self.populate(lab)
    }

    /// The networks.
    #[must_use]
    pub fn topology(&self) -> Builder {
        let mut builder = Topology::builder().clients(self.clients).backends(self.backends);
        if self.wires {
            for client in 0..self.clients {
                builder = builder.client_link(client, Impairment::default(), self.seed);
            }
            for backend in 0..self.backends {
                let seed = self.seed.wrapping_add(1 + backend as u64);
                builder = builder.backend_link(backend, Impairment::default(), seed);
            }
        }
        builder
    }

    /// Starts the servers and the agent in a topology.
    pub fn populate(self, lab: Topology) -> Result<SplicedSite> {
        let config = self.config(&lab);
        self.populate_with(lab, config)
    }

    /// The configuration of the edge in a topology.
    #[must_use]
    pub fn config(&self, lab: &Topology) -> EdgeConfig {
        let mut config = EdgeConfig::new(&["eth0", "eth1"]);
        config.source_addresses = vec!["10.2.0.1".parse().unwrap(), "fd02::1".parse().unwrap()];
        // A splice needs the SYNs of both sides, and thousands may come at a time.
        config.handshakes = 65_536;
        for (version, name) in SERVICES.into_iter().enumerate() {
            let listen = [SocketAddr::new(lab.vips()[version], PORT)];
            let mut service = ServiceConfig::new(name, listen, Forward::Nat);
            service.l7 = Some(self.l7.clone());
            service.idle_timeout = self.idle_timeout;
            service.close_timeout = CLOSE_TIMEOUT;
            service.health = self.health.clone();
            for (index, node) in lab.backends().iter().enumerate() {
                let address = node.sockets(BACKEND_PORT)[version];
                service.backends.push(BackendConfig::new(&server_name(index), address));
            }
            config.services.push(service);
        }
        config
    }

    /// [`SplicedPlan::populate`] with a configuration.
    pub fn populate_with(self, lab: Topology, config: EdgeConfig) -> Result<SplicedSite> {
        let start = |index| start_server(lab.backend(index), &server_name(index)).map(Some);
        let servers = (0..self.backends).map(start).collect::<Result<_>>()?;
        let edge = Edge::start(lab.edge(), config)?;
        edge.wait_all_up()?;
        Ok(SplicedSite { edge, servers, lab, seed: self.seed })
    }
}

/// Starts a server on the port that backends have.
pub fn start_server(namespace: &NsHandle, name: &str) -> Result<Process> {
    let mut server = namespace.command(binary("chat-server")?);
    server.args(["--name", name]);
    for any in ["0.0.0.0", "[::]"] {
        server.args(["--listen", &format!("{any}:{BACKEND_PORT}")]);
    }
    let server = Process::spawn(name, server)?;
    server.wait_for_line(SOON, |line| line.contains("listening on [::]"))?;
    Ok(server)
}

/// What a server, and the backends that are its addresses, are called.
#[must_use]
pub fn server_name(index: usize) -> String {
    format!("chat-{}", index + 1)
}

/// A running site. Everything of it goes when it is dropped: first the agent, last the networks.
#[derive(Debug)]
pub struct SplicedSite {
    pub edge: Edge,
    servers: Vec<Option<Process>>,
    pub lab: Topology,
    pub seed: u64,
}

impl SplicedSite {
    /// Where clients find the services: IPv4, IPv6.
    #[must_use]
    pub fn listeners(&self) -> [SocketAddr; 2] {
        [0, 1].map(|version| SocketAddr::new(self.lab.vips()[version], PORT))
    }

    /// The address of a client that can connect to a listener.
    #[must_use]
    pub fn client_address(&self, client: usize, target: SocketAddr) -> IpAddr {
        let client = self.lab.client(client);
        if target.is_ipv4() { client.v4().into() } else { client.v6().into() }
    }

    /// A load of WebSocket chats over both services. A lost one stays lost.
    #[must_use]
    pub fn chats(&self, connections: usize) -> LoadConfig {
        LoadConfig {
            stall: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(30),
            reconnect: false,
            ..LoadConfig::new(self.listeners(), connections, self.seed)
        }
    }

    /// Runs clients on a thread in a client's namespace, to their end.
    pub fn clients<T, F>(&self, client: usize, f: impl FnOnce(Stop) -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        self.start_clients(client, f).join()
    }

    /// Starts clients on a thread in a client's namespace.
    pub fn start_clients<T, F>(
        &self,
        client: usize,
        f: impl FnOnce(Stop) -> F + Send + 'static,
    ) -> NsTask<T>
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        NsTask::start(Some(self.lab.client(client)), "clients", f)
    }

    /// The spliced connections that neither end has begun to close.
    pub fn spliced(&self) -> Result<BTreeSet<FlowLine>> {
        let flows = self.edge.flows()?.into_iter();
        Ok(flows.filter(|flow| flow.is_spliced() && flow.is_open()).collect())
    }

    /// Waits until so many connections are spliced.
    pub fn wait_spliced(&self, connections: usize) -> Result<BTreeSet<FlowLine>> {
        let deadline = Instant::now() + LATER;
        loop {
            let spliced = self.spliced()?;
            if spliced.len() >= connections {
                return Ok(spliced);
            }
            if Instant::now() >= deadline {
                let (have, counted) = (spliced.len(), self.splices()?);
                bail!("{have} of {connections} are spliced; the workers counted {counted:?}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until both flow tables are empty, whatever was in them.
    pub fn wait_empty(&self) -> Result<()> {
        let deadline = Instant::now() + LATER;
        loop {
            let entries = self.edge.flow_entries()?;
            if entries == 0 {
                let listed = self.edge.flows()?;
                ensure!(listed.is_empty(), "an empty table, and {} are listed", listed.len());
                return Ok(());
            }
            if Instant::now() >= deadline {
                let first: Vec<_> = self.edge.flows()?.into_iter().take(5).collect();
                bail!("{entries} entries stay in the flow tables: {first:#?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What the workers have counted of splices, label by label, for a message.
    pub fn splices(&self) -> Result<Vec<(String, u64)>> {
        let status = self.edge.status()?;
        let of = |service| {
            let splices = status.splices(service).into_iter();
            splices.map(move |(label, count)| (format!("{service}: {label}"), count))
        };
        Ok(SERVICES.into_iter().flat_map(of).collect())
    }

    /// Waits until the workers have counted an outcome so many times, over both services.
    pub fn wait_counted(&self, label: &str, times: u64) -> Result<()> {
        let what = format!("{label} is counted {times} times");
        let sum = |it: &Status| SERVICES.iter().map(|name| it.happened(name, label)).sum::<u64>();
        self.edge.wait_for(&what, SOON, |status| sum(status) >= times).map(drop)
    }

    fn ask(&self, index: usize, path: &str) -> Result<String> {
        let node = self.lab.backend(index);
        let answer = edge::get(node, node.sockets(BACKEND_PORT)[0], path)?;
        ensure!(answer.status == 200, "{path}: {answer:?}");
        Ok(answer.body)
    }

    /// What a server did so far.
    pub fn stats(&self, index: usize) -> Result<ServerStats> {
        Ok(serde_json::from_str(&self.ask(index, "/stats")?)?)
    }

    /// [`SplicedSite::stats`] of all servers that run.
    pub fn all_stats(&self) -> Result<Vec<ServerStats>> {
        let running = (0..self.servers.len()).filter(|index| self.servers[*index].is_some());
        running.map(|index| self.stats(index)).collect()
    }

    /// Has a server answer its health probes, and newcomers, as one that fails. Its connections stay.
    pub fn fail(&self, index: usize, fails: bool) -> Result<()> {
        self.ask(index, if fails { "/fail" } else { "/recover" }).map(drop)
    }

    fn links(nodes: &[Node]) -> impl Iterator<Item = Arc<Link>> {
        nodes.iter().filter_map(|node| node.port("eth0").link())
    }

    /// Makes emulated wires bad: the clients' delay each way, and lose and reorder such a share of the frames. The
    /// backends' stay good, since the health probes take them, too.
    pub fn rough(&self, delay: Duration, percent: f64) {
        let wire = Impairment { delay, drop: percent, reorder: percent, ..Impairment::default() };
        Self::links(self.lab.clients()).for_each(|link| link.set(wire.clone()));
    }

    /// Makes the wires perfect again.
    pub fn smooth(&self) {
        Self::links(self.lab.clients()).for_each(|link| link.set(Impairment::default()));
    }

    /// `kill -9` of a server: its kernel resets its connections.
    pub fn kill_server(&mut self, index: usize) -> Result<()> {
        self.servers[index].take().context("no such server runs")?.kill().map(drop)
    }

    /// Starts a killed server again.
    pub fn revive_server(&mut self, index: usize) -> Result<()> {
        self.servers[index] = Some(start_server(self.lab.backend(index), &server_name(index))?);
        Ok(())
    }
}
