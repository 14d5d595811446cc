//! How long things take, as workers report it.

mod harness;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use harness::{
    tls::{Authority, connect, tls},
    *,
};
use lb_sidecar::control::TimeReport;
use rustls::ALL_VERSIONS;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long the slow server thinks: the bucket of 25 ms ends before.
const THINKS: Duration = Duration::from_millis(30);
const UP_TO_25_MS: usize = 8;

/// How often each thing has been timed.
fn timed(edge: &Edge) -> BTreeMap<String, u64> {
    let times = edge.worker.report().services[0].times.clone();
    times.into_iter().map(|it| (it.what, it.counts.iter().sum())).collect()
}

fn report(edge: &Edge, what: &str) -> TimeReport {
    let times = edge.worker.report().services[0].times.clone();
    times.into_iter().find(|it| it.what == what).unwrap()
}

fn counts<const N: usize>(counts: [(&str, u64); N]) -> BTreeMap<String, u64> {
    counts.map(|(what, count)| (what.to_owned(), count)).into()
}

/// Answers each request of a connection after a while.
async fn slow() -> Server {
    Server::new(|mut stream| async move {
        while read_head(&mut stream).await.is_some() {
            tokio::time::sleep(THINKS).await;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await
}

#[test]
fn every_request_is_timed_and_a_connection_only_once() {
    run(|| async {
        let server = slow().await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        for n in 1..=2 {
            client.get("/").await;
            edge.until(
                || timed(&edge).get("request") == Some(&n),
                || format!("{:?}", timed(&edge)),
            )
            .await;
        }
        // The second request went over the connection of the first.
        let wanted = [
            ("client_handshake", 1),
            ("request", 2),
            ("backend_connect", 1),
            ("backend_answer", 2),
        ];
        assert_eq!(timed(&edge), counts(wanted));
        for what in ["client_handshake", "request", "backend_answer"] {
            let TimeReport { counts, micros, .. } = report(&edge, what);
            assert_eq!(counts[..UP_TO_25_MS].iter().sum::<u64>(), 0, "{what}: {counts:?}");
            let all = counts.iter().sum::<u64>();
            assert!(u128::from(micros) >= u128::from(all) * THINKS.as_micros(), "{what}: {micros}");
        }
    });
}

#[test]
fn an_upgrade_ends_with_its_101() {
    run(|| async {
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("\r\n\r\n").await;
        let wanted = [
            ("client_handshake", 1),
            ("request", 1),
            ("backend_connect", 1),
            ("backend_answer", 1),
        ];
        assert_eq!(timed(&edge), counts(wanted));
    });
}

#[test]
fn what_fails_is_not_timed() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |_| {});
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(client.read_until("\r\n\r\n").await.contains(" 502 "));
        // The answer is the sidecar's own.
        assert_eq!(timed(&edge), counts([("client_handshake", 1), ("request", 1)]));
    });
}

#[test]
fn a_tls_handshake_is_timed_when_it_is_complete() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::answering(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        let edge = Edge::new(&[server.address], |service| {
            service.tls = Some(tls(vec![authority.server(&["chat.example"])]));
        });
        let config = Arc::new(authority.trusting(ALL_VERSIONS));
        let mut client = connect(edge.address, &config, "chat.example").await;
        client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
        client.read_to_end(&mut Vec::new()).await.unwrap();
        assert_eq!(timed(&edge)["tls_handshake"], 1);
        let mut plain = edge.connect().await;
        plain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        plain.read_to_end().await;
        assert_eq!(timed(&edge)["tls_handshake"], 1);
    });
}
