//! What was measured, for people and for programs.

use serde::Serialize;
use tests::bench::{Spread, load::Sample};

use crate::{measure::Load, target::Target};

/// One number of one target.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    pub load: Load,
    pub what: &'static str,
    pub target: Target,
    #[serde(flatten)]
    pub spread: Spread,
}

/// The numbers that some samples of a target give.
pub fn lines(load: Load, target: Target, samples: &[Sample]) -> Vec<Line> {
    let (rate, machine, proxy) = match load {
        Load::Relay => ("messages/s", "us machine/message", "us proxy/message"),
        Load::Handshakes => ("handshakes/s", "us machine/handshake", "us proxy/handshake"),
        Load::Plain => ("requests/s", "us machine/request", "us proxy/request"),
        Load::Large => ("MiB/s", "us machine/MiB", "us proxy/MiB"),
        Load::Idle => unreachable!("memory has no rate"),
    };
    let of = |what, number: fn(&Sample) -> f64| Line {
        load,
        what,
        target,
        spread: Spread::of(samples.iter().map(number).collect()),
    };
    vec![
        of(rate, |it| it.done as f64 / it.expense.elapsed.as_secs_f64()),
        of(machine, |it| it.expense.machine.as_secs_f64() * 1e6 / it.done as f64),
        of(proxy, |it| it.expense.processes.as_secs_f64() * 1e6 / it.done as f64),
    ]
}

pub fn head() {
    println!(
        "load         what                     target              median          quartiles   of haproxy  of haproxy-xdp"
    );
}

/// Prints the lines of one load, number by number.
pub fn print(lines: &[Line]) {
    let mut whats: Vec<&str> = Vec::new();
    for line in lines {
        if !whats.contains(&line.what) {
            whats.push(line.what);
        }
    }
    for what in whats {
        let of_what: Vec<&Line> = lines.iter().filter(|line| line.what == what).collect();
        let of = |line: &Line, other: Target| {
            let other = of_what.iter().find(|it| it.target == other);
            let ratio = other.map(|it| format!("{:.2}", line.spread.median / it.spread.median));
            ratio.unwrap_or_else(|| "-".to_owned())
        };
        for line in &of_what {
            println!(
                "{:<12} {:<24} {:<14} {:>11} {:>9} {:>9} {:>12} {:>15}",
                format!("{:?}", line.load).to_lowercase(),
                line.what,
                line.target.name(),
                number(line.spread.median),
                number(line.spread.quartiles[0]),
                number(line.spread.quartiles[1]),
                of(line, Target::Haproxy),
                of(line, Target::HaproxyXdp),
            );
        }
    }
}

fn number(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
