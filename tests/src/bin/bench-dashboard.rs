//! What the dashboard costs the edge (`cargo xtask bench dashboard`).
//!
//! An edge with many services, each of which gets a client a second, so that each has changed whenever the dashboard is
//! told. Rounds in which nobody watches, one page does and as many as may take turns; the difference is the dashboard's.
//! docs/benchmarks.md has the results.

use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{JoinHandle, sleep},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use nix::{time::clock_getcpuclockid, unistd::Pid};
use tests::{
    bench::{
        backend,
        site::{SOURCE, Site, VIP},
    },
    edge::{BackendConfig, Edge, EdgeConfig, Forward, HealthConfig, L7Config, ServiceConfig},
    netns::NsHandle,
    privilege,
};

const FIRST_PORT: u16 = 2_000;
const BACKENDS: usize = 4;
/// Of a core.
const TARGET: f64 = 0.01;
/// As many as may watch.
const MOST: usize = 16;
const BETWEEN_CLIENTS: Duration = Duration::from_secs(1);
/// In which the first status is made and sent.
const SETTLE: Duration = Duration::from_secs(2);

/// Measures what it costs the agent that somebody looks at the dashboard.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    /// Services, every second one with `mode = "l7"`
    #[arg(long, default_value_t = 50)]
    services: u16,
    /// Rounds of each kind
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of a round
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// The result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Subcommand)]
enum Role {
    /// The server behind the edge
    #[command(hide = true)]
    Backend { addresses: Vec<SocketAddr> },
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(Role::Backend { addresses }) = &arguments.role {
        return backend::serve(addresses);
    }
    privilege::require_root();
    let site = Site::with_servers(2)?;
    let edge = Edge::start(&site.edge, config(&site, arguments.services))?;
    edge.wait_all_up()?;
    let clients = Clients::start(&site, arguments.services);
    let mut kinds = [0, 1, MOST].map(|pages| Kind { pages, shares: Vec::new(), bytes: 0 });
    for _ in 0..arguments.rounds {
        for kind in &mut kinds {
            kind.round(&edge, Duration::from_secs(arguments.seconds))?;
        }
    }
    clients.stop()?;
    report(&arguments, &kinds)
}

fn config(site: &Site, services: u16) -> EdgeConfig {
    let mut config = EdgeConfig::new(&["eth0", "eth1"]);
    config.source_addresses = vec![SOURCE.into()];
    for n in 0..services {
        let listen = [SocketAddr::from((VIP, FIRST_PORT + n))];
        let mut service = ServiceConfig::new(&format!("service-{n}"), listen, Forward::Nat);
        service.l7 = (n % 2 == 1).then(|| L7Config { logged: false, ..L7Config::default() });
        let interval = Duration::from_secs(5);
        service.health = HealthConfig { interval, ..HealthConfig::default() };
        for (n, address) in site.backends().iter().take(BACKENDS).enumerate() {
            service.backends.push(BackendConfig::new(&format!("backend-{n}"), *address));
        }
        config.services.push(service);
    }
    config
}

/// Rounds with so many pages open.
struct Kind {
    pages: usize,
    /// Of a core, of each round.
    shares: Vec<f64>,
    /// Sent to all pages in all rounds.
    bytes: u64,
}

impl Kind {
    fn round(&mut self, edge: &Edge, length: Duration) -> Result<()> {
        let pages: Result<Vec<_>> = (0..self.pages).map(|_| Page::open(edge.namespace())).collect();
        let pages = pages?;
        sleep(SETTLE);
        let heard = || pages.iter().map(Page::heard).sum::<u64>();
        let agent = edge.process().pid();
        let (start, ran_before, before) = (Instant::now(), ran(agent)?, heard());
        sleep(length);
        let spent = ran(agent)? - ran_before;
        self.shares.push(spent.as_secs_f64() / start.elapsed().as_secs_f64());
        let bytes = heard() - before;
        ensure!(pages.is_empty() || bytes > 0, "the pages were told nothing");
        self.bytes += bytes;
        pages.into_iter().try_for_each(Page::close)
    }

    fn median(&self) -> f64 {
        let mut shares = self.shares.clone();
        shares.sort_by(f64::total_cmp);
        shares[shares.len() / 2]
    }
}

/// Processor time of a process so far. Of the threads that have ended, too: the agent reads its status in one that comes
/// and goes.
fn ran(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(pid.cast_signed()))?;
    Ok(clock.now()?.into())
}

/// An open dashboard, as far as the edge is concerned.
struct Page {
    stream: TcpStream,
    heard: Arc<AtomicU64>,
    reader: JoinHandle<()>,
}

impl Page {
    fn open(edge: &NsHandle) -> Result<Self> {
        let address: SocketAddr = EdgeConfig::ADMIN.parse()?;
        let mut stream = edge.run(|| TcpStream::connect(address))?;
        write!(stream, "GET /v1/stream HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
        let (heard, mut from) = (Arc::new(AtomicU64::new(0)), stream.try_clone()?);
        let counter = Arc::clone(&heard);
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = from.read(&mut buffer) {
                counter.fetch_add(bytes as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { stream, heard, reader })
    }

    fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    fn close(self) -> Result<()> {
        // An edge that hung up before has refused this one.
        self.stream.shutdown(Shutdown::Both).context("the edge has closed a stream")?;
        self.reader.join().map_err(|_| anyhow::anyhow!("a reader has died"))
    }
}

/// Clients that come and go: one for each service in each second.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Clients {
    fn start(site: &Site, services: u16) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = site.client.spawn("clients", move || {
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                for n in 0..services {
                    ask((VIP, FIRST_PORT + n).into())?;
                }
                next += BETWEEN_CLIENTS;
                sleep(next.saturating_duration_since(Instant::now()));
            }
            Ok(())
        });
        Self { stop, thread }
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the clients have died"))?
    }
}

fn ask(target: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(target).with_context(|| target.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while !answer.ends_with(backend::BODY) {
        let more = stream.read(&mut buffer)?;
        ensure!(more > 0, "{target}: the answer ends early");
        answer.extend(&buffer[..more]);
    }
    Ok(())
}

fn report(arguments: &Arguments, kinds: &[Kind]) -> Result<()> {
    let floor = kinds[0].median();
    let seconds = (arguments.rounds as u64 * arguments.seconds) as f64;
    let lines = kinds.iter().map(|kind| {
        let share = kind.median();
        let each = kind.bytes as f64 / seconds / kind.pages.max(1) as f64;
        (kind.pages, share, share - floor, each)
    });
    let lines: Vec<_> = lines.collect();
    let [_, (_, _, own, _), _] = lines[..] else { anyhow::bail!("three kinds of rounds") };
    if arguments.json {
        let lines = lines.iter().map(|(pages, agent, own, bytes)| {
            serde_json::json!({ "pages": pages, "agent": agent, "dashboard": own, "bytes_per_second_and_page": bytes })
        });
        let lines: Vec<_> = lines.collect();
        println!("{}", serde_json::json!({ "services": arguments.services, "lines": lines }));
        return Ok(());
    }
    println!("{} services, {BACKENDS} backends each; % of a core, medians", arguments.services);
    println!("{:>6} {:>8} {:>10} {:>16}", "pages", "agent", "dashboard", "bytes/s a page");
    for (pages, agent, own, bytes) in lines {
        println!("{pages:>6} {:>8.3} {:>10.3} {bytes:>16.0}", agent * 100.0, own * 100.0);
    }
    let verdict = if own < TARGET { "reached" } else { "MISSED" };
    println!("one page: {:.3} % of a core, target {} %: {verdict}", own * 100.0, TARGET * 100.0);
    Ok(())
}
