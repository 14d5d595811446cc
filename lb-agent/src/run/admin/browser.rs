//! What a browser must not be made to do: show the admin API to a page of another site, or let one steer it.
//!
//! A page is of the edge if its address is one that nobody else can own: an IP address, a name without a dot (the public
//! DNS has none with an address), a name of the host, or one that the operator has listed. Any other name may be one of
//! a stranger, whose DNS server says that it is this host (DNS rebinding). And whoever sends `Origin` must be such a page:
//! browsers do with whatever is neither a link nor a form, an image or a script.
//!
//! Answers say that they are only for pages of the edge, may not be framed, and are what their `Content-Type` says; the
//! dashboard runs no script but its own files.

use std::net::IpAddr;

use axum::{
    extract::{self, Request},
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CONTENT_SECURITY_POLICY, HOST, ORIGIN, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
            X_FRAME_OPTIONS,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{State, problem::Problem};

/// Asked by routers, supervisors and Prometheus, by whatever name; there is nothing in it to be kept from a stranger's page
/// but numbers.
const BY_ANY_NAME: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_FRAME_OPTIONS, "DENY"),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Turns away whom a page of another site sends.
pub async fn guard(
    extract::State(state): extract::State<State>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = match check(&state, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

fn check(state: &State, request: &Request) -> Result<(), Problem> {
    if BY_ANY_NAME.contains(&request.uri().path()) {
        return Ok(());
    }
    let headers = request.headers();
    own_name(state, headers)?;
    same_origin(headers)
}

fn same_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let own = headers.get(HOST).and_then(|host| host.to_str().ok());
    let site = origin.to_str().ok().and_then(|it| it.split_once("://")).map(|(_, site)| site);
    if own.is_some() && site == own {
        return Ok(());
    }
    let error = format!("a page of another site ({origin:?}) asks for this");
    Err(Problem::new(StatusCode::FORBIDDEN, error, "this is for pages of the edge itself"))
}

/// No browser leaves `Host` out.
fn own_name(state: &State, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(host) = headers.get(HOST) else { return Ok(()) };
    let name = host.to_str().ok().map(|host| name(host).to_ascii_lowercase());
    let listed = |name: &str| {
        let picture = state.view.picture();
        let sources = picture.sources.as_ref();
        sources.is_some_and(|it| it.config.edge.admin_hosts.iter().any(|own| own == name))
    };
    match &name {
        Some(name) if cannot_be_a_strangers(name) || listed(name) || is_hosts_own(name) => Ok(()),
        _ => {
            let error = format!("{host:?} is no name of this edge");
            let remedy = "use its IP address, or write the name into [edge] admin_hosts";
            Err(Problem::new(StatusCode::MISDIRECTED_REQUEST, error, remedy))
        }
    }
}

/// Without the port.
fn name(host: &str) -> &str {
    match host.rsplit_once(':') {
        // Not the last part of an IPv6 address.
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn cannot_be_a_strangers(name: &str) -> bool {
    let inner = name.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
    inner.unwrap_or(name).parse::<IpAddr>().is_ok()
        || !name.contains('.')
        // RFC 6761, section 6.3.
        || name.ends_with(".localhost")
}

fn is_hosts_own(name: &str) -> bool {
    let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    own.trim().eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_only_the_edge_can_have() {
        let own = |host: &str| cannot_be_a_strangers(name(host));
        for host in
            ["127.0.0.1:9900", "10.2.0.1", "[::1]:9900", "[2001:db8::1]", "edge", "edge:9900"]
        {
            assert!(own(host), "{host}");
        }
        for host in ["localhost:9900", "sluice.localhost"] {
            assert!(own(host), "{host}");
        }
        for host in [
            "edge.evil.example",
            "evil.example:9900",
            "evil.",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            "127.0.0.1:9900.evil.example",
            "[::1].evil.example",
        ] {
            assert!(!own(host), "{host}");
        }
    }
}
