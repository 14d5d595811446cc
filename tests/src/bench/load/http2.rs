//! As much of HTTP/2 (RFC 9113) as a client needs that asks for something now and then, and is silent in between.

use anyhow::{Context, Result, bail, ensure};

use super::{AT_ONCE, BUFFER, STUCK, connection::Entrance, wire::Wire};
use crate::bench::{
    backend::BODY,
    poll::{Poll, Ready},
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const NO_SETTINGS: [u8; FRAME_HEAD] = [0, 0, 0, SETTINGS, 0, 0, 0, 0, 0];
const SETTINGS_TAKEN: [u8; FRAME_HEAD] = [0, 0, 0, SETTINGS, ACK, 0, 0, 0, 0];

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;

const ACK: u8 = 1;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// `:status: 200` of the static table (RFC 7541, appendix A).
const STATUS_200: u8 = 0x88;

/// A connection that has been answered as often as it has asked.
pub struct Http2 {
    wire: Wire,
    /// That of the next request.
    stream: u32,
    asked: bool,
    /// A frame that has come in part.
    rest: Vec<u8>,
    status: bool,
    body: Vec<u8>,
}

impl Http2 {
    fn new(wire: Wire) -> Self {
        Self { wire, stream: 1, asked: false, rest: Vec::new(), status: false, body: Vec::new() }
    }

    /// Does what can be done now. Returns whether the answer is complete.
    fn advance(&mut self, buffer: &mut [u8]) -> Result<bool> {
        if !self.asked {
            let mut bytes = Vec::new();
            if self.stream == 1 {
                bytes.extend(PREFACE);
                bytes.extend(NO_SETTINGS);
            }
            bytes.extend(request(self.stream));
            self.asked = self.wire.send(&bytes)?;
            return Ok(false);
        }
        ensure!(self.wire.protocol() == Some(b"h2"), "HTTP/2 was not agreed on");
        while let Some(len) = self.wire.receive(buffer)? {
            self.rest.extend(&buffer[..len]);
            if self.frames()? {
                ensure!(self.status && self.body == BODY, "a wrong answer");
                (self.asked, self.status, self.body) = (false, false, Vec::new());
                self.rest.shrink_to_fit();
                self.stream += 2;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes the whole frames. Returns whether the stream has come to its end.
    fn frames(&mut self) -> Result<bool> {
        let mut ended = false;
        while let Some((&[a, b, c, kind, flags, ..], after)) =
            self.rest.split_first_chunk::<FRAME_HEAD>()
        {
            let len = u32::from_be_bytes([0, a, b, c]) as usize;
            let Some(payload) = after.get(..len) else { break };
            match kind {
                DATA => self.body.extend(payload),
                HEADERS => self.status = payload.contains(&STATUS_200),
                SETTINGS if flags & ACK == 0 => {
                    ensure!(self.wire.send(&SETTINGS_TAKEN)?, "no room for an answer");
                }
                SETTINGS | WINDOW_UPDATE => {}
                other => bail!("a frame of the type {other}"),
            }
            ended |= matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0;
            self.rest.drain(..FRAME_HEAD + len);
        }
        Ok(ended)
    }
}

/// `GET https://chat.test/api`, without Huffman's code.
fn request(stream: u32) -> Vec<u8> {
    // Indexed: the method and the scheme; literal, not indexed: the path and the authority.
    let mut block = vec![0x82, 0x87, 0x04, 4];
    block.extend(b"/api");
    block.extend([0x01, 9]);
    block.extend(b"chat.test");
    let len = u8::try_from(block.len()).expect("a short request");
    let mut frame = vec![0, 0, len, HEADERS, END_STREAM | END_HEADERS];
    frame.extend(stream.to_be_bytes());
    frame.extend(block);
    frame
}

/// Opens so many and gets one answer on each.
pub fn open_http2(entrance: &Entrance, count: usize) -> Result<Vec<Http2>> {
    let new = (0..count).map(|number| Ok(Http2::new(entrance.dial(number)?)));
    answers(new, count)
}

/// Gets one more answer on each.
pub fn ask_again(connections: Vec<Http2>) -> Result<Vec<Http2>> {
    let count = connections.len();
    answers(connections.into_iter().map(Ok), count)
}

fn answers(
    mut connections: impl Iterator<Item = Result<Http2>>,
    count: usize,
) -> Result<Vec<Http2>> {
    let poll = Poll::new()?;
    let mut ready = Ready::new();
    let mut buffer = vec![0; BUFFER];
    let mut begun: Vec<Option<Http2>> = Vec::new();
    let mut done = Vec::with_capacity(count);
    while done.len() < count {
        while begun.len() < count && begun.len() - done.len() < AT_ONCE {
            let connection = connections.next().context("fewer than were counted")??;
            poll.changes(connection.wire.socket(), begun.len())?;
            begun.push(Some(connection));
        }
        poll.wait(&mut ready, STUCK)?;
        ensure!(!ready.is_empty(), "connection {} of {count}: no answer", done.len() + 1);
        for number in ready.numbers() {
            let Some(connection) = &mut begun[number] else { continue };
            let answered = connection
                .advance(&mut buffer)
                .with_context(|| format!("connection {} of {count}", number + 1))?;
            if answered {
                done.extend(begun[number].take());
            }
        }
    }
    Ok(done)
}
