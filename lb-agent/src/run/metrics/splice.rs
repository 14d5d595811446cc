//! Metrics of splicing: what was offered to XDP, what came of it, and how long that took.

use lb_sidecar::{outcome::Outcome, splice::Refusal};

use super::{metrics, services::outcomes};
use crate::run::status::Outcomes;

/// Before the reasons, among the outcomes.
const PREFIX: &str = "splice_";

metrics! {
    Counter "sluice_splice_attempts_total" ["service"]
        "Upgraded connections that were offered to XDP, each as often as it was": |it, to| {
            for (service, outcomes) in outcomes(it).filter(|(service, _)| !service.is_empty()) {
                match attempts(outcomes) {
                    0 => {}
                    attempts => to.count(&[service], attempts),
                }
            }
        };
    Counter "sluice_splice_refusals_total" ["service" "reason"]
        "Attempts that were refused, by reason, and connections that are never offered: tls, http2, limited, unchecked_port":
        |it, to| {
            for (service, outcomes) in outcomes(it) {
                for (outcome, count) in &outcomes.events {
                    let reason = outcome.strip_prefix(PREFIX);
                    // To wait is no attempt yet.
                    let waits = outcome == Outcome::SpliceWaits.label();
                    if let Some(reason) = reason.filter(|_| !waits) {
                        to.count(&[service, reason], *count);
                    }
                }
            }
        };
    Counter "sluice_spliced_ended_total" ["service" "how"]
        "Spliced connections that have ended, by how: the access log's `ended_by`": |it, to| {
            for service in &it.services {
                let ended = service.ended.iter();
                ended.for_each(|(how, count)| to.count(&[&service.name, how], *count));
            }
        };
    Histogram "sluice_splice_handover_seconds" []
        "From the offer of a connection to its splice, in the agent": |it, to| {
            let handovers = it.sidecar.as_ref().and_then(|it| it.handovers.as_ref());
            handovers.into_iter().for_each(|it| to.histogram(&[], it));
        };
}

/// Those that succeeded, that were refused, and of which nothing is known since the agent ended.
fn attempts(outcomes: &Outcomes) -> u64 {
    let of = |label: &str| outcomes.events.get(label).copied().unwrap_or(0);
    let refused = Refusal::ALL.iter().map(|it| of(&format!("{PREFIX}{}", it.label())));
    refused.sum::<u64>() + of(Outcome::Spliced.label()) + of(Outcome::SpliceLost.label())
}
