//! The TCP options of a SYN or SYN-ACK.

use lb_common::{
    checksum::Delta,
    handshake::{Offer, offers},
    outcome::{DropReason, Event},
    service::Backend,
};
use lb_ebpf::{
    packet::{Packet, blurred, opaque},
    wire::{Tcp, get16, put16, tcp_flags},
};

use crate::{Version, count, parse::Segment};

/// Most bytes of options that a TCP header can have.
pub const MAX: usize = 40;

/// Room for the options: a value can be read at any offset below 64 without a check for each byte.
pub const ROOM: usize = 64 + 8;

const END: u8 = 0;
const NOP: u8 = 1;
const MSS: u8 = 2;
const WINDOW_SCALE: u8 = 3;
const SACK_PERMITTED: u8 = 4;
pub const SACK: u8 = 5;
pub const TIMESTAMPS: u8 = 8;

/// What the options say, and where the value of the MSS option is, counted from the first option; 0: nowhere.
#[repr(C)]
pub struct Options {
    pub offer: Offer,
    pub mss_at: u8,
    pub _pad: [u8; 3],
}

/// Where each kind of option stands, counted from one; 0 where there is none. Kinds from 16 on are of
/// no interest.
pub type Places = [u8; 16];

/// Finds the options. A list that contradicts itself ends there, as in every stack: what came before
/// holds.
#[inline(never)]
pub fn find(bytes: &[u8; ROOM], len: usize, places: &mut Places) {
    let mut at = 0;
    // Each turn consumes one byte at least. The turn does nothing but note a place: the verifier
    // follows every combination of branches in here.
    for _ in 0..MAX {
        at = blurred(at);
        let len = blurred(len);
        if at >= len || at >= MAX {
            break;
        }
        let (kind, size) = (bytes[at], bytes[at + 1] as usize);
        if kind == END {
            break;
        }
        if kind == NOP {
            at += 1;
            continue;
        }
        if size < 2 || at + size > len {
            break;
        }
        if let Some(place) = places.get_mut(kind as usize) {
            *place = at as u8 + 1;
        }
        at += size;
    }
}

/// Reads the options of a segment.
#[inline(always)]
pub fn read<A>(packet: &Packet, segment: &Segment<A>, options: &mut Options) {
    let mut bytes = [0u8; ROOM];
    let len = (segment.options as usize) & 0x3c;
    if len == 0
        || len > MAX
        || !packet.copy_to(segment.l4 as usize + Tcp::LEN, &mut bytes[..MAX], len)
    {
        return;
    }
    let mut places = Places::default();
    find(&bytes, len, &mut places);
    let offer = &mut options.offer;
    // The bytes of an option of the right size, from its kind on.
    let option = |kind: u8, size: u8| {
        let place = places[kind as usize];
        let at = opaque(place.wrapping_sub(1) as usize) & 0x3f;
        if place == 0 || bytes[at + 1] != size {
            return None;
        }
        Some((at, [bytes[at + 2], bytes[at + 3], bytes[at + 4], bytes[at + 5]]))
    };
    if let Some((at, [high, low, ..])) = option(MSS, 4) {
        offer.mss = u16::from_be_bytes([high, low]);
        offer.flags |= offers::MSS;
        options.mss_at = at as u8 + 2;
    }
    if let Some((_, [shift, ..])) = option(WINDOW_SCALE, 3) {
        offer.window_scale = shift;
        offer.flags |= offers::WINDOW_SCALE;
    }
    if option(SACK_PERMITTED, 2).is_some() {
        offer.flags |= offers::SACK;
    }
    if let Some((_, tsval)) = option(TIMESTAMPS, 10) {
        offer.tsval = u32::from_be_bytes(tsval);
        offer.flags |= offers::TIMESTAMPS;
    }
}

/// What the sender of a SYN or SYN-ACK offers.
#[inline(always)]
pub fn of<A: Version>(packet: &Packet, segment: &Segment<A>) -> Options {
    let mut options = Options { offer: Offer::default(), mss_at: 0, _pad: [0; 3] };
    A::options(packet, &mut options);
    let ecn = segment.flags & (tcp_flags::ECE | tcp_flags::CWR);
    let wanted = if segment.is_syn() { tcp_flags::ECE | tcp_flags::CWR } else { tcp_flags::ECE };
    if ecn == wanted {
        options.offer.flags |= offers::ECN;
    }
    options
}

/// Lowers the MSS in a SYN to what its backend can be sent.
#[inline(always)]
pub fn clamp_mss<A>(
    packet: &mut Packet,
    segment: &Segment<A>,
    options: &Options,
    backend: &Backend,
) -> Result<(), DropReason> {
    let (at, limit) = (options.mss_at, backend.mss_clamp);
    if at == 0 || limit == 0 || options.offer.mss <= limit {
        return Ok(());
    }
    let offset = segment.l4 as usize + Tcp::LEN + (at & 0x3f) as usize;
    let value = packet.at::<[u8; 2]>(offset)?;
    let (old, new) = (*value, limit.to_be_bytes());
    *value = new;
    // At an odd offset the two bytes belong to two words of the checksum: swapped, they count alike
    // (RFC 1071 section 2 (B)).
    let from_ne = u16::from_ne_bytes;
    let delta = if at % 2 == 0 {
        Delta::default().word(from_ne(old), from_ne(new))
    } else {
        Delta::default().word(from_ne(old).swap_bytes(), from_ne(new).swap_bytes())
    };
    let tcp = packet.at::<Tcp>(segment.l4 as usize)?;
    let check = delta.apply(get16(&tcp.check));
    put16(&mut tcp.check, check);
    count::event(backend.service, Event::MssClamped);
    Ok(())
}
