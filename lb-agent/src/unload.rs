//! Takes an edge out of the kernel and off the host: program, maps, VIPs, lock.

use std::{collections::BTreeSet, fmt, net::IpAddr};

use anyhow::{Context, Result};

use crate::{
    bpf::{self, Lock, PinDir, capabilities, lock::RUN_DIR, unload::Unloaded},
    netlink::Kernel,
    state::maps::Maps,
};

/// What was removed.
#[derive(Debug)]
pub struct Removed {
    pub kernel: Unloaded,
    pub vips: Vec<IpAddr>,
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kernel.fmt(f)?;
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
    // First the VIPs: without the program, the host's own TCP stack would answer clients with resets.
    let vips = remove_vips(&vips)?;
    let kernel = bpf::unload(&pins)?;
    lock.remove()?;
    Ok(Removed { kernel, vips })
}

/// Removes those of these addresses which an agent added to the host.
fn remove_vips(vips: &BTreeSet<IpAddr>) -> Result<Vec<IpAddr>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start netlink")?;
    runtime.block_on(async {
        let kernel = Kernel::connect().context("netlink: cannot connect")?;
        let mut removed = Vec::new();
        for (vip, ifindex) in kernel.owned_vips().await? {
            if vips.contains(&vip) {
                kernel.remove_vip(vip, ifindex).await?;
                removed.push(vip);
            }
        }
        Ok(removed)
    })
}
