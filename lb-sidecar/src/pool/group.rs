//! One pool of a service: the backends that belong together, and what decides between them.

use std::{
    cell::Cell,
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use hyper::HeaderMap;

use super::{
    Ask, MOST_COOKIES, backend::Backend, balance, cookie, cookie::Signer, cookies, ring,
    ring::Ring, sticky::Sticky,
};
use crate::settings::{self, Affinity, Balance, Settings, State};

pub struct Group {
    balance: Balance,
    /// Some with [`Affinity::Cookie`].
    pub signer: Option<Signer>,
    backends: Vec<Rc<Backend>>,
    /// Somebody is up for new clients.
    pub up: bool,
    /// All with a weight count as up if nobody is in any of the pools that a request may go to.
    fail_open: bool,
    pub ring: Ring,
    turn: Cell<usize>,
}

/// A client that belongs to a backend.
pub struct Claim<'a> {
    pub backend: &'a Rc<Backend>,
    pub sticky: Sticky,
    /// Whether what the client has shows that well enough.
    pub keep: bool,
}

/// A client that belongs to no backend.
pub struct Unclaimed {
    pub sticky: Sticky,
    /// Its cookie was one of ours, if for another backend.
    pub is_ours: bool,
}

impl Group {
    /// The pool of a number with these backends of the service.
    pub fn new(
        settings: &Settings,
        service: &settings::Service,
        pool: Option<&settings::Pool>,
        backends: Vec<Rc<Backend>>,
        before: Option<&Self>,
    ) -> Self {
        balance::settle(&backends);
        let up = backends.iter().any(|it| it.state() == State::Up && it.weight() > 0);
        let open = service.fail_open && !backends.iter().any(|it| takes_new(it, false));
        let members = backends.iter().filter(|it| !matches!(it.state(), State::Draining { .. }));
        let members = members.map(|backend| (Rc::clone(backend), takes_new(backend, open)));
        Self {
            balance: pool.map_or(service.balance, |pool| pool.balance),
            signer: signer(settings, service, pool),
            up,
            fail_open: service.fail_open,
            ring: Ring::new(settings.hash_seed, members.collect(), before.map(|it| &it.ring)),
            turn: before.map(|before| before.turn.clone()).unwrap_or_default(),
            backends,
        }
    }

    /// The first cookie decides that holds and whose backend takes the request; without any, the first one says why.
    ///
    /// Not simply the first that holds: a browser may have two of different paths or domains, of which one can no more
    /// be replaced. Were its backend gone, the client would move with each request.
    pub fn by_cookie(
        &self,
        headers: &HeaderMap,
        open: bool,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
        now: SystemTime,
    ) -> Result<Claim<'_>, Unclaimed> {
        let nothing = |sticky| Unclaimed { sticky, is_ours: false };
        let signer = self.signer.as_ref().ok_or(nothing(Sticky::Off))?;
        let mut first = None;
        for value in cookies::values(headers, signer.name()).take(MOST_COOKIES) {
            let reason = match signer.read(value, now) {
                Err(sticky) => nothing(sticky),
                Ok(read) => match self.holder(read.backend, open, now) {
                    Ok(backend) if !was_tried(backend) => {
                        return Ok(Claim { backend, sticky: Sticky::Hit, keep: !read.stale });
                    }
                    Ok(_) => Unclaimed { sticky: Sticky::Failed, is_ours: true },
                    Err(sticky) => Unclaimed { sticky, is_ours: true },
                },
            };
            first.get_or_insert(reason);
        }
        Err(first.unwrap_or(nothing(Sticky::Missing)))
    }

    /// The backend of an id, if it still takes its own clients.
    fn holder(&self, id: cookie::Id, open: bool, now: SystemTime) -> Result<&Rc<Backend>, Sticky> {
        let mut backends = self.backends.iter();
        let found = backends.find(|backend| backend.cookie == Some(id));
        let backend = found.ok_or(Sticky::UnknownBackend)?;
        match backend.state() {
            State::Up | State::Spare => Ok(backend),
            State::Draining { until } if millis(now) < until => Ok(backend),
            State::Draining { .. } => Err(Sticky::Drained),
            State::Forced if backend.weight() > 0 && (self.up || open) => Ok(backend),
            State::Down if takes_new(backend, open && self.fail_open) => Ok(backend),
            State::Down | State::Forced => Err(Sticky::Down),
        }
    }

    /// Whether a backend that was picked before other settings came takes its client still.
    pub fn keeps(&self, backend: &Rc<Backend>, sticky: Sticky) -> bool {
        let takes = match backend.state() {
            State::Up | State::Spare | State::Forced => true,
            State::Draining { .. } => sticky == Sticky::Hit,
            State::Down => self.fail_open && !self.up,
        };
        takes && self.backends.iter().any(|it| Rc::ptr_eq(it, backend))
    }

    /// The backend that a value belongs to.
    pub fn by_value(
        &self,
        value: &[u8],
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
    ) -> Option<&Rc<Backend>> {
        self.ring.get(value, |backend| !was_tried(backend))
    }

    /// Whoever gets a client that belongs to nobody.
    pub fn balanced(
        &self,
        ask: &Ask<'_>,
        was_tried: &impl Fn(&Rc<Backend>) -> bool,
    ) -> Option<&Rc<Backend>> {
        let open = self.fail_open && !self.up;
        let may = |backend: &&Rc<Backend>| takes_new(backend, open) && !was_tried(backend);
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

/// Each pool has a cookie of its own: a client that uses two of them keeps its backend in both. That of the default pool
/// has the plain name.
fn signer(
    settings: &Settings,
    service: &settings::Service,
    pool: Option<&settings::Pool>,
) -> Option<Signer> {
    let Affinity::Cookie(cookie) = &service.affinity else { return None };
    let named = |pool: &settings::Pool| format!("{}.{}", cookie.name, pool.name);
    let name = pool.map_or_else(|| cookie.name.clone(), named);
    let cookie = settings::Cookie { name, ..cookie.clone() };
    Some(Signer::new(&service.name, &cookie, &settings.cookie_keys))
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

pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
