//! From the host's routes and neighbours to the tables from which XDP sends: next hops and routes. Pure.
//!
//! The tables say less than the kernel knows, never anything else: whatever they cannot express gets id
//! [`ASK_KERNEL`], and a prefix that does is inserted wherever a shorter one would otherwise answer in its place.

mod host;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use lb_common::next_hop;

use self::host::{Choice, Host};
use crate::{
    bpf::specs,
    netlink::{Mac, NetState, Prefix, VlanTag, prefix::longest_match},
};

/// The id which means that the kernel's FIB (`bpf_fib_lookup`) has the answer. No next hop is stored under it.
pub const ASK_KERNEL: u32 = 0;
/// Ids are below this.
pub const MAX_NEXT_HOPS: usize = next_hop::MAX_NEXT_HOPS as usize;
/// Most prefixes of one address family: half of what the map takes, since new routes are written before old ones go.
pub const MAX_ROUTES: usize = specs::MAX_ROUTES as usize / 2;
/// Next hops after which neighbours that nobody configured get no id: the others are for gateways and backends to
/// come.
const MAX_NEIGHBOURS: usize = MAX_NEXT_HOPS / 4 * 3;
/// What a next hop is, for as long as it exists: a neighbour on a link. The index is that of the device which has
/// the route and the neighbour entry, so for a VLAN that of the subinterface.
pub type Key = (u32, IpAddr);

/// Where and how to send a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    pub key: Key,
    /// The edge's XDP interface on which the frame leaves: an index.
    pub egress: u32,
    /// Zero while not `ready`.
    pub dst_mac: Mac,
    pub src_mac: Mac,
    /// Outermost first; at most two.
    pub tags: Vec<VlanTag>,
    /// Largest IP packet in bytes, of the device in `key`.
    pub mtu: u32,
    /// The neighbour's MAC is known and the links are up. If not, XDP has to ask the kernel.
    pub ready: bool,
    /// The neighbour's entry is permanent: nothing to resolve or to keep fresh.
    pub permanent: bool,
}

/// The tables, and what is missing for them to be complete.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NextHops {
    /// Id to next hop; index 0 is always None, the last entry never is.
    pub table: Vec<Option<NextHop>>,
    /// Prefix to id, without prefixes that would change no answer.
    pub routes: BTreeMap<Prefix, u32>,
    /// Each backend's id, right even where `routes` had to be left out.
    pub backends: BTreeMap<IpAddr, u32>,
    /// Next hops whose neighbour the kernel should resolve: `Kernel::resolve`.
    pub unresolved: Vec<Key>,
    /// Why part of the traffic goes by the kernel's FIB though it need not: to be logged when it changes.
    pub limits: Vec<Limit>,
}

/// A reason for which the tables say less than they could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Policy rules or a VRF: the main table is not the whole truth.
    PolicyRules { ipv6: bool },
    /// More prefixes than [`MAX_ROUTES`].
    Routes { ipv6: bool, prefixes: usize },
    /// More neighbours than the tables hold: only gateways and backends are sure to be there.
    Neighbours { left_out: usize },
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = |ipv6: &bool| if *ipv6 { "IPv6" } else { "IPv4" };
        match self {
            Self::PolicyRules { ipv6 } => {
                write!(f, "{}: policy routing rules exist: the kernel's FIB decides", family(ipv6))
            }
            Self::Routes { ipv6, prefixes } => write!(
                f,
                "{}: {prefixes} prefixes, more than {MAX_ROUTES}: the kernel's FIB decides",
                family(ipv6)
            ),
            Self::Neighbours { left_out } => {
                write!(
                    f,
                    "{left_out} neighbours do not fit the tables: the kernel's FIB finds them"
                )
            }
        }
    }
}

impl NextHops {
    /// The id for a destination: what the XDP program's LPM look-up yields.
    pub fn lookup(&self, addr: IpAddr) -> u32 {
        longest_match(&self.routes, addr).map_or(ASK_KERNEL, |(_, id)| *id)
    }

    /// The next hop with this id.
    pub fn get(&self, id: u32) -> Option<&NextHop> {
        self.table.get(id as usize)?.as_ref()
    }

    /// Those which the kernel must be reminded of, since XDP's packets do not confirm them: `Kernel::keep_fresh`.
    pub fn to_keep_fresh(&self) -> impl Iterator<Item = Key> + '_ {
        self.table.iter().flatten().filter(|n| n.ready && !n.permanent).map(|n| n.key)
    }

    /// The tables for `state`, given the edge's XDP `interfaces` (indices) and its backends' addresses.
    ///
    /// A next hop that `previous` has keeps its id. An id that becomes free is given away at the earliest by the
    /// next computation, so that a flow which still has it finds nothing rather than a stranger: between the two
    /// the agent writes the tables and advances the route epoch.
    pub fn compute(
        previous: &NextHops,
        state: &NetState,
        interfaces: &BTreeSet<u32>,
        backends: &BTreeSet<IpAddr>,
    ) -> NextHops {
        let host = Host::new(state, interfaces);
        let mut ids = Ids::new(previous);
        let mut limits = host.policy_limits();

        // Gateways and backends first: if ids run out, they are the last to do without.
        let mut routes = BTreeMap::new();
        for (prefix, choice) in &host.best {
            let id = match choice {
                Choice::Gateway(key) => ids.of(*key),
                Choice::Kernel | Choice::OnLink(_) => ASK_KERNEL,
            };
            routes.insert(*prefix, id);
        }
        for backend in backends {
            if let Some(Choice::OnLink(link)) = host.choose(*backend) {
                routes.insert(Prefix::host(*backend), ids.of((link, *backend)));
            }
        }
        for addr in &host.local {
            routes.insert(Prefix::host(*addr), ASK_KERNEL);
        }
        let of_backends: BTreeMap<IpAddr, u32> = backends
            .iter()
            .map(|b| (*b, longest_match(&routes, *b).map_or(ASK_KERNEL, |(_, id)| *id)))
            .collect();

        let mut kept = prune(&routes);
        let mut left_out = ids.refused;
        for ipv6 in [false, true] {
            let of_family = |p: &Prefix| p.addr().is_ipv6() == ipv6;
            let prefixes = kept.keys().filter(|p| of_family(p)).count();
            if prefixes > MAX_ROUTES {
                kept.retain(|p, _| !of_family(p));
                limits.push(Limit::Routes { ipv6, prefixes });
                continue;
            }
            // The rest of the room is for neighbours. Each adds one prefix: its link's has id 0.
            let mut room = MAX_ROUTES - prefixes;
            for (key, prefix) in host.known_neighbours().filter(|(_, p)| of_family(p)) {
                if backends.contains(&key.1) {
                    continue;
                }
                if room == 0 || ids.used.len() >= MAX_NEIGHBOURS {
                    left_out += 1;
                    continue;
                }
                kept.insert(prefix, ids.of(key));
                room -= 1;
            }
        }
        if left_out > 0 {
            limits.push(Limit::Neighbours { left_out });
        }
        let table = ids.table(|key| host.next_hop(key));
        let unresolved = table
            .iter()
            .flatten()
            .filter(|n| n.dst_mac == Mac::default() && host.link_up(n.key.0))
            .map(|n| n.key)
            .collect();
        NextHops { table, routes: kept, backends: of_backends, unresolved, limits }
    }
}

/// Leaves out every prefix whose nearest cover gives the same answer, or which says "ask" where nothing else would
/// answer: the default route of an edge with a full table often says it all.
fn prune(routes: &BTreeMap<Prefix, u32>) -> BTreeMap<Prefix, u32> {
    let mut kept = BTreeMap::new();
    let mut covers: Vec<(Prefix, u32)> = Vec::new();
    for (prefix, id) in routes {
        while covers.last().is_some_and(|(cover, _)| !cover.covers(prefix)) {
            covers.pop();
        }
        if covers.last().map_or(ASK_KERNEL, |(_, id)| *id) != *id {
            kept.insert(*prefix, *id);
            covers.push((*prefix, *id));
        }
    }
    kept
}

/// Gives out ids: the old one, or the lowest that neither the previous nor this computation uses.
struct Ids<'a> {
    previous: &'a NextHops,
    old: BTreeMap<Key, u32>,
    used: BTreeMap<Key, u32>,
    next: usize,
    refused: usize,
}

impl<'a> Ids<'a> {
    fn new(previous: &'a NextHops) -> Self {
        let with_ids = previous.table.iter().enumerate();
        let old = with_ids.filter_map(|(id, n)| Some((n.as_ref()?.key, id as u32))).collect();
        Self { previous, old, used: BTreeMap::new(), next: 1, refused: 0 }
    }

    /// The id of this next hop, or [`ASK_KERNEL`] if there is none left.
    fn of(&mut self, key: Key) -> u32 {
        if let Some(id) = self.used.get(&key).or_else(|| self.old.get(&key)) {
            let id = *id;
            self.used.insert(key, id);
            return id;
        }
        while self.previous.get(self.next as u32).is_some() {
            self.next += 1;
        }
        if self.next >= MAX_NEXT_HOPS {
            self.refused += 1;
            return ASK_KERNEL;
        }
        let id = self.next as u32;
        self.next += 1;
        self.used.insert(key, id);
        id
    }

    fn table(self, next_hop: impl Fn(Key) -> Option<NextHop>) -> Vec<Option<NextHop>> {
        let length = self.used.values().max().map_or(0, |id| *id as usize + 1);
        let mut table = vec![None; length];
        for (key, id) in self.used {
            table[id as usize] = next_hop(key);
        }
        table
    }
}

#[cfg(test)]
mod tests;
