//! What the agent shows of services that the sidecar serves. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use lb_sidecar::{
    control::TimeReport,
    settings::{self, DEFAULT_POOL, NO_ROUTE, State},
    times,
};
use tokio::time::Instant;

use super::{
    checks::key,
    status::{
        Backend, Draining, Ejected, Histogram, Listener, Outcomes, Requests, Route, Service,
        Sidecar, Worker,
    },
    view::{HealthOfAll, health_status},
    why::{Around, why},
};
use crate::{
    choice::Mode,
    config,
    health::outlier::{Ejection, Record},
    sidecar::{self, ServiceSum},
    splice::{BOUNDS_MICROS, Timings},
};

/// A service as the workers were told of it.
pub struct L7Picture {
    pub config: config::Service,
    /// In the maps, as are those of its backends, in the order of the configuration.
    pub id: u16,
    pub backends: Vec<Option<u16>>,
    pub told: settings::Service,
    pub on_host: BTreeSet<IpAddr>,
    /// Who gets newcomers.
    pub mode: Mode,
    /// Of each backend, with outlier detection.
    pub outliers: Option<Vec<Record>>,
}

/// The whole edge gives its clients up.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// In milliseconds of Unix time; none without a service that has l7 clients.
    pub until: Option<u64>,
}

/// What is left of a drain.
pub fn draining(drain: Drain, sidecar: &sidecar::Sidecar) -> Draining {
    let services = || sidecar.sums.services.values();
    let spliced = sidecar.spliced.values().copied().map(u64::from).sum();
    Draining {
        until: drain.until,
        connections: services().map(|it| it.connections).sum::<u64>() + spliced,
        relayed: services().map(|it| it.relayed).sum(),
        spliced,
    }
}

/// All workers by their places, in each the oldest first; none if there are none.
pub fn sidecar(sidecar: &sidecar::Sidecar) -> Option<Sidecar> {
    let workers = sidecar.workers.iter().map(|worker| Worker {
        index: worker.index,
        pid: worker.pid,
        state: worker.state.clone(),
        restarts: worker.restarts,
        connections: worker.connections,
    });
    let mut workers: Vec<_> = workers.collect();
    // They come by age.
    workers.sort_by_key(|worker| worker.index);
    let log_lines_lost = sidecar.sums.log_lines_lost;
    let handovers = sidecar.handovers.as_ref().map(histogram);
    (!workers.is_empty()).then_some(Sidecar { workers, log_lines_lost, handovers })
}

fn histogram(timings: &Timings) -> Histogram {
    let bounds = BOUNDS_MICROS.into_iter().map(Some).chain([None]);
    Histogram { seconds: timings.sum.as_secs_f64(), counts: bounds.zip(timings.counts).collect() }
}

fn times(report: &TimeReport) -> Histogram {
    let bounds = times::BOUNDS_MICROS.into_iter().map(Some).chain([None]);
    let counts = report.counts.iter().copied().chain(std::iter::repeat(0));
    Histogram { seconds: report.micros as f64 / 1e6, counts: bounds.zip(counts).collect() }
}

/// One service, with what its workers reported together, and what was spliced. What XDP has counted is not in it.
pub fn service_status(
    picture: &L7Picture,
    sidecar: &sidecar::Sidecar,
    health: &HealthOfAll,
) -> Service {
    let L7Picture { config, id, backends: ids, told, on_host, mode, outliers } = picture;
    let nothing = ServiceSum::default();
    let sum = sidecar.sums.services.get(&config.name).unwrap_or(&nothing);
    let spliced_of = |told: &settings::Backend| -> u64 {
        sidecar.spliced.get(&told.id).copied().unwrap_or(0).into()
    };
    let spliced: u64 = told.backends.iter().map(spliced_of).sum();
    let names = pool_names(told);
    let backends = config.backends.iter().zip(&told.backends).zip(ids).enumerate();
    let backends = backends.map(|(n, ((backend, told), id))| {
        let record = outliers.as_ref().and_then(|it| it.get(n)).copied();
        let counts = sum.backends.get(&told.id).cloned().unwrap_or_default();
        let mut shown = Backend {
            name: backend.name.clone(),
            id: *id,
            key: Some(told.id.clone()),
            address: backend.address.to_string(),
            health: health_status(health.get(&key(&config.name, backend))),
            weight: backend.weight,
            effective_weight: match told.state {
                State::Up | State::Forced => told.weight,
                State::Spare | State::Down | State::Draining { .. } => 0,
            },
            draining_until: match told.state {
                State::Draining { until } => Some(until),
                State::Up | State::Spare | State::Forced | State::Down => None,
            },
            share: Default::default(),
            connections: u64::from(counts.live) + spliced_of(told),
            spliced: Some(spliced_of(told)),
            traffic: None,
            requests: Some(Requests {
                picked: counts.picked,
                failed: counts.failed,
                bytes_in: counts.bytes_in,
                bytes_out: counts.bytes_out,
            }),
            pool: names.get(usize::from(backend.pool)).cloned(),
            ejections: record.map(|record| record.total),
            ejected: record.and_then(|record| record.ejection).map(ejected),
            why: String::new(),
        };
        let around = Around {
            panic: *mode == Mode::Panic,
            spare: told.state == State::Spare,
            asked: backend.asked.is_some(),
        };
        shown.why = why(&shown, around);
        shown
    });
    Service {
        name: config.name.clone(),
        mode: "l7".to_owned(),
        id: Some(*id),
        forward: None,
        affinity: affinity(&told.affinity).to_owned(),
        listeners: listeners(config, on_host),
        fail_open: *mode == Mode::Panic,
        turned_away: *mode == Mode::Nobody,
        connections: Some(sum.connections + spliced),
        relayed: Some(sum.relayed),
        spliced: Some(spliced),
        ended: BTreeMap::new(),
        flows: BTreeMap::new(),
        times: sum.times.iter().map(|(what, time)| (what.clone(), times(time))).collect(),
        outcomes: Outcomes { events: sum.outcomes.clone(), drops: Default::default() },
        backends: backends.collect(),
        routes: routes(told, sum),
        pools_down: pools_down(told).filter_map(|it| names.get(it).cloned()).collect(),
        spilling: config.zones.map(|_| *mode == Mode::Spill),
    }
}

/// The names of a service's pools by their numbers, if it has several.
fn pool_names(told: &settings::Service) -> Vec<String> {
    let further = told.pools.iter().map(|pool| pool.name.clone());
    let all = std::iter::once(DEFAULT_POOL.to_owned()).chain(further);
    if told.pools.is_empty() { Vec::new() } else { all.collect() }
}

fn routes(told: &settings::Service, sum: &ServiceSum) -> Vec<Route> {
    let by_name = told.passthrough.iter().flat_map(|it| &it.routes).map(|it| it.name.as_str());
    let names = told.routes.iter().map(|route| route.name.as_str()).chain(by_name);
    let unmatched = names.clone().next().map(|_| NO_ROUTE);
    let routes = names.chain(unmatched).map(|name| Route {
        name: name.to_owned(),
        requests: sum.routes.get(name).copied().unwrap_or(0),
    });
    routes.collect()
}

fn ejected(ejection: Ejection) -> Ejected {
    let left = ejection.until.saturating_duration_since(Instant::now());
    Ejected {
        seconds_left: left.as_secs_f64(),
        times: ejection.times,
        reason: ejection.reason.to_string(),
    }
}

/// The pools without a backend that is up, by their numbers. Routes that may go to another one as well do.
fn pools_down(told: &settings::Service) -> impl Iterator<Item = usize> {
    (0..=told.pools.len()).filter(|pool| {
        let mut backends = told.backends.iter().filter(|it| usize::from(it.pool) == *pool);
        !backends.any(|it| it.state == State::Up && it.weight > 0)
    })
}

/// Where a service listens.
pub fn listeners(config: &config::Service, on_host: &BTreeSet<IpAddr>) -> Vec<Listener> {
    let listeners = config
        .listen
        .iter()
        .map(|addr| Listener { address: addr.to_string(), on_host: on_host.contains(&addr.ip()) });
    listeners.collect()
}

const fn affinity(affinity: &settings::Affinity) -> &'static str {
    match affinity {
        settings::Affinity::None => "none",
        settings::Affinity::Source => "source",
        settings::Affinity::Cookie(_) => "cookie",
        settings::Affinity::AppCookie { .. } => "app-cookie",
        settings::Affinity::Header { .. } => "header",
        settings::Affinity::Query { .. } => "query",
    }
}

#[cfg(test)]
mod tests {
    use lb_sidecar::control::{BackendReport, Report, ServiceReport};

    use super::*;
    use crate::choice;
    use crate::sidecar::{
        Reports,
        settings::{Seen, settings},
    };

    fn picture(ups: [bool; 2], service: &str) -> L7Picture {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            hash_seed = "s"
            [[service]]
            name = "chat"
            mode = "l7"
            listen = ["203.0.113.10:80"]
            {service}
            [[service.backend]]
            name = "a"
            address = "10.2.0.2:9000"
            [[service.backend]]
            name = "b"
            address = "10.2.0.3:9000"
            "#
        );
        let config = config::parse("edge.toml", &text).unwrap().0;
        let seen = |_: &_, backend: &config::Backend| Seen {
            up: ups[usize::from(backend.name == "b")],
            weight: backend.weight,
        };
        let told = settings(&config, &[], 2, seen, |_, _| 1_000);
        let mode = choice::of_l7(&config.edge, &config.services[0], |backend| {
            let Seen { up, weight } = seen(&config.services[0], backend);
            (up, weight)
        });
        L7Picture {
            config: config.services[0].clone(),
            id: 5,
            backends: vec![Some(7), Some(8)],
            told: told.services[0].clone(),
            on_host: ["203.0.113.10".parse().unwrap()].into(),
            mode,
            outliers: None,
        }
    }

    #[test]
    fn workers_are_listed_by_their_places() {
        // The first worker of place 0 was killed; that of place 1 has retired.
        let worker = |(index, pid)| sidecar::Worker {
            index,
            pid,
            state: "serving".to_owned(),
            restarts: 0,
            connections: 0,
        };
        let workers = [(1, 20), (0, 30), (1, 40)].map(worker).into();
        let shown = sidecar(&sidecar::Sidecar { workers, ..Default::default() }).unwrap();
        let shown: Vec<_> = shown.workers.iter().map(|it| (it.index, it.pid)).collect();
        assert_eq!(shown, [(0, 30), (1, 20), (1, 40)]);
        assert!(sidecar(&Default::default()).is_none());
    }

    #[test]
    fn backends_have_what_all_workers_reported_of_them() {
        let picture = picture([true, false], "");
        let mut reports = Reports::default();
        for worker in [1, 2] {
            let backend = BackendReport {
                id: picture.told.backends[0].id.clone(),
                live: worker,
                picked: 10,
                failed: 1,
                bytes_in: 100,
                bytes_out: 1_000,
                ..BackendReport::default()
            };
            let service = ServiceReport {
                name: "chat".into(),
                connections: 5,
                relayed: 4,
                outcomes: vec![("connection".into(), 7)],
                backends: vec![backend],
                routes: Vec::new(),
                times: vec![TimeReport { what: "request".into(), counts: vec![0, 3], micros: 600 }],
            };
            reports.report(worker, Report { services: vec![service], log_lines_lost: 0 });
        }
        let spliced = BTreeMap::from([(picture.told.backends[0].id.clone(), 100)]);
        let sidecar = sidecar::Sidecar { sums: reports.sums(), spliced, ..Default::default() };
        let status = service_status(&picture, &sidecar, &Default::default());
        assert_eq!((status.connections, status.relayed), (Some(110), Some(8)));
        assert_eq!((status.id, status.spliced), (Some(5), Some(100)));
        let left = draining(Drain { until: None }, &sidecar);
        assert_eq!((left.connections, left.relayed, left.spliced), (110, 8, 100));
        assert_eq!(status.outcomes.events["connection"], 14);
        let request = &status.times["request"];
        assert_eq!((request.counts[1], request.seconds), ((Some(250), 6), 0.0012));
        assert_eq!((request.counts.len(), request.counts[17]), (18, (None, 0)));
        assert!(status.listeners[0].on_host && !status.fail_open && !status.turned_away);
        let [a, b] = status.backends.as_slice() else { panic!() };
        assert_eq!((a.connections, a.effective_weight, b.effective_weight), (103, 100, 0));
        assert_eq!((a.spliced, b.spliced, a.id, b.id), (Some(100), Some(0), Some(7), Some(8)));
        let requests = a.requests.as_ref().unwrap();
        assert_eq!((requests.picked, requests.failed), (20, 2));
        assert_eq!((requests.bytes_in, requests.bytes_out), (200, 2_000));
        assert_eq!(b.requests.as_ref().unwrap().picked, 0, "it has not been picked yet");
    }

    /// They are shown as one.
    #[test]
    fn the_data_planes_counters_and_the_workers_have_different_names() {
        use lb_common::outcome::Event;
        use lb_sidecar::{
            framing::Violation,
            outcome::{Outcome, Outcomes},
        };
        let outcomes = Outcomes::default();
        Outcome::ALL.iter().for_each(|it| outcomes.count(*it));
        Violation::ALL.iter().for_each(|it| outcomes.count(*it));
        let of_workers: BTreeSet<_> = outcomes.report().map(|(label, _)| label).collect();
        assert!(Event::ALL.iter().all(|it| !of_workers.contains(it.label())));
    }

    #[test]
    fn without_backends_it_says_what_becomes_of_clients() {
        let of = |ups, service: &str| {
            let status =
                service_status(&picture(ups, service), &Default::default(), &Default::default());
            (status.fail_open, status.turned_away)
        };
        assert_eq!(of([true, false], ""), (false, false));
        assert_eq!(of([false, false], ""), (true, false));
        assert_eq!(of([false, false], "fail_open = false"), (false, true));
    }
}
