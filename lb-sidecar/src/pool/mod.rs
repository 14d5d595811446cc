//! Stand-in until the real one is here.
use crate::settings;
use hyper::{HeaderMap, Uri, header::HeaderValue};
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    time::SystemTime,
};
pub struct Pool {
    backends: RefCell<Vec<Rc<Backend>>>,
    next: Cell<usize>,
}
pub struct Ask<'a> {
    pub client: SocketAddr,
    pub headers: &'a HeaderMap,
    pub uri: &'a Uri,
}
pub struct Picked {
    pub backend: Rc<Backend>,
    pub lease: Lease,
    pub set_cookie: Option<HeaderValue>,
}
pub struct Lease(Rc<Backend>);
impl Drop for Lease {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get() - 1);
    }
}
pub struct Backend {
    pub name: String,
    pub id: String,
    pub address: Cell<SocketAddr>,
    pub live: Cell<u32>,
    pub picked: Cell<u64>,
    pub failed: Cell<u64>,
    pub bytes_in: Cell<u64>,
    pub bytes_out: Cell<u64>,
}
impl Pool {
    pub fn new(settings: &settings::Settings, service: &settings::Service) -> Rc<Pool> {
        let pool = Rc::new(Pool { backends: RefCell::default(), next: Cell::new(0) });
        pool.update(settings, service);
        pool
    }
    pub fn update(&self, _: &settings::Settings, service: &settings::Service) {
        *self.backends.borrow_mut() = service
            .backends
            .iter()
            .map(|b| {
                Rc::new(Backend {
                    name: b.name.clone(),
                    id: b.id.clone(),
                    address: Cell::new(b.address),
                    live: Cell::default(),
                    picked: Cell::default(),
                    failed: Cell::default(),
                    bytes_in: Cell::default(),
                    bytes_out: Cell::default(),
                })
            })
            .collect();
    }
    pub fn others(&self, _: &HashMap<String, u32>) {}
    pub fn pick(&self, _: &Ask<'_>, tried: &[Rc<Backend>], _: SystemTime) -> Option<Picked> {
        let backends = self.backends.borrow();
        for _ in 0..backends.len() {
            let b = &backends[self.next.get() % backends.len()];
            self.next.set(self.next.get() + 1);
            if tried.iter().any(|t| t.id == b.id) {
                continue;
            }
            b.live.set(b.live.get() + 1);
            b.picked.set(b.picked.get() + 1);
            return Some(Picked { backend: b.clone(), lease: Lease(b.clone()), set_cookie: None });
        }
        None
    }
    pub fn backends(&self) -> Vec<Rc<Backend>> {
        self.backends.borrow().clone()
    }
}
