//! Slow clients and slow backends at every stage.

mod harness;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use harness::{http2, tls::Authority, *};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

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
            match timeout(SHORT / 4, client.read_to_end()).await {
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
        let server = endless().await;
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
        let server = endless().await;
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

/// A server whose answers never end.
async fn endless() -> Server {
    Server::new(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("{:x}\r\n{}\r\n", 65536, "x".repeat(65536));
        while stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await
}

#[test]
fn a_client_of_http2_by_tls_that_does_not_read() {
    run(|| async {
        let authority = Authority::new();
        let server = endless().await;
        let certificate = authority.server(&["a"]);
        let edge = Edge::new(&[server.address], |service| {
            let mut tls = tls::tls(vec![certificate]);
            tls.alpn = vec!["h2".into()];
            service.tls = Some(tls);
            service.http.body_timeout = SHORT;
            service.http.keep_alive = SHORT;
        });
        let mut config = authority.trusting(rustls::ALL_VERSIONS);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let mut client = tls::connect(edge.address, &Arc::new(config), "a").await;
        // Windows for all that there is.
        let largest = 0x7fff_ffff_u32.to_be_bytes();
        let window = [&[0, 4][..], &largest].concat();
        let more = (0x7fff_ffff_u32 - 65_535).to_be_bytes();
        let begin = [
            http2::PREFACE,
            &http2::frame(http2::SETTINGS, 0, 0, &window),
            &http2::frame(http2::WINDOW_UPDATE, 0, 0, &more),
            &http2::request(1, http2::GET),
        ];
        client.write_all(&begin.concat()).await.unwrap();
        edge.counted("write_timeout", 1).await;
        edge.worker.retire(None);
        timeout(LONG, edge.worker.life.over()).await.expect("the end");
        let far = client.get_ref().0.local_addr().unwrap();
        assert!(!is_established(edge.address, far), "the worker still has it");
    });
}

/// Whether the socket with these addresses is open and has not been shut down (proc_net_tcp(5)).
fn is_established(local: SocketAddr, remote: SocketAddr) -> bool {
    let [local, remote] = [local, remote].map(|at| match at.ip() {
        IpAddr::V4(ip) => format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), at.port()),
        IpAddr::V6(_) => unreachable!("no test of this file listens there"),
    });
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut sockets = table.lines().map(|line| line.split_whitespace().skip(1).take(3));
    sockets.any(|socket| socket.eq([&*local, &*remote, "01"]))
}

/// The smallest buffers that there are, between the sidecar and this client.
async fn narrow(edge: &Edge) -> Client {
    for (_, listener) in edge.worker.listeners() {
        socket2::SockRef::from(&*listener).set_send_buffer_size(1).unwrap();
    }
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(1).unwrap();
    Client(socket.connect(edge.address).await.unwrap())
}

fn taken(edge: &Edge) -> u64 {
    edge.worker.report().services[0].backends[0].bytes_out
}

/// An answer that has all come from its backend, while its client reads nothing and the last of it is in the sidecar.
struct Tail {
    edge: Edge,
    client: Client,
    length: usize,
    _server: Server,
}

impl Tail {
    async fn new(request: &str, change: impl FnOnce(&mut lb_sidecar::settings::Service)) -> Self {
        // The sidecar reads it at once, and more than the kernel takes of it with the smallest buffers.
        let length = 7_500;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let answer = [head.into_bytes(), vec![b'x'; length]].concat();
        let server = Server::answering(answer.leak()).await;
        let edge = Edge::new(&[server.address], change);
        let mut client = narrow(&edge).await;
        client.send(request).await;
        edge.until(|| taken(&edge) == length as u64, || format!("{} of {length}", taken(&edge)))
            .await;
        Self { edge, client, length, _server: server }
    }

    async fn assert_whole(&mut self) {
        let head = self.client.read_until("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert_eq!(self.client.read_to_end().await.len(), self.length);
    }
}

const KEPT: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn a_client_that_takes_its_time_for_the_last_of_an_answer() {
    run(|| async {
        let mut tail = Tail::new(KEPT, |s| s.http.keep_alive = SHORT).await;
        tokio::time::sleep(5 * SHORT).await;
        assert_eq!(tail.edge.count("keep_alive_expired"), 0);
        tail.assert_whole().await;
        tail.edge.counted("keep_alive_expired", 1).await;
        assert_eq!(tail.edge.count("write_timeout"), 0);
    });
}

#[test]
fn a_client_that_does_not_take_the_last_of_an_answer() {
    run(|| async {
        let mut tail = Tail::new(KEPT, |s| {
            (s.http.keep_alive, s.http.body_timeout) = (SHORT, 5 * SHORT);
        })
        .await;
        tail.edge.counted("write_timeout", 1).await;
        assert_eq!(tail.edge.count("keep_alive_expired"), 0);
        let end = timeout(LONG, tail.client.0.read_to_end(&mut Vec::new())).await.expect("the end");
        assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn the_last_of_an_answer_is_sent_although_the_connection_is_to_end() {
    run(|| async {
        let request = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        let mut tail = Tail::new(request, |_| {}).await;
        tail.edge.worker.retire(None);
        tokio::time::sleep(SHORT).await;
        tail.assert_whole().await;
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
