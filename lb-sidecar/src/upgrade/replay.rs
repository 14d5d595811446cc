//! Gives hyper a response whose request it has not written, and whose beginning was read before.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;

use crate::{relay::End, upstream::Pieces};

/// A connection whose request was written and whose response was read in part.
pub struct Replay {
    stream: TokioIo<Pieces>,
    read_ahead: Bytes,
    asked: bool,
    reader: Option<Waker>,
}

impl Replay {
    pub fn new(end: End) -> Self {
        let stream = TokioIo::new(Pieces::new(end.stream));
        Self { stream, read_ahead: end.read_ahead, asked: false, reader: None }
    }
}

impl Read for Replay {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // To hyper, a response before its request would be an error.
        if !self.asked {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if self.read_ahead.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let n = self.read_ahead.len().min(buf.remaining());
        buf.put_slice(&self.read_ahead.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl Write for Replay {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.asked = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
