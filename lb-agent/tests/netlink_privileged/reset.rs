//! Resets in another's name, as an edge between a client and a backend sends them.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
};

use lb_agent::{
    netlink::{Kernel, Mac},
    reset::{Reset, ResetSender, Via, packet},
};

use super::{
    netns::{Netns, PATIENCE},
    sniffer::{Sniffer, next_sequence},
};

/// client -- edge -- backend; the edge routes between them.
struct Path {
    client: Netns,
    edge: Netns,
    backend: Netns,
}

impl Path {
    fn new() -> Self {
        let path = Self { client: Netns::new(), edge: Netns::new(), backend: Netns::new() };
        path.edge.link("front", &path.client, "eth0");
        path.edge.link("back", &path.backend, "eth0");
        for (device, netns, net) in [("front", &path.client, 1), ("back", &path.backend, 2)] {
            path.edge.ip(&format!("addr add 10.{net}.0.1/24 dev {device}"));
            path.edge.ip(&format!("addr add 2001:db8:{net}::1/64 dev {device} nodad"));
            netns.ip(&format!("addr add 10.{net}.0.2/24 dev eth0"));
            netns.ip(&format!("addr add 2001:db8:{net}::2/64 dev eth0 nodad"));
            netns.ip(&format!("route add default via 10.{net}.0.1"));
            netns.ip(&format!("route add default via 2001:db8:{net}::1"));
        }
        path.edge.sysctl("net/ipv4/ip_forward", "1");
        path.edge.sysctl("net/ipv6/conf/all/forwarding", "1");
        path
    }

    /// The device of the edge towards the backend: index, its MAC, the backend's MAC.
    fn back(&self) -> (u32, Mac, Mac) {
        let device = |netns: &Netns, name: &'static str| {
            netns.block_on(async || {
                let state = Kernel::connect().unwrap().snapshot().await.unwrap();
                let link = state.link_named(name).unwrap();
                (link.index, link.mac.unwrap())
            })
        };
        let (index, ours) = device(&self.edge, "back");
        (index, ours, device(&self.backend, "eth0").1)
    }
}

/// An established connection through the edge, and what each end sends next.
struct Connection {
    client: TcpStream,
    backend: TcpStream,
    client_seq: u32,
    backend_seq: u32,
}

impl Connection {
    fn new(path: &Path, server: &str) -> Self {
        let mut sniffer = Sniffer::new(&path.edge);
        let listener = path.backend.enter(|| TcpListener::bind(server).unwrap());
        let client =
            path.client.enter(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (backend, _) = listener.accept().unwrap();
        for stream in [&client, &backend] {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        let (from, to) = (client.local_addr().unwrap(), backend.local_addr().unwrap());
        let mut connection = Self { client, backend, client_seq: 0, backend_seq: 0 };
        connection.exchange().unwrap();
        connection.client_seq = sniffer.find(|p| next_sequence(p, from, to, 4));
        connection.backend_seq = sniffer.find(|p| next_sequence(p, to, from, 4));
        connection
    }

    /// Four bytes there and back.
    fn exchange(&mut self) -> std::io::Result<()> {
        let mut bytes = [0; 4];
        self.client.write_all(b"ping")?;
        self.backend.read_exact(&mut bytes)?;
        self.backend.write_all(b"pong")?;
        self.client.read_exact(&mut bytes)
    }

    fn ends(&self) -> (SocketAddr, SocketAddr) {
        (self.client.local_addr().unwrap(), self.backend.local_addr().unwrap())
    }

    fn to_backend(&self, via: Via) -> Reset {
        let (src, dst) = self.ends();
        Reset { src, dst, seq: self.client_seq, ack: None, via }
    }

    fn to_client(&self, via: Via) -> Reset {
        let (dst, src) = self.ends();
        Reset { src, dst, seq: self.backend_seq, ack: None, via }
    }
}

fn is_reset(stream: &mut TcpStream) -> bool {
    let outcome = stream.read(&mut [0; 4]);
    matches!(outcome, Err(error) if error.kind() == ErrorKind::ConnectionReset)
}

fn with_every_family(test: impl Fn(&Path, &ResetSender, &str)) {
    let path = Path::new();
    let sender = path.edge.enter(|| ResetSender::open().unwrap());
    for server in ["10.2.0.2:9000", "[2001:db8:2::2]:9000"] {
        test(&path, &sender, server);
    }
}

#[test]
fn a_reset_with_the_exact_sequence_number_kills_a_connection_at_both_ends() {
    with_every_family(|path, sender, server| {
        let mut connection = Connection::new(path, server);
        sender.send(connection.to_backend(Via::Route)).unwrap();
        assert!(is_reset(&mut connection.backend), "{server}");
        sender.send(connection.to_client(Via::Route)).unwrap();
        assert!(is_reset(&mut connection.client), "{server}");
    });
}

#[test]
fn a_reset_with_another_sequence_number_of_the_window_earns_a_challenge_and_no_more() {
    with_every_family(|path, sender, server| {
        let mut connection = Connection::new(path, server);
        let (client, backend) = connection.ends();
        for wrong in [1, 1000, u32::MAX] {
            let mut sniffer = Sniffer::new(&path.edge);
            let right = connection.to_backend(Via::Route);
            sender.send(Reset { seq: right.seq.wrapping_add(wrong), ..right }).unwrap();
            // It has arrived when it is answered; what lies before the window is not (RFC 5961 limits challenges, too).
            if wrong == 1 {
                sniffer.find(|p| next_sequence(p, backend, client, 0));
            }
        }
        for _ in 0..3 {
            connection.exchange().unwrap_or_else(|error| panic!("{server}: {error}"));
        }
    });
}

#[test]
fn a_reset_straight_onto_a_link_kills_a_connection() {
    with_every_family(|path, sender, server| {
        let (ifindex, src_mac, dst_mac) = path.back();
        let mut connection = Connection::new(path, server);
        sender.send(connection.to_backend(Via::Link { ifindex, dst_mac, src_mac })).unwrap();
        assert!(is_reset(&mut connection.backend), "{server}");
    });
}

#[test]
fn a_reset_in_a_tunnel_arrives_in_all_four_combinations() {
    let path = Path::new();
    let sender = path.edge.enter(|| ResetSender::open().unwrap());
    let mut sniffer = Sniffer::new(&path.backend);
    for (src, dst) in
        [("192.0.2.1:1", "203.0.113.10:80"), ("[2001:db8:9::1]:1", "[2001:db8:9::10]:80")]
    {
        for (outer_src, outer_dst) in [("10.2.0.1", "10.2.0.2"), ("2001:db8:2::1", "2001:db8:2::2")]
        {
            let (outer_src, outer_dst): (IpAddr, IpAddr) =
                (outer_src.parse().unwrap(), outer_dst.parse().unwrap());
            let (src, dst) = (src.parse().unwrap(), dst.parse().unwrap());
            let reset = Reset {
                src,
                dst,
                seq: 0x01020304,
                ack: Some(5),
                via: Via::Tunnel { outer_src, outer_dst },
            };
            sender.send(reset).unwrap();
            let inner = packet::reset(src, dst, reset.seq, reset.ack).unwrap();
            let protocol = if src.is_ipv4() { 4 } else { 41 };
            let (at, header) = if outer_dst.is_ipv4() { (9, 20) } else { (6, 40) };
            sniffer.find(|p| {
                let outer = packet::destination(p) == Some(outer_dst) && p[at] == protocol;
                (outer && p[header..] == inner).then_some(())
            });
        }
    }
}

#[test]
fn a_reset_that_cannot_be_sent_is_an_error_that_says_why() {
    let path = Path::new();
    let sender = path.edge.enter(|| ResetSender::open().unwrap());
    let (src, dst) = ("10.1.0.2:1".parse().unwrap(), "[2001:db8:2::2]:2".parse().unwrap());
    let mixed = Reset { src, dst, seq: 1, ack: None, via: Via::Route };
    assert_eq!(sender.send(mixed).unwrap_err().kind(), ErrorKind::InvalidInput);
    let nowhere = Reset { src, dst: "192.0.2.1:1".parse().unwrap(), ..mixed };
    assert_eq!(sender.send(nowhere).unwrap_err().kind(), ErrorKind::NetworkUnreachable);
    let via = Via::Link { ifindex: 4711, dst_mac: [2; 6], src_mac: [2; 6] };
    let no_device = Reset { via, ..nowhere };
    assert!(sender.send(no_device).is_err());
}
