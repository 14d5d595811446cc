//! HAProxy on either side of the edge, and in its place.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::netns::NsHandle;
use crate::owner::OwnedDir;
use crate::process::Process;

const SOON: Duration = Duration::from_secs(10);

/// A running one.
#[derive(Debug)]
pub struct Haproxy {
    _process: Process,
    _scratch: OwnedDir,
}

impl Haproxy {
    /// In front of the edge: passes connections on as they are, but for what `options` of its `server` lines put before.
    /// Each pair is an address of its own and one of the edge's.
    pub fn before(
        namespace: &NsHandle,
        ways: &[(SocketAddr, SocketAddr)],
        options: &str,
    ) -> Result<Self> {
        let mut sections = String::new();
        for (n, (own, edge)) in ways.iter().enumerate() {
            write!(
                sections,
                "listen way-{n}\n    mode tcp\n    bind {own}\n    server edge {edge} {options}\n"
            )?;
        }
        Self::start(namespace, &sections, ways[0].0)
    }

    /// Behind the edge, at the backend: takes off what `options` of its `bind` line say, and tells the application what it
    /// has learned of the connection's ends.
    pub fn behind(
        namespace: &NsHandle,
        port: u16,
        application: SocketAddr,
        options: &str,
    ) -> Result<Self> {
        let sections = format!(
            "listen gate
    mode http
    bind [::]:{port} v4v6 {options}
    http-request set-header X-Gate-Source %[src]
    http-request set-header X-Gate-Destination %[dst]:%[dst_port]
    server application {application}
"
        );
        Self::start(namespace, &sections, ([127, 0, 0, 1], port).into())
    }

    /// In place of the edge, before the same applications: whoever is slow to ask or to take has so much time. More of its
    /// connections to them are opened only when none is free, as with the sidecar.
    pub fn instead(
        namespace: &NsHandle,
        listens: SocketAddr,
        applications: &[SocketAddr],
        patience: Duration,
    ) -> Result<Self> {
        let seconds = patience.as_secs();
        let mut sections = format!(
            "listen web
    mode http
    bind {listens}
    http-reuse always
    timeout http-request {seconds}s
    timeout client {seconds}s
"
        );
        for (n, application) in applications.iter().enumerate() {
            writeln!(sections, "    server web-{n} {application}")?;
        }
        Self::start(namespace, &sections, listens)
    }

    fn start(namespace: &NsHandle, sections: &str, listens: SocketAddr) -> Result<Self> {
        let scratch = OwnedDir::scratch("haproxy")?;
        let file = scratch.path().join("haproxy.cfg");
        let always = "global
    maxconn 2000
defaults
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    timeout tunnel 1h
";
        fs::write(&file, format!("{always}{sections}"))?;
        let mut command = namespace.command("haproxy");
        command.args(["-db", "-f"]).arg(&file);
        let mut process = Process::spawn("haproxy", command)?;
        let deadline = Instant::now() + SOON;
        while namespace.run(|| TcpStream::connect(listens)).is_err() {
            if !process.is_running() || Instant::now() > deadline {
                bail!("haproxy does not listen; it said:\n{}", process.output().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self { _process: process, _scratch: scratch })
    }
}
