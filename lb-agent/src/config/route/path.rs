//! Paths of routes: those that requests are compared with, and those that are written into them.

use lb_sidecar::routing::path::decoded;

use super::super::reader::Field;

const MOST_BYTES: usize = 1_024;

/// Reads a path that decoded paths of requests are compared with.
pub(super) fn compared(field: &Field<'_>, example: &str) -> Option<String> {
    let path = field.string(example)?;
    let what = if !path.starts_with('/') {
        "does not begin with /"
    } else if path.len() > MOST_BYTES {
        "is longer than 1024 bytes"
    } else if path.contains(['?', '#']) {
        "has more than a path: parameters are matched by query"
    } else if path.contains('%') {
        "has a %: the path is decoded before it is compared"
    } else if decoded(path).is_none() {
        "never comes: paths with empty segments, . or .. are refused"
    } else {
        return Some(path.to_owned());
    };
    field.refuse(what, format!("write e.g. {example}"));
    None
}

/// Reads a path that is written into a URI.
pub(super) fn written(field: &Field<'_>, example: &str) -> Option<String> {
    let path = field.string(example)?;
    let allowed = |byte: u8| byte.is_ascii_graphic() && !b"\"#<>?\\^`{|}".contains(&byte);
    let what = if !path.starts_with('/') {
        "does not begin with /"
    } else if path.starts_with("//") {
        "begins with two slashes, which is a host for browsers"
    } else if path.len() > MOST_BYTES {
        "is longer than 1024 bytes"
    } else if !path.bytes().all(allowed) {
        "has characters that no path has"
    } else {
        return Some(path.to_owned());
    };
    field.refuse(what, format!("write e.g. {example}"));
    None
}

/// Reads what comes in place of a prefix that matched.
pub(super) fn prefix_for(field: &Field<'_>, by_prefix: bool) -> Option<String> {
    if !by_prefix {
        field.refuse("has no prefix to take the place of", "add path_prefix to the route");
        return None;
    }
    written(field, r#""/v2""#)
}
