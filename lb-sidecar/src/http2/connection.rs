//! A client's connection: streams are accepted, floods and idleness end it, and a drain asks for its end (GOAWAY).

use std::{
    cell::{Cell, RefCell},
    future::{Future as _, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason,
    server::{Builder, Connection},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Sleep, sleep_until},
};

use super::{
    io::Watched,
    stream,
    watch::{PREFACE, Watch},
};
use crate::{
    client::Client, deadline::Wait, farewell::linger, life::Open, outcome::Outcome, service::Plan,
};

/// What a stream's body may have under way, and those of a connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// What of a response waits in a stream for the socket.
const SEND_BUFFER: usize = 32 << 10;

/// Heads are measured with their overhead (RFC 9113, section 10.5.1): some 32 bytes for each field.
const FIELDS_OVERHEAD: u32 = 4 << 10;

/// How long the last words may take, and the last streams of a client that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LAST_STREAMS: Duration = Duration::from_secs(5);

/// When nothing is waited for that has a time.
const LONG: Duration = Duration::from_secs(86_400);

/// Whether a connection's first bytes are those of HTTP/2. No method but PROPFIND begins with `PR`, and hardly anybody
/// sends less at first.
pub fn begins(first: &[u8]) -> bool {
    let known = first.len().min(PREFACE.len());
    known >= 3 && first[..known] == PREFACE[..known]
}

/// Serves a connection to its end. Streams that are relayed hold on to `open`, like all others.
pub async fn serve<T>(io: T, client: Rc<Client>, open: Open)
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
{
    client.service.count(Outcome::Http2Connection);
    let plan = client.service.plan();
    let io = Rc::new(RefCell::new(io));
    let watch = Rc::new(RefCell::new(Watch::new(tokio::time::Instant::now())));
    let handshake = builder(&plan).handshake(Watched { io: io.clone(), watch: watch.clone() });
    drop(plan);
    let mut sleep = pin!(sleep_until(client.deadline.armed()));
    let mut handshake = pin!(handshake);
    let begun = poll_fn(|cx| {
        if let Poll::Ready(result) = handshake.as_mut().poll(cx) {
            return Poll::Ready(Some(result));
        }
        match client.deadline.poll(sleep.as_mut(), cx) {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    });
    // It is open until its last words are said.
    let open = Rc::new(open);
    match begun.await {
        Some(Ok(connection)) => {
            let open = open.clone();
            let streams = Rc::default();
            let client = client.clone();
            let (closes, ends) = (false, false);
            let mut served = Served { connection, client, watch, open, streams, closes, ends };
            poll_fn(|cx| served.poll(sleep.as_mut(), cx)).await;
        }
        Some(Err(error)) => count_error(&error, &client),
        None => client.service.count(Outcome::HeadTimeout),
    }
    if let Ok(io) = Rc::try_unwrap(io) {
        linger(io.into_inner()).await;
    }
}

fn builder(plan: &Plan) -> Builder {
    let http = &plan.settings.http;
    let mut builder = Builder::new();
    builder
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(http.head_bytes + FIELDS_OVERHEAD)
        .max_concurrent_streams(http.max_streams)
        // The watch is stricter, and counts.
        .max_pending_accept_reset_streams(256)
        .max_local_error_reset_streams(Some(256));
    if !plan.settings.upgrades.is_empty() {
        builder.enable_connect_protocol();
    }
    builder
}

fn count_error(error: &h2::Error, client: &Client) {
    if !error.is_io() && error.is_library() {
        client.service.count(match error.reason() {
            Some(Reason::ENHANCE_YOUR_CALM) => Outcome::Http2Excess,
            _ => Outcome::Http2ProtocolError,
        });
    }
}

struct Served<T> {
    connection: Connection<Watched<T>, Bytes>,
    client: Rc<Client>,
    watch: Rc<RefCell<Watch>>,
    open: Rc<Open>,
    /// Streams that are being served.
    streams: Rc<Cell<usize>>,
    /// The client was told that no more streams are taken.
    closes: bool,
    /// The last GOAWAY is on its way.
    ends: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin + 'static> Served<T> {
    fn poll(&mut self, mut sleep: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        let client = self.client.clone();
        if client.closing.take() {
            self.closes = true;
            self.connection.graceful_shutdown();
        }
        let mut expired = client.deadline.poll(sleep.as_mut(), cx);
        loop {
            if expired && self.expire() {
                return Poll::Ready(());
            }
            if self.advance(cx).is_ready() {
                return Poll::Ready(());
            }
            self.wait();
            expired = client.deadline.rearm(sleep.as_mut(), cx);
            if !expired {
                return Poll::Pending;
            }
        }
    }

    /// Takes what has come. Ready at the end of the connection.
    fn advance(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let polled = self.connection.poll_accept(cx);
            let (answered, flood) = {
                let mut watch = self.watch.borrow_mut();
                (watch.take_answered(), watch.flood())
            };
            answered.into_iter().for_each(|outcome| self.answered(outcome));
            match polled {
                Poll::Ready(Some(Ok((request, respond)))) => self.begin(request, respond),
                Poll::Ready(Some(Err(error))) => {
                    count_error(&error, &self.client);
                    return Poll::Ready(());
                }
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => match flood.filter(|_| !self.ends) {
                    Some(flood) => {
                        self.client.service.count(flood.outcome());
                        self.end(Reason::ENHANCE_YOUR_CALM);
                    }
                    None => return Poll::Pending,
                },
            }
        }
    }

    /// The library has answered by itself.
    fn answered(&self, outcome: Outcome) {
        let service = &self.client.service;
        service.count(outcome);
        if let Some((status, _)) = outcome.answer() {
            service.count(Outcome::of_status(status));
        }
    }

    fn begin(
        &mut self,
        request: hyper::Request<h2::RecvStream>,
        respond: h2::server::SendResponse<Bytes>,
    ) {
        self.watch.borrow_mut().served(respond.stream_id().as_u32());
        let stream = Rc::new(self.client.stream());
        let place = Place::new(&self.streams, &self.client, &self.open);
        tokio::task::spawn_local(async move {
            stream::serve(request, respond, stream, place).await;
        });
    }

    /// Says what is waited for: the rest of a head, the next stream, or nothing that has a time.
    fn wait(&self) {
        let client = &self.client;
        let timeouts = client.timeouts();
        let (wait, time) = match self.streams.get() {
            _ if self.ends => return,
            _ if self.watch.borrow().is_in_head() => (Wait::Head, timeouts.head),
            0 if self.closes => (Wait::Idle, LAST_STREAMS),
            0 => (Wait::Idle, timeouts.keep_alive),
            _ => (Wait::Response, LONG),
        };
        if client.deadline.wait() != wait {
            client.deadline.set(wait, time);
        }
    }

    /// Something did not come in time. `true` if nothing more is waited for.
    fn expire(&mut self) -> bool {
        let Some(wait) = self.client.deadline.take_expired() else { return false };
        match wait {
            _ if self.ends => return true,
            Wait::Head => {
                self.client.service.count(Outcome::HeadTimeout);
                self.end(Reason::NO_ERROR);
            }
            Wait::Idle => {
                if !self.closes {
                    self.client.service.count(Outcome::KeepAliveExpired);
                }
                self.end(Reason::NO_ERROR);
            }
            _ => {}
        }
        false
    }

    /// Says goodbye. What is open ends with it.
    fn end(&mut self, reason: Reason) {
        self.ends = true;
        self.connection.abrupt_shutdown(reason);
        self.client.deadline.set(Wait::Write, LAST_WORDS);
    }
}

/// A stream's place among those that are served.
pub struct Place {
    streams: Rc<Cell<usize>>,
    client: Rc<Client>,
    _open: Rc<Open>,
}

impl Place {
    fn new(streams: &Rc<Cell<usize>>, client: &Rc<Client>, open: &Rc<Open>) -> Self {
        streams.set(streams.get() + 1);
        Self { streams: streams.clone(), client: client.clone(), _open: open.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.set(self.streams.get() - 1);
        if self.streams.get() == 0 {
            // Now it is idle.
            self.client.deadline.wake();
        }
    }
}
