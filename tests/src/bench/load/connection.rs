//! A client's connection, up to its upgrade.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use socket2::{Domain, Socket, Type};

use crate::bench::websocket;

/// Longest answer's head.
const LONGEST: usize = 4096;

/// Where clients connect to, and what they ask for.
pub struct Entrance {
    pub addresses: Vec<SocketAddr>,
    /// Where clients connect from; the kernel chooses if there is none.
    pub source: Option<IpAddr>,
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
        Self { addresses, source: None, upgrade: upgrade.into_bytes(), accept: accept.into_bytes() }
    }

    /// Begins a client's connection.
    pub fn connect(&self, client: usize) -> Result<Client> {
        let address = self.addresses[client % self.addresses.len()];
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        match socket.connect(&address.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                Err(error).with_context(|| format!("cannot connect to {address}"))
            }
            _ => Ok(Client { stream: socket.into(), asked: false, head: Vec::new() }),
        }
    }
}

/// One that wants to be upgraded.
pub struct Client {
    pub stream: TcpStream,
    asked: bool,
    /// What has come of the answer.
    head: Vec<u8>,
}

impl Client {
    /// Does what can be done now. Returns whether the connection is upgraded.
    pub fn advance(&mut self, entrance: &Entrance, buffer: &mut [u8]) -> Result<bool> {
        if !self.asked {
            // The answer is a change of its own.
            self.asked = send(&mut self.stream, &entrance.upgrade)?;
            return Ok(false);
        }
        let Some(len) = receive(&mut self.stream, buffer)? else { return Ok(false) };
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

/// Sends a short request or message, all at once. False: the connection does not stand yet.
pub fn send(stream: &mut TcpStream, bytes: &[u8]) -> Result<bool> {
    match stream.write(bytes) {
        Ok(len) if len == bytes.len() => Ok(true),
        Ok(len) => bail!("{len} of {} bytes found room: a proxy does not read", bytes.len()),
        Err(error) if is_not_yet(&error) => Ok(false),
        Err(error) => Err(error).context("cannot send"),
    }
}

/// Reads once; nothing if there is nothing. An end is an error: only clients close here.
pub fn receive(stream: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<usize>> {
    match stream.read(buffer) {
        Ok(0) => bail!("the other side has closed a connection"),
        Ok(len) => Ok(Some(len)),
        Err(error) if is_not_yet(&error) => Ok(None),
        Err(error) => Err(error).context("cannot receive"),
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    // A write to a socket that is still connecting says EAGAIN.
    error.kind() == ErrorKind::WouldBlock
}
