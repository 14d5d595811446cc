//! Connections that nobody needs, many of them, and for long.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

/// How long nobody waits: with the clock paused no time at all.
const LONG: Duration = Duration::from_secs(3_600);

/// Whether the server closes it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = timeout(LONG, stream.read(&mut [0; 1_024])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

#[tokio::test]
async fn of_many_connections_the_oldest_goes_and_a_probe_is_answered() {
    let view = View::new("edge-1");
    view.set_ready();
    let (server, _asks) = server(view);
    let mut idle = Vec::new();
    for _ in 0..256 {
        idle.push(TcpStream::connect(server.address).await.unwrap());
    }
    assert!(get(server.address, "/healthz").await.0.contains(" 200 "));
    assert!(timeout(Duration::from_secs(10), is_closed(&mut idle[0])).await.unwrap());
    let mut newest = idle.pop().unwrap();
    newest.write_all(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n").await.unwrap();
    let mut answer = [0; 15];
    newest.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
}

#[tokio::test(start_paused = true)]
async fn who_asks_for_nothing_is_cut_off() {
    let (server, _asks) = server(View::new("edge-1"));
    for said in
        ["", "GET /healthz HTTP/1.1\r\nHost: ed", "GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let over = timeout(LONG, stream.read_to_string(&mut answer)).await;
        assert!(over.is_ok(), "{said:?}: {answer:?}");
        assert_eq!(answer.contains(" 503 "), said.ends_with("\r\n\r\n"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_server_that_ends_takes_its_idle_connections_with_it() {
    let (server, _asks) = server(View::new("edge-1"));
    let mut idle = TcpStream::connect(server.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: edge\r\n\r\n").await.unwrap();
    let mut answer = [0; 12];
    idle.read_exact(&mut answer).await.unwrap();
    drop(server);
    let mut rest = String::new();
    timeout(Duration::from_secs(10), idle.read_to_string(&mut rest)).await.unwrap().unwrap();
}
