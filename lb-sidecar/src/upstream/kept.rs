//! Connections to backends that wait for their next plain request.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    time::Duration,
};

use hyper::client::conn::http1::SendRequest;
use tokio::time::Instant;

use crate::body::RequestBody;

pub type Sender = SendRequest<RequestBody>;

/// How long an idle connection is kept. Shorter than what common servers allow (5 s and more), so that it is seldom the
/// server that closes first.
const IDLE: Duration = Duration::from_secs(4);

/// See the module.
pub struct Kept {
    most: Cell<usize>,
    /// The last one in is the first one out: it is the least likely to be closed.
    idle: RefCell<HashMap<SocketAddr, Vec<(Sender, Instant)>>>,
}

impl Kept {
    /// `most` to each backend.
    pub fn new(most: u32) -> Self {
        Self { most: Cell::new(most as usize), idle: RefCell::default() }
    }

    pub fn resize(&self, most: u32) {
        self.most.set(most as usize);
        for idle in self.idle.borrow_mut().values_mut() {
            idle.truncate(most as usize);
        }
    }

    /// Keeps a connection whose answer has ended, unless there are enough.
    pub fn put(&self, backend: SocketAddr, sender: Sender) {
        if sender.is_closed() || self.most.get() == 0 {
            return;
        }
        let mut idle = self.idle.borrow_mut();
        let idle = idle.entry(backend).or_default();
        if idle.len() >= self.most.get() {
            idle.remove(0);
        }
        idle.push((sender, Instant::now()));
    }

    /// A connection that is open and has nothing to do, as far as is known.
    pub fn take(&self, backend: SocketAddr) -> Option<Sender> {
        let mut idle = self.idle.borrow_mut();
        let idle = idle.get_mut(&backend)?;
        idle.retain(|(sender, _)| !sender.is_closed());
        let ready =
            idle.iter().rposition(|(sender, since)| sender.is_ready() && since.elapsed() < IDLE)?;
        Some(idle.remove(ready).0)
    }

    /// Closes what has been idle for too long.
    pub fn expire(&self) {
        self.idle.borrow_mut().retain(|_, idle| {
            idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
            !idle.is_empty()
        });
    }

    /// Closes all.
    pub fn clear(&self) {
        self.idle.borrow_mut().clear();
    }

    pub fn len(&self) -> usize {
        self.idle.borrow().values().map(Vec::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
