//! `[service.passthrough]`: TLS that an l7 service passes on to its backends, by the name that clients ask for.

use std::collections::HashSet;
use std::net::IpAddr;

use lb_sidecar::routing::host_covers;
use lb_sidecar::settings::{Passthrough, SniRoute, UnknownSni};

use super::address;
use super::error::{Place, Problems};
use super::pools::ReadPool;
use super::reader::{Field, Reader, Section};
use super::route;
use super::unique::Unique;

pub(super) static PASSTHROUGH: Section =
    Section { heading: "[service.passthrough]", keys: &["unknown_sni", "route"] };

pub(super) static ROUTE: Section = Section {
    heading: "[[service.passthrough.route]]",
    keys: &["name", "sni", "alpn", "pool", "pools"],
};

/// A connection is compared with one after the other.
const MOST_ROUTES: usize = 512;

/// Most of one kind in a route.
const MOST: usize = 64;

/// What has no meaning where no request is read: in the service, and in some of its tables.
pub(super) const IN_SERVICE: [&str; 6] =
    ["tls", "backend_tls", "route", "redirect", "upgrades", "forwarded"];
pub(super) const IN_HTTP: [&str; 7] =
    ["body_timeout", "response_timeout", "keep_alive", "head_bytes", "pool", "h2c", "max_streams"];
pub(super) const IN_LIMITS: [&str; 1] = ["body_bytes"];
pub(super) const IN_OUTLIER: [&str; 2] = ["consecutive_5xx", "consecutive_handshake_failures"];

/// Of a service with these pools, if it has the table.
pub(super) fn read(
    service: &Reader<'_>,
    pools: &[ReadPool],
    problems: &Problems<'_>,
) -> Option<Passthrough> {
    let reader = service.table("passthrough", &PASSTHROUGH)?;
    refuse(service, &IN_SERVICE);
    let unknown_sni = reader
        .choice("unknown_sni", &[("default", UnknownSni::Default), ("refuse", UnknownSni::Refuse)]);
    let readers = reader.tables("route", &ROUTE).1;
    if let Some(over) = readers.get(MOST_ROUTES) {
        let what = format!("is one more than the {MOST_ROUTES} routes that a service can have");
        problems.error(&over.place, what, "make services of their own of some");
        return Some(Passthrough { routes: Vec::new(), unknown_sni });
    }
    let mut names = Unique::new(problems);
    let read = readers.into_iter().enumerate().map(|(n, table)| {
        let table = table.named_by(&reader.place, "route", n + 1, &["name"]);
        let name = route::name(&table, n + 1, &mut names);
        let asked = snis(&table, problems);
        let route = SniRoute {
            name,
            names: asked.iter().map(|(sni, _)| sni.clone()).collect(),
            alpn: alpn(&table, problems),
            pools: route::pools(&table, pools),
        };
        (route, asked, table.place)
    });
    let read: Vec<Read> = read.collect();
    overlaps(&read, problems);
    if unknown_sni == UnknownSni::Refuse && read.is_empty() {
        let what = "refuses every client: there is no route";
        reader.refuse("unknown_sni", what, "add [[service.passthrough.route]], or remove it");
    }
    let used = read.iter().flat_map(|(route, ..)| &route.pools).map(|share| share.pool);
    let used: HashSet<u16> = used.collect();
    route::pools_are_used(&used, pools, problems);
    if unknown_sni == UnknownSni::Refuse && !used.contains(&0) && !read.is_empty() {
        let what = "leaves the pool \"default\", which is in no route, without clients";
        let place = reader.field("unknown_sni").map_or(reader.place.clone(), |it| it.place);
        problems.warn(&place, what, "name it in a route, or write unknown_sni = \"default\"");
    }
    Some(Passthrough { routes: read.into_iter().map(|(route, ..)| route).collect(), unknown_sni })
}

/// A route, its names with their places, and its own place.
type Read = (SniRoute, Vec<(String, Place)>, Place);

/// Refuses keys of a table that are for requests.
pub(super) fn refuse(table: &Reader<'_>, keys: &[&'static str]) {
    for field in keys.iter().filter_map(|key| table.field(key)) {
        field.refuse("is for requests, and with passthrough none is read", "remove it");
    }
}

/// The names of a route, as they are compared, at least one.
fn snis(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<(String, Place)> {
    const EXAMPLE: &str = r#""chat.example.com""#;
    let field = reader.required("sni", EXAMPLE);
    let fields = field.and_then(|field| field.one_or_more(MOST, EXAMPLE)).unwrap_or_default();
    let mut unique = Unique::new(problems);
    let read = fields.into_iter().filter_map(|field| {
        let name = sni(&field, EXAMPLE)?;
        unique.insert(name.clone(), &field.place, "remove it").then_some((name, field.place))
    });
    read.collect()
}

/// A name, or all names below one.
fn sni(field: &Field<'_>, example: &str) -> Option<String> {
    let text = field.string(example)?;
    if text.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        let what = "is an address, and clients ask for names only (RFC 6066, section 3)";
        field.refuse(what, format!("write e.g. {example}"));
        return None;
    }
    route::host(field, example)
}

fn alpn(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#""h2""#;
    let Some(fields) = reader.field("alpn").and_then(|field| field.one_or_more(MOST, EXAMPLE))
    else {
        return Vec::new();
    };
    let mut unique = Unique::new(problems);
    let read = fields.iter().filter_map(|field| {
        // As long as the length byte of RFC 7301 allows.
        let name = address::text(field, 255, EXAMPLE)?;
        unique.insert(name.clone(), &field.place, "remove it").then_some(name)
    });
    read.collect()
}

/// Names that no client can have a route by, since an earlier one has all who ask for them.
fn overlaps(routes: &[Read], problems: &Problems<'_>) {
    for (n, (route, names, _)) in routes.iter().enumerate() {
        for (name, place) in names {
            let has = |(earlier, ..): &&Read| {
                let protocols = earlier.alpn.is_empty()
                    || (!route.alpn.is_empty()
                        && route.alpn.iter().all(|it| earlier.alpn.contains(it)));
                protocols && earlier.names.iter().any(|it| host_covers(it, name))
            };
            if let Some((earlier, _, at)) = routes[..n].iter().find(has) {
                let what =
                    format!("can never match: route {:?} on line {} has it", earlier.name, at.line);
                problems.warn(place, what, "put this route before that one, or remove the name");
            }
        }
    }
}
