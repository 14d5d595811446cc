//! How much sources, the service and its backends may have.

mod harness;

use std::time::{Duration, Instant};

use harness::*;
use lb_sidecar::settings::{Backend, Limits, State};

fn limited(edge: &[std::net::SocketAddr], limits: Limits) -> Edge {
    Edge::new(edge, |service| service.limits = limits)
}

#[test]
fn a_source_has_so_many_connections_and_no_more() {
    run(|| async {
        let backend = Server::upgrading("hello").await;
        let limits =
            Limits { connections_per_source: 2, source_prefix_ipv4: 32, ..Limits::default() };
        let edge = limited(&[backend.address], limits);
        let mut open = Vec::new();
        for _ in 0..2 {
            let mut client = edge.connect().await;
            client.send(ASK).await;
            client.read_until("hello").await;
            open.push(client);
        }
        let mut third = edge.connect().await;
        assert_eq!(third.read_to_end().await, "");
        edge.counted("source_connections", 1).await;
        assert_eq!(edge.worker.report().services[0].connections, 2, "relayed ones count on");
        open.pop();
        edge.until(|| edge.worker.report().services[0].connections == 1, String::new).await;
        let mut next = edge.connect().await;
        next.send(ASK).await;
        next.read_until("hello").await;
    });
}

#[test]
fn a_source_that_comes_too_fast_is_turned_away_for_a_while() {
    run(|| async {
        let backend = Server::echo("b").await;
        let limits = Limits {
            handshakes_per_second_per_source: 1,
            handshake_burst: 3,
            source_prefix_ipv4: 24,
            ..Limits::default()
        };
        let edge = limited(&[backend.address], limits);
        let mut served = 0;
        for _ in 0..10 {
            let mut client = edge.connect().await;
            client.send_anyway("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
            served += u32::from(!client.read_to_end().await.is_empty());
        }
        assert!((3..10).contains(&served), "{served} of 10 were served");
        edge.counted("source_handshakes", u64::from(10 - served)).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn of_a_service_so_many_come_in_a_second_and_the_others_wait() {
    run(|| async {
        const RATE: u32 = 20;
        const CLIENTS: u32 = 14;
        let backend = Server::echo("b").await;
        let edge = limited(
            &[backend.address],
            Limits { handshakes_per_second: RATE, ..Limits::default() },
        );
        let start = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            clients.push(edge.connect().await);
        }
        for client in &mut clients {
            assert!(client.get("/").await.starts_with("HTTP/1.1 200 "));
        }
        // The first, and those of a tenth of a second, come at once.
        let least = Duration::from_secs(1) / RATE * (CLIENTS - 1) - Duration::from_millis(100);
        assert!(start.elapsed() >= least, "all came within {:?}", start.elapsed());
        let delayed = edge.count("connection_delayed");
        assert!(delayed > 0 && delayed < u64::from(CLIENTS), "{delayed} had to wait");
        assert_eq!(edge.count("connection"), u64::from(CLIENTS));
    });
}

#[test]
fn a_service_has_so_many_connections_those_of_others_and_of_xdp_included() {
    run(|| async {
        let backend = Server::echo("b").await;
        let edge = limited(&[backend.address], Limits { connections: 5, ..Limits::default() });
        let mut first = edge.connect().await;
        first.get("/").await;
        edge.worker.others(&[(format!("{:016x}", 0), 3)].into());
        let mut second = edge.connect().await;
        second.get("/").await;
        let mut third = edge.connect().await;
        assert_eq!(third.read_to_end().await, "");
        edge.counted("too_many_connections", 1).await;
        edge.worker.others(&Default::default());
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn a_backend_has_so_many_requests_and_the_others_wait_their_turn() {
    run(|| async {
        let backend = Server::upgrading("hello").await;
        let limits = Limits {
            connections_per_backend: 1,
            queue: 2,
            queue_timeout: LONG,
            ..Limits::default()
        };
        let edge = limited(&[backend.address], limits);
        let ask = async || {
            let mut client = edge.connect().await;
            client.send(ASK).await;
            client
        };
        let mut first = ask().await;
        first.read_until("hello").await;
        let mut second = ask().await;
        edge.counted("queued", 1).await;
        let mut third = ask().await;
        edge.counted("queued", 2).await;
        let mut fourth = ask().await;
        let answer = fourth.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert_eq!(field(&answer, "retry-after"), Some("1"));
        edge.counted("backend_full", 1).await;
        assert_eq!(edge.live(), 1, "who waits is no load of the backend's");
        drop(first);
        second.read_until("hello").await;
        drop(second);
        third.read_until("hello").await;
        // Others have it full.
        edge.worker.others(&[(format!("{:016x}", 0), 1)].into());
        drop(third);
        let mut fifth = ask().await;
        edge.counted("queued", 3).await;
        edge.worker.others(&Default::default());
        fifth.read_until("hello").await;
    });
}

#[test]
fn who_waits_for_a_backend_that_takes_nobody_any_more_goes_to_another() {
    type Change = fn(&mut Vec<Backend>);
    let changes: [(&str, Change); 3] = [
        ("removed", |backends| drop(backends.remove(0))),
        ("down", |backends| backends[0].state = State::Down),
        ("draining", |backends| backends[0].state = State::Draining { until: u64::MAX }),
    ];
    run(|| async {
        let full = Server::upgrading("full").await;
        let free = Server::upgrading("free").await;
        for (how, change) in changes {
            let limits = Limits {
                connections_per_backend: 2,
                queue: 2,
                queue_timeout: LONG,
                ..Limits::default()
            };
            let mut edge = limited(&[full.address, free.address], limits);
            edge.settings.services[0].backends[1].state = State::Down;
            edge.worker.apply(edge.settings.clone());
            // Others' connections, of which nobody tells when the backend is removed.
            edge.worker.others(&[(format!("{:016x}", 0), 2)].into());
            let mut waiting = Vec::new();
            for n in 1..=2 {
                let mut client = edge.connect().await;
                client.send(ASK).await;
                edge.counted("queued", n).await;
                waiting.push(client);
            }
            let backends = &mut edge.settings.services[0].backends;
            backends[1].state = State::Up;
            change(backends);
            let since = Instant::now();
            edge.worker.apply(edge.settings.clone());
            for client in &mut waiting {
                client.read_until("free").await;
            }
            assert!(since.elapsed() < LONG / 2, "{how}: {:?}", since.elapsed());
            assert_eq!((edge.count("queued"), edge.count("queue_timeout")), (2, 0), "{how}");
            assert_eq!(edge.live(), 2, "{how}");

            // Who is sent on waits no longer for that.
            let mut last = edge.connect().await;
            last.send(ASK).await;
            edge.counted("queued", 3).await;
            edge.settings.services[0].backends.clear();
            edge.worker.apply(edge.settings.clone());
            let answer = last.read_to_end().await;
            assert!(answer.ends_with("no backend is available"), "{how}: {answer}");
        }
    });
}

#[test]
fn who_belongs_to_a_backend_that_drains_waits_for_it_and_no_longer_than_it_may() {
    run(|| async {
        let (home, other) = (Server::upgrading("home").await, Server::upgrading("other").await);
        let mut edge = Edge::new(&[home.address, other.address], |service| {
            service.affinity = by_cookie();
            service.backends[1].state = State::Down;
        });
        with_keys(&mut edge);
        let mut client = edge.connect().await;
        client.send(ASK).await;
        let head = client.read_until("home").await;
        let cookie = field(&head, "set-cookie").unwrap().split(';').next().unwrap().to_owned();
        let service = &mut edge.settings.services[0];
        service.limits = Limits {
            connections_per_backend: 1,
            queue: 3,
            queue_timeout: Duration::from_secs(2),
            ..Limits::default()
        };
        edge.worker.apply(edge.settings.clone());
        let (mut holder, mut stranger) = (edge.connect().await, edge.connect().await);
        let asks = ASK.replace("Host: a\r\n", &format!("Host: a\r\nCookie: {cookie}\r\n"));
        holder.send(&asks).await;
        edge.counted("queued", 1).await;
        stranger.send(ASK).await;
        edge.counted("queued", 2).await;
        let backends = &mut edge.settings.services[0].backends;
        backends[0].state = State::Draining { until: u64::MAX };
        backends[1].state = State::Up;
        edge.worker.apply(edge.settings.clone());
        stranger.read_until("other").await;
        drop(client);
        holder.read_until("home").await;

        // The second one is as full as the first: the time goes on from where it was.
        let mut late = edge.connect().await;
        let since = Instant::now();
        late.send(&asks).await;
        edge.counted("queued", 3).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        edge.settings.services[0].backends[0].state = State::Down;
        edge.worker.apply(edge.settings.clone());
        let answer = late.read_to_end().await;
        assert!(answer.ends_with("the backend had no room in time"), "{answer}");
        assert!(since.elapsed() < Duration::from_millis(2_800), "{:?}", since.elapsed());
        assert_eq!(edge.count("queued"), 3);
    });
}

#[test]
fn an_upgrade_that_another_backend_refused_waits_its_turn_too() {
    run(|| async {
        let busy = Server::answering(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
        let backend = Server::upgrading("hello").await;
        let limits = Limits {
            connections_per_backend: 1,
            queue: 1,
            queue_timeout: LONG,
            ..Limits::default()
        };
        let edge = limited(&[busy.address, backend.address], limits);
        let mut open = Vec::new();
        // Wherever a client begins, it ends at the second backend.
        for n in 0..3 {
            let mut client = edge.connect().await;
            client.send(ASK).await;
            if n == 0 {
                client.read_until("hello").await;
            } else if n == 1 {
                edge.counted("queued", 1).await;
            }
            open.push(client);
        }
        let answer = open.pop().unwrap().read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        edge.counted("backend_full", 1).await;
        assert_eq!(edge.live(), 1);
        drop(open.remove(0));
        open[0].read_until("hello").await;
    });
}

#[test]
fn who_waits_for_too_long_is_told_to_come_again() {
    run(|| async {
        let backend = Server::upgrading("hello").await;
        let limits = Limits {
            connections_per_backend: 1,
            queue: 8,
            queue_timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        let edge = limited(&[backend.address], limits);
        let mut first = edge.connect().await;
        first.send(ASK).await;
        first.read_until("hello").await;
        let answer = edge.connect().await.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("the backend had no room in time"));
        assert_eq!(field(&answer, "retry-after"), Some("1"));
        assert_eq!((edge.count("queue_timeout"), edge.count("connect_failed")), (1, 0));
    });
}

#[test]
fn a_body_is_no_larger_than_it_may_be() {
    run(|| async {
        let backend = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        let edge = limited(&[backend.address], Limits { body_bytes: 10, ..Limits::default() });
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\n").await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 413 "));
        assert_eq!(edge.worker.report().services[0].backends[0].picked, 0);
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        client.send("8\r\n12345678\r\n8\r\n12345678\r\n").await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 413 "));
        edge.counted("body_too_large", 2).await;
    });
}

/// Not how fast exactly, which is tested where time stands still, but that it is not at once.
#[test]
fn bodies_and_relayed_bytes_keep_the_pace() {
    run(|| async {
        const BYTES: usize = 160_000;
        let page =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {BYTES}\r\n\r\n{}", "x".repeat(BYTES));
        let plain = Server::answering(page.leak().as_bytes()).await;
        let limits = Limits { bytes_per_second: 100_000, ..Limits::default() };
        let edge = limited(&[plain.address], limits.clone());
        let mut client = edge.connect().await;
        let start = Instant::now();
        let answer = client.get("/").await;
        assert!(answer.ends_with("xxx"));
        let body = start.elapsed();
        assert!(body >= Duration::from_millis(400), "{body:?}");

        let backend = Server::upgrading("hello").await;
        let edge = Edge::new(&[backend.address], |service| {
            (service.limits, service.splice) = (limits, true);
        });
        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("hello").await;
        let start = Instant::now();
        let (mut read, mut write) = client.0.split();
        let bytes = vec![b'y'; BYTES];
        let mut echoed = vec![0; BYTES];
        let (sent, got) = tokio::join!(
            tokio::io::AsyncWriteExt::write_all(&mut write, &bytes),
            tokio::io::AsyncReadExt::read_exact(&mut read, &mut echoed)
        );
        sent.unwrap();
        got.unwrap();
        assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
        assert_eq!(edge.count("splice_limited"), 1);
    });
}
