//! The link emulator as a process of its own: a bad wire between two namespaces.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use tests::interrupt::Graceful;
use tests::link::{Direction, Impairment, Link};
use tests::netns::NsHandle;

/// Makes a TAP device at each end and carries frames between them, by a seed, until Ctrl-C.
///
/// The devices are up but have no addresses. Both directions are alike.
#[derive(Parser)]
struct Arguments {
    /// One end, NETNS:DEVICE
    #[arg(long)]
    a: End,
    /// The other end, NETNS:DEVICE
    #[arg(long)]
    b: End,
    /// What brings the run back; random if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Milliseconds
    #[arg(long, default_value_t = 0.0)]
    delay: f64,
    /// Milliseconds, at most, on top of the delay
    #[arg(long, default_value_t = 0.0)]
    jitter: f64,
    /// Percent of the frames
    #[arg(long, default_value_t = 0.0)]
    drop: f64,
    /// Percent of the frames
    #[arg(long, default_value_t = 0.0)]
    reorder: f64,
    /// Milliseconds for which a reordered frame is held back
    #[arg(long, default_value_t = 2.0)]
    reorder_hold: f64,
    /// Percent of the frames
    #[arg(long, default_value_t = 0.0)]
    duplicate: f64,
    /// Percent of the frames; one bit is flipped past the Ethernet header
    #[arg(long, default_value_t = 0.0)]
    corrupt: f64,
    /// Megabits per second
    #[arg(long)]
    rate: Option<f64>,
    /// How many frames may wait in a direction
    #[arg(long, default_value_t = 1000)]
    queue: usize,
}

#[derive(Clone)]
struct End {
    netns: String,
    device: String,
}

impl std::str::FromStr for End {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.rsplit_once(':') {
            Some((netns, device)) if !netns.is_empty() && !device.is_empty() => {
                Ok(Self { netns: netns.to_owned(), device: device.to_owned() })
            }
            _ => bail!("{text}: write NETNS:DEVICE, as in client:eth0"),
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let graceful = Graceful::new();
    let seed = arguments.seed.unwrap_or_else(|| tests::seed::seed("link-emulator"));
    let millis = |ms: f64| Duration::try_from_secs_f64(ms / 1000.0).context("not a time");
    let impairment = Impairment {
        delay: millis(arguments.delay)?,
        jitter: millis(arguments.jitter)?,
        drop: arguments.drop,
        reorder: arguments.reorder,
        reorder_hold: millis(arguments.reorder_hold)?,
        duplicate: arguments.duplicate,
        corrupt: arguments.corrupt,
        rate: arguments.rate.map(|megabits| (megabits * 1e6) as u64),
        queue: arguments.queue,
    };
    let (a, b) = (NsHandle::open(&arguments.a.netns)?, NsHandle::open(&arguments.b.netns)?);
    let link = Link::emulate(&a, &arguments.a.device, &b, &arguments.b.device, impairment, seed)?;
    for (namespace, end) in [(&a, &arguments.a), (&b, &arguments.b)] {
        let mut up: Command = namespace.command("ip");
        tests::process::run(up.args(["link", "set", &end.device, "up"]))?;
    }
    println!(
        "{}:{} <-> {}:{}, seed {seed}",
        a.name(),
        arguments.a.device,
        b.name(),
        arguments.b.device
    );
    let _ = graceful.wait(None);
    for (name, direction) in [("a_to_b", Direction::AToB), ("b_to_a", Direction::BToA)] {
        println!("{name} {}", serde_json::to_string(&link.counters(direction))?);
    }
    Ok(())
}
