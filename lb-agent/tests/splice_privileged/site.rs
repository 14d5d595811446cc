//! An edge without an agent, and connections through it that a worker relays.
//!
//! ```text
//! client c0 10.1.0.2 -- 10.1.0.1 front0 edge back0 10.2.0.1 -- 10.2.0.2 s0 server
//!      2001:db8:1::2                                      2001:db8:2::2
//! ```

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use aya::Pod;
use lb_agent::{
    bpf::{
        PinDir, TableSizes, pins, specs,
        sys::{HashFd, Put},
        unload,
    },
    flows::table::Family,
    splice::{
        Current, Roster, Splicer,
        plan::{AnyKeys, Ends, Keys, Numbers},
        socket::Socket,
    },
    state::{Prefix, maps::Maps, op::MapOp},
};
use lb_common::{
    abi::Edge,
    addr::{Tuple, V4, V6},
    flow::{Flow, forward},
    handshake::{Handshake, Offer, offers},
    next_hop::NextHop,
    service::Backend,
};
use lb_sidecar::splice::Answer;
use socket2::SockRef;

use crate::netns::{Netns, PATIENCE};

pub const CAPACITY: u32 = 64;
const SIZES: TableSizes = TableSizes {
    flows_ipv4: CAPACITY,
    flows_ipv6: CAPACITY,
    handshakes: 1_024,
    preallocate: true,
    services: 4,
    backends: 8,
};

pub const SERVICE: u16 = 1;
pub const BACKEND: u16 = 5;
const TO_BACKEND: u16 = 1;
const TO_CLIENT: u16 = 2;
/// Of devices, as the maps know them.
const FRONT: u32 = 1_001;
const BACK: u32 = 1_002;
pub const EPOCH: u8 = 3;

/// Both ends of both legs are in one IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    V4,
    V6,
    /// IPv4 on sockets for IPv6.
    Mapped,
}

pub struct Site {
    pub client: Netns,
    pub edge: Netns,
    pub server: Netns,
    pub pins: PinDir,
    pub roster: Arc<Current>,
    pub splicer: Splicer,
}

impl Site {
    pub fn new() -> Self {
        pins::mount_bpffs().expect("the tests need a bpffs");
        let (client, edge, server) = (Netns::new(), Netns::new(), Netns::new());
        edge.link("front0", &client, "c0");
        edge.link("back0", &server, "s0");
        for (netns, device, addresses) in [
            (&edge, "front0", ["10.1.0.1/24", "2001:db8:1::1/64"]),
            (&edge, "back0", ["10.2.0.1/24", "2001:db8:2::1/64"]),
            (&client, "c0", ["10.1.0.2/24", "2001:db8:1::2/64"]),
            (&server, "s0", ["10.2.0.2/24", "2001:db8:2::2/64"]),
        ] {
            netns.ip(&format!("addr add {} dev {device}", addresses[0]));
            netns.ip(&format!("addr add {} dev {device} nodad", addresses[1]));
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let pins = PinDir::of_edge(&format!("slc-{}-splice-{number}", std::process::id()));
        pins.create().unwrap();
        pins::create_maps(&pins, &specs::maps(&SIZES)).unwrap();
        let roster = Arc::new(Current::default());
        let splicer = Splicer::open(&pins, Arc::clone(&roster)).unwrap();
        let site = Self { client, edge, server, pins, roster, splicer };
        site.write_ways(FRONT, BACK);
        site.roster.set(roster_of(&[FRONT, BACK]));
        site
    }

    /// Devices by which packets leave to the client and to the backend; 0 for none.
    pub fn write_ways(&self, to_client: u32, to_backend: u32) {
        let mut maps = Maps::from_pins(&self.pins.path().join("maps")).unwrap();
        let hop =
            |id, ifindex| MapOp::SetNextHop { id, hop: NextHop { ifindex, ..NextHop::default() } };
        let edge = Edge { route_epoch: EPOCH.into(), ..Edge::default() };
        let backend = Backend { service: SERVICE, next_hop: TO_BACKEND, ..Backend::default() };
        let route = |prefix: &str, length| MapOp::SetRoute {
            to: Prefix::new(prefix.parse().unwrap(), length),
            next_hop: TO_CLIENT,
        };
        for op in [
            hop(TO_BACKEND, to_backend),
            hop(TO_CLIENT, to_client),
            MapOp::SetEdge(edge),
            MapOp::SetBackend { id: BACKEND, backend },
            route("10.1.0.0", 24),
            route("2001:db8:1::", 64),
        ] {
            maps.apply(&op).unwrap();
        }
    }

    /// A roster whose devices are not all attached.
    pub fn attach_only(&self, to_client: bool, to_backend: bool) {
        let devices = [(FRONT, to_client), (BACK, to_backend)];
        let attached = devices.iter().filter(|(_, is)| *is).map(|(device, _)| *device);
        self.roster.set(roster_of(&attached.collect::<Vec<_>>()));
    }

    /// A connection on which nothing has been said, and whose handshakes the data plane has seen.
    pub fn connect(&self, ip: Ip) -> Connection {
        self.connect_with(ip, ip)
    }

    pub fn connect_with(&self, front: Ip, back: Ip) -> Connection {
        let connection = self.connect_unseen(front, back);
        if let Ok(keys) = connection.ends.keys() {
            let [syn, syn_ack] = connection.far().map(noted);
            match keys {
                AnyKeys::V4(keys) => self.note(keys, syn, syn_ack),
                AnyKeys::V6(keys) => self.note(keys, syn, syn_ack),
            }
        }
        connection
    }

    /// The same, but the data plane has seen nothing.
    pub fn connect_unseen(&self, front: Ip, back: Ip) -> Connection {
        let listen = |netns: &Netns, ip, addresses: [&str; 2]| {
            let address = match ip {
                Ip::V4 => addresses[0],
                Ip::V6 => addresses[1],
                Ip::Mapped => "[::]:0",
            };
            netns.enter(|| TcpListener::bind(address).unwrap())
        };
        let front_socket = listen(&self.edge, front, ["10.1.0.1:0", "[2001:db8:1::1]:0"]);
        let back_socket = listen(&self.server, back, ["10.2.0.2:0", "[2001:db8:2::2]:0"]);
        let at = |socket: &TcpListener, mapped: &str| {
            let local = socket.local_addr().unwrap();
            let ip = if local.ip().is_unspecified() { mapped.parse().unwrap() } else { local.ip() };
            SocketAddr::new(ip, local.port())
        };
        let listener = at(&front_socket, "10.1.0.1");
        let server = at(&back_socket, if back == Ip::Mapped { "::ffff:10.2.0.2" } else { "::" });
        let client = self.client.enter(|| TcpStream::connect(listener).unwrap());
        let upstream = self.edge.enter(|| TcpStream::connect(server).unwrap());
        let accepted = front_socket.accept().unwrap().0;
        let backend = back_socket.accept().unwrap().0;
        for socket in [&client, &accepted, &upstream, &backend] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket.set_nodelay(true).unwrap();
            SockRef::from(socket).set_reuse_address(true).unwrap();
        }
        let ends = Ends::new(
            client.local_addr().unwrap(),
            listener,
            upstream.local_addr().unwrap(),
            server,
        );
        let mut roster = Roster::clone(&self.roster.get());
        roster.listener(ends.listener, SERVICE);
        roster.backend(SERVICE, ends.backend, BACKEND);
        self.roster.set(roster);
        Connection { client, accepted, upstream, backend, ends }
    }

    /// Writes what the data plane would have noted.
    pub fn note<A: Family>(&self, keys: Keys<A>, syn: Noted, syn_ack: Noted)
    where
        Tuple<A>: Pod,
        Handshake<A>: Pod,
    {
        let path = self.pins.map_path(A::HANDSHAKES);
        let table: HashFd<Tuple<A>, Handshake<A>> = HashFd::open(&path).unwrap();
        for (key, Noted { isn, offer }) in [(keys.client, syn), (keys.backend, syn_ack)] {
            table.delete(&key).unwrap();
            let flow = Flow { to: key, forward: forward::SPLICE, ..Flow::default() };
            let handshake = Handshake { flow, offer, isn, ..Handshake::default() };
            table.put(&key, &handshake, Put::New).unwrap();
        }
    }

    pub fn flows<A: Family>(&self) -> HashFd<Tuple<A>, Flow<A>>
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        HashFd::open(&self.pins.map_path(A::FLOWS)).unwrap()
    }

    /// The entries of a connection, the client's first.
    pub fn entries(&self, connection: &Connection) -> [Option<Entry>; 2] {
        match connection.ends.keys().unwrap() {
            AnyKeys::V4(keys) => self.entries_of(keys),
            AnyKeys::V6(keys) => self.entries_of(keys),
        }
    }

    fn entries_of<A: Family>(&self, keys: Keys<A>) -> [Option<Entry>; 2]
    where
        Tuple<A>: Pod,
        Flow<A>: Pod,
    {
        let flows = self.flows::<A>();
        [keys.client, keys.backend].map(|key| flows.lookup(&key).unwrap().map(Entry::from))
    }

    /// Removes one of them: 0 is the client's.
    pub fn remove_entry(&self, connection: &Connection, which: usize) {
        let removed = match connection.ends.keys().unwrap() {
            AnyKeys::V4(keys) => self.flows::<V4>().delete(&[keys.client, keys.backend][which]),
            AnyKeys::V6(keys) => self.flows::<V6>().delete(&[keys.client, keys.backend][which]),
        };
        assert!(removed.unwrap());
    }

    /// How many window probes the edge has sent.
    pub fn window_probes(&self) -> u64 {
        let path = "/proc/thread-self/net/netstat";
        let counters = self.edge.enter(|| std::fs::read_to_string(path).unwrap());
        let mut lines = counters.lines().filter(|line| line.starts_with("TcpExt:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == "TCPWinProbe").unwrap().1.parse().unwrap()
    }

    /// How many entries both tables have.
    pub fn count(&self) -> usize {
        let mut entries = Vec::new();
        let v4 = self.flows::<V4>();
        assert!(v4.lookup_batch(None, 2 * CAPACITY as usize, &mut entries).unwrap().is_none());
        let mut entries6 = Vec::new();
        let v6 = self.flows::<V6>();
        assert!(v6.lookup_batch(None, 2 * CAPACITY as usize, &mut entries6).unwrap().is_none());
        entries.len() + entries6.len()
    }

    /// Another agent on the same maps.
    pub fn successor(&self) -> Splicer {
        Splicer::open(&self.pins, Arc::clone(&self.roster)).unwrap()
    }

    pub fn forget_handshakes(&self, connection: &Connection) {
        match connection.ends.keys().unwrap() {
            AnyKeys::V4(keys) => self.forget_handshakes_of(keys),
            AnyKeys::V6(keys) => self.forget_handshakes_of(keys),
        }
    }

    fn forget_handshakes_of<A: Family>(&self, keys: Keys<A>)
    where
        Tuple<A>: Pod,
        Handshake<A>: Pod,
    {
        let path = self.pins.map_path(A::HANDSHAKES);
        let table: HashFd<Tuple<A>, Handshake<A>> = HashFd::open(&path).unwrap();
        assert!(table.delete(&keys.client).unwrap() && table.delete(&keys.backend).unwrap());
    }

    /// Asserts that nothing of an attempt is left, and that the connection can be relayed.
    pub fn assert_untouched(&self, connection: &mut Connection) {
        if connection.ends.keys().is_ok() {
            assert_eq!(self.entries(connection), [None, None]);
        }
        for socket in [&connection.accepted, &connection.upstream] {
            assert!(!same(socket).is_in_repair().unwrap(), "in repair mode");
            let detached = SockRef::from(socket).detach_filter().map_err(|it| it.raw_os_error());
            assert_eq!(detached, Err(Some(nix::libc::ENOENT)), "a filter");
            assert!(SockRef::from(socket).reuse_address().unwrap(), "SO_REUSEADDR");
        }
        connection.assert_works();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let unloaded = unload(&self.pins);
        assert!(unloaded.is_ok() || std::thread::panicking(), "{unloaded:?}");
    }
}

fn roster_of(devices: &[u32]) -> Roster {
    Roster::with_interfaces(devices.iter().copied().collect())
}

/// An entry, whatever its IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub to: Ends2,
    /// The other fields.
    pub flow: Flow<V4>,
}

/// Source and destination.
type Ends2 = (SocketAddr, SocketAddr);

impl<A: Family> From<Flow<A>> for Entry {
    fn from(flow: Flow<A>) -> Self {
        let address = |words: [u32; 4], port: u16| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let ip = match A::LEN {
                4 => <[u8; 4]>::try_from(&bytes[..4]).unwrap().into(),
                _ => std::net::IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()),
            };
            SocketAddr::new(ip, u16::from_be(port))
        };
        let Flow {
            to,
            seq_delta,
            ack_delta,
            tsval_delta,
            tsecr_delta,
            seq_next,
            ack,
            last_seen,
            backend,
            next_hop,
            forward,
            flags,
            route_epoch,
            window_shift,
            packets,
            created,
            bytes,
        } = flow;
        Self {
            to: (address(to.src.words(), to.sport), address(to.dst.words(), to.dport)),
            flow: Flow {
                to: Tuple::default(),
                seq_delta,
                ack_delta,
                tsval_delta,
                tsecr_delta,
                seq_next,
                ack,
                last_seen,
                backend,
                next_hop,
                forward,
                flags,
                route_epoch,
                window_shift,
                packets,
                created,
                bytes,
            },
        }
    }
}

/// A client's connection and the one to its backend.
pub struct Connection {
    pub client: TcpStream,
    pub accepted: TcpStream,
    pub upstream: TcpStream,
    pub backend: TcpStream,
    pub ends: Ends,
}

impl Connection {
    /// What is sent through, as a worker relays it.
    pub fn assert_works(&mut self) {
        pass(&mut self.client, &mut self.accepted, b"from the client");
        pass(&mut self.accepted, &mut self.client, b"to the client");
        pass(&mut self.upstream, &mut self.backend, b"to the backend");
        pass(&mut self.backend, &mut self.upstream, b"from the backend");
        self.wait_quiet();
    }

    /// Until all that was sent is acknowledged.
    pub fn wait_quiet(&self) {
        let end = std::time::Instant::now() + PATIENCE;
        while ![&self.accepted, &self.upstream].iter().all(|it| same(it).facts().unwrap().quiet) {
            assert!(std::time::Instant::now() < end, "data stays under way");
            std::thread::yield_now();
        }
    }

    /// As the broker sees it.
    pub fn sockets(&self) -> [Socket; 2] {
        [same(&self.accepted), same(&self.upstream)]
    }

    pub fn offer(&self, splicer: &Splicer) -> Answer {
        let [client, upstream] = &self.sockets();
        splicer.offer([client, upstream])
    }

    /// The ends that are not the edge's.
    pub fn far(&self) -> [&TcpStream; 2] {
        [&self.client, &self.backend]
    }

    /// The edge's ends.
    pub fn near(&self) -> [&TcpStream; 2] {
        [&self.accepted, &self.upstream]
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream, what: &[u8]) {
    from.write_all(what).unwrap();
    let mut came = vec![0; what.len()];
    to.read_exact(&mut came).expect("it comes");
    assert_eq!(came, what);
}

/// The same socket.
pub fn same(stream: &TcpStream) -> Socket {
    Socket::new(OwnedFd::from(stream.try_clone().unwrap()))
}

/// A far end's numbers; it goes on as it was.
pub fn numbers(stream: &TcpStream) -> Numbers {
    let socket = same(stream);
    let before = socket.is_in_repair().unwrap();
    if !before {
        socket.repair().unwrap();
    }
    let numbers = socket.numbers(true).unwrap();
    if !before {
        socket.resume().unwrap();
    }
    numbers
}

/// What the data plane notes of a SYN or SYN-ACK.
#[derive(Clone, Copy, Debug)]
pub struct Noted {
    pub isn: u32,
    pub offer: Offer,
}

/// Of a far end that has sent nothing else yet.
fn noted(far: &TcpStream) -> Noted {
    let Numbers { snd_nxt, tsval, .. } = numbers(far);
    let flags = offers::MSS | offers::TIMESTAMPS;
    let offer = Offer { tsval: tsval.wrapping_sub(1_000), mss: 1_460, window_scale: 7, flags };
    Noted { isn: snd_nxt.wrapping_sub(1), offer }
}
