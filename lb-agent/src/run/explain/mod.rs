//! Which backend a client gets now, and why. Looks, and touches nothing.
//!
//! The answer is made by the same code that serves clients: the hash and the ring of XDP ([`l4`]), and a worker's pool
//! ([`l7`]), fed with what the maps and the workers were told last.

mod l4;
mod l7;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use lb_common::addr::{Addr, Tuple, V4, V6};
use serde::{Deserialize, Serialize};

use super::view::{Picture, Sources};
use crate::{
    config::Service,
    flows::table::{self, FlowTable},
    health,
    overrides::Refusal,
};

/// What somebody wants to know.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Its address, and its port if that is known: `10.1.0.2` or `10.1.0.2:5000`.
    pub client: String,
    /// The listener.
    pub vip: String,
    /// What it sends in `Cookie`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// Another header, as `Name: value`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Path and query of its request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Who it gets, and what led there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    pub service: String,
    /// `l4` or `l7`.
    pub mode: String,
    /// In the order in which it is decided.
    pub steps: Vec<Step>,
    /// No flow decides: `backend` is what a new connection gets. A connection of an l7 service that a worker relays is
    /// in no flow table, and may have another.
    #[serde(default)]
    pub newcomer: bool,
    /// None if nobody can say, or nobody is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<Chosen>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// `flow`, `cookie`, `ring`, `balance`, ...
    pub by: String,
    pub says: String,
}

/// A backend, and how it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    pub name: String,
    pub address: SocketAddr,
    /// `up`, `down` or `unknown`, by its probes.
    pub health: String,
    pub weight: u32,
}

/// A client whose port may not be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Client {
    ip: IpAddr,
    port: Option<u16>,
}

impl Explanation {
    fn step(&mut self, by: &str, says: impl Into<String>) {
        self.steps.push(Step { by: by.to_owned(), says: says.into() });
    }
}

/// Answers from what the agent shows.
pub fn explain(question: &Question, picture: &Picture) -> Result<Explanation, Refusal> {
    let client = client(&question.client)?;
    let vip: SocketAddr = question.vip.parse().map_err(|_| {
        let error = format!("vip {:?} is not an IP address and port", question.vip);
        Refusal::invalid(error, "write e.g. 203.0.113.10:80".to_owned())
    })?;
    if client.ip.is_ipv4() != vip.is_ipv4() {
        let error = format!("{} cannot connect to {vip}: their IP versions differ", client.ip);
        return Err(Refusal::invalid(error, "write two addresses of one version".to_owned()));
    }
    let Some(sources) = &picture.sources else {
        let error = "the agent is starting".to_owned();
        return Err(Refusal::failed(error, "ask again in a moment".to_owned()));
    };
    let services = &sources.config.services;
    let Some(service) = services.iter().find(|it| it.listen.contains(&vip)) else {
        let listeners = services.iter().flat_map(|it| &it.listen).map(ToString::to_string);
        let listeners: Vec<_> = listeners.take(10).collect();
        let error = format!("no service listens at {vip}");
        return Err(Refusal::unknown(error, format!("there are e.g. {}", listeners.join(", "))));
    };
    let mut answer = Explanation { service: service.name.clone(), ..Explanation::default() };
    answer.mode = if service.l7().is_some() { "l7" } else { "l4" }.to_owned();
    let of_flow = flow(&mut answer, sources, client, vip)?;
    answer.newcomer = of_flow.is_none();
    let ids = ids(picture, service);
    if let Some(id) = of_flow {
        let place = ids.iter().position(|it| *it == Some(id));
        answer.backend = place.and_then(|place| chosen(sources, service, place));
        if answer.backend.is_none() {
            answer.step("backend", format!("number {id} is none of the service's any more"));
        }
        return Ok(answer);
    }
    let place = match picture.services.iter().find(|it| it.config.name == service.name) {
        Some(of_xdp) => l4::pick(&mut answer, of_xdp, seed(sources), client, vip),
        None => l7::pick(&mut answer, picture, sources, service, (client, question))?,
    };
    answer.backend = place.and_then(|place| chosen(sources, service, place));
    Ok(answer)
}

fn client(text: &str) -> Result<Client, Refusal> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(Client { ip, port: None });
    }
    let address = text.parse::<SocketAddr>().map_err(|_| {
        let error = format!("client {text:?} is not an IP address, with a port or without");
        Refusal::invalid(error, "write e.g. 198.51.100.7 or 198.51.100.7:40000".to_owned())
    })?;
    Ok(Client { ip: address.ip(), port: Some(address.port()) })
}

fn seed(sources: &Sources) -> u64 {
    lb_common::hash::seed(&sources.config.edge.hash_seed)
}

/// The numbers of its backends in the maps, in the order of the configuration.
pub(super) fn ids(picture: &Picture, service: &Service) -> Vec<Option<u16>> {
    let of_xdp = picture.services.iter().find(|it| it.config.name == service.name);
    if let Some(of_xdp) = of_xdp {
        return of_xdp.backends.iter().map(|(id, _)| Some(*id)).collect();
    }
    let of_sidecar = picture.l7.iter().find(|it| it.config.name == service.name);
    of_sidecar.map(|it| it.backends.clone()).unwrap_or_default()
}

fn chosen(sources: &Sources, service: &Service, place: usize) -> Option<Chosen> {
    let backend = service.backends.get(place)?;
    let health = sources.health.snapshot();
    let state = health.get(&super::checks::key(&service.name, backend)).map(|it| it.state);
    Some(Chosen {
        name: backend.name.clone(),
        address: backend.address,
        health: state.unwrap_or(health::State::Unknown).to_string(),
        weight: backend.weight,
    })
}

/// The backend of the connection that there is, by its number.
fn flow(
    answer: &mut Explanation,
    sources: &Sources,
    client: Client,
    vip: SocketAddr,
) -> Result<Option<u16>, Refusal> {
    let Some(port) = client.port else {
        answer.step("flow", "not looked up, without the client's port");
        return Ok(None);
    };
    let found = match (client.ip, vip.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            look_up::<V4>(sources, tuple(from.into(), port, to.into(), vip.port()))
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            look_up::<V6>(sources, tuple(from.into(), port, to.into(), vip.port()))
        }
        _ => Ok(None),
    };
    let found = found.map_err(|error| {
        Refusal::failed(
            format!("the flow tables cannot be read: {error}"),
            "is the data plane loaded?".to_owned(),
        )
    })?;
    answer.step("flow", of_flow(found.is_some(), &answer.mode));
    Ok(found)
}

/// What it means that the connection is in the flow tables, or not.
fn of_flow(found: bool, mode: &str) -> &'static str {
    match (found, mode) {
        (true, _) => "it is connected: the flow decides",
        (false, "l7") => {
            "none in XDP: if it is open, a worker relays it, and the access log has its backend; a new connection gets:"
        }
        (false, _) => "none: a new connection",
    }
}

fn tuple<A: Addr>(src: A, sport: u16, dst: A, dport: u16) -> Tuple<A> {
    Tuple { src, dst, sport: sport.to_be(), dport: dport.to_be() }
}

fn look_up<A: table::Family + std::hash::Hash>(
    sources: &Sources,
    tuple: Tuple<A>,
) -> std::io::Result<Option<u16>>
where
    Tuple<A>: aya::Pod,
    lb_common::flow::Flow<A>: aya::Pod,
{
    let entry = table::flows::<A>(&sources.pins)?.get(&tuple)?;
    Ok(entry.map(|entry| entry.flow.backend))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_xdp_does_not_carry_is_no_new_one_if_a_worker_may_relay_it() {
        assert!(of_flow(false, "l4").contains("a new connection"));
        assert!(of_flow(false, "l7").contains("a worker relays it"));
        assert!(["l4", "l7"].iter().all(|mode| of_flow(true, mode).contains("the flow decides")));
    }
}
