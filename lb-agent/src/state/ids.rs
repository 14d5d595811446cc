//! The ids of services and backends: they survive reloads and restarts, and none is given away while
//! a flow may refer to it.
//!
//! Nothing is stored beside the maps. A backend is known again by what its element in `BACKENDS` says:
//! service, address and port. A service is known again by its name, or failing that (after a restart, when
//! it was renamed) by its listeners. One whose listeners are not in the maps (the sidecar has them, or it was removed) is
//! known after a restart by its backends.
//!
//! What the config no longer has is *retired*: it keeps its id and a backend also its element, because flows
//! go on. When a sweep of the flow tables has shown that nothing refers to it, it is released, and its
//! id waits behind all other free ones.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use anyhow::{Context, Result};

use super::{
    Capacity, Endpoint,
    actual::Actual,
    backend_addr,
    desired::{BackendInput, ServiceInput},
};

/// Which id stands for what.
#[derive(Clone, Debug)]
pub struct Ids {
    services: BTreeMap<u16, ServiceEntry>,
    backends: BTreeMap<u16, BackendEntry>,
    /// The same by service and address.
    by_addr: BTreeMap<(u16, SocketAddr), u16>,
    free_services: VecDeque<u16>,
    free_backends: VecDeque<u16>,
    capacity: Capacity,
}

#[derive(Clone, Debug, Default)]
struct ServiceEntry {
    /// Not known after a restart until [`Ids::assign`].
    name: Option<String>,
    listeners: BTreeSet<Endpoint>,
    retired: bool,
}

#[derive(Clone, Debug)]
struct BackendEntry {
    service: u16,
    addr: SocketAddr,
    retired: bool,
}

impl Ids {
    /// The ids that are in use in the maps; all retired until [`Ids::assign`] finds them in the config.
    pub fn recover(actual: &Actual, capacity: Capacity) -> Self {
        let retired = || ServiceEntry { retired: true, ..ServiceEntry::default() };
        let mut services: BTreeMap<u16, ServiceEntry> =
            actual.services.keys().map(|&id| (id, retired())).collect();
        let mut backends = BTreeMap::new();
        let mut by_addr = BTreeMap::new();
        for (&id, backend) in &actual.backends {
            services.entry(backend.service).or_insert_with(retired);
            let entry = BackendEntry {
                service: backend.service,
                addr: backend_addr(backend),
                retired: true,
            };
            // Of two for the same address, which only a damaged map has, the lower id stays.
            by_addr.entry((entry.service, entry.addr)).or_insert(id);
            backends.insert(id, entry);
        }
        for (&at, listener) in actual.listeners.iter().filter(|(_, listener)| listener.service != 0)
        {
            services.entry(listener.service).or_insert_with(retired).listeners.insert(at);
        }
        let free = |count: u32| 1..=u16::try_from(count - 1).unwrap_or(u16::MAX);
        Self {
            free_services: free(capacity.services)
                .filter(|id| !services.contains_key(id))
                .collect(),
            free_backends: free(capacity.backends)
                .filter(|id| !backends.contains_key(id))
                .collect(),
            services,
            backends,
            by_addr,
            capacity,
        }
    }

    /// Gives every service and backend of the config an id, the one that it had if it had one, and
    /// retires all others. On an error nothing changes.
    pub fn assign(&mut self, config: &[ServiceInput]) -> Result<()> {
        let mut new = self.clone();
        new.services.values_mut().for_each(|entry| entry.retired = true);
        new.backends.values_mut().for_each(|entry| entry.retired = true);
        let known = new.known_services(config);
        for (n, service) in config.iter().enumerate() {
            let id = match known.get(&n) {
                Some(&id) => id,
                None => {
                    new.free_services.pop_front().with_context(|| new.no_service_id(service))?
                }
            };
            let entry = new.services.entry(id).or_default();
            entry.name = Some(service.name.clone());
            entry.listeners = service.listeners.iter().map(|&addr| addr.into()).collect();
            entry.retired = false;
            new.assign_backends(id, service)?;
        }
        *self = new;
        Ok(())
    }

    /// The ids of the services that had one, by their place in the config.
    fn known_services(&self, config: &[ServiceInput]) -> BTreeMap<usize, u16> {
        let mut known = BTreeMap::new();
        let mut taken = BTreeSet::new();
        for (n, service) in config.iter().enumerate() {
            if let Some(id) = self.service(&service.name) {
                known.insert(n, id);
                taken.insert(id);
            }
        }
        // The others by what they have in common, listeners before backends, the most first.
        let mut pairs = Vec::new();
        for (n, service) in config.iter().enumerate().filter(|(n, _)| !known.contains_key(n)) {
            for (&id, entry) in self.services.iter().filter(|(id, _)| !taken.contains(*id)) {
                let is_common = |addr: &&SocketAddr| entry.listeners.contains(&(**addr).into());
                let listeners = service.listeners.iter().filter(is_common).count();
                let is_known =
                    |it: &&BackendInput| self.by_addr.contains_key(&(id, plain(it.addr)));
                let backends = match entry.name.is_none() && entry.listeners.is_empty() {
                    true => service.backends.iter().filter(is_known).count(),
                    false => 0,
                };
                if listeners + backends > 0 {
                    pairs.push((Reverse((listeners, backends)), n, id));
                }
            }
        }
        pairs.sort_unstable();
        for (_, n, id) in pairs {
            if !known.contains_key(&n) && taken.insert(id) {
                known.insert(n, id);
            }
        }
        known
    }

    fn assign_backends(&mut self, service: u16, config: &ServiceInput) -> Result<()> {
        for backend in &config.backends {
            let addr = plain(backend.addr);
            let id = match self.by_addr.get(&(service, addr)) {
                Some(&id) => id,
                None => self
                    .free_backends
                    .pop_front()
                    .with_context(|| self.no_backend_id(config, backend.addr))?,
            };
            self.by_addr.insert((service, addr), id);
            self.backends.insert(id, BackendEntry { service, addr, retired: false });
        }
        Ok(())
    }

    fn no_service_id(&self, service: &ServiceInput) -> String {
        let retired = self.services.values().filter(|entry| entry.retired).count();
        format!(
            "service {:?}: no id is free: the map SERVICES holds {} services, {retired} of them removed \
             from the config but with flows that go on; wait until these end, or make the maps anew \
             with `lb-agent unload` and a restart",
            service.name,
            self.capacity.services - 1,
        )
    }

    fn no_backend_id(&self, service: &ServiceInput, addr: SocketAddr) -> String {
        let retired = self.retired_backends().count();
        format!(
            "service {:?}: backend {addr}: no id is free: the map BACKENDS holds {} backends, {retired} of \
             them removed from the config but with flows that go on; wait until these end, or make \
             the maps anew with `lb-agent unload` and a restart",
            service.name,
            self.capacity.backends - 1,
        )
    }

    /// The id of a service of the config.
    pub fn service(&self, name: &str) -> Option<u16> {
        let named = |entry: &ServiceEntry| entry.name.as_deref() == Some(name);
        self.services.iter().find(|(_, entry)| named(entry)).map(|(&id, _)| id)
    }

    /// The name of a service; none if it was removed before this agent started.
    pub fn service_name(&self, id: u16) -> Option<&str> {
        self.services.get(&id)?.name.as_deref()
    }

    /// The id of a backend, unless retired.
    pub fn backend(&self, service: u16, addr: SocketAddr) -> Option<u16> {
        let &id = self.by_addr.get(&(service, plain(addr)))?;
        (!self.backends.get(&id)?.retired).then_some(id)
    }

    /// The backends that the config has: id, service and address.
    pub fn backends(&self) -> impl Iterator<Item = (u16, u16, SocketAddr)> {
        self.with_retired(false)
    }

    /// The backends that the config has no more, but flows may have: id, service and address.
    pub fn retired_backends(&self) -> impl Iterator<Item = (u16, u16, SocketAddr)> {
        self.with_retired(true)
    }

    fn with_retired(&self, retired: bool) -> impl Iterator<Item = (u16, u16, SocketAddr)> {
        let entries = self.backends.iter().filter(move |(_, entry)| entry.retired == retired);
        entries.map(|(&id, entry)| (id, entry.service, entry.addr))
    }

    /// Frees the ids of those retired backends for which `referenced` does not hold, and of retired
    /// services which have no backends left. Returns the backends' ids.
    ///
    /// Only after [`Ids::assign`]: before, all are retired. The flow and handshake tables must have been looked through *after* the rings without these
    /// backends were applied, or a new flow could be missed. What is returned is still in the maps:
    /// the next difference clears it, and the ids come last among the free ones.
    pub fn release(&mut self, referenced: impl Fn(u16) -> bool) -> Vec<u16> {
        let unused =
            |(&id, entry): (&u16, &BackendEntry)| (entry.retired && !referenced(id)).then_some(id);
        let released: Vec<u16> = self.backends.iter().filter_map(unused).collect();
        for id in &released {
            if let Some(BackendEntry { service, addr, .. }) = self.backends.remove(id)
                && self.by_addr.get(&(service, addr)) == Some(id)
            {
                self.by_addr.remove(&(service, addr));
            }
            self.free_backends.push_back(*id);
        }
        let in_use: BTreeSet<u16> = self.backends.values().map(|entry| entry.service).collect();
        let free_services = &mut self.free_services;
        self.services.retain(|id, entry| {
            let keep = !entry.retired || in_use.contains(id);
            if !keep {
                free_services.push_back(*id);
            }
            keep
        });
        released
    }
}

/// Without what an IPv6 address has beside itself and is not in the maps.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port())
}
