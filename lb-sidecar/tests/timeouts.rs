//! Slow clients and slow backends at every stage.

mod harness;

use std::time::{Duration, Instant};

use harness::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SHORT: Duration = Duration::from_millis(60);

#[test]
fn a_head_that_never_ends() {
    run(|| async {
        let edge = Edge::new(&[], |s| s.http.head_timeout = SHORT);
        let mut client = edge.connect().await;
        let start = Instant::now();
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
        // Bytes that keep coming do not buy more time.
        let answer = loop {
            client.send_anyway("x").await;
            match tokio::time::timeout(SHORT / 4, client.read_to_end()).await {
                Ok(answer) => break answer,
                Err(_) => assert!(start.elapsed() < LONG),
            }
        };
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(edge.count("head_timeout"), 1);

        let mut silent = edge.connect().await;
        assert_eq!(silent.read_to_end().await, "", "nothing asked, nothing answered");
        assert_eq!(edge.count("head_timeout"), 2);
        drop((client, silent));
        edge.quiet().await;
    });
}

#[test]
fn a_second_head_that_never_ends() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |s| s.http.head_timeout = SHORT);
        let mut client = edge.connect().await;
        client.get("/").await;
        client.send("GET / HTTP/1.1\r\n").await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 408 "));
        assert_eq!(edge.count("head_timeout"), 1);
    });
}

#[test]
fn an_idle_connection_is_closed_without_a_word() {
    run(|| async {
        let server = Server::echo("one").await;
        let edge = Edge::new(&[server.address], |s| s.http.keep_alive = SHORT);
        let mut client = edge.connect().await;
        client.get("/").await;
        assert_eq!(client.read_to_end().await, "");
        edge.counted("keep_alive_expired", 1).await;
        edge.quiet().await;
    });
}

#[test]
fn a_body_that_stops() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |s| s.http.body_timeout = SHORT);
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        assert_eq!(edge.count("body_timeout"), 1);
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_body_cut_off_by_the_client() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").await;
        client.0.shutdown().await.unwrap();
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(edge.count("body_cut"), 1);
        edge.quiet().await;
    });
}

#[test]
fn a_backend_that_does_not_answer() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |s| s.http.response_timeout = SHORT);
        let mut client = edge.connect().await;
        let answer = client.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        client.send(ASK).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert_eq!(edge.count("response_timeout"), 2);
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_response_that_stops() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
            let _ = stream.read_to_end(&mut Vec::new()).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |s| s.http.response_timeout = SHORT);
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        edge.counted("response_timeout", 1).await;
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_backend_that_does_not_accept() {
    run(|| async {
        // A backlog of one connection, full.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _first = std::net::TcpStream::connect(address).unwrap();
        let edge = Edge::new(&[address], |s| s.http.connect_timeout = SHORT);
        let answer = edge.connect().await.get("/").await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        assert_eq!(edge.count("connect_timeout"), 1);
    });
}

#[test]
fn a_client_that_does_not_read() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("{:x}\r\n{}\r\n", 65536, "x".repeat(65536));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        })
        .await;
        let edge = Edge::new(&[server.address], |s| s.http.body_timeout = 5 * SHORT);
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        edge.counted("write_timeout", 1).await;
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}

#[test]
fn a_client_that_reads_again_when_its_time_is_over() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("{:x}\r\n{}\r\n", 65536, "x".repeat(65536));
            while stream.write_all(chunk.as_bytes()).await.is_ok() {}
        })
        .await;
        let edge = Edge::new(&[server.address], |s| s.http.body_timeout = TIMEOUT);
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let taken = || edge.worker.report().services[0].backends[0].bytes_out;
        let mut before = 0;
        while before == 0 || taken() > before {
            before = taken();
            tokio::time::sleep(SHORT).await;
        }
        // This thread is the worker's, too: when it looks again, the time is over and there is room at once.
        std::thread::sleep(TIMEOUT);
        let mut buffer = vec![0; 1 << 20];
        while rustix::io::read(&client.0, &mut buffer).is_ok_and(|n| n > 0) {}
        edge.counted("write_timeout", 1).await;
        assert_eq!(edge.count("response_timeout"), 0, "the backend has answered in time");
        edge.quiet().await;
    });
}

#[test]
fn a_client_that_goes_away() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            read_head(&mut stream).await;
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            while stream.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        let edge = Edge::new(&[server.address], |_| {});
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        client.read_until("\r\n\r\n").await;
        drop(client);
        edge.counted("client_gone", 1).await;
        edge.quiet().await;
        assert_eq!(edge.live(), 0);
    });
}
