//! Round trips of handshakes, added up over the CPUs.

use anyhow::{Context, Result};
use aya::maps::{MapData, PerCpuArray};
use lb_common::rtt::HandshakeRtt;

use super::{counters::zeros, pins::PinDir, specs::names};

/// Reads those of an edge; they go back to zero only when an id is given to another service.
pub struct HandshakeRtts(PerCpuArray<MapData, HandshakeRtt>);

impl HandshakeRtts {
    /// Opens the pinned map.
    pub fn open(pins: &PinDir) -> Result<Self> {
        let map = pins.map(names::HANDSHAKE_RTT)?;
        Ok(Self(map.try_into().context(names::HANDSHAKE_RTT)?))
    }

    /// Those of a service.
    pub fn service(&self, id: u16) -> Result<HandshakeRtt> {
        let cpus = self.0.get(&u32::from(id), 0);
        let cpus = cpus.with_context(|| format!("{}: service {id}", names::HANDSHAKE_RTT))?;
        let mut sum = HandshakeRtt::default();
        cpus.iter().for_each(|cpu| sum += *cpu);
        Ok(sum)
    }

    /// Sets those of a service to zero.
    pub fn clear(&mut self, id: u16) -> Result<()> {
        let set = self.0.set(u32::from(id), zeros()?, 0);
        set.with_context(|| format!("{}: service {id}", names::HANDSHAKE_RTT))
    }
}
