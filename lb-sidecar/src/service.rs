//! A service as it runs: what it was told last, its backends and its counters. It stays the same through new settings.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    ptr,
    rc::Rc,
    sync::Arc,
};

use hyper::{header::HeaderName, server::conn::http1};
use rustls::{ClientConfig, ServerConfig};
use tracing::error;

use crate::{
    control::{BackendReport, ServiceReport},
    forwarded::Trusted,
    limits::{self, arrivals::Arrivals},
    outcome::{Outcomes, Reason},
    passthrough,
    pool::Pool,
    relay::registry::Registry,
    routing::Routes,
    settings::{self, DEFAULT_POOL, Settings, Share},
    splice::Splicing,
    times::Times,
    tls,
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
    pub routes: Routes,
    /// Where TLS goes that is passed on.
    pub passthrough: Option<passthrough::Routes>,
    /// Who speaks the PROXY protocol to this service.
    pub proxies: Trusted,
    /// TLS with clients, if they come by it.
    pub tls: Option<ClientTls>,
    /// TLS with the backends. `None` inside: it could not be made of the settings, and nobody is reached.
    pub backend_tls: Option<Option<Arc<ClientConfig>>>,
}

/// How clients are served that come by TLS.
pub struct ClientTls {
    /// None if it could not be made of the settings: then nobody is served.
    pub config: Option<Arc<ServerConfig>>,
    /// The keys that its tickets are sealed with.
    ticket_keys: Vec<settings::TicketKey>,
    /// The header for the subject of the client's certificate.
    pub subject: Option<HeaderName>,
}

impl Plan {
    /// `before`: whose parts are taken over where they would be the same.
    fn new(settings: &Settings, service: &settings::Service, before: Option<&Plan>) -> Self {
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
            routes: Routes::new(&service.routes, before.map(|before| &before.routes)),
            passthrough: service.passthrough.as_ref().map(|told| {
                passthrough::Routes::new(told, before.and_then(|it| it.passthrough.as_ref()))
            }),
            proxies: Trusted::new(&service.proxy_protocol.accept),
            tls: ClientTls::new(settings, service, before),
            backend_tls: backend_tls(service, before),
        }
    }

    /// How many requests each route had, or connections.
    fn report(&self) -> Vec<(String, u64)> {
        match &self.passthrough {
            Some(routes) => routes.report(),
            None => self.routes.report(),
        }
    }

    /// The name of a pool, if the service has several.
    pub fn pool_name(&self, pool: u16) -> Option<&str> {
        let pools = &self.settings.pools;
        match pool.checked_sub(1) {
            Some(place) => pools.get(usize::from(place)).map(|pool| pool.name.as_str()),
            None => (!pools.is_empty()).then_some(DEFAULT_POOL),
        }
    }

    /// Shares of a former plan by the numbers that its pools have here; without those that are not here any more.
    pub fn shares<'a>(&self, before: &Plan, shares: &'a [Share]) -> Cow<'a, [Share]> {
        let (pools, old) = (&self.settings.pools, &before.settings.pools);
        let same = || pools.iter().map(|it| &it.name).eq(old.iter().map(|it| &it.name));
        if ptr::eq(self, before) || same() {
            return Cow::Borrowed(shares);
        }
        let number = |pool: u16| {
            let Some(place) = pool.checked_sub(1) else { return Some(pool) };
            let name = &old.get(usize::from(place))?.name;
            let place = pools.iter().position(|it| it.name == *name)?;
            u16::try_from(place + 1).ok()
        };
        let here = shares.iter().filter_map(|it| Some(Share { pool: number(it.pool)?, ..*it }));
        let mut here: Vec<Share> = here.collect();
        here.sort_unstable_by_key(|it| it.pool);
        Cow::Owned(here)
    }
}

fn backend_tls(
    service: &settings::Service,
    before: Option<&Plan>,
) -> Option<Option<Arc<ClientConfig>>> {
    let told = service.backend_tls.as_ref()?;
    let known = before.filter(|it| it.settings.backend_tls.as_ref() == Some(told));
    if let Some(known) = known {
        return known.backend_tls.clone();
    }
    let made = tls::client_config(told);
    Some(
        made.inspect_err(|error| error!("service {:?}: backend_tls: {error:#}", service.name)).ok(),
    )
}

impl ClientTls {
    fn new(
        settings: &Settings,
        service: &settings::Service,
        before: Option<&Plan>,
    ) -> Option<Self> {
        let told = service.tls.as_ref()?;
        let known = before.filter(|it| it.settings.tls.as_ref() == Some(told));
        let known = known.and_then(|it| it.tls.as_ref());
        let known = known.filter(|it| it.ticket_keys == settings.ticket_keys);
        // To read keys costs milliseconds, and settings come with each change of a backend's health.
        let config = match known.and_then(|it| it.config.clone()) {
            Some(config) => Some(config),
            None => tls::config(&service.name, told, &settings.ticket_keys)
                .inspect_err(|error| error!("service {:?}: tls: {error:#}", service.name))
                .ok(),
        };
        let header = told.client_auth.as_ref().and_then(|auth| auth.header.as_ref());
        Some(Self {
            config,
            ticket_keys: settings.ticket_keys.clone(),
            subject: header.and_then(|name| name.parse().ok()),
        })
    }
}

pub struct Service {
    pub name: String,
    plan: RefCell<Rc<Plan>>,
    pub pool: Rc<Pool>,
    pub kept: Rc<Kept>,
    pub outcomes: Rc<Outcomes>,
    pub times: Times,
    pub splicing: Rc<Splicing>,
    /// Client connections, relayed ones included.
    pub connections: Cell<u64>,
    pub relays: Rc<Registry>,
    /// Relays are being closed at the service's pace.
    pub pacing: Cell<bool>,
    /// It is not among the settings any more: its connections end with their next answer.
    pub removed: Cell<bool>,
    /// How fast connections come.
    pub arrivals: Arrivals,
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
            plan: RefCell::new(Rc::new(Plan::new(settings, service, None))),
            pool: Pool::new(settings, service),
            kept: Rc::new(Kept::new(service.http.pool)),
            outcomes: Rc::default(),
            times: Times::default(),
            splicing: Rc::clone(splicing),
            connections: Cell::new(0),
            relays: Rc::default(),
            pacing: Cell::new(false),
            removed: Cell::new(false),
            arrivals: Arrivals::default(),
            sources: limits::sources::Sources::default(),
        })
    }

    /// In force for every request from now on.
    pub fn update(&self, settings: &Settings, service: &settings::Service) {
        let before = self.plan();
        let plan = Plan::new(settings, service, Some(&before));
        if before.settings.backend_tls != service.backend_tls {
            // They are not what backends are to be spoken to by.
            self.kept.clear();
        }
        *self.plan.borrow_mut() = Rc::new(plan);
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
            routes: self.plan().report(),
            times: self.times.report(),
        }
    }
}
