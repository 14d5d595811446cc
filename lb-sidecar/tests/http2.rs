//! Requests over HTTP/2 through a worker, to backends that speak HTTP/1.1.

mod harness;

use std::{cell::Cell, rc::Rc, time::Duration};

use bytes::Bytes;
use harness::{http2::*, *};
use hyper::{Request, http::HeaderMap};
use lb_sidecar::settings::{Affinity, Cookie};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const SHORT: Duration = Duration::from_millis(100);

fn edge(backends: &[std::net::SocketAddr]) -> Edge {
    Edge::new(backends, |service| service.http.h2c = true)
}

#[test]
fn a_request_reaches_a_backend_as_http_1_1() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let request = Request::get("http://chat.example:81/path?q=1")
            .header("cookie", "a=b")
            .header("cookie", "c=d")
            .header("te", "trailers")
            .header("x-forwarded-for", "203.0.113.1");
        let got = client.ask(request.body(()).unwrap()).await.unwrap();
        ok(&got);
        assert_eq!(got.head.headers()["server-name"], "one");
        assert!(got.body.starts_with("GET /path?q=1 HTTP/1.1\r\n"), "{}", got.body);
        for (name, value) in [
            ("host", "chat.example:81"),
            ("cookie", "a=b; c=d"),
            ("te", "trailers"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-host", "chat.example:81"),
        ] {
            assert_eq!(field(&got.body, name), Some(value), "{name} in {}", got.body);
        }
        assert_eq!((edge.count("http2_connection"), edge.count("request")), (1, 1));
        drop(client);
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn many_requests_at_a_time() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let asked = (0..100).map(|n| {
            let client = client.clone();
            async move { client.get(&format!("http://a/{n}")).await }
        });
        for (n, got) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
            assert!(got.body.starts_with(&format!("GET /{n} ")), "{}", got.body);
        }
        assert_eq!((edge.count("connection"), edge.count("status_2xx")), (1, 100));
    });
}

#[test]
fn without_leave_the_preface_is_no_request() {
    run(|| async {
        let edge = Edge::new(&[], |_| {});
        let mut client = edge.connect().await;
        client.send(PREFACE).await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 505 "));
        assert_eq!(edge.count("http2_connection"), 0);
    });
}

#[test]
fn clients_of_http_1_1_are_served_beside() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = edge(&[server.address]);
        for method in ["GET", "PROPFIND", "PUT"] {
            let mut client = edge.connect().await;
            client.send(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
            assert!(client.answer().await.starts_with("HTTP/1.1 200 OK"), "{method}");
        }
    });
}

#[test]
fn bodies_and_trailers_both_ways() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            assert_eq!(field(&head, "transfer-encoding"), Some("chunked"), "{head}");
            let body = read_until(&mut stream, "\r\n\r\n").await;
            assert!(body.contains("hello") && body.ends_with("0\r\nx-sum: 1\r\n\r\n"), "{body}");
            let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n\
                          5\r\nworld\r\n0\r\nx-end: 2\r\n\r\n";
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let edge = edge(&[server.address]);
        let mut client = edge.http2().await;
        let request = Request::post("http://a/").header("trailer", "x-sum").body(()).unwrap();
        let (response, mut body) = client.0.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let trailers = [("x-sum".parse().unwrap(), "1".parse().unwrap())];
        body.send_trailers(HeaderMap::from_iter(trailers)).unwrap();
        let got = read(response.await.unwrap()).await.unwrap();
        assert_eq!(
            (got.body.as_str(), got.trailers.unwrap()["x-end"].as_bytes()),
            ("world", &b"2"[..])
        );
    });
}

#[test]
fn a_slow_backend_stops_its_client() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let edge = edge(&[server.address]);
        let mut client = edge.http2().await;
        let request = Request::post("http://a/").body(()).unwrap();
        let (_response, mut body) = client.0.send_request(request, false).unwrap();
        let mut sent = 0;
        // Until the windows stay shut.
        while let Ok(capacity) = timeout(SHORT, async {
            body.reserve_capacity(64 << 10);
            loop {
                match body.capacity() {
                    0 => _ = std::future::poll_fn(|cx| body.poll_capacity(cx)).await,
                    n => break n,
                }
            }
        })
        .await
        {
            body.send_data(vec![0; capacity].into(), false).unwrap();
            sent += capacity;
            assert!(sent < 64 << 20, "nobody stops it");
        }
        // What sockets hold is the kernel's; beyond that, a window's worth.
        assert!(sent > 64 << 10, "{sent}");
    });
}

#[test]
fn a_slow_client_stops_its_backend_and_only_for_this_stream() {
    run(|| async {
        let sent = Rc::new(Cell::new(0));
        let counter = sent.clone();
        let server = Server::new(move |mut stream| {
            let sent = counter.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                if head.starts_with("GET /small") {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nsmall";
                    stream.write_all(answer).await.unwrap();
                    return;
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                while let Ok(n) = stream.write(&[7; 65_536]).await {
                    sent.set(sent.get() + n);
                }
            }
        })
        .await;
        let edge = edge(&[server.address]);
        let builder = &mut h2::client::Builder::new();
        let mut client = edge.http2_with(builder.initial_connection_window_size(1 << 20)).await;
        let (response, _) = client.0.send_request(get("http://a/large"), true).unwrap();
        let response = response.await.unwrap();
        edge.until(|| sent.get() > 0, || "nothing comes".into()).await;
        let mut before = 0;
        while before != sent.get() {
            before = sent.get();
            tokio::time::sleep(SHORT).await;
        }
        assert!(sent.get() < 50_000_000, "{}", sent.get());
        assert_eq!(client.get("http://a/small").await.body, "small");
        drop(response);
        edge.counted("client_gone", 1).await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_reset_ends_the_request_to_the_backend() {
    run(|| async {
        let ended = Rc::new(Cell::new(false));
        let flag = ended.clone();
        let server = Server::new(move |mut stream| {
            let ended = flag.clone();
            async move {
                read_head(&mut stream).await.unwrap();
                let _ = stream.read(&mut [0]).await;
                ended.set(true);
            }
        })
        .await;
        let edge = edge(&[server.address]);
        let mut client = edge.http2().await;
        let (response, mut stream) = client.0.send_request(get("http://a/"), true).unwrap();
        edge.until(|| edge.live() == 1, || "no backend".into()).await;
        stream.send_reset(h2::Reason::CANCEL);
        assert!(response.await.is_err());
        edge.counted("client_gone", 1).await;
        edge.until(|| ended.get(), || "the backend's connection stays".into()).await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn timeouts_are_of_a_stream() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            if head.starts_with("GET /cut") {
                let begun = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf";
                stream.write_all(begun).await.unwrap();
            }
            std::future::pending::<()>().await;
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.http.response_timeout = SHORT;
            service.http.body_timeout = SHORT;
        });
        let mut client = edge.http2().await;
        assert_eq!(client.get("http://a/").await.status(), 504);
        let error = client.ask(get("http://a/cut")).await.err().unwrap();
        assert_eq!(error.reason(), Some(h2::Reason::INTERNAL_ERROR));
        assert_eq!(edge.count("response_timeout"), 2);

        let request = Request::post("http://a/").body(()).unwrap();
        let (response, mut body) = client.0.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"half"), false).unwrap();
        assert_eq!(response.await.unwrap().status(), 408);
        assert_eq!(edge.count("body_timeout"), 1);
        assert_eq!(edge.count("connection"), 1, "all on one connection");
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_client_that_does_not_take_its_answer() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n";
            stream.write_all(answer).await.unwrap();
            while stream.write(&[7; 65_536]).await.is_ok() {}
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.http.body_timeout = SHORT;
        });
        let mut client = edge.http2().await;
        let (response, _) = client.0.send_request(get("http://a/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        edge.counted("write_timeout", 1).await;
        let error = loop {
            match timeout(LONG, body.data()).await.unwrap() {
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the end of the body"),
            }
        };
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL));
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn the_body_comes_when_it_is_asked_for() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await.unwrap();
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            read_until(&mut stream, "hello").await;
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        })
        .await;
        let edge = edge(&[server.address]);
        let mut client = edge.frames().await;
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "a"),
            (":path", "/"),
            ("content-length", "5"),
            ("expect", "100-continue"),
        ];
        client.send(frame(HEADERS, END_HEADERS, 1, &block(&fields))).await;
        let interim = client.frame_of(HEADERS).await;
        assert_eq!((interim.flags & END_STREAM, interim.stream), (0, 1));
        client.send(frame(DATA, END_STREAM, 1, b"hello")).await;
        let answer = client.frame_of(HEADERS).await;
        assert_eq!(answer.flags & END_STREAM, END_STREAM);
        edge.counted("status_2xx", 1).await;
    });
}

#[test]
fn clients_stay_on_their_backends() {
    run(|| async {
        let (one, two) = (Server::echo("one").await, Server::echo("two").await);
        let edge = Edge::new(&[one.address, two.address], |service| {
            service.http.h2c = true;
            service.affinity = Affinity::Cookie(Cookie {
                name: "sluice".into(),
                ttl: None,
                path: "/".into(),
                domain: None,
                secure: false,
                http_only: true,
                same_site: None,
            });
        });
        let key = lb_sidecar::settings::CookieKey { id: "k".into(), secret: "A".repeat(44) };
        let mut settings = edge.settings.clone();
        settings.cookie_keys = vec![key];
        edge.worker.apply(settings);
        let client = edge.http2().await;
        let first = client.get("http://a/").await;
        let cookie = first.head.headers()["set-cookie"].to_str().unwrap();
        let cookie = cookie.split(';').next().unwrap();
        for _ in 0..4 {
            // As browsers send it: a field for each.
            let request = Request::get("http://a/").header("cookie", "other=1");
            let request = request.header("cookie", cookie).body(()).unwrap();
            let got = client.ask(request).await.unwrap();
            assert_eq!(got.head.headers()["server-name"], first.head.headers()["server-name"]);
            assert!(!got.head.headers().contains_key("set-cookie"));
        }
        assert_eq!(edge.count("sticky_hit"), 4);
    });
}
