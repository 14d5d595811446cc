//! A connection as the rest of the sidecar sees it: plain, or with TLS on it. Whoever reads and writes need not know.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use rustls::{client::UnbufferedClientConnection, server::UnbufferedServerConnection};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::tls;

/// See the module.
pub enum Stream {
    Plain(TcpStream),
    /// TLS with a client.
    Served(Box<tls::Stream<UnbufferedServerConnection>>),
    /// TLS with a backend.
    Asked(Box<tls::Stream<UnbufferedClientConnection>>),
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Plain(socket)
    }
}

impl Stream {
    /// The socket below.
    pub fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Served(stream) => stream.tcp(),
            Self::Asked(stream) => stream.tcp(),
        }
    }

    /// Whether what is read and written is what the socket carries.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Ready when a read may bring something, or the end.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let held = match self {
            Self::Plain(_) => false,
            Self::Served(stream) => stream.holds_more(),
            Self::Asked(stream) => stream.holds_more(),
        };
        if held { Poll::Ready(Ok(())) } else { self.tcp().poll_read_ready(cx) }
    }

    /// What has come, if anything has.
    pub fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read(buffer),
            Self::Served(stream) => stream.try_read(buffer),
            Self::Asked(stream) => stream.try_read(buffer),
        }
    }

    /// Writes what the socket takes. With TLS all of it counts as written, and what is left goes with the next flush.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Served(stream) => stream.try_write(bytes),
            Self::Asked(stream) => stream.try_write(bytes),
        }
    }

    /// Says that no more comes, where that is not the socket's own end, as far as the socket takes it at once.
    pub fn say_end(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Served(stream) => stream.say_end(),
            Self::Asked(stream) => stream.say_end(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Served(stream) => stream.poll_read(cx, buf),
            Self::Asked(stream) => stream.poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, bytes),
            Self::Served(stream) => stream.poll_write(cx, bytes),
            Self::Asked(stream) => stream.poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Served(stream) => stream.poll_flush(cx),
            Self::Asked(stream) => stream.poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Served(stream) => stream.poll_shutdown(cx),
            Self::Asked(stream) => stream.poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.is_plain()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            stream => {
                let bytes = bufs.iter().find(|it| !it.is_empty()).map_or(&[][..], |it| it);
                Pin::new(stream).poll_write(cx, bytes)
            }
        }
    }
}
