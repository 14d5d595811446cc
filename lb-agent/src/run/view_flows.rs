//! The connections of a service by the path that their bytes take, and by their state. Pure.

use std::collections::BTreeMap;

use super::status::Service;
use crate::flows::Load;

type Flows = BTreeMap<String, BTreeMap<String, u64>>;

/// Of a service that XDP serves, and of its backends by their ids.
pub fn of_xdp(backends: impl Iterator<Item = u16>, loads: &BTreeMap<u16, Load>) -> Flows {
    let load = sum(backends, loads);
    let states = [("handshake", load.handshakes), ("open", load.open), ("closing", load.closing)];
    [("l4".to_owned(), states.map(|(state, count)| (state.to_owned(), count.into())).into())].into()
}

/// Of a service that the sidecar serves: what it relays, what XDP carries for it, and all the others.
pub fn of_l7(service: &mut Service, loads: &BTreeMap<u16, Load>) {
    let load = sum(service.backends.iter().filter_map(|backend| backend.id), loads);
    let relayed = service.relayed.unwrap_or(0);
    // The three are not of the same moment.
    let spliced = service.spliced.unwrap_or(0);
    let http = service.connections.unwrap_or(0).saturating_sub(relayed + spliced);
    let counts = [
        ("http", "open", http),
        ("relay", "open", relayed),
        ("splice", "open", spliced),
        ("splice", "closing", load.spliced_closing.into()),
    ];
    for (path, state, count) in counts {
        service.flows.entry(path.to_owned()).or_default().insert(state.to_owned(), count);
    }
}

fn sum(backends: impl Iterator<Item = u16>, loads: &BTreeMap<u16, Load>) -> Load {
    let mut sum = Load::default();
    backends.filter_map(|id| loads.get(&id)).for_each(|load| sum += *load);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(flows: &Flows) -> Vec<(&str, &str, u64)> {
        let all = flows.iter().flat_map(|(path, states)| {
            states.iter().map(|(state, count)| (path.as_str(), state.as_str(), *count))
        });
        all.collect()
    }

    fn loads() -> BTreeMap<u16, Load> {
        let one = Load { handshakes: 1, open: 2, closing: 3, ..Load::default() };
        let two = Load { open: 10, spliced: 4, spliced_closing: 5, ..Load::default() };
        [(1, one), (2, two)].into()
    }

    #[test]
    fn connections_of_xdp_are_those_of_all_backends() {
        let flows = of_xdp([1, 2, 9].into_iter(), &loads());
        assert_eq!(
            shown(&flows),
            [("l4", "closing", 3), ("l4", "handshake", 1), ("l4", "open", 12)]
        );
    }

    #[test]
    fn what_is_neither_relayed_nor_spliced_is_http() {
        let mut service: Service = serde_json::from_value(serde_json::json!({
            "name": "chat", "affinity": "none", "listeners": [], "fail_open": false, "turned_away": false,
            "connections": 20, "relayed": 7, "spliced": 4, "outcomes": { "events": {}, "drops": {} },
            "backends": [{
                "name": "a", "id": 2, "address": "10.2.0.2:80", "weight": 100, "effective_weight": 100, "share": {},
                "connections": 0,
                "health": { "state": "up", "since_seconds": 1.0, "probes": 1, "failures": 0 },
            }],
        }))
        .unwrap();
        of_l7(&mut service, &loads());
        let wanted = [
            ("http", "open", 9),
            ("relay", "open", 7),
            ("splice", "closing", 5),
            ("splice", "open", 4),
        ];
        assert_eq!(shown(&service.flows), wanted);
    }
}
