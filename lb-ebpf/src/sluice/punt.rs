//! The way to the agent, for packets whose next hop is not resolved: it asks the kernel to resolve
//! and sends them on, so that no packet is lost to a missing ARP entry.

use aya_ebpf::{macros::map, maps::RingBuf};
use lb_common::{
    outcome::{DropReason, Event},
    punt::{MAX_PACKET, Punt},
};
use lb_ebpf::packet::Packet;

use crate::{Verdict, count};

/// Packets for the agent to send.
#[map]
static PUNTS: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// Hands over the packet of `len` bytes that begins at `l3`.
#[inline(always)]
pub fn to_agent(
    packet: &mut Packet,
    l3: usize,
    len: usize,
    backend: u16,
) -> Result<Verdict, DropReason> {
    if len == 0 || len > MAX_PACKET {
        return Err(DropReason::PuntQueueFull);
    }
    let Some(mut entry) = PUNTS.reserve::<Punt>(0) else {
        return Err(DropReason::PuntQueueFull);
    };
    let punt = entry.as_mut_ptr();
    // SAFETY: the entry has room for a whole `Punt`; each field is written through a raw pointer,
    // since the memory is not initialised yet. What lies behind `len` in `packet` is left over from
    // earlier entries of this ring, and the agent does not look there.
    let copied = unsafe {
        (*punt).len = len as u32;
        (*punt).backend = backend;
        (*punt)._pad = [0; 5];
        packet.copy_to(l3, &mut (*punt).packet, len)
    };
    if !copied {
        entry.discard(0);
        return Err(DropReason::Truncated);
    }
    entry.submit(0);
    count::event(packet.service, Event::Punted);
    Ok(Verdict::Punted)
}
