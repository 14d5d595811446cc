//! Metrics of what XDP did with packets, and of the flows that the agent removed.

use lb_common::outcome::Event;

use super::{metrics, services::outcomes};

metrics! {
    Counter "sluice_packets_total" ["service" "event"]
        "Packets by what became of them, as far as they are not counted per backend; the service is empty for packets of none":
        |it, to| {
            for (service, outcomes) in outcomes(it) {
                for (event, count) in outcomes.events.iter().filter(|(label, _)| is_event(label)) {
                    to.count(&[service, event], *count);
                }
            }
        };
    Counter "sluice_dropped_packets_total" ["service" "reason"]
        "Packets dropped, by reason; the service is empty for packets of none": |it, to| {
            for (service, outcomes) in outcomes(it) {
                for (reason, count) in &outcomes.drops {
                    to.count(&[service, reason], *count);
                }
            }
        };
    Counter "sluice_flows_ended_total" ["how"]
        "Entries of the flow tables that the agent removed: closed, idle for too long (expired), never completed, halves, reset, reset by a drain":
        |it, to| {
            let flows = &it.flows;
            to.count(&["closed"], flows.closed);
            to.count(&["expired"], flows.expired);
            to.count(&["abandoned"], flows.abandoned);
            to.count(&["orphan"], flows.orphans);
            to.count(&["reset"], flows.reset);
            to.count(&["drained"], flows.drained);
        };
    Counter "sluice_unsent_resets_total" []
        "RST packets that could not be sent": |it, to| to.count(&[], it.flows.unsent_resets);
}

/// Whether it is XDP that counts this, or else the sidecar.
pub fn is_event(label: &str) -> bool {
    Event::ALL.iter().any(|event| event.label() == label)
}
