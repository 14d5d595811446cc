//! How fast connections go over from the sidecar to XDP.
//!
//! The table is watched from outside: from the 101 in the client's hands to the entry that carries the
//! connection, which has in it the wait for the first quiet moment, and from the entry that holds packets
//! back to that one. The hand-over itself is timed by the agent.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use tests::bench::{
    Spread,
    load::{self, Entrance},
    report::Report,
    site::{VIP, VIP_PORT},
};

use crate::{
    What,
    table::{Looker, Stage},
    target::{Running, Target},
};

/// From the offer's arrival at the agent to its answer.
const HANDOVER: &str = "us of a hand-over, at most";

/// A connection that is not spliced by then never will be.
const PATIENCE: Duration = Duration::from_secs(5);

pub fn measure(threads: u32, count: usize, single: usize, report: &mut Report<What>) -> Result<()> {
    let running = Running::start(Target::Spliced, threads, 1, count + single)?;
    let edge = running.edge().context("an edge")?;
    let looker = Looker::of(edge)?;
    let entrance = running.entrance();
    let listener = SocketAddrV4::new(VIP, VIP_PORT);
    let mut whole = Vec::new();
    let mut held = Vec::new();
    let times = running.site.client.run(|| -> Result<()> {
        for _ in 0..single {
            let (from_upgrade, hold) = one(&looker, &entrance, listener)?;
            whole.push(from_upgrade.as_secs_f64() * 1e6);
            held.extend(hold.map(|it| it.as_secs_f64() * 1e6));
        }
        Ok(())
    });
    times.with_context(|| format!("the agent said:\n{}", running.said()))?;
    report.number(What::Handover, "us from 101 to splice", "spliced", Spread::of(whole));
    // The look itself takes a microsecond or more: a short hold may go unseen.
    if !held.is_empty() {
        report.number(What::Handover, "us of hold", "spliced", Spread::of(held));
    }

    let start = Instant::now();
    let open = running.site.client.run(|| load::open(&entrance, count))?;
    let opened = start.elapsed();
    running.wait_spliced(count)?;
    let spliced = start.elapsed();
    drop(open);
    // The agent says between which bounds the median lies; the upper one is what is claimed.
    if let Some(micros) = edge.status()?.median_handover() {
        let at_most = Spread { median: micros, quartiles: [micros; 2] };
        report.number(What::Handover, HANDOVER, "spliced", at_most);
        report.bound(What::Handover, HANDOVER, "spliced", ("<=", 200.0));
    }
    let rate = |time: Duration| Spread::of(vec![count as f64 / time.as_secs_f64()]);
    report.number(What::Handover, "handshakes/s", "spliced", rate(opened));
    report.number(What::Handover, "hand-overs/s", "spliced", rate(spliced));
    report.bound(What::Handover, "hand-overs/s", "spliced", (">=", 5_000.0));
    Ok(())
}

/// One connection, with nobody else there: the time from the 101 to the splice, and that of the hold if it was seen.
fn one(
    looker: &Looker,
    entrance: &Entrance,
    listener: SocketAddrV4,
) -> Result<(Duration, Option<Duration>)> {
    let streams = load::open(entrance, 1)?;
    let upgraded = Instant::now();
    let SocketAddr::V4(client) = streams[0].socket().local_addr()? else { bail!("not IPv4") };
    let mut held = None;
    loop {
        match looker.stage(client, listener)? {
            Stage::Relayed => {}
            Stage::Held => held = held.or(Some(Instant::now())),
            Stage::Spliced => {
                let now = Instant::now();
                return Ok((now - upgraded, held.map(|held| now - held)));
            }
        }
        ensure!(upgraded.elapsed() < PATIENCE, "{client} is not spliced");
    }
}
