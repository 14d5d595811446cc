//! The lab: the whole product at work on one machine, and the evidence that it does what it says.
//!
//! It is a demonstration that can fail: each claim is checked, and the table at the end shows by what.

mod evidence;
mod narrator;
mod sidecar;
mod stay;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::chat::{Exchange, Load, LoadConfig, LoadStats, exchange};
use crate::edge::{EdgeConfig, FlowLine, Forward, HealthConfig, L7Config};
use crate::interrupt::Graceful;
use crate::seed::seed;
use crate::site::{BULK, CHAT, Plan, Site, server_name};

use evidence::Evidence;
use narrator::Narrator;

/// Chats at a time, over IPv4 and IPv6 in turns.
const CHATS: usize = 300;
/// Of the three backends; the third is to have half of what the others have.
const WEIGHTS: [u32; 3] = [100, 100, 50];
const VICTIM: usize = 1;
/// What a busy machine may add to the promised time of detection.
const SCHEDULING: Duration = Duration::from_millis(250);
/// Echoed while the agent is killed and started again.
const STREAM: u64 = 8 << 20;
const SOON: Duration = Duration::from_secs(20);

/// Builds the lab, shows it at work and checks it; with `stay` it then waits for Ctrl-C. An error says
/// which check failed.
pub fn run(stay: bool) -> Result<()> {
    let narrator = Narrator::new();
    let mut site = build(&narrator)?;
    let mut evidence = Evidence::default();
    let shown = show(&mut site, &narrator, &mut evidence);
    println!("\n{evidence}");
    let verdict = shown.and_then(|()| evidence.verdict());
    if stay {
        if let Err(error) = &verdict {
            println!("\nNot as it should be: {error:#}");
        }
        let graceful = Graceful::new();
        stay::stay(&mut site, &graceful)?;
        narrator.say("Ctrl-C: cleaning up");
    }
    drop(site);
    verdict
}

fn build(narrator: &Narrator) -> Result<Site> {
    let plan = Plan { l7: Some(L7Config::default()), ..Plan::new(Forward::Nat, seed("lab")) };
    narrator
        .say("building the networks: a client, the edge, three backends, a switch between them");
    let lab = plan.topology()?;
    let config = configure(plan.config(&lab));
    narrator.say("starting three chat servers and lb-agent, XDP in native mode on eth0 and eth1, and two workers");
    let site = plan.populate(lab, config)?;
    let count = site.edge.config().services.iter().map(|it| it.backends.len()).sum::<usize>();
    narrator.say(&format!("lb-agent is ready and its probes found all {count} backends up"));
    Ok(site)
}

fn configure(mut config: EdgeConfig) -> EdgeConfig {
    config.flows = 65_536;
    let chat = config.service(CHAT);
    chat.health = HealthConfig {
        interval: Duration::from_millis(500),
        timeout: Duration::from_millis(300),
        fall: 2,
        ..HealthConfig::websocket()
    };
    for (index, weight) in WEIGHTS.into_iter().enumerate() {
        let name = server_name(CHAT, index);
        let of_server = chat.backends.iter_mut().filter(|it| it.name.starts_with(&name));
        of_server.for_each(|it| it.weight = weight);
    }
    config
}

/// One chapter after the other, on the same connections.
fn show(site: &mut Site, narrator: &Narrator, evidence: &mut Evidence) -> Result<()> {
    let vips = site.listeners(CHAT);
    let vips: Vec<_> = vips.iter().map(ToString::to_string).collect();
    narrator.say(&format!("opening {CHATS} WebSocket chats to {}", vips.join(" and ")));
    let config = LoadConfig { interval: Duration::from_millis(200), ..site.chats(CHATS) };
    let load = site.start(config)?;
    shares(&load, narrator, evidence)?;
    let relayed = sidecar::show(site, narrator, evidence)?;
    site.roughen();
    narrator.say(
        "from now on the wires delay frames, and lose, reorder, duplicate and corrupt 1 % of them",
    );
    load.wait_progress(3, SOON)?;
    backend_dies(site, &load, narrator, evidence)?;
    agent_dies(site, &load, &relayed, narrator, evidence)?;
    account(site, load, relayed, narrator, evidence)
}

fn shares(load: &Load, narrator: &Narrator, evidence: &mut Evidence) -> Result<()> {
    let stats = load.wait_progress(1, SOON)?;
    let (all, total) = (stats.connections as f64, f64::from(WEIGHTS.iter().sum::<u32>()));
    evidence.check("chats open", stats.connected == stats.connections, stats.connected);
    let mut spoken = Vec::new();
    for (index, weight) in WEIGHTS.into_iter().enumerate() {
        let name = server_name(CHAT, index);
        let part = f64::from(weight) / total;
        let found = stats.connected_to(&name) as f64;
        // Their ports are random: five standard deviations are exceeded once in a million runs.
        let tolerance = 5.0 * (all * part * (1.0 - part)).sqrt();
        let shown = format!("{:.1} % for {:.0} % of the weight", found / all * 100.0, part * 100.0);
        spoken.push(format!("{name} {:.0} %", found / all * 100.0));
        let what = format!("share of {name}");
        evidence.check(&what, (found - all * part).abs() < tolerance, shown);
    }
    narrator.say(&format!("all chats are open and talking: {}", spoken.join(", ")));
    Ok(())
}

fn backend_dies(
    site: &mut Site,
    load: &Load,
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<()> {
    let victim = server_name(CHAT, VICTIM);
    let before = load.stats();
    let clients = before.connected_to(&victim);
    narrator.say(&format!("kill -9 {victim}, which has {clients} of the chats"));
    let killed = Instant::now();
    site.kill_chat(VICTIM)?;
    let v6 = format!("{victim}-v6");
    let (_, noticed) = site.edge.wait_for("the killed backend is down", SOON, |status| {
        status.is_down(CHAT, &victim) && status.is_down(CHAT, &v6)
    })?;
    let (took, bound) = (noticed - killed, site.edge.config().services[0].health.bound());
    let times = format!("{} ms, promised {} ms", took.as_millis(), bound.as_millis());
    evidence.check("dead backend noticed after", took <= bound + SCHEDULING, &times);
    narrator.say(&format!("{victim} was found dead after {times}"));

    let moved = |stats: &LoadStats| {
        stats.connected == stats.connections && stats.connected_to(&victim) == 0
    };
    let now = load.wait_until(SOON, moved)?;
    let shown = format!("{} of {clients} in {} ms", now.reconnects, killed.elapsed().as_millis());
    evidence.check("its clients moved", now.reconnects >= clients, &shown);
    narrator.say(&format!("its clients were reset and are with other backends: {shown}"));

    let now = load.wait_progress(3, SOON)?;
    let disturbed = now.disturbed_beside(&before, &victim).len();
    let others = before.connections - clients;
    let shown = format!("{disturbed} of {others}");
    evidence.check("chats of others disturbed", disturbed == 0, &shown);
    narrator.say(&format!("disturbed among the chats of the other backends: {shown}"));
    Ok(())
}

fn agent_dies(
    site: &mut Site,
    load: &Load,
    relayed: &Load,
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<()> {
    let target = site.listeners(BULK)[0];
    let plan = Exchange { timeout: SOON, ..Exchange::new(target, 1, STREAM) };
    let client = site.lab.client(0).handle().clone();
    let stream = std::thread::spawn(move || exchange(Some(&client), &plan));
    let (before, relayed_before) = (load.stats(), relayed.wait_connected(SOON)?);
    let chats = |site: &Site| -> Result<BTreeSet<FlowLine>> {
        let flows = site.edge.flows()?.into_iter();
        Ok(flows.filter(|flow| flow.service == CHAT && flow.is_open()).collect())
    };

    let pid = site.edge.process().pid();
    narrator.say(&format!("kill -9 lb-agent (pid {pid}); nobody is in charge now"));
    site.edge.kill()?;
    let dead = Instant::now();
    let flows = chats(site)?;
    load.wait_progress(5, SOON)?;
    relayed.wait_progress(5, SOON)?;
    let alone = format!("{:.1} s", dead.elapsed().as_secs_f64());
    narrator.say(&format!("XDP alone has carried the chats for {alone}; starting lb-agent again"));
    let start = Instant::now();
    site.edge.run()?;
    let adopted = start.elapsed();
    // On wires that flip bits a flow can seem to end, until its sender's next segment.
    let mut kept = chats(site)?;
    while !flows.is_subset(&kept) && start.elapsed() < SOON {
        std::thread::sleep(Duration::from_millis(50));
        kept = chats(site)?;
    }
    let now = load.wait_progress(5, SOON)?;
    let relayed = relayed.wait_progress(5, SOON)?;
    stream.join().expect("the stream's thread does not panic").context("the bulk stream")?;

    let flows_kept = flows.intersection(&kept).count();
    let shown = format!("{flows_kept} of {} kept over {alone} without it", flows.len());
    let same = flows_kept == flows.len() && flows.len() as u64 >= now.connected;
    evidence.check("flows, agent killed", same, &shown);
    let lost = now.sessions - before.sessions + now.errors - before.errors;
    evidence.check("chats disturbed by that", lost == 0, lost);
    let cut = relayed.sessions - relayed_before.sessions + relayed.errors - relayed_before.errors;
    evidence.check("chats of the sidecar disturbed", cut == 0, cut);
    let mebibytes = format!("{} MiB of another stream intact", STREAM >> 20);
    evidence.check("and meanwhile", true, mebibytes);
    narrator.say(&format!(
        "the new lb-agent took {flows_kept} flows over, ready in {} ms; chats disturbed: {}",
        adopted.as_millis(),
        lost + cut
    ));
    Ok(())
}

fn account(
    site: &Site,
    load: Load,
    relayed: Load,
    narrator: &Narrator,
    evidence: &mut Evidence,
) -> Result<()> {
    let status = site.edge.status()?;
    site.smoothen();
    let (stats, relayed) = (load.stop(), relayed.stop());
    let bytes = stats.bytes as f64 / f64::from(1 << 20);
    narrator.say(&format!("closed all chats: {} messages echoed, {bytes:.1} MiB", stats.messages));
    let sum = |counter: &str| -> u64 {
        let chat = &site.edge.config().services[0];
        chat.backends.iter().map(|it| status.counter(CHAT, &it.name, counter)).sum()
    };
    let (forth, back) = (sum("to_backend_packets"), sum("to_client_packets"));
    let carried = forth.min(back) >= stats.messages;
    let shown = format!("{forth} to backends, {back} to clients");
    evidence.check("packets in XDP", carried, shown);
    evidence.check("flows opened in XDP", sum("opened") >= stats.sessions, sum("opened"));
    let shown =
        format!("{} messages, {} bytes, {} wrong", stats.messages, stats.bytes, stats.wrong);
    evidence.check("echoed", stats.wrong == 0 && stats.messages > 0, shown);
    let shown =
        format!("{} messages, {} bytes, {} wrong", relayed.messages, relayed.bytes, relayed.wrong);
    evidence.check("echoed through the sidecar", relayed.wrong == 0 && relayed.messages > 0, shown);
    ensure!(stats.connected + relayed.connected == 0, "chats that did not close: {stats}");
    Ok(())
}
