//! What clients that are slow on purpose cost those who are not (`cargo xtask bench slow`).
//!
//! slowhttptest in each of its modes, in turns against the sidecar and HAProxy, and a client that behaves: before, and
//! meanwhile. docs/benchmarks.md has the results.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use tests::{
    bench::{Spread, report::Report},
    cpus, privilege,
    process::open_many_files,
    slow::{self, Attack, Met, Mode},
};

/// The 99th percentile meanwhile, to that before.
const TARGET: f64 = 2.0;
const UNIT: [&str; 2] = ["p99 of the sidecar, ms", "p99 of HAProxy, ms"];

/// Measures what slow clients cost the others.
///
/// The attack runs on the last CPU, all else on the others: attackers have machines of their own, and what theirs have to
/// do is nobody's time. With one CPU alone it runs there, at the lowest priority.
#[derive(Parser)]
struct Arguments {
    /// Rounds of all modes
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Slow connections at a time
    #[arg(long, default_value_t = 1_000)]
    connections: u64,
    /// Measure only these, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<Mode>,
    /// The attack shares all CPUs, at the lowest priority
    #[arg(long)]
    share: bool,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

/// Of one mode and proxy, in milliseconds.
#[derive(Default)]
struct Percentiles {
    before: Vec<f64>,
    meanwhile: Vec<f64>,
}

impl Percentiles {
    fn add(&mut self, met: &Met) {
        let millis = |all: &[Duration]| -> Vec<f64> {
            all.iter().map(|it| it.as_secs_f64() * 1e3).collect()
        };
        self.before.extend(millis(&met.before));
        self.meanwhile.extend(millis(&met.meanwhile));
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    privilege::require_root();
    open_many_files()?;
    let cpu = if arguments.share { None } else { leave_one_cpu()? };
    let site = slow::site()?;
    let (_haproxy, other) = slow::haproxy(&site)?;
    let only = &arguments.only;
    let chosen = Mode::ALL.into_iter().filter(|it| only.is_empty() || only.contains(it));
    let mut met: Vec<_> = chosen.map(|mode| (mode, <[Percentiles; 2]>::default())).collect();
    for _ in 0..arguments.rounds {
        for (mode, [sidecar, haproxy]) in &mut met {
            let attack = Attack { mode: *mode, connections: arguments.connections, cpu };
            sidecar.add(&attack.on_sidecar(&site)?);
            haproxy.add(&attack.on_other(&site, other).context("HAProxy")?);
        }
    }
    let mut report = Report::new(arguments.json);
    for (mode, proxies) in met {
        for (unit, Percentiles { before, meanwhile }) in UNIT.into_iter().zip(proxies) {
            report.number(mode, unit, "before", Spread::of(before));
            report.number(mode, unit, "meanwhile", Spread::of(meanwhile));
            let promise = (unit == UNIT[0]).then_some(("<=", TARGET));
            report.ratio(mode, unit, ["meanwhile", "before"], promise);
        }
    }
    report.finish()
}

/// Keeps this process, and what it starts, off the last CPU; says which one that is.
fn leave_one_cpu() -> Result<Option<usize>> {
    let mut others = cpus::allowed()?;
    let last = others.pop();
    if others.is_empty() {
        eprintln!("only one CPU: the attack shares it, at the lowest priority");
        return Ok(None);
    }
    cpus::keep_to(&others)?;
    Ok(last)
}
