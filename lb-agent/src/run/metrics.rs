//! The status as Prometheus reads it: one table of metrics, which the documentation is held to.
//!
//! Names and labels are stable. Counters start anew with the agent (`sluice_flows_ended`), with a worker
//! (what the sidecar counts) or with the maps (what XDP counts); rates take that as a reset.

use std::fmt;

use lb_common::outcome::Event;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::status::{Backend, Histogram, Outcomes, Service, Status};

const HANDOVER: &str = "sluice_splice_handover";

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A metric, and where its values come from.
pub struct Metric {
    /// Without the suffixes of unit and counter.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub unit: Option<Unit>,
    pub labels: &'static [&'static str],
    samples: fn(&Status) -> Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    fn encode(self, sample: &mut MetricEncoder<'_>, value: f64) -> fmt::Result {
        match self {
            Self::Counter => sample.encode_counter::<NoLabelSet, _, u64>(&value, None),
            Self::Gauge => sample.encode_gauge(&value),
        }
    }
}

/// The values of a metric's labels, and its own.
type Sample = (Vec<String>, f64);

#[cfg(test)]
impl Metric {
    /// The name of its samples.
    fn full_name(&self) -> String {
        let unit = self.unit.as_ref().map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
        let suffix = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("{}{unit}{suffix}", self.name)
    }
}

macro_rules! metrics {
    ($($kind:ident $name:literal $($unit:ident)? [$($label:literal)*] $help:literal: $samples:expr;)+) => {
        /// All of them.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            help: $help,
            kind: Kind::$kind,
            unit: unit!($($unit)?),
            labels: &[$($label),*],
            samples: $samples,
        }),+];
    };
}

macro_rules! unit {
    () => {
        None
    };
    ($unit:ident) => {
        Some(Unit::$unit)
    };
}

metrics! {
    Gauge "sluice_build_info" ["edge" "version"]
        "Always 1; the labels say who it is": |it| vec![(vec![it.edge.clone(), it.version.clone()], 1.0)];
    Gauge "sluice_ready" []
        "1 once the data plane is attached and has the configuration": |it| one(truth(it.ready));
    Gauge "sluice_draining" []
        "1 while the whole edge drains": |it| one(truth(it.draining.is_some()));
    Gauge "sluice_uptime" Seconds []
        "Since the agent started": |it| one(it.uptime_seconds as f64);
    Counter "sluice_config_generation" []
        "Configurations taken over since the start, the first included": |it| one(it.config_generation as f64);
    Gauge "sluice_config_refused" []
        "1 if the last change of the file was refused: the edge runs with the configuration before":
        |it| one(truth(it.config_refused.is_some()));
    Gauge "sluice_interface_attached" ["interface"]
        "1 if the XDP program is attached there": |it| {
            let interfaces = it.interfaces.iter();
            interfaces.map(|it| (vec![it.name.clone()], truth(it.attached))).collect()
        };
    Gauge "sluice_table_entries" ["table"]
        "Entries of a BPF map, as of the last walk through it": |it| {
            it.tables.iter().map(|it| (vec![it.name.clone()], it.entries as f64)).collect()
        };
    Gauge "sluice_table_capacity" ["table"]
        "Most entries of a BPF map": |it| {
            it.tables.iter().map(|it| (vec![it.name.clone()], it.capacity as f64)).collect()
        };
    Counter "sluice_packets" ["service" "event"]
        "Packets by what became of them, as far as they are not counted per backend; the service is empty for packets of none":
        |it| events(it, true);
    Counter "sluice_dropped_packets" ["service" "reason"]
        "Packets dropped, by reason; the service is empty for packets of none":
        |it| {
            let drops = outcomes(it).flat_map(|(service, outcomes)| {
                outcomes.drops.iter().map(move |(reason, count)| {
                    (vec![service.to_owned(), reason.clone()], *count as f64)
                })
            });
            drops.collect()
        };
    Counter "sluice_sidecar_outcomes" ["service" "outcome"]
        "What became of connections and requests of services with mode = \"l7\"":
        |it| events(it, false);
    Counter "sluice_flows_ended" ["how"]
        "Entries of the flow tables that the agent removed: closed, idle for too long (expired), never completed, halves, reset, reset by a drain":
        |it| {
            let flows = &it.flows;
            let ways = [
                ("closed", flows.closed),
                ("expired", flows.expired),
                ("abandoned", flows.abandoned),
                ("orphan", flows.orphans),
                ("reset", flows.reset),
                ("drained", flows.drained),
            ];
            ways.map(|(how, count)| (vec![how.to_owned()], count as f64)).into()
        };
    Counter "sluice_unsent_resets" []
        "RST packets that could not be sent": |it| one(it.flows.unsent_resets as f64);
    Gauge "sluice_service_connections" ["service"]
        "Client connections of services with mode = \"l7\" now, relayed and spliced ones included": |it| {
            of_services(it, |service| service.connections.map(|it| it as f64))
        };
    Gauge "sluice_service_relayed" ["service"]
        "Upgraded connections that the sidecar relays now": |it| {
            of_services(it, |service| service.relayed.map(|it| it as f64))
        };
    Gauge "sluice_service_spliced" ["service"]
        "Upgraded connections that XDP carries now": |it| {
            of_services(it, |service| service.spliced.map(|it| it as f64))
        };
    Counter "sluice_spliced_ended" ["service" "how"]
        "Spliced connections that have ended, by how: the access log's `ended_by`": |it| {
            let services = it.services.iter();
            let samples = services.flat_map(|service| service.ended.iter().map(|(how, count)| {
                (vec![service.name.clone(), how.clone()], *count as f64)
            }));
            samples.collect()
        };
    Gauge "sluice_service_turned_away" ["service"]
        "1 while no backend can be picked and clients are turned away": |it| {
            of_services(it, |service| Some(truth(service.turned_away)))
        };
    Gauge "sluice_service_failing_open" ["service"]
        "1 while too few backends are up and all of them get clients nevertheless": |it| {
            of_services(it, |service| Some(truth(service.fail_open)))
        };
    Gauge "sluice_service_spilling" ["service"]
        "1 while too little of the own zone is up and other zones get newcomers, too": |it| {
            of_services(it, |service| service.spilling.map(truth))
        };
    Gauge "sluice_backend_up" ["service" "backend"]
        "1 if its health checks succeed": |it| of_backends(it, |it| Some(truth(it.health.state == "up")));
    Gauge "sluice_backend_weight" ["service" "backend"]
        "As configured": |it| of_backends(it, |it| Some(it.weight.into()));
    Gauge "sluice_backend_effective_weight" ["service" "backend"]
        "As it is now: 0 while it gets no new clients, less than the configured one while it starts slowly":
        |it| of_backends(it, |it| Some(it.effective_weight.into()));
    Gauge "sluice_backend_draining" ["service" "backend"]
        "1 while it drains": |it| of_backends(it, |it| Some(truth(it.draining_until.is_some())));
    Gauge "sluice_backend_ejected" ["service" "backend"]
        "1 while it is ejected for what its clients met": |it| {
            of_backends(it, |it| it.ejections.map(|_| truth(it.ejected.is_some())))
        };
    Counter "sluice_backend_ejections" ["service" "backend"]
        "Ejections since the agent's start": |it| of_backends(it, |it| it.ejections.map(|it| it as f64));
    Gauge "sluice_backend_connections" ["service" "backend"]
        "Connections now; with mode = \"l7\", connections and requests that count as load": |it| {
            of_backends(it, |it| Some(it.connections as f64))
        };
    Gauge "sluice_backend_spliced" ["service" "backend"]
        "Spliced connections now": |it| of_backends(it, |it| it.spliced.map(|it| it as f64));
    Counter "sluice_backend_health_probes" ["service" "backend"]
        "Health probes that ended": |it| of_backends(it, |it| Some(it.health.probes as f64));
    Counter "sluice_backend_health_failures" ["service" "backend"]
        "Health probes that failed": |it| of_backends(it, |it| Some(it.health.failures as f64));
    Counter "sluice_backend_picked" ["service" "backend"]
        "Times that it was picked for a client": |it| of_backends(it, |it| {
            // XDP carries what the sidecar has picked, and picks nothing itself.
            let by_sidecar = it.requests.as_ref().map(|it| it.picked);
            by_sidecar.or(it.traffic.as_ref().map(|it| it.picked)).map(|it| it as f64)
        });
    Counter "sluice_backend_failed" ["service" "backend"]
        "Connects and handshakes of the sidecar that failed": |it| {
            of_backends(it, |it| Some(it.requests.as_ref()?.failed as f64))
        };
    Counter "sluice_backend_relayed" Bytes ["service" "backend" "direction"]
        "Bytes that the sidecar carried, bodies and frames": |it| directions(it, |it| {
            it.requests.as_ref().map(|it| [it.bytes_in, it.bytes_out])
        });
    Counter "sluice_backend_forwarded" Bytes ["service" "backend" "direction"]
        "Bytes of IP packets that XDP forwarded, headers included": |it| directions(it, |it| {
            it.traffic.as_ref().map(|it| [it.to_backend_bytes, it.to_client_bytes])
        });
    Counter "sluice_backend_forwarded_packets" ["service" "backend" "direction"]
        "IP packets that XDP forwarded": |it| directions(it, |it| {
            it.traffic.as_ref().map(|it| [it.to_backend_packets, it.to_client_packets])
        });
    Counter "sluice_backend_flows" ["service" "backend" "change"]
        "Flows that were opened, closed by both sides, or reset by one": |it| {
            let mut samples = Vec::new();
            for (service, backend) in backends(it) {
                let Some(traffic) = &backend.traffic else { continue };
                let changes =
                    [("opened", traffic.opened), ("closed", traffic.closed), ("reset", traffic.reset)];
                for (change, count) in changes {
                    samples.push((labels(service, backend, Some(change)), count as f64));
                }
            }
            samples
        };
    Gauge "sluice_worker_connections" ["worker" "state"]
        "Client connections that a worker of the sidecar has open": |it| {
            let workers = it.sidecar.iter().flat_map(|it| &it.workers);
            workers.map(|it| (vec![it.index.to_string(), it.state.clone()], it.connections as f64)).collect()
        };
    Counter "sluice_worker_restarts" ["worker"]
        "How often a worker of this place ended unasked": |it| {
            let workers = it.sidecar.iter().flat_map(|it| &it.workers);
            let serving = workers.filter(|it| it.state != "retired");
            serving.map(|it| (vec![it.index.to_string()], it.restarts as f64)).collect()
        };
    Gauge "sluice_certificate_expiry" Seconds ["service" "certificate"]
        "When a certificate ends, in Unix time": |it| {
            let certificates = it.certificates.iter();
            certificates.map(|it| (vec![it.service.clone(), it.certificate.clone()], it.not_after as f64)).collect()
        };
    Counter "sluice_access_log_lines_lost" []
        "Access log lines that could not be written fast enough": |it| {
            one(it.sidecar.as_ref().map_or(0.0, |it| it.log_lines_lost as f64))
        };
}

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

fn one(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

/// What was counted for each service, and for none.
fn outcomes(status: &Status) -> impl Iterator<Item = (&str, &Outcomes)> {
    let services = status.services.iter().map(|it| (it.name.as_str(), &it.outcomes));
    std::iter::once(("", &status.outcomes)).chain(services)
}

/// What XDP has counted of packets, or what the sidecar has of connections and requests.
fn events(status: &Status, of_xdp: bool) -> Vec<Sample> {
    let is_packets = |label: &str| Event::ALL.iter().any(|event| event.label() == label);
    let samples = outcomes(status).flat_map(|(service, outcomes)| {
        let counts = outcomes.events.iter().filter(|(label, _)| is_packets(label) == of_xdp);
        counts.map(move |(label, count)| (vec![service.to_owned(), label.clone()], *count as f64))
    });
    samples.collect()
}

fn of_services(status: &Status, value: fn(&Service) -> Option<f64>) -> Vec<Sample> {
    let services = status.services.iter();
    services.filter_map(|it| Some((vec![it.name.clone()], value(it)?))).collect()
}

fn backends(status: &Status) -> impl Iterator<Item = (&Service, &Backend)> {
    status.services.iter().flat_map(|service| service.backends.iter().map(move |it| (service, it)))
}

fn labels(service: &Service, backend: &Backend, third: Option<&str>) -> Vec<String> {
    [service.name.as_str(), &backend.name].into_iter().chain(third).map(str::to_owned).collect()
}

fn of_backends(status: &Status, value: fn(&Backend) -> Option<f64>) -> Vec<Sample> {
    let samples = backends(status)
        .filter_map(|(service, backend)| Some((labels(service, backend, None), value(backend)?)));
    samples.collect()
}

/// Of what goes to a backend and what comes from it.
fn directions(status: &Status, value: fn(&Backend) -> Option<[u64; 2]>) -> Vec<Sample> {
    let both = backends(status).filter_map(|(service, backend)| {
        let values = ["in", "out"].into_iter().zip(value(backend)?);
        Some(values.map(move |(way, count)| (labels(service, backend, Some(way)), count as f64)))
    });
    both.flatten().collect()
}

/// The text of a status.
pub fn text(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(status)));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Snapshot(Status);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for metric in METRICS {
            let samples = (metric.samples)(&self.0);
            if samples.is_empty() {
                continue;
            }
            let kind = match metric.kind {
                Kind::Counter => MetricType::Counter,
                Kind::Gauge => MetricType::Gauge,
            };
            let help = format!("{}.", metric.help);
            let mut family =
                encoder.encode_descriptor(metric.name, &help, metric.unit.as_ref(), kind)?;
            for (values, value) in samples {
                if metric.labels.is_empty() {
                    metric.kind.encode(&mut family, value)?;
                    continue;
                }
                let labels: Vec<_> = metric.labels.iter().copied().zip(values).collect();
                metric.kind.encode(&mut family.encode_family(&labels)?, value)?;
            }
        }
        match self.0.sidecar.as_ref().and_then(|it| it.handovers.as_ref()) {
            Some(handovers) => encode_handovers(&mut encoder, handovers),
            None => Ok(()),
        }
    }
}

/// The only histogram.
fn encode_handovers(encoder: &mut DescriptorEncoder<'_>, handovers: &Histogram) -> fmt::Result {
    let seconds = |micros: u64| micros as f64 / 1e6;
    let bound = |micros: Option<u64>| micros.map_or(f64::INFINITY, seconds);
    let buckets: Vec<_> =
        handovers.counts.iter().map(|(micros, count)| (bound(*micros), *count)).collect();
    let count = buckets.iter().map(|(_, count)| count).sum();
    encoder
        .encode_descriptor(
            HANDOVER,
            "From the offer of a connection to its splice, in the agent.",
            Some(&Unit::Seconds),
            MetricType::Histogram,
        )?
        .encode_histogram::<NoLabelSet>(handovers.seconds, count, &buckets, None)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_is_in_the_documentation_and_no_other() {
        let page = include_str!("../../../docs/metrics.md");
        for metric in METRICS {
            let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let row = format!(
                "| `{}` | {kind} | {} | {} |",
                metric.full_name(),
                labels.join(", "),
                metric.help
            );
            assert!(page.contains(&row), "missing:\n{row}");
        }
        let named = page.lines().filter(|line| line.starts_with("| `sluice_")).count();
        assert_eq!(named, METRICS.len() + 1);
        assert!(page.contains(&format!("| `{HANDOVER}_seconds` | histogram |")));
    }

    #[test]
    fn names_are_of_one_form_and_unique() {
        let names: BTreeSet<_> = METRICS.iter().map(Metric::full_name).collect();
        assert_eq!(names.len(), METRICS.len());
        for name in names {
            let fits = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            assert!(fits && name.starts_with("sluice_"), "{name}");
        }
    }

    #[test]
    fn a_status_becomes_text_with_escaped_labels() {
        let status = serde_json::json!({
            "edge": "e", "version": "1", "pid": 1, "ready": true, "uptime_seconds": 5, "program_id": 1,
            "adopted": false, "config_generation": 2,
            "interfaces": [{ "name": "eth0", "attached": true }],
            "services": [{
                "name": "a \"b\"", "affinity": "none", "listeners": [], "fail_open": false,
                "turned_away": true, "backends": [], "ended": { "idle": 6 }, "spliced": 5,
                "outcomes": { "events": { "syn_forwarded": 7, "spliced": 8 }, "drops": { "splice_hold": 2 } },
            }],
            "outcomes": { "events": { "pass_not_ip": 3 }, "drops": { "fragment": 9 } },
            "sidecar": {
                "workers": [], "log_lines_lost": 0,
                "handovers": { "seconds": 0.0005, "counts": [[50, 3], [100, 4], [null, 1]] },
            },
            "flows": { "expired": 0, "closed": 4, "orphans": 0, "reset": 0, "unsent_resets": 0 },
            "tables": [],
            "certificates": [{ "service": "a", "certificate": "/c.pem", "not_after": 1_800_000_000 }],
        });
        let text = text(serde_json::from_value(status).unwrap()).unwrap();
        for line in [
            "# TYPE sluice_ready gauge",
            "sluice_ready 1.0",
            "sluice_certificate_expiry_seconds{service=\"a\",certificate=\"/c.pem\"} 1800000000.0",
            "sluice_uptime_seconds 5.0",
            "sluice_config_generation_total 2.0",
            "sluice_interface_attached{interface=\"eth0\"} 1.0",
            "sluice_packets_total{service=\"a \\\"b\\\"\",event=\"syn_forwarded\"} 7.0",
            "sluice_sidecar_outcomes_total{service=\"a \\\"b\\\"\",outcome=\"spliced\"} 8.0",
            "sluice_dropped_packets_total{service=\"a \\\"b\\\"\",reason=\"splice_hold\"} 2.0",
            "sluice_spliced_ended_total{service=\"a \\\"b\\\"\",how=\"idle\"} 6.0",
            "sluice_service_spliced{service=\"a \\\"b\\\"\"} 5.0",
            "sluice_packets_total{service=\"\",event=\"pass_not_ip\"} 3.0",
            "sluice_dropped_packets_total{service=\"\",reason=\"fragment\"} 9.0",
            "sluice_flows_ended_total{how=\"closed\"} 4.0",
            "sluice_splice_handover_seconds_bucket{le=\"0.0001\"} 7",
            "sluice_splice_handover_seconds_bucket{le=\"+Inf\"} 8",
            "sluice_splice_handover_seconds_sum 0.0005",
            "# EOF",
        ] {
            assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
        }
    }
}
