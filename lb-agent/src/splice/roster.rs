//! What may be spliced, as the agent publishes it: the broker trusts no worker.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

/// Services whose connections are spliced, and the interfaces whose packets meet the XDP program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    listeners: HashMap<SocketAddr, u16>,
    backends: HashMap<(u16, SocketAddr), u16>,
    interfaces: BTreeSet<u32>,
}

impl Roster {
    /// Of no service.
    #[must_use]
    pub fn with_interfaces(interfaces: BTreeSet<u32>) -> Self {
        Self { interfaces, ..Self::default() }
    }

    /// Adds a listener of a service, by the service's id.
    pub fn listener(&mut self, at: SocketAddr, service: u16) {
        self.listeners.insert(plain(at), service);
    }

    /// Adds a backend of a service, both by their ids in the maps.
    pub fn backend(&mut self, service: u16, at: SocketAddr, id: u16) {
        self.backends.insert((service, plain(at)), id);
    }

    /// The backend that clients of this listener may be joined to, if it is one.
    #[must_use]
    pub fn find(&self, listener: SocketAddr, backend: SocketAddr) -> Option<u16> {
        let service = *self.listeners.get(&listener)?;
        self.backends.get(&(service, backend)).copied()
    }

    /// Whether packets that come in by an interface meet the XDP program.
    #[must_use]
    pub fn has_xdp(&self, ifindex: u32) -> bool {
        self.interfaces.contains(&ifindex)
    }
}

/// As connections have them: without what an IPv6 address has beside itself.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The newest roster, for brokers on threads of their own.
#[derive(Debug, Default)]
pub struct Current(Mutex<Arc<Roster>>);

impl Current {
    #[must_use]
    pub fn get(&self) -> Arc<Roster> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set(&self, roster: Roster) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(roster);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_belongs_to_its_service_alone() {
        let addr = |text: &str| text.parse::<SocketAddr>().unwrap();
        let mut roster = Roster::with_interfaces([3].into());
        roster.listener(addr("10.1.0.10:80"), 1);
        roster.listener(addr("[2001:db8::1]:80"), 1);
        roster.listener(addr("10.1.0.10:81"), 2);
        roster.backend(1, addr("10.2.0.2:9000"), 5);
        roster.backend(2, addr("10.2.0.3:9000"), 6);
        for (listener, backend, id) in [
            ("10.1.0.10:80", "10.2.0.2:9000", Some(5)),
            ("[2001:db8::1]:80", "10.2.0.2:9000", Some(5)),
            ("10.1.0.10:81", "10.2.0.3:9000", Some(6)),
            ("10.1.0.10:81", "10.2.0.2:9000", None),
            ("10.1.0.10:80", "10.2.0.2:9001", None),
            ("10.1.0.10:82", "10.2.0.2:9000", None),
        ] {
            assert_eq!(roster.find(addr(listener), addr(backend)), id, "{listener} {backend}");
        }
        assert!(roster.has_xdp(3) && !roster.has_xdp(4));
    }
}
