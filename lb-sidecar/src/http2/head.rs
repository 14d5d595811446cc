//! A request's head as HTTP/1.1 has it: what pseudo-header fields say becomes `Host`, the target and an upgrade.
//!
//! Malformed heads (missing, repeated or unknown pseudo-header fields, fields of one hop, names in capitals) never come
//! here: the library below resets their streams (RFC 9113, section 8.1.1).

use base64::{Engine as _, engine::general_purpose::STANDARD};
use h2::ext::Protocol;
use hyper::{
    HeaderMap, Method, Uri,
    header::{
        CONNECTION, CONTENT_LENGTH, COOKIE, HOST, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT,
        SEC_WEBSOCKET_KEY, UPGRADE,
    },
    http::{request::Parts, uri::Scheme},
};
use ring::digest;

use crate::outcome::Outcome;

/// What makes a key an answer (RFC 6455, section 1.3).
const ACCEPT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Brings a head into the form that an HTTP/1.1 client would have sent. `upgrades` are the protocols that are served.
pub fn to_http1(head: &mut Parts, upgrades: &[String]) -> Result<(), Outcome> {
    one_length(&head.headers)?;
    match head.extensions.remove::<Protocol>() {
        Some(protocol) => to_upgrade(head, &protocol, upgrades)?,
        None if head.method == Method::CONNECT => return Err(Outcome::ConnectMethod),
        None => {}
    }
    host(head)?;
    target(head)?;
    join_cookies(&mut head.headers);
    Ok(())
}

/// More than one would be read differently by others; none but digits reaches a backend.
fn one_length(headers: &HeaderMap) -> Result<(), Outcome> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    let digits = |value: &HeaderValue| {
        let bytes = value.as_bytes();
        (1..=18).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_digit)
    };
    if lengths.next().is_some() || length.is_some_and(|value| !digits(value)) {
        return Err(Outcome::BadHead);
    }
    Ok(())
}

/// An extended CONNECT (RFC 8441) asks for what `Upgrade` asks for in HTTP/1.1.
fn to_upgrade(head: &mut Parts, protocol: &Protocol, upgrades: &[String]) -> Result<(), Outcome> {
    let name = protocol.as_str();
    let listed = upgrades.iter().find(|listed| name.eq_ignore_ascii_case(listed));
    let listed = listed.ok_or(Outcome::UnlistedProtocol)?;
    let protocol = HeaderValue::from_str(listed).map_err(|_| Outcome::UnlistedProtocol)?;
    head.method = Method::GET;
    head.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    head.headers.insert(UPGRADE, protocol);
    if listed == "websocket" {
        // Of no use between the client and this end, but a server of HTTP/1.1 wants one.
        let key = STANDARD.encode(rand::random::<[u8; 16]>());
        let key = HeaderValue::try_from(key).expect("base64 is a valid value");
        head.headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    Ok(())
}

/// `:authority` counts; a `Host` beside it must say the same (RFC 9113, section 8.3.1).
fn host(head: &mut Parts) -> Result<(), Outcome> {
    let Some(authority) = head.uri.authority() else { return Ok(()) };
    if authority.as_str().contains('@') {
        return Err(Outcome::TargetInvalid);
    }
    let differs =
        |host: &HeaderValue| !host.as_bytes().eq_ignore_ascii_case(authority.as_str().as_bytes());
    if head.headers.get_all(HOST).iter().any(differs) {
        return Err(Outcome::HostDiffers);
    }
    let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Outcome::TargetInvalid)?;
    head.headers.insert(HOST, host);
    Ok(())
}

/// Origin form, or `*`.
fn target(head: &mut Parts) -> Result<(), Outcome> {
    let known = [Scheme::HTTP, Scheme::HTTPS];
    if head.uri.scheme().is_some_and(|scheme| !known.contains(scheme)) {
        return Err(Outcome::TargetInvalid);
    }
    let path = head.uri.path_and_query().filter(|path| !path.as_str().is_empty());
    let path = path.ok_or(Outcome::TargetInvalid)?;
    // As strict as the request line of HTTP/1.1 is read here.
    if !path.as_str().bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Outcome::TargetInvalid);
    }
    head.uri = Uri::from(path.clone());
    Ok(())
}

/// A client may send each cookie as a field of its own; HTTP/1.1 knows one field (section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    if headers.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let cookies: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_bytes(&cookies.join(&b"; "[..]));
    headers.insert(COOKIE, joined.expect("values stay valid when they are joined"));
}

/// Whether a backend has accepted what was asked for: the client cannot tell, it has not seen the key.
pub fn accepts(asked: &HeaderMap, answered: &HeaderMap) -> bool {
    let Some(key) = asked.get(SEC_WEBSOCKET_KEY) else { return true };
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key.as_bytes());
    hash.update(ACCEPT);
    let expected = STANDARD.encode(hash.finish());
    let accept = answered.get(SEC_WEBSOCKET_ACCEPT);
    accept.is_some_and(|accept| accept.as_bytes() == expected.as_bytes())
}

/// Fields of HTTP/1.1's upgrade, and of a hop, which a response of HTTP/2 must not have (section 8.2.2).
pub fn from_http1(headers: &mut HeaderMap) {
    const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
    for name in [CONNECTION, KEEP_ALIVE, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use hyper::{Request, Version};

    use super::*;

    fn head(method: &str, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri).version(Version::HTTP_2);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn connect(protocol: &'static str) -> Parts {
        let mut head = head("CONNECT", "https://chat.example/chat?room=1", &[]);
        head.extensions.insert(Protocol::from_static(protocol));
        head
    }

    #[test]
    fn the_authority_becomes_the_host_and_the_target_a_path() {
        let mut get =
            head("GET", "https://chat.example:8443/a?b=c", &[("host", "Chat.example:8443")]);
        to_http1(&mut get, &[]).unwrap();
        assert_eq!(get.uri.to_string(), "/a?b=c");
        assert_eq!(get.headers[HOST], "chat.example:8443");

        let mut without = head("GET", "/a", &[("host", "a")]);
        to_http1(&mut without, &[]).unwrap();
        assert_eq!(
            (without.uri.to_string().as_str(), &without.headers[HOST]),
            ("/a", &"a".parse().unwrap())
        );
    }

    #[test]
    fn what_others_might_read_differently_is_refused() {
        for (method, uri, fields, want) in [
            ("GET", "http://a/", &[("host", "b")][..], Outcome::HostDiffers),
            ("GET", "http://u@a/", &[], Outcome::TargetInvalid),
            ("GET", "ftp://a/", &[], Outcome::TargetInvalid),
            ("CONNECT", "a:80", &[], Outcome::ConnectMethod),
            ("POST", "http://a/", &[("content-length", "+1")], Outcome::BadHead),
            ("POST", "http://a/", &[("content-length", "")], Outcome::BadHead),
            (
                "POST",
                "http://a/",
                &[("content-length", "1"), ("content-length", "1")],
                Outcome::BadHead,
            ),
        ] {
            let refused = to_http1(&mut head(method, uri, fields), &[]).unwrap_err();
            assert_eq!(refused, want, "{method} {uri} {fields:?}");
        }
    }

    #[test]
    fn an_extended_connect_becomes_an_upgrade() {
        let mut head = connect("WebSocket");
        to_http1(&mut head, &["websocket".to_owned()]).unwrap();
        assert_eq!((&head.method, head.uri.to_string().as_str()), (&Method::GET, "/chat?room=1"));
        assert_eq!(head.headers[UPGRADE], "websocket");
        assert_eq!(head.headers[SEC_WEBSOCKET_KEY].len(), 24);
        let refused = to_http1(&mut connect("connect-udp"), &["websocket".to_owned()]);
        assert_eq!(refused, Err(Outcome::UnlistedProtocol));
    }

    #[test]
    fn cookies_are_one_field_again() {
        let mut head = head("GET", "/", &[("cookie", "a=b"), ("cookie", "c=d"), ("cookie", "e=f")]);
        to_http1(&mut head, &[]).unwrap();
        let cookies: Vec<_> = head.headers.get_all(COOKIE).iter().collect();
        assert_eq!(cookies, ["a=b; c=d; e=f"]);
    }

    #[test]
    fn an_accept_answers_its_key() {
        // RFC 6455, section 1.3.
        let asked = head("GET", "/", &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]).headers;
        for (accept, good) in [("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", true), ("x", false)] {
            let answered = head("GET", "/", &[("sec-websocket-accept", accept)]).headers;
            assert_eq!(accepts(&asked, &answered), good, "{accept}");
        }
        assert!(!accepts(&asked, &HeaderMap::new()));
        assert!(accepts(&HeaderMap::new(), &HeaderMap::new()), "another protocol has no key");
    }
}
