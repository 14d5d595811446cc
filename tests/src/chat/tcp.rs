//! Plain TCP: an echo server, and a client that checks the echo of a long stream and of its half-close.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::pattern::{Pattern, Side};
use crate::netns::{NsHandle, NsTask, Stop};

/// An echo server: says its name in a line, then sends back what it gets, and closes when its client has.
/// Its connections are cut on drop.
#[derive(Debug)]
pub struct EchoServer {
    addresses: Vec<SocketAddr>,
    _task: NsTask<()>,
}

impl EchoServer {
    /// Listens in `namespace` (or the caller's).
    pub fn start(namespace: Option<&NsHandle>, name: &str, listen: &[SocketAddr]) -> Result<Self> {
        let (listeners, addresses) = listen_in(namespace, listen)?;
        let name = name.to_owned();
        let task = NsTask::start(namespace, "echo-server", move |stop| async move {
            for listener in listeners {
                tokio::task::spawn_local(accept(adopt(listener), name.clone()));
            }
            wait_for_end(stop).await;
        });
        Ok(Self { addresses, _task: task })
    }

    /// Where it listens, chosen ports included.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

async fn wait_for_end(mut stop: Stop) {
    stop.requested().await;
}

async fn accept(listener: TcpListener, name: String) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let name = name.clone();
                tokio::task::spawn_local(async move {
                    // A client that goes away is its own problem: it checks what it gets.
                    let _ = echo(stream, &name).await;
                });
            }
            // Out of descriptors, most likely: those that close give some back.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

async fn echo(mut stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(format!("{name}\n").as_bytes()).await?;
    let (mut from, mut to) = stream.split();
    tokio::io::copy(&mut from, &mut to).await?;
    to.shutdown().await
}

/// What [`exchange`] shall do.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub target: SocketAddr,
    /// The client's address, where it has several.
    pub source: Option<IpAddr>,
    pub seed: u64,
    pub bytes: u64,
    /// For the whole exchange.
    pub timeout: Duration,
}

impl Exchange {
    #[must_use]
    pub fn new(target: SocketAddr, seed: u64, bytes: u64) -> Self {
        Self { target, source: None, seed, bytes, timeout: Duration::from_secs(60) }
    }
}

/// A finished exchange: every byte came back, and then the end of the stream.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ExchangeReport {
    pub backend: String,
    pub bytes: u64,
    pub seconds: f64,
}

/// Sends a stream to an [`EchoServer`] from `namespace` (or the caller's), closes its own direction and
/// checks that exactly the same comes back, to the end.
pub fn exchange(namespace: Option<&NsHandle>, exchange: &Exchange) -> Result<ExchangeReport> {
    let plan = exchange.clone();
    let what = format!("TCP exchange with {}, seed {}", plan.target, plan.seed);
    let task = NsTask::start(namespace, "exchange", move |_| async move {
        match tokio::time::timeout(plan.timeout, run(&plan)).await {
            Ok(result) => result,
            Err(_) => bail!("not finished after {:?}", plan.timeout),
        }
    });
    task.join().context(what)
}

async fn run(plan: &Exchange) -> Result<ExchangeReport> {
    let start = std::time::Instant::now();
    let stream = connect(plan.target, plan.source).await.context("cannot connect")?;
    let (from, mut to) = stream.into_split();
    let mut from = BufReader::new(from);
    let mut backend = String::new();
    from.read_line(&mut backend).await.context("no greeting")?;
    let pattern = Pattern::new(plan.seed, 0, Side::Client);
    let write = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut sent = 0;
        while sent < plan.bytes {
            let length = buffer.len().min(usize::try_from(plan.bytes - sent).unwrap_or(usize::MAX));
            pattern.fill(sent, &mut buffer[..length]);
            to.write_all(&buffer[..length]).await.with_context(|| format!("sending at {sent}"))?;
            sent += length as u64;
        }
        to.shutdown().await.context("closing our direction")
    };
    let read = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut came = 0;
        loop {
            let length =
                from.read(&mut buffer).await.with_context(|| format!("receiving at {came}"))?;
            if length == 0 {
                ensure!(came == plan.bytes, "the stream ended at {came} of {} bytes", plan.bytes);
                return anyhow::Ok(());
            }
            pattern.verify(came, &buffer[..length])?;
            came += length as u64;
        }
    };
    tokio::try_join!(write, read)?;
    let backend = backend.trim_end().to_owned();
    Ok(ExchangeReport { backend, bytes: plan.bytes, seconds: start.elapsed().as_secs_f64() })
}

/// Connects from a given address, or any.
pub(super) async fn connect(target: SocketAddr, source: Option<IpAddr>) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind((source, 0).into())?;
    }
    let stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Listens before the server's thread starts, so that a failure is the caller's and a client may connect
/// at once. An IPv6 listener takes IPv6 only: the IPv4 wildcard can be beside it.
pub(crate) fn listen_in(
    namespace: Option<&NsHandle>,
    listen: &[SocketAddr],
) -> Result<(Vec<std::net::TcpListener>, Vec<SocketAddr>)> {
    let open = || -> Result<Vec<_>> {
        listen
            .iter()
            .map(|a| listen_on(*a).with_context(|| format!("cannot listen on {a}")))
            .collect()
    };
    let listeners = match namespace {
        Some(namespace) => namespace.run(open)?,
        None => open()?,
    };
    let addresses = listeners.iter().map(std::net::TcpListener::local_addr);
    let addresses = addresses.collect::<io::Result<_>>()?;
    Ok((listeners, addresses))
}

fn listen_on(address: SocketAddr) -> io::Result<std::net::TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// # Panics
/// Outside of a tokio runtime.
pub(crate) fn adopt(listener: std::net::TcpListener) -> TcpListener {
    TcpListener::from_std(listener).expect("a listener that does not block, within a runtime")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_comes_back_and_ends() {
        let server = EchoServer::start(None, "echo-1", &["127.0.0.1:0".parse().unwrap()]).unwrap();
        for bytes in [0, 1, 100_000, 3_000_000] {
            let report = exchange(None, &Exchange::new(server.addresses()[0], 5, bytes)).unwrap();
            assert_eq!((report.backend.as_str(), report.bytes), ("echo-1", bytes));
        }
    }

    #[test]
    fn a_server_that_goes_away_is_an_error_with_its_place() {
        let server = EchoServer::start(None, "echo-1", &["127.0.0.1:0".parse().unwrap()]).unwrap();
        let target = server.addresses()[0];
        let client =
            std::thread::spawn(move || exchange(None, &Exchange::new(target, 5, u64::MAX)));
        std::thread::sleep(Duration::from_millis(50));
        drop(server);
        let error = format!("{:#}", client.join().unwrap().unwrap_err());
        assert!(error.contains("seed 5"), "{error}");
        assert!(error.contains(" at ") || error.contains("ended"), "{error}");
    }
}
