//! What the machine and a proxy have spent: processor time and memory.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// Processes whose expense is counted.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pids: Vec<u32>,
}

/// A moment.
pub struct Moment {
    at: Instant,
    idle: Duration,
    processes: Duration,
}

/// What passed between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Expense {
    pub elapsed: Duration,
    /// Time that the machine's CPUs were not idle, the clients' and servers' included.
    pub machine: Duration,
    /// Time that the processes ran.
    pub processes: Duration,
}

impl Account {
    /// Of a process and all that it has started.
    pub fn of_family(pid: u32) -> Result<Self> {
        let mut pids = vec![pid];
        let mut next = 0;
        while next < pids.len() {
            for task in tasks(pids[next])? {
                let children = fs::read_to_string(format!("{task}/children")).unwrap_or_default();
                pids.extend(children.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            next += 1;
        }
        Ok(Self { pids })
    }

    pub fn now(&self) -> Result<Moment> {
        let mut processes = Duration::ZERO;
        for pid in &self.pids {
            processes += on_cpu(*pid)?;
        }
        Ok(Moment { at: Instant::now(), idle: idle()?, processes })
    }

    pub fn since(&self, start: &Moment) -> Result<Expense> {
        let end = self.now()?;
        let elapsed = end.at - start.at;
        let cpus = u32::try_from(cpus()?)?;
        Ok(Expense {
            elapsed,
            machine: (elapsed * cpus).saturating_sub(end.idle.saturating_sub(start.idle)),
            processes: end.processes.saturating_sub(start.processes),
        })
    }

    /// The processes' memory in bytes; pages that several share count once.
    pub fn memory(&self) -> Result<u64> {
        self.pids.iter().map(|pid| proportional(*pid)).sum()
    }
}

fn tasks(pid: u32) -> Result<Vec<String>> {
    let directory = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&directory).with_context(|| format!("{directory}: is it gone?"))?;
    Ok(entries.flatten().map(|entry| entry.path().display().to_string()).collect())
}

/// Time that all threads of a process ran, those that have ended too.
fn on_cpu(pid: u32) -> Result<Duration> {
    let clock = clock_getcpuclockid(Pid::from_raw(i32::try_from(pid)?));
    let time = clock.and_then(clock_gettime).with_context(|| format!("process {pid}: is it gone?"));
    Ok(time?.into())
}

/// Time that the CPUs had nothing to do or were lent to other machines, all together.
///
/// The kernel counts idle time exactly and busy time by looking at each tick: busy is what is left.
fn idle() -> Result<Duration> {
    const IDLE: usize = 3;
    const IOWAIT: usize = 4;
    const STEAL: usize = 7;
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat: empty")?;
    let numbers: Vec<u64> = line.split_whitespace().skip(1).flat_map(str::parse).collect();
    let ticks: Option<u64> =
        [IDLE, IOWAIT, STEAL].map(|n| numbers.get(n).copied()).into_iter().sum();
    let ticks = ticks.with_context(|| format!("/proc/stat: {line}"))?;
    let hertz = sysconf(SysconfVar::CLK_TCK)?.context("no CLK_TCK")?;
    Ok(Duration::from_secs_f64(ticks as f64 / hertz as f64))
}

fn cpus() -> Result<i64> {
    sysconf(SysconfVar::_NPROCESSORS_ONLN)?.context("no number of CPUs")
}

fn proportional(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let value = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kibibytes = value.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kibibytes.with_context(|| format!("{path}: no Pss"))? * 1024)
}
