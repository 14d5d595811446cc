//! One client connection: its task and its timer.
//!
//! ```text
//! accepted -> hyper over the framing guard, request after request -> relay, an answer to what was no request, or the end
//! ```

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll},
};

use hyper::{
    Request, Response,
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::Service as HyperService,
};
use tokio::{net::TcpStream, time::sleep_until};

use crate::{
    body::ResponseBody,
    client::Client,
    deadline::Wait,
    exchange,
    farewell::{End, finish},
    framing::{Guarded, Limits},
    life::{Life, Open},
    service::Service,
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
                self.client.deadline.set(Wait::Head, self.client.timeouts().head);
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
