//! The configuration that comes of a file and the overrides.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{Added, EdgeDrain, EdgeState, Override, Overrides, Pace, State};
use crate::config::{Asked, Backend, Config, Drain, Mode, Service};

/// Of a service that has no `[service.drain]`, because XDP alone serves it: the defaults of that table.
const L4_DRAIN: Drain = Drain { deadline: Duration::from_secs(300), rate: 100 };

/// An override that has nothing to change any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub service: String,
    pub backend: String,
    pub why: &'static str,
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, backend, why } = self;
        write!(
            f,
            "service {service:?}: backend {backend:?}: what was changed at runtime is dropped: {why}"
        )
    }
}

impl Overrides {
    /// The configuration in force at `now`, in milliseconds of Unix time. Forgets the overrides that have nothing to
    /// change in it any more, and says which.
    pub fn applied(&mut self, file: &Config, now: u64) -> (Config, Vec<Dropped>) {
        let mut config = file.clone();
        let mut dropped = Vec::new();
        match self.edge {
            Some(EdgeState::Serve) => config.edge.drain = false,
            Some(EdgeState::Drain(drain)) if drain.begins <= now => drain_edge(&mut config, drain),
            Some(EdgeState::Drain(_)) => config.edge.drain = false,
            None => {}
        }
        for (name, backends) in &mut self.services {
            let Some(service) = config.services.iter_mut().find(|it| it.name == *name) else {
                let gone = backends.keys().map(|it| gone(name, it, "the file has no such service"));
                dropped.extend(gone);
                backends.clear();
                continue;
            };
            // One may wait for another: the last of its pool to go for the one that comes, or who comes for the address
            // of one that goes.
            let early: BTreeSet<String> = backends
                .iter()
                .filter(|(backend, it)| apply(service, backend, it).is_err())
                .map(|(backend, _)| backend.clone())
                .collect();
            backends.retain(|backend, it| {
                if !early.contains(backend) {
                    return true;
                }
                let applied = apply(service, backend, it);
                applied.map_err(|why| dropped.push(gone(name, backend, why))).is_ok()
            });
            one_pace(service);
        }
        self.tidy();
        (config, dropped)
    }
}

fn gone(service: &str, backend: &str, why: &'static str) -> Dropped {
    Dropped { service: service.to_owned(), backend: backend.to_owned(), why }
}

fn drain_edge(config: &mut Config, asked: EdgeDrain) {
    config.edge.drain = true;
    config.edge.drain_rate = asked.rate;
    for service in &mut config.services {
        if let Mode::L7(l7) = &mut service.mode {
            l7.drain.deadline = asked.deadline.map_or(l7.drain.deadline, Duration::from_millis);
            l7.drain.rate = asked.rate.unwrap_or(l7.drain.rate);
        }
    }
}

fn apply(service: &mut Service, name: &str, it: &Override) -> Result<(), &'static str> {
    let place = service.backends.iter().position(|backend| backend.name == name);
    let place = match (place, &it.added) {
        (Some(_), Some(_)) => return Err("the file has a backend of this name now"),
        (Some(place), None) => place,
        (None, None) => return Err("the file has no such backend"),
        (None, Some(added)) => add(service, name, added)?,
    };
    if it.removed {
        // The configuration promises that no pool is empty.
        let pool = service.backends[place].pool;
        if service.backends.iter().filter(|it| it.pool == pool).count() == 1 {
            return Err("its pool has no other backend");
        }
        service.backends.remove(place);
        return Ok(());
    }
    let (is_l7, drain) = (service.l7().is_some(), drain_of(service));
    let backend = &mut service.backends[place];
    backend.weight = it.weight.unwrap_or(backend.weight);
    match it.state {
        None => {}
        Some(State::Serve) => backend.drain = false,
        Some(State::Drain(pace)) => {
            give_up(backend, asked(pace, drain));
            // Nobody belongs to a backend of XDP's but by a flow.
            backend.weight = if is_l7 { backend.weight } else { 0 };
        }
        Some(State::Maintenance(pace)) => {
            give_up(backend, Asked { deadline: Duration::ZERO, ..asked(pace, drain) });
            backend.weight = 0;
        }
    }
    Ok(())
}

fn add(service: &mut Service, name: &str, added: &Added) -> Result<usize, &'static str> {
    if service.backends.iter().any(|it| it.address == added.address) {
        return Err("another backend has its address now");
    }
    let pool = match &added.pool {
        None => 0,
        Some(name) => service.pool_number(name).ok_or("the service has no such pool now")?,
    };
    // Behind those of its pool: they stand in the order of the pools.
    let place = service.backends.partition_point(|it| it.pool <= pool);
    let backend = Backend {
        name: name.to_owned(),
        address: added.address,
        weight: added.weight,
        drain: false,
        zone: added.zone.clone(),
        pool,
        asked: None,
    };
    service.backends.insert(place, backend);
    Ok(place)
}

fn drain_of(service: &Service) -> Drain {
    service.l7().map_or(L4_DRAIN, |l7| l7.drain)
}

fn give_up(backend: &mut Backend, asked: Asked) {
    backend.drain = true;
    backend.asked = Some(asked);
}

fn asked(pace: Pace, drain: Drain) -> Asked {
    Asked {
        since: pace.since,
        deadline: pace.deadline.map_or(drain.deadline, Duration::from_millis),
        rate: pace.rate.unwrap_or(drain.rate),
    }
}

/// A service has one pace, at which the workers and the sweeper close what is to be closed: of several that were asked
/// for, the slowest, so that no storm is larger than anybody wanted.
fn one_pace(service: &mut Service) {
    let asked = service.backends.iter().filter_map(|backend| backend.asked);
    let Some(rate) = asked.map(|asked| asked.rate).min() else { return };
    for asked in service.backends.iter_mut().filter_map(|backend| backend.asked.as_mut()) {
        asked.rate = rate;
    }
    if let Mode::L7(l7) = &mut service.mode {
        l7.drain.rate = rate;
    }
}
