//! The networks of the lab: clients, the edge, backends and the switch between them, each in a namespace.
//!
//! ```text
//! two-armed   clients 10.1.0.2.. --- [front] --- eth0 edge eth1 --- [back] --- backends 10.2.0.2..
//!             and, for direct returns, a router 10.1.0.254 / 10.2.0.254 beside the edge
//! one-armed   clients, edge (eth0 with 10.1.0.1 and 10.2.0.1) and backends all on [front]
//! ```
//! IPv6 is alike: fd01::/64 and fd02::/64, with the same last number in hex. Every machine has its device
//! `eth0` (the edge also `eth1`) at a switch port; `[front]` and `[back]` are bridges in the switch's
//! namespace. A port can be an emulated link instead of a veth pair.

mod pass;
mod plan;
mod port;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Deref;

use anyhow::{Context, Result, ensure};

use crate::link::Impairments;
use crate::netns::Netns;

pub use plan::{Net, VIP4, VIP6};
pub use port::Port;
use port::PortSpec;

const FRONT: &str = "front";
const BACK: &str = "back";
/// The router's number on both nets.
const ROUTER: u8 = 254;
const MOST: usize = 200;

/// How many sides the edge has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Arms {
    /// Everything on one switch; the edge has only `eth0`.
    One,
    /// Clients on `eth0`, backends on `eth1`.
    #[default]
    Two,
}

/// How a backend's answers go back to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Return {
    /// Through the edge (`nat`).
    #[default]
    Edge,
    /// Past the edge (`dsr`, `ipip`): the backends have the VIPs on `lo`, and a way to the clients.
    Direct,
}

/// What to build. The default is the lab: a client, the edge with two arms, three backends.
#[derive(Clone, Debug)]
pub struct Builder {
    clients: usize,
    backends: usize,
    arms: Arms,
    returns: Return,
    vips: Vec<IpAddr>,
    client_links: BTreeMap<usize, (Impairments, u64)>,
    backend_links: BTreeMap<usize, (Impairments, u64)>,
}

impl Builder {
    #[must_use]
    pub fn clients(self, clients: usize) -> Self {
        Self { clients, ..self }
    }

    #[must_use]
    pub fn backends(self, backends: usize) -> Self {
        Self { backends, ..self }
    }

    #[must_use]
    pub fn arms(self, arms: Arms) -> Self {
        Self { arms, ..self }
    }

    #[must_use]
    pub fn returns(self, returns: Return) -> Self {
        Self { returns, ..self }
    }

    /// Replaces [`VIP4`] and [`VIP6`].
    #[must_use]
    pub fn vips(self, vips: impl Into<Vec<IpAddr>>) -> Self {
        Self { vips: vips.into(), ..self }
    }

    /// Puts an emulated link between a client and its switch port. Direction A to B is from the client.
    #[must_use]
    pub fn client_link(mut self, client: usize, wire: impl Into<Impairments>, seed: u64) -> Self {
        self.client_links.insert(client, (wire.into(), seed));
        self
    }

    /// Puts an emulated link between a backend and its switch port. A to B is from the backend.
    #[must_use]
    pub fn backend_link(mut self, backend: usize, wire: impl Into<Impairments>, seed: u64) -> Self {
        self.backend_links.insert(backend, (wire.into(), seed));
        self
    }

    /// Builds it; what was built before a failure is removed.
    pub fn build(self) -> Result<Topology> {
        ensure!(
            self.clients <= MOST && self.backends <= MOST,
            "a topology has at most {MOST} clients and {MOST} backends"
        );
        let switch = Netns::new("switch")?;
        // The switch is no host: without IPv6 it answers nobody's neighbour solicitations.
        switch.sysctls(&[
            ("ipv6/conf/all/disable_ipv6", "1"),
            ("ipv6/conf/default/disable_ipv6", "1"),
        ])?;
        for bridge in [FRONT, BACK] {
            switch.ip(&format!(
                "link add {bridge} type bridge stp_state 0 forward_delay 0 mcast_snooping 0\nlink set {bridge} up"
            ))?;
        }
        let edge = self.edge(&switch).context("cannot build the edge")?;
        let clients = (0..self.clients)
            .map(|i| self.client(&switch, i).with_context(|| format!("cannot build client {i}")))
            .collect::<Result<Vec<_>>>()?;
        let backends = (0..self.backends)
            .map(|i| self.backend(&switch, i).with_context(|| format!("cannot build backend {i}")))
            .collect::<Result<Vec<_>>>()?;
        let router = match (self.arms, self.returns) {
            (Arms::Two, Return::Direct) => {
                Some(Self::router(&switch).context("cannot build the router")?)
            }
            _ => None,
        };
        Ok(Topology { clients, edge, backends, router, switch, vips: self.vips })
    }

    fn edge(&self, switch: &Netns) -> Result<Node> {
        let front = |addresses| {
            PortSpec::new("eth0", Net::Front.mac(1), FRONT, "edge0").addresses(addresses)
        };
        let specs = match self.arms {
            Arms::One => {
                vec![front([Net::Front.addresses(1), Net::Back.addresses(1)].concat())]
            }
            Arms::Two => vec![
                front(Net::Front.addresses(1).into()),
                PortSpec::new("eth1", Net::Back.mac(1), BACK, "edge1")
                    .addresses(Net::Back.addresses(1).into()),
            ],
        };
        let node = Node::new("edge", Net::Front, 1, switch, specs, None)?;
        forward_packets(&node)?;
        Ok(node)
    }

    fn client(&self, switch: &Netns, index: usize) -> Result<Node> {
        let host = host(index);
        // Backends are reached directly on one net, and by the edge's plain routing on two.
        let mut routes: Vec<String> = Vec::new();
        for vip in &self.vips {
            let via = if vip.is_ipv4() {
                Net::Front.v4(1).to_string()
            } else {
                Net::Front.v6(1).to_string()
            };
            routes.push(format!("{vip} via {via}"));
        }
        match self.arms {
            Arms::One => routes.extend(Net::Back.prefixes()),
            Arms::Two => {
                let [v4, v6] = Net::Back.prefixes();
                routes.push(format!("{v4} via {}", Net::Front.v4(1)));
                routes.push(format!("{v6} via {}", Net::Front.v6(1)));
            }
        }
        let spec = PortSpec::new("eth0", Net::Front.mac(host), FRONT, &format!("client{index}"))
            .addresses(Net::Front.addresses(host).into())
            .routes(routes);
        let link = self.client_links.get(&index).cloned();
        Node::new(&format!("client-{}", index + 1), Net::Front, host, switch, vec![spec], link)
    }

    fn backend(&self, switch: &Netns, index: usize) -> Result<Node> {
        let host = host(index);
        let (bridge, routes) = match (self.arms, self.returns) {
            (Arms::One, _) => (FRONT, Net::Front.prefixes().into()),
            (Arms::Two, returns) => {
                let gateway = if returns == Return::Edge { 1 } else { ROUTER };
                let (v4, v6) = (Net::Back.v4(gateway), Net::Back.v6(gateway));
                (BACK, vec![format!("default via {v4}"), format!("default via {v6}")])
            }
        };
        let spec = PortSpec::new("eth0", Net::Back.mac(host), bridge, &format!("backend{index}"))
            .addresses(Net::Back.addresses(host).into())
            .routes(routes);
        let link = self.backend_links.get(&index).cloned();
        let role = format!("backend-{}", index + 1);
        let node = Node::new(&role, Net::Back, host, switch, vec![spec], link)?;
        if self.returns == Return::Direct {
            // The VIPs are on `lo` of every backend: none may answer ARP for them.
            node.sysctls(&[
                ("ipv4/conf/all/arp_ignore", "1"),
                ("ipv4/conf/all/arp_announce", "2"),
            ])?;
            for vip in &self.vips {
                let (length, flags) = if vip.is_ipv4() { (32, "") } else { (128, "nodad") };
                node.ip(&format!("address add {vip}/{length} dev lo {flags}"))?;
            }
        }
        Ok(node)
    }

    fn router(switch: &Netns) -> Result<Node> {
        let spec = |net: Net, device: &str, bridge: &'static str, port: &str| {
            PortSpec::new(device, net.mac(ROUTER), bridge, port)
                .addresses(net.addresses(ROUTER).into())
        };
        let specs = vec![
            spec(Net::Front, "eth0", FRONT, "router0"),
            spec(Net::Back, "eth1", BACK, "router1"),
        ];
        let node = Node::new("router", Net::Front, ROUTER, switch, specs, None)?;
        forward_packets(&node)?;
        Ok(node)
    }
}

/// The number of a client or a backend on its net: 1 is the edge.
fn host(index: usize) -> u8 {
    u8::try_from(index + 2).expect("the builder has checked the number")
}

fn forward_packets(node: &Netns) -> Result<()> {
    node.sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])
}

/// A network. Everything of it goes when it is dropped.
#[derive(Debug)]
pub struct Topology {
    clients: Vec<Node>,
    edge: Node,
    backends: Vec<Node>,
    router: Option<Node>,
    switch: Netns,
    vips: Vec<IpAddr>,
}

impl Topology {
    #[must_use]
    pub fn builder() -> Builder {
        Builder {
            clients: 1,
            backends: 3,
            arms: Arms::default(),
            returns: Return::default(),
            vips: vec![VIP4.into(), VIP6.into()],
            client_links: BTreeMap::new(),
            backend_links: BTreeMap::new(),
        }
    }

    #[must_use]
    pub fn client(&self, index: usize) -> &Node {
        &self.clients[index]
    }

    #[must_use]
    pub fn clients(&self) -> &[Node] {
        &self.clients
    }

    #[must_use]
    pub fn edge(&self) -> &Node {
        &self.edge
    }

    #[must_use]
    pub fn backend(&self, index: usize) -> &Node {
        &self.backends[index]
    }

    #[must_use]
    pub fn backends(&self) -> &[Node] {
        &self.backends
    }

    /// Beside a two-armed edge with direct returns.
    #[must_use]
    pub fn router(&self) -> Option<&Node> {
        self.router.as_ref()
    }

    /// The namespace of the bridges `front` and `back`. Its port `edge0` is the place to capture what the
    /// edge's XDP program transmits on `eth0`.
    #[must_use]
    pub fn switch(&self) -> &Netns {
        &self.switch
    }

    #[must_use]
    pub fn vips(&self) -> &[IpAddr] {
        &self.vips
    }
}

/// A machine: a namespace and its devices. It can be used as the namespace.
#[derive(Debug)]
pub struct Node {
    // Before the namespace: an emulated link gives its devices up first.
    ports: Vec<Port>,
    netns: Netns,
    net: Net,
    host: u8,
}

impl Node {
    fn new(
        role: &str,
        net: Net,
        host: u8,
        switch: &Netns,
        specs: Vec<PortSpec>,
        link: Option<(Impairments, u64)>,
    ) -> Result<Self> {
        let netns = Netns::new(role)?;
        let mut ports = Vec::new();
        for spec in specs {
            ports.push(Port::connect(&netns, switch, spec, link.clone())?);
        }
        Ok(Self { ports, netns, net, host })
    }

    /// Its address on its own net (the edge's: towards the clients).
    #[must_use]
    pub fn v4(&self) -> Ipv4Addr {
        self.net.v4(self.host)
    }

    #[must_use]
    pub fn v6(&self) -> Ipv6Addr {
        self.net.v6(self.host)
    }

    /// Its IPv4 and IPv6 addresses with a port.
    #[must_use]
    pub fn sockets(&self, port: u16) -> [SocketAddr; 2] {
        [(self.v4(), port).into(), (self.v6(), port).into()]
    }

    /// The hardware address of `eth0`.
    #[must_use]
    pub fn mac(&self) -> String {
        self.net.mac(self.host)
    }

    /// Its device of that name.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn port(&self, device: &str) -> &Port {
        let found = self.ports.iter().find(|port| port.device() == device);
        found.unwrap_or_else(|| panic!("{} has no device {device}", self.netns.name()))
    }
}

impl Deref for Node {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.netns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_machines_are_refused() {
        let error = Topology::builder().backends(300).build().unwrap_err();
        assert!(error.to_string().contains("200"), "{error}");
    }
}
