//! A client's connection as hyper sees it: only bytes that passed [`Framing`].

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use super::{Framing, Limits, Violation};
use crate::{scratch, stream::Stream};

/// A stream that gives hyper only bytes that passed. After a violation reads fail with an [`io::Error`] that carries
/// the [`Violation`]; requests that had ended before it are still given.
pub struct Guarded {
    stream: Stream,
    /// Read before, and not checked yet.
    ahead: Bytes,
    framing: Framing,
    violation: Option<Violation>,
}

impl Guarded {
    /// Of a connection from which some bytes were read before.
    pub fn new(stream: Stream, limits: Limits, ahead: Bytes) -> Self {
        Self { stream, ahead, framing: Framing::new(limits), violation: None }
    }

    /// Gives on what passes.
    fn pass(&mut self, bytes: &[u8], buf: &mut ReadBufCursor<'_>) -> io::Result<()> {
        match self.framing.check(bytes) {
            Ok(()) => buf.put_slice(bytes),
            Err((whole, violation)) => {
                self.violation = Some(violation);
                // Nothing at all would be the end of the stream.
                if whole == 0 {
                    return Err(refused(violation));
                }
                buf.put_slice(&bytes[..whole]);
            }
        }
        Ok(())
    }

    pub fn violation(&self) -> Option<Violation> {
        self.violation
    }

    /// See [`Framing::is_opaque`].
    pub fn is_opaque(&self) -> bool {
        self.framing.is_opaque()
    }

    pub fn into_inner(self) -> Stream {
        self.stream
    }
}

impl Read for Guarded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(violation) = this.violation {
            return Poll::Ready(Err(refused(violation)));
        }
        if !this.ahead.is_empty() {
            let bytes = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
            return Poll::Ready(this.pass(&bytes, &mut buf));
        }
        scratch::with(|buffer| {
            let room = buf.remaining().min(buffer.len());
            let mut read = ReadBuf::new(&mut buffer[..room]);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            Poll::Ready(this.pass(read.filled(), &mut buf))
        })
    }
}

fn refused(violation: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, violation)
}

impl Write for Guarded {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
}
