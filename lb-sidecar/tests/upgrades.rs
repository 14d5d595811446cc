//! Upgrades through a worker.

mod harness;

use harness::*;
use lb_sidecar::settings::State;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[test]
fn frames_with_the_handshake_in_both_directions() {
    run(|| async {
        let server = Server::upgrading("hello from the server").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(format!("{ASK}early frames")).await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert_eq!(field(&head, "upgrade"), Some("websocket"));
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        assert_eq!(field(&head, "sec-websocket-accept"), Some("x"));
        assert_eq!(client.read_until("early frames").await, "hello from the serverearly frames");
        client.send("more").await;
        client.read_until("more").await;
        assert_eq!((edge.live(), edge.count("upgraded")), (1, 1));
        assert_eq!(edge.worker.report().services[0].relayed, 1);
        client.0.shutdown().await.unwrap();
        assert_eq!(client.read_to_end().await, "", "half-closed, then closed");
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn other_answers_pass() {
    run(|| async {
        let server = Server::answering(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert_eq!(field(&answer, "connection"), Some("close"));
        assert!(answer.contains("hello"), "{answer}");
        drop(client);
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_refused_handshake_is_retried() {
    run(|| async {
        let busy = Server::answering(b"HTTP/1.1 503 Full\r\ncontent-length: 4\r\n\r\nfull").await;
        let closing = Server::answering(b"").await;
        let good = Server::upgrading("").await;
        let edge = Edge::new(&[busy.address, closing.address, good.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        assert!(client.read_until("\r\n\r\n").await.starts_with("HTTP/1.1 101 "));
        assert_eq!(edge.count("retry_handshake"), 2);

        let edge = Edge::new(&[busy.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        assert!(client.read_to_end().await.ends_with("full"), "the last one's word is passed on");
        let edge = Edge::new(&[closing.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 502 "));
        assert_eq!(edge.count("backend_closed"), 1);
    });
}

#[test]
fn bad_handshakes_of_backends() {
    run(|| async {
        for (bytes, label) in [
            (
                &b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n"
                    [..],
                "unasked_switch",
            ),
            (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "unasked_switch"),
            (b"HTTP/1.1 101 Switching Proto", "backend_garbage"),
            (b"\x00\x01\x02\x03", "backend_garbage"),
        ] {
            let server = Server::answering(bytes).await;
            let edge = Edge::new(&[server.address], |_| {});
            let mut client = edge.connect().await;
            client.send(ASK).await;
            let answer = client.read_to_end().await;
            let what = String::from_utf8_lossy(bytes);
            assert!(answer.starts_with("HTTP/1.1 502 "), "{what}: {answer}");
            assert_eq!(edge.count(label), 1, "{what}: {:?}", edge.worker.report());
            drop(client);
            edge.quiet().await;
            assert_eq!(edge.live(), 0);
        }
    });
}

#[test]
fn an_unlisted_protocol_is_not_offered() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |s| s.upgrades.clear());
        let mut client = edge.connect().await;
        client.send(ASK).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        assert_eq!(field(answer.split_once("\r\n\r\n").unwrap().1, "upgrade"), None, "{answer}");
    });
}

#[test]
fn much_data_both_ways() {
    run(|| async {
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("\r\n\r\n").await;
        let (mut read, mut write) = client.0.into_split();
        let sent: Vec<u8> =
            (0..4u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let copy = sent.clone();
        let writer = tokio::task::spawn_local(async move {
            write.write_all(&copy).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        tokio::time::timeout(LONG, read.read_to_end(&mut got)).await.expect("the end").unwrap();
        writer.await.unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        edge.quiet().await;
    });
}

/// Upgraded clients, and what their backends said first: a frame of three letters (a fragment, so that it is ASCII).
async fn relayed(edge: &Edge, clients: usize) -> Vec<(Client, String)> {
    let mut all = Vec::new();
    for _ in 0..clients {
        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("\r\n\r\n").await;
        let mut frame = [0; 5];
        client.0.read_exact(&mut frame).await.unwrap();
        all.push((client, String::from_utf8(frame[2..].to_vec()).unwrap()));
    }
    all
}

#[test]
fn a_backend_that_was_drained_loses_its_relays_and_no_other_does() {
    run(|| async {
        let (one, two) =
            (Server::upgrading("\u{1}\u{3}one").await, Server::upgrading("\u{1}\u{3}two").await);
        let mut edge = Edge::new(&[one.address, two.address], |s| s.drain.rate = 50);
        let mut clients = relayed(&edge, 10).await;
        edge.settings.services[0].backends[0].state = State::Draining { until: u64::MAX };
        edge.worker.apply(edge.settings.clone());
        edge.worker.tick();
        for (client, _) in &mut clients {
            client.send("\u{1}\u{5}ping!").await;
            client.read_until("ping!").await;
        }
        edge.settings.services[0].backends[0].state = State::Draining { until: 1 };
        edge.worker.apply(edge.settings.clone());
        let start = std::time::Instant::now();
        edge.worker.tick();
        for (client, _) in clients.iter_mut().filter(|(_, name)| name == "one") {
            let mut frame = [0; 4];
            client.0.read_exact(&mut frame).await.unwrap();
            assert_eq!(frame, [0x88, 2, 0x03, 0xf4], "service restart");
            client.0.shutdown().await.unwrap();
        }
        assert!(start.elapsed().as_millis() >= 70, "five at 50 a second: {:?}", start.elapsed());
        edge.until(|| edge.live() == 5, || format!("{:?}", edge.worker.report())).await;
        for (client, _) in clients.iter_mut().filter(|(_, name)| name == "two") {
            client.send("\u{1}\u{5}still").await;
            client.read_until("still").await;
        }
    });
}

#[test]
fn a_worker_that_must_end_closes_its_relays_at_their_pace() {
    run(|| async {
        let server = Server::upgrading("\u{1}\u{3}one").await;
        let edge = Edge::new(&[server.address], |s| s.drain.rate = 100);
        let mut clients = relayed(&edge, 5).await;
        let soon = std::time::SystemTime::now() + LONG;
        let deadline = soon.duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
        edge.worker.retire(Some(deadline));
        for (client, _) in &mut clients {
            let mut read = [0; 4];
            client.0.read_exact(&mut read).await.unwrap();
            assert_eq!(read, [0x88, 2, 0x03, 0xe9], "going away");
            client.0.shutdown().await.unwrap();
        }
        tokio::time::timeout(LONG / 2, edge.worker.life.over())
            .await
            .expect("the end, before the deadline");
    });
}

/// Whether the kernel's choice of a source port is free of flows cannot be known.
#[test]
fn without_a_flow_table_an_upgraded_connection_is_relayed_for_good() {
    run(|| async {
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], |s| s.splice = true);
        let mut client = edge.connect().await;
        client.send(format!("{ASK}early")).await;
        client.read_until("early").await;
        assert_eq!((edge.count("upgraded"), edge.count("splice_unchecked_port")), (1, 1));
        client.send("more").await;
        client.read_until("more").await;
        assert_eq!(edge.count("splice_waits"), 0);
    });
}
