//! A client's connection, with or without TLS on it. Nothing here waits.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
};

use anyhow::{Context, Result, bail, ensure};
use rustls::{ClientConnection, HandshakeKind};

/// See the module.
pub struct Wire {
    socket: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

impl From<TcpStream> for Wire {
    fn from(socket: TcpStream) -> Self {
        Self { socket, tls: None }
    }
}

impl Wire {
    /// With a handshake ahead of it.
    pub fn secure(socket: TcpStream, tls: ClientConnection) -> Self {
        Self { socket, tls: Some(Box::new(tls)) }
    }

    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// How the handshake went, once it is over.
    pub fn handshake(&self) -> Option<HandshakeKind> {
        self.tls.as_ref()?.handshake_kind()
    }

    /// The protocol that was agreed on.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.tls.as_ref()?.alpn_protocol()
    }

    /// Takes the handshake as far as it goes now. Returns whether it is over on this side.
    pub fn shake_hands(&mut self) -> Result<bool> {
        let Some(tls) = &mut self.tls else { return Ok(true) };
        loop {
            while tls.wants_write() {
                match tls.write_tls(&mut self.socket) {
                    Ok(_) => {}
                    Err(error) if is_not_yet(&error) => return Ok(false),
                    Err(error) => return Err(error).context("cannot send a handshake"),
                }
            }
            if !tls.is_handshaking() {
                return Ok(true);
            }
            match tls.read_tls(&mut self.socket) {
                Ok(0) => bail!("the other side has closed a connection in its handshake"),
                Ok(_) => tls.process_new_packets()?,
                Err(error) if is_not_yet(&error) => return Ok(false),
                Err(error) => return Err(error).context("cannot receive a handshake"),
            };
        }
    }

    /// Sends a short request or message, all at once. False: the connection does not stand yet.
    pub fn send(&mut self, bytes: &[u8]) -> Result<bool> {
        if !self.shake_hands()? {
            return Ok(false);
        }
        let Some(tls) = &mut self.tls else { return send(&mut self.socket, bytes) };
        tls.writer().write_all(bytes)?;
        while tls.wants_write() {
            match tls.write_tls(&mut self.socket) {
                Ok(_) => {}
                Err(error) if is_not_yet(&error) => bail!("no room: a proxy does not read"),
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(true)
    }

    /// Reads what is there; nothing if there is nothing. An end is an error: only clients close here.
    ///
    /// With TLS, nothing is held back as long as the buffer is longer than all that can be under way.
    pub fn receive(&mut self, buffer: &mut [u8]) -> Result<Option<usize>> {
        let Some(tls) = &mut self.tls else { return receive(&mut self.socket, buffer) };
        loop {
            match tls.reader().read(buffer) {
                Ok(0) => bail!("the other side has closed a connection"),
                Ok(len) => {
                    ensure!(len < buffer.len(), "more was read than a client can be sent");
                    return Ok(Some(len));
                }
                Err(error) if is_not_yet(&error) => {}
                Err(error) => return Err(error).context("cannot receive"),
            }
            match tls.read_tls(&mut self.socket) {
                Ok(0) => bail!("the other side has cut a connection"),
                Ok(_) => tls.process_new_packets()?,
                Err(error) if is_not_yet(&error) => return Ok(None),
                Err(error) => return Err(error).context("cannot receive"),
            };
        }
    }
}

fn send(socket: &mut TcpStream, bytes: &[u8]) -> Result<bool> {
    match socket.write(bytes) {
        Ok(len) if len == bytes.len() => Ok(true),
        Ok(len) => bail!("{len} of {} bytes found room: a proxy does not read", bytes.len()),
        Err(error) if is_not_yet(&error) => Ok(false),
        Err(error) => Err(error).context("cannot send"),
    }
}

fn receive(socket: &mut TcpStream, buffer: &mut [u8]) -> Result<Option<usize>> {
    match socket.read(buffer) {
        Ok(0) => bail!("the other side has closed a connection"),
        Ok(len) => Ok(Some(len)),
        Err(error) if is_not_yet(&error) => Ok(None),
        Err(error) => Err(error).context("cannot receive"),
    }
}

fn is_not_yet(error: &io::Error) -> bool {
    // A write to a socket that is still connecting says EAGAIN.
    error.kind() == ErrorKind::WouldBlock
}
