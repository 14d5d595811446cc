//! Header fields of one hop, which end here (RFC 9110, section 7.6.1), and how tokens in lists are found.

use hyper::{
    HeaderMap,
    header::{
        CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
    },
};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether one of the fields `name` lists the token, in any case (RFC 9110, section 5.6.1).
pub fn lists(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers.get_all(name).iter().any(|value| value_lists(value.as_bytes(), token))
}

/// Whether a list of tokens has this one.
pub fn value_lists(value: &[u8], token: &str) -> bool {
    value.split(|b| *b == b',').any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Takes out what was meant for this hop: what `Connection` names, and the fields that are always of one hop. `TE` says
/// `trailers` on if it did before (RFC 9110, section 10.1.4).
///
/// `Host` and `Content-Length` stay whatever `Connection` says: to take them out would change what the message means.
pub fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        remove_connection_options(headers);
    }
    headers.remove(KEEP_ALIVE);
    headers.remove(PROXY_CONNECTION);
    headers.remove(UPGRADE);
    headers.remove(TRANSFER_ENCODING);
    if headers.contains_key(TE) {
        let trailers = headers.get_all(TE).iter().any(|value| {
            let of = |item: &[u8]| {
                item.split(|b| *b == b';').next().unwrap_or_default().trim_ascii().to_vec()
            };
            value
                .as_bytes()
                .split(|b| *b == b',')
                .any(|item| of(item).eq_ignore_ascii_case(b"trailers"))
        });
        headers.remove(TE);
        if trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
            headers.insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
}

fn remove_connection_options(headers: &mut HeaderMap) {
    let options: Vec<HeaderValue> = headers.get_all(CONNECTION).iter().cloned().collect();
    headers.remove(CONNECTION);
    for option in options.iter().flat_map(|value| value.as_bytes().split(|b| *b == b',')) {
        let option = option.trim_ascii();
        if [&b"close"[..], b"keep-alive", b"upgrade", b"te"]
            .iter()
            .any(|known| option.eq_ignore_ascii_case(known))
        {
            continue;
        }
        if let Ok(name) = HeaderName::from_bytes(option)
            && name != HOST
            && name != CONTENT_LENGTH
        {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers
                .append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn what_connection_names_ends_here() {
        let mut h = headers(&[
            ("connection", "close, X-Secret"),
            ("connection", " x-other ,,"),
            ("x-secret", "1"),
            ("x-other", "2"),
            ("x-stays", "3"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
        ]);
        remove_hop_by_hop(&mut h);
        assert_eq!(h, headers(&[("x-stays", "3")]));
    }

    #[test]
    fn the_message_stays_what_it_is() {
        let mut h = headers(&[
            ("connection", "host, content-length"),
            ("host", "a"),
            ("content-length", "3"),
        ]);
        remove_hop_by_hop(&mut h);
        assert_eq!(h, headers(&[("host", "a"), ("content-length", "3")]));
    }

    #[test]
    fn trailers_are_still_welcome() {
        let mut h = headers(&[("te", "gzip;q=0.5, Trailers"), ("connection", "TE")]);
        remove_hop_by_hop(&mut h);
        assert_eq!(h, headers(&[("te", "trailers"), ("connection", "te")]));

        let mut h = headers(&[("te", "gzip"), ("connection", "TE")]);
        remove_hop_by_hop(&mut h);
        assert!(h.is_empty());
    }

    #[test]
    fn tokens_in_lists() {
        let h = headers(&[("connection", "keep-alive , UPGRADE"), ("connection", "x")]);
        assert!(lists(&h, CONNECTION, "upgrade"));
        assert!(lists(&h, CONNECTION, "x"));
        assert!(!lists(&h, CONNECTION, "up"));
    }
}
