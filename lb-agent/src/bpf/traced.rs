//! The traced variant of the data plane, in the place of the usual one for as long as somebody traces.
//!
//! It works on the same pinned maps, so neither swap loses a flow or a count. What is its own (filter, records) ends
//! with it. The usual program stays pinned meanwhile; an agent that starts puts its own in, as always.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, RingBuf},
    programs::ProgramFd,
};
use lb_common::trace::{Counts, Filter};

use super::{
    loader::{PROGRAM, open, verify},
    pins::{self, PinDir},
};

/// A traced program in the kernel, attached nowhere yet.
pub struct Traced {
    ebpf: Ebpf,
    program: ProgramFd,
}

impl Traced {
    /// Loads it over the maps that are pinned, with the filter in force.
    pub fn load(object: &[u8], pins: &PinDir, filter: &Filter) -> Result<Self> {
        let names = pins::list(&pins.path().join("maps"))?;
        let mut ebpf = open(object, pins, names.iter().map(String::as_str))?;
        let (program, _) = verify(&mut ebpf, PROGRAM)?;
        let map = ebpf.map_mut("TRACE_FILTER").context("the traced object has no filter")?;
        let mut filters: Array<_, Filter> = map.try_into()?;
        filters.set(0, filter, 0).context("TRACE_FILTER")?;
        Ok(Self { ebpf, program })
    }

    /// What is to be put on the interfaces.
    pub fn program(&self) -> &ProgramFd {
        &self.program
    }

    /// Where its records come. Once.
    pub fn take_records(&mut self) -> Result<RingBuf<MapData>> {
        let map = self.ebpf.take_map("TRACES").context("the traced object has no records")?;
        Ok(map.try_into()?)
    }

    /// How many packets it told of, and how many not.
    pub fn counts(&self) -> Result<Counts> {
        let map = self.ebpf.map("TRACE_COUNTS").context("the traced object has no counts")?;
        let map: PerCpuArray<_, Counts> = map.try_into()?;
        let mut sum = Counts::default();
        map.get(&0, 0)?.iter().for_each(|cpu| sum += *cpu);
        Ok(sum)
    }

    /// The object as aya sees it: for aya-log's map.
    pub fn ebpf_mut(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Puts a program in the place of the one that is there, wherever one is attached. Each packet meets either.
pub fn swap(pins: &PinDir, program: &ProgramFd) -> Result<()> {
    for name in pins.interfaces()? {
        let Some(link) = pins.link(&name)? else { continue };
        // One whose interface is gone is nobody's.
        if link.info()?.ifindex != 0 {
            link.update(program.as_fd())
                .with_context(|| format!("interface {name}: cannot swap the XDP program"))?;
        }
    }
    Ok(())
}
