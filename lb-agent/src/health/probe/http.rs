//! HTTP/1.1: one request, its status and, if asked for, a part of its body. Knows nothing of TLS or sockets.

use std::{net::SocketAddr, pin::pin};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Body, Incoming},
    client::conn::http1,
    header,
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Deadline;
use crate::health::{
    failure::{Failure, Stage, excerpt},
    spec::{HttpSpec, READ_LIMIT},
};

/// What the probes call themselves.
const USER_AGENT: &str = concat!("sluice-health/", env!("CARGO_PKG_VERSION"));

/// Sends the request of `spec` on `stream` and judges the answer.
pub(super) async fn exchange<S>(
    stream: S,
    spec: &HttpSpec,
    addr: SocketAddr,
    deadline: Deadline,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = get(&spec.path, spec.host.as_deref(), addr)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|e| unusable(&e))?;
    let (mut sender, connection) = handshake(stream).await?;
    let answer = async {
        let response = deadline.wait(Stage::Head, sender.send_request(request)).await?;
        let response = response.map_err(|e| failure(Stage::Head, &e))?;
        let got = response.status().as_u16();
        if !spec.status.contains(got) {
            return Err(Failure::Status { got, expected: spec.status.clone() });
        }
        match &spec.body {
            Some(wanted) => deadline.wait(Stage::Body, find(wanted, response.into_body())).await?,
            None => Ok(()),
        }
    };
    drive(connection, answer).await
}

/// A `GET` with what every probe sends. `Host` is the checked address unless the check names one.
pub(super) fn get(
    path: &str,
    host: Option<&str>,
    addr: SocketAddr,
) -> hyper::http::request::Builder {
    let builder =
        Request::get(path).header(header::USER_AGENT, USER_AGENT).header(header::ACCEPT, "*/*");
    match host {
        Some(host) => builder.header(header::HOST, host),
        None => builder.header(header::HOST, addr.to_string()),
    }
}

/// An HTTP/1.1 client on `stream` which holds at most [`READ_LIMIT`] bytes of what the backend sends.
pub(super) async fn handshake<S, B>(
    stream: S,
) -> Result<(http1::SendRequest<B>, http1::Connection<TokioIo<S>, B>), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    TokioIo<S>: Read + Write,
{
    // No I/O happens here yet.
    let mut builder = http1::Builder::new();
    builder.max_buf_size(READ_LIMIT).title_case_headers(true);
    builder.handshake(TokioIo::new(stream)).await.map_err(|e| failure(Stage::Head, &e))
}

/// Polls the connection for as long as `answer` needs it, in the same task, so that both end together.
pub(super) async fn drive<C: Future, A: Future>(connection: C, answer: A) -> A::Output {
    let (connection, mut answer) = (pin!(connection), pin!(answer));
    tokio::select! {
        biased;
        output = &mut answer => output,
        // What it received last, or its error, is on its way to `answer`.
        _ = connection => answer.await,
    }
}

/// Reads until `wanted` was seen, but no more than [`READ_LIMIT`] bytes.
async fn find(wanted: &str, mut body: Incoming) -> Result<(), Failure> {
    let mut search = Search::new(wanted.as_bytes());
    while search.room() > 0 {
        match body.frame().await {
            None => break,
            Some(Err(e)) => return Err(failure(Stage::Body, &e)),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && search.push(&data)
                {
                    return Ok(());
                }
            }
        }
    }
    Err(Failure::Body {
        wanted: wanted.into(),
        read: search.read.len(),
        begins: excerpt(&search.read),
    })
}

/// Looks for some bytes in others that come piece by piece.
struct Search<'a> {
    wanted: &'a [u8],
    read: Vec<u8>,
}

impl<'a> Search<'a> {
    fn new(wanted: &'a [u8]) -> Self {
        Self { wanted, read: Vec::new() }
    }

    /// How many more bytes are searched.
    fn room(&self) -> usize {
        READ_LIMIT - self.read.len()
    }

    /// Takes the next piece, as far as there is room; true if what is wanted has been seen.
    fn push(&mut self, piece: &[u8]) -> bool {
        // What was searched before can only hold the beginning of a match.
        let from = self.read.len().saturating_sub(self.wanted.len().saturating_sub(1));
        self.read.extend_from_slice(&piece[..piece.len().min(self.room())]);
        self.wanted.is_empty()
            || self.read[from..].windows(self.wanted.len()).any(|w| w == self.wanted)
    }
}

/// What hyper reports, in the terms of a check.
pub(super) fn failure(stage: Stage, error: &hyper::Error) -> Failure {
    use std::error::Error;

    let cause = error.source().and_then(|e| e.downcast_ref::<std::io::Error>());
    if error.is_parse_too_large() {
        Failure::HeadTooLarge { limit: READ_LIMIT }
    } else if error.is_parse() {
        Failure::NotHttp(error.to_string())
    } else if let Some(cause) = cause
        && cause.raw_os_error().is_some()
    {
        Failure::broken(stage, cause)
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        Failure::Closed { stage }
    } else if error.is_user() {
        unusable(error)
    } else {
        match cause {
            Some(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => {
                Failure::Closed { stage }
            }
            Some(cause) => Failure::NotHttp(cause.to_string()),
            None => Failure::NotHttp(error.to_string()),
        }
    }
}

/// A request that cannot be built from the check.
pub(super) fn unusable(error: &dyn std::error::Error) -> Failure {
    Failure::Unusable(format!("the check's path or host makes no valid request: {error}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However the body is cut into pieces, what is in its first 64 KiB is found.
        #[test]
        fn finds_what_is_there(
            body in prop::collection::vec(0u8..3, 0..300), wanted in prop::collection::vec(0u8..3, 1..6),
            pieces in prop::collection::vec(1usize..9, 1..20),
        ) {
            let mut search = Search::new(&wanted);
            let (mut rest, mut found) = (&body[..], false);
            for size in pieces.iter().cycle() {
                if rest.is_empty() || found {
                    break;
                }
                let (piece, tail) = rest.split_at(rest.len().min(*size));
                found = search.push(piece);
                rest = tail;
            }
            prop_assert_eq!(found, body.windows(wanted.len()).any(|w| w == wanted));
        }
    }

    #[test]
    fn never_holds_more_than_the_limit() {
        let mut search = Search::new(b"x");
        assert!(!search.push(&vec![0; READ_LIMIT - 1]));
        assert_eq!(search.room(), 1);
        assert!(!search.push(b"yx"), "beyond the limit");
        assert_eq!((search.room(), search.read.len()), (0, READ_LIMIT));
        assert!(!search.push(b"x"));
    }
}
