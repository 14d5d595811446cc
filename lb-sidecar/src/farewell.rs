//! How a connection that was not upgraded ends: counted, answered where that is due, and closed so that the client can
//! read the answer.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    client::Client,
    deadline::Wait,
    framing::Guarded,
    outcome::{Outcome, Reason},
    response,
};

/// How long and how much is read from a client that was told to stop, so that it can read what it was told: to close a
/// socket with unread bytes would reset the connection (RFC 9112, section 9.6). Of an upload so much may be in both ends'
/// sockets.
const LINGER: (Duration, usize) = (Duration::from_secs(2), 16 << 20);

/// How hyper's part has ended.
pub enum End {
    Done(hyper::Result<()>),
    Expired(Wait),
}

/// Counts how it ended, says what there is to say, and closes.
pub async fn finish(end: End, guarded: Guarded, client: &Client) {
    let service = &client.service;
    let busy = client.busy.get();
    let lost = match end {
        End::Expired(Wait::Write) => Outcome::WriteTimeout,
        _ => Outcome::ClientGone,
    };
    client.note(|entry| entry.refused = Some(lost.label()));
    client.write_entry();
    let violation = guarded.violation().map(Reason::from);
    let mut stream = guarded.into_inner();
    let refused = match end {
        End::Expired(Wait::Head) => Some(Outcome::HeadTimeout.into()),
        End::Expired(Wait::Tls) => Some(Outcome::TlsTimeout.into()),
        End::Expired(Wait::Idle) => {
            if !client.closing.get() {
                service.count(Outcome::KeepAliveExpired);
            }
            None
        }
        End::Expired(_) => {
            service.count(Outcome::WriteTimeout);
            reset(stream.tcp());
            return;
        }
        End::Done(_) if client.cut.get().is_some() => {
            let (outcome, looks_complete) = client.cut.get().expect("just seen");
            service.count(outcome);
            if looks_complete {
                reset(stream.tcp());
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
        if client.blocked.get() {
            // In the middle of an answer nothing else can be said.
            reset(stream.tcp());
        } else if !busy
            && client.heard.get()
            && let Some(answer) = response::refusal_bytes(reason)
        {
            // All that was sent before is a few answers at most: there is room in the socket.
            let _ = stream.try_write(&answer);
            linger(stream).await;
        }
    } else if client.unread.get() {
        linger(stream).await;
    } else {
        stream.say_end();
    }
}

/// Closes a connection whose client may still have to read what it was told.
pub async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let (time, bytes) = LINGER;
    let _ = timeout(time, async {
        // With TLS it waits until the client has taken what was said before.
        if stream.shutdown().await.is_err() {
            return;
        }
        // Not an array: every connection would have room for it, from its beginning.
        let mut scratch = vec![0; 4096];
        let mut left = bytes;
        while left > 0 {
            match stream.read(&mut scratch).await {
                Ok(0) | Err(_) => break,
                Ok(n) => left = left.saturating_sub(n),
            }
        }
    })
    .await;
}

/// Whoever reads until the end must not take this for it.
pub fn reset(stream: &TcpStream) {
    let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
