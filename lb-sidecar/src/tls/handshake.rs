//! Handshakes, with clients and with backends. Whoever calls watches the time.

use std::{
    cell::Cell,
    io::{self, ErrorKind},
    sync::Arc,
};

use rustls::{
    ClientConfig, Error, ServerConfig, client::UnbufferedClientConnection, pki_types::ServerName,
    server::UnbufferedServerConnection,
};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use super::{
    session::{Progress, Session, Stage, advance, last_words},
    stream::{Rest, Stream},
};
use crate::{outcome::Outcome, scratch};

/// Most bytes of a handshake that has not come to its end: a chain of certificates fits many times.
const MOST_BYTES: usize = 64 << 10;

/// What begins a TLS record of a handshake (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// `unrecognized_name` (RFC 6066, section 3).
const UNRECOGNIZED_NAME: [u8; 7] = fatal(112);

/// A fatal alert, as a record of TLS 1.2 (RFC 5246, section 7.2).
pub const fn fatal(description: u8) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, description]
}

/// What the handshake at hand was heard to ask for: rustls tells it to nobody but who chooses the certificate.
#[derive(Default)]
pub(super) struct Asked {
    pub name: Option<Box<str>>,
    pub known: Known,
}

/// Whether a certificate has the name that was asked for.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Known {
    #[default]
    Here,
    /// None has, and the first one is given.
    ByDefault,
    /// None has, and the handshake ends.
    Refused,
}

thread_local! {
    static ASKED: Cell<Asked> = const { Cell::new(Asked { name: None, known: Known::Here }) };
}

/// Says so to the handshake that asks for a certificate.
pub(super) fn note(asked: Asked) {
    ASKED.set(asked);
}

/// How a handshake has failed.
#[derive(Debug)]
pub enum Failed {
    /// What came is an HTTP request without TLS.
    Plain,
    Why(Outcome),
}

impl From<Outcome> for Failed {
    fn from(outcome: Outcome) -> Self {
        Self::Why(outcome)
    }
}

/// The server's part, and the name that the client asked for. `ahead` was read before it. `count` hears what is to be
/// counted whatever becomes of the handshake.
pub async fn accept(
    mut socket: TcpStream,
    config: Arc<ServerConfig>,
    ahead: Vec<u8>,
    count: impl Fn(Outcome),
) -> Result<(Stream<UnbufferedServerConnection>, Option<Box<str>>), (Failed, TcpStream)> {
    let Ok(session) = UnbufferedServerConnection::new(config) else {
        return Err((Outcome::TlsFailed.into(), socket));
    };
    let mut incoming = ahead;
    if incoming.is_empty() && more(&socket, &mut incoming).await.is_err() {
        return Err((Outcome::TlsCut.into(), socket));
    }
    if looks_like_http(&incoming) {
        return Err((Failed::Plain, socket));
    }
    match shake_hands(&mut socket, session, incoming, count).await {
        Ok(Done { session, name, rest }) => Ok((Stream::new(socket, session, rest), name)),
        Err(outcome) => Err((outcome.into(), socket)),
    }
}

/// The client's part.
pub async fn connect(
    mut socket: TcpStream,
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
) -> Result<Stream<UnbufferedClientConnection>, Outcome> {
    let session =
        UnbufferedClientConnection::new(config, name).map_err(|_| Outcome::BackendTlsFailed)?;
    match shake_hands(&mut socket, session, Vec::new(), |_| {}).await {
        Ok(Done { session, rest, .. }) => Ok(Stream::new(socket, session, rest)),
        Err(Outcome::TlsUntrusted) => Err(Outcome::BackendTlsUntrusted),
        Err(_) => Err(Outcome::BackendTlsFailed),
    }
}

/// A handshake that has come to its end.
struct Done<S> {
    session: S,
    name: Option<Box<str>>,
    rest: Rest,
}

/// Until bytes can be sent.
async fn shake_hands<S: Session>(
    socket: &mut TcpStream,
    mut session: S,
    mut incoming: Vec<u8>,
    count: impl Fn(Outcome),
) -> Result<Done<S>, Outcome> {
    let (mut out, mut plain, mut name) = (Vec::new(), Vec::new(), None);
    let mut by_default = false;
    loop {
        ASKED.take();
        let Progress { used, stage } =
            advance(&mut session, &mut incoming, &mut out, |bytes: &[u8]| {
                plain.extend_from_slice(bytes);
                false
            });
        incoming.drain(..used);
        let asked = ASKED.take();
        name = name.or(asked.name);
        // A client that has to say hello again (RFC 8446, section 4.1.4) asks twice.
        if asked.known == Known::ByDefault && !std::mem::replace(&mut by_default, true) {
            count(Outcome::TlsDefaultName);
        }
        match stage {
            Ok(Stage::Handshake) => {}
            Ok(Stage::Traffic | Stage::PeerEnded) => {
                let sent = socket.try_write(&out).unwrap_or(0);
                out.drain(..sent);
                let ended = stage == Ok(Stage::PeerEnded);
                return Ok(Done {
                    session,
                    name,
                    rest: Rest { incoming, plain, unsent: out, ended },
                });
            }
            Err(error) => {
                let unknown = asked.known == Known::Refused;
                match unknown {
                    true => out.extend_from_slice(&UNRECOGNIZED_NAME),
                    false => last_words(&mut session, &mut incoming, &mut out),
                }
                _ = socket.try_write(&out);
                return Err(if unknown { Outcome::TlsUnknownName } else { of(&error) });
            }
        }
        let cut = |_| Outcome::TlsCut;
        if !out.is_empty() {
            socket.write_all(&out).await.map_err(cut)?;
            out.clear();
        }
        if incoming.len() >= MOST_BYTES {
            return Err(Outcome::TlsFailed);
        }
        more(socket, &mut incoming).await.map_err(cut)?;
    }
}

/// Waits for more bytes. Keeps no buffer while it waits.
async fn more(socket: &TcpStream, incoming: &mut Vec<u8>) -> io::Result<()> {
    loop {
        socket.readable().await?;
        let read = scratch::with(|buffer| {
            let n = socket.try_read(buffer)?;
            incoming.extend_from_slice(&buffer[..n]);
            io::Result::Ok(n)
        });
        match read {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether that is the beginning of a handshake.
pub fn looks_like_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [HANDSHAKE_RECORD, 3, ..])
}

/// A method begins with a letter, which no record does.
pub fn looks_like_http(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(u8::is_ascii_alphabetic)
}

fn of(error: &Error) -> Outcome {
    match error {
        Error::InvalidCertificate(_) | Error::NoCertificatesPresented => Outcome::TlsUntrusted,
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => Outcome::TlsIncompatible,
        Error::AlertReceived(_) => Outcome::TlsRefused,
        _ => Outcome::TlsFailed,
    }
}
