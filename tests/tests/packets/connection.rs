//! A client's connection to a service: what each end sends, and what must arrive at the other.

use std::net::SocketAddr;

use lb_common::{counters::BackendCounters, flow::forward, outcome::Event};
use tests::{
    dataplane::{
        Dataplane, Expect, Scenario, id,
        scenario::{self, EDGE_MAC, ROUTER_MAC},
    },
    packet::{
        Frame, Ip, Link, Packet, Tcp,
        tcp::{ACK, SYN, option},
    },
};

/// Initial sequence numbers.
pub const CLIENT: u32 = 0x1000_0000;
pub const SERVER: u32 = 0x9000_0000;

/// Both IP versions: `v6`.
pub const VERSIONS: [bool; 2] = [false, true];

/// Every service and IP version that a client can meet.
pub fn services() -> impl Iterator<Item = (u16, bool)> {
    let all = [id::NAT, id::DSR, id::IPIP, id::IPIP6, id::AFFINE];
    let versions = all.into_iter().flat_map(|service| VERSIONS.map(|v6| (service, v6)));
    // No tunnel carries IPv6 in IPv4.
    versions.filter(|it| *it != (id::IPIP, true))
}

/// A name for messages.
pub fn name(service: u16, v6: bool) -> String {
    let how = match service {
        id::NAT => "nat",
        id::DSR => "dsr",
        id::IPIP => "ipip in 4",
        id::IPIP6 => "ipip in 6",
        id::AFFINE => "nat by source",
        _ => "no backend",
    };
    format!("{how}, {}", if v6 { "IPv6" } else { "IPv4" })
}

/// A connection through the edge.
#[derive(Clone, Debug)]
pub struct Connection {
    pub service: u16,
    pub client: SocketAddr,
    pub vip: SocketAddr,
    /// Id of the backend.
    pub backend: u16,
    /// The backend's address and port.
    pub server: SocketAddr,
    /// `nat`: the edge's address and port towards the backend.
    pub source: SocketAddr,
    /// Source of the outer header, `ipip`.
    outer_source: std::net::IpAddr,
    forward: u8,
}

impl Connection {
    /// The usual client's connection to a service.
    pub fn new(plane: &Dataplane, service: u16, v6: bool) -> Self {
        Self::between(&plane.scenario, scenario::client(v6), scenario::listener(service, v6))
    }

    /// A client's connection to a listener.
    pub fn between(scenario: &Scenario, client: SocketAddr, vip: SocketAddr) -> Self {
        let backend = scenario.pick(client, vip);
        let server = scenario.backend_addr(backend);
        let service = scenario.backends[&backend].service;
        let v6 = vip.is_ipv6();
        Self {
            service,
            client,
            vip,
            backend,
            server,
            source: SocketAddr::new(scenario::edge_source(v6), client.port()),
            outer_source: scenario::edge_source(server.is_ipv6()),
            forward: scenario.services[&service].forward,
        }
    }

    pub fn is_nat(&self) -> bool {
        self.forward == forward::NAT
    }

    /// A segment from the client, as it comes from the router. The ports are filled in.
    pub fn up(&self, mut tcp: Tcp) -> Frame {
        (tcp.sport, tcp.dport) = (self.client.port(), self.vip.port());
        let ip = Ip::new(self.client.ip(), self.vip.ip());
        Frame::new(Link::new(EDGE_MAC, ROUTER_MAC), Packet::tcp(ip, tcp))
    }

    /// What the backend must get of a frame from the client.
    pub fn forwarded(&self, sent: &Frame) -> Frame {
        let mut frame = sent.clone();
        frame.link = Link::new(scenario::mac(self.backend), EDGE_MAC);
        frame.packet.ip.ttl -= 1;
        match self.forward {
            forward::NAT => {
                (frame.packet.ip.src, frame.packet.ip.dst) = (self.source.ip(), self.server.ip());
                let tcp = frame.packet.as_tcp();
                (tcp.sport, tcp.dport) = (self.source.port(), self.server.port());
            }
            forward::IPIP => frame.packet = self.tunnelled(frame.packet),
            _ => {}
        }
        frame
    }

    /// A packet in the tunnel to the backend.
    pub fn tunnelled(&self, packet: Packet) -> Packet {
        let mut outer = Ip::new(self.outer_source, self.server.ip());
        outer.ttl = 64;
        outer.id = 0;
        outer.flow_label = 0;
        outer.traffic_class = packet.ip.traffic_class;
        packet.within(outer)
    }

    /// A segment from the backend, as it comes to the edge (`nat`). The ports are filled in.
    pub fn down(&self, mut tcp: Tcp) -> Frame {
        (tcp.sport, tcp.dport) = (self.server.port(), self.source.port());
        let ip = Ip::new(self.server.ip(), self.source.ip());
        Frame::new(Link::new(EDGE_MAC, scenario::mac(self.backend)), Packet::tcp(ip, tcp))
    }

    /// What the client must get of a frame from the backend.
    pub fn returned(&self, sent: &Frame) -> Frame {
        sent.with(|frame| {
            frame.link = Link::new(ROUTER_MAC, EDGE_MAC);
            frame.packet.ip.ttl -= 1;
            (frame.packet.ip.src, frame.packet.ip.dst) = (self.vip.ip(), self.client.ip());
            let tcp = frame.packet.as_tcp();
            (tcp.sport, tcp.dport) = (self.vip.port(), self.client.port());
        })
    }

    /// The frame goes on to the backend, with these flow counters.
    pub fn goes_up(&self, sent: &Frame) -> Expect {
        Expect::transmit(self.forwarded(sent).bytes())
            .to_backend(self.backend, sent.packet.bytes().len())
    }

    /// The frame goes back to the client.
    pub fn goes_down(&self, sent: &Frame) -> Expect {
        Expect::transmit(self.returned(sent).bytes())
            .to_client(self.backend, sent.packet.bytes().len())
    }

    /// A SYN, as operating systems send it.
    pub fn syn(&self) -> Frame {
        let tcp = Tcp::new(0, 0, SYN).numbers(CLIENT, 0).options(&[
            &option::mss(1460),
            option::SACK_PERMITTED,
            &option::timestamps(77, 0),
            option::NOP,
            &option::window_scale(7),
        ]);
        self.up(tcp)
    }

    /// The answer of the backend.
    pub fn syn_ack(&self) -> Frame {
        let tcp = Tcp::new(0, 0, SYN | ACK).numbers(SERVER, CLIENT + 1).options(&[
            &option::mss(1440),
            option::SACK_PERMITTED,
            &option::timestamps(99, 77),
            option::NOP,
            &option::window_scale(9),
        ]);
        self.down(tcp)
    }

    /// The segment with which the client completes the handshake.
    pub fn handshake_ack(&self) -> Frame {
        self.up(Tcp::new(0, 0, ACK).numbers(CLIENT + 1, SERVER + 1))
    }

    /// What a new connection's SYN counts and becomes.
    pub fn syn_goes_up(&self, sent: &Frame) -> Expect {
        self.goes_up(sent)
            .counts(self.service, Event::SynForwarded)
            .backend(self.backend, BackendCounters { picked: 1, ..BackendCounters::default() })
    }

    /// What the segment that completes the handshake counts and becomes.
    pub fn opens(&self, sent: &Frame) -> Expect {
        self.goes_up(sent)
            .counts(self.service, Event::FlowOpened)
            .backend(self.backend, BackendCounters { opened: 1, ..BackendCounters::default() })
    }

    /// Opens the connection, and asserts each step.
    #[track_caller]
    pub fn open(&self, plane: &mut Dataplane) {
        let syn = self.syn();
        plane.check("SYN", &syn.bytes(), &self.syn_goes_up(&syn));
        if self.is_nat() {
            let answer = self.syn_ack();
            plane.check("SYN-ACK", &answer.bytes(), &self.goes_down(&answer));
        }
        let ack = self.handshake_ack();
        plane.check("ACK of the SYN-ACK", &ack.bytes(), &self.opens(&ack));
    }
}
