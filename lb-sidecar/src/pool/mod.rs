//! Which backend a request gets. The rules, as an operator reads them, are in `docs/affinity.md`.
//!
//! Knows headers and addresses, and no connection. What the time is, it is told.

mod backend;
mod balance;
mod cookie;
mod cookies;
mod group;
mod ring;
mod shares;
mod sticky;
mod tally;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::SystemTime,
};

use hyper::{HeaderMap, Uri, header::HeaderValue};

pub use backend::{Backend, Lease};
use group::{Claim, Group};
pub use sticky::Sticky;
pub use tally::Tally;

use crate::settings::{self, Affinity, Share};

/// Cookies of the name that are looked at in one request: each costs an HMAC.
const MOST_COOKIES: usize = 8;

/// Shares of a service without routes.
pub const ONLY_DEFAULT: &[Share] = &[Share { pool: 0, weight: 1 }];

/// The backends of a service, and what decides between them: between its pools first, if a request may go to several.
pub struct Pool(RefCell<Inner>);

struct Inner {
    affinity: Affinity,
    /// Of all pools, in the order of the settings.
    backends: Vec<Rc<Backend>>,
    /// Backends that were removed.
    gone: Vec<Weak<Backend>>,
    /// By [`Share::pool`].
    groups: Vec<Group>,
    turns: shares::Turns,
    /// How many settings there were before.
    revision: u64,
}

/// A request that needs a backend.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub client: SocketAddr,
    pub headers: &'a HeaderMap,
    pub uri: &'a Uri,
    /// The pools that it may go to, see [`Action::Pools`](settings::Action::Pools).
    pub pools: &'a [Share],
}

/// A backend for a request.
#[derive(Debug)]
pub struct Picked {
    pub backend: Rc<Backend>,
    pub lease: Lease,
    pub sticky: Sticky,
    /// What the response must carry so that the client comes back to this backend.
    pub set_cookie: Option<HeaderValue>,
    /// By which settings.
    revision: u64,
}

impl Pool {
    #[must_use]
    pub fn new(settings: &settings::Settings, service: &settings::Service) -> Rc<Self> {
        Rc::new(Self(RefCell::new(Inner::new(settings, service, None))))
    }

    /// Other settings from now on. Backends stay the same ones, with all that is counted, as long as their ids do, even
    /// if they come back while somebody still uses them.
    pub fn update(&self, settings: &settings::Settings, service: &settings::Service) {
        let mut inner = self.0.borrow_mut();
        *inner = Inner::new(settings, service, Some(&inner));
        inner.known().for_each(|backend| backend.queue.call_all());
    }

    /// What other workers have open, by the backends' ids; whoever is missing has none.
    pub fn others(&self, live: &HashMap<String, u32>) {
        for backend in &self.0.borrow().backends {
            backend.set_others(live.get(backend.id()).copied().unwrap_or(0));
        }
    }

    /// All backends of the settings, in their order.
    #[must_use]
    pub fn backends(&self) -> Vec<Rc<Backend>> {
        self.0.borrow().backends.clone()
    }

    /// Whether a backend would still get the client that it was picked for. Without other settings it does, or whoever
    /// picks again would do so for ever.
    #[must_use]
    pub fn keeps(&self, picked: &Picked) -> bool {
        let inner = self.0.borrow();
        let group = inner.groups.get(usize::from(picked.backend.pool()));
        picked.revision == inner.revision
            || group.is_some_and(|it| it.keeps(&picked.backend, picked.sticky))
    }

    /// A backend that can take the request and is none of `tried`; `None` if there is none.
    #[must_use]
    pub fn pick(&self, ask: &Ask<'_>, tried: &[Rc<Backend>], now: SystemTime) -> Option<Picked> {
        self.0.borrow().pick(ask, tried, now)
    }
}

impl Inner {
    fn new(
        settings: &settings::Settings,
        service: &settings::Service,
        before: Option<&Self>,
    ) -> Self {
        let known = before.into_iter().flat_map(Self::known);
        let mut known: HashMap<String, Rc<Backend>> =
            known.map(|backend| (backend.id().to_owned(), backend)).collect();
        let backends = service.backends.iter().map(|settings| match known.remove(&settings.id) {
            Some(known) => {
                known.update(settings);
                known
            }
            None => Backend::new(settings),
        });
        let backends: Vec<Rc<Backend>> = backends.collect();
        let gone = known.values().map(Rc::downgrade).collect();
        let pools = std::iter::once(None).chain(service.pools.iter().map(Some)).enumerate();
        let groups = pools.map(|(n, pool)| {
            let members = backends.iter().filter(|it| usize::from(it.pool()) == n).cloned();
            let before = before.and_then(|before| before.groups.get(n));
            Group::new(settings, service, pool, members.collect(), before)
        });
        let groups = groups.collect();
        let turns = before.map(|before| before.turns.clone()).unwrap_or_default();
        let revision = before.map_or(0, |before| before.revision + 1);
        Self { affinity: service.affinity.clone(), backends, gone, groups, turns, revision }
    }

    /// All backends that are there, and those removed that somebody still uses.
    fn known(&self) -> impl Iterator<Item = Rc<Backend>> {
        self.backends.iter().cloned().chain(self.gone.iter().filter_map(Weak::upgrade))
    }

    fn pick(&self, ask: &Ask<'_>, tried: &[Rc<Backend>], now: SystemTime) -> Option<Picked> {
        let was_tried = |backend: &Rc<Backend>| tried.iter().any(|it| Rc::ptr_eq(it, backend));
        let (Claim { backend, sticky, keep }, signer) = match self.claim(ask, &was_tried, now) {
            Ok((group, claim)) => (claim, &group.signer),
            Err((sticky, home)) => {
                let home = home.or_else(|| tried.last().map(|it| it.pool()));
                let mut groups = self.of_newcomers(ask.pools, home);
                let (group, backend) =
                    groups.find_map(|group| Some((group, group.balanced(ask, &was_tried)?)))?;
                (Claim { backend, sticky, keep: false }, &group.signer)
            }
        };
        let set_cookie = signer
            .as_ref()
            .filter(|_| !keep)
            .and_then(|signer| signer.set_cookie(backend.cookie?, now));
        backend.picked.set(backend.picked.get() + 1);
        let lease = Lease::new(backend);
        let revision = self.revision;
        Some(Picked { backend: Rc::clone(backend), lease, sticky, set_cookie, revision })
    }

    /// The pools for a client that belongs to no backend, in the order in which they are tried: the one that it was in,
    /// if it is in any, else one by the shares.
    fn of_newcomers(&self, shares: &[Share], home: Option<u16>) -> impl Iterator<Item = &Group> {
        let first = match shares {
            [_] => 0,
            _ => shares::place_of(shares, home).unwrap_or_else(|| self.turns.next(shares)),
        };
        self.groups_from(shares, first)
    }

    /// The pools of some shares, one of them first. Those where somebody is up come before those that fail open.
    fn groups_from(&self, shares: &[Share], first: usize) -> impl Iterator<Item = &Group> {
        let of = move |up| {
            let groups = shares::from(shares, first).filter_map(|it| self.group(it));
            groups.filter(move |it| it.up == up)
        };
        of(true).chain(of(false))
    }

    fn group(&self, share: &Share) -> Option<&Group> {
        self.groups.get(usize::from(share.pool))
    }

    /// The backend that the client belongs to, or why it belongs to none, and then which pool it was in.
    fn claim(
        &self,
        ask: &Ask<'_>,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
        now: SystemTime,
    ) -> Result<(&Group, Claim<'_>), (Sticky, Option<u16>)> {
        let source;
        let value = match &self.affinity {
            Affinity::None => return Err((Sticky::Off, None)),
            Affinity::Cookie(_) => return self.by_cookie(ask, was_tried, now),
            Affinity::Source => {
                source = ring::source_bytes(ask.client);
                Some(&source[..])
            }
            Affinity::AppCookie { name } => cookies::values(ask.headers, name).next(),
            Affinity::Header { name } => ask.headers.get(name).map(HeaderValue::as_bytes),
            Affinity::Query { name } => parameter(ask.uri, name),
        };
        let value = value.filter(|value| !value.is_empty()).ok_or((Sticky::Missing, None))?;
        let first = match (ask.pools, self.groups.first()) {
            ([_], _) | (_, None) => 0,
            (shares, Some(group)) => shares::at(shares, group.ring.point(value)),
        };
        let mut groups = self.groups_from(ask.pools, first);
        let found = groups.find_map(|group| Some((group, group.by_value(value, was_tried)?)));
        let (group, backend) = found.ok_or((Sticky::Failed, None))?;
        Ok((group, Claim { backend, sticky: Sticky::Keyed, keep: true }))
    }

    /// By the cookies of the pools, in their order; without any that decides, the first one says why.
    fn by_cookie(
        &self,
        ask: &Ask<'_>,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
        now: SystemTime,
    ) -> Result<(&Group, Claim<'_>), (Sticky, Option<u16>)> {
        let groups = || ask.pools.iter().filter_map(|it| Some((it, self.group(it)?)));
        let open = !groups().any(|(share, group)| group.up && share.weight > 0);
        let (mut why, mut home) = (Sticky::Missing, None);
        for (share, group) in groups() {
            match group.by_cookie(ask.headers, open, was_tried, now) {
                Ok(claim) => return Ok((group, claim)),
                Err(unclaimed) => {
                    if why == Sticky::Missing {
                        why = unclaimed.sticky;
                    }
                    if unclaimed.is_ours && home.is_none() {
                        home = Some(share.pool);
                    }
                }
            }
        }
        Err((why, home))
    }
}

/// The value of a parameter of the query, as it is written; the first one of the name.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a [u8]> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}
