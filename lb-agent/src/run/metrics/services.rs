//! Metrics of services.

use super::{Samples, metrics, packets::is_event, truth};
use crate::run::status::{Outcomes, Service, Status};

metrics! {
    Counter "sluice_sidecar_outcomes_total" ["service" "outcome"]
        "What became of connections and requests of services with mode = \"l7\"": |it, to| {
            for (service, outcomes) in outcomes(it) {
                for (outcome, count) in outcomes.events.iter().filter(|(label, _)| !is_event(label)) {
                    to.count(&[service, outcome], *count);
                }
            }
        };
    Counter "sluice_route_requests_total" ["service" "route"]
        "Requests that a route matched; those that none of the service's routes did have the route none":
        |it, to| {
            for service in &it.services {
                let routes = service.routes.iter();
                routes.for_each(|route| to.count(&[&service.name, &route.name], route.requests));
            }
        };
    Gauge "sluice_service_connections" ["service"]
        "Client connections of services with mode = \"l7\" now, relayed and spliced ones included":
        |it, to| each(it, to, |service| service.connections.map(|it| it as f64));
    Gauge "sluice_service_relayed" ["service"]
        "Upgraded connections that the sidecar relays now":
        |it, to| each(it, to, |service| service.relayed.map(|it| it as f64));
    Gauge "sluice_service_spliced" ["service"]
        "Upgraded connections that XDP carries now":
        |it, to| each(it, to, |service| service.spliced.map(|it| it as f64));
    Gauge "sluice_service_flows" ["service" "path" "state"]
        "Connections by path (l4, http, relay, splice) and state (handshake, open, closing); those of XDP as of the last walk through its tables":
        |it, to| {
            for service in &it.services {
                for (path, states) in &service.flows {
                    for (state, count) in states {
                        to.count(&[&service.name, path, state], *count);
                    }
                }
            }
        };
    Gauge "sluice_service_turned_away" ["service"]
        "1 while no backend can be picked and clients are turned away":
        |it, to| each(it, to, |service| Some(truth(service.turned_away)));
    Gauge "sluice_service_failing_open" ["service"]
        "1 while too few backends are up and all of them get clients nevertheless":
        |it, to| each(it, to, |service| Some(truth(service.fail_open)));
    Gauge "sluice_service_spilling" ["service"]
        "1 while too little of the own zone is up and other zones get newcomers, too":
        |it, to| each(it, to, |service| service.spilling.map(truth));
}

/// What was counted for each service, and for none.
pub fn outcomes(status: &Status) -> impl Iterator<Item = (&str, &Outcomes)> {
    let services = status.services.iter().map(|it| (it.name.as_str(), &it.outcomes));
    std::iter::once(("", &status.outcomes)).chain(services)
}

fn each(status: &Status, to: &mut Samples<'_>, value: fn(&Service) -> Option<f64>) {
    for service in &status.services {
        if let Some(value) = value(service) {
            to.put(&[&service.name], value);
        }
    }
}
