//! The PROXY protocol, from proxies and to backends.

mod harness;

use std::time::Duration;

use harness::*;
use lb_sidecar::settings::{Affinity, SendProxy, Service};

const V1: &str = "PROXY TCP4 192.0.2.7 203.0.113.10 40001 8080\r\n";
const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// From 192.0.2.7 port 40001 to 203.0.113.10 port 8080, with a TLV.
fn v2() -> Vec<u8> {
    let mut bytes = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0f".to_vec();
    bytes.extend([192, 0, 2, 7, 203, 0, 113, 10, 0x9c, 0x41, 0x1f, 0x90, 0x04, 0, 0]);
    bytes
}

fn required(service: &mut Service) {
    service.proxy_protocol.accept = vec![("127.0.0.0".parse().unwrap(), 8)];
}

#[test]
fn the_header_says_who_the_client_is() {
    run(|| async {
        let backend = Server::echo("b").await;
        let edge = Edge::new(&[backend.address], required);
        for header in [V1.as_bytes().to_vec(), v2()] {
            for pause in [false, true] {
                let mut client = edge.connect().await;
                let (first, rest) = header.split_at(9);
                client.send(first).await;
                if pause {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                client.send([rest, GET.as_bytes()].concat()).await;
                let answer = client.answer().await;
                assert!(answer.contains("x-forwarded-for: 192.0.2.7\r\n"), "{answer}");
                assert!(answer.contains("x-forwarded-port: 8080\r\n"), "{answer}");
                assert!(client.get("/next").await.contains("x-forwarded-for: 192.0.2.7\r\n"));
            }
        }
    });
}

#[test]
fn affinity_by_source_is_that_of_the_header() {
    run(|| async {
        let backends = [Server::echo("b0").await, Server::echo("b1").await];
        let edge = Edge::new(&backends.each_ref().map(|it| it.address), |service| {
            required(service);
            service.affinity = Affinity::Source;
        });
        let mut chosen = std::collections::BTreeSet::new();
        for source in 0..40 {
            let mut names = Vec::new();
            for port in [1000, 2000] {
                let mut client = edge.connect().await;
                let line = format!("PROXY TCP4 198.51.100.{source} 203.0.113.10 {port} 80\r\n");
                client.send(format!("{line}{GET}")).await;
                names.push(field(&client.answer().await, "server-name").unwrap().to_owned());
            }
            assert_eq!(names[0], names[1]);
            chosen.extend(names);
        }
        assert_eq!(chosen.len(), 2);
    });
}

#[test]
fn a_connection_of_the_proxys_own_keeps_its_address() {
    run(|| async {
        let backend = Server::echo("b").await;
        let edge = Edge::new(&[backend.address], required);
        for header in [&b"PROXY UNKNOWN\r\n"[..], b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"] {
            let mut client = edge.connect().await;
            client.send([header, GET.as_bytes()].concat()).await;
            assert!(client.answer().await.contains("x-forwarded-for: 127.0.0.1\r\n"));
        }
    });
}

#[test]
fn what_is_refused_is_closed_without_an_answer_and_counted() {
    run(|| async {
        let backend = Server::echo("b").await;
        let edge = Edge::new(&[backend.address], |service| {
            required(service);
            service.http.head_timeout = Duration::from_millis(200);
        });
        for (bytes, counter) in [
            (GET, "proxy_header_missing"),
            ("\x16\x03\x01", "proxy_header_missing"),
            ("PROXY TCP4 1.2.3.4\r\n", "proxy_header_malformed"),
            ("PROXY TCP4 192.0.2.7", "proxy_header_timeout"),
            ("", "proxy_header_timeout"),
        ] {
            let before = edge.count(counter);
            let mut client = edge.connect().await;
            client.send(bytes).await;
            assert_eq!(client.read_to_end().await, "", "{bytes:?}");
            edge.counted(counter, before + 1).await;
        }
        let mut client = edge.connect().await;
        client.send(format!("PROXY UNKNOWN {}", "x".repeat(200))).await;
        assert_eq!(client.read_to_end().await, "");
        edge.counted("proxy_header_malformed", 2).await;
        edge.quiet().await;
        assert_eq!(edge.count("request"), 0);
    });
}

#[test]
fn a_stranger_may_come_without_a_header_and_not_with_one() {
    run(|| async {
        let backend = Server::echo("b").await;
        let edge = Edge::new(&[backend.address], |service| {
            service.proxy_protocol.accept = vec![("192.0.2.0".parse().unwrap(), 24)];
        });
        let mut client = edge.connect().await;
        assert!(client.get("/").await.contains("x-forwarded-for: 127.0.0.1\r\n"));
        for (n, header) in [V1.as_bytes().to_vec(), v2()].into_iter().enumerate() {
            let mut client = edge.connect().await;
            client.send([&header, GET.as_bytes()].concat()).await;
            assert_eq!(client.read_to_end().await, "");
            edge.counted("proxy_header_untrusted", n as u64 + 1).await;
        }
        let mut client = edge.connect().await;
        client.send("PRO").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        client.send(&V1[3..]).await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 400 "));
        assert_eq!(edge.count("request"), 1);
    });
}

#[test]
fn who_says_nothing_counts_for_the_service_and_a_stranger_for_its_source() {
    run(|| async {
        let backend = Server::echo("b").await;
        for (trusted, counter) in
            [("127.0.0.0", "too_many_connections"), ("192.0.2.0", "source_connections")]
        {
            let edge = Edge::new(&[backend.address], |service| {
                service.proxy_protocol.accept = vec![(trusted.parse().unwrap(), 8)];
                service.limits.connections = 4;
                service.limits.connections_per_source = 2;
                service.limits.source_prefix_ipv4 = 32;
            });
            let open = || edge.worker.report().services[0].connections;
            // A proxy may have any number of connections on the way, up to what the service may have.
            let most = if trusted == "127.0.0.0" { 4 } else { 2 };
            let mut silent = Vec::new();
            for n in 1..=most {
                silent.push(edge.connect().await);
                edge.until(|| open() == n, || format!("{} of {n} with {trusted}", open())).await;
            }
            let mut beyond = edge.connect().await;
            assert_eq!(beyond.read_to_end().await, "", "{trusted}");
            edge.counted(counter, 1).await;
            // Who is named counts for its source, and who leaves makes room.
            silent.pop();
            edge.until(|| open() == most - 1, || format!("{} open", open())).await;
            let mut client = edge.connect().await;
            let header = if most == 4 { V1 } else { "" };
            client.send(format!("{header}{GET}")).await;
            assert!(client.answer().await.starts_with("HTTP/1.1 200 "), "{trusted}");
        }
    });
}

#[test]
fn without_the_protocol_a_header_is_a_malformed_request() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |_| {});
        let mut client = edge.connect().await;
        client.send(V1).await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 400 "));
    });
}

/// A backend that reads a line or 28 bytes before each request, and tells what it has read.
async fn told(header_ends: impl Fn(&[u8]) -> bool + Copy + 'static) -> Server {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    Server::new(move |mut stream| async move {
        let mut header = Vec::new();
        while !header_ends(&header) {
            let Ok(byte) = stream.read_u8().await else { return };
            header.push(byte);
        }
        while let Some(head) = read_head(&mut stream).await {
            let told: String = header.iter().map(|byte| format!("{byte:02x}")).collect();
            let answer = match field(&head, "upgrade") {
                Some(_) => format!("{SWITCH}{told}"),
                None => {
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{told}", told.len())
                }
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn backends_are_told_and_no_connection_is_shared() {
    run(|| async {
        for send in [SendProxy::V1, SendProxy::V2] {
            let backend = match send {
                SendProxy::V1 => told(|bytes| bytes.ends_with(b"\r\n")).await,
                _ => told(|bytes| bytes.len() == 28).await,
            };
            let edge = Edge::new(&[backend.address], |service| {
                service.proxy_protocol.send = send;
                required(service);
            });
            for (n, path) in ["/1", "/2", "/3"].into_iter().enumerate() {
                let mut client = edge.connect().await;
                let source = format!("192.0.2.{n}");
                client.send(format!("PROXY TCP4 {source} 203.0.113.10 40001 80\r\n")).await;
                let expected = match send {
                    SendProxy::V1 => {
                        hex(format!("PROXY TCP4 {source} 203.0.113.10 40001 80\r\n").as_bytes())
                    }
                    _ => {
                        let rest = [192, 0, 2, n as u8, 203, 0, 113, 10, 0x9c, 0x41, 0, 80];
                        hex(b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c") + &hex(&rest)
                    }
                };
                for _ in 0..2 {
                    assert!(client.get(path).await.ends_with(&format!("\r\n\r\n{expected}")));
                }
                client.send(ASK).await;
                client.read_until(&format!("\r\n\r\n{expected}")).await;
            }
            assert_eq!(edge.count("reused"), 0);
        }
    });
}

/// A head has its time from the beginning of its connection, whatever else might have come before it.
#[test]
fn a_stranger_that_says_nothing_has_its_time_once() {
    const TIME: Duration = Duration::from_millis(400);
    run(|| async {
        let edge = Edge::new(&[], |service| {
            service.proxy_protocol.accept = vec![("192.0.2.0".parse().unwrap(), 24)];
            service.http.head_timeout = TIME;
        });
        let mut client = edge.connect().await;
        let start = std::time::Instant::now();
        assert_eq!(client.read_to_end().await, "");
        let took = start.elapsed();
        assert!(took < TIME * 3 / 2, "{took:?}");
        assert_eq!(edge.count("head_timeout"), 1);
    });
}
