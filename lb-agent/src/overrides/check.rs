//! Whether a backend may join a service while the edge runs: what the reader of the file asks of those in it.

use std::net::SocketAddr;

use super::{NewBackend, Refusal, suggestion};
use crate::config::{Config, Forward, Service, is_name, unusable};

/// Says why not.
pub fn joins(config: &Config, service: &Service, new: &NewBackend) -> Result<(), Refusal> {
    let refuse = |key: &str, value: &str, what: &str, remedy: String| {
        let name = &service.name;
        Err(Refusal::invalid(format!("service {name:?}: {key} {value:?} {what}"), remedy))
    };
    let address = new.address.to_string();
    if !is_name(&new.name, "._-:[]") {
        let remedy = "write 1 to 63 letters, digits and ._-:[]".to_owned();
        return refuse("name", &new.name, "is not a name", remedy);
    }
    if let Some(zone) = new.zone.as_ref().filter(|zone| !is_name(zone, "._-")) {
        return refuse("zone", zone, "is not a name", "write e.g. \"rack-1\"".to_owned());
    }
    if let Some(weight) = new.weight.filter(|weight| *weight > 1_000) {
        let remedy = "write 0 to 1000".to_owned();
        return refuse("weight", &weight.to_string(), "is out of range", remedy);
    }
    if let Some(pool) = new.pool.as_ref().filter(|pool| service.pool_number(pool).is_none()) {
        let error = format!("service {:?} has no pool {pool:?}", service.name);
        let names: Vec<_> = service.pool_names().collect();
        return Err(Refusal::unknown(error, suggestion(pool, &names)));
    }
    let own = || "write an address of the backend's own, e.g. \"10.2.0.2:9000\"".to_owned();
    if new.address.port() == 0 {
        return refuse("address", &address, "has port 0", own());
    }
    if let Some(what) = unusable(new.address.ip()) {
        return refuse("address", &address, what, own());
    }
    if let Some(other) = service.backends.iter().find(|it| it.address == new.address) {
        let error = format!(
            "service {:?}: address {address} is that of backend {:?} already",
            service.name, other.name
        );
        return Err(Refusal::conflict(error, own()));
    }
    if let Some(what) = of_the_edge(config, new.address) {
        return refuse("address", &address, what, own());
    }
    fits(service, new.address)?;
    let backends: usize = config.services.iter().map(|it| it.backends.len()).sum();
    if backends >= config.edge.tables.backends as usize {
        let error = format!("backend {address} is beyond the {backends} of edge.tables.backends");
        return Err(Refusal::conflict(error, "raise edge.tables.backends".to_owned()));
    }
    Ok(())
}

/// A packet for a backend must not come back to the edge.
fn of_the_edge(config: &Config, address: SocketAddr) -> Option<&'static str> {
    let listeners = config.services.iter().flat_map(|it| &it.listen);
    if listeners.into_iter().any(|it| it.ip() == address.ip()) {
        return Some("has a VIP: packets would not leave the edge");
    }
    let sources = &config.edge.source_addresses;
    sources
        .contains(&address.ip())
        .then_some("has a source address of the edge: packets would not leave it")
}

/// Whether packets of a service of XDP's get there.
fn fits(service: &Service, address: SocketAddr) -> Result<(), Refusal> {
    if service.l7().is_some() {
        return Ok(());
    }
    let Service { name, forward, listen, .. } = service;
    if !listen.iter().any(|it| forward.carries(it.ip(), address.ip())) {
        let error =
            format!("service {name:?}: no listener can use {address}: its IP version is another");
        return Err(Refusal::invalid(error, "write an address of a listener's version".to_owned()));
    }
    let port = listen.first().map_or(0, SocketAddr::port);
    if *forward != Forward::Nat && port != address.port() {
        let error = format!(
            "service {name:?}: {address} has another port than its listeners, and only nat translates ports"
        );
        return Err(Refusal::invalid(error, format!("write port {port}")));
    }
    Ok(())
}
