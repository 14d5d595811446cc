//! What a ClientHello says of where its connection is to go: the name (RFC 6066, section 3) and the protocols (RFC 7301).
//!
//! Pure. rustls could read it, too, but refuses what it would not speak itself: a hello without `signature_algorithms`, say,
//! as clients of TLS 1.1 send it. Here nothing is judged but what must be understood to find name and protocols; the rest
//! is the backend's affair, who gets the same bytes.

use std::net::IpAddr;

/// Most bytes that a hello may have, its records' headers included. Those of browsers have 2 KiB.
pub const MOST_BYTES: usize = 16 << 10;

/// Most records that a hello may be in. One is usual; who has to keep them short (RFC 6066, section 4: 512 bytes) needs 32.
pub const MOST_RECORDS: usize = 64;

/// Most bytes in a record (RFC 8446, section 5.1).
const MOST_FRAGMENT: usize = 1 << 14;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
const HOST_NAME: u8 = 0;

/// Longest name of a host, as DNS has it.
const MOST_NAME: usize = 255;

/// Where a client wants to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// In lower case and without the dot of the root. None also for an address, which is no name (RFC 6066, section 3).
    pub name: Option<Box<str>>,
    pub alpn: Vec<Box<[u8]>>,
}

/// Why what came is no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// Not TLS at all.
    Foreign,
    /// It contradicts the protocol.
    Malformed,
    /// It has not come to its end within [`MOST_BYTES`] or [`MOST_RECORDS`].
    TooLarge,
}

/// Takes bytes until the hello is whole.
#[derive(Default)]
pub struct Reader {
    bytes: Vec<u8>,
    /// Where the next record begins.
    next: usize,
    records: usize,
    /// What was in the records before.
    message: Vec<u8>,
}

impl Reader {
    /// How many more bytes it takes.
    pub fn room(&self) -> usize {
        MOST_BYTES.saturating_sub(self.bytes.len())
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that came.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// More has come: the hello, once it is whole. What cannot become one any more is refused at once.
    pub fn feed(&mut self, more: &[u8]) -> Result<Option<Hello>, Bad> {
        self.bytes.extend_from_slice(more);
        while let Some(fragment) = self.fragment()? {
            self.message.extend_from_slice(&self.bytes[fragment.clone()]);
            self.next = fragment.end;
            self.records += 1;
            if let Some((&[_, high, middle, low], rest)) = self.message.split_first_chunk() {
                let length = u32::from_be_bytes([0, high, middle, low]) as usize;
                if length > MOST_BYTES {
                    return Err(Bad::TooLarge);
                }
                if let Some(body) = rest.get(..length) {
                    return body_of(body).map(Some).ok_or(Bad::Malformed);
                }
            }
            if self.records == MOST_RECORDS {
                return Err(Bad::TooLarge);
            }
        }
        if self.room() == 0 { Err(Bad::TooLarge) } else { Ok(None) }
    }

    /// Where the contents of the next record are, if all of it is there.
    fn fragment(&self) -> Result<Option<std::ops::Range<usize>>, Bad> {
        let record = &self.bytes[self.next..];
        let is_handshake = record.iter().zip([HANDSHAKE, 3]).all(|(is, must)| *is == must);
        if !is_handshake {
            return Err(if self.records == 0 { Bad::Foreign } else { Bad::Malformed });
        }
        let Some((&[_, _, _, high, low], rest)) = record.split_first_chunk() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let is_hello =
            !self.message.is_empty() || rest.first().is_none_or(|it| *it == CLIENT_HELLO);
        if !is_hello || length == 0 || length > MOST_FRAGMENT {
            return Err(Bad::Malformed);
        }
        let start = self.next + 5;
        Ok((rest.len() >= length).then(|| start..start + length))
    }
}

/// What stands behind a message's type and length (RFC 8446, section 4.1.2). None: it is malformed.
fn body_of(body: &[u8]) -> Option<Hello> {
    let mut body = Input(body);
    let mut hello = Hello::default();
    // Version and random.
    body.take(2 + 32)?;
    let session = body.vector8()?;
    let suites = body.vector16()?;
    let compressions = body.vector8()?;
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compressions.is_empty() {
        return None;
    }
    // Before TLS 1.3 there may be no extensions (RFC 5246, section 7.4.1.2).
    if body.is_empty() {
        return Some(hello);
    }
    let mut extensions = Input(body.vector16()?);
    if !body.is_empty() {
        return None;
    }
    // One that is there twice could be read in two ways.
    let (mut names, mut protocols) = (0, 0);
    while !extensions.is_empty() {
        let kind = extensions.u16()?;
        let data = Input(extensions.vector16()?);
        match kind {
            SERVER_NAME => {
                hello.name = server_name(data)?;
                names += 1;
            }
            ALPN => {
                hello.alpn = alpn(data)?;
                protocols += 1;
            }
            _ => {}
        }
    }
    (names <= 1 && protocols <= 1).then_some(hello)
}

/// The outer None: it is malformed.
fn server_name(mut data: Input<'_>) -> Option<Option<Box<str>>> {
    let mut list = Input(data.vector16()?);
    if list.is_empty() || !data.is_empty() {
        return None;
    }
    let mut found = None;
    while !list.is_empty() {
        // How long a name of another kind is, nobody can know; there has never been one.
        if list.u8()? != HOST_NAME {
            break;
        }
        // No more than one of a kind.
        if found.replace(list.vector16()?).is_some() {
            return None;
        }
    }
    match found {
        Some(name) => host(name),
        None => Some(None),
    }
}

/// As it is compared. The outer None: it cannot be a name.
fn host(name: &[u8]) -> Option<Option<Box<str>>> {
    if name.is_empty() || name.len() > MOST_NAME || !name.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    Some((!is_address).then(|| name.to_ascii_lowercase().into()))
}

fn alpn(mut data: Input<'_>) -> Option<Vec<Box<[u8]>>> {
    let mut list = Input(data.vector16()?);
    if list.is_empty() || !data.is_empty() {
        return None;
    }
    let mut protocols = Vec::new();
    while !list.is_empty() {
        let protocol = list.vector8()?;
        if protocol.is_empty() {
            return None;
        }
        protocols.push(protocol.into());
    }
    Some(protocols)
}

/// What is left to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|it| it[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|it| u16::from_be_bytes([it[0], it[1]]))
    }

    /// Bytes behind their number, which has one byte itself.
    fn vector8(&mut self) -> Option<&'a [u8]> {
        let length = self.u8()?;
        self.take(length.into())
    }

    fn vector16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}

#[cfg(test)]
mod tests;
