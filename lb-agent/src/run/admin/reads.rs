//! The pages that show a part of the status, or what the edge runs with.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde_json::{Map, Value, json};
use toml_edit::{Document, Item, Table};

use super::{problem::Problem, read};
use crate::{
    config::SECRETS,
    overrides::{Difference, suggestion},
    run::view::{MadeOf, Sources},
};

type Answer = Result<Json<Value>, Problem>;

/// `GET /v1/services`
pub async fn services(State(state): State<super::State>) -> Answer {
    let status = read(state).await?;
    Ok(Json(json!({ "services": status.services })))
}

/// `GET /v1/services/{service}`
pub async fn service(State(state): State<super::State>, Path(name): Path<String>) -> Answer {
    let mut services = read(state).await?.services;
    match services.iter().position(|it| it.name == name) {
        Some(place) => Ok(Json(json!(services.swap_remove(place)))),
        None => {
            let names: Vec<_> = services.iter().map(|it| it.name.as_str()).collect();
            let error = format!("there is no service {name:?}");
            Err(Problem::new(StatusCode::NOT_FOUND, error, suggestion(&name, &names)))
        }
    }
}

/// `GET /v1/backends`
pub async fn backends(State(state): State<super::State>) -> Answer {
    let mut all = Vec::new();
    for service in read(state).await?.services {
        for backend in service.backends {
            let mut shown = json!(backend);
            shown["service"] = json!(service.name);
            shown["mode"] = json!(service.mode);
            all.push(shown);
        }
    }
    Ok(Json(json!({ "backends": all })))
}

/// `GET /v1/counters`
pub async fn counters(State(state): State<super::State>) -> Answer {
    let status = read(state).await?;
    let of_service = |it: &crate::run::status::Service| (it.name.clone(), json!(it.outcomes));
    let services: Map<String, Value> = status.services.iter().map(of_service).collect();
    Ok(Json(json!({
        "services": services,
        "no_service": status.outcomes,
        "flows": status.flows,
        "tables": status.tables,
    })))
}

/// `GET /v1/config`
pub async fn config(State(state): State<super::State>) -> Answer {
    let Sources { made_of, .. } = sources(&state)?;
    let MadeOf { text, overrides, .. } = &*made_of;
    let document =
        Document::parse(text.as_str()).map_err(|error| Problem::failed(&error.into()))?;
    let file = of_table(document.as_table());
    Ok(Json(json!({ "file": file, "overrides": overrides })))
}

/// `GET /v1/config/diff`
pub async fn diff(State(state): State<super::State>) -> Answer {
    let Sources { made_of, config, .. } = sources(&state)?;
    let MadeOf { file, overrides, .. } = &*made_of;
    let differences = Difference::all(file, &config, overrides);
    Ok(Json(json!({ "revision": overrides.revision, "differences": differences })))
}

pub fn sources(state: &super::State) -> Result<Sources, Problem> {
    state.view.picture().sources.clone().ok_or_else(|| {
        let (error, remedy) = ("the agent is starting", "ask again in a moment");
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, error, remedy)
    })
}

fn of_table(table: &Table) -> Value {
    table.iter().map(|(key, item)| (key.to_owned(), shown(key, item))).collect()
}

fn shown(key: &str, item: &Item) -> Value {
    let shown = match item {
        Item::None => Value::Null,
        Item::Value(value) => of_value(value),
        Item::Table(table) => of_table(table),
        Item::ArrayOfTables(tables) => tables.iter().map(of_table).collect(),
    };
    if SECRETS.contains(&key) { without_values(shown) } else { shown }
}

fn of_value(value: &toml_edit::Value) -> Value {
    use toml_edit::Value as Toml;
    match value {
        Toml::String(text) => json!(text.value()),
        Toml::Integer(number) => json!(number.value()),
        Toml::Float(number) => json!(number.value()),
        Toml::Boolean(flag) => json!(flag.value()),
        Toml::Datetime(time) => json!(time.value().to_string()),
        Toml::Array(values) => values.iter().map(of_value).collect(),
        Toml::InlineTable(table) => {
            let shown = |(key, value): (&str, &toml_edit::Value)| {
                (key.to_owned(), shown(key, &Item::Value(value.clone())))
            };
            table.iter().map(shown).collect()
        }
    }
}

/// Keys stay, and arrays, which hold the names of headers that are removed.
fn without_values(secret: Value) -> Value {
    match secret {
        Value::Object(values) => {
            values.into_iter().map(|(key, value)| (key, without_values(value))).collect()
        }
        Value::Array(_) => secret,
        _ => json!("(left out)"),
    }
}
