//! Asking the kernel to resolve neighbours, and to keep those alive which only XDP talks to.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{Kernel, change, state::NetState};

impl Kernel {
    /// Makes the kernel find out or confirm the link-layer address of `addr` on the link `ifindex`, and returns
    /// at once; the outcome is a neighbour event.
    ///
    /// `RTM_NEWNEIGH` with `NTF_USE` acts as if a packet were being sent (neigh_event_send() in
    /// net/core/neighbour.c): an unknown or failed entry is solicited, a stale one goes through DELAY to a unicast
    /// probe, one that is confirmed stays untouched. That works alike for ARP and ND and needs neither a socket
    /// nor a packet.
    ///
    /// A neighbour that does not answer ends as failed after 3 s (`mcast_solicit` times `retrans_time_ms`), with an
    /// event; asking again meanwhile does nothing. So an agent that resolves what is unresolved at every event asks
    /// at the kernel's own pace.
    ///
    /// Never call it for an entry that is permanent: `NTF_USE` clears `NUD_PERMANENT`. [`Kernel::keep_fresh`]
    /// knows.
    pub async fn resolve(&self, ifindex: u32, addr: IpAddr) -> Result<()> {
        if addr.is_unspecified() || addr.is_multicast() || ifindex == 0 {
            bail!("neighbour {addr} on interface {ifindex}: not a unicast address on a link");
        }
        let request = self
            .handle
            .neighbours()
            .add(ifindex, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        change(request.execute(), &[])
            .await
            .with_context(|| format!("netlink: resolving {addr} on interface {ifindex}"))?;
        Ok(())
    }

    /// Calls [`Kernel::resolve`] for each of `neighbours`, except where `state` has a permanent entry.
    ///
    /// To be called every few seconds for the next hops in use: packets which XDP sends do not pass the kernel's
    /// neighbour table, so it neither notices that an entry is used nor that the peer moved. It costs one unicast
    /// probe per neighbour and `base_reachable_time` (30 s). Errors (say, the link just went) are logged at debug
    /// level: the next snapshot says more.
    pub async fn keep_fresh(
        &self,
        state: &NetState,
        neighbours: impl IntoIterator<Item = (u32, IpAddr)>,
    ) {
        for (ifindex, addr) in neighbours {
            let permanent =
                |n: &super::Neighbour| n.permanent && n.ifindex == ifindex && n.addr == addr;
            if state.neighbours.iter().any(permanent) {
                continue;
            }
            if let Err(error) = self.resolve(ifindex, addr).await {
                tracing::debug!(error = format!("{error:#}"), "neighbour not refreshed");
            }
        }
    }
}
