//! TLS and HTTP/2 in the sidecar beside HAProxy (`cargo xtask bench tls`).
//!
//! docs/benchmarks.md has the method and the results.

mod measure;
mod target;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tests::{
    bench::{backend, haproxy, load::Effort, report::Report, tls::Identity},
    privilege,
    process::open_many_files,
};

use crate::target::{Running, Target};

/// Measures TLS and HTTP/2 in the sidecar beside HAProxy, in turn, on the same processors.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Fewer and shorter rounds: a first impression
    #[arg(long)]
    quick: bool,
    /// What to measure; all if not given
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<What>,
    /// Who serves
    #[arg(long, value_enum, value_delimiter = ',', default_value = "haproxy,haproxy-xdp,sluice")]
    targets: Vec<Target>,
    /// Samples of each number
    #[arg(long)]
    rounds: Option<u32>,
    /// How long a sample takes
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Handshakes that are under way at a time
    #[arg(long, value_name = "N", default_value_t = 100)]
    handshakes: usize,
    /// Connections with an echo under way
    #[arg(long, value_name = "N", default_value_t = 200)]
    echoes: usize,
    /// Connections of HTTP/2 with requests under way
    #[arg(long, value_name = "N", default_value_t = 20)]
    http2: usize,
    /// Requests under way on each of these
    #[arg(long, value_name = "N", default_value_t = 10)]
    streams: usize,
    /// Connections that are silent
    #[arg(long, value_name = "N")]
    idle: Option<usize>,
    /// Threads of HAProxy, workers of the sidecar
    #[arg(long, value_name = "N", default_value_t = 2)]
    threads: u32,
    /// The results as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Role {
    /// The echo server behind the proxies
    #[command(hide = true)]
    Backend { addresses: Vec<SocketAddr> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Full handshakes of TLS 1.3
    Full,
    /// Resumed handshakes of TLS 1.3
    Resumed,
    /// 128-byte messages, echoed, over `wss`
    Echo,
    /// GET requests over HTTP/2
    Http2,
    /// Upgraded connections that are silent: memory
    IdleWss,
    /// HTTP/2 connections that are silent: memory
    IdleHttp2,
}

impl What {
    fn is_memory(self) -> bool {
        matches!(self, Self::IdleWss | Self::IdleHttp2)
    }

    /// A rate, and the processor time of one, of the machine and of the proxy.
    pub fn units(self) -> [&'static str; 3] {
        match self {
            Self::Full | Self::Resumed => {
                ["handshakes/s", "us machine/handshake", "us proxy/handshake"]
            }
            Self::Echo => ["messages/s", "us machine/message", "us proxy/message"],
            _ => ["requests/s", "us machine/request", "us proxy/request"],
        }
    }
}

/// What clients do.
#[derive(Clone, Copy, Debug)]
pub struct Clients {
    pub handshakes: usize,
    pub echo: usize,
    pub http2: usize,
    pub streams: usize,
    pub idle: usize,
    pub threads: u32,
}

/// Most bytes of an idle `wss` connection.
const MOST_BYTES: f64 = 16.0 * 1024.0;

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    open_many_files()?;
    if let Some(Role::Backend { addresses }) = &arguments.role {
        return backend::serve(addresses);
    }
    privilege::require_root();
    let quick = arguments.quick;
    let effort = Effort {
        warm_up: Duration::from_millis(if quick { 200 } else { 500 }),
        time: Duration::from_secs_f64(arguments.seconds.unwrap_or(if quick { 1.2 } else { 2.5 })),
    };
    let clients = Clients {
        handshakes: arguments.handshakes,
        echo: arguments.echoes,
        http2: arguments.http2,
        streams: arguments.streams,
        idle: arguments.idle.unwrap_or(if quick { 2_000 } else { 5_000 }),
        threads: arguments.threads,
    };
    let most = haproxy::most_connections()? as usize;
    ensure!(clients.idle <= most, "HAProxy has descriptors for {most} silent connections");
    let wanted = What::value_variants().iter().copied();
    let wanted = wanted.filter(|it| arguments.only.is_empty() || arguments.only.contains(it));
    let (memory, rates): (Vec<What>, Vec<What>) = wanted.partition(|it| it.is_memory());

    let identity = Identity::new()?;
    let mut report = Report::new(arguments.json);
    if !rates.is_empty() {
        let start = |target: &Target| Running::start(*target, arguments.threads, &identity);
        let running = arguments.targets.iter().map(start).collect::<Result<Vec<_>>>()?;
        let rounds = arguments.rounds.unwrap_or(if quick { 3 } else { 9 }).max(1);
        for what in rates {
            measure::rates(&running, what, &clients, &effort, rounds, &mut report)?;
        }
    }
    for &what in &memory {
        let rounds = arguments.rounds.unwrap_or(if quick { 1 } else { 3 }).clamp(1, 3);
        measure::memory(&arguments.targets, what, &clients, &identity, rounds, &mut report)?;
    }
    judge(&mut report);
    report.finish()
}

/// Holds what was measured against HAProxy, and against what was promised.
fn judge(report: &mut Report<What>) {
    for what in What::value_variants().iter().copied().filter(|it| !it.is_memory()) {
        let promised = what != What::Http2;
        let [rate, machine, proxy] = what.units();
        for (unit, promise) in [(rate, (">=", 1.0)), (machine, ("<=", 1.0)), (proxy, ("<=", 1.0))] {
            // Of handshakes only the rate was promised.
            let promised = promised && (unit == rate || what == What::Echo);
            report.ratio(what, unit, ["sluice", "haproxy"], promised.then_some(promise));
            report.ratio(what, unit, ["sluice", "haproxy-xdp"], None);
        }
    }
    for what in [What::IdleWss, What::IdleHttp2] {
        let promise = (what == What::IdleWss).then_some(("<=", 1.0));
        report.ratio(what, measure::BYTES, ["sluice", "haproxy"], promise);
    }
    report.bound(What::IdleWss, measure::BYTES, "sluice", ("<=", MOST_BYTES));
}
