//! The service with `mode = "l7"`: its cookie, the splice, and what the death of its workers costs.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::SOON;
use super::evidence::Evidence;
use super::narrator::Narrator;
use crate::chat::{ConnectionReport, Load};
use crate::edge::{FlowLine, Status};
use crate::site::{Site, WEB};

/// At a time, over IPv4 and IPv6 in turns.
const CHATS: usize = 100;
/// Of one client with its cookie.
const RETURNS: usize = 20;

/// Shows it at work. The chats stay open.
pub(super) fn show(site: &Site, narrator: &Narrator, evidence: &mut Evidence) -> Result<Load> {
    let vips: Vec<_> = site.listeners(WEB).iter().map(ToString::to_string).collect();
    narrator.say(&format!("the same chat servers through the sidecar: {}", vips.join(" and ")));
    let cookie = handshakes(site, narrator, evidence)?;
    let load = site.start(site.chats_of(WEB, CHATS))?;
    let spliced = handed_over(site, &load, narrator, evidence)?;
    sidecar_dies(site, &load, &spliced, &cookie, narrator, evidence)?;
    Ok(load)
}

/// Returns a cookie and whose it is.
fn handshakes(
    site: &Site,
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<(String, String)> {
    let target = site.listeners(WEB)[0];
    let first = site.knock(target, None)?;
    let cookie = first.cookie().context("the sidecar sets no cookie")?.to_owned();
    let attributes = first.set_cookie.as_deref().unwrap_or_default();
    let hidden = attributes.contains("HttpOnly") && !attributes.contains("10.2.");
    evidence.check("cookie set by the handshake", hidden, shortened(attributes));
    let mut same = 0;
    for n in 0..RETURNS {
        // The other address of the service is as good.
        let targets = site.listeners(WEB);
        let again = site.knock(targets[n % targets.len()], Some(&cookie))?;
        same += usize::from(again.backend == first.backend);
    }
    let shown = format!("{same} of {RETURNS} to {}", first.backend);
    evidence.check("its holder comes back", same == RETURNS, &shown);
    narrator.say(&format!("a client got a cookie and came back with it: {shown}"));
    Ok((cookie, first.backend))
}

/// Name, some of the value, and the attributes.
fn shortened(cookie: &str) -> String {
    let (value, attributes) = cookie.split_once(';').unwrap_or((cookie, ""));
    let start: String = value.chars().take(16).collect();
    format!("{start}...;{attributes}")
}

fn flows(site: &Site) -> Result<BTreeSet<FlowLine>> {
    let flows = site.edge.flows()?.into_iter();
    Ok(flows.filter(|it| it.service == WEB && it.is_spliced() && it.is_open()).collect())
}

/// Whether a chat has the same IP version from end to end, as a splice must.
fn fits(site: &Site, chat: &ConnectionReport) -> bool {
    let config = site.edge.config();
    let mut backends =
        config.services.iter().filter(|it| it.name == WEB).flat_map(|it| &it.backends);
    let backend = backends.find(|it| Some(&it.name) == chat.backend.as_ref());
    backend.zip(chat.target).is_some_and(|(it, target)| it.address.is_ipv4() == target.is_ipv4())
}

/// Waits until XDP carries all chats that it can.
fn handed_over(
    site: &Site,
    load: &Load,
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<BTreeSet<FlowLine>> {
    let start = Instant::now();
    let chats = load.stats().per_connection;
    let due = chats.iter().filter(|chat| fits(site, chat)).count();
    let mut spliced = flows(site)?;
    while spliced.len() < due && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(20));
        spliced = flows(site)?;
    }
    let relayed = CHATS - due;
    let counted = |status: &Status| {
        status.workers().iter().map(|it| it.connections).sum::<u64>() == relayed as u64
    };
    let left = site.edge.wait_for("the workers count what they relay", SOON, counted);
    let shown = format!("{} of {CHATS}", spliced.len());
    evidence.check("spliced", due > 0 && spliced.len() == due && left.is_ok(), &shown);
    narrator.say(&format!(
        "spliced: {shown} chats are XDP's alone, and the sidecar has {relayed} sockets' worth to relay: those whose \
         clients and backends speak different IP versions"
    ));
    if let Some(flow) = spliced.first() {
        let (client, listener, backend) = (flow.client, flow.listener, &flow.backend);
        narrator.say(&format!("one of them: {client} to {listener}, with {backend}"));
    }
    Ok(spliced)
}

fn sidecar_dies(
    site: &Site,
    load: &Load,
    spliced: &BTreeSet<FlowLine>,
    (cookie, owner): &(String, String),
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<()> {
    let before = site.edge.status()?.serving();
    ensure!(!before.is_empty(), "no worker serves");
    let relayed: u64 = before.iter().map(|it| it.connections).sum();
    let then = load.stats();
    let pids: Vec<_> = before.iter().map(|it| it.pid.to_string()).collect();
    narrator.say(&format!("kill -9 of the sidecar (pids {}), in the middle", pids.join(" and ")));
    for worker in &before {
        kill(Pid::from_raw(worker.pid.cast_signed()), Signal::SIGKILL)?;
    }
    let killed = Instant::now();
    // It waits in the backlog for the next one.
    let again = site.knock(site.listeners(WEB)[0], Some(cookie))?;
    let replaced = |status: &Status| {
        let serving = status.serving();
        let is_new = |pid| before.iter().all(|it| it.pid != pid);
        serving.len() == before.len() && serving.iter().all(|it| is_new(it.pid))
    };
    let (_, at) = site.edge.wait_for("the sidecar is replaced", SOON, replaced)?;
    let shown = format!("{} ms", (at - killed).as_millis());
    evidence.check("killed sidecar replaced after", true, &shown);
    narrator.say(&format!("other workers have its place after {shown}"));
    let kept = again.backend == *owner;
    evidence.check("the cookie holds meanwhile", kept, format!("to {}", again.backend));

    load.wait_until(SOON, |stats| stats.connected == stats.connections)?;
    let now = load.wait_progress(3, SOON)?;
    let pairs = || now.per_connection.iter().zip(&then.per_connection);
    let lost = |fitting: bool| {
        let of_kind = pairs().filter(|(_, then)| fits(site, then) == fitting);
        of_kind.map(|(now, then)| now.errors - then.errors).sum::<u64>()
    };
    let same = spliced.is_subset(&flows(site)?);
    let shown = format!("{} lost of {}", lost(true), spliced.len());
    evidence.check("spliced chats, sidecar killed", lost(true) == 0 && same, &shown);
    let mut messages = pairs().filter(|(_, then)| fits(site, then));
    let carried = messages.by_ref().map(|(now, then)| now.messages - then.messages).sum::<u64>();
    narrator.say(&format!(
        "the spliced chats went on, on the same tuples: {carried} messages since, {shown}"
    ));
    let shown = format!("{} of {relayed}", lost(false));
    evidence.check("relayed chats that reconnected", lost(false) == relayed, &shown);
    Ok(())
}
