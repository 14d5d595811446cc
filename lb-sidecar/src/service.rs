//! A service as it runs: what it was told last, its backends and its counters. It stays the same through new settings.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use hyper::{header::HeaderName, server::conn::http1};

use crate::{
    control::{BackendReport, ServiceReport},
    forwarded::Trusted,
    limits,
    outcome::{Outcomes, Reason},
    pool::Pool,
    relay::registry::Registry,
    settings::{self, Settings},
    splice::Splicing,
    upstream::{Kept, Sources},
};

/// Settings of a service, made ready for use. A request keeps to the plan that it began with.
pub struct Plan {
    /// The edge's name.
    pub edge: Rc<str>,
    pub settings: settings::Service,
    pub trusted: Trusted,
    pub request_id: Option<HeaderName>,
    pub sources: Rc<Sources>,
    pub http: http1::Builder,
    /// Who speaks the PROXY protocol to this service.
    pub proxies: Trusted,
}

impl Plan {
    fn new(settings: &Settings, service: &settings::Service) -> Self {
        let head_bytes = service.http.head_bytes as usize;
        let mut http = http1::Builder::new();
        // The end of what the client sends is not the end of what it waits for.
        http.half_close(true)
            .header_read_timeout(None)
            .max_header_size(head_bytes)
            .max_buf_size(head_bytes.max(64 << 10));
        Self {
            edge: settings.edge.as_str().into(),
            settings: service.clone(),
            trusted: Trusted::new(&service.forwarded.trusted),
            request_id: service.forwarded.request_id.as_ref().and_then(|name| name.parse().ok()),
            sources: Rc::new(Sources::new(
                &settings.source_addresses,
                service.http.tcp_keepalive,
                service.http.tcp_user_timeout,
            )),
            http,
            proxies: Trusted::new(&service.proxy_protocol.accept),
        }
    }
}

pub struct Service {
    pub name: String,
    plan: RefCell<Rc<Plan>>,
    pub pool: Rc<Pool>,
    pub kept: Rc<Kept>,
    pub outcomes: Rc<Outcomes>,
    pub splicing: Rc<Splicing>,
    /// Client connections, relayed ones included.
    pub connections: Cell<u64>,
    pub relays: Rc<Registry>,
    /// Relays are being closed at the service's pace.
    pub pacing: Cell<bool>,
    /// It is not among the settings any more: its connections end with their next answer.
    pub removed: Cell<bool>,
    /// What each source has open.
    pub sources: limits::sources::Sources,
}

impl Service {
    pub fn new(
        settings: &Settings,
        service: &settings::Service,
        splicing: &Rc<Splicing>,
    ) -> Rc<Self> {
        Rc::new(Self {
            name: service.name.clone(),
            plan: RefCell::new(Rc::new(Plan::new(settings, service))),
            pool: Pool::new(settings, service),
            kept: Rc::new(Kept::new(service.http.pool)),
            outcomes: Rc::default(),
            splicing: Rc::clone(splicing),
            connections: Cell::new(0),
            relays: Rc::default(),
            pacing: Cell::new(false),
            removed: Cell::new(false),
            sources: limits::sources::Sources::default(),
        })
    }

    /// In force for every request from now on.
    pub fn update(&self, settings: &Settings, service: &settings::Service) {
        *self.plan.borrow_mut() = Rc::new(Plan::new(settings, service));
        self.pool.update(settings, service);
        self.kept.resize(service.http.pool);
        self.removed.set(false);
    }

    pub fn plan(&self) -> Rc<Plan> {
        self.plan.borrow().clone()
    }

    pub fn count(&self, reason: impl Into<Reason>) {
        self.outcomes.count(reason);
    }

    pub fn report(&self) -> ServiceReport {
        ServiceReport {
            name: self.name.clone(),
            connections: self.connections.get(),
            relayed: self.relays.len() as u64,
            outcomes: self.outcomes.report().collect(),
            backends: self
                .pool
                .backends()
                .iter()
                .map(|b| BackendReport {
                    id: b.id().to_owned(),
                    live: b.live(),
                    picked: b.picked.get(),
                    failed: b.failed.get(),
                    bytes_in: b.bytes_in.get(),
                    bytes_out: b.bytes_out.get(),
                    connects: b.connects.report(),
                    answers: b.answers.report(),
                    handshakes: b.handshakes.report(),
                })
                .collect(),
        }
    }
}
