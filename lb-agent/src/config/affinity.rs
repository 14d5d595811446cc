//! `affinity` of an l7 service: a word, or the table `[service.affinity]`.

use std::time::Duration;

use lb_sidecar::settings::{Affinity, Cookie, SameSite};

use super::address;
use super::reader::{Field, Reader, Section, alternatives};
use super::token::{parameter, token};

pub(super) static AFFINITY: Section = Section {
    heading: "[service.affinity]",
    keys: &["kind", "name", "ttl", "path", "domain", "secure", "http_only", "same_site"],
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Source,
    Cookie,
    AppCookie,
    Header,
    Query,
}

const KINDS: [(&str, Kind); 6] = [
    ("cookie", Kind::Cookie),
    ("app-cookie", Kind::AppCookie),
    ("header", Kind::Header),
    ("query", Kind::Query),
    ("source", Kind::Source),
    ("none", Kind::None),
];

/// The kinds that a word says all about.
const WORDS: [(&str, Kind); 3] =
    [("none", Kind::None), ("source", Kind::Source), ("cookie", Kind::Cookie)];

/// The kinds that a key is for.
fn kinds_of(key: &str) -> &'static [Kind] {
    match key {
        "kind" => {
            &[Kind::Cookie, Kind::AppCookie, Kind::Header, Kind::Query, Kind::Source, Kind::None]
        }
        "name" => &[Kind::Cookie, Kind::AppCookie, Kind::Header, Kind::Query],
        _ => &[Kind::Cookie],
    }
}

/// `tls`: clients come by TLS, so that cookies are `Secure` by themselves.
pub(super) fn read(reader: &Reader<'_>, tls: bool) -> Affinity {
    let Some(field) = reader.field("affinity") else {
        return Affinity::None;
    };
    if field.is_string() {
        return match word(&field) {
            Some(Kind::Source) => Affinity::Source,
            Some(Kind::Cookie) => Affinity::Cookie(default_cookie(tls)),
            _ => Affinity::None,
        };
    }
    reader.table("affinity", &AFFINITY).map_or(Affinity::None, |table| of_table(&table, tls))
}

fn word(field: &Field<'_>) -> Option<Kind> {
    let text = field.string(r#""source""#)?;
    if KINDS.iter().any(|(word, _)| *word == text) && !WORDS.iter().any(|(word, _)| *word == text) {
        let remedy = format!("write e.g. affinity = {{ kind = {text:?}, name = {} }}", "\"user\"");
        field.refuse("needs a name", remedy);
        return None;
    }
    field.choice(&WORDS)
}

fn of_table(reader: &Reader<'_>, tls: bool) -> Affinity {
    let kind = reader.required("kind", r#""cookie""#).and_then(|field| field.choice(&KINDS));
    let Some(kind) = kind else {
        return Affinity::None;
    };
    refuse_keys_of_other_kinds(reader, kind);
    match kind {
        Kind::None => Affinity::None,
        Kind::Source => Affinity::Source,
        Kind::Cookie => Affinity::Cookie(cookie(reader, tls)),
        Kind::AppCookie => {
            Affinity::AppCookie { name: name(reader, "a cookie", r#""JSESSIONID""#) }
        }
        Kind::Header => Affinity::Header { name: name(reader, "a header", r#""X-User""#) },
        Kind::Query => Affinity::Query {
            name: reader
                .required("name", r#""sid""#)
                .and_then(|field| parameter(&field, r#""sid""#))
                .unwrap_or_default(),
        },
    }
}

fn refuse_keys_of_other_kinds(reader: &Reader<'_>, kind: Kind) {
    let word = |kind| KINDS.iter().find(|(_, other)| *other == kind).map_or("", |(word, _)| word);
    for key in AFFINITY.keys {
        let kinds = kinds_of(key);
        if kinds.contains(&kind) {
            continue;
        }
        if let Some(field) = reader.field(key) {
            let words: Vec<String> =
                kinds.iter().map(|kind| format!("{:?}", word(*kind))).collect();
            let remedy = format!("remove it, or write kind = {}", alternatives(&words));
            field.refuse(format!("is not for kind {:?}", word(kind)), remedy);
        }
    }
}

/// Of something that the application names.
fn name(reader: &Reader<'_>, what: &str, example: &str) -> String {
    let field = reader.required("name", example);
    field.and_then(|field| Some(token(&field, what, example)?.to_owned())).unwrap_or_default()
}

fn default_cookie(secure: bool) -> Cookie {
    Cookie {
        name: "sluice".to_owned(),
        ttl: Some(Duration::from_secs(86_400)),
        path: "/".to_owned(),
        domain: None,
        secure,
        http_only: true,
        same_site: Some(SameSite::Lax),
    }
}

fn cookie(reader: &Reader<'_>, tls: bool) -> Cookie {
    let default = default_cookie(tls);
    let name = reader.field("name");
    let cookie = Cookie {
        name: name
            .as_ref()
            .and_then(|field| token(field, "a cookie", r#""sluice""#))
            .map_or(default.name, str::to_owned),
        ttl: reader.field("ttl").map_or(default.ttl, |field| ttl(&field)),
        path: reader.field("path").and_then(|field| path(&field)).unwrap_or(default.path),
        domain: reader.field("domain").and_then(|field| domain(&field)),
        secure: reader.flag("secure", default.secure),
        http_only: reader.flag("http_only", default.http_only),
        same_site: Some(reader.choice(
            "same_site",
            &[("lax", SameSite::Lax), ("strict", SameSite::Strict), ("none", SameSite::None)],
        )),
    };
    if cookie.same_site == Some(SameSite::None)
        && !cookie.secure
        && let Some(field) = reader.field("same_site")
    {
        field.refuse("is ignored by browsers without secure", "add secure = true");
    }
    if let Some(field) = name {
        browsers_take_the_name(&field, &cookie);
    }
    cookie
}

/// RFC 6265bis, section 4.1.3: two prefixes are promises which browsers hold a cookie to.
fn browsers_take_the_name(field: &Field<'_>, cookie: &Cookie) {
    let prefixed = |prefix: &str| {
        cookie.name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
    };
    let host_only = cookie.path == "/" && cookie.domain.is_none();
    if prefixed("__Host-") && !(cookie.secure && host_only) {
        let what =
            "is refused by browsers without secure, with a domain and with another path than /";
        field.refuse(what, r#"write secure = true, path = "/" and no domain, or another name"#);
    } else if prefixed("__Secure-") && !cookie.secure {
        let what = "is refused by browsers without secure";
        field.refuse(what, "write secure = true, or another name");
    }
}

/// `None` for the browser's session.
fn ttl(field: &Field<'_>) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    if field.is_string() && field.string(r#""1d""#) == Some("session") {
        return None;
    }
    // Browsers hold nothing for longer than 400 days.
    let ttl = field.duration(&(Duration::from_secs(1)..=400 * DAY), DAY)?;
    if ttl.subsec_millis() > 0 {
        field.refuse("is not a whole number of seconds", r#"write e.g. "1d", or "session""#);
    }
    Some(ttl)
}

fn path(field: &Field<'_>) -> Option<String> {
    let path = field.string(r#""/""#)?;
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b';';
    if !path.starts_with('/') || path.len() > 1_024 || !path.bytes().all(allowed) {
        let remedy = r#"write /, then visible ASCII without ;, at most 1024 bytes, e.g. "/""#;
        field.refuse("is not a cookie's path", remedy);
        return None;
    }
    Some(path.to_owned())
}

fn domain(field: &Field<'_>) -> Option<String> {
    const EXAMPLE: &str = r#""chat.example""#;
    let domain = field.string(EXAMPLE)?;
    if !address::is_dns_name(domain) {
        field.refuse("is not a DNS name", format!("write e.g. {EXAMPLE}"));
        return None;
    }
    Some(domain.to_owned())
}
