//! TLS with a client, before anything of HTTP: the handshake, in its time, and what becomes of one that fails.

use std::{future::poll_fn, pin::pin, task::Poll, time::Instant};

use tokio::{net::TcpStream, time::sleep_until};

use crate::{
    client::Client,
    deadline::Wait,
    farewell,
    outcome::Outcome,
    response,
    service::Plan,
    stream::Stream,
    times::Time,
    tls::{self, Failed},
};

/// The client's connection, with TLS on it where the service has it. None: it has ended, and that was counted.
pub async fn secured(socket: TcpStream, client: &Client, plan: &Plan) -> Option<Stream> {
    let (Some(tls), Some(told)) = (&plan.tls, &plan.settings.tls) else {
        return Some(socket.into());
    };
    let service = &client.service;
    let Some(config) = tls.config.clone() else {
        service.count(Outcome::TlsFailed);
        return None;
    };
    let left = told.handshake_timeout.saturating_sub(client.since.elapsed());
    client.deadline.set(Wait::Tls, left);
    let begun = Instant::now();
    // Boxed: it is short, and the connection is long.
    let count = |outcome| service.count(outcome);
    match in_time(Box::pin(tls::accept(socket, config, Vec::new(), count)), client).await {
        None => {
            service.count(Outcome::TlsTimeout);
            None
        }
        Some(Ok((stream, name))) => {
            let info = tls::info(stream.session(), name);
            service.count(Outcome::TlsHandshake);
            service.times.took(Time::TlsHandshake, begun.elapsed());
            if info.resumed {
                service.count(Outcome::TlsResumed);
            }
            if info.client.as_ref().is_some_and(|it| it.subject.is_none()) {
                service.count(Outcome::TlsSubjectLeftOut);
            }
            _ = client.tls.set(info);
            client.deadline.set(Wait::Head, client.timeouts().head);
            Some(Stream::Served(Box::new(stream)))
        }
        Some(Err((failed, socket))) => {
            fail(failed, socket, client).await;
            None
        }
    }
}

/// None: it took too long.
async fn in_time<T>(handshake: impl Future<Output = T>, client: &Client) -> Option<T> {
    let deadline = &client.deadline;
    let mut handshake = pin!(handshake);
    let mut sleep = pin!(sleep_until(deadline.armed()));
    poll_fn(|cx| {
        if let Poll::Ready(done) = handshake.as_mut().poll(cx) {
            return Poll::Ready(Some(done));
        }
        deadline.poll(sleep.as_mut(), cx);
        match deadline.take_expired() {
            Some(_) => Poll::Ready(None),
            None => Poll::Pending,
        }
    })
    .await
}

/// The client has been told why, as far as there is anything to say to it.
pub async fn fail(failed: Failed, socket: TcpStream, client: &Client) {
    let outcome = match failed {
        Failed::Plain => Outcome::PlainOnTls,
        Failed::Why(outcome) => outcome,
    };
    client.service.count(outcome);
    if let Some(answer) = response::refusal_bytes(outcome) {
        _ = socket.try_write(&answer);
    }
    if outcome != Outcome::TlsCut {
        farewell::linger(socket).await;
    }
}
