//! Rounds in which the targets take turns, so that whatever disturbs the machine disturbs all of them.

use std::{thread::sleep, time::Duration};

use anyhow::{Context, Result};
use rustls::HandshakeKind;
use tests::bench::{
    Spread, h2load,
    load::{self, Effort, Sample},
    report::Report,
    site::{VIP, VIP_PORT},
    tls::{Identity, Tickets},
};

use crate::{
    Clients, What,
    target::{Running, Target},
};

/// After it a proxy has given back what it needed for handshakes and messages.
const SETTLE: Duration = Duration::from_secs(2);
/// Connections that are opened and closed before memory is taken as the ground.
const FIRST: usize = 200;

/// The rate of something, and what it costs, for each target.
pub fn rates(
    running: &[Running<'_>],
    what: What,
    clients: &Clients,
    effort: &Effort,
    rounds: u32,
    report: &mut Report<What>,
) -> Result<()> {
    let mut samples = vec![Vec::new(); running.len()];
    for _ in 0..rounds {
        for (target, samples) in running.iter().zip(&mut samples) {
            samples.push(one(target, what, clients, effort).with_context(|| {
                format!("{what:?} through {}; it said:\n{}", target.target.name(), target.said())
            })?);
        }
    }
    let [rate, machine, proxy] = what.units();
    type Number = fn(&Sample) -> f64;
    let numbers: [(&str, Number); 3] = [
        (rate, |it| it.done as f64 / it.expense.elapsed.as_secs_f64()),
        (machine, |it| it.expense.machine.as_secs_f64() * 1e6 / it.done as f64),
        (proxy, |it| it.expense.processes.as_secs_f64() * 1e6 / it.done as f64),
    ];
    for (unit, number) in numbers {
        for (target, samples) in running.iter().zip(&samples) {
            let spread = Spread::of(samples.iter().map(number).collect());
            report.number(what, unit, target.target.name(), spread);
        }
    }
    Ok(())
}

fn one(target: &Running<'_>, what: What, clients: &Clients, effort: &Effort) -> Result<Sample> {
    let Running { site, account, .. } = target;
    let shake = |tickets, kind| {
        let entrance = target.entrance("http/1.1", std::sync::Arc::clone(&tickets))?;
        let count = clients.handshakes;
        let run = || load::tls_handshakes(&entrance, &tickets, kind, count, effort, account);
        site.client.run(run)
    };
    match what {
        What::Full => shake(Tickets::unused(), HandshakeKind::Full),
        What::Resumed => shake(Tickets::used(), HandshakeKind::Resumed),
        What::Echo => {
            let entrance = target.entrance("http/1.1", Tickets::unused())?;
            let run = || load::relay(load::open(&entrance, clients.echo)?, effort, account);
            site.client.run(run)
        }
        What::Http2 => {
            let [clients, streams] = [clients.http2, clients.streams];
            let plan = h2load::Plan { clients, streams, time: effort.time };
            h2load::run(&site.client, (VIP, VIP_PORT).into(), &plan, account)
        }
        What::IdleWss | What::IdleHttp2 => unreachable!("memory has no rate"),
    }
}

/// What a silent connection takes of a proxy's memory, in bytes. Each time the proxy is a fresh one.
pub fn memory(
    targets: &[Target],
    what: What,
    clients: &Clients,
    identity: &Identity,
    rounds: u32,
    report: &mut Report<What>,
) -> Result<()> {
    let mut samples = vec![Vec::new(); targets.len()];
    for _ in 0..rounds {
        for (&target, samples) in targets.iter().zip(&mut samples) {
            let running = Running::start(target, clients.threads, identity)?;
            samples.push(idle(&running, what, clients.idle).with_context(|| {
                format!("{what:?} through {}; it said:\n{}", target.name(), running.said())
            })?);
        }
    }
    for (target, samples) in targets.iter().zip(samples) {
        report.number(what, BYTES, target.name(), Spread::of(samples));
    }
    Ok(())
}

pub const BYTES: &str = "bytes/connection";

/// Every connection has carried something before, and must do so after.
fn idle(running: &Running<'_>, what: What, count: usize) -> Result<f64> {
    let account = &running.account;
    let grown = |before: u64, after: u64| (after as f64 - before as f64) / count as f64;
    if what == What::IdleHttp2 {
        let entrance = running.entrance("h2", Tickets::unused())?;
        return running.site.client.run(|| {
            drop(load::open_http2(&entrance, FIRST)?);
            sleep(SETTLE);
            let before = account.memory()?;
            let open = load::open_http2(&entrance, count)?;
            sleep(SETTLE);
            let after = account.memory()?;
            load::ask_again(open)?;
            Ok(grown(before, after))
        });
    }
    let entrance = running.entrance("http/1.1", Tickets::unused())?;
    let chat = |open| load::Echoes::start(open)?.finish();
    running.site.client.run(|| {
        drop(chat(load::open(&entrance, FIRST)?)?);
        sleep(SETTLE);
        let before = account.memory()?;
        let open = chat(load::open(&entrance, count)?)?;
        sleep(SETTLE);
        let after = account.memory()?;
        chat(open)?;
        Ok(grown(before, after))
    })
}
