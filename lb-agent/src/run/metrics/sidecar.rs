//! Metrics of the sidecar's processes, and of what the agent does for them.

use super::metrics;

metrics! {
    Gauge "sluice_worker_connections" ["worker" "state"]
        "Client connections that a worker of the sidecar has open": |it, to| {
            for it in it.sidecar.iter().flat_map(|it| &it.workers) {
                to.count(&[&it.index.to_string(), &it.state], it.connections);
            }
        };
    Counter "sluice_worker_restarts_total" ["worker"]
        "How often a worker of this place ended unasked": |it, to| {
            let workers = it.sidecar.iter().flat_map(|it| &it.workers);
            for it in workers.filter(|it| it.state != "retired") {
                to.count(&[&it.index.to_string()], it.restarts);
            }
        };
    Counter "sluice_access_log_lines_lost_total" []
        "Access log lines that could not be written fast enough":
        |it, to| to.count(&[], it.sidecar.as_ref().map_or(0, |it| it.log_lines_lost));
}
