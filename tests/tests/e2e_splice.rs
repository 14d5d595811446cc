//! Spliced connections carry every byte, end in every way there is, and leave nothing behind. Needs root.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lb_common::outcome::DropReason;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tests::edge::HealthConfig;
use tests::effort;
use tests::pipe::{Dial, End, Ending, Mode, Pipe, Terms};
use tests::privilege::require_root;
use tests::process::open_many_files;
use tests::seed::seed;
use tests::spliced::{SplicedPlan, SplicedSite, Watch, server_name};

/// For a connection to be spliced, among many others.
const SPLICED: Duration = Duration::from_secs(60);
/// Within it an end is seen that is announced: much less than a timeout of TCP's.
const AT_ONCE: Duration = Duration::from_secs(5);
/// The first of the ports that clients bind to, one for each tuple.
const FIRST_PORT: u16 = 10_000;

fn build(plan: impl FnOnce(u64) -> SplicedPlan, what: &str) -> SplicedSite {
    require_root();
    open_many_files().unwrap();
    let site = plan(seed(what)).build().unwrap();
    for client in site.lab.clients() {
        // A tuple in TIME_WAIT is taken again at once.
        client.sysctl("ipv4/tcp_tw_reuse", "1").unwrap();
        let _ = client.sysctl("ipv4/tcp_tw_reuse_delay", "1");
    }
    site
}

/// The tests that keep every core busy take turns: the emulated wires are processes, too, and one that gets no time loses most
/// of what it should carry.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Probes that wait their turn on a machine which is busy: a backend that is taken for dead has its connections reset.
fn patience() -> HealthConfig {
    let interval = Duration::from_secs(5);
    HealthConfig { interval, timeout: interval, fall: 10, rise: 1, ..HealthConfig::websocket() }
}

fn patient(seed: u64) -> SplicedPlan {
    SplicedPlan { health: patience(), ..SplicedPlan::new(seed) }
}

/// Nothing was wrong at the servers' ends, and nothing is left.
fn all_is_well(site: &SplicedSite) {
    let stats = site.all_stats().unwrap();
    assert_eq!(stats.iter().map(|it| it.wrong).sum::<u64>(), 0, "{stats:?}");
    site.wait_empty().unwrap();
    // A probe of the agent may be there just now.
    let deadline = Instant::now() + AT_ONCE;
    loop {
        let stats = site.all_stats().unwrap();
        if stats.iter().all(|it| it.open == 0) {
            return;
        }
        assert!(Instant::now() < deadline, "{stats:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How one connection goes, and how it ends.
#[derive(Clone, Copy, Debug)]
enum Life {
    ClientFin,
    ClientReset,
    ServerFin,
    ServerReset,
    /// The client is done and listens on.
    ClientHalf,
    /// The server is done and listens on.
    ServerHalf,
    /// The server sends from the first moment on.
    Pushed,
    /// The client goes on sending while it is spliced.
    Busy,
}

impl Life {
    const ALL: [Self; 8] = [
        Self::ClientFin,
        Self::ClientReset,
        Self::ServerFin,
        Self::ServerReset,
        Self::ClientHalf,
        Self::ServerHalf,
        Self::Pushed,
        Self::Busy,
    ];
}

/// One tuple of the soak.
#[derive(Clone)]
struct Slot {
    seed: u64,
    number: u64,
    source: SocketAddr,
    target: SocketAddr,
    watch: Watch,
}

impl Slot {
    /// Connection after connection on the same tuple, each in another way.
    async fn run(self, rounds: u64) -> Result<()> {
        let mut dice = SmallRng::seed_from_u64(self.seed ^ self.number);
        for round in 0..rounds {
            let life = Life::ALL[dice.random_range(0..Life::ALL.len())];
            let session = self.number * rounds + round;
            self.live(life, session, &mut dice).await.with_context(|| {
                format!("{life:?} in round {round} of {} to {}", self.source, self.target)
            })?;
        }
        Ok(())
    }

    async fn open(&self, terms: Terms) -> Result<(Pipe, Instant)> {
        let dial = Dial { source: Some(self.source), ..Dial::new(self.target, terms) };
        let pipe = dial.open().await?;
        Ok((pipe, Instant::now()))
    }

    async fn spliced(&self, since: Instant) -> Result<()> {
        self.watch.spliced(self.source, since, SPLICED).await
    }

    async fn live(&self, life: Life, session: u64, dice: &mut SmallRng) -> Result<()> {
        let (before, after) = (dice.random_range(1..5_000), dice.random_range(1..20_000));
        let echo = Terms::echo(self.seed, session);
        let stream = |bytes, piece, millis| {
            let (pause, awaited) = (Duration::from_millis(millis), false);
            Terms { mode: Mode::Stream { bytes, piece, pause, awaited }, ..echo }
        };
        match life {
            Life::ClientFin | Life::ClientReset => {
                let (mut pipe, opened) = self.open(echo).await?;
                pipe.echo(before).await?;
                self.spliced(opened).await?;
                pipe.echo(after).await?;
                if matches!(life, Life::ClientReset) { pipe.reset() } else { pipe.finish().await }
            }
            Life::ServerFin | Life::ServerReset => {
                let (ending, seen) = match life {
                    Life::ServerFin => (Ending::Fin, End::Fin),
                    _ => (Ending::Reset, End::Reset),
                };
                let terms = Terms { end: Some((before + after, ending)), ..echo };
                let (mut pipe, opened) = self.open(terms).await?;
                pipe.echo(before).await?;
                self.spliced(opened).await?;
                pipe.send(after).await?;
                if ending == Ending::Reset {
                    // Whatever the reset overtakes is lost, and what comes is right.
                    return Self::reset_by_server(&mut pipe, after).await;
                }
                pipe.receive(after).await?;
                let end = pipe.ended().await?;
                ensure!(end == seen, "{end:?}");
                Ok(())
            }
            Life::ClientHalf => {
                let (pipe, opened) = self.open(stream(after, 500, 30)).await?;
                self.spliced(opened).await?;
                pipe.exchange(before).await
            }
            Life::ServerHalf => {
                let terms = Terms { end: Some((before, Ending::Half)), ..echo };
                let (mut pipe, opened) = self.open(terms).await?;
                self.spliced(opened).await?;
                pipe.echo(before).await?;
                let end = pipe.ended().await?;
                ensure!(end == End::Fin, "{end:?}");
                pipe.send(after).await?;
                pipe.shut().await
            }
            Life::Pushed => {
                // In the pauses, longer than a delayed acknowledgement's, nothing is under way.
                let (mut pipe, opened) = self.open(stream(60_000, 3_000, 150)).await?;
                let (pushed, spliced) = tokio::join!(pipe.receive(45_000), self.spliced(opened));
                pushed.and(spliced)?;
                pipe.exchange(before).await
            }
            Life::Busy => {
                let (mut pipe, opened) = self.open(echo).await?;
                let pause = Duration::from_millis(dice.random_range(70..120));
                let mut more = 5;
                let go_on = || {
                    if self.watch.has(self.source, opened) {
                        more -= 1;
                    }
                    more > 0 && opened.elapsed() < SPLICED
                };
                pipe.chatter(before % 200 + 1, pause, go_on).await?;
                self.spliced(opened).await?;
                pipe.finish().await
            }
        }
    }

    async fn reset_by_server(pipe: &mut Pipe, due: u64) -> Result<()> {
        let start = Instant::now();
        let _ = pipe.receive(due).await;
        ensure!(start.elapsed() < AT_ONCE, "the reset came after {:?}", start.elapsed());
        Ok(())
    }
}

#[test]
fn thousands_on_tuples_that_are_used_again_at_once_end_in_every_way() {
    let _turn = turn();
    let (tuples, rounds) = effort::choose((300_u16, 4), (3_000, 8));
    let site = build(patient, "soak");
    let watch = Watch::start(site.edge.lister());
    let (seed, listeners) = (site.seed, site.listeners());
    let sources = listeners.map(|target| site.client_address(0, target));
    site.clients(0, async move |_| {
        let slots: Vec<_> = (0..tuples)
            .map(|number| {
                let version = usize::from(number % 2);
                let slot = Slot {
                    seed,
                    number: number.into(),
                    source: SocketAddr::new(sources[version], FIRST_PORT + number),
                    target: listeners[version],
                    watch: watch.clone(),
                };
                tokio::task::spawn_local(async move {
                    // Not all in the same moment.
                    tokio::time::sleep(Duration::from_millis(u64::from(number) / 2)).await;
                    slot.run(rounds).await
                })
            })
            .collect();
        let mut failed = Vec::new();
        for slot in slots {
            if let Err(error) = slot.await.expect("a slot does not panic") {
                failed.push(format!("{error:#}"));
            }
        }
        let shown = failed[..failed.len().min(5)].join("\n");
        assert!(failed.is_empty(), "{} of {tuples} tuples failed:\n{shown}", failed.len());
    });
    site.wait_counted("spliced", u64::from(tuples) * rounds).unwrap();
    eprintln!("{:?}", site.splices().unwrap());
    all_is_well(&site);
}

#[test]
fn who_sends_in_the_midst_of_the_hand_over_waits_for_one_retransmission_at_most() {
    /// Messages of each.
    const MESSAGES: u32 = 10;
    /// A retransmission timeout is 200 ms and two round trips; a busy machine adds to it.
    const PATIENCE: Duration = Duration::from_millis(700);
    let _turn = turn();
    let connections = effort::choose(400, 4_000);
    let site = build(patient, "in the midst");
    let watch = Watch::start(site.edge.lister());
    let (seed, listeners) = (site.seed, site.listeners());
    let times = site.clients(0, async move |_| -> Result<Vec<Duration>> {
        let mut dice = SmallRng::seed_from_u64(seed);
        let (mut times, mut pipes) = (Vec::new(), Vec::new());
        for number in 0..connections {
            let target = listeners[number as usize % 2];
            let mut pipe = Dial::new(target, Terms::echo(seed, number)).open().await?;
            for _ in 0..MESSAGES {
                // The runtime's own timers are too coarse: it shall be any moment of the hand-over's.
                let start = Instant::now();
                let pause = Duration::from_micros(dice.random_range(0..6_000));
                while start.elapsed() < pause {
                    tokio::task::yield_now().await;
                }
                let sent = Instant::now();
                pipe.echo(dice.random_range(1..300)).await?;
                times.push(sent.elapsed());
            }
            pipes.push((pipe, Instant::now()));
            // Some end while others begin.
            if pipes.len() > 50 {
                let (mut pipe, since) = pipes.remove(0);
                watch.spliced(pipe.local(), since, SPLICED).await?;
                pipe.echo(2_000).await?;
                pipe.finish().await?;
            }
        }
        for (pipe, _) in pipes {
            pipe.finish().await?;
        }
        Ok(times)
    });
    let mut times = times.unwrap();
    times.sort();
    let held = site.edge.status().unwrap().dropped(DropReason::SpliceHold);
    let slow = times.iter().filter(|time| **time > Duration::from_millis(150)).count();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    eprintln!("{held} segments dropped, {slow} messages slow; median {median:?}, worst {worst:?}");
    assert!(worst < PATIENCE, "{worst:?}");
    all_is_well(&site);
}

/// Opens so many echoes over both services, each on its own tuple, and waits until all are spliced.
async fn open_spliced(
    watch: &Watch,
    seed: u64,
    tuples: &[(SocketAddr, SocketAddr)],
) -> Result<Vec<Pipe>> {
    let mut pipes = Vec::new();
    for (number, (source, target)) in tuples.iter().enumerate() {
        let dial = Dial::new(*target, Terms::echo(seed, number as u64));
        let mut pipe = Dial { source: Some(*source), ..dial }.open().await?;
        pipe.echo(100).await?;
        pipes.push(pipe);
    }
    let opened = Instant::now();
    for pipe in &pipes {
        watch.spliced(pipe.local(), opened, SPLICED).await?;
    }
    Ok(pipes)
}

/// Tuples of a client, IPv4 and IPv6 in turns.
fn tuples(site: &SplicedSite, client: usize, count: u16) -> Vec<(SocketAddr, SocketAddr)> {
    let listeners = site.listeners();
    let tuple = |number: u16| {
        let target = listeners[usize::from(number % 2)];
        let source = SocketAddr::new(site.client_address(client, target), FIRST_PORT + number);
        (source, target)
    };
    (0..count).map(tuple).collect()
}

#[test]
fn a_killed_server_ends_its_clients_at_once_and_their_tuples_serve_again() {
    const VICTIM: usize = 1;
    let mut site = build(SplicedPlan::new, "killed server");
    let watch = Watch::start(site.edge.lister());
    let tuples = tuples(&site, 0, 60);
    let seed = site.seed;
    let (opened, is_open) = std::sync::mpsc::channel();
    let (killed, mut is_killed) = tokio::sync::mpsc::channel::<()>(1);
    let victim = server_name(VICTIM);
    let dialled = tuples.clone();
    let of_clients = watch.clone();
    let clients = site.start_clients(0, async move |_| -> Result<(usize, Vec<Pipe>)> {
        let pipes = open_spliced(&of_clients, seed, &dialled).await?;
        let (own, mut others): (Vec<_>, Vec<_>) =
            pipes.into_iter().partition(|pipe| pipe.backend == victim);
        opened.send(()).unwrap();
        is_killed.recv().await.context("the test has failed")?;
        let (start, count) = (Instant::now(), own.len());
        for mut pipe in own {
            // The kernel says FIN for a server that had read everything, and RST for any other.
            let end = pipe.ended().await?;
            ensure!(start.elapsed() < AT_ONCE, "{end:?} came after {:?}", start.elapsed());
            // At once again, with whoever is left.
            let dial = Dial::new(pipe.target(), Terms::echo(seed, 1_000 + others.len() as u64));
            let source = Some(pipe.local());
            drop(pipe);
            let mut again = Dial { source, ..dial }.open().await?;
            again.echo(100).await?;
            others.push(again);
        }
        let opened = Instant::now();
        for pipe in &mut others {
            of_clients.spliced(pipe.local(), opened, SPLICED).await?;
            pipe.echo(1_000).await?;
        }
        Ok((count, others))
    });
    is_open.recv_timeout(SPLICED * 2).expect("all are open");
    site.kill_server(VICTIM).unwrap();
    killed.blocking_send(()).unwrap();
    let (count, pipes) = clients.join().unwrap();
    assert!(count > 0 && count < tuples.len(), "{count} were with it");
    // Their runtime is gone: they are closed with FIN.
    drop(pipes);
    all_is_well(&site);
}

#[test]
fn a_client_that_vanishes_is_given_up_after_the_idle_timeout_and_its_server_is_told() {
    const VANISHED: usize = 1;
    let idle = Duration::from_secs(3);
    let plan = |seed| SplicedPlan { clients: 2, idle_timeout: idle, ..SplicedPlan::new(seed) };
    let site = build(plan, "vanished client");
    let watch = Watch::start(site.edge.lister());
    let (going, staying) = (tuples(&site, VANISHED, 40), tuples(&site, 0, 10));
    let (seed, count) = (site.seed, going.len() as u64);

    let (done, mut is_done) = tokio::sync::mpsc::channel::<()>(1);
    let of_others = watch.clone();
    let others = site.start_clients(0, async move |_| -> Result<()> {
        let mut pipes = open_spliced(&of_others, seed ^ 1, &staying).await?;
        while is_done.is_empty() && !is_done.is_closed() {
            for pipe in &mut pipes {
                pipe.echo(10).await?;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let _ = is_done.recv().await;
        for pipe in pipes {
            pipe.finish().await?;
        }
        Ok(())
    });
    let (opened, is_open) = std::sync::mpsc::channel();
    let (back, mut is_back) = tokio::sync::mpsc::channel::<()>(1);
    let vanishing = site.start_clients(VANISHED, async move |_| -> Result<()> {
        let pipes = open_spliced(&watch, seed, &going).await?;
        opened.send(()).unwrap();
        is_back.recv().await.context("the test has failed")?;
        let start = Instant::now();
        for mut pipe in pipes {
            // It knows nothing of its end until it says something.
            pipe.send(10).await?;
            let end = pipe.ended().await?;
            ensure!(end == End::Reset && start.elapsed() < AT_ONCE, "{end:?}");
        }
        Ok(())
    });
    is_open.recv_timeout(SPLICED).expect("all are open");
    let port = site.lab.client(VANISHED).port("eth0");
    port.down().unwrap();
    let down = Instant::now();
    let resets = || site.all_stats().unwrap().iter().map(|it| it.resets).sum::<u64>();
    while resets() < count {
        assert!(down.elapsed() < idle * 5, "{} of {count} servers were told", resets());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(down.elapsed() >= idle - Duration::from_secs(1), "after {:?}", down.elapsed());
    let stats = site.all_stats().unwrap();
    assert_eq!(stats.iter().map(|it| it.timeouts).sum::<u64>(), 0, "{stats:?}");
    port.up().unwrap();
    back.blocking_send(()).unwrap();
    vanishing.join().unwrap();
    done.blocking_send(()).unwrap();
    others.join().unwrap();
    all_is_well(&site);
}

/// Runs such an exchange on so many spliced connections at a time, in turns over IPv4 and IPv6.
fn exchange(site: &SplicedSite, connections: u64, bytes: u64) -> Duration {
    let watch = Watch::start(site.edge.lister());
    let (seed, listeners) = (site.seed, site.listeners());
    let start = Instant::now();
    site.clients(0, async move |_| {
        let watch = Arc::new(watch);
        let exchanges: Vec<_> = (0..connections)
            .map(|number| {
                let (watch, target) = (Arc::clone(&watch), listeners[number as usize % 2]);
                tokio::task::spawn_local(async move {
                    let pipe =
                        Dial::new(target, Terms::awaited(seed, number, bytes)).open().await?;
                    watch.spliced(pipe.local(), Instant::now(), SPLICED).await?;
                    pipe.exchange(bytes).await
                })
            })
            .collect();
        for exchange in exchanges {
            exchange.await.expect("an exchange does not panic")?;
        }
        anyhow::Ok(())
    })
    .unwrap();
    start.elapsed()
}

#[test]
fn bulk_each_way_is_exact() {
    let _turn = turn();
    let site = build(patient, "bulk");
    let bytes = effort::choose(64 << 20, 1 << 30);
    let took = exchange(&site, 2, bytes);
    eprintln!("2 x 2 x {} MiB in {took:?}", bytes >> 20);
    all_is_well(&site);
}

#[test]
fn bulk_each_way_is_exact_on_bad_wires() {
    let _turn = turn();
    let plan = |seed| SplicedPlan { wires: true, ..patient(seed) };
    let site = build(plan, "bulk, bad wires");
    site.rough(Duration::from_millis(25), 1.0);
    // TCP with one per cent lost at 50 ms takes some hundred KiB a second: many share the work.
    let (connections, bytes) = effort::choose((32, 512 << 10), (128, 8 << 20));
    let took = exchange(&site, connections, bytes);
    eprintln!("{connections} x 2 x {} KiB in {took:?}", bytes >> 10);
    site.smooth();
    all_is_well(&site);
}
