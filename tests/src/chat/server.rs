//! A WebSocket chat server: it says who it is, checks and echoes, broadcasts and pushes.
//!
//! `GET /chat?seed=S&session=N` with an upgrade opens a session whose stream is checked; without the
//! numbers it only echoes. `GET /pipe?...` opens a [pipe](crate::pipe). `GET /health` answers 200 or 503, and
//! `GET /stats` tells what the server did so far; after `GET /fail` it welcomes nobody until `GET /recover`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::stream::SplitStream;
use futures_util::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::broadcast;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, frame::coding::CloseCode};
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::pattern::{Pattern, Side};
use super::tcp::{adopt, listen_in};
use super::{BACKEND_HEADER, BROADCAST, CLOSE_WRONG, ECHO, HELLO, PUSH};
use crate::netns::{NsHandle, NsTask, Stop};
use crate::pipe;

const LONGEST_HEAD: usize = 16 * 1024;
/// How long open sessions have to answer the close of a server that stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// What a server is like.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    /// Push so many bytes of the server's own stream to every checked session, at such an interval.
    pub push: Option<(Duration, usize)>,
}

impl ServerConfig {
    #[must_use]
    pub fn new(name: &str, listen: impl Into<Vec<SocketAddr>>) -> Self {
        Self { name: name.to_owned(), listen: listen.into(), push: None }
    }
}

/// What a server did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStats {
    pub open: u64,
    pub sessions: u64,
    pub messages: u64,
    pub bytes: u64,
    /// Sessions in which a wrong byte came.
    pub wrong: u64,
    /// Sessions that a RST ended, and those that were given up since nothing came back.
    pub resets: u64,
    pub timeouts: u64,
    /// Requests that were not a welcome upgrade, health checks by `GET /health` included.
    pub plain: u64,
}

#[derive(Debug)]
struct Shared {
    config: ServerConfig,
    ready: AtomicBool,
    open: AtomicU64,
    sessions: AtomicU64,
    messages: AtomicU64,
    bytes: AtomicU64,
    wrong: AtomicU64,
    resets: AtomicU64,
    timeouts: AtomicU64,
    plain: AtomicU64,
    everybody: broadcast::Sender<String>,
}

impl Shared {
    fn stats(&self) -> ServerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ServerStats {
            open: get(&self.open),
            sessions: get(&self.sessions),
            messages: get(&self.messages),
            bytes: get(&self.bytes),
            wrong: get(&self.wrong),
            resets: get(&self.resets),
            timeouts: get(&self.timeouts),
            plain: get(&self.plain),
        }
    }

    /// Takes note of how a session's connection was lost.
    fn lost(&self, error: &io::Error) {
        let counter = match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => &self.resets,
            io::ErrorKind::InvalidData => &self.wrong,
            // No answer in time, or a router's word that nobody is there.
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable => &self.timeouts,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A running server. On drop its sessions are cut, without a close; see [`ChatServer::stop`].
#[derive(Debug)]
pub struct ChatServer {
    shared: Arc<Shared>,
    addresses: Vec<SocketAddr>,
    task: NsTask<()>,
}

impl ChatServer {
    /// Listens in `namespace` (or the caller's).
    pub fn start(namespace: Option<&NsHandle>, config: ServerConfig) -> Result<Self> {
        let (listeners, addresses) = listen_in(namespace, &config.listen)?;
        let shared = Arc::new(Shared {
            config,
            ready: AtomicBool::new(true),
            open: AtomicU64::new(0),
            sessions: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            wrong: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
            plain: AtomicU64::new(0),
            everybody: broadcast::channel(1024).0,
        });
        let state = Arc::clone(&shared);
        let task = NsTask::start(namespace, "chat-server", move |mut stop| async move {
            for listener in listeners {
                tokio::task::spawn_local(accept(adopt(listener), Arc::clone(&state), stop.clone()));
            }
            stop.requested().await;
            let closed = async {
                while state.open.load(Ordering::Relaxed) > 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(GOODBYE, closed).await;
        });
        Ok(Self { shared, addresses, task })
    }

    /// Where it listens, chosen ports included.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Whether new sessions are welcome; if not, upgrades and `/health` are answered with 503.
    pub fn set_ready(&self, ready: bool) {
        self.shared.ready.store(ready, Ordering::Relaxed);
    }

    /// Sends a text to every session.
    pub fn broadcast(&self, text: &str) {
        // An error means that there is no session.
        let _ = self.shared.everybody.send(format!("{BROADCAST}{text}"));
    }

    #[must_use]
    pub fn stats(&self) -> ServerStats {
        self.shared.stats()
    }

    /// Ends every session with a close.
    pub fn stop(self) {
        self.task.stop();
        self.task.join();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stop: Stop) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.requested() => return,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors, most likely: sessions that end give some back.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::task::spawn_local(async move {
            // Whatever ends a session, its client reports it.
            let _ = answer(stream, &shared, stop).await;
        });
    }
}

/// A request's head, as far as it matters here.
struct Request {
    path: String,
    query: String,
    seed: Option<u64>,
    session: Option<u64>,
    key: Option<String>,
    /// What came after the head.
    rest: Vec<u8>,
}

async fn read_request(stream: &mut TcpStream) -> Result<Request> {
    let mut head = Vec::new();
    let end = loop {
        if let Some(end) = head.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
        if head.len() > LONGEST_HEAD || stream.read_buf(&mut head).await? == 0 {
            bail!("no request");
        }
    };
    let rest = head.split_off(end + 4);
    let head = String::from_utf8(head).context("a head that is not text")?;
    let mut lines = head.lines();
    let target = lines.next().and_then(|l| l.split(' ').nth(1)).context("no request line")?;
    let header = |name: &str| {
        let mut fields = lines.clone().filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    };
    let is_upgrade = header("upgrade").is_some_and(|v| v.eq_ignore_ascii_case("websocket"));
    let key = header("sec-websocket-key").filter(|_| is_upgrade).map(str::to_owned);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let number = |name: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(n, _)| *n == name).and_then(|(_, value)| value.parse().ok())
    };
    let (seed, session) = (number("seed"), number("session"));
    let (path, query) = (path.to_owned(), query.to_owned());
    Ok(Request { path, query, seed, session, key, rest })
}

async fn answer(mut stream: TcpStream, shared: &Shared, stop: Stop) -> Result<()> {
    stream.set_nodelay(true)?;
    let request = read_request(&mut stream).await?;
    let name = &shared.config.name;
    let ready = shared.ready.load(Ordering::Relaxed);
    let mut said = None;
    let status = match (request.path.as_str(), &request.key) {
        ("/stats", _) => {
            said = Some(serde_json::to_string(&shared.stats())?);
            "200 OK"
        }
        (path @ ("/fail" | "/recover"), _) => {
            shared.ready.store(path == "/recover", Ordering::Relaxed);
            "200 OK"
        }
        ("/chat" | "/health" | pipe::PATH, _) if !ready => "503 Service Unavailable",
        ("/health", _) => "200 OK",
        ("/chat" | pipe::PATH, None) => "426 Upgrade Required",
        ("/chat" | pipe::PATH, Some(key)) => {
            let accept = derive_accept_key(key.as_bytes());
            let head = format!(
                "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
                 sec-websocket-accept: {accept}\r\n{BACKEND_HEADER}: {name}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).await?;
            let _open = Open::new(shared);
            if request.path == pipe::PATH {
                let served = pipe::serve(stream, &request.rest, &request.query).await;
                return Ok(served.inspect_err(|error| shared.lost(error))?);
            }
            let checked = request.seed.zip(request.session);
            let socket =
                WebSocketStream::from_partially_read(stream, request.rest, Role::Server, None);
            let served = chat(socket.await, shared, checked, stop).await;
            if let Err(Error::Io(error)) = &served {
                shared.lost(error);
            }
            return Ok(served?);
        }
        _ => "404 Not Found",
    };
    shared.plain.fetch_add(1, Ordering::Relaxed);
    let body = said.unwrap_or_else(|| format!("{name}: {status}\n"));
    let head = format!(
        "HTTP/1.1 {status}\r\n{BACKEND_HEADER}: {name}\r\ncontent-type: text/plain\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    Ok(stream.shutdown().await?)
}

/// Counts a session while it is open.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn new(shared: &'a Shared) -> Self {
        shared.open.fetch_add(1, Ordering::Relaxed);
        shared.sessions.fetch_add(1, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn chat(
    socket: WebSocketStream<TcpStream>,
    shared: &Shared,
    checked: Option<(u64, u64)>,
    mut stop: Stop,
) -> Result<(), Error> {
    let stream = |side| checked.map(|(seed, session)| Pattern::new(seed, session, side));
    let (theirs, ours) = (stream(Side::Client), stream(Side::Server));
    let mut everybody = shared.everybody.subscribe();
    let mut pushes = ours.and(shared.config.push).map(|(every, _)| tokio::time::interval(every));
    let (mut received, mut pushed) = (0, 0);
    let (mut sink, mut source) = socket.split();
    sink.send(Message::text(format!("{HELLO}{}", shared.config.name))).await?;
    loop {
        let push = async {
            match &mut pushes {
                Some(pushes) => pushes.tick().await,
                None => std::future::pending().await,
            }
        };
        let message = tokio::select! {
            message = source.next() => match message.transpose()? {
                Some(Message::Binary(bytes)) if bytes.first() == Some(&ECHO) => {
                    let at = received;
                    if let Some(Err(wrong)) = theirs.map(|p| p.verify(at, &bytes[1..])) {
                        shared.wrong.fetch_add(1, Ordering::Relaxed);
                        let (code, reason) = (CloseCode::from(CLOSE_WRONG), wrong.to_string().into());
                        Message::Close(Some(CloseFrame { code, reason }))
                    } else {
                        received = at + bytes.len() as u64 - 1;
                        shared.messages.fetch_add(1, Ordering::Relaxed);
                        shared.bytes.fetch_add(bytes.len() as u64 - 1, Ordering::Relaxed);
                        Message::Binary(bytes)
                    }
                }
                Some(Message::Text(text)) if text.starts_with(BROADCAST) => {
                    let _ = shared.everybody.send(text.to_string());
                    continue;
                }
                Some(message @ (Message::Text(_) | Message::Binary(_))) => message,
                // The library answers it in the next call; nothing may be sent after that.
                Some(Message::Close(_)) => return drain(&mut source).await,
                // The library answers these itself, in the following calls.
                Some(_) => continue,
                None => return Ok(()),
            },
            text = everybody.recv() => match text {
                Ok(text) => Message::text(text),
                Err(_) => continue,
            },
            _ = push => {
                let length = shared.config.push.map_or(0, |(_, bytes)| bytes);
                let mut bytes = vec![PUSH; 1 + length];
                if let Some(ours) = ours {
                    ours.fill(pushed, &mut bytes[1..]);
                }
                pushed += length as u64;
                Message::Binary(Bytes::from(bytes))
            }
            () = stop.requested() => {
                let (code, reason) = (CloseCode::Away, "the server stops".into());
                sink.send(Message::Close(Some(CloseFrame { code, reason }))).await?;
                return drain(&mut source).await;
            }
        };
        let closing = message.is_close();
        sink.send(message).await?;
        if closing {
            return drain(&mut source).await;
        }
    }
}

/// Waits until the other side has closed, too.
async fn drain(source: &mut SplitStream<WebSocketStream<TcpStream>>) -> Result<(), Error> {
    while source.next().await.transpose()?.is_some() {}
    Ok(())
}
