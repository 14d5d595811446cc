//! The pick of the XDP program, in its own arithmetic.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use lb_common::{
    addr::{Addr, V4, V6},
    hash,
    ring::{NONE, SLOTS},
};

use super::{Client, Explanation, tuple};
use crate::{config::Affinity, run::view::ServicePicture};

/// The place of the backend that a new connection gets.
pub fn pick(
    answer: &mut Explanation,
    service: &ServicePicture,
    seed: u64,
    client: Client,
    vip: SocketAddr,
) -> Option<usize> {
    let Some(ring) = &service.rings[usize::from(vip.is_ipv6())] else {
        answer.step("ring", "none: no backend can be picked, and clients are turned away");
        return None;
    };
    let by_source = service.config.affinity == Affinity::Source;
    let hash = match (by_source, client.port) {
        (true, _) => by_address(seed, client.ip),
        (false, Some(port)) => by_tuple(seed, SocketAddr::new(client.ip, port), vip)?,
        (false, None) => {
            answer
                .step("ring", format!("the client's port decides: {}", shares(service, &ring[..])));
            return None;
        }
    };
    let slot = hash::slot(hash);
    let id = ring.get(slot).copied().unwrap_or(NONE);
    let place = service.backends.iter().position(|(it, _)| *it == id);
    let of = if by_source { "address" } else { "address and port" };
    let whose = place.and_then(|place| service.config.backends.get(place));
    let whose = whose.map_or("nobody's", |backend| &backend.name);
    answer.step("ring", format!("the client's {of} falls on slot {slot} of {SLOTS}: {whose}"));
    if service.fail_open {
        answer.step("health", "all backends are down, and the service fails open");
    }
    place
}

fn by_address(seed: u64, ip: IpAddr) -> u32 {
    match ip {
        IpAddr::V4(ip) => hash::source(seed, &V4::from(ip)),
        IpAddr::V6(ip) => hash::source(seed, &V6::from(ip)),
    }
}

fn by_tuple(seed: u64, client: SocketAddr, vip: SocketAddr) -> Option<u32> {
    let (from, to) = (client.port(), vip.port());
    match (client.ip(), vip.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            Some(of_tuple::<V4>(seed, (src.into(), from), (dst.into(), to)))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            Some(of_tuple::<V6>(seed, (src.into(), from), (dst.into(), to)))
        }
        _ => None,
    }
}

fn of_tuple<A: Addr>(seed: u64, client: (A, u16), vip: (A, u16)) -> u32 {
    hash::tuple(seed, &tuple(client.0, client.1, vip.0, vip.1))
}

/// What part of the new connections each backend gets.
fn shares(service: &ServicePicture, slots: &[u16]) -> String {
    let mut counts: BTreeMap<u16, u32> = BTreeMap::new();
    slots.iter().for_each(|id| *counts.entry(*id).or_default() += 1);
    let named = service.config.backends.iter().zip(&service.backends);
    let shares = named.map(|(backend, (id, _))| {
        let slots = counts.get(id).copied().unwrap_or(0);
        format!("{} {:.1} %", backend.name, 100.0 * f64::from(slots) / SLOTS as f64)
    });
    shares.collect::<Vec<_>>().join(", ")
}
