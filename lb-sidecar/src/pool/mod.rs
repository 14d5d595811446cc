//! Which backend a request gets. The rules, as an operator reads them, are in `docs/affinity.md`.
//!
//! Knows headers and addresses, and no connection. What the time is, it is told.

mod backend;
mod balance;
mod cookie;
mod cookies;
mod ring;
mod sticky;
mod tally;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::{Rc, Weak},
    time::{SystemTime, UNIX_EPOCH},
};

use hyper::{HeaderMap, Uri, header::HeaderValue};

pub use backend::{Backend, Lease};
use cookie::Signer;
use ring::Ring;
pub use sticky::Sticky;
pub use tally::Tally;

use crate::settings::{self, Affinity, Balance, State};

/// Cookies of the name that are looked at in one request: each costs an HMAC.
const MOST_COOKIES: usize = 8;

/// The backends of a service, and what decides between them.
pub struct Pool(RefCell<Inner>);

struct Inner {
    affinity: Affinity,
    balance: Balance,
    /// Some with [`Affinity::Cookie`].
    signer: Option<Signer>,
    backends: Vec<Rc<Backend>>,
    /// Backends that were removed.
    gone: Vec<Weak<Backend>>,
    /// Nobody is up, and all with a weight count as up.
    open: bool,
    ring: Ring,
    turn: Cell<usize>,
}

/// A request that needs a backend.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    pub client: SocketAddr,
    pub headers: &'a HeaderMap,
    pub uri: &'a Uri,
}

/// A backend for a request.
#[derive(Debug)]
pub struct Picked {
    pub backend: Rc<Backend>,
    pub lease: Lease,
    pub sticky: Sticky,
    /// What the response must carry so that the client comes back to this backend.
    pub set_cookie: Option<HeaderValue>,
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
        balance::settle(&backends);
        let gone = known.values().map(Rc::downgrade).collect();
        let open = service.fail_open && !backends.iter().any(|backend| takes_new(backend, false));
        let members = backends.iter().filter(|it| !matches!(it.state(), State::Draining { .. }));
        let members = members.map(|backend| (Rc::clone(backend), takes_new(backend, open)));
        let ring = Ring::new(settings.hash_seed, members.collect(), before.map(|it| &it.ring));
        let signer = match &service.affinity {
            Affinity::Cookie(cookie) => {
                Some(Signer::new(&service.name, cookie, &settings.cookie_keys))
            }
            _ => None,
        };
        let turn = before.map(|before| before.turn.clone()).unwrap_or_default();
        let (affinity, balance) = (service.affinity.clone(), service.balance);
        Self { affinity, balance, signer, backends, gone, open, ring, turn }
    }

    /// All backends that are there, and those removed that somebody still uses.
    fn known(&self) -> impl Iterator<Item = Rc<Backend>> {
        self.backends.iter().cloned().chain(self.gone.iter().filter_map(Weak::upgrade))
    }

    fn pick(&self, ask: &Ask<'_>, tried: &[Rc<Backend>], now: SystemTime) -> Option<Picked> {
        let was_tried = |backend: &Rc<Backend>| tried.iter().any(|it| Rc::ptr_eq(it, backend));
        let claim = self.claim(ask, &was_tried, now);
        let (backend, sticky, keep) = match claim {
            Ok(Claim { backend, sticky, keep }) => (backend, sticky, keep),
            Err(sticky) => (self.balanced(ask, &was_tried)?, sticky, false),
        };
        let set_cookie = self
            .signer
            .as_ref()
            .filter(|_| !keep)
            .and_then(|signer| signer.set_cookie(backend.cookie?, now));
        backend.picked.set(backend.picked.get() + 1);
        let lease = Lease::new(backend);
        Some(Picked { backend: Rc::clone(backend), lease, sticky, set_cookie })
    }

    /// The backend that the client belongs to, or why it belongs to none.
    fn claim(
        &self,
        ask: &Ask<'_>,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
        now: SystemTime,
    ) -> Result<Claim<'_>, Sticky> {
        let source;
        let value = match &self.affinity {
            Affinity::None => return Err(Sticky::Off),
            Affinity::Cookie(_) => return self.by_cookie(ask.headers, was_tried, now),
            Affinity::Source => {
                source = ring::source_bytes(ask.client);
                Some(&source[..])
            }
            Affinity::AppCookie { name } => cookies::values(ask.headers, name).next(),
            Affinity::Header { name } => ask.headers.get(name).map(HeaderValue::as_bytes),
            Affinity::Query { name } => parameter(ask.uri, name),
        };
        let value = value.filter(|value| !value.is_empty()).ok_or(Sticky::Missing)?;
        let found = self.ring.get(value, |backend| !was_tried(backend));
        let backend = found.ok_or(Sticky::Failed)?;
        Ok(Claim { backend, sticky: Sticky::Keyed, keep: true })
    }

    /// The first cookie decides that holds and whose backend takes the request; without any, the first one says why.
    ///
    /// Not simply the first that holds: a browser may have two of different paths or domains, of which one can no more
    /// be replaced. Were its backend gone, the client would move with each request.
    fn by_cookie(
        &self,
        headers: &HeaderMap,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
        now: SystemTime,
    ) -> Result<Claim<'_>, Sticky> {
        let signer = self.signer.as_ref().ok_or(Sticky::Off)?;
        let mut first = None;
        for value in cookies::values(headers, signer.name()).take(MOST_COOKIES) {
            let claim = signer.read(value, now).and_then(|read| {
                let backend = self.holder(read.backend, now)?;
                match was_tried(backend) {
                    true => Err(Sticky::Failed),
                    false => Ok(Claim { backend, sticky: Sticky::Hit, keep: !read.stale }),
                }
            });
            match claim {
                Ok(claim) => return Ok(claim),
                Err(reason) => _ = first.get_or_insert(reason),
            }
        }
        Err(first.unwrap_or(Sticky::Missing))
    }

    /// The backend of an id, if it still takes its own clients.
    fn holder(&self, id: cookie::Id, now: SystemTime) -> Result<&Rc<Backend>, Sticky> {
        let mut backends = self.backends.iter();
        let found = backends.find(|backend| backend.cookie == Some(id));
        let backend = found.ok_or(Sticky::UnknownBackend)?;
        match backend.state() {
            State::Up | State::Spare => Ok(backend),
            State::Draining { until } if millis(now) < until => Ok(backend),
            State::Draining { .. } => Err(Sticky::Drained),
            State::Down | State::Forced if takes_new(backend, self.open) => Ok(backend),
            State::Down | State::Forced => Err(Sticky::Down),
        }
    }

    fn balanced(
        &self,
        ask: &Ask<'_>,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
    ) -> Option<&Rc<Backend>> {
        let may = |backend: &&Rc<Backend>| takes_new(backend, self.open) && !was_tried(backend);
        let candidates = self.backends.iter().filter(may);
        let found = match self.balance {
            Balance::RoundRobin => balance::round_robin(candidates),
            Balance::LeastConnections => balance::least_connections(candidates, &self.turn),
            Balance::Maglev => {
                let client = ring::bytes_of(ask.client);
                let found = self.ring.get(&client, |backend| !was_tried(backend));
                found.or_else(|| balance::least_connections(candidates, &self.turn))
            }
        };
        found.or_else(|| {
            let spare = |it: &&Rc<Backend>| it.state() == State::Spare && it.weight() > 0;
            let spares = self.backends.iter().filter(spare).filter(|it| !was_tried(it));
            balance::least_connections(spares, &self.turn)
        })
    }
}

/// A client that belongs to a backend.
struct Claim<'a> {
    backend: &'a Rc<Backend>,
    sticky: Sticky,
    /// Whether what the client has shows that well enough.
    keep: bool,
}

/// Whether a backend gets clients that belong to nobody.
fn takes_new(backend: &Backend, open: bool) -> bool {
    let up = match backend.state() {
        State::Up | State::Forced => true,
        State::Down => open,
        State::Spare | State::Draining { .. } => false,
    };
    up && backend.weight() > 0
}

/// The value of a parameter of the query, as it is written; the first one of the name.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a [u8]> {
    let mut pairs = uri.query()?.split('&').filter_map(|pair| pair.split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value.as_bytes())
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
