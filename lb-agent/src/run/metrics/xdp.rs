//! Metrics of what XDP measures.

use super::metrics;

metrics! {
    Histogram "sluice_service_handshake_rtt_seconds" ["service"]
        "From a client's SYN to the segment that completes its handshake, at the edge: nat, dsr and ipip include the backend, a spliced service the client's own link alone":
        |it, to| {
            for (service, times) in &it.handshakes {
                to.histogram(&[service], times);
            }
        };
    Counter "sluice_xdp_run_seconds_total" []
        "Time that the XDP program ran, as far as kernel.bpf_stats_enabled was on; absent until then":
        |it, to| it.xdp_runs.iter().for_each(|it| to.put(&[], it.seconds));
    Counter "sluice_xdp_runs_total" []
        "Packets that sluice_xdp_run_seconds_total is about":
        |it, to| it.xdp_runs.iter().for_each(|it| to.count(&[], it.runs));
}
