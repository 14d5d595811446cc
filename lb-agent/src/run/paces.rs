//! How the rate of a drain is shared between those who close connections: the workers, who relay some of them, and the
//! sweeper, which resets those that XDP carries. Pure.
//!
//! Both in proportion to what they have, so that they end at the same time, and together never faster than was asked for.

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
    let mut paces = Paces::new();
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
        if spliced > 0 {
            paces.insert(service.name.clone(), share(l7.drain.rate, relayed, spliced));
        }
    }
    paces
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
