//! The service with `mode = "l7"`: its cookie, its workers, and what the death of one costs.

use std::time::Instant;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::SOON;
use super::evidence::Evidence;
use super::narrator::Narrator;
use crate::chat::Load;
use crate::edge::{Status, Worker};
use crate::site::{Site, WEB};

/// Relayed at a time, over IPv4 and IPv6 in turns.
const CHATS: usize = 100;
/// Of one client with its cookie.
const RETURNS: usize = 20;

/// Shows it at work. The chats stay open.
pub(super) fn show(site: &Site, narrator: &Narrator, evidence: &mut Evidence) -> Result<Load> {
    let vips: Vec<_> = site.listeners(WEB).iter().map(ToString::to_string).collect();
    narrator.say(&format!("the same chat servers through the sidecar: {}", vips.join(" and ")));
    let cookie = handshakes(site, narrator, evidence)?;
    let load = site.start(site.chats_of(WEB, CHATS))?;
    worker_dies(site, &load, &cookie, narrator, evidence)?;
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

fn worker_dies(
    site: &Site,
    load: &Load,
    (cookie, owner): &(String, String),
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<()> {
    // The load has been counted once this is so.
    let counted = |status: &Status| {
        let workers = status.serving();
        workers.iter().map(|it| it.connections).sum::<u64>() == CHATS as u64
    };
    let (status, _) = site.edge.wait_for("the workers count their chats", SOON, counted)?;
    let before = status.serving();
    let shares: Vec<_> = before.iter().map(|it| it.connections.to_string()).collect();
    let spread = before.len() > 1 && before.iter().all(|it| it.connections > 0);
    evidence.check("relayed chats of the workers", spread, shares.join(" and "));
    let victim = before.first().context("no worker serves")?.clone();

    let then = load.stats();
    narrator.say(&format!(
        "kill -9 of a worker (pid {}), which relays {} of {CHATS} chats",
        victim.pid, victim.connections
    ));
    kill(Pid::from_raw(victim.pid.cast_signed()), Signal::SIGKILL)?;
    let killed = Instant::now();
    // In the backlog of the dead one, or with the other one.
    let again = site.knock(site.listeners(WEB)[0], Some(cookie))?;
    let replaced = |status: &Status| {
        let heir = |it: &Worker| it.index == victim.index && it.pid != victim.pid;
        status.serving().len() == before.len() && status.serving().iter().any(heir)
    };
    let (_, at) = site.edge.wait_for("the killed worker is replaced", SOON, replaced)?;
    let shown = format!("{} ms", (at - killed).as_millis());
    evidence.check("killed worker replaced after", true, &shown);
    narrator.say(&format!("another worker has its place after {shown}"));
    let kept = again.backend == *owner;
    evidence.check("the cookie holds meanwhile", kept, format!("to {}", again.backend));

    let now = load.wait_until(SOON, |stats| stats.connected == stats.connections)?;
    let lost = now.reconnects - then.reconnects;
    let shown = format!("{lost} of {CHATS}, {} were its own", victim.connections);
    evidence.check("chats that reconnected", lost == victim.connections, &shown);
    narrator.say(&format!("chats that had to reconnect: {shown}"));
    Ok(())
}
