//! What the agent shows of itself: a picture that it renews with each change, and the numbers that are read when
//! somebody asks.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::Result;
use lb_common::{
    counters::BackendCounters,
    outcome::{DropReason, Event, NO_SERVICE},
    ring::SLOTS,
};
use lb_sidecar::settings::CookieKey;
use tokio::{sync::watch, time::Instant};

use super::{
    checks::key,
    drains::Drains,
    ended::Log,
    input::World,
    interfaces,
    status::{
        Backend, Certificate, Flows, Health, Interface, LastProbe, Outcomes, Service, Status,
        Table, Traffic,
    },
    sweeper::Report,
    upgrade::succession::Told,
    view_flows,
    view_l7::{self, Drain, L7Picture},
    view_xdp,
    why::{Around, why},
};
use crate::{
    bpf::{Counters, Mode, PinDir, counters, specs::names},
    config::{self, Affinity, Config, Forward},
    events::Events,
    health::{self, StatusView},
    netlink::NetState,
    overrides::Overrides,
    sidecar::{Sidecar, certificates::Expiry},
    state::{
        Ring,
        desired::{Desired, Pool},
        ids::Ids,
    },
};

/// What the admin API shows; cheap to clone.
#[derive(Clone)]
pub struct View(Arc<Shared>);

struct Shared {
    start: Instant,
    started: SystemTime,
    edge: String,
    /// Of the program before in this process, if there was one.
    told: Option<Told>,
    ready: AtomicBool,
    events: Events,
    picture: Mutex<Arc<Picture>>,
}

/// All but what is read at the moment of asking.
#[derive(Default)]
pub struct Picture {
    pub program_id: u32,
    pub adopted: bool,
    pub config_generation: u64,
    pub config_taken: Option<SystemTime>,
    pub config_refused: Option<String>,
    pub certificates_refused: Option<String>,
    pub interfaces: interfaces::Interfaces,
    pub services: Arc<Vec<ServicePicture>>,
    pub l7: Arc<Vec<L7Picture>>,
    pub sidecar: Sidecar,
    pub drain: Option<Drain>,
    pub log: Log,
    pub sources: Option<Sources>,
    /// Clients are still taken, and routers are told not to send more.
    pub withdrawing: bool,
    pub expiries: Vec<Expiry>,
}

/// Where the numbers are.
#[derive(Clone)]
pub struct Sources {
    pub pins: PinDir,
    pub health: StatusView,
    pub reports: watch::Receiver<Arc<Report>>,
    /// In force.
    pub config: Arc<Config>,
    /// Of the cookies.
    pub keys: Arc<Vec<CookieKey>>,
    /// What it was made of.
    pub made_of: Arc<MadeOf>,
}

/// The file and what was changed while the edge ran.
pub struct MadeOf {
    pub file: Config,
    /// As it stands in the file.
    pub text: String,
    pub overrides: Overrides,
}

/// A service as it was last written to the maps.
pub struct ServicePicture {
    pub config: config::Service,
    pub id: u16,
    pub on_host: BTreeSet<std::net::IpAddr>,
    pub rings: [Option<Ring>; 2],
    /// How many slots of each ring a backend has, once somebody has asked: counting them takes as long as all else.
    pub slots: OnceLock<[Option<BTreeMap<u16, u32>>; 2]>,
    pub fail_open: bool,
    pub turned_away: bool,
    /// With zones.
    pub spilling: Option<bool>,
    /// Id and weight of each backend, in the order of the configuration.
    pub backends: Vec<(u16, u32)>,
    /// Until when those of them that drain do, likewise.
    pub draining: Vec<Option<u64>>,
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn certificate(expiry: &Expiry) -> Certificate {
    Certificate {
        service: expiry.service.clone(),
        certificate: expiry.certificate.display().to_string(),
        not_after: expiry.not_after,
    }
}

impl View {
    /// Of an agent that is starting.
    #[must_use]
    pub fn new(edge: &str) -> Self {
        Self::after(edge, None)
    }

    /// Of an agent that another one has left its process to.
    #[must_use]
    pub fn after(edge: &str, told: Option<Told>) -> Self {
        Self(Arc::new(Shared {
            start: Instant::now(),
            started: SystemTime::now(),
            edge: edge.to_owned(),
            told,
            ready: AtomicBool::new(false),
            events: Events::default(),
            picture: Mutex::default(),
        }))
    }

    /// What has happened.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.events
    }

    /// What the program before in this process has said.
    #[must_use]
    pub fn told(&self) -> Option<&Told> {
        self.0.told.as_ref()
    }

    /// The data plane is attached and has the configuration.
    pub fn set_ready(&self) {
        self.0.ready.store(true, Ordering::Release);
    }

    /// Whether that is so.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// Whether the edge gives its clients up, or is going to.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        let picture = self.picture();
        picture.drain.is_some() || picture.withdrawing
    }

    /// What is shown now.
    #[must_use]
    pub fn picture(&self) -> Arc<Picture> {
        self.0.picture.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Shows another picture from now on.
    pub fn show(&self, picture: Picture) {
        *self.0.picture.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(picture);
    }

    /// The status now. Reads the counters of each service and backend, a system call each.
    pub fn status(&self) -> Result<Status> {
        let picture = self.picture();
        let mut status = Status {
            edge: self.0.edge.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            ready: self.is_ready(),
            draining: picture.drain.map(|drain| view_l7::draining(drain, &picture.sidecar)),
            uptime_seconds: self.0.start.elapsed().as_secs(),
            upgrade: self.0.told.as_ref().map(Into::into),
            started: unix_seconds(self.0.started),
            program_id: picture.program_id,
            adopted: picture.adopted,
            config_generation: picture.config_generation,
            config_taken: picture.config_taken.map_or(0, unix_seconds),
            config_refused: picture.config_refused.clone(),
            certificates_refused: picture.certificates_refused.clone(),
            interfaces: picture.interfaces.iter().map(interface).collect(),
            services: Vec::new(),
            outcomes: Outcomes::default(),
            flows: Flows::default(),
            sidecar: view_l7::sidecar(&picture.sidecar),
            tables: Vec::new(),
            certificates: picture.expiries.iter().map(certificate).collect(),
            handshakes: BTreeMap::new(),
            xdp_runs: None,
        };
        let Some(sources) = &picture.sources else { return Ok(status) };
        let counters = Counters::open(&sources.pins)?;
        let health = sources.health.snapshot();
        let report = sources.reports.borrow().clone();
        for service in picture.services.iter() {
            status.services.push(service_status(service, &counters, &health, &report)?);
        }
        for service in picture.l7.iter() {
            let mut shown = view_l7::service_status(service, &picture.sidecar, &health);
            add_traffic(&mut shown, &counters)?;
            view_flows::of_l7(&mut shown, &report.loads);
            let ended = report.ended.get(&shown.name).into_iter().flatten();
            shown.ended = ended.map(|(how, count)| (how.label().to_owned(), *count)).collect();
            status.services.push(shown);
        }
        if let Some(sidecar) = &mut status.sidecar {
            sidecar.log_lines_lost += picture.log.lost();
        }
        let places: BTreeMap<&str, usize> =
            (0..).zip(&sources.config.services).map(|(n, it)| (it.name.as_str(), n)).collect();
        status.services.sort_by_key(|it| places.get(it.name.as_str()).copied());
        let l4 = picture.services.iter().map(|it| (it.id, it.config.name.as_str()));
        let l7 = picture.l7.iter().map(|it| (it.id, it.config.name.as_str()));
        status.handshakes = view_xdp::handshakes(&sources.pins, l4.chain(l7))?;
        status.xdp_runs = view_xdp::runs(&sources.pins)?;
        status.outcomes = outcomes(&counters.service(NO_SERVICE)?);
        let totals = report.totals;
        status.flows = Flows {
            expired: totals.expired,
            closed: totals.closed,
            abandoned: totals.abandoned,
            orphans: totals.orphans,
            reset: totals.reset,
            drained: totals.drained,
            unsent_resets: totals.unsent,
        };
        status.tables = tables(&sources.config.edge.tables, &report);
        Ok(status)
    }
}

/// The services as the maps have them from now on.
#[must_use]
pub fn services(
    world: World<'_>,
    drains: &Drains,
    ids: &Ids,
    desired: &Desired,
) -> Vec<ServicePicture> {
    let World { config, liveness, network, now, .. } = world;
    let in_any = |pools: &[Pool], name: &str| pools.iter().any(|pool| pool.service == name);
    let services = config.l4().filter_map(|service| {
        let id = ids.service(&service.name)?;
        let backends = service.backends.iter().filter_map(|backend| {
            let key = key(&service.name, backend);
            let slow_start = service.health.slow_start;
            let weight = match liveness.is_live(&key) {
                true => liveness.weight(&key, backend.weight, slow_start, now),
                false => 0,
            };
            Some((ids.backend(id, backend.address)?, weight))
        });
        let until = |backend: &config::Backend| drains.until(&service.name, &backend.name);
        Some(ServicePicture {
            id,
            draining: service.backends.iter().map(until).collect(),
            on_host: on_host(service, network),
            rings: desired.services.get(&id).map(|it| it.rings.clone()).unwrap_or_default(),
            slots: OnceLock::new(),
            fail_open: in_any(&desired.fail_open, &service.name),
            turned_away: in_any(&desired.empty, &service.name),
            spilling: service.zones.map(|_| in_any(&desired.spilling, &service.name)),
            backends: backends.collect(),
            config: service.clone(),
        })
    });
    services.collect()
}

pub fn on_host(service: &config::Service, network: &NetState) -> BTreeSet<std::net::IpAddr> {
    let addresses = network.addresses.iter().map(|it| it.addr);
    addresses.filter(|addr| service.listen.iter().any(|it| it.ip() == *addr)).collect()
}

fn interface((name, state): (&str, &interfaces::State)) -> Interface {
    let mut interface =
        Interface { name: name.to_owned(), attached: false, index: None, xdp: None, problem: None };
    match state {
        interfaces::State::Attached { ifindex, mode } => {
            interface.attached = true;
            interface.index = Some(*ifindex);
            let mode = match mode {
                Mode::Native => "native",
                Mode::Generic => "generic",
                Mode::Other => "other",
            };
            interface.xdp = Some(mode.to_owned());
        }
        interfaces::State::Detached { problem } => interface.problem = Some(problem.clone()),
    }
    interface
}

pub type HealthOfAll = BTreeMap<health::TargetKey, health::Status>;

fn service_status(
    picture: &ServicePicture,
    counters: &Counters,
    health: &HealthOfAll,
    report: &Report,
) -> Result<Service> {
    let config = &picture.config;
    let count = || picture.rings.each_ref().map(|ring| ring.as_deref().map(slots_by_backend));
    let shares = picture.slots.get_or_init(count);
    let mut backends = Vec::new();
    let numbers = picture.backends.iter().zip(&picture.draining);
    for (configured, (&(id, effective_weight), &draining_until)) in
        config.backends.iter().zip(numbers)
    {
        let versions = ["ipv4", "ipv6"].into_iter().zip(shares);
        let share = versions.filter_map(|(version, slots)| {
            let slots = slots.as_ref()?.get(&id).copied().unwrap_or(0);
            Some((version.to_owned(), slots as f64 / SLOTS as f64))
        });
        let mut backend = Backend {
            name: configured.name.clone(),
            id: Some(id),
            key: None,
            address: configured.address.to_string(),
            health: health_status(health.get(&key(&config.name, configured))),
            weight: configured.weight,
            effective_weight,
            draining_until,
            share: share.collect(),
            connections: report.connections.get(&id).copied().unwrap_or(0),
            spliced: None,
            traffic: Some(traffic(counters.backend(id)?)),
            requests: None,
            pool: None,
            ejections: None,
            ejected: None,
            why: String::new(),
        };
        let no_share = !backend.share.is_empty() && backend.share.values().all(|it| *it == 0.0);
        let spare = config.zones.is_some() && no_share;
        let asked = configured.asked.is_some();
        backend.why = why(&backend, Around { panic: picture.fail_open, spare, asked });
        backends.push(backend);
    }
    Ok(Service {
        name: config.name.clone(),
        mode: "l4".to_owned(),
        id: Some(picture.id),
        forward: Some(
            match config.forward {
                Forward::Nat => "nat",
                Forward::Dsr => "dsr",
                Forward::Ipip => "ipip",
            }
            .to_owned(),
        ),
        affinity: match config.affinity {
            Affinity::None => "none",
            Affinity::Source => "source",
        }
        .to_owned(),
        listeners: view_l7::listeners(config, &picture.on_host),
        fail_open: picture.fail_open,
        turned_away: picture.turned_away,
        connections: None,
        relayed: None,
        spliced: None,
        ended: BTreeMap::new(),
        flows: view_flows::of_xdp(picture.backends.iter().map(|(id, _)| *id), &report.loads),
        times: BTreeMap::new(),
        outcomes: outcomes(&counters.service(picture.id)?),
        backends,
        routes: Vec::new(),
        pools_down: Vec::new(),
        spilling: picture.spilling,
    })
}

/// What the data plane has counted of a service of the sidecar. The labels of the two are all different.
fn add_traffic(service: &mut Service, counters: &Counters) -> Result<()> {
    let Some(id) = service.id else { return Ok(()) };
    let Outcomes { events, drops } = outcomes(&counters.service(id)?);
    service.outcomes.events.extend(events);
    service.outcomes.drops.extend(drops);
    for backend in &mut service.backends {
        backend.traffic = backend.id.map(|id| counters.backend(id)).transpose()?.map(traffic);
    }
    Ok(())
}

fn slots_by_backend(slots: &lb_common::maglev::Slots) -> BTreeMap<u16, u32> {
    // Ids are small: a count for each that could be would take longer to clear than the ring to read.
    let most = slots.iter().copied().max().unwrap_or(0);
    let mut count = vec![0_u32; usize::from(most) + 1];
    slots.iter().for_each(|id| count[usize::from(*id)] += 1);
    let named = count.into_iter().enumerate().filter(|(_, slots)| *slots > 0);
    named.map(|(id, slots)| (id as u16, slots)).collect()
}

pub fn health_status(status: Option<&health::Status>) -> Health {
    let Some(status) = status else {
        let state = health::State::Unknown.to_string();
        return Health {
            state,
            since_seconds: 0.0,
            last: None,
            probes: 0,
            failures: 0,
            history: String::new(),
        };
    };
    Health {
        state: status.state.to_string(),
        since_seconds: status.since.elapsed().as_secs_f64(),
        last: status.last.as_ref().map(|last| LastProbe {
            ok: last.result.is_ok(),
            error: last.result.as_ref().err().map(ToString::to_string),
            latency_ms: last.latency.as_secs_f64() * 1e3,
            ago_seconds: last.at.elapsed().as_secs_f64(),
        }),
        probes: status.probes,
        failures: status.failures,
        history: status.history.as_str().to_owned(),
    }
}

fn outcomes(outcomes: &counters::Outcomes) -> Outcomes {
    let events = Event::ALL.iter().map(|it| (it.label(), outcomes.event(*it)));
    let drops = DropReason::ALL.iter().map(|it| (it.label(), outcomes.drops(*it)));
    let named = |(label, count): (&str, u64)| (count > 0).then(|| (label.to_owned(), count));
    Outcomes {
        events: events.filter_map(named).collect(),
        drops: drops.filter_map(named).collect(),
    }
}

fn traffic(counters: BackendCounters) -> Traffic {
    let BackendCounters {
        to_backend_packets,
        to_backend_bytes,
        to_client_packets,
        to_client_bytes,
        picked,
        opened,
        closed,
        reset,
    } = counters;
    Traffic {
        to_backend_packets,
        to_backend_bytes,
        to_client_packets,
        to_client_bytes,
        picked,
        opened,
        closed,
        reset,
    }
}

fn tables(sizes: &config::Tables, report: &Report) -> Vec<Table> {
    let table = |name: &str, entries, capacity: u32| Table {
        name: name.to_owned(),
        entries,
        capacity: capacity.into(),
    };
    vec![
        table(names::FLOWS4, report.flows[0], sizes.flows_ipv4),
        table(names::FLOWS6, report.flows[1], sizes.flows_ipv6),
        table(names::HANDSHAKES4, report.handshakes[0], sizes.handshakes),
        table(names::HANDSHAKES6, report.handshakes[1], sizes.handshakes),
    ]
}
