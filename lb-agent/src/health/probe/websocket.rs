//! WebSocket readiness (RFC 6455): the backend answers an upgrade as it must, and a ping with its pong. A chat
//! server whose event loop hangs may still accept, and even upgrade; it does not send pongs.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http_body_util::Empty;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderMap, HeaderName},
    upgrade::Upgraded,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        handshake::{client::generate_key, derive_accept_key},
        protocol::{Role, WebSocketConfig},
    },
};

use super::{Deadline, http};
use crate::health::{
    failure::{Failure, Stage, excerpt},
    spec::{READ_LIMIT, WebSocketSpec},
    status_ranges::StatusRanges,
};

/// Messages that may come before the pong: a chat server may greet with its state.
const MESSAGES_BEFORE_PONG: u32 = 256;

/// How long a backend gets to answer our close frame. The verdict does not depend on it.
const CLOSE_GRACE: Duration = Duration::from_millis(100);

type WebSocket = WebSocketStream<TokioIo<Upgraded>>;

/// Upgrades `stream`, waits for a pong and closes.
pub(super) async fn exchange<S>(
    stream: S,
    spec: &WebSocketSpec,
    addr: SocketAddr,
    deadline: Deadline,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let upgraded = deadline.wait(Stage::Head, upgrade(stream, spec, addr)).await??;
    let mut ws = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(limits())).await;
    deadline.wait(Stage::Pong, ping(&mut ws)).await??;
    // By the book, so that a healthy backend has nothing to log.
    let until = deadline.at.min(tokio::time::Instant::now() + CLOSE_GRACE);
    let _ = tokio::time::timeout_at(until, close(&mut ws)).await;
    Ok(())
}

/// The opening handshake, section 4.1.
async fn upgrade<S>(
    stream: S,
    spec: &WebSocketSpec,
    addr: SocketAddr,
) -> Result<TokioIo<Upgraded>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let key = generate_key();
    let request = http::get(&spec.path, spec.host.as_deref(), addr)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .body(Empty::<Bytes>::new())
        .map_err(|e| http::unusable(&e))?;
    let (mut sender, connection) = http::handshake(stream).await?;
    let answer = async {
        let response =
            sender.send_request(request).await.map_err(|e| http::failure(Stage::Head, &e))?;
        accepted(&response, &derive_accept_key(key.as_bytes()))?;
        hyper::upgrade::on(response).await.map_err(|e| http::failure(Stage::Head, &e))
    };
    http::drive(connection.with_upgrades(), answer).await.map(TokioIo::new)
}

/// Whether the backend's answer completes the handshake: points 1 to 6 of section 4.1, page 19.
fn accepted<B>(response: &Response<B>, accept: &str) -> Result<(), Failure> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let expected = StatusRanges::from(StatusCode::SWITCHING_PROTOCOLS.as_u16());
        return Err(Failure::Status { got: response.status().as_u16(), expected });
    }
    let headers = response.headers();
    let fault = |field, name: HeaderName, expected: &str| {
        let got = headers.get(name).map(|value| excerpt(value.as_bytes()));
        Err(Failure::Upgrade { field, got, expected: expected.into() })
    };
    if !has_token(headers, &header::UPGRADE, "websocket") {
        return fault("Upgrade", header::UPGRADE, "websocket");
    }
    if !has_token(headers, &header::CONNECTION, "upgrade") {
        return fault("Connection", header::CONNECTION, "Upgrade");
    }
    if headers
        .get(header::SEC_WEBSOCKET_ACCEPT)
        .is_none_or(|value| value.as_bytes() != accept.as_bytes())
    {
        return fault("Sec-WebSocket-Accept", header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    // We asked for neither, so that the backend may not choose one.
    if headers.contains_key(header::SEC_WEBSOCKET_EXTENSIONS) {
        return fault("Sec-WebSocket-Extensions", header::SEC_WEBSOCKET_EXTENSIONS, "");
    }
    if headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL) {
        return fault("Sec-WebSocket-Protocol", header::SEC_WEBSOCKET_PROTOCOL, "");
    }
    Ok(())
}

/// Whether a comma-separated field, perhaps on several lines, names `token` in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// Sends a ping and reads up to the pong with the same payload (section 5.5.3).
async fn ping(ws: &mut WebSocket) -> Result<(), Failure> {
    let payload = Bytes::copy_from_slice(&rand::random::<[u8; 16]>());
    ws.send(Message::Ping(payload.clone())).await.map_err(|e| failure(&e))?;
    for _ in 0..MESSAGES_BEFORE_PONG {
        match ws.next().await {
            Some(Ok(Message::Pong(answer))) if answer == payload => return Ok(()),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.as_ref().map(|frame| frame.code.into());
                let reason =
                    frame.map(|frame| excerpt(frame.reason.as_bytes())).unwrap_or_default();
                return Err(Failure::CloseFrame { code, reason });
            }
            // A pong that nobody asked for is allowed.
            Some(Ok(_)) => {}
            Some(Err(e)) => return Err(failure(&e)),
            None => return Err(Failure::Closed { stage: Stage::Pong }),
        }
    }
    Err(Failure::NoPongAmong { messages: MESSAGES_BEFORE_PONG })
}

/// The closing handshake, section 7.1.1: our close frame, the backend's, and the end of the connection by the backend.
async fn close(ws: &mut WebSocket) {
    if ws.close(None).await.is_ok() {
        while let Some(Ok(_)) = ws.next().await {}
    }
}

fn limits() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(4096)
        .write_buffer_size(0)
        .max_write_buffer_size(READ_LIMIT)
        .max_message_size(Some(READ_LIMIT))
        .max_frame_size(Some(READ_LIMIT))
}

fn failure(error: &WsError) -> Failure {
    use WsError::{AlreadyClosed, ConnectionClosed, Io, Protocol};
    use tokio_tungstenite::tungstenite::error::ProtocolError;

    match error {
        Io(error) => Failure::broken(Stage::Pong, error),
        ConnectionClosed
        | AlreadyClosed
        | Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
            Failure::Closed { stage: Stage::Pong }
        }
        other => Failure::WebSocket(excerpt(other.to_string().as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn judge(status: u16, fields: &[(&str, &str)]) -> String {
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        match accepted(&response.body(()).unwrap(), ACCEPT) {
            Ok(()) => "accepted".into(),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn the_opening_handshake_is_judged_by_the_rfc() {
        let (upgrade, connection) = (("upgrade", "websocket"), ("connection", "Upgrade"));
        let accept = ("sec-websocket-accept", ACCEPT);
        for (what, status, fields, verdict) in [
            ("as it should be", 101, vec![upgrade, connection, accept], "accepted"),
            (
                "any case, further tokens",
                101,
                vec![("upgrade", "WebSocket"), ("connection", "keep-alive, UPGRADE"), accept],
                "accepted",
            ),
            ("another status", 200, vec![upgrade, connection, accept], "status 200, expected 101"),
            ("no Upgrade", 101, vec![connection, accept], "no Upgrade, expected \"websocket\""),
            (
                "another protocol",
                101,
                vec![("upgrade", "h2c"), connection, accept],
                "Upgrade \"h2c\", expected \"websocket\"",
            ),
            (
                "no such Connection",
                101,
                vec![upgrade, ("connection", "close"), accept],
                "Connection \"close\", expected \"Upgrade\"",
            ),
            (
                "no accept",
                101,
                vec![upgrade, connection],
                "no Sec-WebSocket-Accept, expected \"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\"",
            ),
            (
                "accept in another case",
                101,
                vec![upgrade, connection, ("sec-websocket-accept", "S3pPLMBiTxaQ9kYGzzhZRbK+xOo=")],
                "Sec-WebSocket-Accept \"S3pPLMBiTxaQ9kYGzzhZRbK+xOo=\", expected \"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\"",
            ),
            (
                "an extension that nobody asked for",
                101,
                vec![
                    upgrade,
                    connection,
                    accept,
                    ("sec-websocket-extensions", "permessage-deflate"),
                ],
                "Sec-WebSocket-Extensions \"permessage-deflate\", expected \"\"",
            ),
            (
                "a protocol that nobody asked for",
                101,
                vec![upgrade, connection, accept, ("sec-websocket-protocol", "mqtt")],
                "Sec-WebSocket-Protocol \"mqtt\", expected \"\"",
            ),
        ] {
            assert_eq!(judge(status, &fields), verdict, "{what}");
        }
    }
}
