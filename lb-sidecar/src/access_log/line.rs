//! One line, and what may stand in it. Bytes of clients are escaped by JSON, and cut to a bounded length.

use std::{
    borrow::Cow,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::Serialize;
use time::{OffsetDateTime, macros::format_description};

use crate::pool::Sticky;

/// Longest path that is written, in bytes; other words of clients are cut to a quarter of it.
const MOST_PATH: usize = 1_024;
const MOST_WORD: usize = MOST_PATH / 4;

/// A request and its answer.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub edge: &'a str,
    pub service: &'a str,
    /// See [`AccessLog::connection_id`](super::AccessLog::connection_id).
    pub connection: u64,
    /// The client, as far as proxies in front are believed.
    pub client: SocketAddr,
    pub method: &'a str,
    pub path: &'a str,
    pub host: &'a [u8],
    pub request_id: &'a [u8],
    pub status: u16,
    /// Why the sidecar answered itself: the label of an outcome.
    pub refused: Option<&'static str>,
    pub backend: Option<&'a str>,
    pub sticky: Option<Sticky>,
    /// Backends that were tried in vain.
    pub retries: usize,
    /// The connection goes on in another protocol, and another line follows at its end.
    pub upgraded: bool,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// From the request's head to the end of the answer, or to the 101.
    pub duration: Duration,
    /// The route that it took, in a service with routes.
    pub route: Option<&'a str>,
    /// Of its backend, in a service with several pools.
    pub pool: Option<&'a str>,
    /// `HTTP/1.1`.
    pub protocol: &'a str,
}

/// A TLS connection that was passed on, or refused.
#[derive(Clone, Copy, Debug)]
pub struct Passthrough<'a> {
    pub edge: &'a str,
    pub service: &'a str,
    pub connection: u64,
    pub client: SocketAddr,
    /// The name that the client asks for; empty if it asks for none.
    pub sni: &'a str,
    pub refused: Option<&'static str>,
    pub backend: Option<&'a str>,
    pub sticky: Option<Sticky>,
    pub retries: usize,
    /// From the ClientHello to the backend's accept.
    pub duration: Duration,
    pub route: Option<&'a str>,
    pub pool: Option<&'a str>,
}

/// The end of a relayed connection.
#[derive(Clone, Copy, Debug)]
pub struct Close<'a> {
    pub edge: &'a str,
    pub service: &'a str,
    /// None of one that was spliced, of whose end the agent tells: the flow table knows packets and no more. So the
    /// client is as it stands in them, bytes are those of IP packets, and they and the time count from the splice.
    pub connection: Option<u64>,
    pub client: SocketAddr,
    pub backend: &'a str,
    pub bytes_in: u64,
    pub bytes_out: u64,
    /// Since the 101.
    pub duration: Duration,
    pub ended_by: &'static str,
}

#[derive(Serialize)]
pub struct Line<'a> {
    time: Cow<'a, str>,
    event: &'static str,
    edge: &'a str,
    service: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    connection: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spliced: Option<bool>,
    client: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refused: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    backend: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sticky: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retries: Option<usize>,
    bytes_in: u64,
    bytes_out: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    ended_by: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sni: Option<&'a str>,
}

impl Close<'_> {
    /// Appends the line, with the time.
    pub fn write(&self, now: SystemTime, to: &mut Vec<u8>) {
        Line::of_close(self).write(now, to);
    }
}

impl<'a> Line<'a> {
    pub fn of_request(request: &Request<'a>) -> Self {
        let word = |bytes: &'a [u8]| (!bytes.is_empty()).then(|| cut(bytes, MOST_WORD));
        Self {
            time: "".into(),
            event: if request.upgraded { "upgrade" } else { "request" },
            edge: request.edge,
            service: request.service,
            connection: Some(format!("{:016x}", request.connection)),
            spliced: None,
            client: request.client,
            method: Some(cut(request.method.as_bytes(), MOST_WORD)),
            path: Some(cut(request.path.as_bytes(), MOST_PATH)),
            host: word(request.host),
            request_id: word(request.request_id),
            status: Some(request.status),
            refused: request.refused,
            backend: request.backend,
            sticky: request.sticky.map(Sticky::label),
            retries: (request.retries > 0).then_some(request.retries),
            bytes_in: request.bytes_in,
            bytes_out: request.bytes_out,
            duration_ms: millis(request.duration),
            ended_by: None,
            route: request.route,
            pool: request.pool,
            protocol: Some(request.protocol),
            sni: None,
        }
    }

    pub fn of_close(close: &Close<'a>) -> Self {
        Self {
            time: "".into(),
            event: "close",
            edge: close.edge,
            service: close.service,
            connection: close.connection.map(|id| format!("{id:016x}")),
            spliced: close.connection.is_none().then_some(true),
            client: close.client,
            method: None,
            path: None,
            host: None,
            request_id: None,
            status: None,
            refused: None,
            backend: Some(close.backend),
            sticky: None,
            retries: None,
            bytes_in: close.bytes_in,
            bytes_out: close.bytes_out,
            duration_ms: millis(close.duration),
            ended_by: Some(close.ended_by),
            route: None,
            pool: None,
            protocol: None,
            sni: None,
        }
    }

    pub fn of_passthrough(passed: &Passthrough<'a>) -> Self {
        Self {
            time: "".into(),
            event: "passthrough",
            edge: passed.edge,
            service: passed.service,
            connection: Some(format!("{:016x}", passed.connection)),
            spliced: None,
            client: passed.client,
            method: None,
            path: None,
            host: None,
            request_id: None,
            status: None,
            refused: passed.refused,
            backend: passed.backend,
            sticky: passed.sticky.map(Sticky::label),
            retries: (passed.retries > 0).then_some(passed.retries),
            bytes_in: 0,
            bytes_out: 0,
            duration_ms: millis(passed.duration),
            ended_by: None,
            route: passed.route,
            pool: passed.pool,
            protocol: None,
            sni: (!passed.sni.is_empty()).then_some(passed.sni),
        }
    }

    pub fn of_splice(so_far: &Close<'a>) -> Self {
        Self { event: "splice", ended_by: None, ..Self::of_close(so_far) }
    }

    /// Appends the line, with the time.
    pub fn write(mut self, now: SystemTime, to: &mut Vec<u8>) {
        self.time = rfc3339(now).into();
        let before = to.len();
        match serde_json::to_writer(&mut *to, &self) {
            Ok(()) => to.push(b'\n'),
            // Cannot be: nothing here fails to be written to memory. Half a line would spoil the next.
            Err(_) => to.truncate(before),
        }
    }
}

/// RFC 3339, in UTC and milliseconds.
fn rfc3339(time: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    OffsetDateTime::from(time).format(format).unwrap_or_default()
}

/// Milliseconds, to the microsecond.
fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e3
}

/// At most so many bytes, as text.
fn cut(bytes: &[u8], most: usize) -> Cow<'_, str> {
    String::from_utf8_lossy(&bytes[..bytes.len().min(most)])
}

#[cfg(test)]
pub mod tests {
    use std::time::UNIX_EPOCH;

    use serde_json::{Value, json};

    use super::*;

    pub fn request() -> Request<'static> {
        Request {
            edge: "edge-1",
            service: "chat",
            connection: 0xab,
            client: "198.51.100.7:40000".parse().unwrap(),
            method: "GET",
            path: "/chat?room=1",
            host: b"chat.example",
            request_id: b"r-1",
            status: 101,
            refused: None,
            backend: Some("chat-1"),
            sticky: Some(Sticky::Hit),
            retries: 0,
            upgraded: true,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::from_micros(1_500),
            route: Some("rooms"),
            pool: Some("canary"),
            protocol: "HTTP/1.1",
        }
    }

    fn close() -> Close<'static> {
        let Request { edge, service, connection, client, .. } = request();
        Close {
            edge,
            service,
            connection: Some(connection),
            client,
            backend: "chat-1",
            bytes_in: 7,
            bytes_out: 8,
            duration: Duration::from_secs(2),
            ended_by: "client",
        }
    }

    fn written(line: Line<'_>) -> Value {
        let mut bytes = Vec::new();
        line.write(UNIX_EPOCH + Duration::from_millis(1_800_000_000_123), &mut bytes);
        assert_eq!(bytes.pop(), Some(b'\n'));
        assert!(!bytes.contains(&b'\n'));
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn an_upgrade_has_all_that_is_known_of_it() {
        assert_eq!(
            written(Line::of_request(&request())),
            json!({
                "time": "2027-01-15T08:00:00.123Z", "event": "upgrade", "edge": "edge-1",
                "service": "chat", "connection": "00000000000000ab", "client": "198.51.100.7:40000",
                "method": "GET", "path": "/chat?room=1", "host": "chat.example",
                "request_id": "r-1", "status": 101, "backend": "chat-1", "sticky": "hit",
                "bytes_in": 0, "bytes_out": 0, "duration_ms": 1.5, "route": "rooms", "pool": "canary",
                "protocol": "HTTP/1.1",
            })
        );
    }

    #[test]
    fn tls_that_is_passed_on_has_the_name_that_was_asked_for() {
        let Request { edge, service, connection, client, backend, sticky, .. } = request();
        let passed = Passthrough {
            edge,
            service,
            connection,
            client,
            sni: "chat.example",
            refused: None,
            backend,
            sticky,
            retries: 1,
            duration: Duration::from_micros(1_500),
            route: Some("rooms"),
            pool: Some("canary"),
        };
        assert_eq!(
            written(Line::of_passthrough(&passed)),
            json!({
                "time": "2027-01-15T08:00:00.123Z", "event": "passthrough", "edge": "edge-1",
                "service": "chat", "connection": "00000000000000ab", "client": "198.51.100.7:40000",
                "sni": "chat.example", "backend": "chat-1", "sticky": "hit", "retries": 1,
                "bytes_in": 0, "bytes_out": 0, "duration_ms": 1.5, "route": "rooms", "pool": "canary",
            })
        );
        let refused = Passthrough {
            sni: "",
            refused: Some("tls_unknown_name"),
            backend: None,
            sticky: None,
            ..passed
        };
        let line = written(Line::of_passthrough(&refused));
        assert_eq!(line["refused"], "tls_unknown_name");
        assert!(line.get("sni").is_none() && line.get("backend").is_none());
    }

    #[test]
    fn its_end_has_the_same_connection_and_who_ended_it() {
        assert_eq!(
            written(Line::of_close(&close())),
            json!({
                "time": "2027-01-15T08:00:00.123Z", "event": "close", "edge": "edge-1",
                "service": "chat", "connection": "00000000000000ab", "client": "198.51.100.7:40000",
                "backend": "chat-1", "bytes_in": 7, "bytes_out": 8, "duration_ms": 2000.0,
                "ended_by": "client",
            })
        );
    }

    #[test]
    fn the_end_of_a_spliced_connection_says_that_it_was_one() {
        let close = Close { connection: None, ended_by: "closed", ..close() };
        assert_eq!(
            written(Line::of_close(&close)),
            json!({
                "time": "2027-01-15T08:00:00.123Z", "event": "close", "edge": "edge-1",
                "service": "chat", "spliced": true, "client": "198.51.100.7:40000",
                "backend": "chat-1", "bytes_in": 7, "bytes_out": 8, "duration_ms": 2000.0,
                "ended_by": "closed",
            })
        );
    }

    #[test]
    fn a_splice_is_not_an_end() {
        let so_far = Close { ended_by: "splice", ..close() };
        let line = written(Line::of_splice(&so_far));
        assert_eq!((&line["event"], &line["bytes_out"]), (&json!("splice"), &json!(8)));
        assert!(line.get("ended_by").is_none());
    }

    #[test]
    fn bytes_of_clients_stay_in_their_line_and_short() {
        let path = "/\"\\\u{7f}".to_owned() + &"x".repeat(100_000);
        let host = [b'\n', 0xff, b'"', b'{'];
        let line = written(Line::of_request(&Request { path: &path, host: &host, ..request() }));
        assert_eq!(line["path"].as_str().unwrap(), &path[..MOST_PATH]);
        assert_eq!(line["host"], "\n\u{fffd}\"{");
    }

    #[test]
    fn a_refusal_says_why() {
        let refused = Request {
            status: 503,
            refused: Some("no_backend"),
            backend: None,
            sticky: None,
            upgraded: false,
            retries: 2,
            ..request()
        };
        let line = written(Line::of_request(&refused));
        assert_eq!(line["refused"], "no_backend");
        assert_eq!((&line["event"], &line["retries"]), (&json!("request"), &json!(2)));
        assert!(line.get("backend").is_none() && line.get("sticky").is_none());
    }
}
