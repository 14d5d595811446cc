//! What must hold between tables: listeners and the backends behind them, addresses of the edge,
//! numbers and the sizes of tables.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use lb_sidecar::settings::Affinity;

use super::address::family;
use super::backend::Backend;
use super::edge::ReadEdge;
use super::error::{Place, Problems};
use super::service::{Forward, ReadService};
use super::unique::Unique;
use crate::bpf::specs::MAX_LISTENERS;

pub(super) fn check(edge: &ReadEdge, services: &[ReadService], problems: &Problems<'_>) {
    listeners_are_unique(services, problems);
    backends_are_elsewhere(edge, services, problems);
    for read in services.iter().filter(|read| read.complete) {
        if read.is_l4() {
            versions_meet(read, problems);
            ports_are_kept(read, problems);
            sources_exist(read, edge, problems);
        }
        weights_are_given(read, problems);
        zones_are_there(edge, read, problems);
    }
    cookies_are_signed(edge, services, problems);
    tables_hold_all(edge, services, problems);
    listeners_fit(services, problems);
}

impl ReadService {
    fn is_l4(&self) -> bool {
        self.service.l7().is_none()
    }

    fn listeners(&self) -> impl Iterator<Item = (SocketAddr, &Place)> {
        self.service.listen.iter().copied().zip(&self.listen)
    }

    fn backends(&self) -> impl Iterator<Item = (&Backend, &Place)> {
        self.service.backends.iter().zip(&self.backends)
    }

    /// The first listener of each IP version.
    fn first_of_each_version(&self) -> impl Iterator<Item = (SocketAddr, &Place)> {
        let first = |v4| self.listeners().find(move |(listener, _)| listener.is_ipv4() == v4);
        [first(true), first(false)].into_iter().flatten()
    }
}

/// Zones can be preferred only where it is known which one is near.
fn zones_are_there(edge: &ReadEdge, read: &ReadService, problems: &Problems<'_>) {
    let Some(place) = read.zones.as_ref().filter(|_| read.service.zones.is_some()) else { return };
    let Some(zone) = &edge.edge.zone else {
        let remedy = "write e.g. zone = \"rack-1\" in [edge], or prefer = false";
        problems.error(place, "prefers the edge's own zone, and [edge] has none", remedy);
        return;
    };
    if !read.service.backends.iter().any(|backend| backend.zone.as_ref() == Some(zone)) {
        let what = format!("prefers zone {zone:?}, in which there is no backend");
        problems.warn(place, what, "write the zone of each backend, as [edge] zone is written");
    }
}

fn listeners_are_unique(services: &[ReadService], problems: &Problems<'_>) {
    let mut unique = Unique::new(problems);
    for (listener, place) in services.iter().flat_map(ReadService::listeners) {
        unique.insert(listener, place, "give each listener an address or port of its own");
    }
}

/// A packet for a backend must not come back to the edge: it would go round until its TTL ends.
fn backends_are_elsewhere(edge: &ReadEdge, services: &[ReadService], problems: &Problems<'_>) {
    let mut listeners: HashMap<SocketAddr, &Place> = HashMap::new();
    let mut vips: HashMap<IpAddr, &Place> = HashMap::new();
    for (listener, place) in services.iter().flat_map(ReadService::listeners) {
        listeners.entry(listener).or_insert(place);
        vips.entry(listener.ip()).or_insert(place);
    }
    for (backend, place) in services.iter().flat_map(ReadService::backends) {
        let what = if let Some(listener) = listeners.get(&backend.address) {
            format!("is the listener on line {}: packets would go in a loop", listener.line)
        } else if let Some(listener) = vips.get(&backend.address.ip()) {
            format!(
                "has the VIP of the listener on line {}: packets would not leave the edge",
                listener.line
            )
        } else if edge.edge.source_addresses.contains(&backend.address.ip()) {
            "has a source address of the edge: packets would not leave it".to_owned()
        } else {
            continue;
        };
        problems.error(place, what, "write an address of the backend's own");
    }
}

/// Every listener needs a backend that it can use, and every backend a listener that can use it.
fn versions_meet(read: &ReadService, problems: &Problems<'_>) {
    let forward = read.service.forward;
    let reason = match forward {
        Forward::Nat => "nat keeps the IP version",
        Forward::Dsr => "dsr keeps the IP version",
        Forward::Ipip => "ipip carries IPv6 only in IPv6",
    };
    let meets = |listener: SocketAddr, backend: &Backend| {
        forward.carries(listener.ip(), backend.address.ip())
    };
    let mut any = false;
    for (backend, place) in read.backends() {
        let version = family(backend.address.ip());
        if read.listeners().any(|(listener, _)| meets(listener, backend)) {
            any = true;
        } else {
            let other = if backend.address.is_ipv4() { "IPv6" } else { "IPv4" };
            let what =
                format!("is {version} but every listener of the service is {other}: {reason}");
            let remedy = format!("write an {other} address, or add an {version} listener");
            problems.error(place, what, remedy);
        }
    }
    // If no two meet, the backends have said so.
    for (listener, place) in read.listeners().filter(|_| any) {
        if !read.backends().any(|(backend, _)| meets(listener, backend)) {
            let version = family(listener.ip());
            let what = format!("is {version} but no backend of the service is: {reason}");
            let remedy =
                format!("add {version} backends, or move the listener to a service of its own");
            problems.error(place, what, remedy);
        }
    }
}

/// Only `nat` translates ports.
fn ports_are_kept(read: &ReadService, problems: &Problems<'_>) {
    let forward = match read.service.forward {
        Forward::Nat => return,
        Forward::Dsr => "dsr",
        Forward::Ipip => "ipip",
    };
    let Some((first, _)) = read.listeners().next() else {
        return;
    };
    let port = first.port();
    for (_, place) in read.listeners().filter(|(listener, _)| listener.port() != port) {
        let what = format!("has another port than {first}, and {forward} does not translate ports");
        problems.error(place, what, r#"make it a service of its own, or write forward = "nat""#);
    }
    for (_, place) in read.backends().filter(|(backend, _)| backend.address.port() != port) {
        let what = format!("has another port than {first}, and {forward} does not translate ports");
        problems.error(place, what, format!(r#"write port {port}, or forward = "nat""#));
    }
}

fn sources_exist(read: &ReadService, edge: &ReadEdge, problems: &Problems<'_>) {
    if read.service.forward != Forward::Nat || !edge.sources_complete {
        return;
    }
    for (listener, place) in read.first_of_each_version() {
        let sources = &edge.edge.source_addresses;
        if !sources.iter().any(|source| source.is_ipv4() == listener.is_ipv4()) {
            let version = family(listener.ip());
            let what = format!(
                "is {version} with nat, and edge.source_addresses has no {version} address"
            );
            problems.error(
                place,
                what,
                "add the address from which the edge talks to these backends",
            );
        }
    }
}

fn weights_are_given(read: &ReadService, problems: &Problems<'_>) {
    for (listener, place) in read.first_of_each_version() {
        let mut backends = read.service.pool(listener).peekable();
        if backends.peek().is_none() || backends.any(|it| it.weight > 0 && !it.drain) {
            continue;
        }
        if read.service.backends.iter().any(|backend| backend.drain) {
            let what =
                "has only backends that drain or have weight 0: no new client will be accepted";
            problems.warn(place, what, "give at least one of them a weight and no drain");
        } else {
            let what = "has only backends of weight 0: no new connection will be accepted";
            problems.warn(place, what, "give at least one of them a weight");
        }
    }
}

fn cookies_are_signed(edge: &ReadEdge, services: &[ReadService], problems: &Problems<'_>) {
    if edge.keys_written {
        return;
    }
    let cookie = |read: &&ReadService| {
        read.service.l7().is_some_and(|l7| matches!(l7.affinity, Affinity::Cookie(_)))
    };
    for read in services.iter().filter(cookie) {
        problems.error(
            &read.affinity,
            "signs cookies, and edge.sidecar.cookie_keys names no keys",
            "write cookie_keys = \"/etc/sluice/cookie.keys\" in [edge.sidecar], and make the file, the same on every \
             edge: (umask 077; echo \"k1 $(openssl rand -base64 32)\" > /etc/sluice/cookie.keys)",
        );
    }
}

fn tables_hold_all(edge: &ReadEdge, services: &[ReadService], problems: &Problems<'_>) {
    let tables = edge.edge.tables;
    let refuse = |place: &Place, things: &str, most: u32| {
        let what = format!(
            "is one more than the {most} {things}, of both modes, that edge.tables.{things} makes room for"
        );
        problems.error(place, what, format!("raise edge.tables.{things}"));
    };
    if let Some(over) = services.get(tables.services as usize) {
        refuse(&over.place, "services", tables.services);
    }
    let mut backends = services.iter().flat_map(ReadService::backends);
    if let Some((_, place)) = backends.nth(tables.backends as usize) {
        refuse(place, "backends", tables.backends);
    }
}

/// The tables of listeners have an entry for each, and one for each of their addresses; of l7 services, one for each
/// backend, too. All are counted, spliced or not: a service must not be in the way of its own `splice = "auto"`.
fn listeners_fit(services: &[ReadService], problems: &Problems<'_>) {
    for v4 in [true, false] {
        let mut entries = HashSet::new();
        let listeners = services.iter().flat_map(|read| {
            let listeners = read.listeners().map(|(listener, place)| (listener, place, true));
            let backends = read.backends().filter(|_| !read.is_l4());
            listeners.chain(backends.map(|(backend, place)| (backend.address, place, false)))
        });
        let over = listeners.filter(|(at, ..)| at.is_ipv4() == v4).find(|(at, _, is_listener)| {
            if *is_listener {
                entries.insert((at.ip(), None));
            }
            entries.insert((at.ip(), Some(at.port())));
            entries.len() > MAX_LISTENERS as usize
        });
        if let Some((at, place, _)) = over {
            let version = family(at.ip());
            let what = format!(
                "is beyond the {MAX_LISTENERS} {version} listeners, addresses of listeners and backends of \
                 mode = \"l7\", counted together, that an edge can have"
            );
            problems.error(
                place,
                what,
                "move services to another edge, or use more ports of fewer addresses",
            );
        }
    }
}
