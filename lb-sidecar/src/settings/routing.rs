//! What a worker is told of the pools of a service and of the routes to them.

use serde::{Deserialize, Serialize};

use super::Balance;

/// Some of a service's backends, beside those of its default pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// Unique in the service, and not [`DEFAULT_POOL`].
    pub name: String,
    pub balance: Balance,
}

/// The name of the pool that a service has in any case.
pub const DEFAULT_POOL: &str = "default";

/// Under which requests are counted that no route matches.
pub const NO_ROUTE: &str = "none";

/// A rule for requests. The first one of a service that matches a request decides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Unique in the service, and not [`NO_ROUTE`].
    pub name: String,
    pub when: Conditions,
    pub action: Action,
    /// What of the request's path goes on in place of the prefix that matched: absolute, without a slash at its end but
    /// for `/` itself. Only with [`PathRule::Prefix`].
    pub rewrite_prefix: Option<String>,
    /// For the backend.
    pub request_headers: HeaderChanges,
    /// For the client.
    pub response_headers: HeaderChanges,
}

/// All of them must hold; an empty list holds for every request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conditions {
    /// One of these: names and addresses in lower case, without a port, or `*.` and a name for all names below it.
    pub hosts: Vec<String>,
    /// One of these.
    pub paths: Vec<PathRule>,
    /// One of these.
    pub methods: Vec<String>,
    /// Each of these.
    pub headers: Vec<FieldRule>,
    /// Each of these.
    pub query: Vec<FieldRule>,
    /// Whether it asks for an upgrade that the service allows.
    pub upgrade: Option<bool>,
}

/// About the path, percent-decoded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathRule {
    Exact(String),
    /// Of whole segments: `/a` has `/a` and `/a/b`, not `/ab`.
    Prefix(String),
    /// Found anywhere in it, see [`crate::routing::pattern`].
    Regex(String),
}

/// About a header or a parameter of the query: one of its values must be so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldRule {
    pub name: String,
    pub value: ValueRule,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ValueRule {
    Any,
    Exact(String),
    /// Found anywhere in it.
    Regex(String),
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// It goes to one of these pools: at least one, each once, in the order of their numbers, not all of weight 0.
    Pools(Vec<Share>),
    Redirect(Redirect),
    Answer(Answer),
}

/// A pool and its share of the clients that belong to none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// 0 for the default pool, else its place among the service's [`Pool`]s, counted from 1.
    pub pool: u16,
    pub weight: u32,
}

/// Where to go instead; what is not said stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
    /// `http` or `https`.
    pub scheme: Option<String>,
    pub host: Option<String>,
    pub port: Option<u16>,
    /// Absolute; in place of the whole path.
    pub path: Option<String>,
    /// In place of the prefix that matched, see [`Route::rewrite_prefix`].
    pub prefix: Option<String>,
    pub keep_query: bool,
}

/// An answer of the sidecar's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// 200 to 599.
    pub status: u16,
    /// Empty with the statuses that have none.
    pub body: String,
    pub content_type: String,
}

/// Changes of a head: first what is removed, then what is set, then what is added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderChanges {
    pub remove: Vec<String>,
    pub set: Vec<(String, String)>,
    pub add: Vec<(String, String)>,
}
