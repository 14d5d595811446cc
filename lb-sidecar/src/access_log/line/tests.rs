//! Lines as they are written.

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
