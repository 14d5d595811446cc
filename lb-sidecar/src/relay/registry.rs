//! Who is relayed, so that relays can be told to end: those of a backend that drains, or all of an edge that does.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    task::Waker,
};

use crate::pool::Backend;

/// How a relay is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// With a WebSocket Close frame of this status code where there are frames (RFC 6455, section 7.4.1), and a FIN.
    Close(u16),
    /// Now.
    Abort,
}

/// The relays of a service, oldest first.
#[derive(Default)]
pub struct Registry {
    relays: RefCell<BTreeMap<u64, Rc<Handle>>>,
    next: Cell<u64>,
}

/// A relay as those see it who may end it.
struct Handle {
    backend: Rc<Backend>,
    order: Cell<Option<Order>>,
    /// It is to close, whatever becomes of its backend.
    marked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A relay's place in the registry; it leaves when this is dropped.
pub struct Entry {
    registry: Rc<Registry>,
    id: u64,
    handle: Rc<Handle>,
}

impl Registry {
    /// A relay to this backend begins.
    pub fn enter(self: &Rc<Self>, backend: Rc<Backend>) -> Entry {
        let id = self.next.get();
        self.next.set(id + 1);
        let (order, marked, waker) = Default::default();
        let handle = Rc::new(Handle { backend, order, marked, waker });
        self.relays.borrow_mut().insert(id, Rc::clone(&handle));
        Entry { registry: Rc::clone(self), id, handle }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.relays.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relays.borrow().is_empty()
    }

    /// Notes those whose backend is meant, so that they close.
    pub fn mark(&self, meant: impl Fn(&Backend) -> bool) {
        let relays = self.relays.borrow();
        let meant = relays.values().filter(|handle| meant(&handle.backend));
        meant.for_each(|handle| handle.marked.set(true));
    }

    /// Tells the oldest relay that has not been told yet to close, of those that are marked or whose backend is meant.
    /// `false` if there is none.
    pub fn close_one(&self, code: u16, meant: impl Fn(&Backend) -> bool) -> bool {
        let relays = self.relays.borrow();
        let untold = |handle: &&Rc<Handle>| {
            handle.order.get().is_none() && (handle.marked.get() || meant(&handle.backend))
        };
        match relays.values().find(untold) {
            Some(handle) => {
                handle.tell(Order::Close(code));
                true
            }
            None => false,
        }
    }

    /// Ends all of them now.
    pub fn abort_all(&self) {
        self.relays.borrow().values().for_each(|handle| handle.tell(Order::Abort));
    }
}

impl Handle {
    fn tell(&self, order: Order) {
        self.order.set(Some(order));
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Entry {
    #[must_use]
    pub fn backend(&self) -> &Rc<Backend> {
        &self.handle.backend
    }

    /// What the relay was told, if it was.
    pub(super) fn order(&self) -> Option<Order> {
        self.handle.order.get()
    }

    /// Wakes this task when the relay is told something.
    pub(super) fn wake(&self, waker: &Waker) {
        let mut place = self.handle.waker.borrow_mut();
        if !place.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *place = Some(waker.clone());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.registry.relays.borrow_mut().remove(&self.id);
    }
}
