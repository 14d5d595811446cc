//! The sidecar beside HAProxy (`cargo xtask bench l7`).
//!
//! ```text
//! clients (one thread) -> proxy in its namespace -> echo server (one process)
//! ```
//! docs/benchmarks.md has the method and the results.

mod measure;
mod report;
mod target;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand, ValueEnum};
use tests::{
    bench::{Spread, backend, haproxy, load::Effort},
    privilege,
};

use crate::{
    measure::{Clients, Load},
    report::Line,
    target::{Running, Target},
};

/// Measures the sidecar beside HAProxy, in turn, on the same processors.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Fewer and shorter rounds: a first impression
    #[arg(long)]
    quick: bool,
    /// What to measure
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "haproxy,haproxy-xdp,sluice,direct"
    )]
    proxies: Vec<Target>,
    /// What clients do; all if not given
    #[arg(long = "load", value_enum, value_delimiter = ',')]
    loads: Vec<Load>,
    /// Samples of each number
    #[arg(long)]
    rounds: Option<u32>,
    /// How long a sample takes
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Connections that relay messages
    #[arg(long, value_name = "N", default_value_t = 200)]
    relay_clients: usize,
    /// Handshakes, and plain requests, that are under way at a time
    #[arg(long, value_name = "N", default_value_t = 100)]
    clients: usize,
    /// Requests for a megabyte that are under way at a time
    #[arg(long, value_name = "N", default_value_t = 20)]
    large_clients: usize,
    /// Connections that are silent
    #[arg(long, value_name = "N")]
    idle_clients: Option<usize>,
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

impl Arguments {
    fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 3 } else { 9 }).max(1)
    }

    fn effort(&self) -> Effort {
        let seconds = self.seconds.unwrap_or(if self.quick { 1.2 } else { 4.0 });
        Effort {
            warm_up: Duration::from_millis(if self.quick { 200 } else { 1000 }),
            time: Duration::from_secs_f64(seconds),
        }
    }

    fn loads(&self) -> Vec<Load> {
        if self.loads.is_empty() { Load::value_variants().to_vec() } else { self.loads.clone() }
    }

    fn clients(&self) -> Result<Clients> {
        // HAProxy is one process, so that its limit of descriptors is everybody's.
        let most = haproxy::most_connections()?.min(15_000) as usize;
        let idle = self.idle_clients.unwrap_or(if self.quick { 4000 } else { most });
        ensure!(idle <= most, "{idle} silent connections: HAProxy has descriptors for {most}");
        Ok(Clients {
            relay: self.relay_clients,
            handshakes: self.clients,
            plain: self.clients,
            large: self.large_clients,
            idle,
        })
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Role::Backend { addresses }) = &arguments.role {
        return backend::serve(addresses);
    }
    privilege::require_root();
    let (clients, effort) = (arguments.clients()?, arguments.effort());
    let mut all = Vec::new();
    let mut keep = |lines: Vec<Line>| {
        if !arguments.json {
            report::print(&lines);
        }
        all.extend(lines);
    };
    if !arguments.json {
        report::head();
    }
    let loads = arguments.loads();
    let start = |target: &Target| Running::start(*target, arguments.threads);
    let running = arguments.proxies.iter().map(start).collect::<Result<Vec<_>>>()?;
    for &load in loads.iter().filter(|load| **load != Load::Idle) {
        let samples = measure::rounds(&running, load, &clients, &effort, arguments.rounds())?;
        let of =
            |(target, samples): (&Running, &Vec<_>)| report::lines(load, target.target, samples);
        keep(running.iter().zip(&samples).flat_map(of).collect());
    }
    drop(running);
    if loads.contains(&Load::Idle) {
        keep(idle(&arguments, &clients)?);
    }
    if arguments.json {
        println!(
            "{}",
            serde_json::to_string_pretty(
                &serde_json::json!({ "clients": clients, "numbers": all })
            )?
        );
    }
    Ok(())
}

/// Memory spreads little: fewer rounds will do.
fn idle(arguments: &Arguments, clients: &Clients) -> Result<Vec<Line>> {
    let rounds = if arguments.quick { 1 } else { 3.min(arguments.rounds()) };
    let targets = arguments.proxies.iter().filter(|target| **target != Target::Direct);
    let line = |&target: &Target| {
        let one = |_| measure::idle(target, arguments.threads, clients.idle);
        let spread = Spread::of((0..rounds).map(one).collect::<Result<_>>()?);
        Ok(Line { load: Load::Idle, what: "bytes/connection", target, spread })
    };
    targets.map(line).collect()
}
