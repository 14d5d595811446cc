//! The driver programs: which flow's packets they send, and to which program.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunOptions,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, Xdp},
};
use clap::ValueEnum;
use lb_common::bench::{Drive, LINK, WORDS};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::{
    edge,
    frame::{self, Frame},
    scenario::Scenario,
};

/// `XDP_TX`.
pub const TRANSMIT: u32 = 3;

const DRIVERS: [&str; 4] = ["clients4", "backends4", "clients6", "backends6"];
const FLOOR: &str = "floor";

/// In which order flows have their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// As clients send that know nothing of each other
    Random,
    /// As the flows were entered: the processor sees what comes next
    Arrival,
}

pub struct Driver {
    ebpf: Ebpf,
    drive: Array<MapData, Drive>,
    program: ProgramArray<MapData>,
    floor: ProgramFd,
}

/// What one call of a driver left.
pub struct Sent {
    pub flow: u32,
    pub verdict: u32,
    pub bytes: Vec<u8>,
}

impl Driver {
    pub fn load(path: &Path) -> Result<Self> {
        let object = edge::object(path)?;
        // The parser reads the file's tables in place, so they must be aligned.
        let mut words = vec![0_u64; object.len().div_ceil(8)];
        let aligned = &mut bytemuck::cast_slice_mut(&mut words)[..object.len()];
        aligned.copy_from_slice(&object);
        let mut ebpf = EbpfLoader::new().load(aligned)?;
        for name in DRIVERS.iter().chain([&FLOOR]) {
            xdp(&mut ebpf, name)?.load().with_context(|| format!("driver program {name}"))?;
        }
        let floor = xdp(&mut ebpf, FLOOR)?.fd()?.try_clone()?;
        let drive = ebpf.take_map("DRIVE").context("no map DRIVE")?.try_into()?;
        let program = ebpf.take_map("PROGRAM").context("no map PROGRAM")?.try_into()?;
        Ok(Self { ebpf, drive, program, floor })
    }

    /// What the next packets look like. The generator goes on from where it is.
    pub fn send(&mut self, scenario: Scenario, flows: u32, order: Order) -> Result<()> {
        let first = template(scenario, 0);
        let drive = Drive {
            len: first.bytes.len() as u32,
            flows,
            state: self.drive.get(&0, 0)?.state,
            port_bits: scenario.port_bits(),
            ..Drive::default()
        };
        let mut drive = match order {
            Order::Random => drive.in_random_order(),
            Order::Arrival => drive.in_order_of_arrival(),
        };
        let bytes = bytemuck::bytes_of_mut(&mut drive.link);
        bytes[..LINK].copy_from_slice(&first.bytes[..LINK]);
        let words = WORDS[usize::from(!scenario.is_ipv4())];
        let bytes = bytemuck::bytes_of_mut(&mut drive.headers);
        bytes[..words * 8].copy_from_slice(&first.bytes[LINK..][..words * 8]);
        self.drive.set(0, drive, 0).context("map DRIVE: cannot write")
    }

    /// Puts a program behind the driver; `None` is the floor.
    pub fn put(&mut self, program: Option<&ProgramFd>) -> Result<()> {
        self.program.set(0, program.unwrap_or(&self.floor), 0).context("map PROGRAM: cannot write")
    }

    /// Sends one packet and returns what became of it.
    pub fn one(&mut self, scenario: Scenario) -> Result<Sent> {
        let flow = self.drive.get(&0, 0)?.next_flow();
        let input = template(scenario, 0);
        let mut bytes = vec![0; 4096];
        let options = TestRunOptions {
            data_in: Some(&input.bytes),
            data_out: Some(&mut bytes),
            ..TestRunOptions::default()
        };
        let result = xdp(&mut self.ebpf, scenario.driver())?.test_run(options)?;
        bytes.truncate(result.data_size_out as usize);
        Ok(Sent { flow, verdict: result.return_value, bytes })
    }

    /// Sends so many packets and returns what one takes, in nanoseconds.
    ///
    /// The kernel too says what a packet takes, but in whole nanoseconds. This is the thread's own
    /// time, without what other processes took; the call's overhead is lost among the packets.
    pub fn many(&mut self, scenario: Scenario, packets: u32) -> Result<f64> {
        let input = template(scenario, 0);
        let program = xdp(&mut self.ebpf, scenario.driver())?;
        let options = TestRunOptions {
            data_in: Some(&input.bytes),
            repeat: packets,
            ..TestRunOptions::default()
        };
        let start = thread_time()?;
        let result = program.test_run(options)?;
        let took = thread_time()? - start;
        if result.return_value != TRANSMIT {
            bail!("the last packet's verdict is {} and not XDP_TX", result.return_value);
        }
        Ok(took.as_nanos() as f64 / f64::from(packets))
    }
}

/// A flow's packet as it comes off the wire.
pub fn template(scenario: Scenario, flow: u32) -> Frame {
    frame::segment([[2, 0, 0, 0, 0, 1], [2, 0, 0, 2, 0, 1]], &scenario.flow(flow).0)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

fn thread_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Makes the processor reach its speed and the caches their state before anything counts.
pub fn warm_up(mut step: impl FnMut() -> Result<()>, least: Duration) -> Result<()> {
    let start = Instant::now();
    loop {
        step()?;
        if start.elapsed() >= least {
            return Ok(());
        }
    }
}

/// The driver writes only what `Drive` can hold.
pub fn check_flows(flows: u32) -> Result<()> {
    const MOST: u32 = 1 << 21;
    ensure!(
        (1..=MOST).contains(&flows),
        "{flows} flows: must be 1 to {MOST}, which is what the clients' address range has room for"
    );
    Ok(())
}
