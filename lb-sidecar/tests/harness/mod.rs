//! A worker in this process, raw clients, and backends that do as they are told.
#![allow(dead_code)]

pub mod agent;
pub mod http2;
pub mod tls;

use std::{
    future::Future,
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use lb_sidecar::{
    settings::{
        Affinity, Backend, Balance, Cookie, CookieKey, Drain, Forwarded, ForwardedMode, Http,
        Limits, ProxyProtocol, Service, Settings, State,
    },
    worker::Worker,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{sleep, timeout},
};

/// No step of a test takes this long.
pub const LONG: Duration = Duration::from_secs(10);

pub const SERVICE: &str = "chat";

/// Runs a test in one thread.
pub fn run<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async { test().await });
}

pub struct Edge {
    pub worker: Rc<Worker>,
    pub address: SocketAddr,
    pub settings: Settings,
}

impl Edge {
    /// With one service in front of these backends, in turn.
    pub fn new(backends: &[SocketAddr], change: impl FnOnce(&mut Service)) -> Self {
        let socket = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = socket.local_addr().unwrap();
        let mut service = service(address, backends);
        change(&mut service);
        let settings =
            Settings { edge: "test".into(), services: vec![service], ..Settings::default() };
        let worker = Worker::new(0);
        worker.apply(settings.clone());
        worker.listen(address, socket.into()).unwrap();
        assert!(worker.is_ready());
        Self { worker, address, settings }
    }

    pub async fn connect(&self) -> Client {
        Client(TcpStream::connect(self.address).await.unwrap())
    }

    /// How often this has happened.
    pub fn count(&self, label: &str) -> u64 {
        let report = self.worker.report();
        let outcomes = report.services.iter().flat_map(|service| &service.outcomes);
        outcomes.filter(|(name, _)| name == label).map(|(_, n)| n).sum()
    }

    /// Waits until this has happened so often.
    pub async fn counted(&self, label: &str, times: u64) {
        self.until(
            || self.count(label) >= times,
            || format!("{label}: {} of {times}", self.count(label)),
        )
        .await;
        assert_eq!(self.count(label), times, "{label}");
    }

    /// Waits until no connection is open.
    pub async fn quiet(&self) {
        self.until(
            || self.worker.report().services.iter().all(|s| s.connections == 0),
            || format!("{:?}", self.worker.report()),
        )
        .await;
    }

    pub async fn until(&self, condition: impl Fn() -> bool, what: impl Fn() -> String) {
        let waited = timeout(LONG, async {
            while !condition() {
                sleep(Duration::from_millis(1)).await;
            }
        });
        if waited.await.is_err() {
            panic!("never came: {}", what());
        }
    }

    /// Live connections of all backends.
    pub fn live(&self) -> u32 {
        self.worker.report().services.iter().flat_map(|s| &s.backends).map(|b| b.live).sum()
    }
}

/// Generous settings.
pub fn service(address: SocketAddr, backends: &[SocketAddr]) -> Service {
    Service {
        name: SERVICE.into(),
        listen: vec![address],
        affinity: Affinity::None,
        balance: Balance::RoundRobin,
        fail_open: false,
        upgrades: vec!["websocket".into()],
        http: Http {
            head_timeout: LONG,
            body_timeout: LONG,
            connect_timeout: LONG,
            response_timeout: LONG,
            keep_alive: LONG,
            idle_timeout: LONG,
            head_bytes: 16 << 10,
            retries: 2,
            pool: 8,
            tcp_keepalive: Duration::ZERO,
            tcp_user_timeout: Duration::ZERO,
            h2c: false,
            max_streams: 128,
        },
        forwarded: Forwarded { mode: ForwardedMode::Append, trusted: Vec::new(), request_id: None },
        drain: Drain { rate: 100 },
        splice: false,
        log_sample: 0.0,
        backends: backends.iter().enumerate().map(|(i, address)| backend(i, *address)).collect(),
        pools: Vec::new(),
        routes: Vec::new(),
        proxy_protocol: ProxyProtocol::default(),
        limits: Limits::default(),
        tls: None,
        backend_tls: None,
        redirect_https: false,
        passthrough: None,
    }
}

pub fn backend(i: usize, address: SocketAddr) -> Backend {
    Backend {
        name: format!("b{i}"),
        id: format!("{i:016x}"),
        address,
        weight: 1,
        state: State::Up,
        pool: 0,
    }
}

/// By a cookie of the sidecar's own.
pub fn by_cookie() -> Affinity {
    Affinity::Cookie(Cookie {
        name: "sluice".to_owned(),
        ttl: Some(Duration::from_secs(3_600)),
        path: "/".to_owned(),
        domain: None,
        secure: false,
        http_only: true,
        same_site: None,
    })
}

/// Has a key for cookies.
pub fn with_keys(edge: &mut Edge) {
    let secret = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=".to_owned();
    edge.settings.cookie_keys = vec![CookieKey { id: "k".to_owned(), secret }];
    edge.worker.apply(edge.settings.clone());
}

/// A raw client.
pub struct Client(pub TcpStream);

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.unwrap();
    }

    /// Sends to one that may have stopped reading.
    pub async fn send_anyway(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.0.write_all(bytes.as_ref()).await;
    }

    /// What comes up to this end; it panics with what has come when that does not.
    pub async fn read_until(&mut self, end: &str) -> String {
        read_until(&mut self.0, end).await
    }

    /// Everything up to the end of the connection.
    pub async fn read_to_end(&mut self) -> String {
        let mut read = Vec::new();
        match timeout(LONG, self.0.read_to_end(&mut read)).await {
            Ok(_) => String::from_utf8_lossy(&read).into_owned(),
            Err(_) => {
                panic!("the connection does not end after {:?}", String::from_utf8_lossy(&read))
            }
        }
    }

    /// An answer whose length is given.
    pub async fn answer(&mut self) -> String {
        let mut answer = self.read_until("\r\n\r\n").await;
        let length = field(&answer, "content-length").map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        timeout(LONG, self.0.read_exact(&mut body)).await.expect("a body").unwrap();
        answer.push_str(&String::from_utf8_lossy(&body));
        answer
    }

    pub async fn get(&mut self, path: &str) -> String {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        self.answer().await
    }
}

pub async fn read_until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut read = Vec::new();
    let done = timeout(LONG, async {
        let mut byte = [0];
        while !read.ends_with(end.as_bytes()) {
            match stream.read(&mut byte).await {
                Ok(1) => read.push(byte[0]),
                other => return Err(format!("{other:?}")),
            }
        }
        Ok(())
    })
    .await;
    let text = String::from_utf8_lossy(&read).into_owned();
    match done {
        Ok(Ok(())) => text,
        Ok(Err(how)) => panic!("{how} after {text:?}, waiting for {end:?}"),
        Err(_) => panic!("nothing more after {text:?}, waiting for {end:?}"),
    }
}

/// A field's value in a head.
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let head = head.split("\r\n\r\n").next()?;
    head.lines().skip(1).find_map(|line| {
        let (n, value) = line.split_once(':')?;
        n.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// A backend that answers by a script of its own.
pub struct Server {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `serve` gets every connection.
    pub async fn new<F>(mut serve: impl FnMut(TcpStream) -> F + 'static) -> Self
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                spawn_local(serve(stream));
            }
        });
        Self { address, task }
    }

    /// Answers every request of a connection with its own head, and `name` as a field.
    pub async fn echo(name: &'static str) -> Self {
        Self::new(move |mut stream| async move {
            while let Some(head) = read_head(&mut stream).await {
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nserver-name: {name}\r\ncontent-length: {}\r\n\r\n{head}",
                    head.len()
                );
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    break;
                }
            }
        })
        .await
    }

    /// Answers the first request of every connection with these bytes, and closes.
    pub async fn answering(bytes: &'static [u8]) -> Self {
        Self::new(move |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(bytes).await;
        })
        .await
    }

    /// Upgrades, says `greeting` in the same segment, and sends back what it gets.
    pub async fn upgrading(greeting: &'static str) -> Self {
        Self::new(move |mut stream| async move {
            let Some(head) = read_head(&mut stream).await else { return };
            assert_eq!(field(&head, "upgrade"), Some("websocket"), "{head}");
            let answer = format!("{SWITCH}{greeting}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        })
        .await
    }
}

pub const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nsec-websocket-accept: x\r\n\r\n";

pub const ASK: &str = "GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: k\r\n\r\n";

/// A request's head; none at the end of the connection.
pub async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    let mut byte = [0];
    while !read.ends_with(b"\r\n\r\n") {
        match stream.read(&mut byte).await {
            Ok(1) => read.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(read).unwrap())
}

/// An address where nobody listens.
pub fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}
