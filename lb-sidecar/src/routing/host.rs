//! Conditions on the host.

use hyper::header::HeaderValue;

/// One of the hosts of a condition.
pub enum HostRule {
    Exact(String),
    /// A dot and the name below which it is.
    Below(String),
}

impl HostRule {
    pub fn new(rule: &str) -> Self {
        match rule.strip_prefix('*') {
            Some(suffix) => Self::Below(suffix.to_owned()),
            None => Self::Exact(rule.to_owned()),
        }
    }

    pub fn matches(&self, host: &[u8]) -> bool {
        match self {
            Self::Exact(name) => host.eq_ignore_ascii_case(name.as_bytes()),
            Self::Below(suffix) => {
                let start = host.len().checked_sub(suffix.len()).filter(|start| *start > 0);
                start.is_some_and(|start| host[start..].eq_ignore_ascii_case(suffix.as_bytes()))
            }
        }
    }
}

/// The host of a Host field: without the port, and without the dot of the root. Empty if there is none.
pub fn of(field: Option<&HeaderValue>) -> &[u8] {
    let authority = field.map(HeaderValue::as_bytes).unwrap_or_default();
    let end = match authority.first() {
        Some(b'[') => authority.iter().position(|it| *it == b']').map(|it| it + 1),
        _ => authority.iter().position(|it| *it == b':'),
    };
    let host = &authority[..end.unwrap_or(authority.len())];
    host.strip_suffix(b".").unwrap_or(host)
}

/// Whether a rule of a configuration has this host.
pub fn matches(rule: &str, host: &str) -> bool {
    HostRule::new(rule).matches(host.as_bytes())
}

/// Whether a rule has every host that another has.
pub fn covers(rule: &str, other: &str) -> bool {
    match (rule.strip_prefix('*'), other.strip_prefix('*')) {
        (Some(suffix), Some(other)) => other.ends_with(suffix),
        (None, Some(_)) => false,
        _ => matches(rule, other),
    }
}
