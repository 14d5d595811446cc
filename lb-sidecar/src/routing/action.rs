//! What the sidecar does itself with a request: another path, another place, or an answer.

use bytes::Bytes;
use hyper::{
    Response, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue, LOCATION},
    http::request::Parts,
};

use super::{
    Route, host,
    path::{self, PathRule},
};
use crate::{
    body::ResponseBody,
    outcome::Outcome,
    settings::{Action, Answer, Redirect},
};

impl Route {
    /// The answer to a request that needs no backend.
    pub fn answer(
        &self,
        head: &Parts,
    ) -> Option<Result<(Outcome, Response<ResponseBody>), Outcome>> {
        let answer = match &self.action {
            Action::Pools(_) => return None,
            Action::Redirect(redirect) => match location(redirect, &self.paths, head) {
                Some(location) => (Outcome::Redirected, redirected(redirect.status, location)),
                // Only the host can be missing.
                None => return Some(Err(Outcome::HostMissing)),
            },
            Action::Answer(answer) => (Outcome::Answered, fixed(answer)),
        };
        let (outcome, mut response) = answer;
        self.change_response(response.headers_mut());
        Some(Ok((outcome, response)))
    }
}

fn fixed(answer: &Answer) -> Response<ResponseBody> {
    let mut response = with_text(answer.status, &answer.body);
    if !answer.body.is_empty()
        && let Ok(content_type) = answer.content_type.parse()
    {
        response.headers_mut().insert(CONTENT_TYPE, content_type);
    }
    response
}

fn redirected(status: u16, location: HeaderValue) -> Response<ResponseBody> {
    let mut response = with_text(status, "");
    response.headers_mut().insert(LOCATION, location);
    response
}

fn with_text(status: u16, text: &str) -> Response<ResponseBody> {
    let body = match text.is_empty() {
        true => ResponseBody::Empty,
        false => ResponseBody::Text(Some(Bytes::copy_from_slice(text.as_bytes()))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if !matches!(status, 204 | 304) {
        response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    }
    response
}

/// Where to go instead (RFC 9110, section 10.2.2): a path where only that changes, and without a scheme where that
/// stays. None if a host is needed, and the request has none.
fn location(redirect: &Redirect, paths: &[PathRule], head: &Parts) -> Option<HeaderValue> {
    let mut location = String::new();
    let Redirect { scheme, host, port, .. } = redirect;
    if scheme.is_some() || host.is_some() || port.is_some() {
        let asked = || std::str::from_utf8(host::of(head.headers.get(HOST))).ok();
        let host = host.as_deref().or_else(asked).filter(|host| !host.is_empty())?;
        location.extend(scheme.iter().flat_map(|scheme| [scheme, ":"]));
        location.extend(["//", host]);
        location.extend(port.map(|port| format!(":{port}")));
    }
    let asked = head.uri.path();
    match (&redirect.path, &redirect.prefix) {
        (Some(path), _) => location.push_str(path),
        (None, Some(prefix)) => location.push_str(&replaced(asked, paths, prefix)),
        (None, None) => location.push_str(asked),
    }
    if let Some(query) = head.uri.query().filter(|_| redirect.keep_query) {
        location.extend(["?", query]);
    }
    HeaderValue::try_from(location).ok()
}

/// A path with another prefix in place of the one that matched.
fn replaced(path: &str, paths: &[PathRule], new: &str) -> String {
    let decoded = path::decoded(path).unwrap_or_default();
    let prefix = paths.iter().find_map(|it| match it {
        PathRule::Prefix(prefix) if it.matches(&decoded) => Some(prefix),
        _ => None,
    });
    prefix.map_or_else(|| path.to_owned(), |it| path::joined(new, path::after_prefix(path, it)))
}

/// Another prefix for the backend; the query stays.
pub fn rewrite(uri: &mut Uri, paths: &[PathRule], new: &str) {
    let mut target = replaced(uri.path(), paths, new);
    if let Some(query) = uri.query() {
        target.extend(["?", query]);
    }
    if let Ok(target) = target.parse() {
        *uri = target;
    }
}
