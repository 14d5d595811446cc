//! Clients of HTTP/2 that do what they should not: what they are told, what is counted, and that others do not notice.

mod harness;

use std::time::Duration;

use harness::{http2::*, *};

const SHORT: Duration = Duration::from_millis(100);

fn edge(backends: &[std::net::SocketAddr]) -> Edge {
    Edge::new(backends, |service| service.http.h2c = true)
}

/// Frames that end the connection, by GOAWAY with this code, and the counter.
async fn ends_connection(frames: Vec<u8>, code: u32, label: &str) {
    let server = Server::echo("one").await;
    let edge = edge(&[server.address]);
    let mut client = edge.frames().await;
    client.send_anyway(frames).await;
    let away = client.frame_of(GOAWAY).await;
    assert_eq!(away.code(), code, "{label}");
    edge.counted(label, 1).await;
    assert!(client.ends_within(LONG).await, "{label}: the connection stays");
    drop(client);
    edge.quiet().await;
    edge.until(|| edge.live() == 0, || format!("{label}: something is left")).await;
    assert_eq!(edge.http2().await.get("http://a/").await.status(), 200, "{label}: another client");
}

fn code(code: u32) -> [u8; 4] {
    code.to_be_bytes()
}

#[test]
fn floods_end_the_connection() {
    run(|| async {
        let rapid_reset: Vec<u8> = (0..1_000)
            .flat_map(|n| {
                let stream = 2 * n + 1;
                [request(stream, GET), frame(RST_STREAM, 0, stream, &code(8))].concat()
            })
            .collect();
        let block = block(GET);
        let mut continuations = frame(HEADERS, END_STREAM, 1, &block[..1]);
        continuations.extend(frame(CONTINUATION, 0, 1, &[]).repeat(1_000));
        let mut empty_data = frame(HEADERS, END_HEADERS, 1, &block);
        empty_data.extend(frame(DATA, 0, 1, &[]).repeat(1_000));
        for (frames, label) in [
            (rapid_reset, "http2_rapid_reset"),
            (frame(SETTINGS, 0, 0, &[]).repeat(1_000), "http2_settings_flood"),
            (frame(PING, 0, 0, &[0; 8]).repeat(10_000), "http2_ping_flood"),
            (frame(WINDOW_UPDATE, 0, 0, &code(1)).repeat(10_000), "http2_window_flood"),
            (frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]).repeat(10_000), "http2_priority_flood"),
            (frame(0xbb, 0, 0, b"?").repeat(10_000), "http2_priority_flood"),
            (continuations, "http2_continuation_flood"),
            (empty_data, "http2_empty_data_flood"),
        ] {
            ends_connection(frames, ENHANCE_YOUR_CALM, label).await;
        }
    });
}

#[test]
fn rapid_resets_reach_no_backend() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = edge(&[server.address]);
        let mut client = edge.frames().await;
        for n in 0..90 {
            let stream = 2 * n + 1;
            let both = [request(stream, GET), frame(RST_STREAM, 0, stream, &code(8))].concat();
            client.send(both).await;
        }
        client.send(frame(PING, 0, 0, b"are you?")).await;
        client.frame_of(PING).await;
        assert_eq!(edge.count("http2_rapid_reset"), 0, "fewer than the budget");
        edge.until(|| edge.live() == 0, || "something is left".into()).await;
        client.send(request(1_001, GET)).await;
        assert_eq!(client.frame_of(HEADERS).await.stream, 1_001, "the connection goes on");
    });
}

#[test]
fn broken_rules_end_the_connection() {
    run(|| async {
        let open = frame(HEADERS, END_HEADERS, 1, &block(GET));
        for (frames, code) in [
            (frame(WINDOW_UPDATE, 0, 0, &code(0)), PROTOCOL_ERROR),
            ([frame(WINDOW_UPDATE, 0, 0, &code(0x7fff_ffff))].concat(), FLOW_CONTROL_ERROR),
            (frame(DATA, 0, 7, b"x"), PROTOCOL_ERROR),
            (request(2, GET), PROTOCOL_ERROR),
            (frame(HEADERS, 5, 1, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), 9),
            ([open.clone(), frame(CONTINUATION, 4, 1, &[])].concat(), PROTOCOL_ERROR),
            (
                [frame(HEADERS, 0, 1, &block(GET)), frame(PING, 0, 0, &[0; 8])].concat(),
                PROTOCOL_ERROR,
            ),
            (request(1, &[GET, &[(":nonsense", "x")]].concat()), PROTOCOL_ERROR),
            (request(1, &[GET, &[("Upper", "x")]].concat()), PROTOCOL_ERROR),
            (frame(PING, 0, 0, &[0; 7]), 6),
            (frame(5, 4, 1, &[0, 0, 0, 2]), PROTOCOL_ERROR),
            (frame(DATA, 0, 1, &vec![0; 20_000]), 6),
        ] {
            let what = format!("{:?}", &frames[..frames.len().min(40)]);
            let edge = edge(&[]);
            let mut client = edge.frames().await;
            client.send_anyway(frames).await;
            let away = client.frame_of(GOAWAY).await;
            assert!([code, PROTOCOL_ERROR].contains(&away.code()), "{} for {what}", away.code());
            edge.counted("http2_protocol_error", 1).await;
            assert!(client.ends_within(LONG).await);
            drop(client);
            edge.quiet().await;
        }
    });
}

#[test]
fn malformed_heads_end_their_stream() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = edge(&[server.address]);
        let mut client = edge.frames().await;
        let mut stream = 1;
        let without =
            |name: &str| GET.iter().filter(|(it, _)| *it != name).copied().collect::<Vec<_>>();
        let with = |field| [GET, &[field]].concat();
        let heads = [
            without(":method"),
            without(":scheme"),
            with((":method", "GET")),
            with((":path", "/")),
            with((":status", "200")),
            with((":protocol", "websocket")),
            [&[("accept", "x")], GET].concat(),
            [&without(":path")[..], &[(":path", "")]].concat(),
            with(("connection", "close")),
            with(("transfer-encoding", "chunked")),
            with(("te", "gzip")),
            with(("content-length", "1")),
        ];
        for (count, fields) in heads.iter().enumerate() {
            client.send(request(stream, fields)).await;
            let reset = client.frame_of(RST_STREAM).await;
            assert_eq!((reset.stream, reset.code()), (stream, PROTOCOL_ERROR), "{fields:?}");
            edge.counted("http2_malformed", count as u64 + 1).await;
            stream += 2;
        }
        assert_eq!(edge.count("request"), 0);
        client.send(request(stream, GET)).await;
        assert_eq!(client.frame_of(HEADERS).await.stream, stream, "the connection goes on");
    });
}

#[test]
fn requests_that_are_refused() {
    run(|| async {
        let edge = edge(&[]);
        let client = edge.http2().await;
        for (request, status, label) in [
            (get("http://u@a/"), 400, "target_invalid"),
            (get("ftp://a/"), 400, "target_invalid"),
            (with("host", "b"), 400, "host_differs"),
            (with("expect", "a-pony"), 417, "unknown_expectation"),
            (get("http://a/"), 503, "no_backend"),
        ] {
            let got = client.ask(request).await.unwrap();
            assert_eq!(got.status(), status, "{label}");
            assert!(!got.head.headers().contains_key("connection"), "{label}");
            assert!(!got.body.is_empty(), "{label}");
        }
        for label in ["host_differs", "unknown_expectation", "no_backend"] {
            assert_eq!(edge.count(label), 1, "{label}");
        }
        assert_eq!(edge.count("target_invalid"), 2);
        let mut client = edge.frames().await;
        let twice = [GET, &[("content-length", "0"), ("content-length", "0")]].concat();
        let nowhere = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
        let connect = [(":method", "CONNECT"), (":authority", "a:80")];
        for (n, (fields, label)) in
            [(&twice[..], "bad_head"), (&nowhere, "host_missing"), (&connect, "connect_method")]
                .into_iter()
                .enumerate()
        {
            client.send(request(2 * n as u32 + 1, fields)).await;
            client.frame_of(HEADERS).await;
            edge.counted(label, 1).await;
        }
    });
}

fn with(name: &str, value: &str) -> hyper::Request<()> {
    hyper::Request::get("http://a/").header(name, value).body(()).unwrap()
}

#[test]
fn heads_that_are_too_large() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.http.head_bytes = 4_096;
        });
        let client = edge.http2().await;
        let large = "x".repeat(9_000);
        assert_eq!(client.ask(with("x-large", &large)).await.unwrap().status(), 431);
        edge.counted("head_too_large", 1).await;
        assert_eq!(client.get("http://a/").await.status(), 200, "the connection goes on");

        // A small block that stands for a large head: one field in the table, and many references to it.
        let mut client = edge.frames().await;
        let mut bomb = block(GET);
        bomb.push(0x40);
        bomb.extend(&block(&[("x", &"y".repeat(3_000))])[1..]);
        bomb.extend([0x80 | 62; 4]);
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb)).await;
        client.frame_of(HEADERS).await;
        edge.counted("head_too_large", 2).await;
        // Far beyond, nothing is decoded any more.
        let mut bomb = block(GET);
        bomb.extend([0x80 | 62; 10_000]);
        client.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &bomb)).await;
        assert_eq!(client.frame_of(GOAWAY).await.code(), ENHANCE_YOUR_CALM);
        edge.counted("http2_excess", 1).await;
    });
}

#[test]
fn more_streams_than_allowed() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            std::future::pending::<()>().await;
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.http.max_streams = 3;
        });
        let mut client = edge.frames().await;
        for n in 0..4 {
            client.send(request(2 * n + 1, GET)).await;
        }
        let reset = client.frame_of(RST_STREAM).await;
        assert_eq!((reset.stream, reset.code()), (7, REFUSED_STREAM));
        edge.counted("http2_too_many_streams", 1).await;
        edge.until(|| edge.live() == 3, || "three are served".into()).await;
    });
}

#[test]
fn malformed_bodies() {
    run(|| async {
        let server =
            Server::new(
                |mut stream| async move { while read_head(&mut stream).await.is_some() {} },
            )
            .await;
        let edge = edge(&[server.address]);
        let mut client = edge.frames().await;
        let post =
            |length: &[(&str, &str)]| block(&[&[(":method", "POST")], &GET[1..], length].concat());
        let five = post(&[("content-length", "5")]);
        // More than was said, less than was said, and a trailer that belongs into the head.
        let bodies = [
            frame(DATA, END_STREAM, 1, b"more than that"),
            frame(DATA, END_STREAM, 3, b"xx"),
            [
                frame(DATA, 0, 5, b"xxxxx"),
                frame(HEADERS, END_HEADERS | END_STREAM, 5, &block(&[("host", "b")])),
            ]
            .concat(),
        ];
        for (n, body) in bodies.into_iter().enumerate() {
            let stream = 2 * n as u32 + 1;
            let head = if n < 2 { five.clone() } else { post(&[]) };
            client.send(frame(HEADERS, END_HEADERS, stream, &head)).await;
            edge.counted("request", n as u64 + 1).await;
            client.send(body).await;
        }
        edge.counted("http2_malformed", 2).await;
        edge.counted("forbidden_trailer", 1).await;
        edge.until(|| edge.live() == 0, || "something is left".into()).await;
    });
}

#[test]
fn slow_clients_run_out_of_time() {
    run(|| async {
        let edge = Edge::new(&[], |service| {
            service.http.h2c = true;
            service.http.head_timeout = SHORT;
            service.http.keep_alive = 3 * SHORT;
        });
        let mut silent = edge.connect().await;
        silent.send(&PREFACE[..12]).await;
        assert!(silent.ends_within(LONG).await);
        edge.counted("head_timeout", 1).await;

        let mut slow = edge.frames().await;
        slow.send(frame(HEADERS, END_STREAM, 1, &block(GET))).await;
        slow.frame_of(GOAWAY).await;
        edge.counted("head_timeout", 2).await;

        let mut idle = edge.frames().await;
        assert_eq!(idle.frame_of(GOAWAY).await.code(), NO_ERROR);
        assert!(idle.ends_within(LONG).await);
        edge.counted("keep_alive_expired", 1).await;
        drop((silent, slow, idle));
        edge.quiet().await;
    });
}

#[test]
fn on_a_retirement_streams_finish() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            use tokio::io::AsyncWriteExt;
            read_head(&mut stream).await;
            tokio::time::sleep(2 * SHORT).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone").await;
        })
        .await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let idle = edge.http2().await;
        let asking = {
            let client = client.clone();
            tokio::task::spawn_local(async move { client.get("http://a/").await.body })
        };
        edge.until(|| edge.live() == 1, || "no request".into()).await;
        edge.worker.retire(None);
        assert_eq!(asking.await.unwrap(), "done");
        drop((client, idle));
        tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the worker's end");
        assert_eq!(edge.count("client_gone"), 0);
    });
}
