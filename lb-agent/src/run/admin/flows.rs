//! `GET /v1/flows`: connections in the flow tables, filtered, a page at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::Context;
use axum::{
    extract::{Query, State, rejection::QueryRejection},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{blocking, problem::Problem};
use crate::{
    bpf::sys::now_ticks,
    flows::list::{Carried, Cursor, Filter, Listed, page},
    overrides::suggestion,
    run::view::{Picture, Sources},
};

const USUAL_LIMIT: usize = 100;
const MOST: usize = 10_000;
const KEYS: &str =
    "there are service, backend, client (an address), limit and cursor (the `next` of an answer)";

/// What is wanted; all of it together.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Wanted {
    service: Option<String>,
    backend: Option<String>,
    client: Option<IpAddr>,
    limit: Option<usize>,
    cursor: Option<Cursor>,
}

impl Wanted {
    fn limit(&self) -> Result<usize, Problem> {
        match self.limit.unwrap_or(USUAL_LIMIT) {
            limit @ 1..=MOST => Ok(limit),
            limit => {
                Err(wrong(format!("limit={limit}: out of range"), format!("write 1 to {MOST}")))
            }
        }
    }
}

fn wrong(error: String, remedy: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error, remedy)
}

/// `GET /v1/flows`
pub async fn flows(
    State(state): State<super::State>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(wanted) = wanted.map_err(|error| wrong(error.body_text(), KEYS))?;
    let limit = wanted.limit()?;
    let picture = state.view.picture();
    let Sources { pins, .. } = super::reads::sources(&state)?;
    let names = Names::new(&picture);
    let filter = names.filter(&wanted)?;
    let cursor = wanted.cursor;
    let json = blocking(move || {
        let (rows, next) = page(&pins, &filter, limit, cursor, now_ticks())
            .context("the flow tables cannot be read")?;
        let flows = rows.iter().map(|row| names.row(row)).collect();
        let next = next.map(|next| next.to_string());
        Ok(serde_json::to_vec(&Answer { flows, next })?)
    });
    Ok(([(CONTENT_TYPE, "application/json")], json.await?).into_response())
}

/// A page. Values of `serde_json` would take most of the time of a large one.
#[derive(Serialize)]
struct Answer<'a> {
    flows: Vec<Row<'a>>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Row<'a> {
    client: SocketAddr,
    listener: SocketAddr,
    service: Option<&'a str>,
    backend: Option<&'a str>,
    backend_id: u16,
    forward: &'static str,
    state: &'static str,
    age_seconds: f64,
    idle_seconds: f64,
    from_client: Carried,
    to_client: Option<Carried>,
}

/// What the numbers in the maps are called.
struct Names {
    /// By the listener.
    services: BTreeMap<SocketAddr, String>,
    /// Service and backend, by the number.
    backends: BTreeMap<u16, (String, String)>,
}

impl Names {
    fn new(picture: &Picture) -> Self {
        let mut names = Self { services: BTreeMap::new(), backends: BTreeMap::new() };
        for service in picture.services.iter() {
            let ids = service.backends.iter().map(|(id, _)| Some(*id));
            names.add(&service.config, ids);
        }
        for service in picture.l7.iter() {
            names.add(&service.config, service.backends.iter().copied());
        }
        names
    }

    fn add(&mut self, service: &crate::config::Service, ids: impl Iterator<Item = Option<u16>>) {
        let name = || service.name.clone();
        self.services.extend(service.listen.iter().map(|at| (*at, name())));
        let named = ids.zip(&service.backends);
        let named = named.filter_map(|(id, it)| Some((id?, (name(), it.name.clone()))));
        self.backends.extend(named);
    }

    fn filter(&self, wanted: &Wanted) -> Result<Filter, Problem> {
        let mut filter = Filter { client: wanted.client, ..Filter::default() };
        if let Some(name) = &wanted.service {
            let listeners = self.services.iter().filter(|(_, it)| *it == name);
            let listeners: BTreeSet<_> = listeners.map(|(at, _)| *at).collect();
            let known = self.services.values().map(String::as_str);
            filter.listeners = Some(not_empty(listeners, "service", name, known)?);
        }
        if let Some(name) = &wanted.backend {
            let of_service = |it: &str| wanted.service.as_deref().is_none_or(|name| name == it);
            let backends = self.backends.iter();
            let meant = backends.filter(|(_, (service, it))| it == name && of_service(service));
            let ids: BTreeSet<_> = meant.map(|(id, _)| *id).collect();
            let known = self.backends.values().map(|(_, it)| it.as_str());
            filter.backends = Some(not_empty(ids, "backend", name, known)?);
        }
        Ok(filter)
    }

    fn row(&self, row: &Listed) -> Row<'_> {
        Row {
            client: row.client,
            listener: row.listener,
            service: self.services.get(&row.listener).map(String::as_str),
            backend: self.backends.get(&row.backend).map(|(_, name)| name.as_str()),
            backend_id: row.backend,
            forward: row.forward,
            state: row.state,
            age_seconds: row.age_seconds,
            idle_seconds: row.idle_seconds,
            from_client: row.from_client.into(),
            to_client: row.to_client.map(Carried::from),
        }
    }
}

/// Nothing of a name that does not exist would look as if it had no flows.
fn not_empty<'a, T>(
    found: BTreeSet<T>,
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'a str>,
) -> Result<BTreeSet<T>, Problem> {
    if !found.is_empty() {
        return Ok(found);
    }
    let known: BTreeSet<_> = known.collect();
    let known: Vec<_> = known.into_iter().collect();
    let error = format!("there is no {what} {name:?}");
    Err(Problem::new(StatusCode::NOT_FOUND, error, suggestion(name, &known)))
}
