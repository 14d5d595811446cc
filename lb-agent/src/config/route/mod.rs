//! `[[service.route]]`: which requests of an l7 service go where.
//!
//! Conditions and actions are read one by one; what must hold between routes is in [`cover`] and [`cycle`].

mod action;
mod conditions;
mod cover;
mod cycle;
mod headers;
mod path;

use std::collections::HashSet;

use lb_sidecar::settings::{Action, NO_ROUTE, PathRule, Route};

use super::address;
use super::error::{Place, Problems};
use super::pools::ReadPool;
use super::reader::{Reader, Section};
use super::unique::Unique;

pub(super) use action::{ANSWER, REDIRECT, pools};
pub(super) use conditions::{HEADER, QUERY, host};
pub(super) use headers::{REQUEST_HEADERS, RESPONSE_HEADERS};

pub(super) static ROUTE: Section = Section {
    heading: "[[service.route]]",
    keys: &[
        "name",
        "host",
        "path",
        "path_prefix",
        "path_regex",
        "method",
        "header",
        "query",
        "upgrade",
        "pool",
        "pools",
        "redirect",
        "answer",
        "rewrite_prefix",
        "request_headers",
        "response_headers",
    ],
};

/// A request is compared with one after the other.
const MOST_ROUTES: usize = 512;

/// The routes of a service with these pools.
pub(super) fn read(outer: &Reader<'_>, pools: &[ReadPool], problems: &Problems<'_>) -> Vec<Route> {
    let readers = outer.tables("route", &ROUTE).1;
    if let Some(reader) = readers.get(MOST_ROUTES) {
        let what = format!("is one more than the {MOST_ROUTES} routes that a service can have");
        problems.error(&reader.place, what, "make services of their own of some");
        return Vec::new();
    }
    let mut names = Unique::new(problems);
    let read = readers.into_iter().enumerate().map(|(n, reader)| {
        let reader = reader.named_by(&outer.place, "route", n + 1, &["name"]);
        let route = read_one(&reader, n + 1, pools, &mut names, problems);
        (route, reader.place)
    });
    let routes: Vec<(Route, Place)> = read.collect();
    cover::check(&routes, problems);
    cycle::check(&routes, problems);
    let shares = routes.iter().filter_map(|(route, _)| match &route.action {
        Action::Pools(shares) => Some(shares),
        _ => None,
    });
    let used = shares.flatten().map(|share| share.pool).collect();
    pools_are_used(&used, pools, problems);
    routes.into_iter().map(|(route, _)| route).collect()
}

fn read_one(
    reader: &Reader<'_>,
    position: usize,
    pools: &[ReadPool],
    names: &mut Unique<'_, String>,
    problems: &Problems<'_>,
) -> Route {
    let when = conditions::read(reader, problems);
    let by_prefix = when.paths.iter().any(|it| matches!(it, PathRule::Prefix(_)));
    let route = Route {
        name: name(reader, position, names),
        action: action::read(reader, pools, by_prefix),
        rewrite_prefix: reader
            .field("rewrite_prefix")
            .and_then(|field| path::prefix_for(&field, by_prefix)),
        request_headers: headers::for_backends(reader, problems),
        response_headers: headers::for_clients(reader, problems),
        when,
    };
    if !matches!(route.action, Action::Pools(_)) {
        for key in ["rewrite_prefix", "request_headers"] {
            if let Some(field) = reader.field(key) {
                field.refuse("is for requests that go to a backend", "remove it");
            }
        }
    }
    route
}

/// The name of a route, or its position.
pub(super) fn name(reader: &Reader<'_>, position: usize, names: &mut Unique<'_, String>) -> String {
    const EXAMPLE: &str = r#""rooms""#;
    let Some(field) = reader.field("name") else {
        let name = position.to_string();
        names.insert(name.clone(), &reader.place, "give this route a name of its own");
        return name;
    };
    let Some(name) = address::name(&field, "._-", EXAMPLE) else { return String::new() };
    if name == NO_ROUTE {
        field.refuse("counts requests that no route matches", "write another name");
    }
    names.insert(name.clone(), &field.place, "give each route of a service a name of its own");
    name
}

/// Warns of pools that are none of those of some route.
pub(super) fn pools_are_used(used: &HashSet<u16>, pools: &[ReadPool], problems: &Problems<'_>) {
    for (_, pool) in (1..).zip(pools).filter(|(number, _)| !used.contains(number)) {
        let what = "is in no route: it gets no client";
        problems.warn(&pool.place, what, "name it in a route, or remove it");
    }
}
