//! Changes that operators ask for, and what speaks against them.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use lb_sidecar::settings::DEFAULT_POOL;
use serde::{Deserialize, Serialize};

use super::{Added, Dropped, EdgeDrain, EdgeState, Override, Overrides, Pace, State, check};
use crate::config::{Backend, Config, Service, nearest};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Of one backend.
    Drain(PaceAsk),
    Maintenance(PaceAsk),
    /// Ends either, also where the file asks for it.
    Undrain,
    Weight(u32),
    Add(NewBackend),
    Remove,
    /// Resets the connections that it has now.
    ResetFlows,
    /// Of the edge.
    DrainEdge(EdgeDrainAsk),
    UndrainEdge,
    /// Everything is as in the file again.
    Forget,
}

/// How clients are to be given up; what is not there is as the service has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PaceAsk {
    /// In milliseconds.
    pub deadline: Option<u64>,
    pub rate: Option<u32>,
}

/// The same of the whole edge, which says for a while that it is going to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EdgeDrainAsk {
    /// In milliseconds.
    pub grace: u64,
    pub pace: PaceAsk,
}

/// A backend that is to join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBackend {
    pub name: String,
    pub address: SocketAddr,
    pub weight: Option<u32>,
    pub zone: Option<String>,
    /// None: the default one, or that of the file.
    pub pool: Option<String>,
}

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    #[serde(skip, default)]
    pub kind: Kind,
    pub error: String,
    pub remedy: String,
}

/// What kind of reason it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// There is none of this name.
    Unknown,
    /// It does not go with what is in force.
    Conflict,
    /// A value is wrong.
    Invalid,
    /// It was not possible.
    #[default]
    Failed,
}

impl Refusal {
    #[must_use]
    pub const fn unknown(error: String, remedy: String) -> Self {
        Self { kind: Kind::Unknown, error, remedy }
    }

    #[must_use]
    pub const fn conflict(error: String, remedy: String) -> Self {
        Self { kind: Kind::Conflict, error, remedy }
    }

    #[must_use]
    pub const fn invalid(error: String, remedy: String) -> Self {
        Self { kind: Kind::Invalid, error, remedy }
    }

    #[must_use]
    pub const fn failed(error: String, remedy: String) -> Self {
        Self { kind: Kind::Failed, error, remedy }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.error, self.remedy)
    }
}

impl Overrides {
    /// Takes a change in, and returns the configuration with it. `file` is the configuration without overrides,
    /// `in_force` with them; `now` is in milliseconds of Unix time. Change a copy: what is refused may have left traces.
    pub fn change(
        &mut self,
        (file, in_force): (&Config, &Config),
        (service, backend): (&str, &str),
        change: &Change,
        now: u64,
    ) -> Result<Config, Refusal> {
        match change {
            Change::ResetFlows => {
                self.find_backend(find_service(in_force, service)?, backend)?;
                return Ok(in_force.clone());
            }
            Change::DrainEdge(ask) => self.drain_edge(in_force.edge.drain, *ask, now),
            Change::UndrainEdge => self.edge = file.edge.drain.then_some(EdgeState::Serve),
            Change::Forget => (self.edge, self.services) = (None, BTreeMap::new()),
            Change::Add(new) => self.add(file, in_force, service, new)?,
            Change::Drain(_)
            | Change::Maintenance(_)
            | Change::Undrain
            | Change::Weight(_)
            | Change::Remove => self.change_one(file, in_force, (service, backend), change, now)?,
        }
        self.tidy();
        self.revision += 1;
        let (config, dropped) = self.applied(file, now);
        // Nobody is told that something is changed which is not.
        if let Some(Dropped { service, backend, why }) = dropped.first() {
            let error = format!(
                "service {service:?}: backend {backend:?} cannot be changed beside what was changed before: {why}"
            );
            let remedy = "see `lb-agent config diff`, and write it into the file".to_owned();
            return Err(Refusal::conflict(error, remedy));
        }
        Ok(config)
    }

    fn drain_edge(&mut self, drains: bool, ask: EdgeDrainAsk, now: u64) {
        let EdgeDrainAsk { grace, pace: PaceAsk { deadline, rate } } = ask;
        let begins = match self.edge {
            // One that has begun goes on.
            Some(EdgeState::Drain(before)) if before.begins <= now => before.begins,
            // So does the file's: to announce it would be to call it off.
            _ if drains => now,
            _ => now.saturating_add(grace),
        };
        self.edge = Some(EdgeState::Drain(EdgeDrain { begins, deadline, rate }));
    }

    fn change_one(
        &mut self,
        file: &Config,
        in_force: &Config,
        (service, backend): (&str, &str),
        change: &Change,
        now: u64,
    ) -> Result<(), Refusal> {
        let running = find_service(in_force, service)?;
        let found = self.find_backend(running, backend)?;
        let of_file = file.services.iter().find(|it| it.name == service);
        let of_file = of_file.and_then(|it| it.backends.iter().find(|it| it.name == backend));
        let it = self.entry(service, backend);
        let pace = |ask: &PaceAsk| Pace { since: now, deadline: ask.deadline, rate: ask.rate };
        match change {
            Change::Drain(ask) => it.state = Some(State::Drain(pace(ask))),
            Change::Maintenance(ask) => it.state = Some(State::Maintenance(pace(ask))),
            Change::Undrain => {
                it.state = of_file.is_some_and(|it| it.drain).then_some(State::Serve);
            }
            Change::Weight(weight) if *weight > 1_000 => {
                let error = format!(
                    "service {service:?}: backend {backend:?}: weight {weight} is out of range"
                );
                return Err(Refusal::invalid(error, "write 0 to 1000".to_owned()));
            }
            Change::Weight(weight) => match &mut it.added {
                Some(added) => added.weight = *weight,
                None => it.weight = of_file.filter(|it| it.weight != *weight).map(|_| *weight),
            },
            _ if running.backends.iter().filter(|it| it.pool == found.pool).count() == 1 => {
                let pool = running.pool_name(found.pool);
                let pool = pool.map(|it| format!("pool {it:?} of ")).unwrap_or_default();
                let error =
                    format!("backend {backend:?} is the only one of {pool}service {service:?}");
                let remedy = "add another first, or put it into maintenance".to_owned();
                return Err(Refusal::conflict(error, remedy));
            }
            _ if it.added.is_some() => *it = Override::default(),
            _ => *it = Override { removed: true, ..Override::default() },
        }
        Ok(())
    }

    fn add(
        &mut self,
        file: &Config,
        in_force: &Config,
        service: &str,
        new: &NewBackend,
    ) -> Result<(), Refusal> {
        let running = find_service(in_force, service)?;
        let name = new.name.as_str();
        if running.backends.iter().any(|it| it.name == name) {
            let error = format!("service {service:?}: there is a backend {name:?} already");
            return Err(Refusal::conflict(error, "give the new one another name".to_owned()));
        }
        check::joins(in_force, running, new)?;
        let pool = new.pool.as_ref().and_then(|pool| running.pool_number(pool));
        let of_file = file.services.iter().find(|it| it.name == service);
        let of_file = of_file.and_then(|it| it.backends.iter().find(|it| it.name == name));
        let it = self.entry(service, name);
        match of_file {
            Some(of_file) if of_file.address != new.address => {
                let error = format!(
                    "service {service:?}: the file's backend {name:?}, which was taken out, has the address {}",
                    of_file.address
                );
                let remedy = "give the new one another name, or the same address".to_owned();
                return Err(Refusal::conflict(error, remedy));
            }
            Some(of_file) if pool.is_some_and(|pool| pool != of_file.pool) => {
                let error = format!(
                    "service {service:?}: the file's backend {name:?}, which was taken out, is in another pool than {:?}",
                    new.pool.as_deref().unwrap_or(DEFAULT_POOL)
                );
                let remedy = "give the new one another name, or leave the pool out".to_owned();
                return Err(Refusal::conflict(error, remedy));
            }
            // Back again.
            Some(of_file) => {
                let weight = new.weight.filter(|weight| *weight != of_file.weight);
                *it = Override { weight, ..Override::default() };
            }
            None => {
                let (weight, zone) = (new.weight.unwrap_or(100), new.zone.clone());
                let pool = new.pool.clone().filter(|pool| pool != DEFAULT_POOL);
                let added = Added { address: new.address, weight, zone, pool };
                *it = Override { added: Some(added), ..Override::default() };
            }
        }
        Ok(())
    }

    fn entry(&mut self, service: &str, backend: &str) -> &mut Override {
        let of_service = self.services.entry(service.to_owned()).or_default();
        of_service.entry(backend.to_owned()).or_default()
    }

    fn find_backend<'a>(&self, service: &'a Service, name: &str) -> Result<&'a Backend, Refusal> {
        let of_service = &service.name;
        if let Some(found) = service.backends.iter().find(|it| it.name == name) {
            return Ok(found);
        }
        let error = format!("service {of_service:?} has no backend {name:?}");
        if self.of(of_service, name).is_some_and(|it| it.removed) {
            let error = format!("{error} any more: it was taken out at runtime");
            return Err(Refusal::unknown(error, "add it again by its name and address".to_owned()));
        }
        let names: Vec<_> = service.backends.iter().map(|it| it.name.as_str()).collect();
        Err(Refusal::unknown(error, suggestion(name, &names)))
    }
}

/// The service of this name.
pub fn find_service<'a>(config: &'a Config, name: &str) -> Result<&'a Service, Refusal> {
    config.services.iter().find(|it| it.name == name).ok_or_else(|| {
        let names: Vec<_> = config.services.iter().map(|it| it.name.as_str()).collect();
        Refusal::unknown(format!("there is no service {name:?}"), suggestion(name, &names))
    })
}

/// What to write instead of a name that nothing has.
#[must_use]
pub fn suggestion(name: &str, names: &[&str]) -> String {
    match nearest(name, names) {
        Some(nearest) => format!("did you mean {nearest:?}?"),
        None => {
            let few: Vec<_> = names.iter().take(10).map(|it| format!("{it:?}")).collect();
            let more = if names.len() > few.len() { ", ..." } else { "" };
            format!("there are {}{more}", few.join(", "))
        }
    }
}
