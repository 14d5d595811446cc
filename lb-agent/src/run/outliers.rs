//! Outlier detection where it meets the rest: reports of workers go in, and who is ejected counts as down for them.

use std::collections::{BTreeSet, HashMap};

use lb_sidecar::control::{BackendReport, FromWorker, Tally};
use tokio::time::Instant;

use super::{agent::Agent, checks::key};
use crate::{
    config::{self, Service},
    events::{Kind, News},
    health::{
        TargetKey,
        outlier::{Change, Count, Counts, Member, Outliers, Pool, Record, Rules},
    },
    sidecar::{Event, Heard},
};

/// The rules of a configuration.
fn rules(outlier: &config::Outlier) -> Rules {
    Rules {
        limits: [
            outlier.consecutive_connect_failures,
            outlier.consecutive_5xx,
            outlier.consecutive_handshake_failures,
        ],
        base: outlier.base_ejection_time,
        longest: outlier.max_ejection_time,
        most_percent: outlier.max_ejection_percent,
    }
}

fn counts(report: &BackendReport) -> Counts {
    let count = |tally: Tally| Count {
        successes: tally.successes,
        failures: tally.failures,
        row: tally.row,
    };
    [report.connects, report.answers, report.handshakes].map(count)
}

/// What an event says of the backends.
fn observe(outliers: &mut Outliers, event: &Event) -> bool {
    match event {
        Event::Heard(worker, Heard::Message(message, _)) => {
            let FromWorker::Report(report) = &**message else { return false };
            for backend in report.services.iter().flat_map(|service| &service.backends) {
                outliers.observe(*worker, &backend.id, counts(backend));
            }
            true
        }
        Event::Heard(worker, Heard::End(_)) => {
            outliers.ended(*worker);
            false
        }
        Event::Exited(..) | Event::Due => false,
    }
}

impl Agent {
    /// Takes in what a worker says of backends; whether anybody is ejected or back since.
    pub(super) fn observe_outliers(&mut self, event: &Event) -> bool {
        observe(&mut self.outliers, event) && self.judge_outliers()
    }

    /// Ejects and takes back whose time has come; whether there was any.
    pub(super) fn judge_outliers(&mut self) -> bool {
        let pools = self.parts.config.l7().filter_map(|service| self.pool(service));
        let pools: Vec<_> = pools.collect();
        let changes = self.outliers.step(&pools, Instant::now());
        changes.iter().for_each(|change| self.tell_change(change));
        let ejected = self.ejected();
        self.liveness.eject(ejected) || !changes.is_empty()
    }

    /// The pool of a service with outlier detection.
    fn pool(&self, service: &Service) -> Option<Pool> {
        let rules = rules(service.l7()?.outlier.as_ref()?);
        let ids = self.ids_in_cookies(service);
        let members = service.backends.iter().zip(ids).filter_map(|(backend, id)| {
            let live = self.liveness.is_live(&key(&service.name, backend));
            Some(Member {
                id: id?.to_owned(),
                address: backend.address,
                weighty: backend.weight > 0,
                serves: live && backend.weight > 0 && !backend.drain,
            })
        });
        Some(Pool { rules, members: members.collect() })
    }

    /// Backends that are ejected where somebody else serves: where nobody does, they are better than none.
    fn ejected(&self) -> BTreeSet<TargetKey> {
        let mut ejected = BTreeSet::new();
        for service in self.parts.config.l7() {
            let Some(pool) = self.pool(service) else { continue };
            let is_out = |id: &str| self.outliers.ejection(id).is_some();
            if !pool.members.iter().any(|it| it.serves && !is_out(&it.id)) {
                continue;
            }
            let backends = service.backends.iter().zip(self.ids_in_cookies(service));
            let out = backends.filter(|(_, id)| id.is_some_and(is_out));
            ejected.extend(out.map(|(backend, _)| key(&service.name, backend)));
        }
        ejected
    }

    /// The records of a service's backends, in their order; none without outlier detection.
    pub(super) fn records(&self, service: &Service) -> Option<Vec<Record>> {
        service.l7()?.outlier?;
        let record = |id: Option<&str>| id.map(|id| self.outliers.record(id)).unwrap_or_default();
        Some(self.ids_in_cookies(service).into_iter().map(record).collect())
    }

    /// By what workers know the backends of a service, in their order, as far as they have been told of them.
    fn ids_in_cookies(&self, service: &Service) -> Vec<Option<&str>> {
        let told = self.sidecar.settings().services.iter().find(|it| it.name == service.name);
        let backends = told.into_iter().flat_map(|service| &service.backends);
        let ids: HashMap<&str, &str> =
            backends.map(|backend| (backend.name.as_str(), backend.id.as_str())).collect();
        service.backends.iter().map(|it| ids.get(it.name.as_str()).copied()).collect()
    }

    fn tell_change(&self, change: &Change) {
        let (Change::Ejected { id, .. } | Change::Returned { id } | Change::Spared { id, .. }) =
            change;
        let told = &self.sidecar.settings().services;
        let named = told
            .iter()
            .find_map(|service| Some((service, service.backends.iter().find(|it| it.id == *id)?)));
        let Some((service, backend)) = named else { return };
        let (service, backend) = (&service.name, &backend.name);
        let (kind, text) = said(change);
        match kind {
            Kind::BackendReturned => tracing::info!(service, backend, "{text}"),
            _ => tracing::warn!(service, backend, "{text}"),
        }
        self.note(News::new(kind, text).at(service, backend));
    }
}

fn said(change: &Change) -> (Kind, String) {
    match change {
        Change::Ejected { ejection, duration, .. } => {
            let (seconds, times) = (duration.as_secs(), ejection.times);
            let text = format!("ejected for {seconds} s (time {times}): {}", ejection.reason);
            (Kind::BackendEjected, text)
        }
        Change::Returned { .. } => (Kind::BackendReturned, "back from its ejection".to_owned()),
        Change::Spared { reason, .. } => (
            Kind::BackendSpared,
            format!(
                "not ejected, though {reason}: max_ejection_percent are, or nobody else is left"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lb_sidecar::control::{Report, ServiceReport};

    use super::*;

    #[test]
    fn what_workers_report_is_what_is_judged() {
        let tally = |failures: u64| Tally { successes: 0, failures, row: failures as u32 };
        let backend = BackendReport {
            id: "a".into(),
            connects: tally(1),
            answers: tally(2),
            handshakes: tally(3),
            ..BackendReport::default()
        };
        assert_eq!(counts(&backend).map(|count| count.row), [1, 2, 3]);
        let service = ServiceReport { backends: vec![backend], ..ServiceReport::default() };
        let report = Report { services: vec![service], ..Report::default() };
        let mut outliers = Outliers::default();
        let message = Box::new(FromWorker::Report(report));
        assert!(observe(&mut outliers, &Event::Heard(1, Heard::Message(message, None))));
        assert!(!observe(&mut outliers, &Event::Due));
        let rules = Rules {
            limits: [0, 2, 0],
            base: Duration::from_secs(1),
            longest: Duration::from_secs(1),
            most_percent: 50,
        };
        let address = "10.2.0.2:80".parse().unwrap();
        let member = |id: &str| Member { id: id.into(), address, weighty: true, serves: true };
        let pool = Pool { rules, members: vec![member("a"), member("b")] };
        let changes = outliers.step(&[pool], Instant::now());
        assert!(matches!(&changes[..], [Change::Ejected { id, .. }] if id == "a"), "{changes:?}");
    }
}
