//! What clients that are slow on purpose cost those who are not (`cargo xtask bench slow`).
//!
//! slowhttptest in each of its modes, in turns, and a client that behaves: before, and meanwhile. docs/benchmarks.md has
//! the results.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use tests::{
    bench::{Spread, report::Report},
    privilege,
    process::open_many_files,
    slow::{self, Mode},
};

/// The 99th percentile meanwhile, to that before.
const TARGET: f64 = 2.0;
const UNIT: &str = "ms, 99th percentile";

/// Measures what slow clients cost the others.
#[derive(Parser)]
struct Arguments {
    /// Rounds of all modes
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Slow connections at a time
    #[arg(long, default_value_t = 1_000)]
    connections: u64,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    privilege::require_root();
    open_many_files()?;
    let site = slow::site()?;
    let mut met = Mode::ALL.map(|mode| (mode, Vec::new(), Vec::new()));
    for _ in 0..arguments.rounds {
        for (mode, before, meanwhile) in &mut met {
            let more = slow::attack(&site, *mode, arguments.connections)?;
            before.extend(more.before.into_iter().map(millis));
            meanwhile.extend(more.meanwhile.into_iter().map(millis));
        }
    }
    let mut report = Report::new(arguments.json);
    for (mode, before, meanwhile) in met {
        report.number(mode, UNIT, "before", Spread::of(before));
        report.number(mode, UNIT, "meanwhile", Spread::of(meanwhile));
        report.ratio(mode, UNIT, ["meanwhile", "before"], Some(("<=", TARGET)));
    }
    report.finish()
}

fn millis(it: Duration) -> f64 {
    it.as_secs_f64() * 1e3
}
