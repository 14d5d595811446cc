//! Requests as they come, byte for byte. Who judges changes is a stand-in: the agent's own judgement is tested with it.

mod browser;
mod connections;
mod openapi;
mod schema;

use std::path::PathBuf;

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::{
    config::Config,
    health::{Prober, Runner, SourcePorts},
    overrides::{Change, Overrides, PaceAsk, Refusal},
    run::{
        changes::Done,
        sweeper::Report,
        view::{MadeOf, Picture, Sources, View},
        view_l7::Drain,
    },
};

const TOKEN: &str = "0123456789abcdef";

async fn send(address: SocketAddr, request: String) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n");
    send(address, request).await
}

/// A request for a change, with these lines in its head.
async fn post(address: SocketAddr, path: &str, head: &str, body: &str) -> (u16, Value) {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: edge:9900\r\nConnection: close\r\nContent-Length: {length}\r\n{head}\r\n{body}"
    );
    let (head, body) = send(address, request).await;
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(&body).unwrap_or_default())
}

fn json() -> String {
    format!("Content-Type: application/json\r\nAuthorization: Bearer {TOKEN}\r\n")
}

/// A server, and what asks for changes come to.
fn server(view: View) -> (Server, mpsc::Receiver<Ask>) {
    let (asker, asks) = mpsc::channel(1);
    let (desk, _) = crate::run::trace::desk::desk();
    let upgrades = Upgrades::new().0;
    let state = State { view, asks: asker, upgrades, desk, feed: Feed::default() };
    (bind("127.0.0.1:0".parse().unwrap()).unwrap().serve(state).unwrap(), asks)
}

/// One that takes every change.
fn willing(view: View) -> Server {
    let (server, mut asks) = server(view);
    tokio::spawn(async move {
        while let Some(ask) = asks.recv().await {
            let _ = ask.reply.send(match ask.change {
                Change::Weight(7) => {
                    Err(Refusal::conflict("the last one".to_owned(), "say force".to_owned()))
                }
                Change::Drain(PaceAsk { deadline: Some(30_000), rate: Some(500) }) if ask.force => {
                    Ok(Done { revision: 500 })
                }
                _ => Ok(Done { revision: 1 }),
            });
        }
    });
    server
}

fn config(token: &str) -> (Config, String) {
    let text = format!(
        r#"
        [edge]
        name = "edge-1"
        interfaces = ["eth0"]
        source_addresses = ["10.2.0.1"]
        hash_seed = "nobody may know"
        {token}
        [[service]]
        name = "chat"
        listen = ["203.0.113.10:80"]
        backend = [{{ name = "a", address = "10.2.0.2:9000" }}]
        "#
    );
    (crate::config::parse("edge.toml", &text).unwrap().0, text)
}

/// What an edge with this line in its configuration shows.
fn view(token: &str) -> View {
    view_of(config(token).1)
}

/// What an edge with this configuration shows.
fn view_of(text: String) -> View {
    let view = View::new("edge-1");
    let file =
        crate::config::parse("edge.toml", &text).unwrap_or_else(|errors| panic!("{errors}")).0;
    let runner = Runner::new(Prober::new(SourcePorts::default()), mpsc::channel(1).0);
    let (_, reports) = tokio::sync::watch::channel(std::sync::Arc::new(Report::default()));
    let sources = Sources {
        pins: crate::bpf::PinDir::of_edge("edge-1"),
        health: runner.view(),
        reports,
        config: std::sync::Arc::new(file.clone()),
        keys: Default::default(),
        made_of: std::sync::Arc::new(MadeOf { file, text, overrides: Overrides::default() }),
    };
    view.show(Picture { sources: Some(sources), ..Picture::default() });
    view
}

/// A file that holds the token.
fn token_file(name: &str, token: &str) -> (PathBuf, String) {
    let path = std::env::temp_dir().join(format!("sluice-{name}-{}", std::process::id()));
    std::fs::write(&path, format!("{token}\n")).unwrap();
    let line = format!("admin_token_file = {path:?}");
    (path, line)
}

#[tokio::test]
async fn an_edge_is_healthy_once_it_is_ready() {
    let view = View::new("edge-1");
    let (server, _asks) = server(view.clone());
    assert!(get(server.address, "/healthz").await.0.contains(" 503 "));
    view.set_ready();
    assert!(get(server.address, "/healthz").await.0.contains(" 200 "));
    assert!(get(server.address, "/readyz").await.0.contains(" 200 "));
    let (head, body) = get(server.address, "/v1/status").await;
    assert!(head.contains(" 200 "), "{head}");
    let status: Status = serde_json::from_str(&body).unwrap();
    assert_eq!((status.edge.as_str(), status.ready), ("edge-1", true));
    view.show(Picture { withdrawing: true, ..Picture::default() });
    assert_eq!(get(server.address, "/readyz").await.1, "draining\n", "it is announced");
    let drain = Some(Drain { until: Some(5_000) });
    view.show(Picture { drain, ..Picture::default() });
    let (head, body) = get(server.address, "/healthz").await;
    assert!(head.contains(" 503 ") && body == "draining\n", "{head} {body}");
    let (head, body) = get(server.address, "/metrics").await;
    assert!(head.contains(" 200 ") && body.contains("sluice_draining 1"), "{head} {body}");
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

const DRAIN: &str = "/v1/services/chat/backends/a/drain";

#[tokio::test]
async fn an_upgrade_is_not_for_tcp_even_with_the_token() {
    let (path, line) = token_file("upgrade", TOKEN);
    let server = willing(view(&line));
    let body = "{\"program\": \"/bin/true\", \"id\": \"1\"}";
    let (status, answer) = post(server.address, "/v1/upgrade", &json(), body).await;
    assert_eq!(status, 403, "{answer}");
    assert!(answer["remedy"].as_str().unwrap().contains("Unix socket"), "{answer}");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn changes_over_tcp_need_the_token_of_the_file() {
    let (path, line) = token_file("token", TOKEN);
    let server = willing(view(&line));
    let at = server.address;
    for (head, status, part) in [
        ("", 401, "need a token"),
        ("Authorization: Basic abc\r\n", 401, "need a token"),
        ("Authorization: Bearer 0123456789abcdeg\r\n", 401, "a wrong one"),
        ("Authorization: Bearer 0123456789abcde\r\n", 401, "a wrong one"),
        (&format!("Authorization: Bearer {TOKEN}\r\n"), 200, ""),
    ] {
        let head = format!("Content-Type: application/json\r\n{head}");
        let (answered, body) = post(at, DRAIN, &head, "{}").await;
        assert_eq!(answered, status, "{head}: {body}");
        assert!(body["error"].as_str().unwrap_or("").contains(part), "{body}");
    }
    std::fs::write(&path, "short").unwrap();
    let (status, body) = post(at, DRAIN, &json(), "{}").await;
    assert_eq!(status, 403, "{body}");
    assert!(body["remedy"].as_str().unwrap().contains("openssl rand"), "{body}");
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn without_a_token_file_nothing_is_changed_over_tcp() {
    let server = willing(view(""));
    let (status, body) = post(server.address, DRAIN, &json(), "{}").await;
    assert_eq!(status, 403);
    assert!(body["remedy"].as_str().unwrap().contains("admin_token_file"), "{body}");
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing_even_with_the_token() {
    let (path, line) = token_file("origin", TOKEN);
    let server = willing(view(&line));
    let at = server.address;
    for origin in ["http://evil.example", "null", "http://edge:9901"] {
        let head = format!("Origin: {origin}\r\n{}", json());
        let (status, body) = post(at, DRAIN, &head, "{}").await;
        assert_eq!(status, 403, "{origin}");
        assert!(body["error"].as_str().unwrap().contains("another site"), "{body}");
    }
    let own = format!("Origin: http://edge:9900\r\n{}", json());
    assert_eq!(post(at, DRAIN, &own, "{}").await.0, 200);
    // What a form can send without being asked.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"] {
        let head = format!("Content-Type: {kind}\r\nAuthorization: Bearer {TOKEN}\r\n");
        assert_eq!(post(at, DRAIN, &head, "{}").await.0, 415, "{kind}");
    }
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn what_is_asked_for_comes_to_the_agent_and_its_answer_back() {
    let (path, line) = token_file("asks", TOKEN);
    let server = willing(view(&line));
    let at = server.address;
    let body = r#"{"deadline": "30s", "rate": 500, "force": true}"#;
    let (status, answer) = post(at, DRAIN, &json(), body).await;
    assert_eq!((status, &answer["revision"]), (200, &Value::from(500)));
    let weight = "/v1/services/chat/backends/a/weight";
    let (status, answer) = post(at, weight, &json(), r#"{"weight": 7}"#).await;
    assert_eq!((status, answer["remedy"].as_str()), (409, Some("say force")));
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn a_bad_body_is_told_where_it_is_bad() {
    let (path, line) = token_file("bodies", TOKEN);
    let server = willing(view(&line));
    let at = server.address;
    let (weight, add) = ("/v1/services/chat/backends/a/weight", "/v1/services/chat/backends");
    for (page, body, status, part) in [
        (DRAIN, "{\n \"rate\": }", 400, "line 2 column 10"),
        (DRAIN, "{\"rate\": 5", 400, "is not JSON"),
        (DRAIN, "{\"rat\": 5}", 422, "unknown field `rat`"),
        (DRAIN, "{\"rate\": 0}", 422, "rate 0 is out of range"),
        (DRAIN, "{\"deadline\": \"8d\"}", 422, "deadline \"8d\" is too long"),
        (DRAIN, "{\"deadline\": \"5\"}", 422, "has no unit"),
        (weight, "{}", 422, "missing field `weight`"),
        (weight, "{\"weight\": -1}", 422, "line 1 column"),
        (add, "{\"address\": \"nowhere\"}", 422, "invalid socket address"),
        ("/v1/services/chat/backends/a/drian", "{}", 404, "\"drian\""),
        ("/v1/drain", "{\"grace\": \"2h\"}", 422, "grace \"2h\" is too long"),
    ] {
        let (answered, answer) = post(at, page, &json(), body).await;
        assert_eq!(answered, status, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains(part), "{body}: {answer}");
        assert!(!answer["remedy"].as_str().unwrap().is_empty());
    }
    let large = format!("{{\"deadline\": \"{}\"}}", "1".repeat(MOST_BYTES));
    assert_eq!(post(at, DRAIN, &json(), &large).await.0, 413);
    assert_eq!(post(at, "/v1/services", &json(), "{}").await.0, 405);
    std::fs::remove_file(path).unwrap();
}

#[tokio::test]
async fn the_configuration_names_headers_without_what_is_in_them() {
    let text = |routes: &str| {
        let config = config("").1.replace("[[service]]", "[[service]]\n        mode = \"l7\"");
        format!("{config}\n{routes}")
    };
    for routes in [
        "[[service.route]]\npool = \"default\"\n[service.route.request_headers]\nremove = [\"X-Old\"]\n\
         set = { Authorization = \"Basic bm9ib2R5\" }\n[service.route.request_headers.add]\nX-Key = \"nobody\"\n\
         [service.route.response_headers]\nset.X-Key = \"nobody\"\n",
        "route = [{ pool = \"default\", request_headers = { remove = [\"X-Old\"], set = { Authorization = \"Basic \
         bm9ib2R5\" }, add = { X-Key = \"nobody\" } }, response_headers = { set = { X-Key = \"nobody\" } } }]\n",
    ] {
        let server = willing(view_of(text(routes)));
        let (head, body) = get(server.address, "/v1/config").await;
        assert!(head.contains(" 200 "), "{head} {body}");
        assert!(!body.contains("nobody") && !body.contains("bm9i"), "{body}");
        let shown: Value = serde_json::from_str(&body).unwrap();
        let route = &shown["file"]["service"][0]["route"][0];
        let left_out = Value::from("(left out)");
        assert_eq!(route["request_headers"]["set"]["Authorization"], left_out);
        assert_eq!(route["request_headers"]["add"]["X-Key"], left_out);
        assert_eq!(route["request_headers"]["remove"][0], "X-Old");
        assert_eq!(route["response_headers"]["set"]["X-Key"], left_out);
        assert_eq!(route["pool"], "default");
    }
}

#[tokio::test]
async fn the_configuration_is_shown_without_its_secrets() {
    let server = willing(view(""));
    let (head, body) = get(server.address, "/v1/config").await;
    assert!(head.contains(" 200 "), "{head} {body}");
    assert!(!body.contains("nobody may know"), "{body}");
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(shown["file"]["edge"]["hash_seed"], "(left out)");
    assert_eq!(shown["file"]["service"][0]["backend"][0]["address"], "10.2.0.2:9000");
    assert_eq!(shown["overrides"]["revision"], 0);
    let (_, body) = get(server.address, "/v1/config/diff").await;
    let shown: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(shown["differences"], Value::Array(Vec::new()));
}
