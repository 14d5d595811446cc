//! `X-Forwarded-For`, `-Proto`, `-Port` and `-Host`: what a backend is told about the client, and whom to believe.
//!
//! Knows nothing of connections: addresses and fields in, fields out.

use std::{
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
};

use hyper::{
    HeaderMap,
    header::{HOST, HeaderName, HeaderValue},
};

use crate::settings::ForwardedMode;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const X_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Addresses that are believed.
#[derive(Clone, Debug, Default)]
pub struct Trusted(Vec<(IpAddr, u8)>);

impl Trusted {
    pub fn new(prefixes: &[(IpAddr, u8)]) -> Self {
        Self(prefixes.to_vec())
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|(prefix, len)| match (prefix, address) {
            (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                let shift = 32 - u32::from(*len).min(32);
                shift == 32 || prefix.to_bits() >> shift == address.to_bits() >> shift
            }
            (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                let shift = 128 - u32::from(*len).min(128);
                shift == 128 || prefix.to_bits() >> shift == address.to_bits() >> shift
            }
            _ => false,
        })
    }
}

/// Who the client is: the peer, or, where that is believed, the last one in `X-Forwarded-For` that is not.
pub fn client(headers: &HeaderMap, trusted: &Trusted, peer: SocketAddr) -> SocketAddr {
    let mut client = peer;
    if !trusted.contains(peer.ip()) {
        return client;
    }
    let lines: Vec<&HeaderValue> = headers.get_all(FOR).iter().collect();
    for item in lines.iter().rev().flat_map(|line| line.as_bytes().rsplit(|b| *b == b',')) {
        let Some(address) = std::str::from_utf8(item).ok().and_then(|item| address(item.trim()))
        else {
            return client;
        };
        client = address;
        if !trusted.contains(address.ip()) {
            return client;
        }
    }
    client
}

/// An address with or without a port; without one, port 0 stands for it.
fn address(item: &str) -> Option<SocketAddr> {
    if let Ok(ip) = item.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(SocketAddr::new(ip.to_canonical(), 0));
    }
    item.parse().ok()
}

/// Where the client came to.
#[derive(Clone, Copy, Debug)]
pub struct To {
    pub local: SocketAddr,
    pub tls: bool,
}

/// Sets the fields as `mode` says. The peer's own are believed if it is `trusted`, and replaced otherwise.
pub fn apply(
    headers: &mut HeaderMap,
    mode: ForwardedMode,
    trusted: bool,
    peer: SocketAddr,
    to: To,
) {
    let replace = !trusted || mode == ForwardedMode::Replace;
    if !replace && mode == ForwardedMode::Keep {
        return;
    }
    let mut list = String::with_capacity(40);
    if !replace {
        for line in headers.get_all(FOR) {
            if let Ok(line) = line.to_str() {
                list.push_str(line);
                list.push_str(", ");
            }
        }
    }
    let _ = write!(list, "{}", peer.ip().to_canonical());
    let proto = if to.tls { "https" } else { "http" };
    set(headers, FOR, HeaderValue::try_from(list).ok(), true);
    set(headers, PROTO, Some(HeaderValue::from_static(proto)), replace);
    set(headers, PORT, Some(HeaderValue::from(to.local.port())), replace);
    let host = headers.get(HOST).cloned();
    set(headers, X_HOST, host, replace);
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<HeaderValue>, replace: bool) {
    if !replace && headers.contains_key(&name) {
        return;
    }
    match value {
        Some(value) => _ = headers.insert(name, value),
        None => _ = headers.remove(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::tests::headers;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn trusted() -> Trusted {
        Trusted::new(&[("10.0.0.0".parse().unwrap(), 8), ("fd00::".parse().unwrap(), 16)])
    }

    #[test]
    fn prefixes() {
        let t = trusted();
        for (address, is) in [
            ("10.1.2.3", true),
            ("11.1.2.3", false),
            ("::ffff:10.1.2.3", true),
            ("fd00:1::1", true),
            ("fd01::1", false),
        ] {
            assert_eq!(t.contains(address.parse().unwrap()), is, "{address}");
        }
        assert!(
            Trusted::new(&[("0.0.0.0".parse().unwrap(), 0)]).contains("192.0.2.1".parse().unwrap())
        );
        assert!(!Trusted::new(&[("0.0.0.0".parse().unwrap(), 0)]).contains("::1".parse().unwrap()));
        assert!(
            Trusted::new(&[("192.0.2.1".parse().unwrap(), 32)])
                .contains("192.0.2.1".parse().unwrap())
        );
    }

    #[test]
    fn the_client_is_the_last_one_that_is_not_believed() {
        let t = trusted();
        let of = |lines: &[&str], peer: &str| {
            let lines: Vec<_> = lines.iter().map(|l| ("x-forwarded-for", *l)).collect();
            client(&headers(&lines), &t, at(peer)).ip().to_string()
        };
        assert_eq!(of(&["192.0.2.9"], "198.51.100.1:5"), "198.51.100.1", "the peer is a stranger");
        assert_eq!(of(&["192.0.2.9"], "10.0.0.1:5"), "192.0.2.9");
        assert_eq!(of(&["192.0.2.8, 192.0.2.9, 10.0.0.2"], "10.0.0.1:5"), "192.0.2.9");
        assert_eq!(of(&["192.0.2.8", "192.0.2.9", "10.0.0.2"], "10.0.0.1:5"), "192.0.2.9");
        assert_eq!(of(&["10.0.0.3, 10.0.0.2"], "10.0.0.1:5"), "10.0.0.3", "all are believed");
        assert_eq!(of(&["192.0.2.8, rubbish, 10.0.0.2"], "10.0.0.1:5"), "10.0.0.2");
        assert_eq!(of(&[], "10.0.0.1:5"), "10.0.0.1");
        assert_eq!(of(&["[2001:db8::1]:4711"], "10.0.0.1:5"), "2001:db8::1");
        assert_eq!(of(&["192.0.2.9:4711"], "10.0.0.1:5"), "192.0.2.9");
    }

    const SENT: &[(&str, &str)] = &[
        ("host", "chat.example"),
        ("x-forwarded-for", "192.0.2.8"),
        ("x-forwarded-for", "192.0.2.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-port", "443"),
        ("x-forwarded-host", "front.example"),
    ];

    fn after(mode: ForwardedMode, trusted: bool, sent: &[(&str, &str)]) -> HeaderMap {
        let mut h = headers(sent);
        let to = To { local: at("192.0.2.1:8080"), tls: false };
        apply(&mut h, mode, trusted, at("[::ffff:10.0.0.1]:5000"), to);
        h
    }

    #[test]
    fn append_adds_to_what_is_believed() {
        assert_eq!(
            after(ForwardedMode::Append, true, SENT),
            headers(&[
                ("host", "chat.example"),
                ("x-forwarded-for", "192.0.2.8, 192.0.2.9, 10.0.0.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "443"),
                ("x-forwarded-host", "front.example"),
            ])
        );
    }

    #[test]
    fn a_strangers_words_are_replaced_in_every_mode() {
        let own = headers(&[
            ("host", "chat.example"),
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-port", "8080"),
            ("x-forwarded-host", "chat.example"),
        ]);
        for mode in [ForwardedMode::Append, ForwardedMode::Replace, ForwardedMode::Keep] {
            assert_eq!(after(mode, false, SENT), own, "{mode:?}");
        }
        assert_eq!(after(ForwardedMode::Replace, true, SENT), own);
    }

    #[test]
    fn keep_leaves_all_as_it_is() {
        assert_eq!(after(ForwardedMode::Keep, true, SENT), headers(SENT));
        assert_eq!(after(ForwardedMode::Keep, true, &[("host", "a")]), headers(&[("host", "a")]));
    }

    #[test]
    fn without_a_host_there_is_none_to_tell() {
        assert!(
            !after(ForwardedMode::Replace, false, &[("x-forwarded-host", "liar")])
                .contains_key(X_HOST)
        );
    }
}
