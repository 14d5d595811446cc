//! A load of chat clients as a process of its own: JSON on standard output.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use tests::chat::{Load, LoadConfig, LoadStats};
use tests::interrupt::Graceful;
use tests::netns::NsHandle;

/// Opens chat connections, checks every byte, and reports as JSON. Exits with 1 if a byte was wrong.
#[derive(Parser)]
struct Arguments {
    /// Where to connect to; connections take turns over several
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    /// Own addresses to connect from, in turns
    #[arg(long)]
    source: Vec<IpAddr>,
    /// The network namespace from which it connects
    #[arg(long)]
    netns: Option<String>,
    #[arg(long, default_value_t = 10)]
    connections: usize,
    /// Seconds; without it, until Ctrl-C
    #[arg(long)]
    duration: Option<f64>,
    #[arg(long)]
    seed: Option<u64>,
    /// Milliseconds between two messages of a connection
    #[arg(long, default_value_t = 20.0)]
    interval: f64,
    /// The shortest message in bytes
    #[arg(long, default_value_t = 1)]
    shortest: usize,
    /// The longest message in bytes
    #[arg(long, default_value_t = 1024)]
    longest: usize,
    /// How many messages of a connection may be on their way
    #[arg(long, default_value_t = 1)]
    window: usize,
    /// Close a session after so many messages and open another one
    #[arg(long)]
    messages_per_session: Option<u64>,
    /// Milliseconds between the starts of two connections
    #[arg(long, default_value_t = 0.0)]
    ramp: f64,
    /// Do not open a session again that was lost
    #[arg(long)]
    no_reconnect: bool,
    /// Seconds between reports while it runs, each a line of JSON without the single connections
    #[arg(long)]
    every: Option<f64>,
    /// Leave the single connections out of the last report, too
    #[arg(long)]
    brief: bool,
}

fn report(mut stats: LoadStats, brief: bool) -> Result<()> {
    if brief {
        stats.per_connection.clear();
    }
    println!("{}", serde_json::to_string(&stats)?);
    Ok(())
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let graceful = Graceful::new();
    let namespace = arguments.netns.as_deref().map(NsHandle::open).transpose()?;
    let seed = arguments.seed.unwrap_or_else(|| tests::seed::seed("chat-client"));
    let millis = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let config = LoadConfig {
        sources: arguments.source,
        interval: millis(arguments.interval),
        message: (arguments.shortest, arguments.longest),
        window: arguments.window,
        messages_per_session: arguments.messages_per_session,
        ramp: millis(arguments.ramp),
        reconnect: !arguments.no_reconnect,
        ..LoadConfig::new(arguments.target, arguments.connections, seed)
    };
    let load = Load::start(namespace.as_ref(), config)?;
    let end = arguments.duration.map(|s| Instant::now() + Duration::from_secs_f64(s));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let every = arguments.every.map(Duration::from_secs_f64);
        let pause = [left, every].into_iter().flatten().min();
        if graceful.wait(pause) || end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        report(load.stats(), true)?;
    }
    let stats = load.stop();
    let code = if stats.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    report(stats, arguments.brief)?;
    Ok(code)
}
