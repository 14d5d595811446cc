//! The client's end of a pipe. Whatever it waits for, it waits for a bounded time: a connection that hangs is
//! an error.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::{Mode, PIECE, Terms};
use crate::chat::{BACKEND_HEADER, Side};

/// How long an answer may take, on a machine that is busy with other things as well.
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_HEAD: usize = 16 * 1024;

/// Where a pipe shall go, and from where.
#[derive(Clone, Copy, Debug)]
pub struct Dial {
    pub target: SocketAddr,
    /// The client's own end; a tuple that was just left can be taken again.
    pub source: Option<SocketAddr>,
    pub terms: Terms,
    /// How long the client waits for what is due.
    pub patience: Duration,
}

/// How the other end left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Fin,
    Reset,
}

impl Dial {
    #[must_use]
    pub const fn new(target: SocketAddr, terms: Terms) -> Self {
        Self { target, source: None, terms, patience: PATIENCE }
    }

    /// Connects and has the connection upgraded.
    pub async fn open(self) -> Result<Pipe> {
        let opened = tokio::time::timeout(self.patience, self.upgrade()).await;
        opened.context("not upgraded in time").flatten().with_context(|| format!("{self:?}"))
    }

    async fn connect(&self) -> Result<TcpStream> {
        let start = Instant::now();
        loop {
            let socket =
                if self.target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
            if let Some(source) = self.source {
                socket.set_reuseaddr(true)?;
                socket.bind(source).with_context(|| format!("cannot bind to {source}"))?;
            }
            match socket.connect(self.target).await {
                // In TIME_WAIT at our own end: the kernel gives it again after a second.
                Err(error)
                    if self.source.is_some()
                        && error.kind() == io::ErrorKind::AddrNotAvailable
                        && start.elapsed() < self.patience =>
                {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                connected => return connected.context("cannot connect"),
            }
        }
    }

    async fn upgrade(self) -> Result<Pipe> {
        let mut stream = self.connect().await?;
        stream.set_nodelay(true)?;
        let local = stream.local_addr()?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: chat.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
            self.terms
        );
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let end = loop {
            if let Some(end) = head.windows(4).position(|it| it == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(head.len() < LONGEST_HEAD, "an answer without an end of its head");
            ensure!(stream.read_buf(&mut head).await? > 0, "closed before it was upgraded");
        };
        let rest = head.split_off(end);
        let head = String::from_utf8(head)?;
        ensure!(head.starts_with("HTTP/1.1 101 "), "not upgraded: {head}");
        let mut fields = head.lines().filter_map(|line| line.split_once(':'));
        let backend = fields.find(|(name, _)| name.eq_ignore_ascii_case(BACKEND_HEADER));
        let backend = backend.map_or("", |(_, value)| value.trim()).to_owned();
        Ok(Pipe { stream, local, backend, dial: self, sent: 0, came: 0, rest })
    }
}

/// An upgraded connection.
#[derive(Debug)]
pub struct Pipe {
    stream: TcpStream,
    local: SocketAddr,
    pub backend: String,
    dial: Dial,
    /// Of our stream.
    sent: u64,
    /// Bytes that came and were right.
    came: u64,
    /// What came with the answer's head.
    rest: Vec<u8>,
}

impl Pipe {
    /// Its own end.
    #[must_use]
    pub const fn local(&self) -> SocketAddr {
        self.local
    }

    #[must_use]
    pub const fn target(&self) -> SocketAddr {
        self.dial.target
    }

    /// Bytes that came and were right.
    #[must_use]
    pub const fn came(&self) -> u64 {
        self.came
    }

    fn theirs(&self) -> Side {
        match self.dial.terms.mode {
            Mode::Echo => Side::Client,
            Mode::Stream { .. } => Side::Server,
        }
    }

    async fn due<T>(
        &mut self,
        what: &str,
        f: impl AsyncFnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let patience = self.dial.patience;
        let done = tokio::time::timeout(patience, f(self)).await;
        done.with_context(|| format!("hangs for {patience:?}")).flatten().with_context(|| {
            let Self { local, sent, came, backend, .. } = self;
            let target = self.dial.target;
            format!("{what}: {local} to {target}, {backend}, {sent} bytes sent, {came} came")
        })
    }

    /// Sends so many bytes.
    pub async fn send(&mut self, bytes: u64) -> Result<()> {
        self.due("sending", async |pipe| pipe.write(bytes).await).await
    }

    /// Waits for so many bytes.
    pub async fn receive(&mut self, bytes: u64) -> Result<()> {
        self.due("receiving", async |pipe| pipe.read(bytes).await).await
    }

    /// Has so many bytes echoed.
    pub async fn echo(&mut self, bytes: u64) -> Result<()> {
        self.send(bytes).await?;
        self.receive(bytes).await
    }

    async fn write(&mut self, bytes: u64) -> Result<()> {
        let ours = self.dial.terms.pattern(Side::Client);
        let mut buffer = vec![0; PIECE.min(usize::try_from(bytes)?)];
        let last = self.sent + bytes;
        while self.sent < last {
            let length = buffer.len().min(usize::try_from(last - self.sent)?);
            ours.fill(self.sent, &mut buffer[..length]);
            self.stream.write_all(&buffer[..length]).await?;
            self.sent += length as u64;
        }
        Ok(())
    }

    async fn read(&mut self, bytes: u64) -> Result<()> {
        let last = self.came + bytes;
        while self.came < last {
            let more = usize::try_from(last - self.came)?;
            ensure!(self.take(more).await? > 0, "the other end has closed");
        }
        Ok(())
    }

    /// Takes and checks what has come, at most so much; 0 at the end of the stream.
    async fn take(&mut self, most: usize) -> Result<usize> {
        let mut buffer = vec![0; PIECE.min(most)];
        let length = if self.rest.is_empty() {
            self.stream.read(&mut buffer).await?
        } else {
            let length = self.rest.len().min(buffer.len());
            buffer[..length].copy_from_slice(&self.rest[..length]);
            self.rest.drain(..length);
            length
        };
        self.dial.terms.pattern(self.theirs()).verify(self.came, &buffer[..length])?;
        self.came += length as u64;
        Ok(length)
    }

    /// Sends a byte, or some, again and again until told to stop, checks the echoes on the way, and waits for
    /// all of them.
    pub async fn chatter(
        &mut self,
        bytes: u64,
        pause: Duration,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<()> {
        while go_on() {
            self.echo(bytes).await?;
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    /// Closes our direction.
    pub async fn shut(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    /// Waits until the other end leaves, and expects nothing more from it.
    pub async fn ended(&mut self) -> Result<End> {
        self.due("waiting for the end", async |pipe| pipe.end().await).await
    }

    async fn end(&mut self) -> Result<End> {
        let mut byte = [0];
        ensure!(self.rest.is_empty(), "{} bytes more than there should be", self.rest.len());
        match self.stream.read(&mut byte).await {
            Ok(0) => Ok(End::Fin),
            Ok(_) => bail!("a byte {} more than there should be", byte[0]),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(End::Reset),
            Err(error) => Err(error.into()),
        }
    }

    /// Closes our direction and waits for the other end's FIN.
    pub async fn finish(mut self) -> Result<()> {
        self.shut().await?;
        let end = self.ended().await?;
        ensure!(end == End::Fin, "{:?} after our FIN, from {}", end, self.local);
        Ok(())
    }

    /// RST.
    pub fn reset(self) -> Result<()> {
        Ok(self.stream.set_zero_linger()?)
    }

    /// With [`Mode::Stream`]: sends so many bytes while it takes the server's, and has the server confirm them.
    /// The client's patience is for each piece of progress, not for all of it.
    pub async fn exchange(mut self, bytes: u64) -> Result<()> {
        let Mode::Stream { bytes: theirs, .. } = self.dial.terms.mode else {
            bail!("an echo is no exchange");
        };
        let patience = self.dial.patience;
        let (ours, expected) =
            (self.dial.terms.pattern(Side::Client), self.dial.terms.pattern(Side::Server));
        let (from, to) = self.stream.split();
        let (mut sent, mut came) = (self.sent, self.came);
        let rest = std::mem::take(&mut self.rest);
        let send = async {
            let mut to = to;
            let mut buffer = vec![0; PIECE];
            let last = sent + bytes;
            while sent < last {
                let length = buffer.len().min(usize::try_from(last - sent)?);
                ours.fill(sent, &mut buffer[..length]);
                let write = tokio::time::timeout(patience, to.write_all(&buffer[..length]));
                write.await.with_context(|| format!("sending hangs at {sent}"))??;
                sent += length as u64;
                next_turn().await;
            }
            Ok(to.shutdown().await?)
        };
        let receive = async {
            let mut from = std::io::Cursor::new(rest).chain(from);
            let mut buffer = vec![0; PIECE];
            while came < theirs {
                let most = buffer.len().min(usize::try_from(theirs - came)?);
                let read = tokio::time::timeout(patience, from.read(&mut buffer[..most]));
                let length = read.await.with_context(|| format!("receiving hangs at {came}"))??;
                ensure!(length > 0, "the stream ended at {came} of {theirs}");
                expected.verify(came, &buffer[..length])?;
                came += length as u64;
                next_turn().await;
            }
            let mut account = [0; 8];
            let read = tokio::time::timeout(patience * 4, from.read_exact(&mut account));
            read.await.context("no account came")??;
            let end = tokio::time::timeout(patience, from.read(&mut buffer)).await;
            ensure!(end.context("no end came")?? == 0, "more than there should be");
            anyhow::Ok(u64::from_be_bytes(account))
        };
        let exchanged = tokio::try_join!(send, receive);
        let ((), confirmed) = exchanged.with_context(|| format!("{:?}", self.dial))?;
        ensure!(confirmed == sent, "the server got {confirmed} of {sent} bytes");
        Ok(())
    }
}

/// Lets the others of the thread go on after each piece: a connection that always has data would otherwise keep it for as many
/// pieces as the runtime allows, and with a hundred of them the last one has its turn after half a minute.
async fn next_turn() {
    tokio::task::yield_now().await;
}

#[cfg(test)]
mod tests {
    use super::super::Ending;
    use super::*;
    use crate::chat::{ChatServer, ServerConfig};
    use crate::netns::NsTask;

    fn run<F: Future<Output = Result<()>>>(f: impl FnOnce(SocketAddr) -> F + Send + 'static) {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = ChatServer::start(None, ServerConfig::new("chat-1", [any])).unwrap();
        let target = server.addresses()[0];
        NsTask::start(None, "pipes", move |_| f(target)).join().unwrap();
        assert_eq!(server.stats().wrong, 0);
    }

    #[test]
    fn an_echo_comes_back_and_ends_in_every_way() {
        run(async |target| {
            let mut pipe = Dial::new(target, Terms::echo(1, 1)).open().await?;
            assert_eq!(pipe.backend, "chat-1");
            pipe.echo(100_000).await?;
            pipe.finish().await?;
            for (ending, seen) in
                [(Ending::Fin, End::Fin), (Ending::Half, End::Fin), (Ending::Reset, End::Reset)]
            {
                let terms = Terms { end: Some((500, ending)), ..Terms::echo(1, 2) };
                let mut pipe = Dial::new(target, terms).open().await?;
                pipe.echo(500).await?;
                assert_eq!(pipe.ended().await?, seen);
                pipe.shut().await.ok();
            }
            Ok(())
        });
    }

    #[test]
    fn streams_cross_and_are_confirmed() {
        run(async |target| {
            let pipe = Dial::new(target, Terms::stream(1, 1, 3_000_000)).open().await?;
            pipe.exchange(2_000_000).await
        });
    }

    #[test]
    fn a_wrong_byte_is_noticed_by_either_end() {
        run(async |target| {
            // Of another session than the server was told.
            let mut pipe = Dial::new(target, Terms::echo(1, 1)).open().await?;
            pipe.send(10).await?;
            pipe.dial.terms.session = 2;
            let error = format!("{:#}", pipe.receive(10).await.unwrap_err());
            assert!(error.contains("instead of"), "{error}");
            Ok(())
        });
    }

    #[test]
    fn a_tuple_that_was_just_left_is_taken_again() {
        run(async |target| {
            let dial = Dial::new(target, Terms::echo(1, 1));
            let mut pipe = dial.open().await?;
            let source = Some(pipe.local());
            pipe.echo(10).await?;
            pipe.reset()?;
            let pipe = Dial { source, ..dial }.open().await?;
            pipe.finish().await?;
            Dial { source, ..dial }.open().await?.finish().await
        });
    }
}
