//! The local ports of the edge's own connections to backends.
//!
//! With `forward = "nat"` the data plane translates clients to ports 1024-60999 of the same source address. A kernel
//! socket on one of those could share its 4-tuple with a flow, and XDP would take its packets. So every
//! connection that the edge makes for itself is bound to a port above, and is made here.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
};

use nix::errno::Errno;
use rand::Rng;
use tokio::net::{TcpSocket, TcpStream};

/// Which local addresses and ports the edge's own connections use. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePorts {
    range: RangeInclusive<u16>,
    tries: u16,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

impl Default for SourcePorts {
    /// Ports [`SourcePorts::AGENT`], 64 tries, source addresses as the kernel's routes choose them.
    fn default() -> Self {
        Self::new(Self::AGENT, 64)
    }
}

impl SourcePorts {
    /// The ports that NAT in the data plane leaves alone.
    pub const AGENT: RangeInclusive<u16> = 61_000..=65_535;

    /// Local ports out of `range`, of which one attempt tries up to `tries` (at least 1) before it gives up.
    ///
    /// # Panics
    /// If `range` is empty.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>, tries: u16) -> Self {
        assert!(!range.is_empty(), "an empty range of local ports");
        Self { range, tries: tries.max(1), v4: Ipv4Addr::UNSPECIFIED, v6: Ipv6Addr::UNSPECIFIED }
    }

    /// Connections of this address' family come from `source`, which must be an address of this host.
    #[must_use]
    pub fn with_source(mut self, source: IpAddr) -> Self {
        match source {
            IpAddr::V4(v4) => self.v4 = v4,
            IpAddr::V6(v6) => self.v6 = v6,
        }
        self
    }

    /// Connects to `to` from one of the ports, beginning with a random one. Takes as long as the kernel does.
    ///
    /// Ports are shared (`SO_REUSEADDR`) between connections to different addresses, so the range limits the
    /// connections to one backend, not their sum.
    ///
    /// # Errors
    /// If the backend does not accept, or the edge has no port or socket left for the connection.
    pub async fn connect(&self, to: SocketAddr) -> Result<TcpStream, ConnectError> {
        let start = rand::rng().random_range(self.range.clone());
        let (mut last, mut tried) = (Errno::EADDRINUSE, 0);
        for port in self.candidates(start, to.port()) {
            tried += 1;
            let socket = self.socket(to).map_err(|e| ConnectError::Socket { errno: errno(&e) })?;
            let from = self.local(to, port);
            match socket.bind(from).map_err(|e| errno(&e)) {
                Ok(()) => {}
                Err(Errno::EADDRINUSE) => continue,
                Err(errno) => {
                    return Err(ConnectError::Source { addr: from.ip(), errno });
                }
            }
            match socket.connect(to).await.map_err(|e| errno(&e)) {
                Ok(stream) => return Ok(stream),
                // The 4-tuple is in use, by a socket in TIME_WAIT perhaps.
                Err(errno @ (Errno::EADDRNOTAVAIL | Errno::EADDRINUSE)) => last = errno,
                Err(errno) => return Err(ConnectError::Refused { errno }),
            }
        }
        Err(ConnectError::NoPort { range: self.range.clone(), tried, errno: last })
    }

    fn socket(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        // Probes and handshakes are small messages that wait for an answer.
        socket.set_nodelay(true)?;
        Ok(socket)
    }

    fn local(&self, to: SocketAddr, port: u16) -> SocketAddr {
        if to.is_ipv4() { (self.v4, port).into() } else { (self.v6, port).into() }
    }

    /// Up to `tries` ports from `start` on, round the end of the range. `not` is left out: a backend on this host
    /// with a port in the range could otherwise be "reached" by a connection to itself (simultaneous open).
    fn candidates(&self, start: u16, not: u16) -> impl Iterator<Item = u16> + use<> {
        let range = self.range.clone();
        (start..=*range.end())
            .chain(*range.start()..start)
            .filter(move |&port| port != not)
            .take(self.tries.into())
    }
}

fn errno(e: &io::Error) -> Errno {
    Errno::from_raw(e.raw_os_error().unwrap_or(0))
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The backend, or the way to it, refuses.
    Refused {
        /// As `connect` reports it.
        errno: Errno,
    },
    /// The edge cannot make a socket, for lack of file descriptors perhaps.
    Socket {
        /// As `socket` reports it.
        errno: Errno,
    },
    /// The edge cannot use the source address.
    Source {
        /// The address it should have connected from.
        addr: IpAddr,
        /// As `bind` reports it.
        errno: Errno,
    },
    /// All ports tried are taken.
    NoPort {
        /// The ports to choose from.
        range: RangeInclusive<u16>,
        /// How many of them were tried.
        tried: u16,
        /// As the kernel refused the last one.
        errno: Errno,
    },
}

impl ConnectError {
    /// Whether the edge itself is at fault, so that it says nothing about the backend.
    #[must_use]
    pub fn is_local(&self) -> bool {
        !matches!(self, Self::Refused { .. })
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { errno } => write!(f, "connect: {}", errno.desc()),
            Self::Socket { errno } => write!(f, "edge: no socket for the probe: {}", errno.desc()),
            Self::Source { addr, errno: Errno::EADDRNOTAVAIL } => {
                write!(
                    f,
                    "edge: source address {addr} is not an address of this host; add it to an interface"
                )
            }
            Self::Source { addr, errno } => {
                write!(f, "edge: source address {addr}: {}", errno.desc())
            }
            Self::NoPort { range, tried, errno } => {
                write!(
                    f,
                    "edge: no free local port in {}-{} ({tried} tried): ",
                    range.start(),
                    range.end()
                )?;
                f.write_str(errno.desc())
            }
        }
    }
}

impl std::error::Error for ConnectError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn connections_come_from_the_agents_ports() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(host).await.unwrap();
            let to = listener.local_addr().unwrap();
            for _ in 0..20 {
                let stream = SourcePorts::default().connect(to).await.unwrap();
                let port = stream.local_addr().unwrap().port();
                assert!(SourcePorts::AGENT.contains(&port), "local port {port}");
                assert!(stream.nodelay().unwrap());
            }
        }
    }

    #[tokio::test]
    async fn the_source_address_is_used_for_its_family() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = SourcePorts::default().with_source("127.0.0.7".parse().unwrap());
        let ports = ports.with_source("::1".parse().unwrap());
        let _stream = ports.connect(listener.local_addr().unwrap()).await.unwrap();
        let (_, from) = listener.accept().await.unwrap();
        assert_eq!(from.ip(), "127.0.0.7".parse::<IpAddr>().unwrap());
    }

    /// Two ports, three connections: the first two find them wherever they begin, the third says so. Two connections
    /// to another address share the same ports.
    #[tokio::test]
    async fn ports_run_out_per_backend_and_not_in_all() {
        let one = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let two = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ports = SourcePorts::new(61_500..=61_501, 64);
        let mut held = Vec::new();
        for listener in [&one, &two] {
            let to = listener.local_addr().unwrap();
            for _ in 0..2 {
                held.push(ports.connect(to).await.unwrap());
            }
            let error = ports.connect(to).await.unwrap_err();
            assert!(error.is_local());
            assert!(
                error.to_string().starts_with("edge: no free local port in 61500-61501 (2 tried)"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_port_that_a_listener_owns_is_not_used() {
        let taken = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let ports = SourcePorts::new(port..=port, 64);
        let error = ports.connect(listener.local_addr().unwrap()).await.unwrap_err();
        assert!(matches!(error, ConnectError::NoPort { errno: Errno::EADDRINUSE, .. }), "{error}");
    }

    /// Linux lets a socket connect to itself; a backend that is not there must not look alive by that.
    #[tokio::test]
    async fn a_dead_backend_in_the_range_is_not_reached_by_itself() {
        let to: SocketAddr = "127.0.0.1:61520".parse().unwrap();
        let ports = SourcePorts::new(61_520..=61_521, 64).with_source(to.ip());
        for _ in 0..20 {
            assert_eq!(
                ports.connect(to).await.unwrap_err(),
                ConnectError::Refused { errno: Errno::ECONNREFUSED }
            );
        }
    }

    #[tokio::test]
    async fn errors_tell_the_edge_from_the_backend() {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let refused = SourcePorts::default().connect(gone).await.unwrap_err();
        assert_eq!(refused.to_string(), "connect: Connection refused");
        assert!(!refused.is_local());
        let foreign = SourcePorts::default().with_source("192.0.2.1".parse().unwrap());
        let foreign = foreign.connect(gone).await.unwrap_err();
        assert!(foreign.is_local());
        assert!(
            foreign.to_string().contains("192.0.2.1 is not an address of this host"),
            "{foreign}"
        );
    }

    proptest! {
        #[test]
        fn candidates_are_distinct_in_range_and_as_many_as_there_are(
            first in 1024u16.., len in 0u16..200, tries in 1u16..300, offset: u16, not: u16,
        ) {
            let last = first.saturating_add(len);
            let start = first + offset % (last - first).saturating_add(1);
            let ports = SourcePorts::new(first..=last, tries);
            let found: Vec<u16> = ports.candidates(start, not).collect();
            let mut sorted = found.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), found.len());
            prop_assert!(found.iter().all(|p| (first..=last).contains(p) && *p != not));
            let available = usize::from(last - first) + 1 - usize::from((first..=last).contains(&not));
            prop_assert_eq!(found.len(), available.min(tries.into()));
        }
    }
}
