//! WebSockets over HTTP/2 (RFC 8441) through a worker.

mod harness;

use std::{
    cell::RefCell,
    rc::Rc,
    time::{Duration, Instant},
};

use harness::{http2::*, *};
use lb_sidecar::settings::State;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

const CHAT: &str = "http://chat.example/chat?room=1";

fn edge(backends: &[std::net::SocketAddr]) -> Edge {
    Edge::new(backends, |service| service.http.h2c = true)
}

#[test]
fn a_websocket_is_an_upgrade_to_its_backend() {
    run(|| async {
        let asked = Rc::new(RefCell::new(String::new()));
        let heard = asked.clone();
        let server = Server::new(move |mut stream| {
            let asked = heard.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                stream.write_all(format!("{}hello", switch(&head)).as_bytes()).await.unwrap();
                asked.replace(head);
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.splice = true;
        });
        let client = edge.http2().await;
        let (head, mut chat) = client.connect(CHAT).await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()["sec-websocket-protocol"], "chat");
        for name in ["connection", "upgrade", "sec-websocket-accept"] {
            assert!(!head.headers().contains_key(name), "{name}");
        }
        assert_eq!(chat.read(5).await.unwrap(), b"hello");
        chat.send("early frames");
        assert_eq!(chat.read(12).await.unwrap(), b"early frames");
        {
            let asked = asked.borrow();
            assert!(asked.starts_with("GET /chat?room=1 HTTP/1.1\r\n"), "{asked}");
            assert_eq!(field(&asked, "host"), Some("chat.example"));
            assert_eq!(field(&asked, "upgrade"), Some("websocket"));
            assert_eq!(field(&asked, "connection"), Some("Upgrade"));
        }
        assert_eq!((edge.live(), edge.count("upgraded"), edge.count("splice_http2")), (1, 1, 1));
        assert_eq!(edge.worker.report().services[0].relayed, 1);
        chat.close();
        assert_eq!(chat.read(1).await.unwrap(), b"", "half-closed, then closed");
        edge.until(|| edge.live() == 0, || "the relay stays".into()).await;
        assert_eq!(edge.count("client_gone"), 0);
        drop((client, chat));
        edge.quiet().await;
    });
}

#[test]
fn many_websockets_and_requests_share_a_connection() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let head = read_head(&mut stream).await.unwrap();
            if field(&head, "upgrade").is_none() {
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
                return;
            }
            stream.write_all(switch(&head).as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        })
        .await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let mut chats = Vec::new();
        for _ in 0..50 {
            chats.push(client.connect(CHAT).await.unwrap().1);
        }
        assert_eq!(client.get("http://a/").await.status(), 204);
        for (n, chat) in chats.iter_mut().enumerate() {
            chat.send(format!("{n:04}"));
        }
        for (n, chat) in chats.iter_mut().enumerate() {
            assert_eq!(chat.read(4).await.unwrap(), format!("{n:04}").as_bytes());
        }
        assert_eq!((edge.count("connection"), edge.count("upgraded")), (1, 50));
    });
}

#[test]
fn much_data_both_ways_through_small_windows() {
    run(|| async {
        let server = Server::chatting("").await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let (_, Chat { mut sent, received }) = client.connect(CHAT).await.unwrap();
        let data: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = data.clone();
        let sending = tokio::task::spawn_local(async move {
            let mut rest = bytes::Bytes::from(data);
            while !rest.is_empty() {
                sent.reserve_capacity(rest.len());
                while sent.capacity() == 0 {
                    std::future::poll_fn(|cx| sent.poll_capacity(cx)).await.unwrap().unwrap();
                }
                let part = rest.split_to(sent.capacity().min(rest.len()));
                sent.send_data(part, rest.is_empty()).unwrap();
            }
            sent
        });
        let mut chat = Chat { sent: sending.await.unwrap(), received };
        assert!(chat.read(usize::MAX).await.unwrap() == expected);
    });
}

/// Not how fast exactly, which is tested where time stands still, but that they share one pace.
#[test]
fn the_websockets_of_a_connection_share_its_pace() {
    run(|| async {
        const BYTES: usize = 40_000;
        let server = Server::chatting("").await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.limits.bytes_per_second = 100_000;
        });
        let mut builder = h2::client::Builder::new();
        let client = edge.http2_with(builder.initial_connection_window_size(1 << 20)).await;
        let mut chats = Vec::new();
        for _ in 0..4 {
            chats.push(client.connect(CHAT).await.unwrap().1);
        }
        let start = Instant::now();
        for chat in &mut chats {
            chat.send(vec![b'x'; BYTES]);
        }
        for chat in &mut chats {
            assert_eq!(chat.read(BYTES).await.unwrap().len(), BYTES);
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_secs(1), "{took:?}");
    });
}

#[test]
fn resets_pass_both_ways() {
    run(|| async {
        let how = Rc::new(RefCell::new(None));
        let told = how.clone();
        let server = Server::new(move |mut stream| {
            let how = told.clone();
            async move {
                let head = read_head(&mut stream).await.unwrap();
                stream.write_all(switch(&head).as_bytes()).await.unwrap();
                let mut byte = [0];
                if let Ok(1) = stream.read(&mut byte).await {
                    socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    return;
                }
                *how.borrow_mut() = Some(stream.read(&mut byte).await.map_err(|it| it.kind()));
            }
        })
        .await;
        let edge = edge(&[server.address]);
        let client = edge.http2().await;
        let (_, mut chat) = client.connect(CHAT).await.unwrap();
        chat.send("x");
        let error = chat.read(1).await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::CANCEL), "the backend's reset");

        for closed_before in [false, true] {
            let (_, mut chat) = client.connect(CHAT).await.unwrap();
            if closed_before {
                chat.close();
            }
            edge.until(|| edge.live() == 1, || "no relay".into()).await;
            chat.sent.send_reset(h2::Reason::CANCEL);
            edge.until(|| edge.live() == 0, || "the relay stays".into()).await;
            edge.until(|| how.borrow().is_some(), || "the backend waits".into()).await;
            how.take();
        }
    });
}

#[test]
fn a_backend_that_does_not_switch() {
    run(|| async {
        for (answer, status, label) in [
            (&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..], 502, "upgrade_ignored"),
            (b"HTTP/1.1 204 No Content\r\n\r\n", 502, "upgrade_ignored"),
            (b"HTTP/1.1 403 No\r\ncontent-length: 2\r\n\r\nno", 403, "status_4xx"),
            (
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
                  sec-websocket-accept: x\r\n\r\n",
                502,
                "wrong_accept",
            ),
            (
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n",
                502,
                "unasked_switch",
            ),
        ] {
            let server = Server::answering(answer).await;
            let edge = edge(&[server.address]);
            let (head, mut chat) = edge.http2().await.connect(CHAT).await.unwrap();
            let what = String::from_utf8_lossy(answer);
            assert_eq!(head.status(), status, "{what}");
            assert!(!chat.read(usize::MAX).await.unwrap().starts_with(b"ok"), "{what}");
            assert_eq!((edge.count(label), edge.count("upgraded")), (1, 0), "{what}");
            edge.until(|| edge.live() == 0, || what.to_string()).await;
        }
    });
}

#[test]
fn a_refused_handshake_is_retried() {
    run(|| async {
        let busy = Server::answering(b"HTTP/1.1 503 Full\r\ncontent-length: 4\r\n\r\nfull").await;
        let closing = Server::answering(b"").await;
        let good = Server::chatting("").await;
        let edge = edge(&[busy.address, closing.address, good.address]);
        let (head, _chat) = edge.http2().await.connect(CHAT).await.unwrap();
        assert_eq!((head.status().as_u16(), edge.count("retry_handshake")), (200, 2));
    });
}

#[test]
fn other_protocols_are_served_only_if_they_are_listed() {
    run(|| async {
        let server = Server::answering(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: connect-udp\r\nconnection: upgrade\r\n\r\n!",
        )
        .await;
        let edge = edge(&[server.address]);
        let (head, _) = edge.http2().await.connect_to(CHAT, "connect-udp").await.unwrap();
        assert_eq!((head.status().as_u16(), edge.count("unlisted_protocol")), (501, 1));
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.upgrades.push("connect-udp".into());
        });
        let (head, mut chat) = edge.http2().await.connect_to(CHAT, "connect-udp").await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(chat.read(1).await.unwrap(), b"!");
    });
}

#[test]
fn without_upgrades_extended_connect_is_not_announced() {
    run(|| async {
        let edge = Edge::new(&[], |service| {
            service.http.h2c = true;
            service.upgrades.clear();
        });
        let mut client = edge.frames().await;
        let settings = client.frame_of(SETTINGS).await;
        let ids: Vec<_> = settings.payload.chunks(6).map(|it| (it[0], it[1])).collect();
        assert!(!ids.contains(&(0, 8)), "{ids:?}");
    });
}

#[test]
fn an_idle_one_ends_and_the_connection_stays() {
    run(|| async {
        let server = Server::chatting("").await;
        let edge = Edge::new(&[server.address], |service| {
            service.http.h2c = true;
            service.http.idle_timeout = Duration::from_millis(100);
        });
        let client = edge.http2().await;
        let (_, mut chat) = client.connect(CHAT).await.unwrap();
        assert_eq!(chat.read(1).await.unwrap(), b"");
        edge.until(|| edge.live() == 0, || "the relay stays".into()).await;
        assert!(client.connect(CHAT).await.is_ok());
        assert_eq!(edge.count("connection"), 1);
    });
}

#[test]
fn a_drain_says_when_to_come_back() {
    run(|| async {
        for edge_drains in [false, true] {
            let server = Server::chatting("").await;
            let edge = edge(&[server.address]);
            let client = edge.http2().await;
            let (_, mut chat) = client.connect(CHAT).await.unwrap();
            chat.send(&b"\x81\x01x"[..]);
            chat.read(3).await.unwrap();
            let code = if edge_drains {
                let later = std::time::SystemTime::now() + LONG;
                let later = later.duration_since(std::time::UNIX_EPOCH).unwrap();
                edge.worker.retire(Some(later.as_millis() as u64));
                [0x88, 2, 0x03, 0xe9]
            } else {
                let mut settings = edge.settings.clone();
                settings.services[0].backends[0].state = State::Draining { until: 0 };
                edge.worker.apply(settings);
                edge.worker.tick();
                [0x88, 2, 0x03, 0xf4]
            };
            assert_eq!(chat.read(usize::MAX).await.unwrap(), code, "{edge_drains}");
            chat.close();
            edge.until(|| edge.live() == 0, || "the relay stays".into()).await;
            if edge_drains {
                // The GOAWAY comes with it, and the connection ends after its last stream.
                timeout(LONG, edge.worker.life.over()).await.expect("the worker's end");
            }
        }
    });
}
