//! The admin API over HTTP: whether the edge is ready, its status, its metrics, changes, and the dashboard.
//!
//! At a Unix socket for root, and at a TCP address, where changes need a token ([`guard`]). Both have the same pages.

mod body;
mod browser;
mod changes;
mod connections;
mod dashboard;
mod events;
mod explain;
mod flows;
mod guard;
mod local;
mod problem;
mod reads;
mod stream;
mod token;
mod trace;
mod upgrade;

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use anyhow::{Context, Result};
use axum::{
    Extension, Json, Router,
    extract::{self, DefaultBodyLimit},
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{ACCEPT, CONTENT_TYPE},
    },
    middleware,
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use serde_json::{Value, json};
use socket2::SockRef;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{
    changes::Ask, metrics, status::Status, trace::Desk, upgrade::Desk as Upgrades, view::View,
};
pub use local::{Local, path as socket_path};
use problem::Problem;
pub use stream::Feed;
pub use token::warning as token_warning;

/// The largest body of a request, in bytes.
const MOST_BYTES: usize = 16 << 10;

/// Who takes nothing of an answer for so long is gone: else a page that sleeps would keep its place among those who watch.
/// So is who asks for nothing.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the pages are made of.
#[derive(Clone)]
pub struct State {
    pub view: View,
    /// To the agent, which takes them one after the other.
    pub asks: mpsc::Sender<Ask>,
    pub upgrades: Upgrades,
    /// For those who trace packets.
    pub desk: Desk,
    /// What the dashboard shows.
    pub feed: Feed,
}

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Tcp,
    /// From root, or from the agent's own user.
    Local,
}

/// A listener that nobody serves yet: what can fail does so before anything is changed in the kernel.
pub struct Bound(TcpListener);

/// Takes the address of the admin API.
pub fn bind(address: SocketAddr) -> Result<Bound> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        // Connections have it from their listener.
        SockRef::from(&listener).set_tcp_user_timeout(Some(PATIENCE))?;
        Ok(listener)
    });
    listener.map(Bound).with_context(|| {
        format!(
            "[edge] admin = \"{address}\": cannot listen there; choose an address of this host and a port that is \
             free (`ss -ltnp` shows those in use)"
        )
    })
}

/// The server. Dropping it closes the listener.
pub struct Server {
    pub address: SocketAddr,
    pub state: State,
    task: JoinHandle<()>,
}

impl Bound {
    /// Serves until the server is dropped. Needs a tokio runtime.
    pub fn serve(self, state: State) -> Result<Server> {
        let listener = tokio::net::TcpListener::from_std(self.0)?;
        let address = listener.local_addr()?;
        let router = router(state.clone(), Over::Tcp);
        let task = tokio::spawn(connections::serve(listener, router));
        Ok(Server { address, state, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(state: State, over: Over) -> Router {
    let guarded = middleware::from_fn_with_state((state.clone(), over), guard::changes);
    let browsers = middleware::from_fn_with_state(state.clone(), browser::guard);
    Router::new()
        .route("/", get(dashboard::page))
        .route("/dashboard/{file}", get(dashboard::file))
        .route("/healthz", get(healthz))
        .route("/readyz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/v1/openapi.json", get(openapi))
        .route("/v1/status", get(status))
        .route("/v1/services", get(reads::services))
        .route("/v1/services/{service}", get(reads::service))
        .route("/v1/services/{service}/backends", post(changes::add))
        .route("/v1/services/{service}/backends/{backend}", delete(changes::remove))
        .route("/v1/services/{service}/backends/{backend}/{action}", post(changes::backend))
        .route("/v1/backends", get(reads::backends))
        .route("/v1/events", get(events::events))
        .route("/v1/stream", get(move |state| stream::stream(state, over)))
        .route("/v1/token", post(may_change))
        .route("/v1/counters", get(reads::counters))
        .route("/v1/flows", get(flows::flows))
        .route("/v1/explain", post(explain::explain))
        .route("/v1/trace", post(trace::trace))
        .route("/v1/config", get(reads::config))
        .route("/v1/config/diff", get(reads::diff))
        .route("/v1/config/forget", post(changes::forget))
        .route("/v1/drain", post(changes::drain_edge))
        .route("/v1/undrain", post(changes::undrain_edge))
        .route("/v1/upgrade", post(upgrade::upgrade))
        .fallback(unknown)
        .method_not_allowed_fallback(other_method)
        .layer(guarded)
        .layer(Extension(over))
        .layer(middleware::map_response(problem::in_json))
        .layer(browsers)
        .layer(DefaultBodyLimit::max(MOST_BYTES))
        .with_state(state)
}

async fn healthz(extract::State(state): extract::State<State>) -> Response {
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match (state.view.is_ready(), state.view.is_draining()) {
        (false, _) => unavailable("starting\n"),
        (true, true) => unavailable("draining\n"),
        (true, false) => "ok\n".into_response(),
    }
}

/// Who comes so far may change something.
async fn may_change() -> Json<Value> {
    Json(json!({ "changes": true }))
}

/// What all pages take and give.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn status(extract::State(state): extract::State<State>) -> Result<Json<Status>, Problem> {
    Ok(Json(read(state).await?))
}

async fn metrics(
    extract::State(state): extract::State<State>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let accept = headers.get(ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    let format = metrics::Format::accepted(accept);
    let text =
        blocking(move || state.view.status().map(|status| metrics::text(&status, format))).await?;
    Ok(([(CONTENT_TYPE, format.content_type())], text).into_response())
}

async fn read(state: State) -> Result<Status, Problem> {
    blocking(move || state.view.status()).await
}

/// Runs what makes system calls, and may make many.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let result = tokio::task::spawn_blocking(work).await;
    result.map_err(Into::into).and_then(|it| it).map_err(|error| Problem::failed(&error))
}

async fn unknown(uri: Uri) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no page {}", uri.path()),
        "there are /healthz, /metrics and those of docs/admin.md, such as /v1/status",
    )
}

async fn other_method(method: Method, uri: Uri) -> Problem {
    let error = format!("{method} is not for {}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, error, "docs/admin.md lists all requests")
}

#[cfg(test)]
mod tests;
