//! VIPs on the host: which of them, on which device, and which addresses are ours to remove.
//!
//! XDP itself does not need a VIP to be an address of the host. Those do who must find the edge by ARP or ND:
//! clients and routers on the same link as the VIP.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use anyhow::{Context, Result, bail};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressProtocol, CacheInfo};
use nix::libc::{EADDRNOTAVAIL, EEXIST, ENODEV};

use super::{Kernel, Prefix, RouteKind, change, state::NetState};

/// `IFA_PROTO` of addresses which the agent added. It survives the agent, so that the next one finds them. Linux
/// keeps it since 5.18; 0 to 3 are the kernel's own, and no other user of this number is known.
pub const IFA_PROTO_SLUICE: u8 = 0x53;

/// When a VIP becomes an address of the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VipPolicy {
    /// If it lies in a prefix that is on one of the edge's links: nobody else would answer ARP or ND for it.
    #[default]
    Auto,
    /// Always: on that link if there is one, else on the loopback device.
    Always,
    /// Never: somebody else sees to it.
    Never,
}

/// One step towards the desired VIPs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VipOp {
    Add { vip: IpAddr, ifindex: u32 },
    Remove { vip: IpAddr, ifindex: u32 },
}

/// The addresses in `state` that some agent added: (VIP, interface index).
pub fn owned(state: &NetState) -> Vec<(IpAddr, u32)> {
    let ours = state.addresses.iter().filter(|a| a.proto == IFA_PROTO_SLUICE);
    ours.map(|a| (a.addr, a.ifindex)).collect()
}

/// What has to be done so that the host has the `desired` VIPs as their policies want it, given the edge's
/// `interfaces` (indices). VLAN subinterfaces of an edge's interface count as it does.
///
/// An address which somebody else put on the host is neither touched nor doubled. Additions come first, so that
/// a VIP that moves between devices is never gone.
pub fn plan_vips(
    desired: &BTreeMap<IpAddr, VipPolicy>,
    interfaces: &BTreeSet<u32>,
    state: &NetState,
) -> Vec<VipOp> {
    let foreign: BTreeSet<IpAddr> =
        state.addresses.iter().filter(|a| a.proto != IFA_PROTO_SLUICE).map(|a| a.addr).collect();
    let loopback = state.links.iter().find(|l| l.loopback).map(|l| l.index);
    let place = |vip: IpAddr, policy| match policy {
        _ if foreign.contains(&vip) => None,
        VipPolicy::Auto => on_link(vip, interfaces, state),
        VipPolicy::Always => on_link(vip, interfaces, state).or(loopback),
        VipPolicy::Never => None,
    };
    let wanted: BTreeMap<IpAddr, u32> =
        desired.iter().filter_map(|(&vip, &policy)| Some((vip, place(vip, policy)?))).collect();
    let existing: BTreeSet<(IpAddr, u32)> = owned(state).into_iter().collect();

    let missing = wanted.iter().filter(|(vip, ifindex)| !existing.contains(&(**vip, **ifindex)));
    let surplus = existing.iter().filter(|(vip, ifindex)| wanted.get(vip) != Some(ifindex));
    missing
        .map(|(&vip, &ifindex)| VipOp::Add { vip, ifindex })
        .chain(surplus.map(|&(vip, ifindex)| VipOp::Remove { vip, ifindex }))
        .collect()
}

/// The edge's device on whose link `vip` lies: the one with the longest prefix; of several, the lowest index.
fn on_link(vip: IpAddr, interfaces: &BTreeSet<u32>, state: &NetState) -> Option<u32> {
    let of_edge = |index: u32| {
        let mut link = state.link(index);
        // Two tags are all that the data plane takes.
        for _ in 0..3 {
            let Some(l) = link else { return false };
            if interfaces.contains(&l.index) {
                return true;
            }
            link = l.vlan.and_then(|vlan| state.link(vlan.parent));
        }
        false
    };
    let addresses = state.addresses.iter().map(|a| (Prefix::new(a.addr, a.prefix_len), a.ifindex));
    let connected = |r: &&super::Route| r.via.is_none() && r.kind == RouteKind::Plain;
    let routes = state.routes.iter().filter(connected).map(|r| (r.prefix, r.ifindex));
    addresses
        .chain(routes)
        // A host prefix says nothing of a link, and a default route without a gateway says too much.
        .filter(|(prefix, ifindex)| {
            !prefix.is_host() && prefix.len() > 0 && prefix.contains(vip) && of_edge(*ifindex)
        })
        .min_by_key(|(prefix, ifindex)| (std::cmp::Reverse(prefix.len()), *ifindex))
        .map(|(_, ifindex)| ifindex)
}

impl Kernel {
    /// Carries out one step of [`plan_vips`].
    pub async fn apply_vip(&self, op: VipOp) -> Result<()> {
        match op {
            VipOp::Add { vip, ifindex } => self.ensure_vip(vip, ifindex).await,
            VipOp::Remove { vip, ifindex } => self.remove_vip(vip, ifindex).await,
        }
    }

    /// Adds `vip` as a /32 or /128 to the device, tagged as ours. No error if it is there already.
    ///
    /// IPv6: without duplicate address detection (several edges may have the VIP, RFC 4429 and RFC 4862 5.4), and
    /// deprecated from the start, so that source address selection (RFC 6724, rule 3) leaves it alone.
    pub async fn ensure_vip(&self, vip: IpAddr, ifindex: u32) -> Result<()> {
        let host = if vip.is_ipv4() { 32 } else { 128 };
        let mut request = self.handle.address().add(ifindex, vip, host);
        let attributes = &mut request.message_mut().attributes;
        attributes.push(AddressAttribute::Protocol(AddressProtocol::Other(IFA_PROTO_SLUICE)));
        if vip.is_ipv6() {
            attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            let mut lifetime = CacheInfo::default();
            lifetime.ifa_preferred = 0;
            lifetime.ifa_valid = u32::MAX;
            attributes.push(AddressAttribute::CacheInfo(lifetime));
        }
        let added = change(request.execute(), &[EEXIST])
            .await
            .with_context(|| format!("netlink: adding VIP {vip} to interface {ifindex}"))?;
        if !added {
            // Ours, or a stranger's that came between plan and deed.
            return Ok(());
        }

        // An untagged address would be a stranger's to every later agent: rather none at all.
        if self.owned_vips().await?.contains(&(vip, ifindex)) {
            return Ok(());
        }
        self.delete(vip, ifindex).await?;
        bail!(
            "VIP {vip}: this kernel does not keep IFA_PROTO (Linux 5.18 and later do): \
             add the address yourself and set the policy for VIPs to never"
        )
    }

    /// Removes `vip` from the device if it is tagged as ours. No error if it, or the device, is gone.
    pub async fn remove_vip(&self, vip: IpAddr, ifindex: u32) -> Result<()> {
        if self.owned_vips().await?.contains(&(vip, ifindex)) {
            self.delete(vip, ifindex).await?;
        }
        Ok(())
    }

    /// The VIPs which this agent, or an earlier one, added: (VIP, interface index).
    pub async fn owned_vips(&self) -> Result<Vec<(IpAddr, u32)>> {
        let addresses = self.addresses().await?;
        Ok(owned(&NetState { addresses, ..NetState::default() }))
    }

    async fn delete(&self, vip: IpAddr, ifindex: u32) -> Result<()> {
        let host = if vip.is_ipv4() { 32 } else { 128 };
        let mut message = self.handle.address().add(ifindex, vip, host);
        let message = std::mem::take(message.message_mut());
        change(self.handle.address().del(message).execute(), &[EADDRNOTAVAIL, ENODEV])
            .await
            .with_context(|| format!("netlink: removing VIP {vip} from interface {ifindex}"))?;
        Ok(())
    }
}

#[cfg(test)]
#[path = "vip_tests.rs"]
mod tests;
