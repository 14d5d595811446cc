//! Bodies on their way: streamed, timed, counted, and never ended cleanly when they were cut off.

use std::{
    error::Error,
    fmt, io,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::{
    client::Client,
    deadline::Wait,
    framing::Violation,
    http2::Received,
    limits::pace::Pause,
    outcome::{Outcome, Reason},
    pool::{Backend, Lease},
    upstream::{Kept, Sender},
};

/// Why a body ends before its end.
#[derive(Debug)]
pub struct Cut(pub Outcome);

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "body cut off: {}", self.0.label())
    }
}

impl Error for Cut {}

/// How long a pace may hold a body up, at most: what hyper gives in one piece, at the lowest rate.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a backend gets.
pub enum RequestBody {
    Empty,
    Client(ClientBody),
}

/// A client's body. Whoever waits for the response watches the time.
pub struct ClientBody {
    incoming: Source,
    client: Rc<Client>,
    gate: Option<Arc<Gate>>,
    /// Who gets it.
    backend: Option<Rc<Backend>>,
    /// All of it was read.
    ended: bool,
    /// How many bytes may still come.
    left: u64,
    pause: Pause,
}

/// Where a client's body comes from.
enum Source {
    Http1(Incoming),
    Http2(Received),
}

impl RequestBody {
    pub fn new(incoming: Incoming, client: &Rc<Client>) -> Self {
        match incoming.is_end_stream() {
            true => RequestBody::Empty,
            false => Self::of(Source::Http1(incoming), client),
        }
    }

    /// Of a stream of HTTP/2.
    pub fn http2(received: Received, client: &Rc<Client>) -> Self {
        match received.is_end_stream() {
            true => RequestBody::Empty,
            false => Self::of(Source::Http2(received), client),
        }
    }

    fn of(incoming: Source, client: &Rc<Client>) -> Self {
        RequestBody::Client(ClientBody {
            incoming,
            client: client.clone(),
            gate: None,
            backend: None,
            ended: false,
            left: most_bytes(client),
            pause: Pause::default(),
        })
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, RequestBody::Empty)
    }

    /// It goes nowhere before the gate opens.
    pub fn hold_behind(&mut self, gate: &Arc<Gate>) {
        if let RequestBody::Client(body) = self {
            body.gate = Some(gate.clone());
        }
    }

    /// This one gets it.
    pub fn goes_to(&mut self, backend: &Rc<Backend>) {
        if let RequestBody::Client(body) = self {
            body.backend = Some(backend.clone());
        }
    }
}

impl Drop for ClientBody {
    fn drop(&mut self) {
        if !self.ended && !self.incoming.is_end_stream() {
            self.client.leave_unread();
        }
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Reason>>> {
        match self {
            Source::Http1(incoming) => {
                let frame = ready!(Pin::new(incoming).poll_frame(cx));
                Poll::Ready(frame.map(|it| it.map_err(|error| why_broken(&error))))
            }
            Source::Http2(received) => Pin::new(received).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Source::Http1(incoming) => incoming.is_end_stream(),
            Source::Http2(received) => received.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Source::Http1(incoming) => incoming.size_hint(),
            Source::Http2(received) => received.size_hint(),
        }
    }
}

/// Why the body of an HTTP/1.1 request could not be read.
fn why_broken(error: &hyper::Error) -> Reason {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    match cause.and_then(|cause| cause.get_ref()?.downcast_ref::<Violation>()) {
        Some(violation) => Reason::Violation(*violation),
        None if cause.is_some_and(|it| it.kind() == io::ErrorKind::InvalidInput) => {
            Outcome::BadBody.into()
        }
        None => Outcome::BodyCut.into(),
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let RequestBody::Client(body) = self.get_mut() else { return Poll::Ready(None) };
        if let Some(gate) = &body.gate {
            match ready!(gate.poll(cx)) {
                true => body.gate = None,
                false => return Poll::Ready(Some(Err(Cut(Outcome::ClientGone)))),
            }
        }
        let timeouts = body.client.timeouts();
        if let Some(pace) = &body.client.pace[0]
            && body.pause.poll(pace, cx).is_pending()
        {
            body.client.deadline.set(Wait::Body, LONGEST_PAUSE + timeouts.body);
            return Poll::Pending;
        }
        match body.incoming.poll_frame(cx) {
            Poll::Pending => {
                if body.client.deadline.wait() != Wait::Body {
                    body.client.deadline.set(Wait::Body, timeouts.body);
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                let length = frame.data_ref().map_or(0, Bytes::len);
                if length as u64 > body.left {
                    body.client.body_grew();
                    return Poll::Ready(Some(Err(Cut(Outcome::BodyTooLarge))));
                }
                body.left -= length as u64;
                body.client.pace[0].iter().for_each(|pace| pace.spend(length));
                if let (Some(data), Some(backend)) = (frame.data_ref(), &body.backend) {
                    backend.bytes_in.set(backend.bytes_in.get() + data.len() as u64);
                    body.client.note(|entry| entry.bytes_in += data.len() as u64);
                }
                body.client.deadline.set(Wait::Response, timeouts.response);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(reason))) => {
                body.client.body_broke(reason);
                Poll::Ready(Some(Err(Cut(Outcome::BodyCut))))
            }
            Poll::Ready(None) => {
                body.ended = true;
                body.client.deadline.set(Wait::Response, timeouts.response);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            RequestBody::Empty => true,
            RequestBody::Client(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            RequestBody::Empty => SizeHint::with_exact(0),
            RequestBody::Client(body) => body.incoming.size_hint(),
        }
    }
}

/// What a request's body may have; 0 is no limit.
fn most_bytes(client: &Client) -> u64 {
    match client.service.plan().settings.limits.body_bytes {
        0 => u64::MAX,
        most => most.into(),
    }
}

/// Holds a body back until the backend wants it: with `Expect: 100-continue` (RFC 9110, section 10.1.1).
#[derive(Default)]
pub struct Gate {
    state: AtomicU8,
    waiting: AtomicWaker,
}

const WAITING: u8 = 0;
const OPEN: u8 = 1;
const SHUT: u8 = 2;

impl Gate {
    /// The body may go.
    pub fn open(&self) {
        self.leave(OPEN);
    }

    /// Nobody wants the body any more, unless it was let through.
    pub fn shut(&self) {
        self.leave(SHUT);
    }

    fn leave(&self, to: u8) {
        if self.state.compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.waiting.wake();
        }
    }

    fn poll(&self, cx: &mut Context<'_>) -> Poll<bool> {
        self.waiting.register(cx.waker());
        match self.state.load(Ordering::Acquire) {
            WAITING => Poll::Pending,
            state => Poll::Ready(state == OPEN),
        }
    }
}

/// What a client gets.
pub enum ResponseBody {
    Empty,
    /// The sidecar's own words.
    Text(Option<Bytes>),
    Backend(BackendBody),
}

/// A backend's body. Counts as load of the backend while it lasts; then the connection is kept for another request.
pub struct BackendBody {
    pub incoming: Incoming,
    pub client: Rc<Client>,
    pub backend: Rc<Backend>,
    pub lease: Option<Lease>,
    pub sender: Option<(Sender, Rc<Kept>)>,
    /// The client can tell the end of the body only by the end of the connection.
    pub until_close: bool,
    pub pause: Pause,
}

impl BackendBody {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        let timeouts = self.client.timeouts();
        let deadline = &self.client.deadline;
        if let Some(wait) = deadline.take_expired() {
            return Poll::Ready(Some(Err(Cut(match wait {
                Wait::Body => Outcome::BodyTimeout,
                // It begins to take its answer again, and the time is over.
                Wait::Write => Outcome::WriteTimeout,
                _ => Outcome::ResponseTimeout,
            }))));
        }
        if let Some(pace) = &self.client.pace[1]
            && self.pause.poll(pace, cx).is_pending()
        {
            deadline.set(Wait::Response, LONGEST_PAUSE + timeouts.response);
            return Poll::Pending;
        }
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Pending => {
                if !matches!(deadline.wait(), Wait::Response | Wait::Body) {
                    deadline.set(Wait::Response, timeouts.response);
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    self.client.pace[1].iter().for_each(|pace| pace.spend(data.len()));
                    self.backend.bytes_out.set(self.backend.bytes_out.get() + data.len() as u64);
                    self.client.note(|entry| entry.bytes_out += data.len() as u64);
                }
                deadline.set(Wait::Write, timeouts.body);
                if self.incoming.is_end_stream() || frame.is_trailers() {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(_))) => Poll::Ready(Some(Err(Cut(Outcome::BackendCut)))),
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    fn end(&mut self) {
        self.lease = None;
        if let Some((sender, kept)) = self.sender.take() {
            kept.put(self.backend.address(), sender);
        }
        self.client.answered();
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Cut;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Cut>>> {
        match self.get_mut() {
            ResponseBody::Empty => Poll::Ready(None),
            ResponseBody::Text(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            ResponseBody::Backend(body) => {
                let result = ready!(body.poll_data(cx));
                if let Some(Err(Cut(outcome))) = &result {
                    body.client.cut(*outcome, body.until_close);
                }
                Poll::Ready(result)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            ResponseBody::Empty => true,
            ResponseBody::Text(text) => text.is_none(),
            ResponseBody::Backend(body) => body.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            ResponseBody::Empty => SizeHint::with_exact(0),
            ResponseBody::Text(text) => {
                SizeHint::with_exact(text.as_ref().map_or(0, |t| t.len() as u64))
            }
            ResponseBody::Backend(body) => body.incoming.size_hint(),
        }
    }
}
