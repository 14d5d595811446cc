//! rustls's side of a connection: what its states ask for, in terms of bytes.
//!
//! Records are decrypted and encrypted in buffers that belong to nobody for long, so a connection at rest has none.

use rustls::{
    CommonState, Error,
    client::{ClientConnectionData, UnbufferedClientConnection},
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, UnbufferedStatus},
};

/// Either side of TLS.
pub trait Session {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;

    fn common(&self) -> &CommonState;

    /// Whether an end without a `close_notify` is an error: what came before it may have been cut off.
    const STRICT_END: bool;
}

impl Session for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    /// Browsers and libraries often just close.
    const STRICT_END: bool = false;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

impl Session for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    /// The length of a backend's answer may be known by its end alone.
    const STRICT_END: bool = true;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }

    fn common(&self) -> &CommonState {
        self
    }
}

/// Where a session stands when it has no more to do with what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The handshake needs more bytes.
    Handshake,
    /// Bytes can be sent; more records may come.
    Traffic,
    /// The peer sends no more; bytes can be sent.
    PeerEnded,
}

/// What became of some bytes.
pub struct Progress {
    /// How many of them are done with.
    pub used: usize,
    pub stage: Result<Stage, Error>,
}

/// Takes records as long as there are whole ones and `plain` wants their contents; what the session has to say to the
/// peer goes to the end of `out`.
///
/// What is not used must be at the beginning of the next call's bytes, however little that call is about: rustls
/// remembers places in it.
pub fn advance<S: Session>(
    session: &mut S,
    incoming: &mut [u8],
    out: &mut Vec<u8>,
    mut plain: impl FnMut(&[u8]) -> bool,
) -> Progress {
    let mut used = 0;
    let mut wants_more = true;
    let mut ended = false;
    loop {
        let UnbufferedStatus { discard, state } = session.process(&mut incoming[used..]);
        let stage = match state {
            Err(error) => Some(Err(error)),
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(Ok(record)) = traffic.next_record() {
                    wants_more &= plain(record.payload);
                }
                // No more of them: the session is where it was.
                (!wants_more).then_some(Ok(Stage::Traffic))
            }
            Ok(ConnectionState::EncodeTlsData(mut data)) => {
                let start = out.len();
                let size = match data.encode(&mut []) {
                    Err(EncodeError::InsufficientSize(needed)) => needed.required_size,
                    _ => 0,
                };
                out.resize(start + size, 0);
                let written = data.encode(&mut out[start..]).unwrap_or(0);
                out.truncate(start + written);
                None
            }
            Ok(ConnectionState::TransmitTlsData(data)) => {
                data.done();
                None
            }
            Ok(ConnectionState::PeerClosed) => {
                ended = true;
                None
            }
            Ok(ConnectionState::WriteTraffic(_)) => {
                Some(Ok(if ended { Stage::PeerEnded } else { Stage::Traffic }))
            }
            Ok(ConnectionState::Closed) => Some(Ok(Stage::PeerEnded)),
            Ok(ConnectionState::BlockedHandshake) => Some(Ok(Stage::Handshake)),
            // Early data is never allowed; what is not known cannot be served.
            Ok(_) => Some(Err(Error::General("an unexpected state".into()))),
        };
        used += discard;
        if let Some(stage) = stage {
            return Progress { used, stage };
        }
    }
}

/// What a session that has failed tells its peer.
pub fn last_words<S: Session>(session: &mut S, incoming: &mut [u8], out: &mut Vec<u8>) {
    // One alert, perhaps behind parts of the handshake that were not sent yet.
    for _ in 0..16 {
        let UnbufferedStatus { state, .. } = session.process(incoming);
        let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { return };
        let start = out.len();
        let Err(EncodeError::InsufficientSize(needed)) = data.encode(&mut []) else { return };
        out.resize(start + needed.required_size, 0);
        let written = data.encode(&mut out[start..]).unwrap_or(0);
        out.truncate(start + written);
    }
}

/// Encrypts bytes, all of them, behind what `out` has. None if the session cannot any more.
pub fn seal<S: Session>(
    session: &mut S,
    incoming: &mut [u8],
    bytes: &[u8],
    out: &mut [u8],
) -> Option<usize> {
    match session.process(incoming).state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.encrypt(bytes, out).ok(),
        _ => None,
    }
}

/// The peer is told that no more comes. None if that cannot be said any more.
pub fn seal_end<S: Session>(session: &mut S, incoming: &mut [u8], out: &mut [u8]) -> Option<usize> {
    match session.process(incoming).state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => traffic.queue_close_notify(out).ok(),
        _ => None,
    }
}
