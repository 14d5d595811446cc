//! The program for backends without an IP-in-IP device: attached to an interface, it takes packets for the backend's
//! VIPs out of their tunnel. It runs without an agent.
//!
//! ```text
//! /sys/fs/bpf/sluice-decap/NAMESPACE/INTERFACE/{links,maps}/, program
//! ```
//! `NAMESPACE` is the inode of the network namespace: containers may share a bpffs, and each has its own `eth0`.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::maps::{HashMap, MapData, PerCpuArray};
use lb_common::{
    addr::{V4, V6},
    decap::{COUNTERS, DecapDrop, DecapEvent, Key, VIPS},
};

use crate::{
    bpf::{
        self, Attached, PinDir, XdpMode, capabilities, loader,
        pins::{self, BPFFS, file_name},
        specs,
        unload::Unloaded,
    },
    object,
};

/// Name of the program in its object file.
const PROGRAM: &str = "decap";

/// Where all pins are.
fn top() -> PathBuf {
    Path::new(BPFFS).join("sluice-decap")
}

/// The pins of a network namespace, given by its inode: a directory for each interface.
#[must_use]
pub fn pins_in(namespace: u64) -> PathBuf {
    top().join(namespace.to_string())
}

/// The inode of the network namespace that this thread is in.
fn namespace() -> Result<u64> {
    let path = "/proc/thread-self/ns/net";
    Ok(fs::metadata(path).context(path)?.ino())
}

/// The pins of the program of an interface in this network namespace.
fn pins_of(interface: &str) -> Result<PinDir> {
    Ok(PinDir::at(pins_in(namespace()?).join(file_name(interface))))
}

/// Attaches the program to an interface, or brings it up to date where it is attached. From then on exactly these VIPs
/// are taken out of tunnels; counters go on.
pub fn attach(
    interface: &str,
    vips: &BTreeSet<IpAddr>,
    mode: XdpMode,
    object: Option<&[u8]>,
) -> Result<Attached> {
    capabilities::check()?;
    if vips.len() > specs::MAX_DECAP_VIPS as usize {
        bail!("{} VIPs: at most {} can be given", vips.len(), specs::MAX_DECAP_VIPS);
    }
    pins::mount_bpffs()?;
    let object = match object {
        Some(object) => object,
        None => object::decap()?,
    };
    let pins = pins_of(interface)?;
    let was_loaded = pins.program_path().exists();
    let attached =
        loader::load_program(object, PROGRAM, &pins, &specs::decap_maps()).and_then(|loaded| {
            // Before the program meets packets.
            set_vips(&pins, vips)?;
            loaded.attach(interface, mode)
        });
    if attached.is_err() && !was_loaded {
        bpf::unload(&pins)?;
    }
    attached.with_context(|| {
        format!("interface {interface}: `lb-agent decap detach --interface {interface}` undoes what was done before")
    })
}

/// Takes the program off an interface, and removes its pins. Packets stay in their tunnels from then on.
pub fn detach(interface: &str) -> Result<Unloaded> {
    capabilities::check()?;
    let unloaded = bpf::unload(&pins_of(interface)?)?;
    // They stay while another interface, here or elsewhere, has the program.
    let _ = fs::remove_dir(pins_in(namespace()?));
    let _ = fs::remove_dir(top());
    Ok(unloaded)
}

/// What the program of an interface is for, and what it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub interface: String,
    pub attached: bool,
    pub vips: BTreeSet<IpAddr>,
    /// Label and number of packets.
    pub events: Vec<(&'static str, u64)>,
    pub drops: Vec<(&'static str, u64)>,
}

/// The interfaces of this network namespace that have the program, or had it when they went away.
pub fn status() -> Result<Vec<Status>> {
    capabilities::check()?;
    let directory = pins_in(namespace()?);
    let mut all = Vec::new();
    for name in pins::list(&directory).with_context(|| directory.display().to_string())? {
        all.push(status_of(&PinDir::at(directory.join(&name)), pins::plain_name(&name))?);
    }
    all.sort_by(|a, b| a.interface.cmp(&b.interface));
    Ok(all)
}

fn status_of(pins: &PinDir, interface: String) -> Result<Status> {
    let counters: PerCpuArray<MapData, u64> = pins.map(COUNTERS)?.try_into().context(COUNTERS)?;
    let count = |index| -> Result<u64> {
        Ok(counters.get(&index, 0).with_context(|| format!("{COUNTERS}: {index}"))?.iter().sum())
    };
    let vips = vips_of(pins)?.keys().map(|key| Ok(address(key?))).collect::<Result<_>>()?;
    Ok(Status {
        attached: bpf::attach::link_state(pins, &interface)? == bpf::LinkState::Attached,
        vips,
        events: DecapEvent::ALL
            .iter()
            .map(|it| Ok((it.label(), count(it.index())?)))
            .collect::<Result<_>>()?,
        drops: DecapDrop::ALL
            .iter()
            .map(|it| Ok((it.label(), count(it.index())?)))
            .collect::<Result<_>>()?,
        interface,
    })
}

fn vips_of(pins: &PinDir) -> Result<HashMap<MapData, V6, u32>> {
    pins.map(VIPS)?.try_into().context(VIPS)
}

fn set_vips(pins: &PinDir, vips: &BTreeSet<IpAddr>) -> Result<()> {
    let mut map = vips_of(pins)?;
    let old: Vec<V6> = map.keys().collect::<Result<_, _>>().context(VIPS)?;
    let new: Vec<V6> = vips.iter().map(|vip| key(*vip)).collect();
    // The surplus first: there is room for all that are wanted, not for those that were as well.
    for key in old.iter().filter(|key| !new.contains(key)) {
        map.remove(key).with_context(|| format!("{VIPS}: cannot remove {}", address(*key)))?;
    }
    for key in new.iter().filter(|key| !old.contains(key)) {
        map.insert(key, 0, 0).with_context(|| format!("{VIPS}: cannot add {}", address(*key)))?;
    }
    Ok(())
}

fn key(vip: IpAddr) -> V6 {
    match vip {
        IpAddr::V4(addr) => V4::from(addr).key(),
        IpAddr::V6(addr) => V6::from(addr).key(),
    }
}

fn address(key: V6) -> IpAddr {
    IpAddr::from(key).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_for_addresses_of_both_versions() {
        for text in ["203.0.113.10", "2001:db8::10"] {
            let vip: IpAddr = text.parse().unwrap();
            assert_eq!(address(key(vip)), vip);
        }
    }

    #[test]
    fn namespaces_and_interfaces_with_dots_have_pins_of_their_own() {
        let here = format!("/sys/fs/bpf/sluice-decap/{}/eth0%2e5", namespace().unwrap());
        assert_eq!(pins_of("eth0.5").unwrap().path(), Path::new(&here));
    }
}
