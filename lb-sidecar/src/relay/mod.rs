//! Both directions of an upgraded connection, until it ends. Knows nothing of HTTP.
//!
//! An idle relay is two sockets, a timer and this module's few hundred bytes: no buffer, see [`direction`].

mod attempts;
mod direction;
pub mod registry;
mod side;
#[cfg(test)]
mod splice_tests;
#[cfg(test)]
mod tests;
mod websocket;

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

pub use attempts::Means;
use attempts::{Attempts, Verdict};
use direction::{Direction, Failed};
use registry::{Entry, Order};
pub use side::Side;
pub use websocket::{GOING_AWAY, SERVICE_RESTART};

use crate::{limits::pace::Pace, settings::State, stream::Stream};

/// How long a peer that was told to close may take.
const GRACE: Duration = Duration::from_secs(5);

/// One side, and what was read of it before: forwarded first.
pub struct End<S = Stream> {
    pub stream: S,
    pub read_ahead: Bytes,
}

/// How a connection is relayed.
pub struct Options {
    /// How long both directions may be silent.
    pub idle_timeout: Duration,
    /// Whether it consists of WebSocket frames, so that a Close frame can be sent.
    pub websocket: bool,
    /// By whom it can be ended, and whose bytes are counted.
    pub entry: Entry,
    /// If it may be spliced.
    pub splice: Option<Means>,
    /// Of the client's connection, from it and to it; others that it carries share them.
    pub pace: [Option<Rc<Pace>>; 2],
}

/// Who ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    Client,
    Backend,
    ClientReset,
    BackendReset,
    Idle,
    /// The backend or the edge drains.
    Drain,
    /// It was still there when the drain's time was over.
    Deadline,
    /// Nobody: XDP carries it from now on.
    Splice,
}

impl By {
    /// In logs and counters.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Backend => "backend",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Deadline => "deadline",
            Self::Splice => "splice",
        }
    }
}

/// What it was in the end.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Bytes from the client to the backend.
    pub bytes_in: u64,
    /// Bytes from the backend to the client.
    pub bytes_out: u64,
    pub by: By,
}

/// See [`relay`].
pub struct Relay<C> {
    client: C,
    backend: Stream,
    inward: Direction,
    outward: Direction,
    first: Option<By>,
    idle_timeout: Duration,
    entry: Entry,
    /// Bytes in and out that the backend's counters know of.
    counted: (u64, u64),
    active: Instant,
    attempts: Option<Box<Attempts>>,
    timer: Pin<Box<Sleep>>,
}

/// Relays until both directions are at their end, one side fails, nothing came for too long, or it is told to end.
pub fn relay<C: Side>(client: End<C>, backend: End, options: Options) -> Relay<C> {
    let Options { idle_timeout, websocket, entry, splice, pace } = options;
    let [from_client, to_client] = pace;
    let now = Instant::now();
    let attempts = splice.map(|means| Box::new(Attempts::new(means, now)));
    let first = attempts.as_ref().and_then(|attempts| attempts.due());
    let expiry = now + idle_timeout;
    Relay {
        client: client.stream,
        backend: backend.stream,
        inward: Direction::new(client.read_ahead, false, from_client),
        outward: Direction::new(backend.read_ahead, websocket, to_client),
        first: None,
        idle_timeout,
        entry,
        counted: (0, 0),
        active: now,
        attempts,
        timer: Box::pin(tokio::time::sleep_until(first.map_or(expiry, |first| first.min(expiry)))),
    }
}

impl<C: Side> Future for Relay<C> {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let this = &mut *self;
        this.entry.wake(cx.waker());
        if this.attempts.as_ref().is_some_and(|it| it.is_under_way())
            && let Some(by) = ready!(this.poll_attempt(cx))
        {
            return this.ended(by);
        }
        match this.entry.order() {
            Some(Order::Abort) => return this.ended(By::Deadline),
            Some(Order::Close(code)) if this.first.is_none() => this.begin_to_close(code),
            _ => {}
        }
        if this.client.poll_gone(cx).is_ready() {
            return this.ended(By::ClientReset);
        }
        let last = this.outward.is_over();
        let inward = this.inward.poll(&mut this.client, &mut this.backend, last, cx);
        if this.inward.read_all {
            this.first.get_or_insert(By::Client);
        }
        let last = this.inward.is_over();
        let outward = this.outward.poll(&mut this.backend, &mut this.client, last, cx);
        if this.outward.read_all {
            this.first.get_or_insert(By::Backend);
        }
        this.count();
        match (inward, outward) {
            (Poll::Ready(Err(Failed::Reader)), _) | (_, Poll::Ready(Err(Failed::Writer))) => {
                this.ended(By::ClientReset)
            }
            (Poll::Ready(Err(Failed::Writer)), _) | (_, Poll::Ready(Err(Failed::Reader))) => {
                this.ended(By::BackendReset)
            }
            (Poll::Ready(Ok(())), Poll::Ready(Ok(()))) => {
                this.ended(this.first.unwrap_or(By::Client))
            }
            _ => this.poll_timer(cx),
        }
    }
}

impl<C: Side> Relay<C> {
    /// The client gets a Close frame, or at least a FIN, in place of what the backend would still send. What it sends
    /// itself is passed on until it closes, or the time for that is over.
    fn begin_to_close(&mut self, code: u16) {
        self.first = Some(By::Drain);
        self.outward.end_with(websocket::close_frame(code));
        self.idle_timeout = GRACE;
        self.attempts = None;
        self.active = Instant::now();
        self.timer.as_mut().reset(self.active + GRACE);
    }

    fn count(&mut self) {
        let now = (self.inward.bytes, self.outward.bytes);
        if now == self.counted {
            return;
        }
        let backend = self.entry.backend();
        backend.bytes_in.set(backend.bytes_in.get() + now.0 - self.counted.0);
        backend.bytes_out.set(backend.bytes_out.get() + now.1 - self.counted.1);
        self.counted = now;
        // Whoever was told to close has that much time and no more, however much he still sends.
        if self.first != Some(By::Drain) {
            self.active = Instant::now();
        }
    }

    /// The timer is not touched by a message: it goes off, and then it is seen whether anything has come.
    fn poll_timer(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let expiry = self.active + self.idle_timeout;
            let now = Instant::now();
            if expiry <= now {
                let by = self.first.filter(|first| *first == By::Drain);
                return self.ended(by.unwrap_or(By::Idle));
            }
            let due = self.look(now, cx);
            self.timer.as_mut().reset(due.map_or(expiry, |due| due.min(expiry)));
        }
        Poll::Pending
    }

    /// Offers the connection if it is time for that and it is at rest. Says when to look again.
    fn look(&mut self, now: Instant, cx: &mut Context<'_>) -> Option<Instant> {
        // Who has begun to end it goes on with that.
        if self.first.is_some() {
            self.attempts = None;
        }
        let attempts = self.attempts.as_mut()?;
        let socket = self.client.socket()?;
        if attempts.due().is_some_and(|due| due <= now) {
            // A relay that ends with its backend's drain gets a Close frame; what is spliced, a RST.
            let resting = matches!(self.entry.backend().state(), State::Up | State::Spare)
                && self.inward.is_at_rest()
                && self.outward.is_at_rest();
            let active = if resting { self.active } else { now };
            attempts.look(socket, self.backend.tcp(), active, now, cx.waker());
        }
        attempts.due()
    }

    /// Waits for the answer to the offer; neither connection is touched meanwhile. Ready with the end, or without one if it
    /// is relayed again.
    fn poll_attempt(&mut self, cx: &mut Context<'_>) -> Poll<Option<By>> {
        let (Some(attempts), Some(socket)) = (&mut self.attempts, self.client.socket()) else {
            return Poll::Ready(None);
        };
        loop {
            match attempts.poll(socket, self.backend.tcp(), cx) {
                Poll::Ready(Verdict::Spliced) => return Poll::Ready(Some(By::Splice)),
                Poll::Ready(Verdict::Later) => break,
                Poll::Ready(Verdict::Never) => {
                    self.attempts = None;
                    break;
                }
                Poll::Pending => {}
            }
            if !attempts.is_torn() {
                return Poll::Pending;
            }
            if self.entry.order() == Some(Order::Abort) {
                // Closed in repair mode, it says nothing to anybody.
                return Poll::Ready(Some(By::Deadline));
            }
            if let Some(due) = attempts.due() {
                self.timer.as_mut().reset(due);
            }
            ready!(self.timer.as_mut().poll(cx));
        }
        let due = self.attempts.as_ref().and_then(|attempts| attempts.due());
        let expiry = self.active + self.idle_timeout;
        self.timer.as_mut().reset(due.map_or(expiry, |due| due.min(expiry)));
        Poll::Ready(None)
    }

    fn ended(&mut self, by: By) -> Poll<Ended> {
        let by = match self.first {
            // That its peer hung up on it is no news.
            Some(By::Drain) if by != By::Deadline => By::Drain,
            _ => by,
        };
        match by {
            By::ClientReset => self.backend.reset(),
            By::BackendReset => self.client.reset(),
            _ => {
                self.client.say_end();
                self.backend.say_end();
            }
        }
        self.count();
        Poll::Ready(Ended { bytes_in: self.inward.bytes, bytes_out: self.outward.bytes, by })
    }
}
