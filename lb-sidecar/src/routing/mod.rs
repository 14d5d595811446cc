//! Which route a request takes: the first one of its service of which all conditions hold.
//!
//! Rules are compiled once for a plan. Knows heads of requests and no connection. The rules, as an operator reads them,
//! are in `docs/routing.md`.

mod action;
mod changes;
mod fields;
mod host;
pub mod path;
pub mod pattern;
#[cfg(test)]
mod tests;

use std::{cell::Cell, collections::HashMap, rc::Rc};

use hyper::{HeaderMap, Method, header::HOST, http::request::Parts};

use crate::{
    outcome::Outcome,
    settings::{self, Action, NO_ROUTE, Share},
};
use changes::Changes;
use fields::Field;
pub(crate) use host::HostRule;
pub use host::{covers as host_covers, matches as host_matches};
use path::PathRule;

/// The routes of a service.
#[derive(Default)]
pub struct Routes {
    routes: Vec<Route>,
    /// Some route asks for the path: one that can be read in two ways could go round it.
    by_path: bool,
    unmatched: Hits,
}

/// How many requests took a route; it counts on through new settings.
type Hits = Rc<Cell<u64>>;

/// One route, compiled.
pub struct Route {
    pub name: Rc<str>,
    hosts: Vec<HostRule>,
    paths: Vec<PathRule>,
    methods: Vec<Method>,
    headers: Vec<Field>,
    query: Vec<Field>,
    upgrade: Option<bool>,
    pub action: Action,
    rewrite_prefix: Option<String>,
    request: Changes,
    response: Changes,
    hits: Hits,
}

impl Routes {
    /// Routes of the same name count on.
    pub fn new(routes: &[settings::Route], before: Option<&Self>) -> Self {
        let before = before.into_iter().flat_map(Self::hits);
        let before: HashMap<_, _> = before.map(|(name, hits)| (name, hits.clone())).collect();
        let hits = |name: &str| before.get(name).cloned().unwrap_or_default();
        Self {
            by_path: routes.iter().any(|route| !route.when.paths.is_empty()),
            unmatched: hits(NO_ROUTE),
            routes: routes.iter().map(|route| Route::new(route, hits(&route.name))).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Those of each route, and of what none matched.
    fn hits(&self) -> impl Iterator<Item = (&str, &Hits)> {
        let routes = self.routes.iter().map(|route| (&*route.name, &route.hits));
        routes.chain([(NO_ROUTE, &self.unmatched)])
    }

    pub fn report(&self) -> Vec<(String, u64)> {
        if self.is_empty() {
            return Vec::new();
        }
        self.hits().map(|(name, hits)| (name.to_owned(), hits.get())).collect()
    }

    /// The route of a request in origin form, counted. Its head is as a backend would get it, but for `Upgrade`: it
    /// asks for one, or not.
    pub fn find(&self, head: &Parts, upgrade: bool) -> Result<Option<&Route>, Outcome> {
        if self.is_empty() {
            return Ok(None);
        }
        let path = match path::decoded(head.uri.path()) {
            Some(path) => path,
            None if self.by_path => return Err(Outcome::AmbiguousPath),
            None => head.uri.path().as_bytes().into(),
        };
        let seen = Seen {
            host: host::of(head.headers.get(HOST)),
            path: &path,
            method: &head.method,
            headers: &head.headers,
            query: head.uri.query().unwrap_or_default(),
            upgrade,
        };
        let found = self.routes.iter().find(|route| route.matches(&seen));
        let hits = found.map_or(&self.unmatched, |route| &route.hits);
        hits.set(hits.get() + 1);
        Ok(found)
    }
}

/// What conditions are about.
struct Seen<'a> {
    host: &'a [u8],
    /// Decoded.
    path: &'a [u8],
    method: &'a Method,
    headers: &'a HeaderMap,
    query: &'a str,
    upgrade: bool,
}

impl Route {
    fn new(route: &settings::Route, hits: Hits) -> Self {
        let settings::Route { name, when, action, rewrite_prefix, .. } = route;
        let methods = when.methods.iter().filter_map(|it| Method::from_bytes(it.as_bytes()).ok());
        Self {
            name: name.as_str().into(),
            hosts: when.hosts.iter().map(|it| HostRule::new(it)).collect(),
            paths: when.paths.iter().map(PathRule::new).collect(),
            methods: methods.collect(),
            headers: when.headers.iter().map(Field::new).collect(),
            query: when.query.iter().map(Field::new).collect(),
            upgrade: when.upgrade,
            action: action.clone(),
            rewrite_prefix: rewrite_prefix.clone(),
            request: Changes::new(&route.request_headers),
            response: Changes::new(&route.response_headers),
            hits,
        }
    }

    fn matches(&self, seen: &Seen<'_>) -> bool {
        fn any<T>(rules: &[T], holds: impl Fn(&T) -> bool) -> bool {
            rules.is_empty() || rules.iter().any(holds)
        }
        self.upgrade.is_none_or(|it| it == seen.upgrade)
            && any(&self.methods, |it| it == seen.method)
            && any(&self.hosts, |it| it.matches(seen.host))
            && any(&self.paths, |it| it.matches(seen.path))
            && self.headers.iter().all(|it| it.in_headers(seen.headers))
            && self.query.iter().all(|it| it.in_query(seen.query))
    }

    /// The pools that its requests may go to; none if the sidecar itself answers them.
    pub fn pools(&self) -> &[Share] {
        match &self.action {
            Action::Pools(shares) => shares,
            Action::Redirect(_) | Action::Answer(_) => &[],
        }
    }

    /// Whether a backend gets another head than the client has sent.
    pub fn changes_requests(&self) -> bool {
        self.rewrite_prefix.is_some() || !self.request.is_empty()
    }

    /// The head as its backend gets it.
    pub fn change_request(&self, head: &mut Parts) {
        if let Some(prefix) = &self.rewrite_prefix {
            action::rewrite(&mut head.uri, &self.paths, prefix);
        }
        self.request.apply(&mut head.headers);
    }

    /// The fields as the client gets them.
    pub fn change_response(&self, headers: &mut HeaderMap) {
        self.response.apply(headers);
    }
}
