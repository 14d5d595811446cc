//! What the broker may splice, from the configuration and the ids in the maps.

use super::{agent::Agent, input::is_spliced, interfaces::State};
use crate::splice::Roster;

impl Agent {
    /// Tells the brokers what may be spliced from now on.
    pub(super) fn publish_spliced(&self) {
        let attached = self.interfaces.iter().filter_map(|(_, state)| match state {
            State::Attached { ifindex, .. } => Some(*ifindex),
            State::Detached { .. } => None,
        });
        let mut roster = Roster::with_interfaces(attached.collect());
        let ids = &self.plane.ids;
        for service in self.parts.config.l7().filter(|service| is_spliced(service)) {
            let Some(id) = ids.service(&service.name) else { continue };
            for &listener in &service.listen {
                roster.listener(listener, id);
            }
            for backend in &service.backends {
                if let Some(backend_id) = ids.backend(id, backend.address) {
                    roster.backend(id, backend.address, backend_id);
                }
            }
        }
        self.spliced.set(roster);
    }
}
