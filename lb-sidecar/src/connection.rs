//! One client connection: its task, its timer and its end.
//!
//! ```text
//! accepted -> hyper over the framing guard, request after request -> relay, an answer to what was no request, or the end
//! ```

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    error::Error as _,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{
    Request, Response,
    body::Incoming,
    http::request::Parts,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::Service as HyperService,
};
use tokio::{
    io::AsyncWriteExt,
    net::TcpStream,
    time::{sleep_until, timeout},
};

use crate::{
    body::ResponseBody,
    deadline::{Deadline, Wait},
    entry::{Entry, Lines},
    exchange,
    framing::{Guarded, Limits, Violation},
    life::{Life, Open},
    outcome::{Outcome, Reason},
    response,
    service::{Plan, Service},
    upgrade::{self, Handover},
};

/// How long and how much is read from a client that was told to stop, so that it can read what it was told: to close a
/// socket with unread bytes would reset the connection (RFC 9112, section 9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(2), 256 << 10);

/// Timeouts of the request at hand.
#[derive(Clone, Copy)]
pub struct Timeouts {
    pub body: Duration,
    pub response: Duration,
    pub connect: Duration,
    pub keep_alive: Duration,
    pub head: Duration,
}

/// What the parts of a connection know of each other.
pub struct Client {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    pub service: Rc<Service>,
    pub life: Rc<Life>,
    pub deadline: Deadline,
    timeouts: Cell<Timeouts>,
    /// A request is being answered.
    busy: Cell<bool>,
    /// Something has been read.
    heard: Cell<bool>,
    /// Something the client sends is left unread.
    unread: Cell<bool>,
    /// What became of the request's body, if it went wrong.
    body_failed: Cell<Option<Reason>>,
    /// Why the answer was cut off, and whether the client could take that for its end.
    cut: Cell<Option<(Outcome, bool)>>,
    /// No more requests after this one.
    closing: Cell<bool>,
    pub handover: RefCell<Option<Handover>>,
    /// Where its log lines go, if it is in the sample.
    pub lines: Option<Lines>,
    entry: RefCell<Option<Box<Entry>>>,
}

impl Client {
    fn new(
        peer: SocketAddr,
        local: SocketAddr,
        service: Rc<Service>,
        life: Rc<Life>,
        plan: &Plan,
    ) -> Self {
        let timeouts = Timeouts::of(plan);
        let sample = plan.settings.log_sample;
        let lines = Lines::of(life.log().as_ref(), sample, &plan.edge, &service.name);
        Self {
            peer,
            local,
            service,
            life,
            deadline: Deadline::new(Wait::Head, timeouts.head),
            timeouts: Cell::new(timeouts),
            busy: Cell::new(false),
            heard: Cell::new(false),
            unread: Cell::new(false),
            body_failed: Cell::new(None),
            cut: Cell::new(None),
            closing: Cell::new(false),
            handover: RefCell::new(None),
            lines,
            entry: RefCell::new(None),
        }
    }

    pub fn timeouts(&self) -> Timeouts {
        self.timeouts.get()
    }

    /// A request has come in.
    pub fn begin(&self, plan: &Plan, head: &Parts) {
        self.timeouts.set(Timeouts::of(plan));
        self.busy.set(true);
        self.body_failed.set(None);
        if self.lines.is_some() {
            *self.entry.borrow_mut() = Some(Box::new(Entry::new(head, self.peer)));
        }
    }

    /// Says something about the request to the log.
    pub fn note(&self, say: impl FnOnce(&mut Entry)) {
        if let Some(entry) = &mut *self.entry.borrow_mut() {
            say(entry);
        }
    }

    /// Nothing more can be said.
    fn write_entry(&self) {
        if let (Some(lines), Some(entry)) = (&self.lines, self.entry.borrow_mut().take()) {
            lines.request(&entry);
        }
    }

    /// All of the answer is on its way.
    pub fn answered(&self) {
        self.busy.set(false);
        self.write_entry();
        self.deadline.set(Wait::Idle, self.timeouts.get().keep_alive);
    }

    /// The request's body could not be read.
    pub fn body_broke(&self, error: &hyper::Error) {
        let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
        let violation = cause.and_then(|e| e.get_ref()?.downcast_ref::<Violation>());
        let reason = match violation {
            Some(violation) => Reason::Violation(*violation),
            None if cause.is_some_and(|e| e.kind() == io::ErrorKind::InvalidInput) => {
                Reason::Outcome(Outcome::BadBody)
            }
            None => Reason::Outcome(Outcome::BodyCut),
        };
        self.body_failed.set(Some(reason));
    }

    pub fn body_failed(&self) -> Option<Reason> {
        self.body_failed.get()
    }

    /// The rest of the request will not be read.
    pub fn leave_unread(&self) {
        self.unread.set(true);
    }

    /// The answer cannot be completed.
    pub fn cut(&self, outcome: Outcome, looks_complete: bool) {
        self.cut.set(Some((outcome, looks_complete)));
        self.note(|entry| entry.refused = Some(outcome.label()));
        self.write_entry();
    }

    /// Ends the connection after the answer at hand, or now if there is none.
    pub fn close_soon(&self) {
        self.closing.set(true);
        self.deadline.wake();
    }
}

impl Timeouts {
    fn of(plan: &Plan) -> Self {
        let http = &plan.settings.http;
        Self {
            body: http.body_timeout,
            response: http.response_timeout,
            connect: http.connect_timeout,
            keep_alive: http.keep_alive,
            head: http.head_timeout,
        }
    }
}

/// Serves a connection to its end, or to where a relay takes over.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    service: Rc<Service>,
    life: Rc<Life>,
) {
    let plan = service.plan();
    let client = Rc::new(Client::new(peer, local, service, life, &plan));
    let open = Open::new(&client);
    let limits = Limits { head_bytes: plan.settings.http.head_bytes as usize };
    let io = Io { guarded: Guarded::new(stream, limits), client: client.clone() };
    let mut connection = plan.http.serve_connection(io, Handler(client.clone()));
    drop(plan);
    let end = drive(&mut connection, &client).await;
    let parts = connection.into_parts();
    let handover = client.handover.borrow_mut().take();
    match (end, handover) {
        (End::Done(Ok(())), Some(handover)) => {
            let stream = parts.io.guarded.into_inner();
            upgrade::hand_over(stream, parts.read_buf, handover, &client, open);
        }
        (end, _) => {
            drop(parts.read_buf);
            finish(end, parts.io.guarded, &client).await;
        }
    }
}

enum End {
    Done(hyper::Result<()>),
    Expired(Wait),
}

async fn drive(connection: &mut http1::Connection<Io, Handler>, client: &Client) -> End {
    let deadline = &client.deadline;
    let mut sleep = pin!(sleep_until(deadline.armed()));
    poll_fn(|cx| {
        if client.closing.take() {
            Pin::new(&mut *connection).graceful_shutdown();
        }
        let mut expired = deadline.poll(sleep.as_mut(), cx);
        loop {
            if let Poll::Ready(result) = connection.poll_without_shutdown(cx) {
                return Poll::Ready(End::Done(result));
            }
            // Who waits for a backend takes the news itself; all else is the connection's own.
            if expired && let Some(wait) = deadline.take_expired() {
                return Poll::Ready(End::Expired(wait));
            }
            expired = deadline.rearm(sleep.as_mut(), cx);
            if !expired {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Counts how it ended, says what there is to say, and closes.
async fn finish(end: End, guarded: Guarded, client: &Client) {
    let service = &client.service;
    let busy = client.busy.get();
    client.note(|entry| entry.refused = Some(Outcome::ClientGone.label()));
    client.write_entry();
    let violation = guarded.violation().map(Reason::from);
    let stream = guarded.into_inner();
    let refused = match end {
        End::Expired(Wait::Head) => Some(Outcome::HeadTimeout.into()),
        End::Expired(Wait::Idle) => {
            service.count(Outcome::KeepAliveExpired);
            None
        }
        End::Expired(_) => {
            service.count(Outcome::WriteTimeout);
            reset(&stream);
            return;
        }
        End::Done(_) if client.cut.get().is_some() => {
            let (outcome, looks_complete) = client.cut.get().expect("just seen");
            service.count(outcome);
            if looks_complete {
                reset(&stream);
            }
            return;
        }
        // Unless the request of which it was the body had that for its answer.
        End::Done(_) if violation.is_some() && client.body_failed().is_none() => violation,
        End::Done(Err(error)) if error.is_parse() => {
            // Answered by hyper.
            service.count(if error.is_parse_too_large() {
                Outcome::HeadTooLarge
            } else {
                Outcome::BadHead
            });
            linger(stream).await;
            return;
        }
        End::Done(Err(_)) => {
            service.count(Outcome::ClientGone);
            return;
        }
        End::Done(Ok(())) => None,
    };
    if let Some(reason) = refused {
        service.count(reason);
        if !busy
            && client.heard.get()
            && let Some(answer) = response::refusal_bytes(reason)
        {
            // All that was sent before is a few answers at most: there is room in the socket.
            let _ = stream.try_write(&answer);
            linger(stream).await;
        }
    } else if client.unread.get() {
        linger(stream).await;
    }
}

async fn linger(mut stream: TcpStream) {
    let (time, bytes) = LINGER;
    if stream.shutdown().await.is_err() {
        return;
    }
    let _ = timeout(time, async {
        let mut scratch = [0; 4096];
        let mut left = bytes;
        while left > 0 && stream.readable().await.is_ok() {
            match stream.try_read(&mut scratch) {
                Ok(0) => break,
                Ok(n) => left = left.saturating_sub(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    })
    .await;
}

/// Whoever reads until the end must not take this for it.
fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// hyper's side of the requests.
pub struct Handler(Rc<Client>);

impl HyperService<Request<Incoming>> for Handler {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let client = self.0.clone();
        Box::pin(async move { Ok(exchange::answer(client, request).await) })
    }
}

/// What hyper reads and writes. Notices the first byte of a head, which starts its time.
pub struct Io {
    guarded: Guarded,
    client: Rc<Client>,
}

impl Read for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.guarded).poll_read(cx, buf);
        if result.is_ready() {
            self.client.heard.set(true);
            if self.client.deadline.wait() == Wait::Idle {
                self.client.deadline.set(Wait::Head, self.client.timeouts.get().head);
            }
        }
        result
    }
}

impl Write for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.guarded).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.guarded).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.guarded).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.guarded.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.guarded).poll_write_vectored(cx, bufs)
    }
}
