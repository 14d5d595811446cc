//! The last stage: the link header, and out.

use aya_ebpf::bindings::{
    BPF_FIB_LKUP_RET_BLACKHOLE, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_PROHIBIT,
    BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNREACHABLE, bpf_fib_lookup,
};
use lb_common::{
    addr::{Addr, V4},
    next_hop::NextHop,
    outcome::{DropReason, Event},
    trace::Stage,
};
use lb_ebpf::{
    packet::Packet,
    wire::{EthHdr, Ipv4Hdr, Ipv6Hdr, VlanTag, ethertype, get16, get32, get128, put_mac},
};

use crate::{Verdict, count, forward::Way, next_hop, punt, stage, trace};

/// Sends a packet as it stands at `l3`.
#[inline(always)]
pub fn plain<A: Addr>(packet: &mut Packet, l3: usize, way: &Way) -> Result<Verdict, DropReason> {
    let kind = match A::FAMILY {
        V4::FAMILY => ethertype::IPV4,
        _ => ethertype::IPV6,
    };
    let Some(hop) = next_hop::get(way.next_hop) else {
        make_room(packet, l3, EthHdr::LEN)?;
        return stage::unresolved(packet, kind, way.link_backend);
    };
    let link = link_len(hop);
    make_room(packet, l3, link)?;
    out(packet, hop, kind)
}

/// Sends a packet behind another IP header, of so many words, which is written by `write`.
#[inline(always)]
pub fn wrapped<const WORDS: usize>(
    packet: &mut Packet,
    l3: usize,
    kind: u16,
    next_hop: u16,
    write: impl Fn(&mut [[u8; 4]; WORDS]),
) -> Result<Verdict, DropReason> {
    let Some(hop) = next_hop::get(next_hop) else {
        make_room(packet, l3, EthHdr::LEN + WORDS * 4)?;
        write(packet.at(EthHdr::LEN)?);
        return stage::unresolved(packet, kind, 0);
    };
    let link = link_len(hop);
    make_room(packet, l3, link + WORDS * 4)?;
    write(packet.at(link)?);
    out(packet, hop, kind)
}

/// Length of the link header: Ethernet and at most two tags. Whatever the map says, it stays in bounds.
#[inline(always)]
fn link_len(hop: &NextHop) -> usize {
    EthHdr::LEN + (hop.tags_len & 0b1100) as usize
}

/// Moves the frame's start so that `wanted` bytes come before what is now at `offset`.
#[inline(always)]
fn make_room(packet: &mut Packet, offset: usize, wanted: usize) -> Result<(), DropReason> {
    match wanted as i32 - offset as i32 {
        0 => Ok(()),
        bytes => packet.grow_head(bytes),
    }
}

/// Writes the link header and chooses the way out.
#[inline(always)]
fn out(packet: &mut Packet, hop: &NextHop, kind: u16) -> Result<Verdict, DropReason> {
    let ethernet = packet.at::<EthHdr>(0)?;
    put_mac(&mut ethernet.dst_addr, &hop.dst);
    put_mac(&mut ethernet.src_addr, &hop.src);
    if hop.tags_len == 0 {
        ethernet.ether_type = kind;
    } else {
        tags(packet, hop, kind)?;
    }
    trace::step(Stage::Out, 0, hop.ifindex);
    Ok(leave(packet, hop.ifindex))
}

/// Writes the VLAN tags. On the wire a tag is TPID, TCI; the next EtherType follows it.
#[inline(never)]
fn tags(packet: &mut Packet, hop: &NextHop, kind: u16) -> Result<(), DropReason> {
    let [outer, inner] = hop.tags;
    packet.at::<EthHdr>(0)?.ether_type = outer[0];
    let tag = |tci: u16, next: u16| {
        let (tci, next) = (tci.to_ne_bytes(), next.to_ne_bytes());
        [tci[0], tci[1], next[0], next[1]]
    };
    if hop.tags_len == 4 {
        *packet.at::<VlanTag>(EthHdr::LEN)? = tag(outer[1], kind);
    } else {
        *packet.at::<VlanTag>(EthHdr::LEN)? = tag(outer[1], inner[0]);
        *packet.at::<VlanTag>(EthHdr::LEN + 4)? = tag(inner[1], kind);
    }
    Ok(())
}

#[inline(always)]
fn leave(packet: &Packet, ifindex: u32) -> Verdict {
    if ifindex == packet.ingress() {
        Verdict::Transmit
    } else {
        packet.redirect(ifindex);
        Verdict::Redirect
    }
}

/// Sends a packet, which begins right after an Ethernet header, where the kernel's FIB says; what
/// the kernel cannot resolve now goes to the agent. `link_backend`: see [`Way::link_backend`].
#[inline(always)]
pub fn unresolved(
    packet: &mut Packet,
    kind: u16,
    link_backend: u16,
) -> Result<Verdict, DropReason> {
    // The packet as IP has it: short frames are padded.
    let ip_len = match kind {
        ethertype::IPV4 => {
            u16::from_be(get16(&packet.at::<Ipv4Hdr>(EthHdr::LEN)?.tot_len)) as usize
        }
        _ => {
            let ip = packet.at::<Ipv6Hdr>(EthHdr::LEN)?;
            Ipv6Hdr::LEN + u16::from_be(get16(&ip.payload_len)) as usize
        }
    };
    // With `dsr` the destination is our own address: the FIB cannot help.
    if link_backend == 0 {
        // SAFETY: all-zero bytes are a valid value of this C struct.
        let mut fib: bpf_fib_lookup = unsafe { core::mem::zeroed() };
        fib.ifindex = packet.ingress();
        if kind == ethertype::IPV4 {
            let ip = packet.at::<Ipv4Hdr>(EthHdr::LEN)?;
            fib.family = 2; // AF_INET
            fib.l4_protocol = ip.proto;
            fib.__bindgen_anon_3.ipv4_src = get32(&ip.src_addr);
            fib.__bindgen_anon_4.ipv4_dst = get32(&ip.dst_addr);
        } else {
            let ip = packet.at::<Ipv6Hdr>(EthHdr::LEN)?;
            fib.family = 10; // AF_INET6
            fib.l4_protocol = ip.next_hdr;
            fib.__bindgen_anon_3.ipv6_src = get128(&ip.src_addr);
            fib.__bindgen_anon_4.ipv6_dst = get128(&ip.dst_addr);
        }
        match packet.fib_lookup(&mut fib) as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {
                let ethernet = packet.at::<EthHdr>(0)?;
                *ethernet = EthHdr { dst_addr: fib.dmac, src_addr: fib.smac, ether_type: kind };
                count::event(packet.service, Event::FibLookup);
                return Ok(leave(packet, fib.ifindex));
            }
            BPF_FIB_LKUP_RET_BLACKHOLE
            | BPF_FIB_LKUP_RET_UNREACHABLE
            | BPF_FIB_LKUP_RET_PROHIBIT
            | BPF_FIB_LKUP_RET_NOT_FWDED => return Err(DropReason::NoRoute),
            // No neighbour yet, forwarding off on the interface, a route that needs more than a MAC
            // address: the agent sends it through the kernel.
            _ => {}
        }
    }
    punt::to_agent(packet, EthHdr::LEN, ip_len, link_backend)
}
