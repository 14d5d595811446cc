//! What the walk through a full flow table costs the agent. See docs/benchmarks.md.
//!
//! The real agent runs in a namespace of its own; flows are written into its pinned table; then the processor time of the
//! thread that walks is read for a while. No packet flows.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, MapData};
use clap::{Parser, ValueEnum};
use lb_agent::bpf::{PinDir, specs::names, sys::now_ticks};
use lb_common::{
    addr::{Tuple, V4},
    flow::{Flow, flags, forward},
};
use tests::{
    edge::{BackendConfig, Edge, EdgeConfig, Forward, ServiceConfig},
    netns::Netns,
    privilege::require_root,
};

#[derive(Parser)]
#[command(about = "What the walk through a full flow table costs the agent")]
struct Arguments {
    /// Entries of the table; in nat a connection has two
    #[arg(long, default_value_t = 1_000_000)]
    flows: u32,
    /// How long to look
    #[arg(long, default_value_t = 120, value_name = "SECONDS")]
    seconds: u64,
    /// Only this way of forwarding
    #[arg(long)]
    mode: Option<Mode>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Nat,
    Dsr,
}

const VIP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(203, 0, 113, 10)), 80);
const BACKEND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 2, 0, 2)), 9000);

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    require_root();
    println!(
        "{:<6} {:>9} {:>9} {:>7} {:>12} {:>12}",
        "mode", "entries", "seconds", "walks", "sweeper", "whole agent"
    );
    for mode in [Mode::Nat, Mode::Dsr] {
        if arguments.mode.is_none_or(|it| it == mode) {
            measure(&arguments, mode)?;
        }
    }
    Ok(())
}

fn measure(arguments: &Arguments, mode: Mode) -> Result<()> {
    let namespace = Netns::new("edge")?;
    let handle = namespace.handle();
    handle.ip(
        "link add e0 type veth peer name e1\nlink set e0 up\nlink set e1 up\naddr add 10.2.0.1/24 dev e0\n",
    )?;
    let mut config = EdgeConfig::new(&["e0"]);
    config.flows = arguments.flows.next_power_of_two();
    config.source_addresses = vec![Ipv4Addr::new(10, 2, 0, 1).into()];
    let (name, forward) = match mode {
        Mode::Nat => ("nat", Forward::Nat),
        Mode::Dsr => ("dsr", Forward::Dsr),
    };
    let mut service = ServiceConfig::new("chat", [VIP], forward);
    // Nobody answers there: the pool fails open, and nobody is reset.
    let port = if mode == Mode::Nat { BACKEND.port() } else { VIP.port() };
    service.backends.push(BackendConfig::new("b", SocketAddr::new(BACKEND.ip(), port)));
    config.services.push(service);
    let edge = Edge::start(handle, config)?;
    let status: serde_json::Value = serde_json::from_str(&edge.get("/v1/status")?.body)?;
    let backend = status["services"][0]["backends"][0]["id"].as_u64().context("no id")?;
    let mut table = flows(&edge)?;
    fill(&mut table, arguments.flows, mode, u16::try_from(backend)?)?;

    let pid = edge.process().pid();
    let thread = sweeper(pid)?;
    let entries = || -> Result<u64> {
        let status: serde_json::Value = serde_json::from_str(&edge.get("/v1/status")?.body)?;
        let tables = status["tables"].as_array().context("no tables")?;
        let table = tables.iter().find(|it| it["name"] == names::FLOWS4).context("no FLOWS4")?;
        table["entries"].as_u64().context("no entries")
    };
    // The first whole walk is over.
    while entries()? != u64::from(arguments.flows) {
        thread::sleep(Duration::from_millis(100));
    }
    let before = (run_time(pid, thread)?, all(pid)?, Instant::now());
    let (mut walks, mut was, mut busy) = (0, before.0, false);
    while before.2.elapsed() < Duration::from_secs(arguments.seconds) {
        thread::sleep(Duration::from_millis(200));
        let now = run_time(pid, thread)?;
        let is_busy = now - was > Duration::from_millis(5);
        walks += u32::from(is_busy && !busy);
        (was, busy) = (now, is_busy);
    }
    let elapsed = before.2.elapsed().as_secs_f64();
    let share = |time: Duration| 100.0 * time.as_secs_f64() / elapsed;
    println!(
        "{name:<6} {:>9} {elapsed:>9.1} {walks:>7} {:>10.2} % {:>10.2} %",
        arguments.flows,
        share(run_time(pid, thread)? - before.0),
        share(all(pid)? - before.1),
    );
    ensure!(entries()? == u64::from(arguments.flows), "flows were removed meanwhile");
    Ok(())
}

type Table = HashMap<MapData, Tuple<V4>, Flow<V4>>;

fn flows(edge: &Edge) -> Result<Table> {
    Ok(PinDir::of_edge(edge.name()).map(names::FLOWS4)?.try_into()?)
}

fn fill(table: &mut Table, entries: u32, mode: Mode, backend: u16) -> Result<()> {
    let now = now_ticks();
    let ip = |net: u32, n: u32| V4::from(Ipv4Addr::from(net << 24 | n));
    let at = |address: SocketAddr| match address.ip() {
        std::net::IpAddr::V4(ip) => (V4::from(ip), address.port().to_be()),
        std::net::IpAddr::V6(_) => unreachable!("it is IPv4"),
    };
    let ((vip, vip_port), (server, server_port)) = (at(VIP), at(BACKEND));
    let usual = Flow::<V4> { backend, last_seen: now, created: now, packets: 9, ..Flow::default() };
    let connections = if mode == Mode::Nat { entries / 2 } else { entries };
    for n in 0..connections {
        // Sixteen ports for each address.
        let port = (40_000 + (n % 16) as u16).to_be();
        let client = Tuple { src: ip(100, n / 16), dst: vip, sport: port, dport: vip_port };
        if mode == Mode::Dsr {
            table.insert(client, Flow { to: client, forward: forward::DSR, ..usual }, 0)?;
            continue;
        }
        let up = Tuple {
            src: ip(10, (1 << 20) | (n / 16)),
            dst: server,
            sport: port,
            dport: server_port,
        };
        let (answers, down) = (up.reversed(), client.reversed());
        table.insert(client, Flow { to: up, forward: forward::NAT, ..usual }, 0)?;
        let back = Flow { to: down, forward: forward::NAT, flags: flags::TO_CLIENT, ..usual };
        table.insert(answers, back, 0)?;
    }
    Ok(())
}

/// The thread that walks.
fn sweeper(pid: u32) -> Result<u32> {
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let task = task?;
        if fs::read_to_string(task.path().join("comm"))?.trim() == "sweeper" {
            return Ok(task.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("the agent has no thread named sweeper")
}

/// What a thread has run.
fn run_time(pid: u32, thread: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat"))?;
    let nanos = text.split_whitespace().next().context("schedstat is empty")?;
    Ok(Duration::from_nanos(nanos.parse()?))
}

/// What all threads of a process have run that are there now.
fn all(pid: u32) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let thread = task?.file_name().to_string_lossy().parse()?;
        sum += run_time(pid, thread).unwrap_or_default();
    }
    Ok(sum)
}
