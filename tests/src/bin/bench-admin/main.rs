//! What asking a busy edge costs (`cargo xtask bench admin`): its metrics with many backends, its flows with many
//! connections, while packets go on.
//!
//! docs/benchmarks.md has the method and the results.

mod flows;
mod metrics;
mod place;
mod stream;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use tests::{bench::Spread, privilege, process::open_many_files};

/// Measures answers of the admin API with the real agent in a network namespace.
#[derive(Parser)]
struct Arguments {
    /// What to measure; all if not given
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<What>,
    /// Samples of each number
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    /// Services; every second one is served by the sidecar
    #[arg(long, default_value_t = 100)]
    services: usize,
    /// Backends of each
    #[arg(long, default_value_t = 50)]
    backends: usize,
    /// Connections in the flow table
    #[arg(long, default_value_t = 100_000)]
    flows: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// GET /metrics
    Metrics,
    /// GET /v1/flows to its end, and `lb-agent flows --json`
    Flows,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    privilege::require_root();
    open_many_files()?;
    let is_wanted = |what| arguments.only.is_empty() || arguments.only.contains(&what);
    println!("{:<44} {:>10} {:>10} {:>10} {:>10}", "what", "median", "quartiles", "", "longest");
    if is_wanted(What::Metrics) {
        metrics::measure(arguments.services, arguments.backends, arguments.rounds)?;
    }
    if is_wanted(What::Flows) {
        flows::measure(arguments.flows, arguments.rounds)?;
    }
    Ok(())
}

/// Prints milliseconds, and whether their median is as promised.
fn report(what: &str, millis: Vec<f64>, promise: Option<f64>) {
    let longest = millis.iter().copied().fold(0.0, f64::max);
    let Spread { median, quartiles: [low, high] } = Spread::of(millis);
    let judged = match promise {
        Some(promise) if median <= promise => format!("reached: <= {promise} ms"),
        Some(promise) => format!("MISSED: <= {promise} ms"),
        None => String::new(),
    };
    println!("{what:<44} {median:>10.3} {low:>10.3} {high:>10.3} {longest:>10.3} {judged}");
}
