//! How much a source, a service and a backend may have: connections, new ones in a second, and bytes in a second.
//!
//! A worker counts for itself, and knows of others what the agent tells it; `docs/sidecar.md` says what that promises.

pub mod arrivals;
pub mod pace;
pub mod queue;
pub mod sources;

use std::{net::SocketAddr, rc::Rc};

use sources::Permit;

use crate::{outcome::Outcome, service::Service};

/// Whether a connection that has just come may stay, whoever its client is; it counts for as long as the place lives.
pub fn place(service: &Rc<Service>) -> Result<Place, Outcome> {
    let most = service.plan().settings.limits.connections;
    if most > 0 && open(service) >= u64::from(most) {
        return Err(Outcome::TooManyConnections);
    }
    service.connections.set(service.connections.get() + 1);
    Ok(Place(Rc::clone(service)))
}

/// Stands for one connection of a service.
pub struct Place(Rc<Service>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.set(self.0.connections.get() - 1);
    }
}

/// Whether a client may stay, by its source; it stays for as long as the permit lives.
pub fn admit(service: &Rc<Service>, peer: SocketAddr) -> Result<Option<Permit>, Outcome> {
    let plan = service.plan();
    let limits = &plan.settings.limits;
    if limits.connections_per_source == 0 && limits.handshakes_per_second_per_source == 0 {
        return Ok(None);
    }
    sources::admit(service, limits, peer.ip())
}

/// Connections of a service: the worker's own, and what others have at backends, spliced ones among them.
fn open(service: &Service) -> u64 {
    let others = service.pool.backends().iter().map(|it| u64::from(it.others())).sum::<u64>();
    service.connections.get() + others
}
