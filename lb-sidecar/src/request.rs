//! Rules for requests: which are refused, and how those that are not go on to a backend.

use std::net::SocketAddr;

use hyper::{
    HeaderMap, Method, Uri, Version,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, HeaderValue, TRANSFER_ENCODING, UPGRADE},
    http::{request::Parts, uri::Authority},
};

use crate::{client::Client, forwarded, headers, http2, outcome::Outcome, service::Plan};

/// A request that may go on.
#[derive(Debug, PartialEq, Eq)]
pub struct Checked {
    /// The protocol that it asks for and may have, in lower case.
    pub upgrade: Option<String>,
    /// It asks for any protocol at all: what the client sends next may not be HTTP.
    pub asks_upgrade: bool,
    /// The client sends its body only when it is told to.
    pub expects_continue: bool,
}

/// Whether the request is served, and as what. Brings the target into origin form, with the authority in `Host`
/// (RFC 9112, section 3.2), and a head of HTTP/2 into that of HTTP/1.1.
pub fn check(head: &mut Parts, has_body: bool, upgrades: &[String]) -> Result<Checked, Outcome> {
    if head.version == Version::HTTP_2 {
        http2::to_http1(head, upgrades)?;
    }
    if head.method == Method::CONNECT {
        return Err(Outcome::ConnectMethod);
    }
    check_host(head)?;
    check_target(head)?;
    let expects_continue = match head.headers.get(EXPECT) {
        None => false,
        Some(value) if value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            has_body && head.version != Version::HTTP_10
        }
        Some(_) => return Err(Outcome::UnknownExpectation),
    };
    let asks_upgrade = head.headers.contains_key(UPGRADE)
        && head.version >= Version::HTTP_11
        && headers::lists(&head.headers, CONNECTION, "upgrade");
    let upgrade = if asks_upgrade { listed_upgrade(&head.headers, upgrades) } else { None };
    if upgrade.is_some() && has_body {
        return Err(Outcome::UpgradeWithBody);
    }
    Ok(Checked { upgrade, asks_upgrade, expects_continue })
}

/// The first protocol of `Upgrade` that is served (the client lists them in order of preference).
fn listed_upgrade(headers: &HeaderMap, upgrades: &[String]) -> Option<String> {
    let values =
        headers.get_all(UPGRADE).iter().flat_map(|value| value.as_bytes().split(|b| *b == b','));
    for protocol in values.map(|p| p.trim_ascii()) {
        if let Some(listed) = upgrades.iter().find(|u| protocol.eq_ignore_ascii_case(u.as_bytes()))
        {
            return Some(listed.clone());
        }
    }
    None
}

fn check_host(head: &Parts) -> Result<(), Outcome> {
    let mut hosts = head.headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return if head.version == Version::HTTP_10 { Ok(()) } else { Err(Outcome::HostMissing) };
    };
    if hosts.next().is_some() {
        return Err(Outcome::HostRepeated);
    }
    // An empty one is for targets without an authority.
    if !host.is_empty()
        && (host.as_bytes().contains(&b'@') || Authority::try_from(host.as_bytes()).is_err())
    {
        return Err(Outcome::HostInvalid);
    }
    Ok(())
}

fn check_target(head: &mut Parts) -> Result<(), Outcome> {
    if head.uri.scheme().is_some() {
        // Absolute form: its authority counts, whatever `Host` says.
        let authority = head
            .uri
            .authority()
            .filter(|a| !a.as_str().contains('@'))
            .ok_or(Outcome::TargetInvalid)?;
        let host = HeaderValue::from_str(authority.as_str()).map_err(|_| Outcome::TargetInvalid)?;
        head.headers.insert(HOST, host);
        let path = head.uri.path_and_query().cloned();
        head.uri = path.map(Uri::from).unwrap_or_default();
        return Ok(());
    }
    let path = head.uri.path();
    let star = path == "*" && head.method == Method::OPTIONS;
    if head.uri.authority().is_some() || !(path.starts_with('/') || star) {
        return Err(Outcome::TargetInvalid);
    }
    Ok(())
}

/// Makes the head that a backend gets. Returns who the client is, as far as its word is believed.
pub fn prepare(head: &mut Parts, checked: &Checked, plan: &Plan, client: &Client) -> SocketAddr {
    let (peer, local) = (client.peer, client.local);
    if head.headers.contains_key(TRANSFER_ENCODING) {
        head.headers.remove(CONTENT_LENGTH);
    }
    headers::remove_hop_by_hop(&mut head.headers);
    if !checked.expects_continue {
        head.headers.remove(EXPECT);
    }
    // What a backend is told of HTTP is this hop's.
    head.version = Version::HTTP_11;
    if !head.headers.contains_key(HOST) {
        head.headers.insert(HOST, HeaderValue::from_static(""));
    }
    let trusted = plan.trusted.contains(peer.ip());
    let address = forwarded::client(&head.headers, &plan.trusted, peer);
    let tls = client.tls.get();
    let to = forwarded::To { local, tls: tls.is_some() };
    forwarded::apply(&mut head.headers, plan.settings.forwarded.mode, trusted, peer, to);
    if let Some(name) = plan.tls.as_ref().and_then(|it| it.subject.as_ref()) {
        let subject = tls.and_then(|tls| tls.client.as_ref()?.subject.as_deref());
        let subject = subject.and_then(|it| HeaderValue::from_str(it).ok());
        match subject {
            Some(subject) => _ = head.headers.insert(name.clone(), subject),
            None => _ = head.headers.remove(name),
        }
    }
    if let Some(name) = &plan.request_id
        && !(trusted && head.headers.get(name).is_some_and(|id| (1..=128).contains(&id.len())))
    {
        head.headers.insert(name.clone(), request_id());
    }
    address
}

/// 128 random bits in hexadecimal.
fn request_id() -> HeaderValue {
    HeaderValue::try_from(format!("{:032x}", rand::random::<u128>()))
        .expect("hexadecimal digits are a valid value")
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn head(line: &str, fields: &[(&str, &str)]) -> Parts {
        let mut words = line.split(' ');
        let mut request =
            Request::builder().method(words.next().unwrap()).uri(words.next().unwrap());
        if words.next() == Some("HTTP/1.0") {
            request = request.version(Version::HTTP_10);
        }
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn checked(line: &str, fields: &[(&str, &str)], has_body: bool) -> Result<Checked, Outcome> {
        check(&mut head(line, fields), has_body, &["websocket".to_owned()])
    }

    const PLAIN: Checked = Checked { upgrade: None, asks_upgrade: false, expects_continue: false };

    #[test]
    fn hosts() {
        for (line, hosts, want) in [
            ("GET / HTTP/1.1", &["chat.example"][..], Ok(PLAIN)),
            ("GET / HTTP/1.1", &["chat.example:8080"], Ok(PLAIN)),
            ("GET / HTTP/1.1", &["[2001:db8::1]:80"], Ok(PLAIN)),
            ("GET / HTTP/1.1", &[""], Ok(PLAIN)),
            ("GET / HTTP/1.0", &[], Ok(PLAIN)),
            ("GET / HTTP/1.1", &[], Err(Outcome::HostMissing)),
            ("GET / HTTP/1.1", &["a", "a"], Err(Outcome::HostRepeated)),
            ("GET / HTTP/1.1", &["a/b"], Err(Outcome::HostInvalid)),
            ("GET / HTTP/1.1", &["a, b"], Err(Outcome::HostInvalid)),
            ("GET / HTTP/1.1", &["user@a"], Err(Outcome::HostInvalid)),
        ] {
            let fields: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            assert_eq!(checked(line, &fields, false), want, "{line} {hosts:?}");
        }
    }

    #[test]
    fn targets() {
        let host = [("host", "a")];
        assert_eq!(checked("OPTIONS * HTTP/1.1", &host, false), Ok(PLAIN));
        assert_eq!(checked("GET * HTTP/1.1", &host, false), Err(Outcome::TargetInvalid));
        assert_eq!(checked("GET a:80 HTTP/1.1", &host, false), Err(Outcome::TargetInvalid));
        assert_eq!(checked("CONNECT a:80 HTTP/1.1", &host, false), Err(Outcome::ConnectMethod));

        let mut absolute =
            head("GET http://real.example:81/path?q=1 HTTP/1.1", &[("host", "lie.example")]);
        assert_eq!(check(&mut absolute, false, &[]), Ok(PLAIN));
        assert_eq!(absolute.uri.to_string(), "/path?q=1");
        assert_eq!(absolute.headers[HOST], "real.example:81");

        assert_eq!(checked("GET http://u@a/ HTTP/1.1", &host, false), Err(Outcome::TargetInvalid));
    }

    #[test]
    fn upgrades() {
        let ask = |upgrade, connection, has_body| {
            let fields = [("host", "a"), ("upgrade", upgrade), ("connection", connection)];
            checked("GET / HTTP/1.1", &fields, has_body)
        };
        let websocket = Checked { upgrade: Some("websocket".into()), asks_upgrade: true, ..PLAIN };
        assert_eq!(ask("WebSocket", "keep-alive, Upgrade", false), Ok(websocket));
        assert_eq!(ask("h2c", "Upgrade", false), Ok(Checked { asks_upgrade: true, ..PLAIN }));
        assert_eq!(ask("websocket", "keep-alive", false), Ok(PLAIN), "nobody asked this hop");
        assert_eq!(ask("websocket", "upgrade", true), Err(Outcome::UpgradeWithBody));
        let old = [("host", "a"), ("upgrade", "websocket"), ("connection", "upgrade")];
        assert_eq!(checked("GET / HTTP/1.0", &old, false), Ok(PLAIN), "HTTP/1.0 has no upgrades");
    }

    #[test]
    fn expectations() {
        let ask = |value, has_body| {
            checked("POST / HTTP/1.1", &[("host", "a"), ("expect", value)], has_body)
        };
        assert_eq!(ask("100-Continue", true), Ok(Checked { expects_continue: true, ..PLAIN }));
        assert_eq!(ask("100-continue", false), Ok(PLAIN));
        assert_eq!(ask("a-pony", true), Err(Outcome::UnknownExpectation));
    }

    #[test]
    fn request_ids_differ() {
        assert_ne!(request_id(), request_id());
        assert_eq!(request_id().len(), 32);
    }
}
