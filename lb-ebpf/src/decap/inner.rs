//! The inner packet: whether it is for one of our VIPs, whether it is whole, and its ECN field.

use aya_ebpf::{macros::map, maps::HashMap};
use lb_common::{
    addr::{V4, V6},
    checksum::Delta,
    decap::{DecapDrop, DecapEvent, Key},
};
use lb_ebpf::{
    packet::Packet,
    wire::{Ipv4Hdr, Ipv6Hdr, get16, get32, get128, put16},
};

use crate::{ecn, outer::Outer};

/// The VIPs of this backend; IPv4 addresses are mapped ones. Values are flags, none of them in use.
#[map]
static DECAP_VIPS: HashMap<V6, u32> = HashMap::with_max_entries(1024, 0);

#[inline(always)]
fn is_vip(addr: &impl Key) -> bool {
    DECAP_VIPS.get_ptr(addr.key()).is_some()
}

/// Makes an inner IPv4 packet ready to stand alone. `Decapsulated` means that its outer header is to
/// be stripped.
#[inline(always)]
pub fn open4(packet: &mut Packet, outer: &Outer) -> Result<DecapEvent, DecapDrop> {
    let Ok(ip) = packet.at::<Ipv4Hdr>(outer.l3 + outer.header) else {
        return Ok(DecapEvent::PassMalformed);
    };
    if outer.payload < Ipv4Hdr::LEN || ip.vihl >> 4 != 4 {
        return Ok(DecapEvent::PassMalformed);
    }
    if !is_vip(&V4(get32(&ip.dst_addr))) {
        return Ok(DecapEvent::PassNotForUs);
    }
    let (header, len) = ((ip.vihl & 0xf) as usize * 4, u16::from_be(get16(&ip.tot_len)) as usize);
    if header < Ipv4Hdr::LEN || len < header || len > outer.payload {
        return Err(DecapDrop::Malformed);
    }
    let tos = ip.tos & !3 | ecn::leave_tunnel(outer.ecn, ip.tos & 3)?;
    if tos != ip.tos {
        let old = u16::from_ne_bytes([ip.vihl, ip.tos]);
        ip.tos = tos;
        let delta = Delta::default().word(old, u16::from_ne_bytes([ip.vihl, ip.tos]));
        let check = delta.apply(get16(&ip.check));
        put16(&mut ip.check, check);
    }
    Ok(DecapEvent::Decapsulated)
}

/// The same for an inner IPv6 packet.
#[inline(always)]
pub fn open6(packet: &mut Packet, outer: &Outer) -> Result<DecapEvent, DecapDrop> {
    let Ok(ip) = packet.at::<Ipv6Hdr>(outer.l3 + outer.header) else {
        return Ok(DecapEvent::PassMalformed);
    };
    if outer.payload < Ipv6Hdr::LEN || ip.vcf[0] >> 4 != 6 {
        return Ok(DecapEvent::PassMalformed);
    }
    if !is_vip(&V6(get128(&ip.dst_addr))) {
        return Ok(DecapEvent::PassNotForUs);
    }
    if Ipv6Hdr::LEN + u16::from_be(get16(&ip.payload_len)) as usize > outer.payload {
        return Err(DecapDrop::Malformed);
    }
    // The traffic class straddles the first two bytes; its ECN field is in the second.
    let ecn = ecn::leave_tunnel(outer.ecn, ip.vcf[1] >> 4 & 3)?;
    ip.vcf[1] = ip.vcf[1] & 0xcf | ecn << 4;
    Ok(DecapEvent::Decapsulated)
}
