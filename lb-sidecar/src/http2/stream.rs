//! One stream of an HTTP/2 connection: a request and its answer, timed like one of HTTP/1.1 and ended by a reset.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, ext::Protocol, server::SendResponse};
use hyper::{
    Request, Response, StatusCode, Version,
    body::{Body as _, Frame},
    header::EXPECT,
};
use tokio::time::sleep_until;

use super::{body::Received, connection::Place, head, tunnel::Tunnel};
use crate::{
    body::{Cut, RequestBody, ResponseBody},
    client::Client,
    deadline::Wait,
    exchange,
    outcome::Outcome,
    upgrade,
};

/// Where a stream is answered.
pub type Respond = Rc<RefCell<SendResponse<Bytes>>>;

/// How a stream ends before its answer does.
enum Broken {
    /// By the client, which has reset it or is gone.
    Gone,
    /// By this end.
    Cut(Outcome),
}

/// Serves a stream to its end.
pub async fn serve(
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
    client: Rc<Client>,
    place: Place,
) {
    let respond = Rc::new(RefCell::new(respond));
    let (head, received) = request.into_parts();
    let waits = head.headers.contains_key(EXPECT).then(|| respond.clone());
    let (body, carried) = match head.extensions.get::<Protocol>() {
        // What comes on it is of the other protocol.
        Some(_) => (RequestBody::Empty, Some(received)),
        None => (RequestBody::http2(Received::new(received, waits), &client), None),
    };
    // Pinned here, or it would be in this future twice: where it comes from and where it is waited for.
    let answer = pin!(exchange::answer(&client, head, body));
    let answer = unless_reset(answer, &client, |cx| respond.borrow_mut().poll_reset(cx).map(drop));
    let Some(response) = answer.await else {
        over(Broken::Gone, &client);
        return;
    };
    if let (Some(handover), Some(received)) = (client.handover.take(), carried) {
        match begin(response, &respond) {
            Some(sent) => {
                client.flushed();
                let tunnel = Tunnel::new(received, sent);
                upgrade::hand_over(tunnel, Bytes::new(), handover, &client, place);
            }
            None => over(Broken::Gone, &client),
        }
        return;
    }
    match send(response, &respond, &client).await {
        Ok(()) => client.flushed(),
        Err(broken) => over(broken, &client),
    }
}

/// Waits with the stream's timer, whose news the future takes itself, and no longer than the client does.
async fn unless_reset<T>(
    future: impl Future<Output = T>,
    client: &Client,
    mut reset: impl FnMut(&mut Context<'_>) -> Poll<()>,
) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(sleep_until(client.deadline.armed()));
    poll_fn(|cx| {
        if reset(cx).is_ready() {
            return Poll::Ready(None);
        }
        client.deadline.poll(sleep.as_mut(), cx);
        loop {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            if !client.deadline.rearm(sleep.as_mut(), cx) {
                return Poll::Pending;
            }
        }
    })
    .await
}

fn over(broken: Broken, client: &Client) {
    let outcome = match broken {
        Broken::Gone => Outcome::ClientGone,
        Broken::Cut(outcome) => outcome,
    };
    client.service.count(outcome);
    client.note(|entry| entry.refused = Some(outcome.label()));
    client.write_entry();
}

/// Says that the stream goes on in the other protocol: not by a 101, which HTTP/2 does not have.
fn begin(response: Response<ResponseBody>, respond: &Respond) -> Option<SendStream<Bytes>> {
    let (mut head, _) = response.into_parts();
    head::from_http1(&mut head.headers);
    head.version = Version::HTTP_2;
    head.status = StatusCode::OK;
    respond.borrow_mut().send_response(Response::from_parts(head, ()), false).ok()
}

async fn send(
    response: Response<ResponseBody>,
    respond: &Respond,
    client: &Client,
) -> Result<(), Broken> {
    let (mut head, body) = response.into_parts();
    head::from_http1(&mut head.headers);
    head.version = Version::HTTP_2;
    let is_all = body.is_end_stream();
    let sent = respond.borrow_mut().send_response(Response::from_parts(head, ()), is_all);
    let Ok(stream) = sent else { return Err(Broken::Gone) };
    if is_all {
        return Ok(());
    }
    let stream = RefCell::new(stream);
    let mut sender = Sender { stream: &stream, body, next: Bytes::new(), client };
    let sending = poll_fn(|cx| sender.poll(cx));
    let reset = |cx: &mut Context<'_>| stream.borrow_mut().poll_reset(cx).map(drop);
    match unless_reset(sending, client, reset).await {
        Some(Err(Broken::Cut(outcome))) => {
            let reason = match outcome {
                Outcome::WriteTimeout => Reason::CANCEL,
                _ => Reason::INTERNAL_ERROR,
            };
            stream.borrow_mut().send_reset(reason);
            Err(Broken::Cut(outcome))
        }
        Some(sent) => sent,
        None => Err(Broken::Gone),
    }
}

/// An answer's body on its way to the client, no faster than the client's windows allow.
struct Sender<'a> {
    stream: &'a RefCell<SendStream<Bytes>>,
    body: ResponseBody,
    /// Read, and waiting for a window.
    next: Bytes,
    client: &'a Client,
}

impl Sender<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        loop {
            if !self.next.is_empty() {
                ready!(self.poll_write(cx))?;
                if self.next.is_empty() && self.body.is_end_stream() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    if self.take(frame)? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Some(Err(Cut(outcome))) => return Poll::Ready(Err(Broken::Cut(outcome))),
                None => return Poll::Ready(self.data(Bytes::new(), true)),
            }
        }
    }

    /// `true` if it was the last one.
    fn take(&mut self, frame: Frame<Bytes>) -> Result<bool, Broken> {
        match frame.into_data() {
            Ok(data) if data.is_empty() && self.body.is_end_stream() => {
                self.data(data, true).map(|()| true)
            }
            Ok(data) => {
                self.next = data;
                self.client.deadline.set(Wait::Write, self.client.timeouts().body);
                Ok(false)
            }
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    let sent = self.stream.borrow_mut().send_trailers(trailers);
                    sent.map(|()| true).map_err(|_| Broken::Gone)
                }
                Err(_) => Ok(false),
            },
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let mut stream = self.stream.borrow_mut();
        stream.reserve_capacity(self.next.len());
        while stream.capacity() == 0 {
            match stream.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(_) => return Poll::Ready(Err(Broken::Gone)),
                Poll::Pending if self.client.deadline.take_expired().is_some() => {
                    return Poll::Ready(Err(Broken::Cut(Outcome::WriteTimeout)));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        let part = self.next.split_to(stream.capacity().min(self.next.len()));
        drop(stream);
        let is_last = self.next.is_empty() && self.body.is_end_stream();
        self.client.deadline.set(Wait::Write, self.client.timeouts().body);
        Poll::Ready(self.data(part, is_last))
    }

    fn data(&self, data: Bytes, is_last: bool) -> Result<(), Broken> {
        self.stream.borrow_mut().send_data(data, is_last).map_err(|_| Broken::Gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of<A, B, C, D, F>(_: impl Fn(A, B, C, D) -> F) -> usize {
        std::mem::size_of::<F>()
    }

    /// A request's future is moved to where it lives, and that is paid for by the byte.
    #[test]
    fn a_request_is_small() {
        let size = size_of(serve);
        assert!(size <= 8 << 10, "{size} bytes");
    }
}
