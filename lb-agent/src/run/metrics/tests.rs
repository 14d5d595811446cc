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
    let text = text(&serde_json::from_value(status).unwrap(), Format::OpenMetrics);
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
