//! Probes against real servers on loopback: good ones, and ones that misbehave in each way that a backend can.

mod http;
mod tls;
mod websocket;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::probe;
use crate::health::{Check, Failure, HttpSpec, Kind, SourcePorts, WebSocketSpec};

/// For probes that come to a verdict by themselves: never waited for, even on a busy machine.
const PATIENT: Duration = Duration::from_secs(30);

/// For probes that must run into their timeout.
const HASTY: Duration = Duration::from_millis(200);

/// Serves connections with `serve`, each in a task, until the test ends.
async fn server<F, S>(serve: S) -> SocketAddr
where
    S: Fn(TcpStream) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    addr
}

/// A server that reads a request's head, answers with these bytes whatever it was, and closes in an orderly way.
async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let answer = Arc::new(answer.into());
    server(move |mut stream| {
        let answer = Arc::clone(&answer);
        async move {
            head(&mut stream).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
            drain(&mut stream).await;
        }
    })
    .await
}

/// A server that answers with `begin`, then `more` for as long as somebody reads it.
async fn endless(begin: &'static str, more: &'static str) -> SocketAddr {
    server(move |mut stream| async move {
        head(&mut stream).await;
        let _ = stream.write_all(begin.as_bytes()).await;
        while stream.write_all(more.as_bytes()).await.is_ok() {}
    })
    .await
}

/// A server that answers with `begin` and then waits for the client to go.
async fn hanging(begin: &'static str) -> SocketAddr {
    server(move |mut stream| async move {
        if !begin.is_empty() {
            head(&mut stream).await;
            let _ = stream.write_all(begin.as_bytes()).await;
        }
        drain(&mut stream).await;
    })
    .await
}

/// Reads up to the empty line.
async fn head(stream: &mut TcpStream) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(read).unwrap()
}

async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
}

async fn run(kind: Kind, addr: SocketAddr, timeout: Duration) -> Result<(), Failure> {
    let check = Check { kind, timeout, interval: timeout, ..Check::default() };
    probe(&check, addr, &SourcePorts::default()).await
}

/// The verdict in words; `ok` for a success.
async fn verdict(kind: Kind, addr: SocketAddr, timeout: Duration) -> String {
    run(kind, addr, timeout).await.map_or_else(|failure| failure.to_string(), |()| "ok".into())
}

fn http() -> Kind {
    Kind::Http(HttpSpec::default())
}

fn http_with_body(body: &str) -> Kind {
    Kind::Http(HttpSpec { body: Some(body.into()), ..HttpSpec::default() })
}

fn websocket() -> Kind {
    Kind::WebSocket(WebSocketSpec { path: "/chat".into(), host: None })
}

#[tokio::test]
async fn no_check_opens_no_connection() {
    let connections = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&connections);
    let addr = server(move |_| {
        seen.fetch_add(1, Ordering::Relaxed);
        async {}
    })
    .await;
    assert_eq!(run(Kind::None, addr, PATIENT).await, Ok(()));
    assert_eq!(run(Kind::Tcp, addr, PATIENT).await, Ok(()));
    // Accepted in order: had the first probe connected, there would be two by the time the second is seen.
    while connections.load(Ordering::Relaxed) == 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn tcp_closes_cleanly_and_sends_nothing() {
    let (sender, mut ends) = tokio::sync::mpsc::channel(1);
    let addr = server(move |mut stream| {
        let sender = sender.clone();
        async move {
            let mut all = Vec::new();
            let end = stream.read_to_end(&mut all).await.map_err(|e| e.kind());
            sender.send((end, stream.peer_addr().unwrap().port())).await.unwrap();
        }
    })
    .await;
    assert_eq!(run(Kind::Tcp, addr, PATIENT).await, Ok(()));
    let (end, port) = ends.recv().await.unwrap();
    assert_eq!(end, Ok(0), "a FIN without data, not a reset");
    assert!(SourcePorts::AGENT.contains(&port), "from port {port}");
}

#[tokio::test]
async fn every_kind_names_a_refused_connection() {
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for kind in [Kind::Tcp, http(), websocket()] {
        assert_eq!(verdict(kind, gone, PATIENT).await, "connect: Connection refused");
    }
}

/// A full accept queue drops SYNs, like a host that is gone.
#[tokio::test]
async fn a_connect_without_answer_ends_with_the_timeout() {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let addr = listener.local_addr().unwrap();
    let mut held = Vec::new();
    while let Ok(Ok(stream)) = tokio::time::timeout(HASTY, TcpStream::connect(addr)).await {
        held.push(stream);
        assert!(held.len() < 64, "the accept queue does not fill up");
    }
    let start = std::time::Instant::now();
    assert_eq!(verdict(Kind::Tcp, addr, HASTY).await, "no connection within 200ms");
    assert!(start.elapsed() >= HASTY);
}

#[tokio::test]
async fn the_checks_own_port_is_probed() {
    let addr = answering("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    let backend = SocketAddr::new(addr.ip(), 1);
    let check =
        Check { kind: http(), timeout: PATIENT, port: Some(addr.port()), ..Check::default() };
    assert_eq!(probe(&check, backend, &SourcePorts::default()).await, Ok(()));
}

/// Whatever bytes a backend sends, a probe ends with a verdict; proptest prints the case that fails.
#[test]
fn garbage_never_panics_nor_passes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let piece = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        Just(b"HTTP/1.1 101 Switching Protocols\r\n".to_vec()),
        Just(b"HTTP/1.1 299 \r\n".to_vec()),
        Just(b"Upgrade: websocket\r\nConnection: Upgrade\r\n".to_vec()),
        Just(b"Content-Length: 18446744073709551615\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n".to_vec()),
        Just(b"\r\n\r\n".to_vec()),
    ];
    let answers = prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat());
    let mut cases = TestRunner::new(ProptestConfig::with_cases(100));
    cases
        .run(&answers, |answer| {
            runtime.block_on(async {
                let addr = answering(answer).await;
                prop_assert!(run(websocket(), addr, PATIENT).await.is_err());
                prop_assert!(run(http_with_body("no such text"), addr, PATIENT).await.is_err());
                Ok(())
            })
        })
        .unwrap();
}
