//! Processor time of echoes, in closed loops: rounds in which the targets take turns.

use std::time::Duration;

use anyhow::{Context, Result};
use tests::bench::{
    Spread,
    load::{self, Effort, Sample},
    report::Report,
};

use crate::{
    What,
    target::{Running, Target},
};

pub struct Plan {
    pub clients: usize,
    pub rounds: u32,
    pub seconds: f64,
}

pub fn measure(
    targets: &[Target],
    threads: u32,
    plan: &Plan,
    report: &mut Report<What>,
) -> Result<()> {
    let effort =
        Effort { warm_up: Duration::from_millis(300), time: Duration::from_secs_f64(plan.seconds) };
    let start = |target: &Target| Running::start(*target, threads, 1, plan.clients);
    let running = targets.iter().map(start).collect::<Result<Vec<_>>>()?;
    let mut samples = vec![Vec::new(); running.len()];
    for _ in 0..plan.rounds {
        for (target, samples) in running.iter().zip(&mut samples) {
            let sample = one(target, plan.clients, &effort);
            samples.push(sample.with_context(|| {
                format!("echoes through {}; it said:\n{}", target.target.name(), target.said())
            })?);
        }
    }
    type Number = fn(&Sample) -> f64;
    let numbers: [(&str, Number); 3] = [
        ("messages/s", |it| it.done as f64 / it.expense.elapsed.as_secs_f64()),
        ("us machine/message", |it| it.expense.machine.as_secs_f64() * 1e6 / it.done as f64),
        ("us proxy/message", |it| it.expense.processes.as_secs_f64() * 1e6 / it.done as f64),
    ];
    for (unit, number) in numbers {
        for (target, samples) in running.iter().zip(&samples) {
            let spread = Spread::of(samples.iter().map(number).collect());
            report.number(What::Echo, unit, target.target.name(), spread);
        }
    }
    report.ratio(What::Echo, "us machine/message", ["spliced", "routed"], Some(("<=", 1.05)));
    report.ratio(What::Echo, "messages/s", ["spliced", "haproxy"], Some((">=", 1.5)));
    report.ratio(What::Echo, "messages/s", ["spliced", "haproxy-xdp"], None);
    report.ratio(What::Echo, "messages/s", ["spliced", "nginx"], None);
    report.ratio(What::Echo, "messages/s", ["spliced", "relay"], None);
    Ok(())
}

fn one(target: &Running, clients: usize, effort: &Effort) -> Result<Sample> {
    let streams = target.site.client.run(|| load::open(&target.entrance(), clients))?;
    target.wait_spliced(clients)?;
    target.site.client.run(|| load::relay(streams, effort, &target.account))
}
