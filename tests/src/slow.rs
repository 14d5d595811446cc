//! slowhttptest in all its modes against a proxy, and what a client that behaves meets before and meanwhile.
//!
//! `cargo xtask test --full` and `cargo xtask bench slow` install what it takes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;

use crate::netns::NsHandle;
use crate::process::Process;
use crate::web::{Haproxy, WebPlan, WebSite};

/// How long the proxies wait for heads and bodies, and for clients to take what they asked for: longer than is measured.
const TIMEOUT: Duration = Duration::from_secs(13);
/// A percentile is of so much time, and there are some of them.
const WINDOW: Duration = Duration::from_secs(2);
const QUIET: u32 = 3;
const MEANWHILE: u32 = 5;
/// In seconds; by then all have had their end.
const LONGEST: u64 = 60;
/// From one request of the well-behaved client to the next: 400 in a window.
const PACE: Duration = Duration::from_millis(5);
const PATIENCE: Duration = Duration::from_secs(10);
/// Until all slow connections have had their end.
const LATE: Duration = Duration::from_secs(LONGEST + 10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Another line of the head each second.
    Head,
    /// A little more of the body after a pause that is too long.
    Body,
    /// Some 3,000 ranges, which are more than a head may hold. They are answered at once: there are always new ones.
    Ranges,
    /// Five bytes each second of an answer of a megabyte, through a small window.
    Read,
}

impl Mode {
    pub const ALL: [Self; 4] = [Self::Head, Self::Body, Self::Ranges, Self::Read];

    fn path(self) -> &'static str {
        match self {
            Self::Head => "/hints",
            Self::Body | Self::Ranges => "/echo",
            Self::Read => "/large",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Head => &["-H", "-r", "500", "-i", "1"],
            Self::Body => &["-B", "-r", "500", "-i", "15", "-s", "8192"],
            Self::Ranges => &["-R", "-r", "100", "-a", "10", "-b", "3000"],
            Self::Read => &["-X", "-r", "500", "-w", "128", "-y", "256", "-z", "5", "-n", "1"],
        }
    }

    /// How those of its connections end that the sidecar gives up.
    fn counter(self) -> &'static str {
        match self {
            Self::Head => "head_timeout",
            Self::Body => "body_timeout",
            Self::Ranges => "head_too_large",
            Self::Read => "write_timeout",
        }
    }

    /// Whether slowhttptest sees the end: one that reads slowly has much to read before that.
    fn is_seen(self) -> bool {
        self != Self::Read
    }
}

/// The 99th percentiles of what a request takes, from the time when it is due to the end of its connection.
#[derive(Debug)]
pub struct Met {
    pub before: Vec<Duration>,
    pub meanwhile: Vec<Duration>,
}

/// A sidecar, and backends that can be asked for everything the modes ask for.
pub fn site() -> Result<WebSite> {
    let seconds = TIMEOUT.as_secs();
    let tables = format!(
        "\n[service.http]\nconnect_timeout = \"30s\"\nhead_timeout = \"{seconds}s\"\nbody_timeout = \"{seconds}s\"\n"
    );
    WebPlan { tables, ..WebPlan::default() }.build()
}

/// HAProxy beside the sidecar, as patient, and where it listens.
pub fn haproxy(site: &WebSite) -> Result<(Haproxy, SocketAddr)> {
    site.haproxy(TIMEOUT)
}

/// Slow connections, all at a time.
#[derive(Clone, Copy, Debug)]
pub struct Attack {
    pub mode: Mode,
    pub connections: u64,
    /// Where alone it runs, if not anywhere with the lowest priority.
    pub cpu: Option<usize>,
}

impl Attack {
    /// On the sidecar. An error if one of them has not its end in time, if something is left of them, or if anybody was not
    /// served meanwhile.
    pub fn on_sidecar(&self, site: &WebSite) -> Result<Met> {
        let Self { mode, connections, .. } = *self;
        let counted = site.counted(mode.counter())?;
        let (met, slow) = self.on(site, site.listeners()[0])?;
        site.wait_counted(mode.counter(), counted + connections)?;
        if mode.is_seen() {
            slow.wait_for_line(LATE, |line| line.contains("No open connections left"))?;
            // It has looked at times whether it is still served, and tells in the end.
            let lines = slow.output();
            let probes = || lines.iter().filter(|line| line.contains("service available"));
            ensure!(probes().any(|line| line.contains("YES")), "{mode:?}: {lines:?}");
            ensure!(!probes().any(|line| line.contains("NO")), "{mode:?}: {lines:?}");
        }
        let deadline = Instant::now() + PATIENCE;
        while client_connections(site)? > 0 {
            ensure!(Instant::now() < deadline, "{mode:?}: {}", site.edge.status()?);
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(met)
    }

    /// On a proxy at this address, which may keep them. An error if anybody was not served meanwhile.
    pub fn on_other(&self, site: &WebSite, proxy: SocketAddr) -> Result<Met> {
        self.on(site, proxy).map(|(met, _slow)| met)
    }

    /// The process is there still: some modes do not end before it does.
    fn on(&self, site: &WebSite, target: SocketAddr) -> Result<(Met, Process)> {
        let client = site.lab.client(0);
        let before = percentiles(client, target, QUIET)?;
        let slow = self.start(client, target)?;
        let meanwhile = percentiles(client, target, MEANWHILE)?;
        Ok((Met { before, meanwhile }, slow))
    }

    /// The others are on machines of their own: what the attack itself costs is nobody's time.
    fn start(&self, client: &NsHandle, target: SocketAddr) -> Result<Process> {
        let Self { mode, connections, cpu } = *self;
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = client.command("taskset");
                command.args(["--cpu-list", &cpu.to_string()]);
                command
            }
            None => {
                let mut command = client.command("nice");
                command.args(["-n", "19"]);
                command
            }
        };
        command.arg("slowhttptest");
        command.args(["-c", &connections.to_string(), "-l", &LONGEST.to_string(), "-p", "10"]);
        command.args(mode.arguments()).args(["-u", &format!("http://{target}{}", mode.path())]);
        Process::spawn("slowhttptest", command)
    }
}

fn client_connections(site: &WebSite) -> Result<u64> {
    Ok(site.edge.status()?.workers().iter().map(|worker| worker.connections).sum())
}

fn percentiles(client: &NsHandle, target: SocketAddr, windows: u32) -> Result<Vec<Duration>> {
    (0..windows).map(|_| client.run(|| p99(target))).collect()
}

fn p99(target: SocketAddr) -> Result<Duration> {
    let start = Instant::now();
    let requests = WINDOW.as_millis().div_ceil(PACE.as_millis()) as u32;
    let request = |n: u32| -> Result<Duration> {
        let due: Instant = start + n * PACE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        get(target).context("the client that behaves")?;
        Ok(due.elapsed())
    };
    let mut took = (0..requests).map(request).collect::<Result<Vec<_>>>()?;
    took.sort_unstable();
    Ok(took[took.len() * 99 / 100])
}

fn get(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // In one piece: a second one would wait for the acknowledgement of the first.
    let request = format!("GET /echo HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    Ok(())
}
