//! A stream of HTTP/2 that carries another protocol (RFC 8441), read and written like a socket.
//!
//! Like a relayed socket it owns no buffer while it is idle, and asks for no part of the connection's window.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::relay::Side;

/// See the module.
pub struct Tunnel {
    received: RecvStream,
    sent: SendStream<Bytes>,
    /// Received, and not read yet.
    unread: Bytes,
    /// END_STREAM is sent.
    ended: bool,
}

impl Tunnel {
    pub fn new(received: RecvStream, sent: SendStream<Bytes>) -> Self {
        Self { received, sent, unread: Bytes::new(), ended: false }
    }

    fn end(&mut self) {
        if !self.ended {
            self.ended = true;
            // A stream that is reset has its end.
            _ = self.sent.send_data(Bytes::new(), true);
        }
    }
}

fn reset() -> io::Error {
    io::ErrorKind::ConnectionReset.into()
}

impl AsyncRead for Tunnel {
    /// Whoever reads passes it on before it reads again: so the client may send as much once more.
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.unread.is_empty() {
            match ready!(this.received.poll_data(cx)) {
                Some(Ok(data)) => this.unread = data,
                Some(Err(_)) => return Poll::Ready(Err(reset())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let n = this.unread.len().min(buf.remaining());
        buf.put_slice(&this.unread[..n]);
        this.unread.advance(n);
        if this.unread.is_empty() {
            this.unread = Bytes::new();
        }
        // It fails only where the stream has ended.
        _ = this.received.flow_control().release_capacity(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.sent.reserve_capacity(bytes.len());
        while self.sent.capacity() == 0 {
            match ready!(self.sent.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                _ => return Poll::Ready(Err(reset())),
            }
        }
        let n = self.sent.capacity().min(bytes.len());
        let data = Bytes::copy_from_slice(&bytes[..n]);
        Poll::Ready(self.sent.send_data(data, false).map(|()| n).map_err(|_| reset()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Side for Tunnel {
    fn socket(&self) -> Option<&TcpStream> {
        None
    }

    /// What a RST is on a socket (RFC 8441, section 5).
    fn reset(&mut self) {
        self.ended = true;
        self.sent.send_reset(Reason::CANCEL);
    }

    /// A client that has sent its last may still reset the stream.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.sent.poll_reset(cx).map(drop)
    }

    fn say_end(&mut self) {
        self.end();
    }
}
