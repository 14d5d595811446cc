//! When a route is taken.

use std::net::IpAddr;

use lb_sidecar::routing::pattern;
use lb_sidecar::settings::{Conditions, FieldRule, PathRule, ValueRule};

use super::super::address;
use super::super::error::Problems;
use super::super::reader::{Field, Reader, Section};
use super::super::token::token;
use super::super::unique::Unique;
use super::path;

pub(in super::super) static HEADER: Section =
    Section { heading: "[[service.route.header]]", keys: &["name", "value", "regex"] };

pub(in super::super) static QUERY: Section =
    Section { heading: "[[service.route.query]]", keys: &["name", "value", "regex"] };

/// Most of one kind in a route.
const MOST: usize = 64;

/// Headers of one hop, which are gone when routes are looked at.
const OF_ONE_HOP: [&str; 7] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> Conditions {
    Conditions {
        hosts: list(reader, "host", r#""chat.example.com""#, problems, |field, example| {
            host(field, example)
        }),
        paths: paths(reader, problems),
        methods: list(reader, "method", r#""GET""#, problems, |field, example| {
            method(field, example)
        }),
        headers: fields(reader, "header", &HEADER, header_name),
        query: fields(reader, "query", &QUERY, |field| address::text(field, 128, r#""version""#)),
        upgrade: reader.field("upgrade").map(|_| reader.flag("upgrade", true)),
    }
}

/// The values of a key, of which one is enough; none if it is not there.
fn list<T: std::hash::Hash + Eq + Clone>(
    reader: &Reader<'_>,
    key: &'static str,
    example: &str,
    problems: &Problems<'_>,
    read: impl Fn(&Field<'_>, &str) -> Option<T>,
) -> Vec<T> {
    let Some(fields) = reader.field(key).and_then(|field| field.one_or_more(MOST, example)) else {
        return Vec::new();
    };
    let mut unique = Unique::new(problems);
    let values = fields.iter().filter_map(|field| {
        let value = read(field, example)?;
        unique.insert(value.clone(), &field.place, "remove it").then_some(value)
    });
    values.collect()
}

/// A name, an address, or all names below one; as it is compared.
pub(in super::super) fn host(field: &Field<'_>, example: &str) -> Option<String> {
    let text = field.string(example)?.to_ascii_lowercase();
    let name = text.strip_suffix('.').unwrap_or(&text);
    if let Ok(ip) = name.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() });
    }
    if address::is_dns_name(name.strip_prefix("*.").unwrap_or(name)) {
        return Some(name.to_owned());
    }
    let (what, remedy) = match name.rsplit_once(':') {
        Some((name, port)) if address::is_dns_name(name) && port.parse::<u16>().is_ok() => {
            ("has a port, and the port of a request is not looked at", format!("write {name:?}"))
        }
        _ if name.contains('*') => (
            "has a * elsewhere than for all labels before a name",
            r#"write e.g. "*.example.com""#.to_owned(),
        ),
        _ => ("is not a host", format!("write e.g. {example} or \"*.example.com\"")),
    };
    field.refuse(what, remedy);
    None
}

fn paths(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<PathRule> {
    let keys = ["path", "path_prefix", "path_regex"];
    let mut written = keys.iter().filter_map(|key| Some((key, reader.field(key)?)));
    if let (Some((first, _)), Some((_, second))) = (written.next(), written.next()) {
        second.refuse(format!("stands beside {first}"), "write one of them, or two routes");
    }
    let exact = list(reader, "path", r#""/chat""#, problems, path::compared);
    let prefixes = list(reader, "path_prefix", r#""/api""#, problems, path::compared);
    let patterns = list(reader, "path_regex", r#"'^/room/[0-9]+$'"#, problems, |field, example| {
        regex(field, example)
    });
    let exact = exact.into_iter().map(PathRule::Exact);
    let prefixes = prefixes.into_iter().map(PathRule::Prefix);
    exact.chain(prefixes).chain(patterns.into_iter().map(PathRule::Regex)).collect()
}

/// A pattern that can be compiled.
fn regex(field: &Field<'_>, example: &str) -> Option<String> {
    let text = field.string(example)?;
    match pattern::compile(text) {
        Ok(_) => return Some(text.to_owned()),
        Err(pattern::Bad { column: Some(column), what }) => {
            let what = format!("is not a regular expression: at character {column}: {what}");
            field.refuse(what, format!("write e.g. {example}"));
        }
        Err(pattern::Bad { column: None, what }) => {
            field.refuse(what, format!("write e.g. {example}"));
        }
    }
    None
}

fn method(field: &Field<'_>, example: &str) -> Option<String> {
    let method = token(field, "a method", example)?;
    if method.bytes().any(|byte| byte.is_ascii_lowercase()) {
        let remedy = format!("write {:?}", method.to_ascii_uppercase());
        field.refuse("has small letters, which no method in use has", remedy);
        return None;
    }
    if method == "CONNECT" {
        field.refuse("is not served by any route", "remove it");
        return None;
    }
    Some(method.to_owned())
}

fn fields(
    reader: &Reader<'_>,
    key: &'static str,
    section: &'static Section,
    name: impl Fn(&Field<'_>) -> Option<String>,
) -> Vec<FieldRule> {
    let readers = reader.table_or_tables(key, section);
    let rules = readers.iter().filter_map(|reader| {
        let name = reader.required("name", r#""version""#).and_then(|field| name(&field));
        let value = value(reader);
        Some(FieldRule { name: name?, value: value? })
    });
    rules.collect()
}

fn header_name(field: &Field<'_>) -> Option<String> {
    let name = token(field, "a header", r#""X-Version""#)?.to_ascii_lowercase();
    if OF_ONE_HOP.contains(&name.as_str()) {
        let remedy = if name == "upgrade" || name == "connection" {
            "write upgrade = true in the route, or leave it out"
        } else {
            "leave it out"
        };
        field.refuse("is for the connection, and does not reach the routes", remedy);
        return None;
    }
    if name == "host" {
        field.refuse("has a condition of its own", "write host = in the route");
        return None;
    }
    Some(name)
}

fn value(reader: &Reader<'_>) -> Option<ValueRule> {
    match (reader.field("value"), reader.field("regex")) {
        (None, None) => Some(ValueRule::Any),
        (Some(field), None) => Some(ValueRule::Exact(field.string(r#""2""#)?.to_owned())),
        (None, Some(field)) => Some(ValueRule::Regex(regex(&field, r#"'^2\.'"#)?)),
        (Some(_), Some(field)) => {
            field.refuse("stands beside value", "write one of them");
            None
        }
    }
}
