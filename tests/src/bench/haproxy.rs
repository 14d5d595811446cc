//! HAProxy, set up as its manual advises for this job.

use std::{
    fmt::Write as _,
    fs,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use crate::{owner::OwnedDir, process::Process};
use anyhow::{Result, bail};
use nix::sys::resource::{Resource, getrlimit};

use crate::bench::site::{Site, VIP, VIP_PORT};

const SOON: Duration = Duration::from_secs(5);
/// Descriptors that are not for connections.
const OTHER_FILES: u64 = 500;

/// A running one.
pub struct Haproxy {
    pub process: Process,
    _scratch: OwnedDir,
}

/// How large its buffers are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Buffers {
    /// 16 KiB.
    Default,
    /// What one sets to save memory.
    Small,
}

/// Most connections: each takes two descriptors, and all threads are of one process.
pub fn most_connections() -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok((hard - OTHER_FILES) / 2)
}

impl Haproxy {
    pub fn start(site: &Site, threads: u32, buffers: Buffers) -> Result<Self> {
        Self::serve(site, threads, buffers, None)
    }

    /// With TLS 1.3 and HTTP/2. The file has the certificate and its key.
    pub fn secure(site: &Site, threads: u32, certificate: &Path) -> Result<Self> {
        Self::serve(site, threads, Buffers::Default, Some(certificate))
    }

    fn serve(site: &Site, threads: u32, buffers: Buffers, tls: Option<&Path>) -> Result<Self> {
        site.edge.ip(&format!("address replace {VIP}/32 dev lo"))?;
        let scratch = OwnedDir::scratch("haproxy")?;
        let file = scratch.path().join("haproxy.cfg");
        fs::write(&file, config(site, threads, buffers, tls)?)?;
        let mut command = site.edge.command("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        let mut process = Process::spawn("haproxy", command)?;
        let deadline = Instant::now() + SOON;
        while site.client.run(|| TcpStream::connect((VIP, VIP_PORT))).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                bail!("haproxy does not listen; it said:\n{}", process.output().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { process, _scratch: scratch })
    }
}

/// Stickiness by an inserted cookie, probes, the client's address for the backend; no log.
///
/// `http-reuse always`, as the sidecar shares its connections to backends among clients.
fn config(site: &Site, threads: u32, buffers: Buffers, tls: Option<&Path>) -> Result<String> {
    // Tickets are its default.
    let tls = tls.map_or(String::new(), |file| {
        format!(" ssl crt {} ssl-min-ver TLSv1.3 alpn h2,http/1.1", file.display())
    });
    let tune = match buffers {
        Buffers::Default => "",
        Buffers::Small => "tune.bufsize 4096\n    tune.maxrewrite 1024",
    };
    let mut config = format!(
        "global
    nbthread {threads}
    maxconn {}
    {tune}
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    timeout http-keep-alive 60s
    timeout tunnel 1h
    option forwardfor
    http-reuse always
frontend chat
    bind {VIP}:{VIP_PORT}{tls}
    default_backend chat
backend chat
    balance roundrobin
    cookie SRV insert indirect nocache
",
        most_connections()?
    );
    for (n, address) in site.backends().iter().enumerate() {
        writeln!(config, "    server chat-{n} {address} check inter 5s cookie chat-{n}")?;
    }
    Ok(config)
}
