//! The dashboard and the alerts name nothing that does not exist: no metric, no label, and no value that a label cannot
//! have.

use std::collections::BTreeSet;

use lb_common::outcome::{DropReason, Event};
use lb_sidecar::{
    framing::Violation,
    outcome::{Outcome, Outcomes},
    pool::Sticky,
    splice::Refusal,
};
use serde_json::Value;

use super::{
    all,
    promql::{Found, parse},
};
use crate::{bpf::specs::names, run::metrics::Kind};

const RULES: &str = include_str!("../../../../../packaging/prometheus/sluice.rules.yml");
const RULES_TEST: &str = include_str!("../../../../../packaging/prometheus/sluice.rules.test.yml");
const DASHBOARD: &str = include_str!("../../../../../packaging/grafana/sluice.json");

/// Whoever scrapes adds them.
const SCRAPED: [&str; 2] = ["instance", "job"];

/// The labels of a series, if there is such a one.
fn labels_of(series: &str) -> Option<BTreeSet<&'static str>> {
    if series == "up" {
        return Some(SCRAPED.into());
    }
    let metric = all().find(|metric| match metric.kind {
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| series.strip_suffix(suffix) == Some(metric.name)),
        _ => metric.name == series,
    })?;
    let bound = series.ends_with("_bucket").then_some("le");
    Some(metric.labels.iter().copied().chain(SCRAPED).chain(bound).collect())
}

/// The values that a label can have; none: any.
fn values_of(series: &str, label: &str) -> Option<BTreeSet<String>> {
    let of = |values: &[&str]| Some(values.iter().map(|it| (*it).to_owned()).collect());
    let outcomes = || {
        let outcomes = Outcomes::default();
        Outcome::ALL.iter().for_each(|it| outcomes.count(*it));
        Violation::ALL.iter().for_each(|it| outcomes.count(*it));
        Sticky::ALL.iter().for_each(|it| outcomes.stuck(*it));
        Refusal::ALL.iter().for_each(|it| outcomes.not_spliced(*it));
        outcomes.report().map(|(label, _)| label).collect::<BTreeSet<_>>()
    };
    match (series, label) {
        ("sluice_packets_total", "event") => {
            Some(Event::ALL.iter().map(|it| it.label().to_owned()).collect())
        }
        ("sluice_dropped_packets_total", "reason") => {
            Some(DropReason::ALL.iter().map(|it| it.label().to_owned()).collect())
        }
        ("sluice_sidecar_outcomes_total", "outcome") => Some(outcomes()),
        ("sluice_splice_refusals_total", "reason") => {
            let reasons = outcomes().into_iter();
            Some(reasons.filter_map(|it| it.strip_prefix("splice_").map(str::to_owned)).collect())
        }
        ("sluice_table_entries" | "sluice_table_capacity", "table") => {
            of(&[names::FLOWS4, names::FLOWS6, names::HANDSHAKES4, names::HANDSHAKES6])
        }
        ("sluice_service_flows", "path") => of(&["l4", "http", "relay", "splice"]),
        ("sluice_service_flows", "state") => of(&["handshake", "open", "closing"]),
        _ => None,
    }
}

/// What is wrong with an expression; the labels that its result can have, if nothing is.
fn check(expression: &str) -> Result<BTreeSet<String>, String> {
    let found = parse(expression, "sluice_")?;
    let mut of_series = BTreeSet::new();
    for it in &found {
        let Found::Series(series, matchers) = it else { continue };
        let labels = labels_of(series).ok_or(format!("there is no metric {series}"))?;
        for (label, is_pattern, value) in matchers {
            if !labels.contains(label) {
                return Err(format!("{series} has no label {label}"));
            }
            let Some(known) = values_of(series, label) else { continue };
            let alternatives = if *is_pattern { value.split('|').collect() } else { vec![*value] };
            for alternative in alternatives {
                let fits = match alternative.strip_suffix(".*") {
                    Some(start) => known.iter().any(|it| it.starts_with(start)),
                    None => known.contains(alternative),
                };
                if !fits && !alternative.starts_with('$') {
                    return Err(format!("{label} of {series} is never {alternative}"));
                }
            }
        }
        of_series.extend(labels);
    }
    if of_series.is_empty() {
        return Err("it names no metric".to_owned());
    }
    let mut grouped = BTreeSet::new();
    for it in &found {
        match it {
            Found::Unknown(word) => return Err(format!("{word} is nothing that is known")),
            Found::Grouped(label) if !of_series.contains(label) => {
                return Err(format!("no metric in it has the label {label}"));
            }
            Found::Grouped(label) => drop(grouped.insert((*label).to_owned())),
            Found::Series(..) => {}
        }
    }
    Ok(if grouped.is_empty() {
        of_series.into_iter().map(str::to_owned).collect()
    } else {
        grouped
    })
}

/// The words behind each `before` in a text, up to what is no part of a word.
fn words<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    let parts = text.split(before).skip(1).map(str::trim_start);
    let end = |it: &str| it.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    parts.map(|it| &it[..end(it).unwrap_or(it.len())]).collect()
}

/// An alert of the file: its name, its expression, and all that is written of it.
fn alerts() -> Vec<(String, String, String)> {
    let mut alerts = Vec::new();
    for block in RULES.split("- alert: ").skip(1) {
        let (name, rest) = block.split_once('\n').unwrap();
        let (_, expression) = rest.split_once("expr: ").unwrap();
        let key = ["\n        for:", "\n        labels:"].into_iter();
        let end = key.filter_map(|it| expression.find(it)).min().unwrap();
        let expression = expression[..end].trim_start_matches(">-").trim();
        alerts.push((name.to_owned(), expression.to_owned(), block.to_owned()));
    }
    alerts
}

#[test]
fn alerts_name_what_exists() {
    let alerts = alerts();
    assert!(alerts.len() > 20);
    for (name, expression, block) in &alerts {
        let labels = check(expression).unwrap_or_else(|error| panic!("{name}: {error}"));
        for label in words(block, "$labels.") {
            assert!(labels.contains(label), "{name}: its series have no label {label}");
        }
        for part in ["severity: ", "summary: ", "description: "] {
            assert!(block.contains(part), "{name} has no {part}");
        }
    }
}

#[test]
fn every_alert_is_documented_and_no_other() {
    let page = include_str!("../../../../../docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `Sluice")).count();
    assert_eq!(rows, alerts().len());
    for (name, _, block) in alerts() {
        let severity = words(&block, "severity: ")[0];
        let row = page.lines().find(|line| line.starts_with(&format!("| `{name}` | ")));
        assert!(
            row.is_some_and(|row| row.ends_with(&format!(" | {severity} |"))),
            "{name}: {row:?}"
        );
    }
}

#[test]
fn every_alert_is_seen_firing_in_the_test_of_the_rules() {
    for (name, ..) in alerts() {
        let mentions = format!("alertname: {name}\n");
        let blocks = RULES_TEST.split(&mentions).skip(1);
        let fires =
            blocks.filter(|it| it.split("alertname:").next().unwrap().contains("exp_labels"));
        assert!(fires.count() > 0, "{name} never fires in sluice.rules.test.yml");
    }
}

/// All objects in a JSON value that have a key.
fn with_key<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    if value.get(key).is_some() {
        found.push(value);
    }
    match value {
        Value::Array(values) => values.iter().for_each(|it| with_key(it, key, found)),
        Value::Object(values) => values.values().for_each(|it| with_key(it, key, found)),
        _ => {}
    }
}

#[test]
fn the_dashboard_names_what_exists() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let mut targets = Vec::new();
    with_key(&dashboard, "expr", &mut targets);
    assert!(targets.len() > 40, "{}", targets.len());
    for target in targets {
        let expression = target["expr"].as_str().unwrap();
        let labels = check(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
        for key in ["legendFormat", "titleFormat"] {
            for label in words(target[key].as_str().unwrap_or_default(), "{{") {
                assert!(labels.contains(label), "{expression}: no label {label} for its {key}");
            }
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        let Some(definition) = variable["definition"].as_str() else { continue };
        let inside = definition.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
        let (series, label) = inside.rsplit_once(',').unwrap();
        let labels = check(series).unwrap_or_else(|error| panic!("{definition}: {error}"));
        assert!(labels.contains(label.trim()), "{definition}");
        assert_eq!(variable["query"]["query"], variable["definition"]);
    }
}

#[test]
fn panels_have_ids_of_their_own_and_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{panel}");
            }
        }
    }
}

#[test]
fn what_does_not_exist_is_found() {
    for (expression, wanted) in [
        ("sluice_redy == 0", "no metric sluice_redy"),
        ("sluice_ready{service=\"a\"} == 0", "no label service"),
        ("sluice_request_seconds > 1", "no metric sluice_request_seconds"),
        ("sum by (backend) (sluice_ready)", "has the label backend"),
        ("sluice_packets_total{event=\"flow_tabel_full\"}", "never flow_tabel_full"),
        ("sluice_dropped_packets_total{reason=~\"fragment|foo\"}", "never foo"),
        ("slice_ready == 0", "names no metric"),
        ("sluice_ready == 0 and slice_ready", "slice_ready is nothing"),
    ] {
        let error = check(expression).unwrap_err();
        assert!(error.contains(wanted), "{expression}: {error}");
    }
    let labels = check(
        "histogram_quantile(0.9, sum by (service, le) (rate(sluice_request_seconds_bucket[5m])))",
    );
    assert_eq!(labels.unwrap(), ["le", "service"].map(str::to_owned).into());
}
