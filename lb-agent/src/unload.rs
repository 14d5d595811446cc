//! Takes an edge out of the kernel and off the host: sidecar, program, maps, VIPs, lock.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, Lock, PinDir, capabilities, lock::RUN_DIR, unload::Unloaded},
    netlink::Kernel,
    sidecar::{self, Directory, Memory},
    state::maps::Maps,
};

/// What was removed.
#[derive(Debug)]
pub struct Removed {
    pub kernel: Unloaded,
    pub vips: Vec<IpAddr>,
    /// Workers of the sidecar that ended.
    pub workers: usize,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel.fmt(f)?;
        match self.workers {
            0 => {}
            1 => f.write_str(", ended 1 worker")?,
            n => write!(f, ", ended {n} workers")?,
        }
        for vip in &self.vips {
            write!(f, ", removed VIP {vip}")?;
        }
        Ok(())
    }
}

/// Removes every trace of an edge which no agent runs. Beside the VIPs in its maps, those in `vips` are the edge's.
/// Doing it twice is harmless.
pub fn unload(edge: &str, mut vips: BTreeSet<IpAddr>) -> Result<Removed> {
    capabilities::check()?;
    let lock = Lock::acquire(RUN_DIR.as_ref(), edge)?;
    let pins = PinDir::of_edge(edge);
    // Maps of another version cannot be read; the configuration's VIPs have to do then.
    if let Ok(actual) = Maps::from_pins(&pins.path().join("maps")).and_then(|maps| maps.read()) {
        vips.extend(actual.listeners.keys().map(|at| at.ip));
    }
    let directory = Directory::of_edge(RUN_DIR.as_ref(), edge);
    vips.extend(Memory::read(&directory).vips);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start")?;
    // The sidecar says goodbye to its clients, which needs the VIPs.
    let workers = runtime.block_on(sidecar::end_all(&directory))?;
    // Then the VIPs: without the program, the host's own TCP stack would answer clients with resets.
    let vips = runtime.block_on(remove_vips(&vips))?;
    let kernel = bpf::unload(&pins)?;
    lock.remove()?;
    Ok(Removed { kernel, vips, workers })
}

/// Removes those of these addresses which an agent added to the host.
async fn remove_vips(vips: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>> {
    let kernel = Kernel::connect().context("netlink: cannot connect")?;
    let mut removed = Vec::new();
    for (vip, ifindex) in kernel.owned_vips().await? {
        if vips.contains(&vip) {
            kernel.remove_vip(vip, ifindex).await?;
            removed.push(vip);
        }
    }
    Ok(removed)
}
