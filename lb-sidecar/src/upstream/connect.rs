//! A connection to a backend.

use std::{
    cell::Cell,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use super::ports::Ports;
use crate::splice::{
    flows::Flows,
    tcp::{self, Peer},
};

/// Where connections come from, and what their sockets are told.
pub struct Sources {
    v4: Vec<IpAddr>,
    v6: Vec<IpAddr>,
    next: Cell<usize>,
    keepalive: Duration,
    user_timeout: Duration,
}

impl Sources {
    pub fn new(addresses: &[IpAddr], keepalive: Duration, user_timeout: Duration) -> Self {
        let (v4, v6) = addresses.iter().partition(|address| address.is_ipv4());
        Self { v4, v6, next: Cell::new(0), keepalive, user_timeout }
    }

    /// The next address in turn; none: the kernel's choice.
    fn next(&self, to: SocketAddr) -> Option<IpAddr> {
        let of_version = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        if of_version.is_empty() {
            return None;
        }
        let next = self.next.get();
        self.next.set(next.wrapping_add(1));
        Some(of_version[next % of_version.len()])
    }

    fn socket(&self, to: SocketAddr, fitting: Option<&Peer>) -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(to),
            Type::STREAM.nonblocking().cloexec(),
            Some(Protocol::TCP),
        )?;
        socket.set_tcp_nodelay(true)?;
        // The request that follows at once acknowledges the backend's SYN-ACK: a packet less (tcp(7), TCP_QUICKACK).
        socket.set_tcp_quickack(false)?;
        guard(&socket, self.keepalive, self.user_timeout)?;
        if let Some(client) = fitting {
            tcp::fit(&socket, client);
        }
        Ok(socket)
    }
}

/// A connection, and whether its source port is of those that no flow had.
pub struct Connected<S = TcpStream> {
    pub stream: S,
    pub port_is_checked: bool,
}

/// Connects; with a client whom the connection shall fit, so that the two may be spliced. Whoever calls watches the time.
pub async fn connect(
    to: SocketAddr,
    sources: &Sources,
    (flows, ports): (&impl Flows, &Ports),
    fitting: Option<&Peer>,
) -> io::Result<Connected> {
    let from = sources.next(to);
    if !flows.are_known(to.ip()) {
        let socket = sources.socket(to, fitting)?;
        if let Some(from) = from {
            // The port is chosen at connect, so that one port serves many destinations.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        return Ok(Connected { stream, port_is_checked: false });
    }
    let from = from.map_or_else(|| ports.address_to(to.ip()), Ok)?;
    for local in ports.candidates(flows, to, from) {
        let socket = sources.socket(to, fitting)?;
        // Likewise.
        socket.set_reuse_address(true)?;
        match socket.bind(&local.into()) {
            Ok(()) => {}
            // Somebody else has the port.
            Err(error) if error.kind() == ErrorKind::AddrInUse => continue,
            Err(error) => return Err(error),
        }
        match TcpSocket::from_std_stream(socket.into()).connect(to).await {
            Ok(stream) => return Ok(Connected { stream, port_is_checked: true }),
            // Or has it, or has just had it, for this very backend.
            Err(error)
                if matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ErrorKind::AddrNotAvailable.into())
}

/// Tells the kernel when to give a silent peer up. Accepted sockets have it from their listener.
pub fn guard(socket: &Socket, keepalive: Duration, user_timeout: Duration) -> io::Result<()> {
    if !keepalive.is_zero() {
        // The kernel takes whole seconds.
        let idle = keepalive.max(Duration::from_secs(1));
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(idle).with_interval(idle))?;
    }
    if !user_timeout.is_zero() {
        socket.set_tcp_user_timeout(Some(user_timeout))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use tokio::net::TcpListener;

    use super::*;

    /// Flows hold these ports; none: nothing is known.
    struct Held(Option<HashSet<u16>>);

    impl Flows for Held {
        fn are_known(&self, _: IpAddr) -> bool {
            self.0.is_some()
        }

        fn holds(&self, _: SocketAddr, local: SocketAddr) -> Option<bool> {
            Some(self.0.as_ref()?.contains(&local.port()))
        }
    }

    fn sources(addresses: &[IpAddr]) -> Sources {
        Sources::new(addresses, Duration::ZERO, Duration::ZERO)
    }

    #[tokio::test]
    async fn connections_come_from_ports_without_a_flow() {
        let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let backends = listeners.each_ref().map(|it| it.local_addr().unwrap());
        let ports = Ports::of_kernel();
        let held = Held(Some((0..=u16::MAX).filter(|port| port % 4 > 0).collect()));
        for addresses in [&[][..], &["127.0.0.2".parse().unwrap()]] {
            let sources = self::sources(addresses);
            let mut open = Vec::new();
            for to in backends.repeat(50) {
                let connected = connect(to, &sources, (&held, &ports), None).await.unwrap();
                assert!(connected.port_is_checked);
                let local = connected.stream.local_addr().unwrap();
                assert_eq!(held.holds(to, local), Some(false), "{local}");
                let address = addresses.first().copied();
                assert_eq!(local.ip(), address.unwrap_or(to.ip()));
                open.push(connected.stream);
            }
        }
    }

    #[tokio::test]
    async fn a_port_that_somebody_has_is_passed_over() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let sources = self::sources(&[]);
        let free = Held(Some(HashSet::new()));
        let (ports, same) = (Ports::of_kernel(), Ports::of_kernel());
        let mut open = Vec::new();
        for _ in 0..5 {
            // One worker follows another, over the same ports.
            same.begin_like(&ports);
            for ports in [&ports, &same] {
                open.push(connect(to, &sources, (&free, ports), None).await.unwrap().stream);
            }
        }
        let ports: HashSet<_> = open.iter().map(|it| it.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), open.len());
    }

    #[tokio::test]
    async fn a_worker_gets_past_all_that_another_has() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let sources = self::sources(&[]);
        let free = Held(Some(HashSet::new()));
        let (ports, same) = (Ports::of_kernel(), Ports::of_kernel());
        // It comes to the first of them, and finds 200 taken one after the other.
        same.begin_like(&ports);
        let mut open = Vec::new();
        for ports in std::iter::repeat_n(&ports, 200).chain(std::iter::repeat_n(&same, 50)) {
            open.push(connect(to, &sources, (&free, ports), None).await.unwrap().stream);
        }
    }

    #[tokio::test]
    async fn without_a_table_the_kernel_chooses_and_with_no_port_there_is_no_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let ports = Ports::of_kernel();
        let sources = self::sources(&[]);
        let connected = connect(to, &sources, (&Held(None), &ports), None).await.unwrap();
        assert!(!connected.port_is_checked);
        let full = Held(Some((0..=u16::MAX).collect()));
        let error = connect(to, &sources, (&full, &ports), None).await.err().unwrap();
        assert_eq!(error.kind(), ErrorKind::AddrNotAvailable);
    }

    #[test]
    fn sources_take_turns_within_their_version() {
        let addresses = ["127.0.0.1", "::1", "127.0.0.2"].map(|a| a.parse().unwrap());
        let sources = self::sources(&addresses);
        let v4 = "127.0.0.9:1".parse().unwrap();
        let turns: Vec<_> = (0..4).map(|_| sources.next(v4).unwrap().to_string()).collect();
        assert_eq!(turns, ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.2"]);
        assert_eq!(sources.next("[::9]:1".parse().unwrap()).unwrap().to_string(), "::1");
        assert_eq!(self::sources(&[]).next(v4), None);
    }
}
