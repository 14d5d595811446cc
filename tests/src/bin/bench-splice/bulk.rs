//! Throughput through a splice on wires that delay, lose and reorder, beside routed packets on the same wires.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::Result;
use tests::{
    bench::{Spread, report::Report},
    pipe::{Dial, Terms},
    seed::seed,
    spliced::{SplicedPlan, SplicedSite, Watch},
};

use crate::What;

/// At a time: one alone would mostly wait on such wires.
const CONNECTIONS: u64 = 32;
/// Each way.
const DELAY: Duration = Duration::from_millis(25);
/// Share of frames lost, and as many reordered, in per cent.
const LOST: f64 = 1.0;
const SPLICED: Duration = Duration::from_secs(30);
const BACKEND_PORT: u16 = 9080;

pub fn measure(bytes: u64, rounds: u32, report: &mut Report<What>) -> Result<()> {
    let site =
        SplicedPlan { wires: true, backends: 1, ..SplicedPlan::new(seed("bulk")) }.build()?;
    // The kernel would merge what it routes, and the wire lose whole bundles where it loses single segments of
    // the splice.
    for device in ["eth0", "eth1"] {
        let off = ["-K", device, "gro", "off", "gso", "off", "tso", "off"];
        site.lab.edge().exec("ethtool", &off)?;
    }
    let through = site.listeners()[0];
    let past = site.lab.backend(0).sockets(BACKEND_PORT)[0];
    site.rough(DELAY, LOST);
    let (mut spliced, mut routed) = (Vec::new(), Vec::new());
    for round in 0..u64::from(rounds) {
        routed.push(exchange(&site, past, None, bytes, 2 * round)?);
        let watch = Watch::start(site.edge.lister());
        spliced.push(exchange(&site, through, Some(watch), bytes, 2 * round + 1)?);
    }
    site.smooth();
    let unit = "MiB/s each way";
    report.number(What::Bulk, unit, "routed", Spread::of(routed));
    report.number(What::Bulk, unit, "spliced", Spread::of(spliced));
    report.ratio(What::Bulk, unit, ["spliced", "routed"], Some((">=", 0.9)));
    Ok(())
}

/// Opens all, and then has each send and take its share; in MiB a second.
fn exchange(
    site: &SplicedSite,
    target: SocketAddr,
    watch: Option<Watch>,
    bytes: u64,
    round: u64,
) -> Result<f64> {
    let (seed, share) = (site.seed, bytes / CONNECTIONS);
    let took = site.clients(0, async move |_| {
        let mut pipes = Vec::new();
        for number in 0..CONNECTIONS {
            let terms = Terms::awaited(seed, round * CONNECTIONS + number, share);
            pipes.push(Dial::new(target, terms).open().await?);
        }
        if let Some(watch) = watch {
            let opened = Instant::now();
            for pipe in &pipes {
                watch.spliced(pipe.local(), opened, SPLICED).await?;
            }
        }
        let start = Instant::now();
        let exchange = |pipe: tests::pipe::Pipe| tokio::task::spawn_local(pipe.exchange(share));
        let exchanges: Vec<_> = pipes.into_iter().map(exchange).collect();
        for exchange in exchanges {
            exchange.await??;
        }
        anyhow::Ok(start.elapsed())
    })?;
    Ok(bytes as f64 / f64::from(1 << 20) / took.as_secs_f64())
}
