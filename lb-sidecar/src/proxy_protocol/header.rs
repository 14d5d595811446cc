//! The PROXY protocol's headers, versions 1 and 2: read and written.
//!
//! Pure: bytes in, addresses out. The description is HAProxy's `doc/proxy-protocol.txt`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::settings::SendProxy;

/// Longest header of version 1, the line's end included.
pub const MOST_V1: usize = 107;

/// Longest header of version 2 that is read: addresses, and TLVs, which are skipped.
pub const MOST_V2: usize = SIGNATURE.len() + 4 + 4_096;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const START_V1: &[u8] = b"PROXY ";

/// Who is connected to whom, as the proxy in front says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    pub source: SocketAddr,
    pub destination: SocketAddr,
}

/// What the first bytes of a connection are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A whole header of that length. Without addresses the connection is the proxy's own, or one of a kind that has
    /// none.
    Header { length: usize, addresses: Option<Addresses> },
    /// The beginning of one: all bytes belong to it.
    Beginning,
    /// Something else.
    Other,
}

/// A header that contradicts itself or the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads the header that bytes begin with.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if agrees(bytes, SIGNATURE) {
        return if bytes.len() < SIGNATURE.len() { Ok(Parsed::Beginning) } else { parse_v2(bytes) };
    }
    if agrees(bytes, START_V1) {
        return if bytes.len() < START_V1.len() { Ok(Parsed::Beginning) } else { parse_v1(bytes) };
    }
    Ok(Parsed::Other)
}

/// Whether the bytes are a beginning of `start`, or begin with it.
fn agrees(bytes: &[u8], start: &[u8]) -> bool {
    bytes.iter().zip(start).all(|(a, b)| a == b)
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some(end) = bytes.iter().take(MOST_V1).position(|byte| *byte == b'\n') else {
        return if bytes.len() < MOST_V1 { Ok(Parsed::Beginning) } else { Err(Malformed) };
    };
    let line = bytes[START_V1.len()..end].strip_suffix(b"\r").ok_or(Malformed)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed)?;
    let length = end + 1;
    let mut words = line.split(' ');
    let v4 = match words.next() {
        Some("TCP4") => true,
        Some("TCP6") => false,
        // Whatever else the line says is to be ignored.
        Some("UNKNOWN") => return Ok(Parsed::Header { length, addresses: None }),
        _ => return Err(Malformed),
    };
    let mut ip = || match words.next()?.parse().ok()? {
        ip @ IpAddr::V4(_) if v4 => Some(ip),
        ip @ IpAddr::V6(_) if !v4 => Some(ip),
        _ => None,
    };
    let (source, destination) = ip().zip(ip()).ok_or(Malformed)?;
    let mut port = || words.next().and_then(port);
    let (sport, dport) = port().zip(port()).ok_or(Malformed)?;
    if words.next().is_some() {
        return Err(Malformed);
    }
    let addresses = Addresses {
        source: SocketAddr::new(source, sport),
        destination: SocketAddr::new(destination, dport),
    };
    Ok(Parsed::Header { length, addresses: Some(addresses) })
}

/// Digits alone, and no zero in front.
fn port(word: &str) -> Option<u16> {
    let plain = word.bytes().all(|b| b.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    plain.then(|| word.parse().ok())?
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    const FIXED: usize = SIGNATURE.len() + 4;
    let Some(&[command, family, high, low]) = bytes.get(SIGNATURE.len()..FIXED) else {
        return Ok(Parsed::Beginning);
    };
    let length = FIXED + usize::from(u16::from_be_bytes([high, low]));
    let is_proxy = match command {
        0x20 => false,
        0x21 => true,
        _ => return Err(Malformed),
    };
    if length > MOST_V2 {
        return Err(Malformed);
    }
    let Some(rest) = bytes.get(FIXED..length) else { return Ok(Parsed::Beginning) };
    let addresses = match (is_proxy, family) {
        (false, _) => None,
        (true, 0x11) => Some(v2_addresses::<4>(rest).ok_or(Malformed)?),
        (true, 0x21) => Some(v2_addresses::<16>(rest).ok_or(Malformed)?),
        // Unspecified, datagrams and Unix sockets: accepted, and of no use here.
        (true, 0x00 | 0x12 | 0x22 | 0x31 | 0x32) => None,
        (true, _) => return Err(Malformed),
    };
    Ok(Parsed::Header { length, addresses })
}

/// Two addresses of so many bytes, and two ports.
fn v2_addresses<const N: usize>(bytes: &[u8]) -> Option<Addresses> {
    let (source, rest) = bytes.split_first_chunk::<N>()?;
    let (destination, rest) = rest.split_first_chunk::<N>()?;
    let (sport, rest) = rest.split_first_chunk::<2>()?;
    let (dport, _) = rest.split_first_chunk::<2>()?;
    Some(Addresses {
        source: SocketAddr::new(ip(source)?, u16::from_be_bytes(*sport)),
        destination: SocketAddr::new(ip(destination)?, u16::from_be_bytes(*dport)),
    })
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        _ => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
    }
}

/// The header of a connection between these two; none for [`SendProxy::Off`].
pub fn write(version: SendProxy, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (source, destination) = same_family(source, destination);
    match version {
        SendProxy::Off => Vec::new(),
        SendProxy::V1 => {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (from, to) = (source.ip(), destination.ip());
            format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port())
                .into_bytes()
        }
        SendProxy::V2 => write_v2(source, destination),
    }
}

/// The header of a connection of the edge's own, such as a health probe.
pub fn write_local(version: SendProxy) -> Vec<u8> {
    match version {
        SendProxy::Off => Vec::new(),
        SendProxy::V1 => b"PROXY UNKNOWN\r\n".to_vec(),
        SendProxy::V2 => [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat(),
    }
}

fn write_v2(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (family, length): (u8, u16) = if source.is_ipv4() { (0x11, 12) } else { (0x21, 36) };
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[0x21, family]);
    bytes.extend_from_slice(&length.to_be_bytes());
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => bytes.extend_from_slice(&ip.octets()),
            IpAddr::V6(ip) => bytes.extend_from_slice(&ip.octets()),
        }
    }
    bytes.extend_from_slice(&source.port().to_be_bytes());
    bytes.extend_from_slice(&destination.port().to_be_bytes());
    bytes
}

/// Both as they are, or both as IPv6: a header has one family for the two.
fn same_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    let plain = |at: SocketAddr| SocketAddr::new(at.ip().to_canonical(), at.port());
    let (source, destination) = (plain(source), plain(destination));
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    let wide = |at: SocketAddr| match at.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), at.port()),
        IpAddr::V6(_) => at,
    };
    (wide(source), wide(destination))
}
