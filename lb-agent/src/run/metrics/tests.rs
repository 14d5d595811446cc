mod exposition;
mod packaged;
mod promql;

use std::collections::BTreeSet;

use super::*;

fn all() -> impl Iterator<Item = &'static Metric> {
    ALL.iter().copied().flatten()
}

#[test]
fn every_metric_is_in_the_documentation_and_no_other() {
    let page = include_str!("../../../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `sluice_"));
    let documented: BTreeSet<_> = rows.map(str::to_owned).collect();
    let there = all().map(|metric| {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let kind = format!("{:?}", metric.kind).to_lowercase();
        format!("| `{}` | {kind} | {} | {} |", metric.name, labels.join(", "), metric.help)
    });
    let there: BTreeSet<_> = there.collect();
    let missing: Vec<_> = there.difference(&documented).collect();
    let gone: Vec<_> = documented.difference(&there).collect();
    assert!(missing.is_empty() && gone.is_empty(), "missing: {missing:#?}, not there: {gone:#?}");
}

#[test]
fn names_are_of_one_form_and_unique() {
    let names: BTreeSet<_> = all().map(|it| it.name).collect();
    assert_eq!(names.len(), all().count());
    for Metric { name, kind, .. } in all() {
        let fits = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        assert!(fits && name.starts_with("sluice_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
        assert!(*kind != Kind::Histogram || name.ends_with("_seconds"), "{name}");
    }
}

/// Of an edge that has something of everything.
fn status() -> Status {
    let status = serde_json::json!({
        "edge": "e", "version": "1", "pid": 1, "ready": true, "uptime_seconds": 5, "program_id": 1,
        "adopted": false, "config_generation": 2,
        "interfaces": [{ "name": "eth0", "attached": true }],
        "services": [{
            "name": "a \"b\"", "affinity": "none", "listeners": [], "fail_open": false,
            "turned_away": true, "spilling": false, "connections": 9, "relayed": 3,
            "routes": [{ "name": "rooms", "requests": 4 }],
            "backends": [{
                "name": "b", "address": "10.2.0.2:80", "weight": 100, "effective_weight": 100, "share": {},
                "connections": 0, "spliced": 0, "ejections": 1,
                "health": {
                    "state": "up", "since_seconds": 1.0, "probes": 1, "failures": 0,
                    "last": { "ok": true, "latency_ms": 1.5, "ago_seconds": 1.0 },
                },
                "traffic": {
                    "to_backend_packets": 1, "to_backend_bytes": 2, "to_client_packets": 3, "to_client_bytes": 4,
                    "picked": 5, "opened": 6, "closed": 7, "reset": 8,
                },
                "requests": { "picked": 1, "failed": 2, "bytes_in": 3, "bytes_out": 4 },
            }],
            "ended": { "idle": 6 }, "spliced": 5,
            "flows": { "relay": { "open": 3 } },
            "times": {
                "client_handshake": { "seconds": 1.5, "counts": [[100, 1], [null, 2]] },
                "tls_handshake": { "seconds": 1.5, "counts": [[100, 1], [null, 2]] },
                "request": { "seconds": 1.5, "counts": [[100, 1], [null, 2]] },
                "backend_connect": { "seconds": 1.5, "counts": [[100, 1], [null, 2]] },
                "backend_answer": { "seconds": 1.5, "counts": [[100, 1], [null, 2]] },
            },
            "outcomes": { "events": { "syn_forwarded": 7, "spliced": 8, "splice_busy": 2, "splice_waits": 9, "splice_tls": 3 }, "drops": { "splice_hold": 2 } },
        }],
        "outcomes": { "events": { "pass_not_ip": 3 }, "drops": { "fragment": 9 } },
        "sidecar": {
            "workers": [{ "index": 0, "pid": 1, "state": "serving", "restarts": 0, "connections": 2 }],
            "log_lines_lost": 0,
            "handovers": { "seconds": 0.0005, "counts": [[50, 3], [100, 4], [null, 1]] },
        },
        "flows": { "expired": 0, "closed": 4, "orphans": 0, "reset": 0, "unsent_resets": 0 },
        "handshakes": { "a \"b\"": { "seconds": 0.25, "counts": [[64, 1], [null, 1]] } },
        "xdp_runs": { "seconds": 0.5, "runs": 12 },
        "tables": [{ "name": "FLOWS4", "entries": 1, "capacity": 2 }],
        "certificates": [{ "service": "a", "certificate": "/c.pem", "not_after": 1_800_000_000 }],
    });
    serde_json::from_value(status).unwrap()
}

#[test]
fn the_text_is_that_of_its_format_and_has_every_metric_with_its_labels() {
    let families = exposition::parse(&text(&status(), Format::Prometheus)).unwrap();
    for metric in all() {
        let family = families.get(metric.name).unwrap_or_else(|| panic!("no {}", metric.name));
        assert_eq!(family.kind, format!("{:?}", metric.kind).to_lowercase(), "{}", metric.name);
        assert_eq!(family.help.trim_end_matches('.'), metric.help.replace('\\', "\\\\"));
        let labels: BTreeSet<_> = metric.labels.iter().map(|it| (*it).to_owned()).collect();
        assert_eq!(family.labels, labels, "{}", metric.name);
    }
    assert_eq!(families.len(), all().count());
}

#[test]
fn a_status_becomes_text_with_escaped_labels() {
    let text = text(&status(), Format::OpenMetrics);
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
        "sluice_service_flows{service=\"a \\\"b\\\"\",path=\"relay\",state=\"open\"} 3.0",
        "# TYPE sluice_tls_handshake_seconds histogram",
        "# UNIT sluice_tls_handshake_seconds seconds",
        "sluice_tls_handshake_seconds_bucket{service=\"a \\\"b\\\"\",le=\"0.0001\"} 1",
        "sluice_tls_handshake_seconds_bucket{service=\"a \\\"b\\\"\",le=\"+Inf\"} 3",
        "sluice_tls_handshake_seconds_sum{service=\"a \\\"b\\\"\"} 1.5",
        "sluice_tls_handshake_seconds_count{service=\"a \\\"b\\\"\"} 3",
        "sluice_splice_attempts_total{service=\"a \\\"b\\\"\"} 10.0",
        "sluice_splice_refusals_total{service=\"a \\\"b\\\"\",reason=\"busy\"} 2.0",
        "sluice_splice_refusals_total{service=\"a \\\"b\\\"\",reason=\"tls\"} 3.0",
        "sluice_splice_handover_seconds_bucket{le=\"0.0001\"} 7",
        "sluice_splice_handover_seconds_bucket{le=\"+Inf\"} 8",
        "sluice_splice_handover_seconds_sum 0.0005",
        "# EOF",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("reason=\"waits\""), "{text}");
}
