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
pub mod tests;
