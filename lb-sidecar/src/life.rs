//! Who is connected to this worker, and whether it still takes requests: for the end of its life, and of a service's.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    os::fd::OwnedFd,
    rc::Rc,
};

use tokio::sync::Notify;

use crate::{
    access_log::AccessLog,
    client::Client,
    limits::{Place, sources::Permit},
    service::Service,
};

#[derive(Default)]
pub struct Life {
    retired: Cell<bool>,
    /// Relays are closed as well.
    drains: Cell<bool>,
    stopped: Cell<bool>,
    /// Connections that are open, relayed ones included.
    open: Cell<usize>,
    next: Cell<u64>,
    clients: RefCell<HashMap<u64, Rc<Client>>>,
    log: RefCell<Option<Rc<AccessLog>>>,
    /// The end may have come.
    changed: Notify,
}

impl Life {
    pub fn retired(&self) -> bool {
        self.retired.get()
    }

    /// Ends every connection that is not relayed, after its answer.
    pub fn retire(&self) {
        self.retired.set(true);
        self.close_soon(|_| true);
        self.changed.notify_waiters();
    }

    pub fn drains(&self) -> bool {
        self.drains.get()
    }

    /// From now on relays are closed too.
    pub fn drain(&self) {
        self.drains.set(true);
    }

    /// Ends everything now.
    pub fn stop(&self) {
        self.stopped.set(true);
        self.changed.notify_waiters();
    }

    /// Waits for the end: told to stop, or retired with nothing left open.
    pub async fn over(&self) {
        // Nothing else runs between the look and the wait: there is one thread.
        while !(self.stopped.get() || self.retired.get() && self.open.get() == 0) {
            self.changed.notified().await;
        }
    }

    /// Waits until it retires.
    pub async fn retirement(&self) {
        // As with the end.
        while !self.retired.get() {
            self.changed.notified().await;
        }
    }

    /// Ends every connection of a service that is not relayed, after its answer.
    pub fn close_service(&self, service: &Rc<Service>) {
        self.close_soon(|client| Rc::ptr_eq(&client.service, service));
    }

    fn close_soon(&self, which: impl Fn(&Client) -> bool) {
        for client in self.clients.borrow().values().filter(|client| which(client)) {
            client.close_soon();
        }
    }

    pub fn log(&self) -> Option<Rc<AccessLog>> {
        self.log.borrow().clone()
    }

    /// Access log lines go there from now on.
    pub fn log_to(&self, file: OwnedFd) -> std::io::Result<()> {
        let mut log = self.log.borrow_mut();
        match &*log {
            Some(log) => log.replace(file),
            None => *log = Some(AccessLog::new(file)?),
        }
        Ok(())
    }

    pub fn open(&self) -> usize {
        self.open.get()
    }
}

/// Stands for one open connection.
pub struct Open {
    life: Rc<Life>,
    number: u64,
    /// What its service has of it.
    place: Option<Place>,
    /// What its source has of it.
    permit: Option<Permit>,
}

impl Open {
    /// Of a connection that has just been accepted, whoever its client may be.
    pub fn new(life: &Rc<Life>) -> Self {
        let number = life.next.get();
        life.next.set(number + 1);
        life.open.set(life.open.get() + 1);
        Self { life: life.clone(), number, place: None, permit: None }
    }

    /// Its client may stay, and is told when connections are to end.
    pub fn admitted(&mut self, client: &Rc<Client>, place: Place, permit: Option<Permit>) {
        (self.place, self.permit) = (Some(place), permit);
        self.life.clients.borrow_mut().insert(self.number, client.clone());
        if self.life.retired() || client.service.removed.get() {
            client.close_soon();
        }
    }

    /// It is relayed from now on: whoever ends connections between requests has nothing to do with it.
    pub fn relayed(&self) {
        self.life.clients.borrow_mut().remove(&self.number);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.relayed();
        // Whoever waits for the end must find all of it told.
        (self.place, self.permit) = (None, None);
        self.life.open.set(self.life.open.get() - 1);
        if self.life.open.get() == 0 {
            self.life.changed.notify_waiters();
        }
    }
}
