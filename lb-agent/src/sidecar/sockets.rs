//! The listening sockets of `mode = "l7"`: one for each listener and worker, opened by the agent and never closed while
//! they are wanted.
//!
//! The sockets of one listener share its port, and the kernel spreads clients over them by the hash of their address
//! and port.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::Arc,
};

use anyhow::{Result, anyhow};
use nix::{
    libc::{EACCES, EADDRINUSE},
    sys::stat::fstat,
};
use socket2::{Domain, Protocol, Socket, Type};

/// The kernel takes as many as `net.core.somaxconn` says.
const BACKLOG: i32 = i32::MAX;

/// By place of the worker and address.
pub type Sockets = BTreeMap<(u16, SocketAddr), Arc<OwnedFd>>;

/// Opens those sockets that there are not yet.
pub fn missing(have: &Sockets, workers: u16, listeners: &BTreeSet<SocketAddr>) -> Result<Sockets> {
    let mut new = Sockets::new();
    for &address in listeners {
        for index in 0..workers {
            if !have.contains_key(&(index, address)) {
                let socket = open(address).map_err(|error| refusal(address, &error))?;
                new.insert((index, address), Arc::new(socket.into()));
            }
        }
    }
    Ok(new)
}

/// Whether both are descriptors of one socket.
pub fn is_same(one: &OwnedFd, other: &OwnedFd) -> bool {
    let number = |it: &OwnedFd| fstat(it).map(|file| (file.st_dev, file.st_ino)).ok();
    number(one).is_some_and(|one| number(other) == Some(one))
}

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier worker may be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    // The address may come to the host later, or leave it for a while.
    match address {
        SocketAddr::V4(_) => socket.set_freebind_v4(true)?,
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    // Accepted sockets have it from here.
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn refusal(address: SocketAddr, error: &io::Error) -> anyhow::Error {
    let port = address.port();
    match error.raw_os_error() {
        Some(EADDRINUSE) => anyhow!(
            "listener {address}: another program listens there: stop it (`ss -ltnp 'sport = :{port}'` names it), or \
             choose another port"
        ),
        Some(EACCES) => anyhow!(
            "listener {address}: the agent may not listen on port {port}: run it as root, or add \
             \"AmbientCapabilities=CAP_NET_BIND_SERVICE\" to its systemd unit"
        ),
        _ => anyhow!("listener {address}: cannot listen there: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{TcpListener, TcpStream},
        os::fd::AsFd,
    };

    use super::*;

    /// An address of loopback with a port that nobody has.
    fn free(ip: &str) -> SocketAddr {
        let free = TcpListener::bind((ip, 0)).unwrap();
        free.local_addr().unwrap()
    }

    #[test]
    fn workers_share_a_port_and_a_client_waits_for_whoever_takes_the_socket() {
        for ip in ["127.0.0.1", "::1"] {
            let address = free(ip);
            let sockets = missing(&Sockets::new(), 3, &[address].into()).unwrap();
            assert_eq!(sockets.len(), 3);
            let clients: Vec<_> = (0..100).map(|_| TcpStream::connect(address).unwrap()).collect();
            let accepted = sockets.values().map(|socket| {
                let listener = TcpListener::from(socket.as_fd().try_clone_to_owned().unwrap());
                let accepted: Vec<_> = std::iter::from_fn(|| listener.accept().ok()).collect();
                assert!(accepted.iter().all(|(stream, _)| stream.nodelay().unwrap()));
                accepted.len()
            });
            let accepted: Vec<_> = accepted.collect();
            assert_eq!(accepted.iter().sum::<usize>(), clients.len());
            assert!(accepted.iter().all(|n| *n > 0), "{accepted:?}");
            assert!(missing(&sockets, 3, &[address].into()).unwrap().is_empty());
            assert_eq!(missing(&sockets, 4, &[address].into()).unwrap().len(), 1);
        }
    }

    #[test]
    fn addresses_that_the_host_does_not_have_yet_are_no_obstacle() {
        let listeners = ["192.0.2.77:8080", "[2001:db8::77]:8080"].map(|it| it.parse().unwrap());
        assert_eq!(missing(&Sockets::new(), 2, &listeners.into()).unwrap().len(), 4);
    }

    #[test]
    fn who_is_in_the_way_can_be_found() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = missing(&Sockets::new(), 1, &[address].into()).unwrap_err().to_string();
        assert!(error.contains(&address.to_string()) && error.contains("ss -ltnp"), "{error}");
    }
}
