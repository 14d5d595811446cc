//! Metrics of backends: what is known of them, what they get, and how they do.

use super::{Samples, metrics, truth};
use crate::run::status::{Backend, Status};

metrics! {
    Gauge "sluice_backend_up" ["service" "backend"]
        "1 if its health checks succeed": |it, to| each(it, to, |it| Some(truth(it.health.state == "up")));
    Gauge "sluice_backend_unknown" ["service" "backend"]
        "1 until its health checks have said anything":
        |it, to| each(it, to, |it| Some(truth(it.health.state == "unknown")));
    Gauge "sluice_backend_weight" ["service" "backend"]
        "As configured": |it, to| each(it, to, |it| Some(it.weight.into()));
    Gauge "sluice_backend_effective_weight" ["service" "backend"]
        "As it is now: 0 while it gets no new clients, less than the configured one while it starts slowly":
        |it, to| each(it, to, |it| Some(it.effective_weight.into()));
    Gauge "sluice_backend_draining" ["service" "backend"]
        "1 while it drains": |it, to| each(it, to, |it| Some(truth(it.draining_until.is_some())));
    Gauge "sluice_backend_ejected" ["service" "backend"]
        "1 while it is ejected for what its clients met":
        |it, to| each(it, to, |it| it.ejections.map(|_| truth(it.ejected.is_some())));
    Counter "sluice_backend_ejections_total" ["service" "backend"]
        "Ejections since the agent's start": |it, to| each(it, to, |it| it.ejections.map(|it| it as f64));
    Gauge "sluice_backend_connections" ["service" "backend"]
        "Connections now; with mode = \"l7\", connections and requests that count as load":
        |it, to| each(it, to, |it| Some(it.connections as f64));
    Gauge "sluice_backend_spliced" ["service" "backend"]
        "Spliced connections now": |it, to| each(it, to, |it| it.spliced.map(|it| it as f64));
    Counter "sluice_backend_health_probes_total" ["service" "backend"]
        "Health probes that ended": |it, to| each(it, to, |it| Some(it.health.probes as f64));
    Counter "sluice_backend_health_failures_total" ["service" "backend"]
        "Health probes that failed": |it, to| each(it, to, |it| Some(it.health.failures as f64));
    Gauge "sluice_backend_health_probe_seconds" ["service" "backend"]
        "How long the health probe took that ended last":
        |it, to| each(it, to, |it| Some(it.health.last.as_ref()?.latency_ms / 1e3));
    Counter "sluice_backend_picked_total" ["service" "backend"]
        "Times that it was picked for a client": |it, to| each(it, to, |it| {
            // XDP carries what the sidecar has picked, and picks nothing itself.
            let by_sidecar = it.requests.as_ref().map(|it| it.picked);
            by_sidecar.or(it.traffic.as_ref().map(|it| it.picked)).map(|it| it as f64)
        });
    Counter "sluice_backend_failed_total" ["service" "backend"]
        "Connects and handshakes of the sidecar that failed":
        |it, to| each(it, to, |it| Some(it.requests.as_ref()?.failed as f64));
    Counter "sluice_backend_relayed_bytes_total" ["service" "backend" "direction"]
        "Bytes that the sidecar carried, bodies and frames": |it, to| directions(it, to, |it| {
            it.requests.as_ref().map(|it| [it.bytes_in, it.bytes_out])
        });
    Counter "sluice_backend_forwarded_bytes_total" ["service" "backend" "direction"]
        "Bytes of IP packets that XDP forwarded, headers included": |it, to| directions(it, to, |it| {
            it.traffic.as_ref().map(|it| [it.to_backend_bytes, it.to_client_bytes])
        });
    Counter "sluice_backend_forwarded_packets_total" ["service" "backend" "direction"]
        "IP packets that XDP forwarded": |it, to| directions(it, to, |it| {
            it.traffic.as_ref().map(|it| [it.to_backend_packets, it.to_client_packets])
        });
    Counter "sluice_backend_flows_total" ["service" "backend" "change"]
        "Flows that were opened, closed by both sides, or reset by one": |it, to| {
            for (service, backend) in backends(it) {
                let Some(traffic) = &backend.traffic else { continue };
                to.count(&[service, &backend.name, "opened"], traffic.opened);
                to.count(&[service, &backend.name, "closed"], traffic.closed);
                to.count(&[service, &backend.name, "reset"], traffic.reset);
            }
        };
}

fn backends(status: &Status) -> impl Iterator<Item = (&str, &Backend)> {
    let services = status.services.iter();
    services.flat_map(|service| service.backends.iter().map(|it| (service.name.as_str(), it)))
}

fn each(status: &Status, to: &mut Samples<'_>, value: fn(&Backend) -> Option<f64>) {
    for (service, backend) in backends(status) {
        if let Some(value) = value(backend) {
            to.put(&[service, &backend.name], value);
        }
    }
}

/// Of what goes to a backend and what comes from it.
fn directions(status: &Status, to: &mut Samples<'_>, value: fn(&Backend) -> Option<[u64; 2]>) {
    for (service, backend) in backends(status) {
        if let Some([inward, outward]) = value(backend) {
            to.count(&[service, &backend.name, "in"], inward);
            to.count(&[service, &backend.name, "out"], outward);
        }
    }
}
