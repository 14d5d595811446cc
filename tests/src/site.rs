//! A site to test: the networks, chat and echo servers in the backends, and the real agent in the edge.
//!
//! There are two services, so that each test also shows that they do not disturb each other: `chat`
//! (WebSocket, processes that can be killed) and `bulk` (plain TCP echo). A plan may add a third one, `web`:
//! the same chat servers through the sidecar. The wires are emulated links, perfect until a test makes them
//! rough: a lost SYN costs a second and shows nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::chat::{
    EchoServer, Exchange, ExchangeReport, Knock, Load, LoadConfig, LoadStats, exchange, knock,
};
use crate::edge::{
    self, BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig,
};
use crate::link::{Impairment, Link};
use crate::process::{self, Process, binary};
use crate::topology::{Arms, Node, Return, Topology};

/// The services' names.
pub const CHAT: &str = "chat";
pub const BULK: &str = "bulk";
pub const WEB: &str = "web";

/// Where clients find them.
pub const CHAT_PORT: u16 = 80;
pub const BULK_PORT: u16 = 81;
pub const WEB_PORT: u16 = 82;

const SOON: Duration = Duration::from_secs(15);

/// What to build.
#[derive(Clone, Debug)]
pub struct Plan {
    pub forward: Forward,
    pub clients: usize,
    pub backends: usize,
    pub arms: Arms,
    /// IPv4 clients are carried to IPv6 backends (`ipip` only).
    pub v4_in_v6: bool,
    /// Adds [`WEB`].
    pub l7: Option<L7Config>,
    /// The links' seed.
    pub seed: u64,
}

impl Plan {
    /// A client and three backends at an edge with two arms.
    #[must_use]
    pub fn new(forward: Forward, seed: u64) -> Self {
        Self { forward, clients: 1, backends: 3, arms: Arms::Two, v4_in_v6: false, l7: None, seed }
    }

    /// The port at the backends: with `nat` another one than the clients see.
    fn backend_port(&self, listener: u16) -> u16 {
        if self.forward == Forward::Nat { listener + 9000 } else { listener }
    }

    /// The networks.
    pub fn topology(&self) -> Result<Topology> {
        let returns = if self.forward == Forward::Nat { Return::Edge } else { Return::Direct };
        let mut builder = Topology::builder()
            .clients(self.clients)
            .backends(self.backends)
            .arms(self.arms)
            .returns(returns);
        for client in 0..self.clients {
            builder = builder.client_link(client, Impairment::default(), self.seed);
        }
        for backend in 0..self.backends {
            let seed = self.seed.wrapping_add(1 + backend as u64);
            builder = builder.backend_link(backend, Impairment::default(), seed);
        }
        builder.build()
    }

    /// The configuration of the edge in that topology.
    #[must_use]
    pub fn config(&self, lab: &Topology) -> EdgeConfig {
        let mut config = EdgeConfig::new(match self.arms {
            Arms::One => &["eth0"],
            Arms::Two => &["eth0", "eth1"],
        });
        config.source_addresses = vec!["10.2.0.1".parse().unwrap(), "fd02::1".parse().unwrap()];
        for (name, port) in [(CHAT, CHAT_PORT), (BULK, BULK_PORT)] {
            config.services.push(self.service(lab, name, port));
        }
        if let Some(l7) = self.l7.clone() {
            config.services.push(self.web(lab, l7));
            // The sidecar and `nat` reach the same ports of the same servers from the same addresses: below the
            // ports that the kernel chooses, a flow's is never the sidecar's.
            config.nat_ports = 1024..=32767;
        }
        config
    }

    /// The backends are called as the servers call themselves, and every second one is reached by IPv6: through the
    /// sidecar a client's IP version says nothing about its backend's.
    fn web(&self, lab: &Topology, l7: L7Config) -> ServiceConfig {
        let listen: Vec<_> = lab.vips().iter().map(|vip| SocketAddr::new(*vip, WEB_PORT)).collect();
        let mut service = ServiceConfig::new(WEB, listen, self.forward);
        service.l7 = Some(l7);
        service.health = HealthConfig::websocket();
        for (index, node) in lab.backends().iter().enumerate() {
            let address = node.sockets(self.backend_port(CHAT_PORT))[index % 2];
            service.backends.push(BackendConfig::new(&server_name(CHAT, index), address));
        }
        service
    }

    fn service(&self, lab: &Topology, name: &str, port: u16) -> ServiceConfig {
        let listen: Vec<SocketAddr> = lab
            .vips()
            .iter()
            .filter(|vip| vip.is_ipv4() || !self.v4_in_v6)
            .map(|vip| SocketAddr::new(*vip, port))
            .collect();
        let mut service = ServiceConfig::new(name, listen, self.forward);
        if name == CHAT {
            service.health = HealthConfig::websocket();
        }
        for (index, node) in lab.backends().iter().enumerate() {
            service.backends.extend(self.backends_at(name, index, node, port));
        }
        service
    }

    fn backends_at(
        &self,
        service: &str,
        index: usize,
        node: &Node,
        port: u16,
    ) -> impl Iterator<Item = BackendConfig> + use<> {
        let name = server_name(service, index);
        let sockets = node.sockets(self.backend_port(port)).into_iter();
        let wanted = sockets.filter({
            let v6_only = self.v4_in_v6;
            move |address| address.is_ipv6() || !v6_only
        });
        wanted.map(move |address| {
            let suffix = if address.is_ipv6() { "-v6" } else { "" };
            BackendConfig::new(&format!("{name}{suffix}"), address)
        })
    }

    /// Builds the site with the configuration that belongs to it.
    pub fn build(&self) -> Result<Site> {
        self.build_with(|_| ())
    }

    /// Builds the site, with a changed configuration, and waits until every backend is up.
    pub fn build_with(&self, change: impl FnOnce(&mut EdgeConfig)) -> Result<Site> {
        let lab = self.topology()?;
        let mut config = self.config(&lab);
        change(&mut config);
        self.populate(lab, config)
    }

    /// Starts the servers and the agent in a topology, and waits until every backend is up.
    pub fn populate(&self, lab: Topology, config: EdgeConfig) -> Result<Site> {
        let chats = (0..self.backends)
            .map(|index| self.start_chat(&lab, index).map(Some))
            .collect::<Result<_>>()?;
        let bulks = (0..self.backends).map(|i| self.start_bulk(&lab, i)).collect::<Result<_>>()?;
        if self.forward == Forward::Ipip {
            lab.backends().iter().try_for_each(|node| attach_decap(node, lab.vips()))?;
        }
        let edge = Edge::start(lab.edge(), config)?;
        edge.wait_all_up()?;
        Ok(Site { plan: self.clone(), edge, chats, _bulks: bulks, lab })
    }

    fn start_chat(&self, lab: &Topology, index: usize) -> Result<Process> {
        let name = server_name(CHAT, index);
        let mut server = lab.backend(index).command(binary("chat-server")?);
        server.args(["--name", &name]);
        for address in anywhere(self.backend_port(CHAT_PORT)) {
            server.args(["--listen", &address.to_string()]);
        }
        let server = Process::spawn(name, server)?;
        server.wait_for_line(SOON, |line| line.contains("listening on [::]"))?;
        Ok(server)
    }

    fn start_bulk(&self, lab: &Topology, index: usize) -> Result<EchoServer> {
        let listen = anywhere(self.backend_port(BULK_PORT));
        EchoServer::start(Some(lab.backend(index)), &server_name(BULK, index), &listen)
    }
}

/// What a server calls itself, over IPv4 and IPv6: `chat-1`. The backends in the configuration are called
/// so, too, those with IPv6 addresses with a `-v6` behind.
#[must_use]
pub fn server_name(service: &str, index: usize) -> String {
    format!("{service}-{}", index + 1)
}

fn anywhere(port: u16) -> [SocketAddr; 2] {
    [([0, 0, 0, 0], port).into(), ([0u16; 8], port).into()]
}

/// Lets a backend take packets for the VIPs out of their tunnels, which this kernel has no device for.
fn attach_decap(node: &Node, vips: &[IpAddr]) -> Result<()> {
    let mut command = node.command(edge::agent()?);
    command.args(["decap", "attach", "--interface", "eth0"]);
    for vip in vips {
        command.args(["--vip", &vip.to_string()]);
    }
    process::run(&mut command).map(drop).context("lb-agent decap attach")
}

/// A running site. Everything of it goes when it is dropped: first the agent, last the networks.
#[derive(Debug)]
pub struct Site {
    plan: Plan,
    pub edge: Edge,
    chats: Vec<Option<Process>>,
    _bulks: Vec<EchoServer>,
    pub lab: Topology,
}

impl Site {
    /// Where clients find a service.
    #[must_use]
    pub fn listeners(&self, service: &str) -> Vec<SocketAddr> {
        let config = self.edge.config();
        let found = config.services.iter().find(|it| it.name == service);
        found.map(|it| it.listen.clone()).unwrap_or_default()
    }

    /// A load of chats over all listeners, patient with rough wires.
    #[must_use]
    pub fn chats(&self, connections: usize) -> LoadConfig {
        self.chats_of(CHAT, connections)
    }

    /// [`Site::chats`] with [`CHAT`] or [`WEB`].
    #[must_use]
    pub fn chats_of(&self, service: &str, connections: usize) -> LoadConfig {
        LoadConfig {
            connect_timeout: Duration::from_secs(30),
            stall: Duration::from_secs(30),
            ..LoadConfig::new(self.listeners(service), connections, self.plan.seed)
        }
    }

    /// A chat of one message with [`WEB`], from the first client, with a cookie or without.
    pub fn knock(&self, target: SocketAddr, cookie: Option<&str>) -> Result<Knock> {
        knock(self.lab.client(0), target, cookie)
    }

    /// Starts a load at the first client and waits until all of it is connected.
    pub fn start(&self, config: LoadConfig) -> Result<Load> {
        let load = Load::start(Some(self.lab.client(0)), config)?;
        load.wait_connected(SOON)?;
        Ok(load)
    }

    /// Opens new chats, has a message of each echoed and closes them; nothing may go wrong.
    pub fn visit(&self, connections: usize) -> Result<LoadStats> {
        let load = self.start(self.chats(connections))?;
        load.wait_progress(1, SOON)?;
        let stats = load.stop();
        ensure!((stats.errors, stats.wrong) == (0, 0), "newcomers met an error: {stats}");
        Ok(stats)
    }

    /// Has `bytes` echoed through a listener, from the first client.
    pub fn echo(&self, target: SocketAddr, bytes: u64) -> Result<ExchangeReport> {
        exchange(Some(self.lab.client(0)), &Exchange::new(target, self.plan.seed, bytes))
    }

    fn links(nodes: &[Node]) -> impl Iterator<Item = Arc<Link>> {
        nodes.iter().filter_map(|node| node.port("eth0").link())
    }

    /// Makes the wires bad: they delay, reorder and duplicate, and the clients' lose and corrupt as well.
    ///
    /// The backends' wires lose nothing, since the health probes take them, too, and a lost SYN makes a
    /// probe fail. Only one wire of a path corrupts: two flipped bits can cancel each other in TCP's checksum.
    pub fn roughen(&self) {
        let rough = Impairment { delay: Duration::from_millis(1), ..Impairment::rough(1.0) };
        Self::links(self.lab.clients()).for_each(|link| link.set(rough.clone()));
        let lossless = Impairment { drop: 0.0, corrupt: 0.0, ..rough };
        Self::links(self.lab.backends()).for_each(|link| link.set(lossless.clone()));
    }

    /// Makes the wires perfect again.
    pub fn smoothen(&self) {
        let links = Self::links(self.lab.clients()).chain(Self::links(self.lab.backends()));
        links.for_each(|link| link.set(Impairment::default()));
    }

    /// The pid of a chat server, if it runs.
    #[must_use]
    pub fn chat_pid(&self, index: usize) -> Option<u32> {
        self.chats[index].as_ref().map(Process::pid)
    }

    /// `kill -9` of a chat server: its kernel resets its connections.
    pub fn kill_chat(&mut self, index: usize) -> Result<()> {
        self.chats[index].take().context("no such server runs")?.kill().map(drop)
    }

    /// Starts a killed chat server again.
    pub fn revive_chat(&mut self, index: usize) -> Result<()> {
        self.chats[index] = Some(self.plan.start_chat(&self.lab, index)?);
        Ok(())
    }

    /// Cuts or mends a backend's wire: the machine is gone without a word.
    pub fn cut(&self, index: usize, cut: bool) {
        let wire = if cut { Impairment::cut() } else { Impairment::default() };
        Self::links(&self.lab.backends()[index..=index]).for_each(|link| link.set(wire.clone()));
    }
}
