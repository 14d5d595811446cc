//! The data plane with what the agent knows of its maps: brings them to what they should hold.
//!
//! It knows neither configuration files nor health nor netlink; [`Input`] is all that it is told.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use lb_common::flow::forward;

use crate::{
    bpf::{Counters, Loaded, PinDir, rtt::HandshakeRtts},
    state::{
        actual::Actual,
        desired::{Desired, Input, RingCache, ServiceInput, desired},
        diff::diff,
        ids::Ids,
        maps::Maps,
        op::MapOp,
    },
};

/// The loaded program, its maps, and their mirror.
pub struct DataPlane {
    pub loaded: Loaded,
    pub ids: Ids,
    maps: Maps,
    actual: Actual,
    cache: RingCache,
    counters: Counters,
    rtts: HandshakeRtts,
    /// The backends which the maps had when they were adopted, and those of them that clients were given to.
    adopted: BTreeSet<u16>,
    adopted_live: BTreeSet<u16>,
}

impl DataPlane {
    /// Reads what the maps hold, from an earlier agent perhaps.
    pub fn open(loaded: Loaded) -> Result<Self> {
        let maps = Maps::from_pins(&loaded.pins().path().join("maps"))?;
        let actual = maps.read()?;
        let ids = Ids::recover(&actual, maps.capacity());
        let counters = Counters::open(loaded.pins())?;
        let rtts = HandshakeRtts::open(loaded.pins())?;
        let slots = actual.rings.values().flat_map(|ring| ring.iter().copied());
        // Who gets clients from the sidecar is in no ring, dead or alive.
        let has_rings =
            |id| actual.services.get(&id).is_none_or(|it| it.forward != forward::SPLICE);
        let adopted = actual.backends.iter().filter(|(_, backend)| has_rings(backend.service));
        Ok(Self {
            adopted: adopted.map(|(id, _)| *id).collect(),
            adopted_live: slots.collect(),
            loaded,
            maps,
            actual,
            ids,
            cache: RingCache::default(),
            counters,
            rtts,
        })
    }

    /// Where everything is pinned.
    #[must_use]
    pub fn pins(&self) -> &PinDir {
        self.loaded.pins()
    }

    /// Whether an earlier agent gave clients to a backend; none if it did not know it.
    #[must_use]
    pub fn remembers(&self, service: &str, backend: SocketAddr) -> Option<bool> {
        let id = self.ids.backend(self.ids.service(service)?, backend)?;
        self.adopted.contains(&id).then(|| self.adopted_live.contains(&id))
    }

    /// Gives every service and backend an id; on an error nothing changes.
    pub fn assign(&mut self, services: &[ServiceInput]) -> Result<()> {
        self.ids.assign(services)
    }

    /// Writes what the maps lack. Returns what they hold now, and how many writes it took.
    ///
    /// After an error the maps are consistent, but between the old and the new: call it again.
    pub fn apply(&mut self, input: &Input) -> Result<(Desired, usize)> {
        let desired = desired(input, &self.ids, &mut self.cache)?;
        let ops = diff(&self.actual, &desired);
        for op in &ops {
            tracing::debug!("{op}");
            self.clear_counters_of_newcomers(op)?;
            self.maps.apply(op)?;
            self.actual.apply(op);
        }
        Ok((desired, ops.len()))
    }

    /// Frees the ids of removed backends to which nothing refers any more; whether there were any. What they had in the
    /// maps goes with the next [`DataPlane::apply`].
    pub fn release(&mut self, referenced: impl Fn(u16) -> bool) -> bool {
        let released = self.ids.release(referenced);
        for id in &released {
            tracing::info!(id, "no flow refers to the removed backend any more: its id is free");
        }
        !released.is_empty()
    }

    /// An id that was another's must not begin with the other's numbers.
    fn clear_counters_of_newcomers(&mut self, op: &MapOp) -> Result<()> {
        match *op {
            MapOp::SetService { id, .. } if !self.actual.services.contains_key(&id) => {
                let cleared = self.counters.clear_service(id).and_then(|()| self.rtts.clear(id));
                cleared.context("a new service")
            }
            MapOp::SetBackend { id, .. } if !self.actual.backends.contains_key(&id) => {
                self.counters.clear_backend(id).context("a new backend")
            }
            _ => Ok(()),
        }
    }
}
