//! A TCP connection with TLS on it, after its handshake.
//!
//! What comes is read into a buffer of the whole worker and decrypted there; what goes is encrypted into another. A
//! connection keeps bytes of its own only while a record has come in part, its reader has no room, or the socket takes
//! no more: one at rest keeps the session's keys and nothing else.

use std::{
    cell::RefCell,
    io::{self, ErrorKind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use rustls::CommonState;
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
};

use super::session::{Progress, Session, Stage, advance, seal, seal_end};

/// Bytes read at once, at most: several records (RFC 8446, section 5.2).
const READ_BYTES: usize = 64 << 10;

/// Plain bytes that are encrypted at once.
const SEAL_BYTES: usize = 64 << 10;

/// What that can become: four records, and what the session has to say itself.
const SEALED_BYTES: usize = SEAL_BYTES + (4 << 10);

/// The buffers of a worker: one for what is decrypted, one for what is encrypted.
struct Buffers {
    incoming: Box<[u8]>,
    sealed: Box<[u8]>,
}

thread_local! {
    static BUFFERS: RefCell<Buffers> = RefCell::new(Buffers {
        incoming: vec![0; READ_BYTES].into(),
        sealed: vec![0; SEALED_BYTES].into(),
    });
}

/// See the module.
pub struct Stream<S> {
    socket: TcpStream,
    session: S,
    /// The beginning of a record, or more than the reader had room for.
    incoming: Vec<u8>,
    /// Whether that may be whole records.
    whole: bool,
    /// Decrypted, and not read yet.
    plain: Bytes,
    /// Encrypted, and not taken by the socket yet.
    unsent: Bytes,
    /// The peer has said that no more comes.
    ended: bool,
    /// The peer was told so.
    said_end: bool,
}

/// What a handshake has left over.
pub struct Rest {
    /// Records, or a part of one, behind the handshake.
    pub incoming: Vec<u8>,
    /// What was decrypted of them.
    pub plain: Vec<u8>,
    /// What the session has to say, and the socket has not taken.
    pub unsent: Vec<u8>,
    /// The peer has said that no more comes.
    pub ended: bool,
}

impl<S: Session> Stream<S> {
    pub fn new(socket: TcpStream, session: S, rest: Rest) -> Self {
        let Rest { mut incoming, plain, unsent, ended } = rest;
        incoming.shrink_to_fit();
        Self {
            socket,
            session,
            whole: !incoming.is_empty(),
            incoming,
            plain: plain.into(),
            unsent: unsent.into(),
            ended,
            said_end: false,
        }
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.socket
    }

    pub fn session(&self) -> &CommonState {
        self.session.common()
    }

    /// Whether there may be something to read that the socket does not know of.
    pub fn holds_more(&self) -> bool {
        self.whole || !self.plain.is_empty() || self.ended
    }

    pub fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut into = ReadBuf::new(buffer);
        self.read(&mut into, |socket, into| socket.try_read(into))?;
        Ok(into.filled().len())
    }

    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // What of it is not written to is not touched: readers with large buffers, of which most stays empty, have many.
        pending(self.read(buf, |socket, into| {
            // Not `try_read`: after a short read that would ask the kernel once more.
            let mut into = ReadBuf::new(into);
            now(Pin::new(socket).poll_read(cx, &mut into))?;
            Ok(into.filled().len())
        }))
    }

    /// Nothing read is the end.
    fn read(
        &mut self,
        buffer: &mut ReadBuf<'_>,
        mut fill: impl FnMut(&mut TcpStream, &mut [u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        if buffer.remaining() == 0 {
            return Ok(());
        }
        if !self.plain.is_empty() {
            let n = self.plain.len().min(buffer.remaining());
            buffer.put_slice(&self.plain[..n]);
            self.plain.advance(n);
            if self.plain.is_empty() {
                self.plain = Bytes::new();
            }
            return Ok(());
        }
        BUFFERS.with_borrow_mut(|Buffers { incoming, .. }| {
            while !self.ended {
                let mut have = self.incoming.len();
                if !self.whole {
                    if have == incoming.len() {
                        return Err(broken("a record that never ends"));
                    }
                    let n = fill(&mut self.socket, &mut incoming[have..])?;
                    if n == 0 {
                        self.ended = true;
                        return if S::STRICT_END && !self.said_end {
                            Err(ErrorKind::UnexpectedEof.into())
                        } else {
                            Ok(())
                        };
                    }
                    incoming[..have].copy_from_slice(&self.incoming);
                    have += n;
                } else {
                    incoming[..have].copy_from_slice(&self.incoming);
                }
                if self.decrypt(&mut incoming[..have], buffer)? {
                    return Ok(());
                }
            }
            Ok(())
        })
    }

    /// Decrypts records until the reader has enough, and keeps the rest. Says whether the reader has anything.
    fn decrypt(&mut self, incoming: &mut [u8], buffer: &mut ReadBuf<'_>) -> io::Result<bool> {
        let before = buffer.filled().len();
        let (mut out, mut over) = (Vec::new(), Vec::new());
        let Progress { used, stage } =
            advance(&mut self.session, incoming, &mut out, |bytes: &[u8]| {
                let n = bytes.len().min(buffer.remaining());
                buffer.put_slice(&bytes[..n]);
                over.extend_from_slice(&bytes[n..]);
                buffer.remaining() > 0
            });
        self.whole = buffer.remaining() == 0 && used < incoming.len();
        self.incoming = incoming[used..].to_vec();
        self.plain = over.into();
        let stage = stage.map_err(|error| {
            // An error comes without bytes.
            buffer.set_filled(before);
            io::Error::new(ErrorKind::InvalidData, error)
        });
        self.say(&out);
        match stage? {
            Stage::PeerEnded => {
                self.ended = true;
                (self.incoming, self.whole) = (Vec::new(), false);
            }
            Stage::Traffic => {}
            Stage::Handshake => return Err(broken("a handshake within a handshake")),
        }
        Ok(buffer.filled().len() > before)
    }

    /// The session's own words go out behind what is under way.
    fn say(&mut self, words: &[u8]) {
        if words.is_empty() {
            return;
        }
        self.unsent = [&self.unsent[..], words].concat().into();
        // What is not taken now goes with the next write; an error shows there.
        _ = self.send_unsent(|socket, bytes| socket.try_write(bytes));
    }

    fn send_unsent(
        &mut self,
        mut put: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<usize>,
    ) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let n = put(&mut self.socket, &self.unsent)?;
            self.unsent.advance(n);
        }
        self.unsent = Bytes::new();
        Ok(())
    }

    /// All of the bytes count as written; what the socket does not take is kept.
    pub fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes, |socket, bytes| socket.try_write(bytes))
    }

    pub fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        pending(self.write(bytes, |socket, bytes| now(Pin::new(socket).poll_write(cx, bytes))))
    }

    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        pending(self.send_unsent(|socket, bytes| now(Pin::new(socket).poll_write(cx, bytes))))
    }

    /// The `close_notify` (RFC 8446, section 6.1), and the socket's end.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.queue_end();
        ready!(self.poll_flush(cx))?;
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    /// The `close_notify`, as far as the socket takes it now.
    pub fn say_end(&mut self) {
        self.queue_end();
        _ = self.send_unsent(|socket, bytes| socket.try_write(bytes));
    }

    fn queue_end(&mut self) {
        if self.said_end {
            return;
        }
        self.said_end = true;
        let (mut out, mut end) = (Vec::new(), [0; 256]);
        if self.settle(&mut out).is_ok()
            && let Some(n) = seal_end(&mut self.session, &mut self.incoming, &mut end)
        {
            out.extend_from_slice(&end[..n]);
        }
        self.unsent = [&self.unsent[..], &out].concat().into();
    }

    fn write(
        &mut self,
        bytes: &[u8],
        mut put: impl FnMut(&mut TcpStream, &[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        self.send_unsent(&mut put)?;
        if self.said_end {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let mut out = Vec::new();
        self.settle(&mut out)?;
        let bytes = &bytes[..bytes.len().min(SEAL_BYTES)];
        BUFFERS.with_borrow_mut(|Buffers { sealed, .. }| {
            let start = out.len();
            let Some(room) = sealed.get_mut(..start) else { return Err(broken("too many words")) };
            room.copy_from_slice(&out);
            let n = seal(&mut self.session, &mut self.incoming, bytes, &mut sealed[start..])
                .ok_or(ErrorKind::BrokenPipe)?;
            let sealed = &sealed[..start + n];
            let sent = match put(&mut self.socket, sealed) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if sent < sealed.len() {
                self.unsent = Bytes::copy_from_slice(&sealed[sent..]);
            }
            Ok(bytes.len())
        })
    }

    /// Brings the session to where it takes bytes: whole records that wait for a reader are decrypted first.
    fn settle(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let mut over = Vec::new();
        let Progress { used, stage } =
            advance(&mut self.session, &mut self.incoming, out, |bytes: &[u8]| {
                over.extend_from_slice(bytes);
                true
            });
        if used > 0 {
            self.incoming = self.incoming[used..].to_vec();
        }
        self.whole = false;
        if !over.is_empty() {
            self.plain = [&self.plain[..], &over].concat().into();
        }
        match stage {
            Ok(Stage::Traffic) => Ok(()),
            Ok(Stage::PeerEnded) => {
                self.ended = true;
                Ok(())
            }
            Ok(Stage::Handshake) => Err(ErrorKind::BrokenPipe.into()),
            Err(error) => Err(io::Error::new(ErrorKind::InvalidData, error)),
        }
    }
}

fn broken(what: &'static str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}

/// What is not ready now would block.
fn now<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(ErrorKind::WouldBlock.into()),
    }
}

/// The other way round: whoever would block has been registered.
fn pending<T>(result: io::Result<T>) -> Poll<io::Result<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Poll::Pending,
        result => Poll::Ready(result),
    }
}
