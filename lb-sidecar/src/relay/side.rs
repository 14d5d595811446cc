//! What is relayed: a socket, or whatever is read and written like one.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::stream::Stream;

/// One side of a relay.
pub trait Side: AsyncRead + AsyncWrite + Unpin {
    /// The socket, if it is nothing else.
    fn socket(&self) -> Option<&TcpStream>;

    /// Its end is to be none that looks like one: whoever reads until the end must not take this for it.
    fn reset(&mut self);

    /// Ready when the peer has cut it off, if that does not show when it is read.
    fn poll_gone(&mut self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    /// Says that no more comes, where that is not the socket's own end.
    fn say_end(&mut self) {}
}

impl Side for Stream {
    fn socket(&self) -> Option<&TcpStream> {
        self.is_plain().then(|| self.tcp())
    }

    fn reset(&mut self) {
        _ = socket2::SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    fn say_end(&mut self) {
        Self::say_end(self);
    }
}
