//! The splice beside HAProxy, nginx, the relay and plain routing (`cargo xtask bench splice`).
//!
//! docs/benchmarks.md has the method and the results.

mod bulk;
mod clients;
mod echo;
mod handover;
mod memory;
mod table;
mod target;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tests::{
    bench::{backend, report::Report},
    privilege,
    process::open_many_files,
};

use crate::target::Target;

/// Measures spliced connections beside what else could carry them, in turn, on the same processors.
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
    /// What carries echoes, and idle connections
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "routed,spliced,relay,haproxy,haproxy-xdp,nginx"
    )]
    targets: Vec<Target>,
    /// Samples of each number
    #[arg(long)]
    rounds: Option<u32>,
    /// How long a sample of echoes takes
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<f64>,
    /// Connections with an echo under way
    #[arg(long, value_name = "N", default_value_t = 200)]
    clients: usize,
    /// Connections that are idle
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    connections: usize,
    /// Connections that are handed over as fast as it goes
    #[arg(long, value_name = "N")]
    handovers: Option<usize>,
    /// Bytes each way on bad wires, over all connections
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u64>,
    /// Threads of HAProxy, workers of nginx and of the sidecar
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
    /// Clients that are idle
    #[command(hide = true)]
    Clients {
        #[arg(long)]
        source: IpAddr,
        #[arg(long)]
        count: usize,
        targets: Vec<SocketAddr>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    /// Processor time of a 128-byte echo
    Echo,
    /// Memory of an idle connection
    Memory,
    /// How fast connections are handed over
    Handover,
    /// Throughput on wires that lose frames
    Bulk,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.role {
        Some(Role::Backend { addresses }) => {
            open_many_files()?;
            return backend::serve(addresses);
        }
        Some(Role::Clients { source, count, targets }) => {
            open_many_files()?;
            return clients::hold(*source, *count, targets.clone());
        }
        None => {}
    }
    privilege::require_root();
    open_many_files()?;
    let is_wanted = |what| arguments.only.is_empty() || arguments.only.contains(&what);
    let quick = arguments.quick;
    let mut report = Report::new(arguments.json);
    if is_wanted(What::Echo) {
        let rounds = arguments.rounds.unwrap_or(if quick { 3 } else { 9 });
        let seconds = arguments.seconds.unwrap_or(if quick { 1.5 } else { 4.0 });
        let plan = echo::Plan { clients: arguments.clients, rounds, seconds };
        echo::measure(&arguments.targets, arguments.threads, &plan, &mut report)?;
    }
    if is_wanted(What::Handover) {
        let count = arguments.handovers.unwrap_or(if quick { 4_000 } else { 15_000 });
        handover::measure(arguments.threads, count, if quick { 100 } else { 500 }, &mut report)?;
    }
    if is_wanted(What::Memory) {
        let plan = memory::Plan {
            connections: arguments.connections,
            rounds: arguments.rounds.unwrap_or(1),
            threads: arguments.threads,
        };
        memory::measure(&arguments.targets, &plan, &mut report)?;
    }
    if is_wanted(What::Bulk) {
        let bytes = arguments.bytes.unwrap_or(if quick { 64 << 20 } else { 1 << 30 });
        bulk::measure(bytes, arguments.rounds.unwrap_or(1), &mut report)?;
    }
    report.finish()
}
