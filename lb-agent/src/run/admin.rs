//! The admin API over HTTP: whether the edge is ready, its status, and its metrics.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use tokio::task::JoinHandle;

use super::{events_api, metrics, status::Status, view::View};

/// A listener that nobody serves yet: what can fail does so before anything is changed in the kernel.
pub struct Bound(TcpListener);

/// Takes the address of the admin API.
pub fn bind(address: SocketAddr) -> Result<Bound> {
    let listener = TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
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
    task: JoinHandle<()>,
}

impl Bound {
    /// Serves until the server is dropped. Needs a tokio runtime.
    pub fn serve(self, view: View) -> Result<Server> {
        let listener = tokio::net::TcpListener::from_std(self.0)?;
        let address = listener.local_addr()?;
        let router = router(view);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the admin API has ended");
            }
        });
        Ok(Server { address, task })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn router(view: View) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/v1/status", get(status))
        .route("/metrics", get(metrics))
        .merge(events_api::router())
        .fallback(unknown)
        .with_state(view)
}

async fn healthz(State(view): State<View>) -> Response {
    let unavailable = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match (view.is_ready(), view.is_draining()) {
        (false, _) => unavailable("starting\n"),
        (true, true) => unavailable("draining\n"),
        (true, false) => "ok\n".into_response(),
    }
}

async fn status(State(view): State<View>) -> Response {
    match read(view).await {
        Ok(status) => Json(status).into_response(),
        Err(error) => failed(&error),
    }
}

async fn metrics(State(view): State<View>) -> Response {
    match read(view).await.and_then(|status| Ok(metrics::text(status)?)) {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => failed(&error),
    }
}

async fn read(view: View) -> Result<Status> {
    tokio::task::spawn_blocking(move || view.status()).await?
}

fn failed(error: &anyhow::Error) -> Response {
    let error = json!({ "error": format!("{error:#}") });
    (StatusCode::INTERNAL_SERVER_ERROR, Json(error)).into_response()
}

async fn unknown() -> Response {
    let error = "no such page; there are /healthz, /metrics, /v1/events and /v1/status";
    (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response()
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        events::{Kind, News, Page},
        run::{view::Picture, view_l7::Drain},
    };

    async fn get(address: SocketAddr, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }

    #[tokio::test]
    async fn an_edge_is_healthy_once_it_is_ready() {
        let view = View::new("edge-1");
        let server = bind("127.0.0.1:0".parse().unwrap()).unwrap().serve(view.clone()).unwrap();
        assert!(get(server.address, "/healthz").await.0.contains(" 503 "));
        view.set_ready();
        assert!(get(server.address, "/healthz").await.0.contains(" 200 "));
        let (head, body) = get(server.address, "/v1/status").await;
        assert!(head.contains(" 200 "), "{head}");
        let status: Status = serde_json::from_str(&body).unwrap();
        assert_eq!((status.edge.as_str(), status.ready), ("edge-1", true));
        let drain = Some(Drain { until: Some(5_000) });
        view.show(Picture { drain, ..Picture::default() });
        let (head, body) = get(server.address, "/healthz").await;
        assert!(head.contains(" 503 ") && body == "draining\n", "{head} {body}");
        let (head, body) = get(server.address, "/metrics").await;
        assert!(head.contains(" 200 ") && body.contains("sluice_draining 1"), "{head} {body}");
        view.events().add(News::new(Kind::ConfigLoaded, "generation 1"));
        let (head, body) = get(server.address, "/v1/events?limit=5").await;
        let page: Page = serde_json::from_str(&body).unwrap();
        assert!(
            head.contains(" 200 ") && page.events[0].kind == Kind::ConfigLoaded,
            "{head} {body}"
        );
        let (head, body) = get(server.address, "/v1/events?limit=x").await;
        assert!(
            head.contains(" 400 ") && body.contains("limit=x: write a number"),
            "{head} {body}"
        );
        let (head, body) = get(server.address, "/nowhere").await;
        assert!(head.contains(" 404 ") && body.contains("/v1/status"), "{head} {body}");
    }

    #[tokio::test]
    async fn an_address_in_use_is_named_with_the_remedy() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        let error = format!("{:#}", bind(address).err().unwrap());
        assert!(error.contains(&format!("admin = \"{address}\"")), "{error}");
        assert!(error.contains("ss -ltnp"), "{error}");
    }
}
