//! `[service.proxy_protocol]`: how an l7 service learns of clients behind proxies, and tells its backends.

use lb_sidecar::settings::{ProxyProtocol, SendProxy};

use super::error::Problems;
use super::forwarded::prefixes;
use super::reader::{Reader, Section};

pub(super) static PROXY_PROTOCOL: Section =
    Section { heading: "[service.proxy_protocol]", keys: &["accept", "trusted", "send"] };

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> ProxyProtocol {
    let required = reader.choice("accept", &[("off", false), ("required", true)]);
    let trusted = reader.field("trusted");
    let accept = trusted.as_ref().and_then(|field| prefixes(field, problems)).unwrap_or_default();
    match &trusted {
        None if required => {
            reader.refuse(
                "trusted",
                "is missing",
                r#"name the proxies, e.g. trusted = ["10.0.0.0/8"]"#,
            );
        }
        Some(field) if required && accept.is_empty() && field.is_array() => {
            field.refuse(
                "names nobody",
                r#"name the proxies, e.g. ["10.0.0.0/8"], or write accept = "off""#,
            );
        }
        Some(field) if !required => {
            field.refuse(
                "has no meaning without accept",
                r#"remove it, or write accept = "required""#,
            );
        }
        _ => {}
    }
    ProxyProtocol {
        accept,
        send: reader.choice(
            "send",
            &[("off", SendProxy::Off), ("v1", SendProxy::V1), ("v2", SendProxy::V2)],
        ),
    }
}
