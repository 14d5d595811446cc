//! From the configuration and what is known of its backends to what a worker is told. Pure: no clock, no I/O.

use std::time::Duration;

use lb_common::hash;
use lb_sidecar::settings::{self, CookieKey, Settings, State};
use ring::hmac;

use crate::{
    choice::{self, Mode, is_local},
    config::{Backend, Config, L7, Service},
};

/// What is known of a backend at this time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether it counts as live, and is not ejected.
    pub up: bool,
    /// Its weight, slow start included.
    pub weight: u32,
}

/// What each of so many workers is told.
///
/// `draining_since` is asked only about backends with `drain = true`: since when they drain, in milliseconds of Unix time.
pub fn settings(
    config: &Config,
    keys: &[CookieKey],
    workers: u32,
    seen: impl Fn(&Service, &Backend) -> Seen,
    draining_since: impl Fn(&Service, &Backend) -> u64,
) -> Settings {
    let edge = &config.edge;
    let ids = Ids::new(&edge.hash_seed);
    let services = config.l7().filter_map(|service| {
        let l7 = service.l7()?;
        let last = u16::try_from(l7.pools.len()).unwrap_or(u16::MAX);
        let modes = (0..=last).map(|pool| {
            choice::of_pool(edge, service, pool, |backend| {
                let Seen { up, weight } = seen(service, backend);
                (up, weight)
            })
        });
        let modes: Vec<Mode> = modes.collect();
        let backends = service.backends.iter().map(|backend| {
            let Seen { up, weight } = seen(service, backend);
            let mode = modes[usize::from(backend.pool)];
            settings::Backend {
                name: backend.name.clone(),
                id: ids.of(&service.name, &backend.name),
                address: backend.address,
                weight,
                state: match (up, backend.drain) {
                    (false, true) => State::Down,
                    (false, false) if mode == Mode::Panic => State::Forced,
                    (false, false) => State::Down,
                    (true, false) if mode == Mode::Local && !is_local(edge, backend) => {
                        State::Spare
                    }
                    (true, false) => State::Up,
                    (true, true) => {
                        let since = draining_since(service, backend);
                        let until = backend_until(service, backend, since).unwrap_or(since);
                        State::Draining { until }
                    }
                },
                pool: backend.pool,
            }
        });
        Some(settings::Service {
            name: service.name.clone(),
            listen: service.listen.clone(),
            affinity: l7.affinity.clone(),
            balance: l7.balance,
            fail_open: modes.contains(&Mode::Panic),
            upgrades: l7.upgrades.clone(),
            http: l7.http.clone(),
            forwarded: l7.forwarded.clone(),
            drain: settings::Drain { rate: share(l7.drain.rate, workers) },
            splice: l7.splice,
            log_sample: l7.access_log.get(),
            backends: backends.collect(),
            pools: l7.pools.clone(),
            routes: l7.routes.clone(),
            // What is in files is added by whoever has read them.
            tls: None,
            backend_tls: None,
            redirect_https: l7.redirect_https,
            passthrough: l7.passthrough.clone(),
            proxy_protocol: l7.proxy_protocol.clone(),
            limits: settings::Limits {
                handshakes_per_second: share(l7.limits.handshakes_per_second, workers),
                ..l7.limits.clone()
            },
        })
    });
    Settings {
        edge: edge.name.clone(),
        source_addresses: edge.source_addresses.clone(),
        hash_seed: hash::seed(&edge.hash_seed),
        cookie_keys: keys.to_vec(),
        services: services.collect(),
        ticket_keys: Vec::new(),
    }
}

/// Each worker's share of a rate: of one that there is, at least 1.
fn share(rate: u32, workers: u32) -> u32 {
    (rate / workers.max(1)).max(rate.min(1))
}

/// When an edge that drains since then has no l7 connection any more: with the service that may take longest. None
/// without such a service.
pub fn edge_until(config: &Config, since: u64) -> Option<u64> {
    config.l7().filter_map(Service::l7).map(|l7| until(l7, since)).max()
}

/// When the clients of a backend must go, if it drains since then. None where nobody has said how: in a service of XDP's
/// whose file cannot.
pub fn backend_until(service: &Service, backend: &Backend, since: u64) -> Option<u64> {
    match backend.asked {
        Some(asked) => Some(after(since, asked.deadline)),
        None => service.l7().map(|l7| until(l7, since)),
    }
}

/// When those must go who may stay for a while, if the drain began then.
fn until(l7: &L7, since: u64) -> u64 {
    after(since, l7.drain.deadline)
}

/// At most 7 days later.
fn after(since: u64, deadline: Duration) -> u64 {
    since.saturating_add(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX))
}

/// Makes [`settings::Backend::id`]: opaque, so that cookies tell clients nothing of the pool, and the same on every edge
/// with the same seed.
struct Ids(hmac::Key);

impl Ids {
    fn new(hash_seed: &str) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, hash_seed.as_bytes()))
    }

    fn of(&self, service: &str, backend: &str) -> String {
        // No name has a NUL.
        let tag = hmac::sign(&self.0, format!("{service}\0{backend}").as_bytes());
        tag.as_ref().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests;
