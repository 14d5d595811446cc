//! Spliced conversations outlive what happens at an edge, and both ends are told when they have to end. Needs root.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::chat::{Load, LoadConfig};
use tests::edge::{DrainConfig, FlowLine, L7Config, Status};
use tests::effort;
use tests::netns::NsTask;
use tests::owner::OwnedDir;
use tests::pipe::{Dial, End, Pipe, Terms};
use tests::privilege::require_root;
use tests::seed::seed;
use tests::spliced::{SERVICES, SplicedPlan, SplicedSite, server_name};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(120);
const CHATS: usize = 60;

fn plan(what: &str) -> SplicedPlan {
    require_root();
    SplicedPlan::new(seed(what))
}

/// Starts WebSocket chats, and returns when all are spliced.
fn start(site: &SplicedSite) -> (Load, BTreeSet<FlowLine>) {
    let config = LoadConfig { interval: Duration::from_millis(50), ..site.chats(CHATS) };
    let load = Load::start(Some(site.lab.client(0)), config).unwrap();
    load.wait_connected(LATER).unwrap();
    let flows = site.wait_spliced(CHATS).unwrap();
    load.wait_progress(3, LATER).unwrap();
    (load, flows)
}

/// The conversations go on, on the same tuples, with the same backends, in XDP.
fn goes_on(site: &SplicedSite, load: &Load, flows: &BTreeSet<FlowLine>) {
    load.wait_progress(effort::choose(5, 50), LATER).unwrap();
    let now = site.spliced().unwrap();
    let lost: Vec<_> = flows.difference(&now).collect();
    assert!(lost.is_empty(), "not as they were: {lost:#?}");
    let stats = load.stats();
    assert_eq!((stats.errors, stats.wrong, stats.reconnects), (0, 0, 0), "{stats}");
}

/// All of them end, none was disturbed, and nothing is left.
fn ends_well(site: &SplicedSite, load: Load) {
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    site.wait_empty().unwrap();
}

/// Newcomers are served, and spliced if `spliced`.
fn newcomers_are_served(site: &SplicedSite, spliced: bool) {
    let before = site.spliced().unwrap().len();
    let seed: u64 = rand::random();
    let targets = site.listeners();
    let (open, opened) = mpsc::channel();
    let (done, mut is_done) = tokio::sync::mpsc::channel::<()>(1);
    let clients = site.start_clients(0, async move |_| -> Result<()> {
        let mut pipes = Vec::new();
        for number in 0..8 {
            let dial = Dial::new(targets[number as usize % 2], Terms::echo(seed, number));
            let mut pipe = dial.open().await?;
            pipe.echo(100).await?;
            pipes.push(pipe);
        }
        open.send(())?;
        is_done.recv().await.context("the test has failed")?;
        for mut pipe in pipes {
            pipe.echo(1_000).await?;
            pipe.finish().await?;
        }
        Ok(())
    });
    opened.recv_timeout(LATER).expect("newcomers are served");
    if spliced {
        site.wait_spliced(before + 8).unwrap();
    }
    done.blocking_send(()).unwrap();
    clients.join().unwrap();
}

fn kill_workers(site: &SplicedSite) {
    let before: BTreeSet<_> = site.edge.status().unwrap().workers().iter().map(|w| w.pid).collect();
    assert!(!before.is_empty());
    for pid in &before {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    let replaced = |status: &Status| {
        let serving = status.serving();
        serving.len() == before.len() && serving.iter().all(|it| !before.contains(&it.pid))
    };
    site.edge.wait_for("the killed workers are replaced", SOON, replaced).unwrap();
}

#[test]
fn conversations_outlive_the_sidecar_and_the_agent() {
    let mut site = plan("sidecar and agent").build().unwrap();
    let (load, flows) = start(&site);
    kill_workers(&site);
    goes_on(&site, &load, &flows);
    newcomers_are_served(&site, true);

    for _ in 0..effort::choose(2, 6) {
        site.edge.kill().unwrap();
        goes_on(&site, &load, &flows);
        site.edge.run().unwrap();
        site.edge.wait_all_up().unwrap();
        goes_on(&site, &load, &flows);
    }
    newcomers_are_served(&site, true);

    // Both at once: nobody is left who has seen the handshakes.
    let workers = site.edge.status().unwrap().workers();
    site.edge.kill().unwrap();
    for worker in workers {
        kill(Pid::from_raw(worker.pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
    goes_on(&site, &load, &flows);
    site.edge.run().unwrap();
    site.edge.wait_all_up().unwrap();
    goes_on(&site, &load, &flows);
    newcomers_are_served(&site, true);
    ends_well(&site, load);
}

#[test]
fn conversations_outlive_an_upgrade() {
    // Longer than the site, which is unloaded with the program in it.
    let scratch = OwnedDir::scratch("upgrade").unwrap();
    let mut site = plan("splice upgrade").build().unwrap();
    let (load, flows) = start(&site);
    let successor = scratch.path().join("lb-agent");
    std::fs::copy(site.edge.agent(), &successor).unwrap();
    site.edge.terminate().unwrap();
    goes_on(&site, &load, &flows);
    site.edge.upgrade_to(&successor);
    site.edge.run().unwrap();
    site.edge.wait_all_up().unwrap();
    goes_on(&site, &load, &flows);
    newcomers_are_served(&site, true);
    ends_well(&site, load);
}

#[test]
fn conversations_outlive_reloads_the_end_of_other_backends_and_of_splicing() {
    const STAYS: usize = 0;
    let mut site = plan("reloads").build().unwrap();
    let (load, flows) = start(&site);
    let stays = server_name(STAYS);

    site.edge.configure(|it| it.service(SERVICES[0]).backend(&stays).weight = 50).unwrap();
    site.edge.reload().unwrap();
    let applied = |status: &Status| status.weight(SERVICES[0], &stays) == Some(50);
    site.edge.wait_for("the reload is applied", SOON, applied).unwrap();
    goes_on(&site, &load, &flows);

    // No more splices, and those that are go on.
    let off = |it: &mut tests::edge::EdgeConfig| {
        for service in SERVICES {
            it.service(service).l7.as_mut().unwrap().spliced = false;
            it.service(service).backend(&stays).weight = 60;
        }
    };
    site.edge.configure(off).unwrap();
    site.edge.reload().unwrap();
    let applied = |status: &Status| SERVICES.iter().all(|it| status.weight(it, &stays) == Some(60));
    site.edge.wait_for("splicing is switched off", SOON, applied).unwrap();
    goes_on(&site, &load, &flows);
    newcomers_are_served(&site, false);
    let relayed = site.spliced().unwrap();
    assert_eq!(relayed.len(), CHATS, "newcomers are relayed");

    // Its own flows go on while those of the backends that go are given up.
    let own: BTreeSet<_> = flows.iter().filter(|it| it.backend == stays).cloned().collect();
    let before = load.stats();
    assert!(!own.is_empty() && own.len() < CHATS, "{before}");
    let alone = |it: &mut tests::edge::EdgeConfig| {
        for service in SERVICES {
            it.service(service).backends.retain(|backend| backend.name == stays);
        }
    };
    site.edge.configure(alone).unwrap();
    site.edge.reload().unwrap();
    let applied = |status: &Status| SERVICES.iter().all(|it| !status.has(it, &server_name(1)));
    site.edge.wait_for("the others are removed", SOON, applied).unwrap();
    let start = Instant::now();
    let on = |load: &Load| {
        let now = load.stats();
        let pairs = now.per_connection.iter().zip(&before.per_connection);
        let own = pairs.filter(|(_, it)| it.backend.as_deref() == Some(stays.as_str()));
        let mut own = own.map(|(now, before)| (now.errors, now.messages - before.messages));
        own.all(|(errors, messages)| {
            assert_eq!(errors, 0, "{now}");
            messages > 50
        })
    };
    while !on(&load) {
        assert!(start.elapsed() < LATER, "no progress: {}", load.stats());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(own.is_subset(&site.spliced().unwrap()), "on other tuples than before");
    assert_eq!(load.stop().wrong, 0);
    site.wait_empty().unwrap();
}

/// Pipes that are spliced and say nothing: how and when each ends is what they find out.
struct Silent {
    task: NsTask<Result<Vec<(String, End, Instant)>>>,
    backends: Vec<String>,
}

impl Silent {
    fn start(site: &SplicedSite, count: u64) -> Self {
        let (seed, targets) = (site.seed, site.listeners());
        let (open, opened) = mpsc::channel();
        let before = site.spliced().unwrap().len();
        let task = site.start_clients(0, async move |_| {
            let mut pipes: Vec<Pipe> = Vec::new();
            for number in 0..count {
                let dial = Dial::new(targets[number as usize % 2], Terms::echo(seed, number));
                let mut pipe = Dial { patience: LATER, ..dial }.open().await?;
                pipe.echo(100).await?;
                pipes.push(pipe);
            }
            let backends = pipes.iter().map(|pipe| pipe.backend.clone());
            open.send(backends.collect::<Vec<_>>()).context("the test has failed")?;
            let waits = pipes.into_iter().map(|mut pipe| {
                tokio::task::spawn_local(async move {
                    let end = pipe.ended().await?;
                    anyhow::Ok((pipe.backend, end, Instant::now()))
                })
            });
            let mut ends = Vec::new();
            for wait in waits.collect::<Vec<_>>() {
                ends.push(wait.await??);
            }
            Ok(ends)
        });
        let backends = opened.recv_timeout(LATER).expect("all are open");
        site.wait_spliced(before + usize::try_from(count).unwrap()).unwrap();
        Self { task, backends }
    }

    fn with(&self, backend: &str) -> u64 {
        self.backends.iter().filter(|it| *it == backend).count() as u64
    }
}

/// Waits until a server's connections were reset so many times, and says when.
fn wait_resets(site: &SplicedSite, server: usize, count: u64) -> Instant {
    let start = Instant::now();
    loop {
        let stats = site.stats(server).unwrap();
        if stats.resets >= count {
            assert_eq!((stats.timeouts, stats.wrong), (0, 0), "{stats:?}");
            return Instant::now();
        }
        assert!(start.elapsed() < LATER, "{count} of its connections were to be reset: {stats:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_backend_that_fails_loses_its_conversations_and_both_ends_are_told_at_once() {
    const VICTIM: usize = 1;
    let mut site = plan("failing backend").build().unwrap();
    // Those of the others go on meanwhile.
    let (load, _) = start(&site);
    let silent = Silent::start(&site, 60);
    let victim = server_name(VICTIM);
    let own = silent.with(&victim);
    let before = load.stats();
    assert!(own > 0, "{:?}", silent.backends);

    site.fail(VICTIM, true).unwrap();
    let failed = Instant::now();
    let down = |status: &Status| SERVICES.iter().all(|it| status.is_down(it, &victim));
    let (_, noticed) = site.edge.wait_for("it is down", SOON, down).unwrap();
    let chats = before.connected_to(&victim);
    let told = wait_resets(&site, VICTIM, own + chats);
    eprintln!("down after {:?}, its server was told after {:?}", noticed - failed, told - failed);
    let gone = load.wait_until(SOON, |now| now.connected_to(&victim) == 0).unwrap();
    assert_eq!((gone.resets, gone.errors), (chats, chats), "{gone}");
    assert!(gone.disturbed_beside(&before, &victim).is_empty(), "{gone}");

    // The others', which are silent, end with their servers.
    let killed = Instant::now();
    for index in [0, 2] {
        site.kill_server(index).unwrap();
    }
    let ends = silent.task.join().unwrap();
    for (backend, end, at) in ends {
        let after = if backend == victim { noticed } else { killed };
        let late = at.saturating_duration_since(after);
        assert!(late < Duration::from_secs(3), "{backend}: {end:?} {late:?}");
        assert!(backend != victim || end == End::Reset, "{backend}: {end:?}");
    }
    let _ = load.stop();
    site.wait_empty().unwrap();
}

#[test]
fn who_is_silent_for_too_long_is_reset_at_both_ends_and_who_talks_is_not() {
    let idle = Duration::from_secs(4);
    let site = SplicedPlan { idle_timeout: idle, ..plan("idle") }.build().unwrap();
    let (load, flows) = start(&site);
    let silent = Silent::start(&site, 30);
    let start = Instant::now();
    let shares: Vec<_> = (0..3).map(|index| silent.with(&server_name(index))).collect();
    let ends = silent.task.join().unwrap();
    for (backend, end, at) in &ends {
        let after = at.duration_since(start);
        assert_eq!(*end, End::Reset, "{backend}");
        // The first were opened before the last were spliced.
        assert!(after < idle * 3, "reset after {after:?}");
    }
    for (index, count) in shares.into_iter().enumerate() {
        wait_resets(&site, index, count);
    }
    goes_on(&site, &load, &flows);
    assert_eq!(load.stop().errors, 0);
    site.wait_empty().unwrap();
}

#[test]
fn a_drained_backend_loses_its_conversations_after_the_deadline_at_the_pace() {
    const DRAINED: usize = 2;
    let deadline = Duration::from_secs(3);
    let drain = DrainConfig { deadline, rate: 20 };
    let l7 = L7Config { drain, ..L7Config::default() };
    let mut site = SplicedPlan { l7, ..plan("splice drain") }.build().unwrap();
    let (load, _) = start(&site);
    let silent = Silent::start(&site, 90);
    let name = server_name(DRAINED);
    let (own, before) = (silent.with(&name), load.stats());
    let chats = before.connected_to(&name);
    let drained = name.clone();
    site.edge
        .configure(|it| {
            for service in SERVICES {
                it.service(service).backend(&drained).drain = true;
            }
        })
        .unwrap();
    let asked = Instant::now();
    site.edge.reload().unwrap();
    let gone = load.wait_until(SOON, |now| now.connected_to(&name) == 0).unwrap();
    assert_eq!(gone.errors, chats, "{gone}");
    assert!(gone.disturbed_beside(&before, &name).is_empty(), "{gone}");
    wait_resets(&site, DRAINED, own + chats);
    let took = asked.elapsed();
    assert!(took >= deadline - Duration::from_millis(100), "{took:?}");
    let paced = Duration::from_millis(50) * u32::try_from(own + chats).unwrap();
    assert!(took >= deadline + paced.mul_f64(0.4), "{} in {took:?}, not at the pace", own + chats);
    assert!(took <= deadline + paced.mul_f64(2.0) + SOON, "{} in {took:?}", own + chats);
    newcomers_are_served(&site, true);
    assert_eq!(site.stats(DRAINED).unwrap().open, 0);
    load.wait_until(SOON, |now| now.connected + chats == now.connections).unwrap();
    let _ = load.stop();
    // The silent ones of the others end with their servers.
    site.kill_server(0).unwrap();
    site.kill_server(1).unwrap();
    let ends = silent.task.join().unwrap();
    let own = ends.iter().filter(|(backend, ..)| *backend == name);
    assert!(own.clone().all(|(_, end, _)| *end == End::Reset), "{ends:?}");
    site.wait_empty().unwrap();
}

#[test]
fn spliced_connections_weigh_with_those_who_choose_the_least_loaded() {
    const LEFT_OUT: usize = 1;
    let l7 = L7Config { balance: "least-connections", sticky: false, ..L7Config::default() };
    let mut site = SplicedPlan { l7, ..plan("least connections") }.build().unwrap();
    let name = server_name(LEFT_OUT);
    let drain = |site: &mut SplicedSite, drain| {
        let change = |it: &mut tests::edge::EdgeConfig| {
            for service in SERVICES {
                it.service(service).backend(&name).drain = drain;
                it.service(service).backend(&name).weight = if drain { 90 } else { 100 };
            }
        };
        site.edge.configure(change).unwrap();
        site.edge.reload().unwrap();
        let weight = Some(if drain { 90 } else { 100 });
        let applied =
            |status: &Status| SERVICES.iter().all(|it| status.weight(it, &name) == weight);
        site.edge.wait_for("the reload is applied", SOON, applied).unwrap();
    };
    drain(&mut site, true);
    let (load, flows) = start(&site);
    assert!(flows.iter().all(|it| it.backend != server_name(LEFT_OUT)), "it drains");
    drain(&mut site, false);
    let counted = |status: &Status| {
        let names = (0..3).map(server_name).flat_map(|name| SERVICES.map(|it| (it, name.clone())));
        names.map(|(it, name)| status.connections(it, &name)).sum::<u64>() == CHATS as u64
    };
    site.edge.wait_for("the spliced ones are counted", SOON, counted).unwrap();
    // The workers are told of them within a third of a second, and nothing shows when they were.
    std::thread::sleep(Duration::from_secs(1));
    // Those that it has not are with the others: newcomers are its own until it has as many.
    let newcomers = Silent::start(&site, 20);
    assert_eq!(newcomers.with(&server_name(LEFT_OUT)), 20, "{:?}", newcomers.backends);
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
    drop(newcomers);
    site.wait_empty().unwrap();
}

#[test]
fn a_spliced_connection_is_load_and_is_told_of_in_the_log() {
    let site = plan("account").build().unwrap();
    let (load, flows) = start(&site);
    let (status, _) = site
        .edge
        .wait_for("the status counts them", SOON, |status| {
            SERVICES.iter().map(|it| status.happened(it, "spliced")).sum::<u64>() >= CHATS as u64
        })
        .unwrap();
    for service in SERVICES {
        for index in 0..3 {
            let name = server_name(index);
            let with = flows.iter().filter(|it| it.service == service && it.backend == name);
            let (with, said) = (with.count() as u64, status.connections(service, &name));
            assert_eq!(said, with, "{service}, {name}: {status}");
        }
    }
    let stats = load.stop();
    site.wait_empty().unwrap();
    let deadline = Instant::now() + SOON;
    loop {
        let lines = site.edge.access_log().unwrap();
        let closed = lines.iter().filter(|it| it["event"] == "close");
        let bytes: u64 = closed.clone().filter_map(|it| it["bytes_in"].as_u64()).sum();
        // Each message has a header of six bytes or more.
        if closed.count() >= CHATS && bytes >= stats.bytes + 6 * stats.messages {
            return;
        }
        let last = lines.last();
        assert!(Instant::now() < deadline, "{bytes} bytes of {}: {last:?}", stats.bytes);
        std::thread::sleep(Duration::from_millis(100));
    }
}
