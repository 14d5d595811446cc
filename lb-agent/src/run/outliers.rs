//! Outlier detection where it meets the rest: reports of workers go in, and who is ejected counts as down for them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// One [`Pool`] for each of a service's: the members of one are no help to the clients of another. Members come with the
/// number of their pool.
fn by_number(rules: Rules, members: impl Iterator<Item = (u16, Member)>) -> Vec<Pool> {
    let mut pools = BTreeMap::<u16, Vec<Member>>::new();
    for (number, member) in members {
        pools.entry(number).or_default().push(member);
    }
    pools.into_values().map(|members| Pool { rules, members }).collect()
}

/// Who is ejected where somebody else serves: where nobody does, they are better than none.
fn out<'a>(outliers: &Outliers, pools: &'a [Pool]) -> BTreeSet<&'a str> {
    let is_out = |it: &&Member| outliers.ejection(&it.id).is_some();
    let served = pools.iter().filter(|it| it.members.iter().any(|it| it.serves && !is_out(&it)));
    served.flat_map(|pool| pool.members.iter().filter(is_out)).map(|it| it.id.as_str()).collect()
}

impl Agent {
    /// Takes in what a worker says of backends; whether anybody is ejected or back since.
    pub(super) fn observe_outliers(&mut self, event: &Event) -> bool {
        observe(&mut self.outliers, event) && self.judge_outliers()
    }

    /// Ejects and takes back whose time has come; whether there was any.
    pub(super) fn judge_outliers(&mut self) -> bool {
        let pools: Vec<_> = self.parts.config.l7().flat_map(|it| self.pools(it)).collect();
        let changes = self.outliers.step(&pools, Instant::now());
        changes.iter().for_each(|change| self.tell_change(change));
        let ejected = self.ejected();
        self.liveness.eject(ejected) || !changes.is_empty()
    }

    /// The pools of a service; none without outlier detection.
    fn pools(&self, service: &Service) -> Vec<Pool> {
        let Some(outlier) = service.l7().and_then(|it| it.outlier.as_ref()) else {
            return Vec::new();
        };
        let ids = self.ids_in_cookies(service);
        let members = service.backends.iter().zip(ids).filter_map(|(backend, id)| {
            let live = self.liveness.is_live(&key(&service.name, backend));
            let member = Member {
                id: id?.to_owned(),
                address: backend.address,
                weighty: backend.weight > 0,
                serves: live && backend.weight > 0 && !backend.drain,
            };
            Some((backend.pool, member))
        });
        by_number(rules(outlier), members)
    }

    fn ejected(&self) -> BTreeSet<TargetKey> {
        let mut ejected = BTreeSet::new();
        for service in self.parts.config.l7() {
            let pools = self.pools(service);
            let out = out(&self.outliers, &pools);
            let backends = service.backends.iter().zip(self.ids_in_cookies(service));
            let backends = backends.filter(|(_, id)| id.is_some_and(|id| out.contains(id)));
            ejected.extend(backends.map(|(backend, _)| key(&service.name, backend)));
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

    const RULES: Rules = Rules {
        limits: [0, 2, 0],
        base: Duration::from_secs(1),
        longest: Duration::from_secs(1),
        most_percent: 50,
    };

    fn member(id: &str) -> Member {
        let address = "10.2.0.2:80".parse().unwrap();
        Member { id: id.into(), address, weighty: true, serves: true }
    }

    /// `ids` fail, each two requests in a row.
    fn failing(ids: &[&str]) -> Outliers {
        let mut outliers = Outliers::default();
        for id in ids {
            let failed = Count { successes: 0, failures: 2, row: 2 };
            outliers.observe(1, id, [Count::default(), failed, Count::default()]);
        }
        outliers
    }

    #[test]
    fn the_last_of_a_pool_stays_whoever_serves_in_another() {
        let of = |serves: [bool; 3]| {
            let members = ["api", "a", "b"].into_iter().zip([1, 0, 0]).zip(serves);
            let members =
                members.map(|((id, pool), serves)| (pool, Member { serves, ..member(id) }));
            by_number(RULES, members)
        };
        let (mut outliers, now) = (failing(&["api", "a"]), Instant::now());
        let changes = outliers.step(&of([true; 3]), now);
        assert!(
            matches!(&changes[..],
                [Change::Ejected { id: out, .. }, Change::Spared { id: spared, .. }]
                if out == "a" && spared == "api"),
            "{changes:?}"
        );
        assert_eq!(out(&outliers, &of([true; 3])), BTreeSet::from(["a"]));
        // Who serves in another pool is no help to those of this one.
        assert_eq!(out(&outliers, &of([true, true, false])), BTreeSet::new());
    }

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
        let pool = Pool { rules: RULES, members: vec![member("a"), member("b")] };
        let changes = outliers.step(&[pool], Instant::now());
        assert!(matches!(&changes[..], [Change::Ejected { id, .. }] if id == "a"), "{changes:?}");
    }
}
