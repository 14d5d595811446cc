//! The PROXY protocol: who a client is that comes by way of a proxy, and how backends are told.

pub mod header;
#[cfg(test)]
mod tests;

use std::{future::poll_fn, net::SocketAddr};

use header::{Addresses, Parsed, parse};
use tokio::{
    io::ReadBuf,
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::outcome::Outcome;

/// Bytes that are looked at at a time.
const CHUNK: usize = 512;

/// Both ends of a connection, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The client.
    pub peer: SocketAddr,
    /// Where it connected to.
    pub local: SocketAddr,
}

/// Lets a client that is no proxy pass, unless it begins with a header; whoever says nothing passes `by` then.
pub async fn unnamed(stream: &TcpStream, by: Instant) -> Result<(), Outcome> {
    // Who says nothing meets the deadline of the request that he does not send.
    let begins = timeout_at(by, begins_with_header(stream)).await;
    if begins == Ok(true) { Err(Outcome::ProxyHeaderUntrusted) } else { Ok(()) }
}

/// Takes the header off a proxy's connection, and nothing behind it. Whoever is refused gets no answer: it does not speak
/// what is spoken here. It has time until `by`.
pub async fn named(stream: &TcpStream, ends: Ends, by: Instant) -> Result<Ends, Outcome> {
    match timeout_at(by, take(stream)).await {
        Err(_) => Err(Outcome::ProxyHeaderTimeout),
        Ok(Err(outcome)) => Err(outcome),
        Ok(Ok(None)) => Ok(ends),
        Ok(Ok(Some(Addresses { source, destination }))) => {
            let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
            Ok(Ends { peer: plain(source), local: plain(destination) })
        }
    }
}

/// Whether a client that is no proxy begins with a header, as far as that is to be seen in what has come. One that comes
/// in pieces is no request either, and refused as that.
async fn begins_with_header(stream: &TcpStream) -> bool {
    let mut bytes = [0; CHUNK];
    let mut seen = ReadBuf::new(&mut bytes);
    let Ok(n) = poll_fn(|cx| stream.poll_peek(cx, &mut seen)).await else { return false };
    let http = bytes[..n].starts_with(b"PROXY /") || bytes[..n].starts_with(b"PROXY http");
    !http && !matches!(parse(&bytes[..n]), Ok(Parsed::Other | Parsed::Beginning))
}

/// The addresses in the header, if it has any.
async fn take(stream: &TcpStream) -> Result<Option<Addresses>, Outcome> {
    let mut header = Vec::with_capacity(CHUNK);
    loop {
        let mut chunk = [0; CHUNK];
        let mut peeked = ReadBuf::new(&mut chunk);
        let n = poll_fn(|cx| stream.poll_peek(cx, &mut peeked)).await;
        let n = n.map_err(|_| Outcome::ProxyHeaderMissing)?;
        let before = header.len();
        header.extend_from_slice(&chunk[..n]);
        let (own, parsed) = match parse(&header) {
            _ if n == 0 => return Err(Outcome::ProxyHeaderMissing),
            Err(_) => return Err(Outcome::ProxyHeaderMalformed),
            Ok(Parsed::Other) => return Err(Outcome::ProxyHeaderMissing),
            Ok(Parsed::Beginning) => (n, None),
            Ok(Parsed::Header { length, addresses }) => (length - before, Some(addresses)),
        };
        // What was seen is there.
        let read = stream.try_read(&mut chunk[..own]);
        if !read.is_ok_and(|read| read == own) {
            return Err(Outcome::ProxyHeaderMissing);
        }
        if let Some(addresses) = parsed {
            return Ok(addresses);
        }
    }
}
