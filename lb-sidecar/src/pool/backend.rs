//! One backend as a worker sees it, and what it counts of it.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
};

use super::{cookie, tally::Tally};
use crate::{
    limits::queue::Queue,
    settings::{self, State},
};

/// A server behind a service. It stays the same through changes of its settings for as long as its id does, and lives
/// as long as somebody uses it, even if the settings have it no more.
#[derive(Debug)]
pub struct Backend {
    id: String,
    /// The id as cookies write it.
    pub(super) cookie: Option<cookie::Id>,
    name: RefCell<Rc<str>>,
    address: Cell<SocketAddr>,
    weight: Cell<u32>,
    state: Cell<State>,
    pool: Cell<u16>,
    live: Cell<u32>,
    others: Cell<u32>,
    /// What smooth weighted round robin owes it.
    pub(super) credit: Cell<i64>,
    /// Times that it was picked.
    pub picked: Cell<u64>,
    /// Connects and handshakes that failed.
    pub failed: Cell<u64>,
    /// Bytes from clients to it.
    pub bytes_in: Cell<u64>,
    /// Bytes from it to clients.
    pub bytes_out: Cell<u64>,
    /// Who waits for room.
    pub queue: Queue,
    /// Connections that it was to accept.
    pub connects: Tally,
    /// Requests that it was to answer; with a status of 5xx it has not.
    pub answers: Tally,
    /// Upgrades that it was to agree to, or to refuse as the client's mistake.
    pub handshakes: Tally,
}

impl Backend {
    pub(crate) fn new(settings: &settings::Backend) -> Rc<Self> {
        Rc::new(Self {
            id: settings.id.clone(),
            cookie: cookie::id(&settings.id),
            name: RefCell::new(settings.name.as_str().into()),
            address: Cell::new(settings.address),
            weight: Cell::new(settings.weight),
            state: Cell::new(settings.state),
            pool: Cell::new(settings.pool),
            live: Cell::default(),
            others: Cell::default(),
            credit: Cell::default(),
            picked: Cell::default(),
            failed: Cell::default(),
            bytes_in: Cell::default(),
            bytes_out: Cell::default(),
            queue: Queue::default(),
            connects: Tally::default(),
            answers: Tally::default(),
            handshakes: Tally::default(),
        })
    }

    pub(crate) fn update(&self, settings: &settings::Backend) {
        *self.name.borrow_mut() = settings.name.as_str().into();
        self.address.set(settings.address);
        self.weight.set(settings.weight);
        self.state.set(settings.state);
        self.pool.set(settings.pool);
    }

    /// See [`settings::Backend::id`].
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    #[must_use]
    pub fn name(&self) -> Rc<str> {
        Rc::clone(&self.name.borrow())
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address.get()
    }

    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.get()
    }

    #[must_use]
    pub fn state(&self) -> State {
        self.state.get()
    }

    /// See [`settings::Backend::pool`].
    #[must_use]
    pub fn pool(&self) -> u16 {
        self.pool.get()
    }

    /// Leases of this worker, without those that wait for room.
    #[must_use]
    pub fn live(&self) -> u32 {
        self.live.get().saturating_sub(self.queue.len())
    }

    /// The same of all workers, and what is spliced, as far as known.
    #[must_use]
    pub fn active(&self) -> u32 {
        self.live().saturating_add(self.others.get())
    }

    /// What other workers have, and what is spliced, as far as known.
    #[must_use]
    pub fn others(&self) -> u32 {
        self.others.get()
    }

    /// Leases of all workers, as far as known.
    #[must_use]
    pub fn load(&self) -> u32 {
        self.live.get().saturating_add(self.others.get())
    }

    pub(super) fn set_others(&self, live: u32) {
        self.others.set(live);
    }
}

/// Counts as one live connection of its backend until it is dropped.
#[derive(Debug)]
pub struct Lease(Rc<Backend>);

impl Lease {
    pub(super) fn new(backend: &Rc<Backend>) -> Self {
        backend.live.set(backend.live.get() + 1);
        Self(Rc::clone(backend))
    }

    #[must_use]
    pub fn backend(&self) -> &Rc<Backend> {
        &self.0
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get() - 1);
        self.0.queue.call();
    }
}
