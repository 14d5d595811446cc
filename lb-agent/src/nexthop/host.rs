//! The host's network in the shape in which [`super::NextHops::compute`] asks about it: the best route of each
//! prefix, and how frames leave through each device.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Key, Limit, NextHop};
use crate::netlink::{
    Mac, Neighbour, NetState, Prefix, Route, RouteKind, VlanTag, prefix::longest_match,
    state::is_link_local,
};

/// As many tags as the XDP program reads and writes.
const MAX_TAGS: usize = 2;

/// What a prefix's best route comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// Something that only the kernel can decide.
    Kernel,
    Gateway(Key),
    /// The destinations are neighbours on this link.
    OnLink(u32),
}

/// How frames leave through a device.
struct Egress {
    index: u32,
    src_mac: Mac,
    tags: Vec<VlanTag>,
    mtu: u32,
    up: bool,
}

/// The state in the shape in which it is asked.
pub struct Host<'a> {
    state: &'a NetState,
    /// Devices by which frames can leave through an XDP interface.
    egress: BTreeMap<u32, Egress>,
    /// Each prefix's best route.
    pub best: BTreeMap<Prefix, Choice>,
    neighbours: BTreeMap<Key, &'a Neighbour>,
    /// The host's own addresses.
    pub local: BTreeSet<IpAddr>,
}

impl<'a> Host<'a> {
    pub fn new(state: &'a NetState, interfaces: &BTreeSet<u32>) -> Self {
        let egress: BTreeMap<u32, Egress> = state
            .links
            .iter()
            .filter_map(|link| Some((link.index, egress(state, interfaces, link.index)?)))
            .collect();
        let by_policy = |addr: IpAddr| {
            if addr.is_ipv6() { state.policy.v6 } else { state.policy.v4 }
        };
        let mut groups: BTreeMap<Prefix, Vec<&Route>> = BTreeMap::new();
        for route in state.routes.iter().filter(|r| !by_policy(r.prefix.addr())) {
            groups.entry(route.prefix).or_default().push(route);
        }
        let best =
            groups.iter().map(|(prefix, routes)| (*prefix, choose(routes, &egress))).collect();
        let neighbours = state.neighbours.iter().map(|n| ((n.ifindex, n.addr), n)).collect();
        let local = state.addresses.iter().map(|a| a.addr).collect();
        Self { state, egress, best, neighbours, local }
    }

    pub fn policy_limits(&self) -> Vec<Limit> {
        let mut limits = Vec::new();
        for (ipv6, set) in [(false, self.state.policy.v4), (true, self.state.policy.v6)] {
            if set {
                limits.push(Limit::PolicyRules { ipv6 });
            }
        }
        limits
    }

    /// How the main table routes `addr`; None also for addresses of this host.
    pub fn choose(&self, addr: IpAddr) -> Option<Choice> {
        if self.local.contains(&addr) {
            return None;
        }
        longest_match(&self.best, addr).map(|(_, choice)| *choice)
    }

    /// Neighbours with a MAC on the link to which the routes send their packets, and their host prefixes.
    pub fn known_neighbours(&self) -> impl Iterator<Item = (Key, Prefix)> + '_ {
        self.neighbours
            .iter()
            .filter(|((link, addr), neighbour)| {
                neighbour.mac.is_some() && self.choose(*addr) == Some(Choice::OnLink(*link))
            })
            .map(|(key, _)| (*key, Prefix::host(key.1)))
    }

    pub fn next_hop(&self, key: Key) -> Option<NextHop> {
        let egress = self.egress.get(&key.0)?;
        let neighbour = self.neighbours.get(&key);
        let mac = neighbour.and_then(|n| n.mac).filter(|mac| *mac != Mac::default());
        Some(NextHop {
            key,
            egress: egress.index,
            dst_mac: mac.unwrap_or_default(),
            src_mac: egress.src_mac,
            tags: egress.tags.clone(),
            mtu: egress.mtu,
            ready: mac.is_some() && egress.up,
            permanent: neighbour.is_some_and(|n| n.permanent),
        })
    }

    pub fn link_up(&self, index: u32) -> bool {
        self.egress.get(&index).is_some_and(|e| e.up)
    }
}

/// Follows VLAN subinterfaces down to the lowest device that is one of the edge's `interfaces`.
fn egress(state: &NetState, interfaces: &BTreeSet<u32>, index: u32) -> Option<Egress> {
    let device = state.link(index)?;
    let src_mac = device.mac?;
    let mut found = None;
    let mut tags = Vec::new();
    let (mut link, mut up) = (device, true);
    loop {
        up &= link.up;
        if interfaces.contains(&link.index) {
            let tags = tags.clone();
            found = Some(Egress { index: link.index, src_mac, tags, mtu: device.mtu, up });
        }
        let Some(vlan) = link.vlan.filter(|_| tags.len() < MAX_TAGS) else {
            return found;
        };
        tags.insert(0, vlan.tag);
        let Some(parent) = state.link(vlan.parent) else {
            return found;
        };
        link = parent;
    }
}

/// The kernel's choice among the routes of one prefix: the lowest metric (fib_table_lookup() in
/// net/ipv4/fib_trie.c, rt6_select() in net/ipv6/route.c). Of equals IPv4 takes the first that was added and IPv6
/// the one whose router answers: that is left to the kernel, and so is what depends on more than the destination.
fn choose(routes: &[&Route], egress: &BTreeMap<u32, Egress>) -> Choice {
    let lowest = routes.iter().map(|r| r.metric).min();
    let mut best = routes.iter().filter(|r| Some(r.metric) == lowest);
    let (Some(route), None) = (best.next(), best.next()) else {
        return Choice::Kernel;
    };
    let selective = routes.iter().any(|r| r.kind == RouteKind::Selective);
    if selective
        || route.kind != RouteKind::Plain
        || is_link_local(route.prefix.addr())
        || !egress.contains_key(&route.ifindex)
    {
        return Choice::Kernel;
    }
    match route.via {
        Some(gateway) => Choice::Gateway((route.ifindex, gateway)),
        None => Choice::OnLink(route.ifindex),
    }
}
