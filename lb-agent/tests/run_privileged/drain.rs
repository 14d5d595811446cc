//! The drain of a whole edge: what becomes of clients, of routers that ask, and of the next agent.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::Ordering,
    time::{Duration, Instant, SystemTime},
};

use lb_agent::run::status::Draining;
use nix::sys::signal::Signal;

use crate::{
    edge::{ADMIN, Edge, VIP},
    network::{text, wait_for, wait_until},
    sidecar::{BACKEND, Web, config, get, pids},
};

/// One worker, with these lines in the service, before its drain and in it.
fn configs(edge: &Edge, service: &str) -> [String; 2] {
    let serving = config(edge, service, &BACKEND).replace("workers = 2", "workers = 1");
    let draining = serving.replacen("[edge]", "[edge]\ndrain = true", 1);
    [serving, draining]
}

/// What routers are told.
fn health(edge: &Edge) -> Option<(String, String)> {
    edge.netns.http(ADMIN, "/healthz")
}

fn draining(edge: &Edge) -> Draining {
    wait_for("the edge drains", || {
        let (head, body) = health(edge)?;
        (head.contains(" 503 ") && body == "draining\n").then_some(())?;
        edge.status().draining
    })
}

fn unix_millis() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_millis() as u64
}

/// The head of an answer.
pub fn head(stream: &mut TcpStream) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

/// A client that chats.
pub fn chat(edge: &Edge) -> TcpStream {
    chat_at(edge, VIP)
}

/// The same at another listener.
pub fn chat_at(edge: &Edge, listener: &str) -> TcpStream {
    let mut stream = edge.client.connect(listener);
    let ask = "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 101 "));
    stream
}

/// A client whose request is at the backend.
fn slow(edge: &Edge) -> TcpStream {
    let picked = || edge.status().services[0].backends[0].requests.as_ref().unwrap().picked;
    let before = picked();
    let mut stream = edge.client.connect(VIP);
    stream.write_all(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    wait_until("it is at the backend", || picked() > before);
    stream
}

#[test]
fn an_edge_that_drains_gives_its_clients_up_and_serves_again_afterwards() {
    let mut edge = Edge::new();
    let web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let service = "splice = \"off\"\ndrain = { deadline = \"1h\", rate = 5 }";
    let [serving, drains] = configs(&edge, service);
    edge.start(&serving);
    let old = pids(&edge.status(), "serving");
    wait_until("requests are answered", || get(&edge, "/").is_some());
    let mut idle = edge.client.connect(VIP);
    idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    head(&mut idle);
    let mut chats: Vec<_> = (0..4).map(|_| chat(&edge)).collect();
    wait_until("all are counted", || edge.status().services[0].relayed == Some(4));
    let mut busy = slow(&edge);

    let before = unix_millis();
    edge.save(&drains);
    let status = draining(&edge);
    let until = status.until.unwrap();
    assert!((before..=unix_millis()).contains(&(until - 3_600_000)), "{until}");
    let start = Instant::now();
    for chat in &mut chats {
        let mut frame = [0; 4];
        chat.read_exact(&mut frame).unwrap();
        assert_eq!(frame, [0x88, 2, 0x03, 0xe9], "going away");
        chat.shutdown(std::net::Shutdown::Both).unwrap();
    }
    // The first of them may be older than the first look at the clock.
    assert!(start.elapsed() >= Duration::from_millis(350), "5 in a second: {:?}", start.elapsed());
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"b2", "nothing but the answer from before");
    let refused = edge.client.run(|| TcpStream::connect(VIP)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    wait_until("one is left", || edge.status().draining.unwrap().connections == 1);
    assert_eq!(pids(&edge.status(), "retired"), old);
    let output = edge.output(&format!("status --admin {ADMIN}"));
    assert!(text(&output).contains("draining: 1 l7 connections open"), "{}", text(&output));
    web.released.store(true, Ordering::Relaxed);
    let answer = head(&mut busy).to_ascii_lowercase();
    assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
    busy.read_to_end(&mut rest).unwrap();
    wait_until("the worker has ended", || edge.status().sidecar.is_none());

    edge.save(&serving);
    wait_until("others serve", || pids(&edge.status(), "serving").len() == 1);
    assert_eq!(get(&edge, "/").as_deref(), Some("b2"));
    wait_until("routers may come back", || edge.is_healthy());
    assert_eq!(edge.status().draining, None);
}

#[test]
fn the_next_agent_keeps_the_deadline_and_then_all_are_cut() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    let [serving, drains] = configs(&edge, "drain = { deadline = \"15s\" }");
    edge.start(&serving);
    wait_until("requests are answered", || get(&edge, "/").is_some());
    let mut busy = slow(&edge);
    edge.save(&drains);
    let before = draining(&edge);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    edge.spawn();
    let after = draining(&edge);
    assert_eq!(after.until, before.until);
    assert_eq!(pids(&edge.status(), "retired").len(), 1, "and nobody was started");
    let until = before.until.unwrap();
    assert!(unix_millis() < until, "the next agent was too slow for this test");
    let mut answer = Vec::new();
    // Cut, in whichever way.
    let _ = busy.read_to_end(&mut answer);
    assert!(answer.is_empty() && unix_millis() >= until, "{answer:?}");
    wait_until("the worker has ended", || edge.status().sidecar.is_none());
    assert_eq!(draining(&edge).connections, 0, "it drains until somebody says otherwise");
    edge.save(&serving);
    wait_until("another one serves", || get(&edge, "/").as_deref() == Some("b2"));
}
