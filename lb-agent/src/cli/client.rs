//! Talks to an agent: over its Unix socket, or where somebody says so, over TCP.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use anyhow::{Context, Error, Result, anyhow, bail};
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
    header::{CONTENT_TYPE, HOST},
};
use hyper_util::rt::TokioIo;
use lb_agent::{bpf::lock::RUN_DIR, run, run::admin, sidecar::Directory};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

/// An agent that does not answer within this is not going to.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two tries to reach one that is not there.
const RETRY: Duration = Duration::from_millis(500);

const MEANWHILE: &str = "what its data plane does meanwhile: `lb-agent flows --edge NAME`";

/// Where the agent is.
#[derive(Args)]
pub struct Where {
    /// Configuration file of the edge; not needed where one edge runs
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    pub config: Option<PathBuf>,
    /// Unix socket of its agent
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Answer in JSON
    #[arg(long)]
    pub json: bool,
}

/// An agent's admin API.
pub struct Client {
    address: Address,
}

/// Where it is.
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => path.display().fmt(f),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

impl Client {
    pub fn new(at: &Where) -> Result<Self> {
        let socket = match (&at.socket, &at.config) {
            (Some(socket), _) => socket.clone(),
            (None, Some(file)) => {
                let edge = run::load_config(file)?.config.edge.name;
                admin::socket_path(Directory::of_edge(RUN_DIR.as_ref(), &edge).path())
            }
            (None, None) => the_only_one(Path::new(RUN_DIR))?,
        };
        Ok(Self { address: Address::Unix(socket) })
    }

    /// One that is asked over TCP, where nothing is changed without a token.
    pub fn over_tcp(address: SocketAddr) -> Self {
        Self { address: Address::Tcp(address) }
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(&Method::GET, path, None, PATIENCE)
    }

    /// Asks until there is an answer: an agent may end, and another one begin. `command` tells what waits, once.
    pub fn patiently<T: DeserializeOwned>(&self, path: &str, command: &str) -> T {
        let mut said = false;
        loop {
            match self.get(path) {
                Ok(answer) => return answer,
                Err(error) if !said => {
                    // Beside the answers, which may go into a pipe.
                    eprintln!("lb-agent {command}: waits for the agent: {error:#}");
                    said = true;
                }
                Err(_) => {}
            }
            thread::sleep(RETRY);
        }
    }

    /// Asks for a change.
    pub fn change(&self, method: &Method, path: &str, body: &Value) -> Result<Value> {
        self.ask(method, path, Some(body), PATIENCE)
    }

    /// Asks for what takes its time.
    pub fn change_within<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<T> {
        self.ask(&Method::POST, path, Some(body), patience)
    }

    /// Asks for lines that come for as long as there is something to say, and takes each.
    pub fn lines(
        &self,
        path: &str,
        body: &Value,
        mut take: impl FnMut(&str) -> Result<()>,
    ) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let at = &self.address;
            let asked = timeout(PATIENCE, self.send(&Method::POST, path, Some(body))).await;
            let mut response =
                asked.with_context(|| format!("{at}: no answer within {PATIENCE:?}"))??;
            let mut rest = Vec::new();
            while let Some(frame) = response.frame().await {
                let frame = frame.with_context(|| format!("{at}: the agent has ended"))?;
                rest.extend_from_slice(frame.data_ref().map_or(&[], |data| &**data));
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    take(&String::from_utf8_lossy(&rest[..end]))?;
                    rest.drain(..=end);
                }
            }
            Ok(())
        })
    }

    fn ask<T: DeserializeOwned>(
        &self,
        method: &Method,
        path: &str,
        body: Option<&Value>,
        patience: Duration,
    ) -> Result<T> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let at = &self.address;
        let answer = async { timeout(patience, self.request(method, path, body)).await };
        let body = runtime
            .block_on(answer)
            .with_context(|| format!("{at}: no answer within {patience:?}"))??;
        serde_json::from_slice(&body)
            .with_context(|| format!("{at}: the answer is not that of an agent of this version"))
    }

    async fn request(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Bytes> {
        Ok(self.send(method, path, body).await?.collect().await?.to_bytes())
    }

    /// The body of an answer that is no error.
    async fn send(&self, method: &Method, path: &str, body: Option<&Value>) -> Result<Incoming> {
        let mut sender = self.connect().await?;
        let text = body.map(ToString::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "edge")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(text)))?;
        let response = sender.send_request(request).await?;
        let code = response.status();
        if code.is_success() {
            return Ok(response.into_body());
        }
        let body = response.into_body().collect().await?.to_bytes();
        let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (problem["error"].as_str(), problem["remedy"].as_str()) {
            (Some(error), Some(remedy)) => bail!("{error}: {remedy}"),
            _ => bail!("{}: {code}: {}", self.address, String::from_utf8_lossy(&body)),
        }
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path).await;
                shake(stream.map_err(|error| self.nobody(&error))?).await
            }
            Address::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                shake(stream.map_err(|error| self.nobody(&error))?).await
            }
        }
    }

    fn nobody(&self, error: &io::Error) -> Error {
        let at = &self.address;
        let remedy = match at {
            Address::Unix(_) => {
                "run this as root, on the host of a running agent (`lb-agent run --config FILE`), or name its socket \
                 with --socket"
            }
            Address::Tcp(_) => {
                "start an agent with `lb-agent run --config FILE`, or name the address of its admin API with --admin"
            }
        };
        anyhow!("nobody answers at {at} ({error}): {remedy}; {MEANWHILE}")
    }
}

async fn shake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>> {
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // It ends with the body, or with this process.
    drop(tokio::spawn(connection));
    Ok(sender)
}

/// The socket of the edge that runs here, if it is one.
fn the_only_one(run_dir: &Path) -> Result<PathBuf> {
    let entries = fs::read_dir(run_dir).into_iter().flatten().flatten();
    let sockets = entries.map(|entry| admin::socket_path(&entry.path()));
    let mut sockets: Vec<_> = sockets.filter(|path| path.exists()).collect();
    sockets.sort();
    match sockets.as_slice() {
        [socket] => Ok(socket.clone()),
        [] => bail!(
            "no agent runs here, as far as this user may see: there is no socket below {}; run this as root, or name \
             the socket with --socket; {MEANWHILE}",
            run_dir.display()
        ),
        several => {
            let shown: Vec<_> = several.iter().map(|it| it.display().to_string()).collect();
            bail!(
                "several edges run here; name one with --config or --socket: {}",
                shown.join(", ")
            )
        }
    }
}

/// A path of the API with names in it.
pub fn path(parts: &[&str]) -> String {
    let mut path = "/v1".to_owned();
    for part in parts {
        path.push('/');
        for byte in part.bytes() {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-' | b':' => {
                    path.push(char::from(byte));
                }
                _ => path += &format!("%{byte:02X}"),
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place_in_a_path() {
        assert_eq!(path(&["services", "a/b?c", "[::1]:80"]), "/v1/services/a%2Fb%3Fc/%5B::1%5D:80");
    }

    #[test]
    fn the_socket_is_found_where_one_edge_runs() {
        let run_dir = std::env::temp_dir().join(format!("sluice-client-{}", std::process::id()));
        let make = |edge: &str| {
            let socket = admin::socket_path(&run_dir.join(edge));
            fs::create_dir_all(socket.parent().unwrap()).unwrap();
            fs::write(&socket, "").unwrap();
            socket
        };
        assert!(the_only_one(&run_dir).unwrap_err().to_string().contains("no agent runs here"));
        let first = make("e1");
        assert_eq!(the_only_one(&run_dir).unwrap(), first);
        let second = make("e2").display().to_string();
        assert!(the_only_one(&run_dir).unwrap_err().to_string().contains(&second));
        fs::remove_dir_all(run_dir).unwrap();
    }
}
