//! One direction of a relay: bytes from one socket to the other.
//!
//! What is read goes through one buffer of the whole worker; only what the other end does not take at once is kept, and
//! nothing more is read until it is gone. An idle direction owns no buffer.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::websocket::Frames;
use crate::{
    limits::pace::{Pace, Pause},
    scratch,
};

/// Which socket failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    Reader,
    Writer,
}

/// What is still to be written, and how far it is.
#[derive(Default)]
pub struct Direction {
    kept: Bytes,
    /// Written up to now.
    pub bytes: u64,
    /// Nothing more will be read: the reader has ended, or something was put in place of the rest.
    pub read_all: bool,
    done: bool,
    /// Follows the frames, in a direction into which one may be put.
    frames: Option<Frames>,
    /// To be put in place of the rest at the end of a frame.
    last_words: Option<Bytes>,
    pace: Option<Box<(Rc<Pace>, Pause)>>,
}

impl Direction {
    /// Begins with what was read before.
    pub fn new(read_ahead: Bytes, follow_frames: bool, pace: Option<Rc<Pace>>) -> Self {
        let mut frames = follow_frames.then(Frames::default);
        if let Some(frames) = &mut frames {
            frames.feed(&read_ahead);
        }
        let pace = pace.map(|pace| Box::new((pace, Pause::default())));
        Self { kept: read_ahead, frames, pace, ..Self::default() }
    }

    /// Ends with these words in place of all that would still come: at the end of the frame at hand, or at once where
    /// frames are not followed.
    pub fn end_with(&mut self, words: &'static [u8]) {
        if self.read_all {
            return;
        }
        match &self.frames {
            Some(frames) if !frames.at_boundary() => {
                self.last_words = Some(Bytes::from_static(words));
            }
            Some(frames) => {
                // After a Close frame no other may follow (RFC 6455, section 5.5.1).
                let words = if frames.closed() { &[] } else { words };
                self.append(words);
                self.read_all = true;
            }
            None => self.read_all = true,
        }
    }

    /// Whether all is written and only the end is left to pass on.
    pub fn is_over(&self) -> bool {
        self.read_all && self.kept.is_empty()
    }

    /// Whether more may come, and nothing of what came is left here.
    pub fn is_at_rest(&self) -> bool {
        !self.read_all && self.kept.is_empty() && self.last_words.is_none()
    }

    /// Takes bytes on until there are none, or the writer takes no more. Ready once the end has been passed on; for the
    /// `last` direction that ends, the sockets' own end will do that.
    pub fn poll(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        last: bool,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        loop {
            while !self.kept.is_empty() {
                let written = ready!(Pin::new(&mut *to).poll_write(cx, &self.kept));
                let written = written.map_err(|_| Failed::Writer)?;
                self.bytes += written as u64;
                self.kept.advance(written);
            }
            self.kept = Bytes::new();
            // What TLS has made of it.
            ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(|_| Failed::Writer)?;
            if self.read_all {
                if !self.done && !last {
                    // A peer that is gone already shows when it is read.
                    _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.done = true;
                }
                return Poll::Ready(Ok(()));
            }
            if let Some(limited) = &mut self.pace {
                let (pace, pause) = &mut **limited;
                ready!(pause.poll(pace, cx));
            }
            ready!(scratch::with(|buffer| self.pass(buffer, from, to, cx)))?;
        }
    }

    fn pass(
        &mut self,
        buffer: &mut [u8],
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        let most = self.pace.as_ref().map_or(usize::MAX, |limited| limited.0.most());
        let room = buffer.len().min(most);
        // Not `try_read`: after a short read that would ask the kernel once more.
        let mut read = ReadBuf::new(&mut buffer[..room]);
        ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(|_| Failed::Reader)?;
        let bytes = read.filled();
        if bytes.is_empty() {
            self.read_all = true;
            return Poll::Ready(Ok(()));
        }
        if let Some(limited) = &self.pace {
            limited.0.spend(bytes.len());
        }
        let bytes = self.follow(bytes);
        let written = match Pin::new(to).poll_write(cx, bytes) {
            Poll::Ready(result) => result.map_err(|_| Failed::Writer)?,
            Poll::Pending => 0,
        };
        self.bytes += written as u64;
        if written < bytes.len() {
            self.kept = Bytes::copy_from_slice(&bytes[written..]);
        }
        if self.read_all
            && let Some(words) = self.last_words.take()
        {
            self.append(&words);
        }
        Poll::Ready(Ok(()))
    }

    /// Follows the frames; what stands behind the end that was asked for is cut off.
    fn follow<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let Some(frames) = &mut self.frames else { return bytes };
        if self.last_words.is_none() {
            frames.feed(bytes);
            return bytes;
        }
        let Some(end) = frames.up_to_boundary(bytes) else { return bytes };
        self.read_all = true;
        if frames.closed() {
            self.last_words = None;
        }
        &bytes[..end]
    }

    fn append(&mut self, words: &[u8]) {
        self.kept = [&self.kept[..], words].concat().into();
    }
}
