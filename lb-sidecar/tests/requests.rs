//! Plain requests through a worker: framing both ways, reuse, retries.

mod harness;

use std::{cell::Cell, rc::Rc, time::Duration};

use harness::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
    time::timeout,
};

#[test]
fn keep_alive_and_pipelining() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        for i in 0..3 {
            let answer = client.get(&format!("/{i}")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains(&format!("GET /{i} HTTP/1.1\r\n")), "{answer}");
        }
        client
            .send("GET /a HTTP/1.1\r\nHost: a\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\nGET /c HTTP/1.1\r\nHost: a\r\n\r\n")
            .await;
        for path in ["/a", "/b", "/c"] {
            let answer = client.answer().await;
            assert!(answer.contains(&format!("GET {path} HTTP/1.1\r\n")), "{answer}");
        }
        assert_eq!(edge.count("connections"), 0, "no such label");
        assert_eq!(edge.count("connection"), 1);
        assert_eq!(edge.count("request"), 6);
        assert_eq!(edge.count("status_2xx"), 6);
        assert_eq!(edge.count("reused"), 5, "one connection to the backend carries all");
        assert_eq!(edge.live(), 0);
        drop(client);
        edge.quiet().await;
    });
}

#[test]
fn what_the_backend_is_told() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge =
            Edge::new(&[server.address], |s| s.forwarded.request_id = Some("x-request-id".into()));
        let mut client = edge.connect().await;
        client
            .send(
                "GET http://real.example/p?q HTTP/1.1\r\nHost: other\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\n\
                 TE: trailers\r\nX-Forwarded-For: 192.0.2.1\r\nX-Request-Id: mine\r\nUpgrade: h2c\r\n\r\n",
            )
            .await;
        let answer = client.answer().await;
        let seen = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(seen.starts_with("GET /p?q HTTP/1.1\r\n"), "{seen}");
        assert_eq!(field(seen, "host"), Some("real.example"));
        assert_eq!(field(seen, "x-hop"), None);
        assert_eq!(field(seen, "upgrade"), None);
        assert_eq!(field(seen, "te"), Some("trailers"));
        assert_eq!(field(seen, "x-forwarded-for"), Some("127.0.0.1"));
        assert_eq!(field(seen, "x-forwarded-proto"), Some("http"));
        assert_eq!(field(seen, "x-forwarded-host"), Some("real.example"));
        assert_eq!(field(seen, "x-forwarded-port"), Some(edge.address.port().to_string().as_str()));
        assert_eq!(
            field(seen, "x-request-id").map(str::len),
            Some(32),
            "a stranger's is not believed"
        );
    });
}

#[test]
fn bodies_stream_both_ways_with_trailers() {
    run(|| async {
        // Sends every chunk back before it reads the next.
        let server = Server::new(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
            for _ in 0..3 {
                let size = read_until(&mut stream, "\r\n").await;
                let chunk = read_until(&mut stream, "\r\n").await;
                stream.write_all(format!("{size}{chunk}").as_bytes()).await.unwrap();
            }
            assert_eq!(read_until(&mut stream, "\r\n\r\n").await, "0\r\nx-sum: 3\r\n\r\n");
            stream.write_all(b"0\r\nx-sum: 4\r\n\r\n").await.unwrap();
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n")
            .await;
        let mut head = None;
        for text in ["one", "four", "seven"] {
            client.send(format!("{:x}\r\n{text}\r\n", text.len())).await;
            if head.is_none() {
                head = Some(client.read_until("\r\n\r\n").await);
            }
            assert_eq!(client.read_until("\r\n").await, format!("{:X}\r\n", text.len()));
            assert_eq!(client.read_until("\r\n").await, format!("{text}\r\n"));
        }
        client.send("0\r\nx-sum: 3\r\n\r\n").await;
        assert_eq!(client.read_until("\r\n\r\n").await, "0\r\nx-sum: 4\r\n\r\n");
        assert_eq!(field(&head.unwrap(), "transfer-encoding"), Some("chunked"));
    });
}

#[test]
fn expect_continue_is_end_to_end() {
    run(|| async {
        let asked = Rc::new(Cell::new(false));
        let told = asked.clone();
        let server = Server::new(move |mut stream| {
            let told = told.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                assert_eq!(field(&head, "expect"), Some("100-continue"), "{head}");
                told.set(true);
                if head.starts_with("POST /no") {
                    stream
                        .write_all(b"HTTP/1.1 401 No\r\ncontent-length: 0\r\n\r\n")
                        .await
                        .unwrap();
                    return;
                }
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
                let mut body = [0; 5];
                stream.read_exact(&mut body).await.unwrap();
                assert_eq!(&body, b"hello");
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client
            .send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
            .await;
        assert_eq!(client.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
        assert!(asked.get(), "the backend said so, not the sidecar");
        client.send("hello").await;
        assert!(client.answer().await.ends_with("ok"));

        client
            .send(
                "POST /no HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n",
            )
            .await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 401 "), "no 100 before it: {answer}");
        assert_eq!(field(&answer, "connection"), Some("close"), "the body may follow or not");
    });
}

#[test]
fn a_backend_that_knows_no_expectations_gets_the_body_all_the_same() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello").await;
        let mut answer = client.answer().await;
        if answer.starts_with("HTTP/1.1 100 ") {
            answer = client.answer().await;
        }
        assert!(answer.ends_with("ok"), "{answer}");
    });
}

#[test]
fn responses_without_a_body() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                let answer = match head.split(' ').nth(1).unwrap() {
                    "/head" => "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
                    "/204" => "HTTP/1.1 204 No Content\r\n\r\n",
                    "/304" => "HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\n\r\n",
                    "/early" => "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
                    other => panic!("{other}"),
                };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("HEAD /head HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let head = client.read_until("\r\n\r\n").await;
        assert_eq!(field(&head, "content-length"), Some("1000"), "{head}");
        for (path, status) in [("/204", "204"), ("/304", "304"), ("/early", "200")] {
            client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            let head = client.read_until("\r\n\r\n").await;
            assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        }
        assert_eq!(edge.count("reused"), 3);
    });
}

#[test]
fn http_1_0_clients() {
    run(|| async {
        let server = Server::answering(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        )
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.0\r\n\r\n").await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
        assert_eq!(field(&answer, "transfer-encoding"), None);
    });
}

#[test]
fn a_client_may_close_its_side_and_still_read() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.0.shutdown().await.unwrap();
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 200 OK"));
        edge.quiet().await;
    });
}

#[test]
fn a_failed_connect_is_retried_on_another_backend() {
    run(|| async {
        let server = Server::echo("alive").await;
        let edge = Edge::new(&[nobody(), nobody(), server.address], |_| {});
        let mut client = edge.connect().await;
        for _ in 0..4 {
            assert_eq!(field(&client.get("/").await, "server-name"), Some("alive"));
        }
        assert!(edge.count("retry_connect") > 0);

        let edge = Edge::new(&[nobody(), nobody(), nobody()], |s| s.http.retries = 1);
        let mut client = edge.connect().await;
        assert!(client.get("/").await.starts_with("HTTP/1.1 502 "));
        assert_eq!((edge.count("connect_failed"), edge.count("retry_connect")), (1, 1));
        // The connection is still of use.
        assert!(client.get("/").await.starts_with("HTTP/1.1 502 "));

        let edge = Edge::new(&[], |_| {});
        let answer = edge.connect().await.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("no backend is available"), "{answer}");
        assert_eq!(edge.count("no_backend"), 1);
    });
}

#[test]
fn a_kept_connection_that_was_closed_is_replaced() {
    run(|| async {
        // Serves one request on each connection; closes it when the next one comes.
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            read_head(&mut stream).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        for _ in 0..3 {
            assert!(client.get("/").await.ends_with("ok"));
        }
        assert_eq!((edge.count("reused"), edge.count("retry_reused")), (2, 2));

        // A POST is not sent twice.
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await;
        assert!(client.answer().await.starts_with("HTTP/1.1 502 "));
        assert_eq!(edge.count("backend_closed"), 1);
    });
}

#[test]
fn bad_backends() {
    run(|| async {
        for (bytes, status, label) in [
            (&b""[..], "502", "backend_closed"),
            (b"HTTP/1.1 200 OK\r\ncontent-le", "502", "backend_closed"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "502", "backend_garbage"),
            (
                b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
                "502",
                "backend_garbage",
            ),
            (SWITCH.as_bytes(), "502", "unasked_switch"),
        ] {
            let server = Server::answering(bytes).await;
            let edge = Edge::new(&[server.address], |_| {});
            let answer = edge.connect().await.get("/").await;
            let what = String::from_utf8_lossy(bytes);
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{what}: {answer}");
            assert_eq!(edge.count(label), 1, "{what}: {:?}", edge.worker.report());
        }
    });
}

#[test]
fn a_head_without_end_from_a_backend() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
            while stream.write_all(&[b'x'; 4096]).await.is_ok() {}
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 502 "));
        assert_eq!(edge.count("backend_garbage"), 1);
    });
}

#[test]
fn a_body_cut_off_by_the_backend_is_cut_off_for_the_client() {
    run(|| async {
        for (answer, version) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"[..], "1.1"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n", "1.1"),
            (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nshort\r\n", "1.0"),
        ] {
            let server = Server::answering(answer).await;
            let edge = Edge::new(&[server.address], |_| {});
            let mut client = edge.connect().await;
            client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n")).await;
            let mut read = Vec::new();
            let end = client.0.read_to_end(&mut read).await;
            let text = String::from_utf8_lossy(&read);
            assert!(!text.ends_with("0\r\n\r\n"), "{text}");
            if version == "1.0" {
                assert!(end.is_err(), "to read until the end must fail: {text}");
            }
            edge.counted("backend_cut", 1).await;
            edge.quiet().await;
            assert_eq!(edge.live(), 0);
        }
    });
}

#[test]
fn new_settings_hold_for_the_next_request() {
    run(|| async {
        let (one, two) = (Server::echo("one").await, Server::echo("two").await);
        let mut edge = Edge::new(&[one.address], |_| {});
        let mut client = edge.connect().await;
        assert_eq!(field(&client.get("/").await, "server-name"), Some("one"));
        edge.settings.services[0].backends = vec![backend(2, two.address)];
        edge.worker.apply(edge.settings.clone());
        assert_eq!(
            field(&client.get("/").await, "server-name"),
            Some("two"),
            "on the same connection"
        );
        assert_eq!(edge.count("connection"), 1);
    });
}

#[test]
fn a_retired_worker_finishes_what_is_open() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                if head.starts_with("GET /slow") {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut idle = edge.connect().await;
        idle.get("/").await;
        let mut fresh = edge.connect().await;
        let mut busy = edge.connect().await;
        busy.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
        edge.counted("request", 2).await;
        edge.until(|| edge.count("connection") == 3, || "three connections".into()).await;
        edge.worker.retire(None);
        assert_eq!(idle.read_to_end().await, "");
        assert_eq!(fresh.read_to_end().await, "");
        let answer = busy.read_to_end().await;
        assert!(answer.ends_with("ok"), "{answer}");
        assert_eq!(field(&answer, "connection"), Some("close"));
        timeout(LONG, edge.worker.life.over()).await.expect("the end");
    });
}

/// Who sends a body and is answered before its end reads the answer, and an end: not a reset, which takes away what is still
/// under way.
#[test]
fn an_early_answer_to_an_upload_is_not_lost_to_a_reset() {
    run(|| async {
        let close = Rc::new(Notify::new());
        let closed = close.clone();
        let server = Server::new(move |mut stream| {
            let closed = closed.clone();
            async move {
                read_head(&mut stream).await;
                let answer = "HTTP/1.1 413 Content Too Large\r\nconnection: close\r\n\
                              content-length: 5\r\n\r\nlarge";
                stream.write_all(answer.as_bytes()).await.unwrap();
                closed.notified().await;
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500000000\r\n\r\n").await;
        client.read_until("large").await;
        // Until nobody on the way has room for more.
        let (piece, blocked) = (vec![b'x'; 100_000], Duration::from_millis(100));
        while timeout(blocked, client.0.write(&piece)).await.is_ok_and(|written| written.is_ok()) {}
        close.notify_one();
        let end = timeout(LONG, client.0.read_to_end(&mut Vec::new())).await;
        assert_eq!(end.expect("the end").expect("no reset"), 0);
        drop(client);
        edge.quiet().await;
    });
}
