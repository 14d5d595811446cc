//! Conditions on the path. They are about the decoded path, so that nobody goes round one by writing a letter as `%61`.

use std::borrow::Cow;

use regex::bytes::Regex;

use super::pattern;
use crate::settings;

/// One of the paths of a condition.
pub enum PathRule {
    Exact(String),
    Prefix(String),
    Regex(Regex),
    /// Of a pattern that no check has seen.
    Never,
}

impl PathRule {
    pub fn new(rule: &settings::PathRule) -> Self {
        match rule {
            settings::PathRule::Exact(path) => Self::Exact(path.clone()),
            settings::PathRule::Prefix(prefix) => Self::Prefix(prefix.clone()),
            settings::PathRule::Regex(text) => {
                pattern::compile(text).map_or(Self::Never, Self::Regex)
            }
        }
    }

    pub fn matches(&self, path: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => path == wanted.as_bytes(),
            Self::Prefix(prefix) => has_prefix(path, prefix),
            Self::Regex(regex) => regex.is_match(path),
            Self::Never => false,
        }
    }
}

/// Whether a path begins with these whole segments. With a slash at its end, a prefix has only what follows the slash.
#[must_use]
pub fn has_prefix(path: &[u8], prefix: &str) -> bool {
    path.strip_prefix(prefix.as_bytes())
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/") || prefix.ends_with('/'))
}

/// A path of a request, decoded. None if it can be read in two ways: with empty segments, or `.` and `..`, or what
/// would be a slash if it were decoded; some readers resolve those and some do not.
#[must_use]
pub fn decoded(path: &str) -> Option<Cow<'_, [u8]>> {
    let Some(segments) = path.strip_prefix('/') else {
        // `OPTIONS *`.
        return Some(path.as_bytes().into());
    };
    let last = segments.bytes().filter(|it| *it == b'/').count();
    let whole = match path.contains('%') {
        true => Cow::Owned(decode(path)?),
        false => Cow::Borrowed(path.as_bytes()),
    };
    // As many as before, or a slash was decoded.
    let segments = whole[1..].split(|it| *it == b'/');
    let clear = segments.enumerate().all(|(n, segment)| {
        let name = segment.split(|it| *it == b';').next().unwrap_or_default();
        let is_dots = name == b"." || name == b"..";
        n <= last
            && !is_dots
            && (!segment.is_empty() || n == last)
            && !segment.iter().any(|it| matches!(it, b'\\' | 0))
    });
    clear.then_some(whole)
}

/// None where a `%` is not followed by two hexadecimal digits.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                (digit()? << 4 | digit()?) as u8
            }
            byte => byte,
        });
    }
    Some(decoded)
}

/// A name or value of a query, decoded; as it is written where that fails.
pub fn decoded_parameter(text: &str) -> Cow<'_, [u8]> {
    if !text.contains(['%', '+']) {
        return text.as_bytes().into();
    }
    let spaced = text.replace('+', " ");
    decode(&spaced).map_or_else(|| text.as_bytes().into(), Cow::Owned)
}

/// What of a path follows the prefix that matches it decoded; it begins with a slash, or is empty.
pub fn after_prefix<'a>(path: &'a str, prefix: &str) -> &'a str {
    let mut left = prefix.trim_end_matches('/').len();
    let mut at = 0;
    while left > 0 && at < path.len() {
        at += if path.as_bytes()[at] == b'%' { 3 } else { 1 };
        left -= 1;
    }
    path.get(at..).unwrap_or_default()
}

/// A path of a prefix and what follows it.
pub fn joined(prefix: &str, rest: &str) -> String {
    match format!("{}{rest}", prefix.trim_end_matches('/')) {
        path if path.is_empty() => "/".to_owned(),
        path => path,
    }
}
