//! Idle clients as processes of their own, since each may have so many descriptors only.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use tests::{
    bench::load::{self, Echoes, Entrance},
    interrupt::Graceful,
    process::Process,
};

use crate::target::Running;

/// Connections of a process: its descriptors, and some air.
pub const MOST: usize = 16_000;

const OPEN: &str = "all are open";
const GOOD: &str = "all are good";
const PATIENCE: Duration = Duration::from_secs(300);

/// The process's part: opens so many, has a message of each echoed, and is silent until a signal; then each must
/// echo again.
pub fn hold(source: IpAddr, count: usize, targets: Vec<SocketAddr>) -> Result<()> {
    let graceful = Graceful::new();
    let mut entrance = Entrance::new(targets);
    entrance.source = Some(source);
    let open = Echoes::start(load::open(&entrance, count)?)?.finish()?;
    println!("{OPEN}");
    let _ = graceful.wait(None);
    drop(Echoes::start(open)?.finish()?);
    println!("{GOOD}");
    Ok(())
}

/// The processes.
pub struct Idle(Vec<Process>);

impl Idle {
    /// Opens so many connections in all, and waits until each has carried a message.
    pub fn open(running: &Running, connections: usize) -> Result<Self> {
        let program = std::env::current_exe()?;
        let targets: Vec<_> =
            running.entrance().addresses.iter().map(ToString::to_string).collect();
        let mut processes = Vec::new();
        let mut left = connections;
        while left > 0 {
            let count = left.min(MOST);
            // An address of its own, so that its ports are.
            let source = format!("10.1.0.{}", 11 + processes.len());
            running.site.client.ip(&format!("address replace {source}/24 dev eth0"))?;
            let mut command = running.site.client.command(&program);
            command.args(["clients", "--source", &source, "--count", &count.to_string()]);
            command.args(&targets);
            let process = Process::spawn("clients", command)?;
            // One after the other: all at once open faster than anybody hands over.
            process.wait_for_line(PATIENCE, |line| line == OPEN)?;
            processes.push(process);
            left -= count;
        }
        Ok(Self(processes))
    }

    /// Every connection must carry another message.
    pub fn check(mut self) -> Result<()> {
        for process in &self.0 {
            process.signal(Signal::SIGTERM)?;
        }
        for process in &mut self.0 {
            process.wait_for_line(PATIENCE, |line| line == GOOD).context("a connection is lost")?;
            process.wait(PATIENCE)?;
        }
        Ok(())
    }
}
