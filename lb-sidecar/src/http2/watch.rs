//! What passes on an HTTP/2 connection, by the headers of its frames (RFC 9113, section 4.1): floods are seen before they
//! cost anything, and what the library below answers by itself is counted.
//!
//! Knows no payload but the code of a RST_STREAM that goes out. Bytes pass as they are; this never holds any.

use tokio::time::Instant;

use super::flood::{Budget, Flood};
use crate::outcome::Outcome;

/// What a client says first (section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

const FRAME_HEADER: usize = 9;

/// Streams that are remembered until they are served or refused: far more than may be open.
const MOST_OPENED: usize = 4_096;

mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// Codes of RST_STREAM (section 7): the last one for a stream that was not looked at.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;

/// See the module.
pub struct Watch {
    read: Frames,
    written: Frames,
    budget: Budget,
    /// Streams that the client has opened and nobody serves yet; the last one it opened.
    opened: Vec<u32>,
    last: u32,
    /// The last one whose head was too large.
    too_large: u32,
    /// A head has begun and not ended.
    in_head: bool,
    flood: Option<Flood>,
    answered: Vec<Outcome>,
}

impl Watch {
    pub fn new(now: Instant) -> Self {
        Self {
            read: Frames { skip: PREFACE.len(), ..Frames::default() },
            written: Frames::default(),
            budget: Budget::new(now),
            opened: Vec::new(),
            last: 0,
            too_large: 0,
            in_head: false,
            flood: None,
            answered: Vec::new(),
        }
    }

    /// The client has sent this. Says how much of it is in order; after a flood, nothing is.
    pub fn read(&mut self, bytes: &[u8], now: Instant) -> usize {
        let mut at = 0;
        while self.flood.is_none() && at < bytes.len() {
            let (taken, frame) = self.read.step(&bytes[at..]);
            if let Some(frame) = frame
                && let Err(flood) = self.came(&frame, now)
            {
                self.flood = Some(flood);
                break;
            }
            at += taken;
        }
        at
    }

    fn came(&mut self, frame: &Frame, now: Instant) -> Result<(), Flood> {
        let Frame { kind, flags, stream, length, .. } = *frame;
        match kind {
            kind::HEADERS => {
                self.budget.begin_head();
                self.budget.credit(Flood::Other, 2);
                self.budget.credit(Flood::WindowUpdate, 2);
                self.in_head = flags & END_HEADERS == 0;
                if stream > self.last && self.opened.len() < MOST_OPENED {
                    self.last = stream;
                    self.opened.push(stream);
                }
                Ok(())
            }
            kind::CONTINUATION => {
                self.in_head = flags & END_HEADERS == 0;
                self.budget.take(Flood::Continuation, now)
            }
            kind::DATA if length > 0 || flags & END_STREAM != 0 => Ok(()),
            kind::DATA => self.budget.take(Flood::EmptyData, now),
            kind::RST_STREAM => self.budget.take(Flood::Reset, now),
            kind::SETTINGS => self.budget.take(Flood::Settings, now),
            kind::PING => self.budget.take(Flood::Ping, now),
            kind::WINDOW_UPDATE => self.budget.take(Flood::WindowUpdate, now),
            _ => self.budget.take(Flood::Other, now),
        }
    }

    /// This has been sent to the client.
    pub fn wrote(&mut self, bytes: &[u8]) {
        let mut at = 0;
        while at < bytes.len() {
            let (taken, frame) = self.written.step(&bytes[at..]);
            at += taken;
            if let Some(frame) = frame {
                self.went(&frame);
            }
        }
    }

    fn went(&mut self, frame: &Frame) {
        if matches!(frame.kind, kind::HEADERS | kind::DATA) && frame.flags & END_STREAM != 0 {
            // Whoever lets streams come to their end may reset others.
            self.budget.credit(Flood::Reset, 1);
        }
        match frame.kind {
            kind::DATA => {
                self.budget.credit(Flood::WindowUpdate, 4);
                self.budget.credit(Flood::Ping, 1);
            }
            // To a stream that was never served: the head was too large, and that is its answer.
            kind::HEADERS if self.served(frame.stream) => {
                self.too_large = frame.stream;
                self.answered.push(Outcome::HeadTooLarge);
            }
            kind::RST_STREAM => {
                let is_served = !self.served(frame.stream);
                self.answered.extend(match frame.code {
                    REFUSED_STREAM if !is_served => Some(Outcome::Http2TooManyStreams),
                    // Only the library says that; after a head that was too large, too.
                    PROTOCOL_ERROR | FLOW_CONTROL_ERROR if frame.stream != self.too_large => {
                        Some(Outcome::Http2Malformed)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }

    /// Somebody serves the stream from now on. `false` if that is no news.
    pub fn served(&mut self, stream: u32) -> bool {
        match self.opened.iter().position(|opened| *opened == stream) {
            Some(at) => {
                self.opened.remove(at);
                true
            }
            None => false,
        }
    }

    pub fn is_in_head(&self) -> bool {
        self.in_head
    }

    /// What the client was caught at.
    pub fn flood(&self) -> Option<Flood> {
        self.flood
    }

    /// What has been answered below since this was asked last.
    pub fn take_answered(&mut self) -> Vec<Outcome> {
        std::mem::take(&mut self.answered)
    }
}

/// What the header of a frame says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Frame {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
    /// The first four bytes of a RST_STREAM.
    code: u32,
}

/// One direction, however its bytes are cut.
#[derive(Default)]
struct Frames {
    /// To be passed over.
    skip: usize,
    /// The header, and the code behind it.
    header: [u8; FRAME_HEADER + 4],
    have: usize,
}

impl Frames {
    /// Takes some bytes, at least one; with the last ones that it must know of a frame, that frame.
    fn step(&mut self, bytes: &[u8]) -> (usize, Option<Frame>) {
        if self.skip > 0 {
            let taken = self.skip.min(bytes.len());
            self.skip -= taken;
            return (taken, None);
        }
        let wanted = self.wanted();
        let taken = (wanted - self.have).min(bytes.len());
        self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
        self.have += taken;
        // With the header it is known whether more must be.
        if self.have < self.wanted() {
            return (taken, None);
        }
        let frame = self.frame();
        self.skip = frame.length - (self.have - FRAME_HEADER);
        self.have = 0;
        (taken, Some(frame))
    }

    fn wanted(&self) -> usize {
        let has_code = self.have >= FRAME_HEADER && {
            let Frame { kind, length, .. } = self.frame();
            kind == kind::RST_STREAM && length >= 4
        };
        FRAME_HEADER + if has_code { 4 } else { 0 }
    }

    fn frame(&self) -> Frame {
        let h = &self.header;
        Frame {
            length: u32::from_be_bytes([0, h[0], h[1], h[2]]) as usize,
            kind: h[3],
            flags: h[4],
            stream: u32::from_be_bytes([h[5], h[6], h[7], h[8]]) & 0x7fff_ffff,
            code: u32::from_be_bytes([h[9], h[10], h[11], h[12]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn client(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE.to_vec(), frames.concat()].concat()
    }

    #[test]
    fn frames_are_found_however_bytes_arrive() {
        let bytes = client(&[
            frame(kind::SETTINGS, 0, 0, &[0; 12]),
            frame(kind::HEADERS, END_HEADERS, 1, &[7; 40]),
            frame(kind::HEADERS, END_STREAM, 3, &[7; 9]),
            frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes()),
            frame(kind::DATA, 0, 1, &[kind::PING; 300]),
        ]);
        for cut in 1..bytes.len() {
            let mut watch = Watch::new(Instant::now());
            for piece in bytes.chunks(cut) {
                assert_eq!(watch.read(piece, Instant::now()), piece.len());
            }
            assert_eq!((watch.opened.as_slice(), watch.in_head), (&[1, 3][..], true), "{cut}");
            assert_eq!(watch.flood(), None);
        }
    }

    #[test]
    fn what_comes_before_a_flood_passes_and_the_rest_does_not() {
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let bytes = client(&vec![ping.clone(); 200]);
        let mut watch = Watch::new(Instant::now());
        let passed = watch.read(&bytes, Instant::now());
        assert_eq!(passed, PREFACE.len() + 100 * ping.len());
        assert_eq!(watch.flood(), Some(Flood::Ping));
        assert_eq!(watch.read(&ping, Instant::now()), 0);
    }

    #[test]
    fn what_is_answered_below_is_known_by_its_frames() {
        let now = Instant::now();
        let mut watch = Watch::new(now);
        let heads: Vec<_> =
            [1, 3, 5, 7].map(|stream| frame(kind::HEADERS, 5, stream, &[])).to_vec();
        watch.read(&client(&heads), now);
        assert!(watch.served(1));
        for (frame, answered) in [
            (frame(kind::HEADERS, END_HEADERS, 1, &[1; 9]), None),
            (frame(kind::RST_STREAM, 0, 1, &2_u32.to_be_bytes()), None),
            (frame(kind::RST_STREAM, 0, 1, &1_u32.to_be_bytes()), Some(Outcome::Http2Malformed)),
            (frame(kind::RST_STREAM, 0, 3, &1_u32.to_be_bytes()), Some(Outcome::Http2Malformed)),
            (
                frame(kind::RST_STREAM, 0, 5, &REFUSED_STREAM.to_be_bytes()),
                Some(Outcome::Http2TooManyStreams),
            ),
            (frame(kind::HEADERS, 5, 7, &[1; 9]), Some(Outcome::HeadTooLarge)),
            (frame(kind::RST_STREAM, 0, 7, &1_u32.to_be_bytes()), None),
        ] {
            for byte in &frame {
                watch.wrote(&[*byte]);
            }
            assert_eq!(watch.take_answered(), Vec::from_iter(answered), "{frame:?}");
        }
    }

    #[test]
    fn whoever_lets_streams_end_may_reset_others() {
        let now = Instant::now();
        let mut watch = Watch::new(now);
        watch.read(PREFACE, now);
        let reset = frame(kind::RST_STREAM, 0, 1, &8_u32.to_be_bytes());
        for _ in 0..1_000 {
            assert_eq!(watch.read(&reset, now), reset.len());
            watch.wrote(&frame(kind::DATA, END_STREAM, 3, b"x"));
        }
        let passed = (0..1_000).take_while(|_| watch.read(&reset, now) > 9).count();
        assert_eq!(passed, 100);
    }
}
