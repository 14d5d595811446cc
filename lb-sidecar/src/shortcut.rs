//! The short way of an upgrade whose head comes in one piece as the first thing of its connection, as nearly all do: it
//! needs nothing of what hyper does for the requests of a connection.
//!
//! Whatever is not plainly such a request takes hyper's way, from its first byte.

use std::io;

use bytes::Bytes;
use hyper::{
    HeaderMap, Method, Request, Response,
    header::{CONTENT_LENGTH, HeaderName, HeaderValue, TRANSFER_ENCODING},
    http::request::Parts,
};

use crate::{
    framing::{Framing, Limits},
    scratch,
    stream::Stream,
};

/// Most header fields, as with the framing.
const MOST_FIELDS: usize = 100;

/// What has come; nothing if no more will.
pub fn first_bytes(stream: &mut Stream) -> io::Result<Bytes> {
    scratch::with(|buffer| {
        let n = stream.try_read(buffer)?;
        Ok(Bytes::copy_from_slice(&buffer[..n]))
    })
}

/// The head of an upgrade, and its length, if that is what the bytes begin with.
pub fn upgrade(bytes: &[u8], limits: Limits) -> Option<(Parts, usize)> {
    let mut framing = Framing::new(limits);
    if bytes.is_empty() || framing.feed(bytes).is_err() || !framing.is_opaque() {
        return None;
    }
    let mut fields = [httparse::EMPTY_HEADER; MOST_FIELDS];
    let mut parsed = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = parsed.parse(bytes).ok()? else { return None };
    if (parsed.method, parsed.version) != (Some(Method::GET.as_str()), Some(1)) {
        return None;
    }
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + 8);
    for field in parsed.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).ok()?;
        headers.append(name, HeaderValue::from_bytes(field.value).ok()?);
    }
    if headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    let (mut head, ()) = Request::get(parsed.path?).body(()).ok()?.into_parts();
    head.headers = headers;
    Some((head, length))
}

/// Writes a response without a body.
pub fn write_head<B>(stream: &mut Stream, response: &Response<B>) {
    let status = response.status();
    let mut bytes = Vec::with_capacity(512);
    bytes.extend_from_slice(b"HTTP/1.1 ");
    bytes.extend_from_slice(status.as_str().as_bytes());
    bytes.push(b' ');
    bytes.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    for (name, value) in response.headers() {
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.extend_from_slice(b"\r\n\r\n");
    // The first bytes of a connection: there is room in the socket, or the client is gone, which the relay will see.
    _ = stream.try_write(&bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { head_bytes: 16_384 };
    const UPGRADE: &str = "GET /chat?room=1 HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\n\
                           Upgrade: websocket\r\nCookie: a=b\r\nCookie: c=d\r\n";

    #[test]
    fn a_whole_upgrade_is_taken_and_frames_behind_it_are_left() {
        let bytes = format!("{UPGRADE}\r\nframes");
        let (head, length) = upgrade(bytes.as_bytes(), LIMITS).unwrap();
        assert_eq!(&bytes[length..], "frames");
        assert_eq!((head.method, head.uri.to_string().as_str()), (Method::GET, "/chat?room=1"));
        assert_eq!(head.headers["host"], "a");
        assert_eq!(head.headers.get_all("cookie").iter().count(), 2);
    }

    #[test]
    fn everything_else_takes_hypers_way() {
        for bytes in [
            String::new(),
            UPGRADE.to_owned(),
            format!("{UPGRADE}Content-Length: 1\r\n\r\nx"),
            format!("{UPGRADE}Bad Name: x\r\n\r\n"),
            format!("{}\r\n", UPGRADE.replace("GET", "POST")),
            format!("{}\r\n", UPGRADE.replace("1.1", "1.0")),
            format!("{}\r\n", UPGRADE.replace("Upgrade: websocket", "X: y")),
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n".to_owned(),
            "\x16\x03\x01\x02".to_owned(),
        ] {
            assert!(upgrade(bytes.as_bytes(), LIMITS).is_none(), "{bytes:?}");
        }
    }
}
