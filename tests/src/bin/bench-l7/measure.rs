//! Rounds in which the targets take turns, so that whatever disturbs the machine disturbs all of them.

use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use tests::bench::load::{self, Effort, Page, Sample};

use crate::target::{Running, Target};

/// After it a proxy has given back what it needed for handshakes and messages.
const SETTLE: Duration = Duration::from_secs(2);
/// Connections that are opened and closed before memory is taken as the ground.
const FIRST: usize = 200;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// 128-byte messages, echoed, on upgraded connections
    Relay,
    /// Connect, upgrade, close
    Handshakes,
    /// GET requests on connections that stay open
    Plain,
    /// The same for a megabyte each
    Large,
    /// Upgraded connections that are silent: memory
    Idle,
}

/// Clients of each load.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Clients {
    pub relay: usize,
    pub handshakes: usize,
    pub plain: usize,
    pub large: usize,
    pub idle: usize,
}

/// Samples of each target, in the targets' order.
pub fn rounds(
    running: &[Running],
    load: Load,
    clients: &Clients,
    effort: &Effort,
    rounds: u32,
) -> Result<Vec<Vec<Sample>>> {
    let mut samples = vec![Vec::new(); running.len()];
    for _ in 0..rounds {
        for (target, samples) in running.iter().zip(&mut samples) {
            samples.push(one(target, load, clients, effort).with_context(|| {
                format!("{load:?} through {}; it said:\n{}", target.target.name(), target.said())
            })?);
        }
    }
    Ok(samples)
}

fn one(target: &Running, load: Load, clients: &Clients, effort: &Effort) -> Result<Sample> {
    let Running { site, entrance, account, .. } = target;
    site.client.run(|| match load {
        Load::Relay => load::relay(load::open(entrance, clients.relay)?, effort, account),
        Load::Handshakes => load::handshakes(entrance, clients.handshakes, effort, account),
        Load::Plain => load::plain(entrance, Page::short(), clients.plain, effort, account),
        Load::Large => load::plain(entrance, Page::large(), clients.large, effort, account),
        Load::Idle => unreachable!("memory is measured on targets of its own"),
    })
}

/// What a silent connection takes of a proxy's memory, in bytes. The proxy is a fresh one.
pub fn idle(target: Target, threads: u32, connections: usize) -> Result<f64> {
    let running = Running::start(target, threads)?;
    let Running { site, entrance, account, .. } = &running;
    let measured = site.client.run(|| {
        drop(load::Echoes::start(load::open(entrance, FIRST)?)?.finish()?);
        std::thread::sleep(SETTLE);
        let before = account.memory()?;
        // Each has carried a message, as any real one.
        let open = load::Echoes::start(load::open(entrance, connections)?)?.finish()?;
        std::thread::sleep(SETTLE);
        let after = account.memory()?;
        // And none has been lost.
        load::Echoes::start(open)?.finish()?;
        anyhow::Ok((after as f64 - before as f64) / connections as f64)
    });
    measured.with_context(|| {
        format!("{connections} connections through {}; it said:\n{}", target.name(), running.said())
    })
}
