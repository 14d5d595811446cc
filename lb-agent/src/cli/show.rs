//! `lb-agent services`, `backends` and `config diff`: tables for people, JSON for machines.

use anyhow::Result;
use clap::{Args, Subcommand};
use hyper::Method;
use lb_agent::{
    overrides::Difference,
    run::status::{Backend, Service},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, Where, path};

#[derive(Args)]
pub struct Services {
    #[command(flatten)]
    at: Where,
}

#[derive(Args)]
pub struct Backends {
    /// Only those of this service
    service: Option<String>,
    #[command(flatten)]
    at: Where,
}

#[derive(Subcommand)]
pub enum Config {
    /// Show how the running edge differs from its file
    Diff(Diff),
    /// Undo every change that was made at runtime: the edge is as its file says again
    Forget(Diff),
}

#[derive(Args)]
pub struct Diff {
    #[command(flatten)]
    at: Where,
}

#[derive(Deserialize)]
struct AllServices {
    services: Vec<Service>,
}

#[derive(Deserialize)]
struct AllDifferences {
    differences: Vec<Difference>,
}

pub fn services(arguments: &Services) -> Result<()> {
    let client = Client::new(&arguments.at)?;
    let answer: Value = client.get("/v1/services")?;
    if arguments.at.json {
        return print_json(&answer);
    }
    let all: AllServices = serde_json::from_value(answer)?;
    let rows = all.services.iter().map(service_row);
    print!("{}", table(["service", "mode", "listeners", "backends", "connections", "state"], rows));
    Ok(())
}

pub fn backends(arguments: &Backends) -> Result<()> {
    let client = Client::new(&arguments.at)?;
    let (answer, services) = match &arguments.service {
        Some(name) => {
            let answer: Value = client.get(&path(&["services", name]))?;
            let service: Service = serde_json::from_value(answer.clone())?;
            (json!({ "backends": answer["backends"] }), vec![service])
        }
        None => {
            let all: AllServices = client.get("/v1/services")?;
            (client.get("/v1/backends")?, all.services)
        }
    };
    if arguments.at.json {
        return print_json(&answer);
    }
    let rows = services.iter().flat_map(|service| {
        service.backends.iter().map(|backend| backend_row(&service.name, backend))
    });
    let heads = ["service", "backend", "address", "state", "weight", "connections", "last probe"];
    print!("{}", table(heads, rows));
    Ok(())
}

pub fn config(action: &Config) -> Result<()> {
    match action {
        Config::Diff(arguments) => diff(arguments),
        Config::Forget(arguments) => {
            let client = Client::new(&arguments.at)?;
            let done = client.change(&Method::POST, "/v1/config/forget", &json!({}))?;
            match arguments.at.json {
                true => println!("{done}"),
                false => println!("the edge is as its file says (revision {})", done["revision"]),
            }
            Ok(())
        }
    }
}

fn diff(arguments: &Diff) -> Result<()> {
    let answer: Value = Client::new(&arguments.at)?.get("/v1/config/diff")?;
    if arguments.at.json {
        return print_json(&answer);
    }
    let all: AllDifferences = serde_json::from_value(answer)?;
    if all.differences.is_empty() {
        println!("the edge is as its file says");
        return Ok(());
    }
    let rows = all.differences.into_iter().map(|it| {
        let place = [it.service, it.backend].into_iter().flatten().collect::<Vec<_>>().join("/");
        let place = if place.is_empty() { "the edge".to_owned() } else { place };
        [place, it.key, it.file, it.running]
    });
    print!("{}", table(["where", "what", "file", "running"], rows));
    Ok(())
}

fn service_row(service: &Service) -> [String; 6] {
    let listeners: Vec<_> = service.listeners.iter().map(|it| it.address.as_str()).collect();
    let up = service.backends.iter().filter(|it| it.effective_weight > 0).count();
    let of_backends = || service.backends.iter().map(|it| it.connections).sum();
    [
        service.name.clone(),
        service.forward.clone().unwrap_or_else(|| service.mode.clone()),
        listeners.join(", "),
        format!("{up}/{}", service.backends.len()),
        service.connections.unwrap_or_else(of_backends).to_string(),
        match (service.fail_open, service.turned_away) {
            (true, _) => "failing open",
            (_, true) => "clients are turned away",
            _ => "ok",
        }
        .to_owned(),
    ]
}

fn backend_row(service: &str, backend: &Backend) -> [String; 7] {
    let weight = match backend.effective_weight == backend.weight {
        true => backend.weight.to_string(),
        false => format!("{} of {}", backend.effective_weight, backend.weight),
    };
    let last = backend.health.last.as_ref().map_or_else(
        || "none yet".to_owned(),
        |last| match &last.error {
            Some(error) => format!("{error}, {:.0} s ago", last.ago_seconds),
            None => format!("{:.1} ms, {:.0} s ago", last.latency_ms, last.ago_seconds),
        },
    );
    let state = if backend.draining_until.is_some() { "draining" } else { &backend.health.state };
    [
        service.to_owned(),
        backend.name.clone(),
        backend.address.clone(),
        state.to_owned(),
        weight,
        backend.connections.to_string(),
        last,
    ]
}

fn print_json(answer: &Value) -> Result<()> {
    println!("{}", serde_json::to_string_pretty(answer)?);
    Ok(())
}

/// Columns as wide as what is in them; the last one as it comes.
fn table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [["chat".to_owned(), "1".to_owned()], ["a".to_owned(), "22".to_owned()]];
        assert_eq!(table(["name", "n"], rows.into_iter()), "name  n\nchat  1\na     22\n");
    }
}
