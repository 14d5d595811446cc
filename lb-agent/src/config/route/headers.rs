//! Changes of headers on the way.

use hyper::http::uri::Authority;
use lb_sidecar::settings::HeaderChanges;

use super::super::error::Problems;
use super::super::reader::{Field, Reader, Section};
use super::super::token::token;
use super::super::unique::Unique;

pub(in super::super) static REQUEST_HEADERS: Section =
    Section { heading: "[service.route.request_headers]", keys: &["set", "add", "remove"] };

pub(in super::super) static RESPONSE_HEADERS: Section =
    Section { heading: "[service.route.response_headers]", keys: &["set", "add", "remove"] };

/// Most changes of a kind.
const MOST: usize = 64;

const MOST_VALUE: usize = 4_096;

/// What says how a message is framed, or what its connection becomes: not to be changed from outside.
const OF_THE_MESSAGE: [&str; 13] = [
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-connection",
    "sec-websocket-accept",
    "sec-websocket-key",
    "sec-websocket-version",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

pub(super) fn for_backends(reader: &Reader<'_>, problems: &Problems<'_>) -> HeaderChanges {
    let table = reader.table("request_headers", &REQUEST_HEADERS);
    table.map(|table| read(&table, true, problems)).unwrap_or_default()
}

pub(super) fn for_clients(reader: &Reader<'_>, problems: &Problems<'_>) -> HeaderChanges {
    let table = reader.table("response_headers", &RESPONSE_HEADERS);
    table.map(|table| read(&table, false, problems)).unwrap_or_default()
}

fn read(reader: &Reader<'_>, of_request: bool, problems: &Problems<'_>) -> HeaderChanges {
    HeaderChanges {
        remove: removed(reader, of_request, problems),
        set: fields(reader, "set", of_request, problems),
        add: fields(reader, "add", of_request, problems),
    }
}

fn removed(reader: &Reader<'_>, of_request: bool, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#"["Server"]"#;
    let elements = reader.field("remove").and_then(|field| field.elements(MOST, EXAMPLE));
    let mut unique = Unique::new(problems);
    let names = elements.unwrap_or_default().into_iter().filter_map(|element| {
        let name = token(&element, "a header", r#""Server""#)?.to_ascii_lowercase();
        if !may_change(&element, &name) {
            return None;
        }
        if of_request && name == "host" {
            element.refuse("is in every request", "remove it, or set another");
            return None;
        }
        unique.insert(name.clone(), &element.place, "remove it").then_some(name)
    });
    names.collect()
}

fn fields(
    reader: &Reader<'_>,
    key: &'static str,
    of_request: bool,
    problems: &Problems<'_>,
) -> Vec<(String, String)> {
    let Some(field) = reader.field(key) else { return Vec::new() };
    let mut unique = Unique::new(problems);
    let pairs = field.pairs(MOST, "{ X-Pool = \"canary\" }").unwrap_or_default();
    let fields = pairs.into_iter().filter_map(|(name, field)| {
        let name = header(&field, name)?;
        let value = value(&field)?;
        if of_request && name == "host" && !is_host(&field, value, key) {
            return None;
        }
        unique.insert(name.clone(), &field.place, "remove it").then(|| (name, value.to_owned()))
    });
    fields.collect()
}

/// The name of a header that is a key.
fn header(field: &Field<'_>, name: &str) -> Option<String> {
    let name = name.to_ascii_lowercase();
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if !(1..=128).contains(&name.len()) || !name.bytes().all(is_token) {
        field.refuse("is not for the name of a header", "write e.g. X-Pool = \"canary\"");
        return None;
    }
    may_change(field, &name).then_some(name)
}

fn may_change(field: &Field<'_>, name: &str) -> bool {
    let may = !OF_THE_MESSAGE.contains(&name);
    if !may {
        let what = format!("is for {name:?}, which belongs to the message or its connection");
        field.refuse(what, "remove it");
    }
    may
}

fn value<'a>(field: &Field<'a>) -> Option<&'a str> {
    let value = field.string(r#""canary""#)?;
    let allowed = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    if value.len() > MOST_VALUE || !value.bytes().all(allowed) || value.trim() != value {
        let remedy = "write up to 4096 visible ASCII characters, and spaces between them";
        field.refuse("is not the value of a header", remedy);
        return None;
    }
    Some(value)
}

fn is_host(field: &Field<'_>, value: &str, key: &str) -> bool {
    if key == "add" {
        field.refuse("would be a second one", "set it");
        return false;
    }
    let is = !value.contains('@') && value.parse::<Authority>().is_ok();
    if !is {
        field.refuse("is not a host", r#"write e.g. "chat.internal" or "chat.internal:8080""#);
    }
    is
}
