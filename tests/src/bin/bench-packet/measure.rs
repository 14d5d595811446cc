//! Measuring: program and floor in turn, and proof that nothing but forwarding was measured.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lb_agent::bpf::sys::now_ticks;
use serde::Serialize;

use crate::{
    driver::{Driver, Order, TRANSMIT, template, warm_up},
    edge::{self, Edge},
    frame::{self, Frame},
    scenario::{self, Scenario, TO_CLIENTS, backend_of},
};

/// Packets that are looked at one by one before anything is timed.
const LOOKED_AT: u32 = 32;

/// How much is measured, and how.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    pub rounds: u32,
    /// Packets of one sample.
    pub packets: u32,
    pub warm_up: Duration,
    pub order: Order,
}

/// The middle of some samples and how far they spread, in nanoseconds a packet.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub quartiles: [f64; 2],
}

impl Spread {
    fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize];
        Self { median: at(0.5), quartiles: [at(0.25), at(0.75)] }
    }
}

/// Measures the floor and every data plane, one after the other in each round, so that whatever
/// disturbs the machine disturbs all of them. The floor comes first in the result.
pub fn interleaved(
    driver: &mut Driver,
    edges: &mut [Edge],
    scenario: Scenario,
    flows: u32,
    effort: &Effort,
) -> Result<Vec<Spread>> {
    driver.send(scenario, flows, effort.order)?;
    for edge in edges.iter_mut() {
        driver.put(Some(edge.program()))?;
        look(driver, edge, scenario)?;
        edge.clear_counters()?;
    }
    let mut sent = vec![0; edges.len()];
    for (edge, sent) in edges.iter().zip(&mut sent) {
        driver.put(Some(edge.program()))?;
        let step = || {
            *sent += u64::from(effort.packets);
            driver.many(scenario, effort.packets).map(drop)
        };
        warm_up(step, effort.warm_up)?;
    }
    let mut samples = vec![Vec::new(); edges.len() + 1];
    for _ in 0..effort.rounds {
        driver.put(None)?;
        samples[0].push(driver.many(scenario, effort.packets)?);
        for (n, edge) in edges.iter().enumerate() {
            driver.put(Some(edge.program()))?;
            samples[n + 1].push(driver.many(scenario, effort.packets)?);
            sent[n] += u64::from(effort.packets);
        }
    }
    for (edge, sent) in edges.iter().zip(sent) {
        let forwarded = edge.forwarded(scenario)?;
        ensure!(
            forwarded == sent,
            "{}: {sent} packets were sent and {forwarded} forwarded: this measured something else",
            scenario.name()
        );
    }
    Ok(samples.into_iter().map(Spread::of).collect())
}

/// Looks at some packets: verdict, every byte, counters and the flow's own record.
fn look(driver: &mut Driver, edge: &mut Edge, scenario: Scenario) -> Result<()> {
    edge.clear_counters()?;
    for n in 1..=LOOKED_AT {
        let sent = driver.one(scenario)?;
        let context = || format!("{}: packet of flow {}", scenario.name(), sent.flow);
        if sent.verdict != TRANSMIT {
            let drops = edge.forwarded(scenario).err();
            bail!("{}: verdict {}, wanted XDP_TX; {drops:?}", context(), sent.verdict);
        }
        let (original, expected) = expected(scenario, sent.flow);
        let received = Frame { bytes: sent.bytes, ..expected };
        expected.check(&received, &original).map_err(anyhow::Error::msg).with_context(context)?;
        let forwarded = edge.forwarded(scenario).with_context(context)?;
        ensure!(forwarded == u64::from(n), "{}: {forwarded} counted, not {n}", context());
        let (seen, packets) = edge.seen(scenario, sent.flow)?;
        let ago = now_ticks().wrapping_sub(seen);
        ensure!(ago < 8 && packets > 0, "{}: seen {ago} ticks ago, {packets} packets", context());
    }
    Ok(())
}

/// A flow's packet with the checksums of the driver's template, and what must become of it.
fn expected(scenario: Scenario, flow: u32) -> (Frame, Frame) {
    let (_, after) = scenario.flow(flow);
    let original = template(scenario, flow).with_checksums_of(&template(scenario, 0));
    let next_hop = if scenario.is_back() { TO_CLIENTS } else { backend_of(flow) };
    let link = edge::link_of(next_hop);
    let forwarded = frame::forwarded(&frame::segment(link, &after));
    let forwarded = frame::renumbered(&forwarded, scenario.deltas());
    if scenario.forward() != lb_common::flow::forward::IPIP {
        return (original, forwarded);
    }
    let v4 = scenario.backends_are_ipv4();
    let to = scenario::backend(v4, backend_of(flow));
    (original, frame::tunnelled(&forwarded, scenario::tunnel_source(v4), to))
}
