//! Both directions of an upgraded connection, until either ends. Knows nothing of HTTP.
//!
//! An idle relay owns no buffer: what is read goes through one buffer of the whole worker, and only what the other end
//! does not take at once is kept. Nothing more is read in that direction until it is gone.

use std::{
    cell::RefCell,
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

const SCRATCH: usize = 64 * 1024;

thread_local! {
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; SCRATCH].into_boxed_slice());
}

/// One side, and what was read of it before: forwarded first.
pub struct End {
    pub stream: TcpStream,
    pub read_ahead: Bytes,
}

pub struct Options {
    /// How long both directions may be silent.
    pub idle_timeout: Duration,
    pub websocket: bool,
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Client,
    Backend,
    ClientReset,
    BackendReset,
    Idle,
}

impl By {
    pub fn label(self) -> &'static str {
        match self {
            By::Client => "client",
            By::Backend => "backend",
            By::ClientReset => "client_reset",
            By::BackendReset => "backend_reset",
            By::Idle => "idle",
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// From the client to the backend.
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub by: By,
}

/// One direction: what is still to be written, and how far it is.
#[derive(Default)]
struct Direction {
    kept: Bytes,
    bytes: u64,
    read_all: bool,
    done: bool,
}

/// Which socket failed.
enum Failed {
    Reader,
    Writer,
}

impl Direction {
    fn poll(
        &mut self,
        from: &mut TcpStream,
        to: &mut TcpStream,
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
            if self.read_all {
                if !self.done {
                    // A peer that is gone already shows when it is read.
                    let _ = ready!(Pin::new(&mut *to).poll_shutdown(cx));
                    self.done = true;
                }
                return Poll::Ready(Ok(()));
            }
            ready!(BUFFER.with_borrow_mut(|buffer| self.pass(buffer, from, to, cx)))?;
        }
    }

    fn pass(
        &mut self,
        buffer: &mut [u8],
        from: &mut TcpStream,
        to: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Failed>> {
        // Of the same stream, `try_read` would ask the kernel once more after a short read.
        let mut read = ReadBuf::new(buffer);
        ready!(Pin::new(from).poll_read(cx, &mut read)).map_err(|_| Failed::Reader)?;
        let bytes = read.filled();
        self.read_all = bytes.is_empty();
        let written = match Pin::new(to).poll_write(cx, bytes) {
            _ if bytes.is_empty() => 0,
            Poll::Ready(result) => result.map_err(|_: io::Error| Failed::Writer)?,
            Poll::Pending => 0,
        };
        self.bytes += written as u64;
        if written < bytes.len() {
            self.kept = Bytes::copy_from_slice(&bytes[written..]);
        }
        Poll::Ready(Ok(()))
    }
}

/// See [`relay`].
pub struct Relay {
    client: TcpStream,
    backend: TcpStream,
    inward: Direction,
    outward: Direction,
    first: Option<By>,
    idle_timeout: Duration,
    seen: u64,
    active: Instant,
    timer: Pin<Box<Sleep>>,
}

/// Relays until both directions are at their end, one side fails, or nothing came for too long.
pub fn relay(client: End, backend: End, options: Options) -> Relay {
    let kept = |kept| Direction { kept, ..Direction::default() };
    Relay {
        client: client.stream,
        backend: backend.stream,
        inward: kept(client.read_ahead),
        outward: kept(backend.read_ahead),
        first: None,
        idle_timeout: options.idle_timeout,
        seen: 0,
        active: Instant::now(),
        timer: Box::pin(tokio::time::sleep(options.idle_timeout)),
    }
}

impl Relay {
    fn ended(&self, by: By) -> Poll<Ended> {
        let gone = match by {
            By::ClientReset => Some(&self.backend),
            By::BackendReset => Some(&self.client),
            _ => None,
        };
        if let Some(stream) = gone {
            // Whoever reads until the end must not take this for it.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
        Poll::Ready(Ended { bytes_in: self.inward.bytes, bytes_out: self.outward.bytes, by })
    }
}

impl Future for Relay {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        let inward = this.inward.poll(&mut this.client, &mut this.backend, cx);
        if this.inward.read_all {
            this.first.get_or_insert(By::Client);
        }
        let outward = this.outward.poll(&mut this.backend, &mut this.client, cx);
        if this.outward.read_all {
            this.first.get_or_insert(By::Backend);
        }
        match (inward, outward) {
            (Poll::Ready(Err(Failed::Reader)), _) | (_, Poll::Ready(Err(Failed::Writer))) => {
                return this.ended(By::ClientReset);
            }
            (Poll::Ready(Err(Failed::Writer)), _) | (_, Poll::Ready(Err(Failed::Reader))) => {
                return this.ended(By::BackendReset);
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                return this.ended(this.first.unwrap_or(By::Client));
            }
            _ => {}
        }
        let bytes = this.inward.bytes + this.outward.bytes;
        if bytes != this.seen {
            this.seen = bytes;
            this.active = Instant::now();
        }
        // The timer is not touched by a message: it goes off, and then it is seen whether anything has come.
        while this.timer.as_mut().poll(cx).is_ready() {
            let expiry = this.active + this.idle_timeout;
            if expiry <= Instant::now() {
                return this.ended(By::Idle);
            }
            this.timer.as_mut().reset(expiry);
        }
        Poll::Pending
    }
}
