//! Who gets a client that belongs to nobody, among those who may.

use std::{cell::Cell, rc::Rc};

use super::backend::Backend;

/// The next one in turn, by weight: each gets its weight's share, evenly mixed.
///
/// Smooth weighted round robin: every turn gives each of them its weight as credit, and whoever has most pays for all.
pub fn round_robin<'a>(
    candidates: impl Iterator<Item = &'a Rc<Backend>>,
) -> Option<&'a Rc<Backend>> {
    let mut best: Option<&Rc<Backend>> = None;
    let mut total = 0;
    for backend in candidates {
        let weight = i64::from(backend.weight());
        total += weight;
        backend.credit.set(backend.credit.get().saturating_add(weight));
        if best.is_none_or(|best| backend.credit.get() > best.credit.get()) {
            best = Some(backend);
        }
    }
    if let Some(best) = best {
        best.credit.set(best.credit.get() - total);
    }
    best
}

/// Bounds what is owed by weights of the past, which could be far more than today's are worth.
pub fn settle(backends: &[Rc<Backend>]) {
    let total: i64 = backends.iter().map(|backend| i64::from(backend.weight())).sum();
    for backend in backends {
        backend.credit.set(backend.credit.get().clamp(-total, total));
    }
}

/// The one with the fewest live connections for its weight, counting the one that comes; ties go round.
pub fn least_connections<'a>(
    candidates: impl Iterator<Item = &'a Rc<Backend>> + Clone,
    turn: &Cell<usize>,
) -> Option<&'a Rc<Backend>> {
    let count = candidates.clone().count();
    let start = turn.get().checked_rem(count)?;
    turn.set(start + 1);
    let rotated = candidates.clone().skip(start).chain(candidates.take(start));
    let mut best: Option<&Rc<Backend>> = None;
    for backend in rotated {
        // load / weight as products: exact.
        let cost = |one: &Backend, other: &Backend| {
            (u64::from(one.load()) + 1) * u64::from(other.weight())
        };
        if best.is_none_or(|best| cost(backend, best) < cost(best, backend)) {
            best = Some(backend);
        }
    }
    best
}
