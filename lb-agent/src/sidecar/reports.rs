//! What the workers report, summed up. Pure.
//!
//! Counts of workers that have ended stay in the sums; what they had open does not.

use std::collections::{BTreeMap, BTreeSet};

use lb_sidecar::control::{BackendReport, Report, ServiceReport, TimeReport};

use super::fleet::Generation;

/// One service over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceSum {
    pub connections: u64,
    pub relayed: u64,
    pub outcomes: BTreeMap<String, u64>,
    /// By id.
    pub backends: BTreeMap<String, BackendReport>,
    /// Requests of each route, by its name.
    pub routes: BTreeMap<String, u64>,
    /// How long things took, by what they are.
    pub times: BTreeMap<String, TimeReport>,
}

/// All services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// By name.
    pub services: BTreeMap<String, ServiceSum>,
    pub log_lines_lost: u64,
}

/// The newest report of each worker, and what is left of those that are gone.
#[derive(Debug, Default)]
pub struct Reports {
    newest: BTreeMap<Generation, Report>,
    ended: Sums,
}

impl Reports {
    /// In place of what the worker reported before.
    pub fn report(&mut self, worker: Generation, report: Report) {
        self.newest.insert(worker, report);
    }

    /// The worker is no more.
    pub fn ended(&mut self, worker: Generation) {
        let Some(mut report) = self.newest.remove(&worker) else { return };
        for service in &mut report.services {
            (service.connections, service.relayed) = (0, 0);
            service.backends.iter_mut().for_each(|backend| backend.live = 0);
        }
        self.ended.add(&report);
    }

    /// Forgets services and backends which neither these are nor a worker has any more.
    pub fn keep(&mut self, services: &BTreeMap<String, BTreeSet<String>>) {
        self.ended.services.retain(|name, sum| {
            let Some(backends) = services.get(name) else { return false };
            sum.backends.retain(|id, _| backends.contains(id));
            true
        });
    }

    /// The sums now.
    pub fn sums(&self) -> Sums {
        let mut sums = self.ended.clone();
        self.newest.values().for_each(|report| sums.add(report));
        sums
    }

    /// Client connections that a worker has open.
    pub fn connections(&self, worker: Generation) -> u64 {
        let services = self.newest.get(&worker).map(|report| report.services.as_slice());
        services.unwrap_or_default().iter().map(|service| service.connections).sum()
    }

    /// What all workers but one have open, by the backends' ids, and nobody has any more since it is spliced.
    pub fn others(
        &self,
        worker: Generation,
        spliced: &BTreeMap<String, u32>,
    ) -> Vec<(String, u32)> {
        let others = self.newest.iter().filter(|(it, _)| **it != worker);
        let services = others.flat_map(|(_, report)| &report.services);
        let mut live: BTreeMap<&str, u32> =
            spliced.iter().map(|(id, live)| (id.as_str(), *live)).collect();
        for backend in services.flat_map(|service| &service.backends).filter(|it| it.live > 0) {
            let sum = live.entry(&backend.id).or_default();
            *sum = sum.saturating_add(backend.live);
        }
        live.into_iter().map(|(id, live)| (id.to_owned(), live)).collect()
    }
}

impl Sums {
    fn add(&mut self, report: &Report) {
        self.log_lines_lost = self.log_lines_lost.saturating_add(report.log_lines_lost);
        for service in &report.services {
            self.services.entry(service.name.clone()).or_default().add(service);
        }
    }
}

impl ServiceSum {
    fn add(&mut self, report: &ServiceReport) {
        self.connections = self.connections.saturating_add(report.connections);
        self.relayed = self.relayed.saturating_add(report.relayed);
        for (label, count) in &report.outcomes {
            let sum = self.outcomes.entry(label.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        for (route, count) in &report.routes {
            let sum = self.routes.entry(route.clone()).or_default();
            *sum = sum.saturating_add(*count);
        }
        for time in &report.times {
            let empty = TimeReport { what: time.what.clone(), ..TimeReport::default() };
            let sum = self.times.entry(time.what.clone()).or_insert(empty);
            sum.micros = sum.micros.saturating_add(time.micros);
            sum.counts.resize(sum.counts.len().max(time.counts.len()), 0);
            for (sum, count) in sum.counts.iter_mut().zip(&time.counts) {
                *sum = sum.saturating_add(*count);
            }
        }
        for backend in &report.backends {
            let empty = BackendReport { id: backend.id.clone(), ..BackendReport::default() };
            let sum = self.backends.entry(backend.id.clone()).or_insert(empty);
            sum.live = sum.live.saturating_add(backend.live);
            sum.picked = sum.picked.saturating_add(backend.picked);
            sum.failed = sum.failed.saturating_add(backend.failed);
            sum.bytes_in = sum.bytes_in.saturating_add(backend.bytes_in);
            sum.bytes_out = sum.bytes_out.saturating_add(backend.bytes_out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(connections: u64, live: u32, picked: u64) -> Report {
        let backend =
            BackendReport { id: "a".into(), live, picked, bytes_in: 5, ..BackendReport::default() };
        let service = ServiceReport {
            name: "chat".into(),
            connections,
            relayed: 1,
            outcomes: vec![("ok".into(), picked)],
            backends: vec![backend],
            routes: vec![("rooms".into(), picked)],
            times: vec![TimeReport {
                what: "request".into(),
                counts: vec![picked, 0, 1],
                micros: 1_000,
            }],
        };
        Report { services: vec![service], log_lines_lost: 1 }
    }

    #[test]
    fn counts_of_the_dead_stay_and_what_they_had_open_does_not() {
        let mut reports = Reports::default();
        reports.report(1, report(10, 10, 100));
        reports.report(1, report(7, 6, 110));
        reports.report(2, report(3, 3, 20));
        let sums = reports.sums();
        let chat = &sums.services["chat"];
        assert_eq!((chat.connections, chat.relayed, chat.outcomes["ok"]), (10, 2, 130));
        assert_eq!((chat.backends["a"].live, chat.backends["a"].picked), (9, 130));
        assert_eq!(chat.routes["rooms"], 130);
        let request = &chat.times["request"];
        assert_eq!((&request.counts[..], request.micros), (&[130, 0, 2][..], 2_000));
        assert_eq!((sums.log_lines_lost, reports.connections(1)), (2, 7));

        reports.ended(1);
        reports.ended(1);
        let chat = &reports.sums().services["chat"];
        assert_eq!((chat.connections, chat.relayed, chat.outcomes["ok"]), (3, 1, 130));
        assert_eq!((chat.backends["a"].live, chat.backends["a"].bytes_in), (3, 10));
        assert_eq!((reports.connections(1), chat.routes["rooms"]), (0, 130));
        assert_eq!(chat.times["request"].counts, [130, 0, 2]);
    }

    #[test]
    fn everyone_is_told_of_all_others() {
        let mut reports = Reports::default();
        for (worker, live) in [(1, 4), (2, 5), (3, 0)] {
            reports.report(worker, report(live.into(), live, 0));
        }
        let live = |worker| reports.others(worker, &BTreeMap::new());
        assert_eq!(live(1), [("a".to_owned(), 5)]);
        assert_eq!(live(3), [("a".to_owned(), 9)]);
        assert_eq!(Reports::default().others(1, &BTreeMap::new()), []);
        let spliced = BTreeMap::from([("a".to_owned(), 10), ("b".to_owned(), 2)]);
        let wanted = [("a".to_owned(), 15), ("b".to_owned(), 2)];
        assert_eq!(reports.others(1, &spliced), wanted, "nobody has what is spliced");
    }

    #[test]
    fn what_the_configuration_has_no_more_is_forgotten_once_its_workers_are_gone() {
        let mut reports = Reports::default();
        reports.report(1, report(1, 1, 1));
        reports.keep(&BTreeMap::new());
        assert!(reports.sums().services.contains_key("chat"));
        reports.ended(1);
        reports.keep(&BTreeMap::from([("chat".to_owned(), BTreeSet::new())]));
        assert!(reports.sums().services["chat"].backends.is_empty());
        reports.keep(&BTreeMap::new());
        assert!(reports.sums().services.is_empty());
    }
}
