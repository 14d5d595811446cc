//! What stands in the bodies of changes.

use std::{net::SocketAddr, time::Duration};

use axum::{body::Bytes, http::StatusCode};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::error::Category;

use super::problem::Problem;
use crate::{
    config::parse_duration,
    overrides::{EdgeDrainAsk, NewBackend, PaceAsk},
};

const LONGEST_DEADLINE: Duration = Duration::from_secs(7 * 86_400);
const LONGEST_GRACE: Duration = Duration::from_secs(3_600);
const HIGHEST_RATE: u32 = 100_000;

/// A change without a value.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plain {
    pub force: bool,
    pub revision: Option<u64>,
}

/// How clients are given up.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paced {
    deadline: Option<String>,
    rate: Option<u32>,
    pub force: bool,
    pub revision: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Edge {
    grace: Option<String>,
    deadline: Option<String>,
    rate: Option<u32>,
    pub revision: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weight {
    pub weight: u32,
    #[serde(default)]
    pub force: bool,
    #[serde(default)]
    pub revision: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    address: SocketAddr,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    zone: Option<String>,
    #[serde(default)]
    pool: Option<String>,
    #[serde(default)]
    pub revision: Option<u64>,
}

impl Paced {
    pub fn pace(&self) -> Result<PaceAsk, Problem> {
        pace(self.deadline.as_deref(), self.rate)
    }
}

impl Edge {
    pub fn ask(&self) -> Result<EdgeDrainAsk, Problem> {
        let grace = millis("grace", self.grace.as_deref(), LONGEST_GRACE)?.unwrap_or(0);
        Ok(EdgeDrainAsk { grace, pace: pace(self.deadline.as_deref(), self.rate)? })
    }
}

impl Add {
    pub fn backend(self) -> NewBackend {
        let Self { address, name, weight, zone, pool, .. } = self;
        let name = name.unwrap_or_else(|| address.to_string());
        NewBackend { name, address, weight, zone, pool }
    }
}

/// Reads a body. One that is empty says nothing.
pub fn parse<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Problem> {
    let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { bytes };
    serde_json::from_slice(bytes).map_err(|error| {
        // It says the line and the column.
        let (status, what) = match error.classify() {
            Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, "does not say what it must"),
            _ => (StatusCode::BAD_REQUEST, "is not JSON"),
        };
        Problem::new(status, format!("the body {what}: {error}"), "docs/admin.md has an example")
    })
}

fn pace(deadline: Option<&str>, rate: Option<u32>) -> Result<PaceAsk, Problem> {
    if let Some(rate) = rate.filter(|rate| !(1..=HIGHEST_RATE).contains(rate)) {
        let error = format!("rate {rate} is out of range");
        return Err(invalid(error, format!("write 1 to {HIGHEST_RATE} connections a second")));
    }
    Ok(PaceAsk { deadline: millis("deadline", deadline, LONGEST_DEADLINE)?, rate })
}

fn millis(key: &str, text: Option<&str>, longest: Duration) -> Result<Option<u64>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let duration = parse_duration(text).and_then(|duration| match duration <= longest {
        true => Ok(duration),
        false => Err("is too long"),
    });
    let duration = duration.map_err(|what| {
        let remedy = format!("write e.g. \"30s\", at most {} s", longest.as_secs());
        invalid(format!("{key} {text:?} {what}"), remedy)
    })?;
    Ok(u64::try_from(duration.as_millis()).ok())
}

fn invalid(error: String, remedy: String) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error, remedy)
}
