//! `[service.forwarded]`: what backends are told about clients.

use lb_sidecar::settings::{Forwarded, ForwardedMode};

use super::address;
use super::error::Problems;
use super::reader::{Field, Reader, Section};
use super::token::token;
use super::unique::Unique;

pub(super) static FORWARDED: Section =
    Section { heading: "[service.forwarded]", keys: &["mode", "trusted", "request_id"] };

/// Headers with a meaning that a request's id would destroy.
const TAKEN: [&str; 18] = [
    "accept-encoding",
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
];

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> Forwarded {
    Forwarded {
        mode: reader.choice(
            "mode",
            &[
                ("append", ForwardedMode::Append),
                ("replace", ForwardedMode::Replace),
                ("keep", ForwardedMode::Keep),
            ],
        ),
        trusted: reader
            .field("trusted")
            .and_then(|field| prefixes(&field, problems))
            .unwrap_or_default(),
        request_id: match reader.field("request_id") {
            None => Some("X-Request-Id".to_owned()),
            Some(field) => request_id(&field),
        },
    }
}

/// Reads those who are believed.
pub(super) fn prefixes(
    field: &Field<'_>,
    problems: &Problems<'_>,
) -> Option<Vec<(std::net::IpAddr, u8)>> {
    let mut unique = Unique::new(problems);
    let read = field.elements(256, r#"["10.0.0.0/8"]"#)?.into_iter().filter_map(|element| {
        let prefix = address::prefix(&element, r#""10.0.0.0/8""#)?;
        unique.insert(prefix, &element.place, "remove it").then_some(prefix)
    });
    Some(read.collect())
}

/// The empty text is for none.
fn request_id(field: &Field<'_>) -> Option<String> {
    const EXAMPLE: &str = r#""X-Request-Id""#;
    if field.string(EXAMPLE)?.is_empty() {
        return None;
    }
    let name = token(field, "a header", r#""X-Request-Id", or "" for none"#)?;
    if TAKEN.contains(&name.to_ascii_lowercase().as_str())
        || name.eq_ignore_ascii_case("sec-websocket-key")
    {
        field.refuse("has another meaning", format!("write e.g. {EXAMPLE}"));
        return None;
    }
    Some(name.to_owned())
}
