//! Rules for responses: what of a backend's goes on to the client, and the sidecar's own.

use bytes::Bytes;
use hyper::{
    HeaderMap, Response, StatusCode, Version,
    header::{
        CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, LOCATION, SET_COOKIE,
        TRANSFER_ENCODING,
    },
    http::{request, response::Parts, uri::Authority},
};

use crate::{
    body::ResponseBody,
    headers,
    outcome::{Outcome, Reason},
};

/// Makes the head that the client gets.
pub fn prepare(head: &mut Parts, set_cookie: Option<HeaderValue>) {
    if head.headers.contains_key(TRANSFER_ENCODING) {
        head.headers.remove(CONTENT_LENGTH);
    }
    headers::remove_hop_by_hop(&mut head.headers);
    head.version = Version::HTTP_11;
    stick(&mut head.headers, set_cookie);
}

/// Adds the sidecar's cookie to what the application sets.
pub fn stick(headers: &mut HeaderMap, set_cookie: Option<HeaderValue>) {
    if let Some(cookie) = set_cookie {
        headers.append(SET_COOKIE, cookie);
    }
}

/// The connection ends after this response.
pub fn close(headers: &mut HeaderMap) {
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
}

/// The answer to a request that came to this end.
pub fn refusal(reason: impl Into<Reason>) -> Response<ResponseBody> {
    let (status, text) =
        reason.into().answer().unwrap_or((StatusCode::INTERNAL_SERVER_ERROR, "internal error"));
    let mut response = Response::new(ResponseBody::Text(Some(Bytes::from_static(text.as_bytes()))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    if status.is_client_error() {
        close(headers);
    }
    response
}

/// Sends a request on to the same place by `https` (RFC 9110, section 15.4.9: the method stays).
pub fn to_https(head: &request::Parts) -> Result<Response<ResponseBody>, Reason> {
    let authority = head.headers.get(HOST).ok_or(Outcome::HostMissing)?;
    let authority: Option<Authority> = authority.as_bytes().try_into().ok();
    let host = authority.as_ref().map(Authority::host).ok_or(Outcome::HostInvalid)?;
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    // `OPTIONS *` has no place.
    let path = if path.starts_with('/') { path } else { "/" };
    let to = HeaderValue::try_from(format!("https://{host}{path}"));
    let mut response = Response::new(ResponseBody::Empty);
    *response.status_mut() = StatusCode::PERMANENT_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, to.map_err(|_| Outcome::HostInvalid)?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    Ok(response)
}

/// The same answer as bytes, for a client whose request never was one.
pub fn refusal_bytes(reason: impl Into<Reason>) -> Option<Vec<u8>> {
    let (status, text) = reason.into().answer()?;
    let reason = status.canonical_reason().unwrap_or_default();
    Some(
        format!(
            "HTTP/1.1 {} {reason}\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{text}",
            status.as_u16(),
            text.len()
        )
        .into_bytes(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_beside_chunks_does_not_go_on() {
        let mut head = Response::builder()
            .version(Version::HTTP_10)
            .header("transfer-encoding", "chunked")
            .header("content-length", "5")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("set-cookie", "app=1")
            .body(())
            .unwrap()
            .into_parts()
            .0;
        prepare(&mut head, Some(HeaderValue::from_static("sluice=x")));
        assert_eq!(head.version, Version::HTTP_11);
        let mut left: Vec<_> =
            head.headers.iter().map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
        left.sort();
        assert_eq!(left, ["set-cookie: app=1", "set-cookie: sluice=x"]);
    }

    #[test]
    fn a_refusal_says_why() {
        let text = String::from_utf8(refusal_bytes(Outcome::HeadTooLarge).unwrap()).unwrap();
        assert!(text.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\nthe request's head is too large"), "{text}");
        assert_eq!(refusal(Outcome::HostMissing).headers()[CONNECTION], "close");
        assert!(!refusal(Outcome::NoBackend).headers().contains_key(CONNECTION));
        assert!(refusal_bytes(Outcome::Connection).is_none());
    }
}
