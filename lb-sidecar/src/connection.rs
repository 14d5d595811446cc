//! One client connection: its task and its timer.
//!
//! ```text
//! accepted -> who it is, and whether it may stay (TLS that is passed on: see passthrough) -> TLS, if the service has it -> hyper over the framing guard, request after request (an upgrade that is there already: without hyper) -> relay, an answer to what was no request, or the end
//! ```

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    convert::Infallible,
    future::{Future, poll_fn, ready},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::{
    Request, Response,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::Service as HyperService,
};
use tokio::{
    net::TcpStream,
    time::{Instant, sleep_until},
};

use crate::{
    admission::admit,
    body::{RequestBody, ResponseBody},
    client::Client,
    deadline::{Deadline, Wait},
    exchange,
    farewell::{End, finish},
    framing::{Guarded, Limits},
    fresh::Fresh,
    http2,
    life::{Life, Open},
    outcome::Outcome,
    passthrough,
    proxy_protocol::Ends,
    secure,
    service::{Plan, Service},
    shortcut,
    splice::tcp::Peer,
    stream::Stream,
    tls::looks_like_tls,
    upgrade,
};

/// Serves a connection to its end, or to where a relay takes over.
pub async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    service: Rc<Service>,
    life: Rc<Life>,
) {
    let plan = service.plan();
    let since = Instant::now();
    // Before it is known whose it is: whoever is accepted is served.
    let mut open = Open::new(&life);
    let ends = Ends { peer, local };
    let admitted = admit(&stream, ends, since, &service, &plan).await;
    let Some((ends, place, permit)) = admitted else { return };
    let client = Rc::new(Client::new(ends, since, service, life, &plan));
    open.admitted(&client, place, permit);
    if plan.passthrough.is_some() {
        // Boxed: what goes this way goes no other, and would make all connections larger.
        return Box::pin(passthrough::serve(stream, client, open, plan)).await;
    }
    let Some(mut stream) = secure::secured(stream, &client, &plan).await else { return };
    let limits = Limits { head_bytes: plan.settings.http.head_bytes as usize };
    let by_preface = plan.settings.http.h2c && stream.is_plain();
    let first = match first_bytes(&mut stream, &client).await {
        Ok(first) => first,
        Err(end) => {
            finish(end, Guarded::new(stream, limits, Bytes::new()), &client).await;
            return;
        }
    };
    if stream.is_plain() && looks_like_tls(&first) {
        // No answer in plain text would be understood.
        client.service.count(Outcome::TlsOnPlain);
        return;
    }
    let may_splice = plan.settings.splice && plan.settings.limits.bytes_per_second == 0;
    if may_splice && stream.is_plain() {
        client.fitting.set(Peer::of(stream.tcp()));
    }
    let is_http2 = match client.tls.get() {
        Some(tls) => tls.alpn.as_deref() == Some(b"h2"),
        None => by_preface && http2::begins(&first),
    };
    if is_http2 {
        drop(plan);
        // Boxed: whoever speaks HTTP/1.1 needs no room for it.
        Box::pin(http2::serve(http2::Ahead { io: stream, ahead: first }, client, open)).await;
    } else {
        serve_http1(stream, first, limits, client, open, plan).await;
    }
}

/// What the client says first; nothing if it ends without a word, which hyper hears again.
async fn first_bytes(stream: &mut Stream, client: &Client) -> Result<Bytes, End> {
    loop {
        first_word(stream, client).await?;
        match shortcut::first_bytes(stream) {
            // A socket may say that there is something when there is not, and what comes by TLS need not be a request: who
            // has only shaken hands has said nothing yet.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            said => return Ok(said.unwrap_or_default()),
        }
    }
}

async fn serve_http1(
    mut stream: Stream,
    first: Bytes,
    limits: Limits,
    client: Rc<Client>,
    open: Open,
    plan: Rc<Plan>,
) {
    let prepared = match shortcut::upgrade(&first, limits) {
        Some((head, length)) => {
            // Boxed: it is short, and the connection is long.
            let answer = Box::pin(exchange::answer(&client, head, RequestBody::Empty));
            let response = in_time(answer, &client.deadline).await;
            if let Some(handover) = client.handover.borrow_mut().take() {
                shortcut::write_head(&mut stream, &response);
                client.flushed();
                open.relayed();
                upgrade::hand_over(stream, first.slice(length..), handover, &client, open);
                return;
            }
            Some(response)
        }
        None => None,
    };
    let io = Io { guarded: Guarded::new(stream, limits, first), client: client.clone() };
    let handler = Handler { client: client.clone(), prepared: Cell::new(prepared) };
    let mut connection = plan.http.serve_connection(io, handler);
    drop(plan);
    let end = drive(&mut connection, &client).await;
    let parts = connection.into_parts();
    let handover = client.handover.borrow_mut().take();
    match (end, handover) {
        (End::Done(Ok(())), Some(handover)) => {
            let stream = parts.io.guarded.into_inner();
            open.relayed();
            upgrade::hand_over(stream, parts.read_buf, handover, &client, open);
        }
        (end, _) => {
            drop(parts.read_buf);
            finish(end, parts.io.guarded, &client).await;
        }
    }
}

/// Waits until the client has said something, or nothing is to be heard any more.
async fn first_word(stream: &Stream, client: &Client) -> Result<(), End> {
    let deadline = &client.deadline;
    let mut sleep = pin!(sleep_until(deadline.armed()));
    let mut fresh = Fresh::new();
    poll_fn(|cx| {
        if stream.poll_read_ready(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        // Who has taken the pains of a handshake has a request.
        if stream.is_plain() && fresh.poll_close(client, cx).is_ready() {
            return Poll::Ready(Err(End::Done(Ok(()))));
        }
        deadline.poll(sleep.as_mut(), cx);
        match deadline.take_expired() {
            Some(wait) => Poll::Ready(Err(End::Expired(wait))),
            None => Poll::Pending,
        }
    })
    .await
}

/// Waits with the connection's timer, whose news the future takes itself.
pub async fn in_time<T>(future: impl Future<Output = T>, deadline: &Deadline) -> T {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep_until(deadline.armed()));
    poll_fn(|cx| {
        deadline.poll(sleep.as_mut(), cx);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(value);
            }
            if !deadline.rearm(sleep.as_mut(), cx) {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// One that is to end has the answer to a request say so, and waits for a last one no longer than it has to: whoever sent
/// one without knowing of the end would lose it.
async fn drive(connection: &mut http1::Connection<Io, Handler>, client: &Client) -> End {
    let deadline = &client.deadline;
    let mut sleep = pin!(sleep_until(deadline.armed()));
    poll_fn(|cx| {
        // Before the timer, which forgets what has passed when another time is set.
        client.hurry();
        let mut expired = deadline.poll(sleep.as_mut(), cx);
        loop {
            // hyper may be done when it has nothing more to say, and the client has not got all of it.
            if let Poll::Ready(result) = connection.poll_without_shutdown(cx)
                && (result.is_err() || !client.blocked.get())
            {
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

/// hyper's side of the requests.
pub struct Handler {
    client: Rc<Client>,
    /// The answer to the first request, if it was found before hyper came to it.
    prepared: Cell<Option<Response<ResponseBody>>>,
}

impl HyperService<Request<Incoming>> for Handler {
    type Response = Response<ResponseBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        if let Some(response) = self.prepared.take() {
            return Box::pin(ready(Ok(response)));
        }
        let client = self.client.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            // hyper's own way of upgrading is not used.
            head.extensions.clear();
            let body = RequestBody::new(body, &client);
            Ok(exchange::answer(&client, head, body).await)
        })
    }
}

/// What hyper reads and writes. Notices the first byte of a head, which starts its time, and the last one of an answer.
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
                self.client.deadline.set(Wait::Head, self.client.timeouts().head);
            }
        }
        result
    }
}

impl Io {
    /// A client that takes some of its answer after a while has as much time again for the next of it.
    fn wrote<T>(&self, result: Poll<T>) -> Poll<T> {
        let Client { blocked, deadline, .. } = &*self.client;
        if blocked.replace(result.is_pending())
            && result.is_ready()
            && deadline.wait() == Wait::Write
        {
            deadline.set(Wait::Write, self.client.timeouts().body);
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
        let result = Pin::new(&mut self.guarded).poll_write(cx, buf);
        self.wrote(result)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.guarded).poll_flush(cx);
        self.client.blocked.set(result.is_pending());
        if matches!(result, Poll::Ready(Ok(()))) {
            self.client.flushed();
        }
        result
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
        let result = Pin::new(&mut self.guarded).poll_write_vectored(cx, bufs);
        self.wrote(result)
    }
}
