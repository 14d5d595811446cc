//! A worker that retires owes an answer to whoever it has accepted.

mod harness;

use std::{rc::Rc, sync::Arc, time::Duration};

use harness::{
    tls::{Authority, connect, tls},
    *,
};
use rustls::ALL_VERSIONS;
use tokio::{io::AsyncWriteExt, sync::Notify};

#[test]
fn who_has_just_come_is_answered() {
    run(|| async {
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        edge.until(|| edge.count("connection") == 1, || "a connection".into()).await;
        edge.worker.retire(None);
        // The worker has its turn before the client says something.
        tokio::task::yield_now().await;
        client.send(format!("{ASK}early")).await;
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        client.read_until("early").await;
        drop(client);
        tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the end");
    });
}

const ASK_PLAIN: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Whatever the handshake left readable behind it was no request.
#[test]
fn who_has_just_shaken_hands_is_answered() {
    run(|| async {
        let server = Server::upgrading("").await;
        let authority = Authority::new();
        for version in ALL_VERSIONS {
            let certificate = authority.server(&["chat.example"]);
            let edge = Edge::new(&[server.address], |it| it.tls = Some(tls(vec![certificate])));
            let config = Arc::new(authority.trusting(&[version]));
            let mut client = connect(edge.address, &config, "chat.example").await;
            edge.until(|| edge.count("tls_handshake") == 1, || "a handshake".into()).await;
            // The worker has come to where it waits for the request.
            tokio::time::sleep(Duration::from_millis(20)).await;
            edge.worker.retire(None);
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
            let head = read_until(&mut client, "\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{version:?}: {head}");
            read_until(&mut client, "early").await;
            drop(client);
            tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the end");
        }
    });
}

#[test]
fn a_connection_between_its_requests_has_time_for_one_more() {
    run(|| async {
        let server = Server::echo("b").await;
        for (before, after) in [("", ASK_PLAIN), ASK_PLAIN.split_at(9)] {
            let edge = Edge::new(&[server.address], |_| {});
            let mut client = edge.connect().await;
            client.get("/").await;
            client.send(before).await;
            // It has been read.
            tokio::time::sleep(Duration::from_millis(20)).await;
            edge.worker.retire(None);
            tokio::time::sleep(Duration::from_millis(20)).await;
            client.send(after).await;
            let answer = client.read_to_end().await;
            assert!(answer.starts_with("HTTP/1.1 200 OK"), "{before:?}: {answer}");
            assert_eq!(field(&answer, "connection"), Some("close"));
            tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the end");
        }
    });
}

#[test]
fn who_does_not_know_yet_that_an_answer_was_the_last_may_ask_again() {
    run(|| async {
        let release = Rc::new(Notify::new());
        let released = release.clone();
        let server = Server::new(move |mut stream| {
            let release = released.clone();
            async move {
                while read_head(&mut stream).await.is_some() {
                    let head = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nth";
                    stream.write_all(head).await.unwrap();
                    release.notified().await;
                    stream.write_all(b"at").await.unwrap();
                }
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send(ASK_PLAIN).await;
        let head = client.read_until("\r\n\r\nth").await;
        assert_eq!(field(&head, "connection"), None);
        edge.worker.retire(None);
        release.notify_one();
        client.read_until("at").await;
        release.notify_one();
        client.send(ASK_PLAIN).await;
        let answer = client.read_to_end().await;
        assert_eq!(field(&answer, "connection"), Some("close"), "{answer}");
        assert!(answer.ends_with("that"), "{answer}");
        tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the end");
    });
}

#[test]
fn who_comes_by_a_proxy_is_answered_although_its_header_is_under_way() {
    run(|| async {
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], |service| {
            service.proxy_protocol.accept = vec![("127.0.0.0".parse().unwrap(), 8)];
        });
        let mut client = edge.connect().await;
        client.send("PROXY TCP4 192.0.2.7 ").await;
        edge.until(|| edge.count("connection") == 1, || "a connection".into()).await;
        edge.worker.retire(None);
        let over = edge.worker.life.over();
        assert!(tokio::time::timeout(Duration::from_millis(20), over).await.is_err(), "too early");
        client.send("203.0.113.10 40001 8080\r\n").await;
        let answer = client.get("/").await;
        assert!(answer.contains("x-forwarded-for: 192.0.2.7\r\n"), "{answer}");
        drop(client);
        tokio::time::timeout(LONG, edge.worker.life.over()).await.expect("the end");
    });
}

#[test]
fn a_switch_that_is_under_way_is_answered_as_one_that_lasts() {
    run(|| async {
        let (asked, release) = (Rc::new(Notify::new()), Rc::new(Notify::new()));
        let (was_asked, released) = (asked.clone(), release.clone());
        let server = Server::new(move |mut stream| {
            let (asked, release) = (was_asked.clone(), released.clone());
            async move {
                read_head(&mut stream).await;
                asked.notify_one();
                release.notified().await;
                let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
                               connection: upgrade\r\nsec-websocket-accept: x\r\n\r\n";
                stream.write_all(answer).await.unwrap();
                read_head(&mut stream).await;
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        // In two pieces, so that hyper reads it.
        let (first, rest) = ASK.split_at(20);
        client.send(first).await;
        edge.until(|| edge.count("connection") == 1, || "a connection".into()).await;
        client.send(rest).await;
        asked.notified().await;
        edge.worker.retire(None);
        release.notify_one();
        let head = client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        assert_eq!(field(&head, "connection"), Some("upgrade"));
        assert!(!head.to_ascii_lowercase().contains("close"), "{head}");
    });
}
