//! The server behind the proxies: WebSocket echo, and a short or a large answer to every other request.
//!
//! One thread, which answers what it read in the same turn, so that it costs less than any proxy. It knows
//! only the requests of this benchmark's clients, as the proxies pass them on.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::LazyLock,
    time::Duration,
};

use anyhow::{Context, Result};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use socket2::{Domain, Socket, Type};

use crate::bench::{
    poll::{Poll, Ready},
    websocket::{self, Frame},
};

/// What it says when it listens.
pub const READY: &str = "listens";
/// The body of a plain answer. Only its end has a full stop.
pub const BODY: &[u8] = b"sixty-four bytes of plain text, as a short answer of an API has.";

/// What is asked for to get [`large`].
pub const LARGE_PATH: &str = "/large";

/// Bytes of a large answer.
const LARGE_BYTES: usize = 1 << 20;

/// The body of a large answer: no piece of it is like another.
pub fn large() -> &'static [u8] {
    static LARGE: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut bytes = vec![0; LARGE_BYTES];
        SmallRng::seed_from_u64(1).fill_bytes(&mut bytes);
        bytes
    });
    &LARGE
}

const BACKLOG: i32 = 4096;
/// Longest request head, and longest frame.
const LONGEST: usize = 16 * 1024;
const KEY: &[u8] = b"sec-websocket-key:";

struct Connection {
    stream: TcpStream,
    upgraded: bool,
    /// What has come of an unfinished head or frame.
    rest: Vec<u8>,
    /// Of a large answer what is still to be sent.
    left: &'static [u8],
}

/// Serves these addresses until it is killed.
pub fn serve(addresses: &[SocketAddr]) -> Result<()> {
    let poll = Poll::new()?;
    let listeners = addresses.iter().map(|address| listen(*address)).collect::<Result<Vec<_>>>()?;
    for (number, listener) in listeners.iter().enumerate() {
        poll.readable(listener, number)?;
    }
    println!("{READY}");
    let mut server = Server {
        poll,
        connections: Vec::new(),
        free: Vec::new(),
        input: vec![0; LONGEST],
        output: Vec::new(),
    };
    let mut ready = Ready::new();
    loop {
        server.poll.wait(&mut ready, Duration::from_secs(3600))?;
        for number in ready.numbers() {
            match number.checked_sub(listeners.len()) {
                None => server.accept(&listeners[number], listeners.len())?,
                Some(slot) => server.turn(slot, number)?,
            }
        }
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into()).with_context(|| format!("cannot listen on {address}"))?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

struct Server {
    poll: Poll,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Server {
    fn accept(&mut self, listener: &TcpListener, first: usize) -> Result<()> {
        loop {
            let stream = match listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                // The client has given up before.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => continue,
                Err(error) => return Err(error).context("cannot accept a connection"),
            };
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let slot = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.readable(&stream, first + slot)?;
            self.connections[slot] =
                Some(Connection { stream, upgraded: false, rest: Vec::new(), left: &[] });
        }
    }

    fn turn(&mut self, slot: usize, number: usize) -> Result<()> {
        let Some(connection) = &mut self.connections[slot] else { return Ok(()) };
        let was_full = !connection.left.is_empty();
        self.output.clear();
        let goes_on = was_full
            || connection.read(&mut self.input, &mut self.output).unwrap_or(false)
                && (self.output.is_empty() || connection.write(&self.output));
        if !goes_on || connection.write_large().is_err() {
            self.connections[slot] = None;
            self.free.push(slot);
            return Ok(());
        }
        match (was_full, !connection.left.is_empty()) {
            (false, true) => self.poll.only_writable(&connection.stream, number)?,
            (true, false) => self.poll.only_readable(&connection.stream, number)?,
            _ => {}
        }
        Ok(())
    }
}

impl Connection {
    /// Reads once and adds the answers. Returns whether the connection goes on.
    fn read(&mut self, input: &mut [u8], output: &mut Vec<u8>) -> io::Result<bool> {
        let len = match self.stream.read(input) {
            Ok(0) => return Ok(false),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
            Err(error) => return Err(error),
        };
        if self.rest.is_empty() {
            let (used, goes_on) = self.answer(&input[..len], output);
            self.rest.extend(&input[used..len]);
            return Ok(goes_on);
        }
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend(&input[..len]);
        let (used, goes_on) = self.answer(&bytes, output);
        bytes.drain(..used);
        // An idle connection holds no memory.
        self.rest = if bytes.is_empty() { Vec::new() } else { bytes };
        Ok(goes_on && self.rest.len() < LONGEST)
    }

    /// Answers what is complete, and returns how much that was.
    fn answer(&mut self, bytes: &[u8], output: &mut Vec<u8>) -> (usize, bool) {
        let mut used = 0;
        loop {
            let bytes = &bytes[used..];
            if self.upgraded {
                match websocket::echo(bytes, output) {
                    Frame::Echoed(len) => used += len,
                    Frame::Partial => return (used, true),
                    Frame::Close | Frame::Wrong => return (used, false),
                }
            } else {
                let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else {
                    return (used, true);
                };
                self.respond(&bytes[..end + 4], output);
                used += end + 4;
            }
        }
    }

    fn respond(&mut self, head: &[u8], output: &mut Vec<u8>) {
        let mut lines = head.split(|byte| *byte == b'\n');
        let key = lines.find_map(|line| {
            let (name, value) = line.split_at_checked(KEY.len())?;
            name.eq_ignore_ascii_case(KEY).then(|| value.trim_ascii())
        });
        if let Some(key) = key {
            self.upgraded = true;
            output.extend(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n");
            output.extend(b"Connection: Upgrade\r\nSec-WebSocket-Accept: ");
            output.extend(websocket::accept(key).as_bytes());
            output.extend(b"\r\n\r\n");
            return;
        }
        let is_large =
            head.strip_prefix(b"GET ").is_some_and(|it| it.starts_with(LARGE_PATH.as_bytes()));
        let body = if is_large { large() } else { BODY };
        output.extend(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ");
        output.extend(body.len().to_string().as_bytes());
        output.extend(b"\r\n\r\n");
        match is_large {
            true => self.left = body,
            false => output.extend(body),
        }
    }

    /// What it sends fits into the socket's buffer as long as its peer reads: else the peer is not one of ours.
    fn write(&mut self, output: &[u8]) -> bool {
        self.stream.write(output).is_ok_and(|len| len == output.len())
    }

    /// As much of a large answer as finds room.
    fn write_large(&mut self) -> io::Result<()> {
        while !self.left.is_empty() {
            match self.stream.write(self.left) {
                Ok(len) => self.left = &self.left[len..],
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
