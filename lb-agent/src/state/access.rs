//! Allow and deny lists, and what of them stands in the maps.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use lb_common::access::{self, lists};

use super::{
    Prefix,
    desired::{Desired, Input, ServiceInput},
};

/// Whom the edge or a service admits. The longest prefix that a source is in decides; who is in none is denied if
/// somebody is allowed, and admitted if not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub allow: BTreeSet<Prefix>,
    pub deny: BTreeSet<Prefix>,
}

impl Access {
    /// Whether everybody is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The entries that say so, and whether each admits.
    #[must_use]
    pub fn entries(&self) -> BTreeMap<Prefix, bool> {
        let mut entries = BTreeMap::new();
        if !self.allow.is_empty() {
            let everybody: [IpAddr; 2] =
                [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            entries.extend(everybody.map(|addr| (Prefix::new(addr, 0), false)));
        }
        entries.extend(self.allow.iter().map(|prefix| (*prefix, true)));
        entries.extend(self.deny.iter().map(|prefix| (*prefix, false)));
        entries
    }
}

/// Which lists are for a service: bits of [`lists`].
pub fn lists_of(input: &Input, service: &ServiceInput) -> u8 {
    let bit = |access: &Access, bit| if access.is_empty() { 0 } else { bit };
    bit(&input.access, lists::EDGE) | bit(&service.access, lists::SERVICE)
}

impl Desired {
    /// Which lists are for a service, bits of [`lb_common::access::lists`]; of one that is gone, the edge's.
    pub fn access_of(&self, service: u16) -> u8 {
        let of_edge = if self.edge_has_lists() { lists::EDGE } else { 0 };
        self.services.get(&service).map_or(of_edge, |service| service.access)
    }

    fn edge_has_lists(&self) -> bool {
        self.access.keys().next().is_some_and(|(scope, _)| *scope == access::EDGE)
    }

    /// Adds the lists of the edge or of a service.
    pub(super) fn add_access(&mut self, scope: u16, access: &Access) {
        let entries = access.entries().into_iter();
        self.access.extend(entries.map(|(prefix, admit)| ((scope, prefix), admit)));
    }
}
