//! One WebSocket session of a load: connect, upgrade, send the stream, check what comes, close.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt, stream::SplitSink, stream::SplitStream};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::{Bytes, Error, Message};

use super::load::LoadConfig;
use super::pattern::{Pattern, Side};
use super::stats::ConnectionReport;
use super::{BACKEND_HEADER, BROADCAST, CLOSE_WRONG, ECHO, HELLO, PUSH, tcp};
use crate::netns::Stop;
use crate::tls::server_name;

/// How a session, or the attempt at one, ended against the client's will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Nobody listens, or the way is said to be closed.
    Refused,
    /// No connection, or no answer to the upgrade, in time.
    ConnectTimeout,
    /// The upgrade was answered otherwise than with 101.
    Rejected,
    Reset,
    /// The end of the stream without a close.
    Eof,
    /// The server closed.
    Closed,
    /// Nothing came for too long although an answer was due.
    Stalled,
    /// A byte was not what it should be, at either end.
    Wrong,
    Other,
}

/// A connection, with TLS on it or without.
trait Wire: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire for T {}

type Socket = WebSocketStream<Box<dyn Wire>>;
type Failed = (Failure, String);

/// The part of a session.
pub(super) struct Session<'a> {
    pub(super) config: &'a LoadConfig,
    pub(super) target: SocketAddr,
    pub(super) source: Option<IpAddr>,
    /// Its number, used once.
    pub(super) number: u64,
    pub(super) report: &'a Mutex<ConnectionReport>,
}

/// Where a session stands.
struct Progress {
    /// One permit per message that may be sent before others have come back.
    window: Semaphore,
    size: usize,
    /// The close is on its way.
    closing: Cell<bool>,
}

impl Progress {
    fn is_owed(&self) -> bool {
        self.closing.get() || self.window.available_permits() < self.size
    }
}

impl Session<'_> {
    /// Runs until it is over as planned (`Ok`) or fails.
    pub(super) async fn run(&self, mut stop: Stop) -> Result<(), Failed> {
        let opening = tokio::time::timeout(self.config.connect_timeout, self.open());
        let opened = tokio::select! {
            opened = opening => opened,
            () = stop.requested() => return Ok(()),
        };
        let socket = match opened {
            Ok(socket) => socket?,
            Err(_) => return Err((Failure::ConnectTimeout, format!("{}: no answer", self.target))),
        };
        let (sink, source) = socket.split();
        let size = self.config.window.max(1);
        let progress = Progress { window: Semaphore::new(size), size, closing: Cell::new(false) };
        tokio::select! {
            result = self.read(source, &progress) => result,
            result = self.write(sink, &progress, stop) => result,
        }
    }

    fn report(&self) -> std::sync::MutexGuard<'_, ConnectionReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn open(&self) -> Result<Socket, Failed> {
        let LoadConfig { path, seed, host, tls, .. } = self.config;
        let stream = tcp::connect(self.target, self.source).await;
        let stream = stream.map_err(|error| failure(&Error::Io(error)))?;
        let local = stream.local_addr().ok();
        let stream: Box<dyn Wire> = match tls {
            None => Box::new(stream),
            Some(config) => {
                let connecting =
                    TlsConnector::from(config.clone()).connect(server_name(), stream).await;
                Box::new(connecting.map_err(|error| failure(&Error::Io(error)))?)
            }
        };
        let url = format!("ws://{host}{path}?seed={seed}&session={}", self.number);
        let request = url.into_client_request().map_err(|error| failure(&error))?;
        let answer = tokio_tungstenite::client_async(request, stream).await;
        let (socket, response) = answer.map_err(|error| failure(&error))?;
        let backend = response.headers().get(BACKEND_HEADER).and_then(|v| v.to_str().ok());
        self.report().opened(backend.map(str::to_owned), local);
        Ok(socket)
    }

    /// Sends messages until the session has had its share or shall stop, waits until all came back, and
    /// closes. Never ends before the reader unless it fails.
    async fn write(
        &self,
        mut sink: SplitSink<Socket, Message>,
        progress: &Progress,
        mut stop: Stop,
    ) -> Result<(), Failed> {
        let ours = Pattern::new(self.config.seed, self.number, Side::Client);
        let mut tick = tokio::time::interval(self.config.interval.max(Duration::from_micros(1)));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut sent = 0;
        for count in 0.. {
            if self.config.messages_per_session.is_some_and(|most| count >= most) {
                break;
            }
            tokio::select! {
                _ = tick.tick() => {}
                () = stop.requested() => break,
            }
            progress.window.acquire().await.expect("never closed").forget();
            let mut message = vec![ECHO; 1 + self.config.message_length(self.number, count)];
            ours.fill(sent, &mut message[1..]);
            sent += message.len() as u64 - 1;
            let sending = sink.send(Message::Binary(Bytes::from(message)));
            sending.await.map_err(|error| failure(&error))?;
        }
        let everything = u32::try_from(progress.size).expect("a window of messages");
        progress.window.acquire_many(everything).await.expect("never closed").forget();
        progress.closing.set(true);
        sink.send(Message::Close(None)).await.map_err(|error| failure(&error))?;
        std::future::pending().await
    }

    async fn read(
        &self,
        mut source: SplitStream<Socket>,
        progress: &Progress,
    ) -> Result<(), Failed> {
        let pattern = |side| Pattern::new(self.config.seed, self.number, side);
        let (ours, theirs) = (pattern(Side::Client), pattern(Side::Server));
        let (mut echoed, mut pushed) = (0, 0);
        loop {
            let Ok(next) = tokio::time::timeout(self.config.stall, source.next()).await else {
                if progress.is_owed() {
                    let why = format!("nothing for {:?} at byte {echoed}", self.config.stall);
                    return Err((Failure::Stalled, why));
                }
                continue;
            };
            let message = match next {
                Some(Ok(message)) => message,
                // The answer to our close was the last message.
                None | Some(Err(Error::ConnectionClosed)) if progress.closing.get() => {
                    return Ok(());
                }
                None => return Err((Failure::Eof, format!("the end at byte {echoed}"))),
                Some(Err(error)) => return Err(failure(&error)),
            };
            match message {
                Message::Binary(bytes) if bytes.first() == Some(&ECHO) => {
                    check(ours, echoed, &bytes[1..])?;
                    echoed += bytes.len() as u64 - 1;
                    let mut report = self.report();
                    report.messages += 1;
                    report.bytes += bytes.len() as u64 - 1;
                    drop(report);
                    progress.window.add_permits(1);
                }
                Message::Binary(bytes) if bytes.first() == Some(&PUSH) => {
                    check(theirs, pushed, &bytes[1..])?;
                    pushed += bytes.len() as u64 - 1;
                    self.report().pushed += bytes.len() as u64 - 1;
                }
                Message::Text(text) if text.starts_with(BROADCAST) => self.report().broadcasts += 1,
                Message::Text(text) => self.greeted(text.strip_prefix(HELLO))?,
                Message::Close(_) if progress.closing.get() => {}
                Message::Close(frame) => {
                    let wrong = frame.as_ref().is_some_and(|f| u16::from(f.code) == CLOSE_WRONG);
                    let kind = if wrong { Failure::Wrong } else { Failure::Closed };
                    return Err((kind, format!("closed at byte {echoed}: {frame:?}")));
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => return Err((Failure::Other, format!("a strange message: {other:?}"))),
            }
        }
    }

    /// The greeting must name the backend that the upgrade named: it went the same way.
    fn greeted(&self, name: Option<&str>) -> Result<(), Failed> {
        let mut report = self.report();
        match (name, &report.backend) {
            (None, _) => return Err((Failure::Wrong, "a text that is no greeting".to_owned())),
            (Some(name), Some(upgrade)) if name != upgrade => {
                return Err((
                    Failure::Wrong,
                    format!("{name} greets after an upgrade by {upgrade}"),
                ));
            }
            (Some(name), _) => report.backend = Some(name.to_owned()),
        }
        Ok(())
    }
}

fn check(pattern: Pattern, position: u64, bytes: &[u8]) -> Result<(), Failed> {
    pattern.verify(position, bytes).map_err(|wrong| (Failure::Wrong, wrong.to_string()))
}

fn failure(error: &Error) -> Failed {
    let kind = match error {
        Error::Http(_) => Failure::Rejected,
        Error::ConnectionClosed | Error::AlreadyClosed => Failure::Eof,
        Error::Protocol(
            ProtocolError::ResetWithoutClosingHandshake | ProtocolError::HandshakeIncomplete,
        ) => Failure::Eof,
        Error::Io(error) => match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable => Failure::Refused,
            io::ErrorKind::TimedOut => Failure::ConnectTimeout,
            io::ErrorKind::UnexpectedEof => Failure::Eof,
            _ => Failure::Other,
        },
        _ => Failure::Other,
    };
    (kind, error.to_string())
}
