//! Which pools a connection may go to, by what its ClientHello says.

use std::{cell::Cell, collections::HashMap, rc::Rc};

use super::hello::Hello;
use crate::{
    pool::ONLY_DEFAULT,
    routing::HostRule,
    settings::{self, NO_ROUTE, Share, UnknownSni},
};

/// The routes of a service that passes TLS on.
pub struct Routes {
    routes: Vec<Route>,
    unknown: UnknownSni,
    unmatched: Hits,
}

/// How many connections took a route; it counts on through new settings.
type Hits = Rc<Cell<u64>>;

struct Route {
    name: Rc<str>,
    names: Vec<HostRule>,
    alpn: Vec<Box<[u8]>>,
    pools: Vec<Share>,
    hits: Hits,
}

/// Where a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way<'a> {
    /// None: no route matches.
    pub route: Option<&'a Rc<str>>,
    pub pools: &'a [Share],
}

impl Routes {
    /// Routes of the same name count on.
    pub fn new(told: &settings::Passthrough, before: Option<&Self>) -> Self {
        let before: HashMap<_, _> = before.into_iter().flat_map(Self::hits).collect();
        let hits = |name: &str| before.get(name).map(|it| Rc::clone(it)).unwrap_or_default();
        let routes = told.routes.iter().map(|route| Route {
            name: route.name.as_str().into(),
            names: route.names.iter().map(|it| HostRule::new(it)).collect(),
            alpn: route.alpn.iter().map(|it| it.as_bytes().into()).collect(),
            pools: route.pools.clone(),
            hits: hits(&route.name),
        });
        Self { routes: routes.collect(), unknown: told.unknown_sni, unmatched: hits(NO_ROUTE) }
    }

    fn hits(&self) -> impl Iterator<Item = (&str, &Hits)> {
        let routes = self.routes.iter().map(|route| (&*route.name, &route.hits));
        routes.chain([(NO_ROUTE, &self.unmatched)])
    }

    /// Of each route, and of what none matched.
    pub fn report(&self) -> Vec<(String, u64)> {
        if self.routes.is_empty() {
            return Vec::new();
        }
        self.hits().map(|(name, hits)| (name.to_owned(), hits.get())).collect()
    }

    /// The way of a connection, counted. None: it is refused.
    pub fn find(&self, hello: &Hello) -> Option<Way<'_>> {
        let found = self.routes.iter().find(|route| route.matches(hello));
        let hits = found.map_or(&self.unmatched, |route| &route.hits);
        hits.set(hits.get() + 1);
        match found {
            Some(route) => Some(Way { route: Some(&route.name), pools: &route.pools }),
            None if self.unknown == UnknownSni::Refuse => None,
            None => Some(Way { route: None, pools: ONLY_DEFAULT }),
        }
    }

    /// Whether a client goes its way for want of a route, or of a name. Without routes any name is as good as another.
    pub fn are_missed(&self, hello: &Hello, way: Way<'_>) -> bool {
        way.route.is_none() && (hello.name.is_none() || !self.routes.is_empty())
    }
}

impl Route {
    fn matches(&self, hello: &Hello) -> bool {
        let Some(name) = &hello.name else { return false };
        self.names.iter().any(|it| it.matches(name.as_bytes()))
            && (self.alpn.is_empty() || hello.alpn.iter().any(|it| self.alpn.contains(it)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Passthrough, SniRoute};

    fn route(name: &str, names: &[&str], alpn: &[&str], pool: u16) -> SniRoute {
        let owned = |words: &[&str]| words.iter().map(|it| (*it).to_owned()).collect();
        let pools = vec![Share { pool, weight: 1 }];
        SniRoute { name: name.into(), names: owned(names), alpn: owned(alpn), pools }
    }

    fn hello(name: &str, alpn: &[&str]) -> Hello {
        let name = (!name.is_empty()).then(|| name.into());
        Hello { name, alpn: alpn.iter().map(|it| it.as_bytes().into()).collect() }
    }

    #[test]
    fn the_first_route_that_has_name_and_protocol_decides() {
        let told = Passthrough {
            routes: vec![
                route("h2", &["chat.example"], &["h2", "h3"], 1),
                route("chat", &["chat.example", "*.chat.example"], &[], 2),
                route("rest", &["*.example"], &[], 3),
            ],
            unknown_sni: UnknownSni::Default,
        };
        let routes = Routes::new(&told, None);
        for (name, alpn, pool) in [
            ("chat.example", &["http/1.1", "h2"][..], 1),
            ("chat.example", &["http/1.1"], 2),
            ("chat.example", &[], 2),
            ("a.chat.example", &["h2"], 2),
            ("a.b.chat.example", &[], 2),
            ("other.example", &[], 3),
            ("example", &[], 0),
            ("chat.example.org", &[], 0),
            ("", &["h2"], 0),
        ] {
            let hello = hello(name, alpn);
            let way = routes.find(&hello).unwrap();
            assert_eq!(routes.are_missed(&hello, way), pool == 0);
            assert_eq!(way.pools, [Share { pool, weight: 1 }], "{name:?} {alpn:?}");
        }
        let counts = [("h2", 1), ("chat", 4), ("rest", 1), (NO_ROUTE, 3)];
        assert_eq!(routes.report(), counts.map(|(name, n)| (name.to_owned(), n)));

        let none = Routes::new(&Passthrough { routes: Vec::new(), ..told.clone() }, None);
        for (name, missed) in [("chat.example", false), ("", true)] {
            let hello = hello(name, &[]);
            assert_eq!(none.are_missed(&hello, none.find(&hello).unwrap()), missed);
        }

        let refusing = Passthrough { unknown_sni: UnknownSni::Refuse, ..told };
        let routes = Routes::new(&refusing, Some(&routes));
        assert_eq!(routes.find(&hello("", &[])), None);
        assert!(routes.find(&hello("other.example", &[])).is_some());
        assert_eq!(routes.report()[2..], [("rest".to_owned(), 2), (NO_ROUTE.to_owned(), 4)]);
    }
}
