//! The data plane's counters, added up over the CPUs.

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use lb_common::{
    counters::BackendCounters,
    outcome::{COUNTERS_PER_SERVICE, DropReason, Event},
};

use super::{pins::PinDir, specs::names};

/// Reads the counters of an edge. They survive the agent, and go back to zero only when an id is given
/// to something else. They may be read while packets flow: each number is right, two of them may be a
/// few packets apart.
pub struct Counters {
    outcomes: PerCpuArray<MapData, u64>,
    backends: PerCpuArray<MapData, BackendCounters>,
}

/// What became of the packets of one service, or of those that belong to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcomes([u64; COUNTERS_PER_SERVICE as usize]);

impl Outcomes {
    /// Packets to which this happened.
    pub fn event(&self, event: Event) -> u64 {
        self.0[event.index() as usize]
    }

    /// Packets that were dropped for this reason.
    pub fn drops(&self, reason: DropReason) -> u64 {
        self.0[reason.index() as usize]
    }
}

/// The counters of what was asked for, in the order of the question.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Id of the service and its outcomes. [`lb_common::outcome::NO_SERVICE`] is a service here.
    pub services: Vec<(u16, Outcomes)>,
    /// Id of the backend and its traffic.
    pub backends: Vec<(u16, BackendCounters)>,
}

impl Counters {
    /// Opens the pinned counters.
    pub fn open(pins: &PinDir) -> Result<Self> {
        Ok(Self {
            outcomes: pins.map(names::OUTCOMES)?.try_into().context(names::OUTCOMES)?,
            backends: pins
                .map(names::BACKEND_COUNTERS)?
                .try_into()
                .context(names::BACKEND_COUNTERS)?,
        })
    }

    /// Reads the counters of these services and backends.
    pub fn snapshot(&self, services: &[u16], backends: &[u16]) -> Result<Snapshot> {
        let services = services.iter().map(|&id| Ok((id, self.service(id)?)));
        let backends = backends.iter().map(|&id| Ok((id, self.backend(id)?)));
        Ok(Snapshot {
            services: services.collect::<Result<_>>()?,
            backends: backends.collect::<Result<_>>()?,
        })
    }

    /// Reads the outcomes of one service.
    pub fn service(&self, id: u16) -> Result<Outcomes> {
        let mut sums = [0; COUNTERS_PER_SERVICE as usize];
        let first = u32::from(id) * COUNTERS_PER_SERVICE;
        let indexes = Event::ALL
            .iter()
            .map(|event| event.index())
            .chain(DropReason::ALL.iter().map(|reason| reason.index()));
        for index in indexes {
            let cpus = self
                .outcomes
                .get(&(first + index), 0)
                .with_context(|| format!("{}: outcome {index} of service {id}", names::OUTCOMES))?;
            sums[index as usize] = cpus.iter().sum();
        }
        Ok(Outcomes(sums))
    }

    /// Reads the traffic of one backend.
    pub fn backend(&self, id: u16) -> Result<BackendCounters> {
        let cpus = self
            .backends
            .get(&u32::from(id), 0)
            .with_context(|| format!("{}: backend {id}", names::BACKEND_COUNTERS))?;
        let mut sum = BackendCounters::default();
        cpus.iter().for_each(|cpu| sum += *cpu);
        Ok(sum)
    }

    /// Sets the counters of a service to zero, before its id is given to another one.
    pub fn clear_service(&mut self, id: u16) -> Result<()> {
        let first = u32::from(id) * COUNTERS_PER_SERVICE;
        for index in first..first + COUNTERS_PER_SERVICE {
            self.outcomes
                .set(index, zeros()?, 0)
                .with_context(|| format!("{}: service {id}", names::OUTCOMES))?;
        }
        Ok(())
    }

    /// Sets the counters of a backend to zero, before its id is given to another one.
    pub fn clear_backend(&mut self, id: u16) -> Result<()> {
        self.backends
            .set(u32::from(id), zeros()?, 0)
            .with_context(|| format!("{}: backend {id}", names::BACKEND_COUNTERS))
    }
}

/// Zero for each CPU that the kernel knows.
pub(super) fn zeros<V: aya::Pod + Default>() -> Result<PerCpuValues<V>> {
    let cpus = aya::util::nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
    Ok(PerCpuValues::try_from(vec![V::default(); cpus])?)
}
