//! What workers count of backends, for the agent to judge them by.

mod harness;

use std::net::SocketAddr;

use harness::*;
use lb_sidecar::control::{BackendReport, Tally};

fn reported(edge: &Edge) -> BackendReport {
    edge.worker.report().services[0].backends[0].clone()
}

fn tally(successes: u64, failures: u64, row: u32) -> Tally {
    Tally { successes, failures, row }
}

const NONE: Tally = Tally { successes: 0, failures: 0, row: 0 };

/// Has one client send `request` to a service with this backend alone, and gives what is counted.
async fn counted(backend: SocketAddr, request: &str) -> [Tally; 3] {
    let edge = Edge::new(&[backend], |_| {});
    let mut client = edge.connect().await;
    client.send(request).await;
    client.read_until("\r\n\r\n").await;
    let BackendReport { connects, answers, handshakes, .. } = reported(&edge);
    [connects, answers, handshakes]
}

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn connects_requests_and_upgrades_are_counted_each_for_itself() {
    run(|| async {
        let (well, badly) = (tally(1, 0, 0), tally(0, 1, 1));
        let answering = [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"[..], well),
            (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", well),
            (b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n", badly),
            (b"SSH-2.0-OpenSSH\r\n", badly),
            (b"", badly),
        ];
        for (answer, wanted) in answering {
            let server = Server::answering(answer).await;
            let text = String::from_utf8_lossy(answer);
            assert_eq!(counted(server.address, GET).await, [well, wanted, NONE], "{text}");
            let upgrade = counted(server.address, ASK).await;
            assert_eq!((upgrade[0], upgrade[2]), (well, wanted), "{text}");
        }
        let server = Server::upgrading("").await;
        assert_eq!(counted(server.address, ASK).await, [well, NONE, well]);
        let wrong = Server::answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
        assert_eq!(counted(wrong.address, ASK).await, [well, NONE, badly]);
        assert_eq!(counted(nobody(), GET).await, [badly, NONE, NONE]);
        assert_eq!(counted(nobody(), ASK).await, [badly, NONE, NONE]);
    });
}

#[test]
fn failures_in_a_row_end_with_a_success() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                let status = if head.starts_with("GET /bad") { "500 Oops" } else { "200 OK" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                tokio::io::AsyncWriteExt::write_all(&mut stream, answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        for (path, wanted) in [
            ("/bad", tally(0, 1, 1)),
            ("/bad", tally(0, 2, 2)),
            ("/", tally(1, 2, 0)),
            ("/bad", tally(1, 3, 1)),
        ] {
            client.get(path).await;
            assert_eq!(reported(&edge).answers, wanted, "{path}");
        }
        assert_eq!(reported(&edge).connects, tally(1, 0, 0), "one connection was kept");
    });
}

/// A client that breaks its own request off, or never ends it, says nothing of the backend.
#[test]
fn what_the_client_does_wrong_is_not_the_backends_failure() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |s| {
            s.http.body_timeout = std::time::Duration::from_millis(50);
        });
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 10\r\n\r\nabc").await;
        client.read_to_end().await;
        let mut client = edge.connect().await;
        client.send("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n").await;
        client.read_to_end().await;
        assert_eq!(reported(&edge).answers.failures, 0);
    });
}
