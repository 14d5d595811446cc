//! How the rate of a drain is shared between those who close connections: the workers, who relay some of them, and the
//! sweeper, which resets those that XDP carries. Pure.
//!
//! Both in proportion to what they have, so that they end at the same time, and together never faster than was asked for.
//! So do the services of an edge that drains at a rate of its own.

use std::collections::BTreeMap;

use super::drains::Resets;
use crate::{
    config::Config,
    sidecar::{Memory, Sidecar},
};
use lb_sidecar::settings::Settings;

/// Connections closed each second, of one service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// By all workers together.
    pub relayed: u32,
    /// By the sweeper.
    pub spliced: u32,
}

/// By the names of the services of the sidecar that give connections up.
pub type Paces = BTreeMap<String, Pace>;

/// From what there is to be closed: of backends that drain, or of all if the edge does.
#[must_use]
pub fn paces(
    config: &Config,
    memory: &Memory,
    resets: &Resets,
    told: &Settings,
    sidecar: &Sidecar,
) -> Paces {
    let mut due = Vec::new();
    for service in config.l7() {
        let Some(l7) = service.l7() else { continue };
        let drained = memory.drains.get(&service.name);
        let gives_up = |name: &str| {
            let reset = resets.contains_key(&(service.name.clone(), name.to_owned()));
            let drained = drained.is_some_and(|it| it.contains_key(name));
            memory.edge_drains.is_some() || drained || reset
        };
        let told = told.services.iter().find(|it| it.name == service.name);
        let of_workers = sidecar.sums.services.get(&service.name);
        let (mut relayed, mut spliced) = (0, 0);
        let backends = told.into_iter().flat_map(|it| &it.backends);
        for backend in backends.filter(|it| gives_up(&it.name)) {
            let live = of_workers.and_then(|it| it.backends.get(&backend.id)).map(|it| it.live);
            relayed += u64::from(live.unwrap_or(0));
            spliced += u64::from(sidecar.spliced.get(&backend.id).copied().unwrap_or(0));
        }
        due.push(Due { service: &service.name, rate: l7.drain.rate, relayed, spliced });
    }
    let of_edge = config.edge.drain_rate.filter(|_| memory.edge_drains.is_some());
    shares(of_edge, &due)
}

/// What there is to be closed of a service, and how much of it each second at most.
struct Due<'a> {
    service: &'a str,
    rate: u32,
    relayed: u64,
    spliced: u64,
}

/// A service without a share closes what it has, all of it relayed, at its own rate.
fn shares(of_edge: Option<u32>, due: &[Due<'_>]) -> Paces {
    let all = due.iter().map(|it| it.relayed + it.spliced).sum::<u64>().max(1);
    let part = |rate: u32, of: &Due<'_>| {
        let part = u64::from(rate) * (of.relayed + of.spliced) / all;
        u32::try_from(part).unwrap_or(rate).clamp(1, of.rate.max(1))
    };
    let shares = due.iter().filter_map(|it| {
        let pace = match (of_edge, it.spliced) {
            (None, 0) => return None,
            (None, _) => share(it.rate, it.relayed, it.spliced),
            // One that is spliced meanwhile is not forgotten.
            (Some(rate), 0) => Pace { relayed: part(rate, it), spliced: 1 },
            (Some(rate), _) => share(part(rate, it), it.relayed, it.spliced),
        };
        Some((it.service.to_owned(), pace))
    });
    shares.collect()
}

/// Nobody gets nothing: what comes late is closed, too.
fn share(rate: u32, relayed: u64, spliced: u64) -> Pace {
    let all = (relayed + spliced).max(1);
    let of_sweeper = (u64::from(rate) * spliced + all / 2) / all;
    let most = rate.saturating_sub(1).max(1);
    let spliced = u32::try_from(of_sweeper).unwrap_or(rate).clamp(1, most);
    Pace { relayed: (rate - spliced.min(rate)).max(1), spliced }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_of_an_edge_is_that_of_all_services_together() {
        let due = |service, relayed, spliced| Due { service, rate: 500, relayed, spliced };
        let services =
            [due("a", 6_000, 0), due("b", 1_000, 2_000), due("c", 0, 0), due("d", 1, 999)];
        let paces = shares(Some(500), &services);
        let of = |name: &str| (paces[name].relayed, paces[name].spliced);
        assert_eq!((of("a"), of("b"), of("d")), ((300, 1), (50, 100), (1, 49)));
        assert_eq!(of("c"), (1, 1), "what comes late is closed, too");
        let sum: u32 = paces.values().map(|pace| pace.relayed + pace.spliced).sum();
        assert!(sum <= 500 + 3, "{sum}");
        // As the file has it: each at its own rate, and no share where nobody shares.
        let own = shares(None, &services);
        assert_eq!(own.keys().collect::<Vec<_>>(), ["b", "d"]);
        assert_eq!(own["b"].relayed + own["b"].spliced, 500);
        // A backend of it may have been drained more slowly before.
        let slow = [Due { rate: 10, ..due("a", 100, 0) }, due("b", 100, 0)];
        assert_eq!(shares(Some(500), &slow)["a"].relayed, 10);
    }

    #[test]
    fn the_shares_are_what_was_asked_for_and_end_together() {
        for (rate, relayed, spliced, pace) in [
            (500, 0, 10_000, (1, 499)),
            (500, 10_000, 1, (499, 1)),
            (500, 2_500, 7_500, (125, 375)),
            (2, 1, 1_000, (1, 1)),
            (1, 5, 5, (1, 1)),
        ] {
            let shared = share(rate, relayed, spliced);
            assert_eq!((shared.relayed, shared.spliced), pace);
        }
    }
}
