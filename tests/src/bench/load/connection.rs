//! A client's connection, up to its upgrade.

use std::{
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use super::wire::Wire;
use crate::{bench::websocket, tls};

/// Longest answer's head.
const LONGEST: usize = 4096;

/// Where clients connect to, and what they ask for.
pub struct Entrance {
    pub addresses: Vec<SocketAddr>,
    /// Where clients connect from; the kernel chooses if there is none.
    pub source: Option<IpAddr>,
    /// What clients speak TLS with, if they do.
    pub tls: Option<Arc<ClientConfig>>,
    upgrade: Vec<u8>,
    accept: Vec<u8>,
}

impl Entrance {
    pub fn new(addresses: Vec<SocketAddr>) -> Self {
        let upgrade = format!(
            "GET /chat HTTP/1.1\r\nHost: chat.example\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Key: {}\r\nSec-WebSocket-Version: 13\r\n\
             Origin: http://chat.example\r\nUser-Agent: bench\r\n\r\n",
            websocket::KEY
        );
        let accept = websocket::accept(websocket::KEY.as_bytes());
        Self {
            addresses,
            source: None,
            tls: None,
            upgrade: upgrade.into_bytes(),
            accept: accept.into_bytes(),
        }
    }

    /// Begins a client's connection.
    pub fn connect(&self, client: usize) -> Result<Client> {
        Ok(Client { wire: self.dial(client)?, asked: false, head: Vec::new() })
    }

    /// The same without an upgrade in mind.
    pub fn dial(&self, client: usize) -> Result<Wire> {
        let address = self.addresses[client % self.addresses.len()];
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                return Err(error).with_context(|| format!("cannot connect to {address}"));
            }
            _ => {}
        }
        let socket = TcpStream::from(socket);
        let Some(config) = &self.tls else { return Ok(socket.into()) };
        // The request follows the handshake's last flight, and must not wait for its acknowledgement.
        socket.set_nodelay(true)?;
        Ok(Wire::secure(socket, ClientConnection::new(Arc::clone(config), tls::server_name())?))
    }
}

/// One that wants to be upgraded.
pub struct Client {
    pub wire: Wire,
    asked: bool,
    /// What has come of the answer.
    head: Vec<u8>,
}

impl Client {
    /// Does what can be done now. Returns whether the connection is upgraded.
    pub fn advance(&mut self, entrance: &Entrance, buffer: &mut [u8]) -> Result<bool> {
        if !self.asked {
            // The answer is a change of its own.
            self.asked = self.wire.send(&entrance.upgrade)?;
            return Ok(false);
        }
        let Some(len) = self.wire.receive(buffer)? else { return Ok(false) };
        if self.head.is_empty() && buffer[..len].ends_with(END) {
            check(&buffer[..len], entrance)?;
            return Ok(true);
        }
        self.head.extend(&buffer[..len]);
        if self.head.ends_with(END) {
            check(&std::mem::take(&mut self.head), entrance)?;
            return Ok(true);
        }
        ensure!(self.head.len() < LONGEST, "an answer without an end of its head");
        Ok(false)
    }
}

const END: &[u8] = b"\r\n\r\n";

fn check(head: &[u8], entrance: &Entrance) -> Result<()> {
    let accepted = head.starts_with(b"HTTP/1.1 101 ")
        && head.windows(entrance.accept.len()).any(|it| it == entrance.accept);
    ensure!(accepted, "not upgraded: {}", String::from_utf8_lossy(head));
    Ok(())
}
