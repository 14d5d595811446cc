//! The translation of a splice: all numbers of a segment that count what its connection has carried.
//!
//! What stays as it is: the urgent pointer, which is relative (RFC 9293 section 3.1), and options that no
//! established connection has a use for.

use lb_common::{
    checksum::Delta,
    flow::{Flow, flags},
    outcome::DropReason,
    splice::{Deltas, window},
};
use lb_ebpf::{
    packet::{Packet, opaque},
    wire::{Tcp, get16, get32, put16, put32, tcp_flags},
};

use crate::{
    Version, options,
    parse::Segment,
    scratch::{self, OPTIONS_ROOM},
    stage,
};

/// Two NOPs, and the timestamps behind them: what every stack sends that has nothing else to say (RFC 7323,
/// appendix A).
const ALIGNED_TIMESTAMPS: u32 = u32::from_ne_bytes([1, 1, options::TIMESTAMPS, 10]);

/// Length of that.
const ALIGNED_LEN: u8 = 12;

/// Makes a segment of the one connection a segment of the other.
#[inline(always)]
pub fn translate<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Result<(), DropReason> {
    let changed = numbers(packet, segment, flow)?;
    let changed = match segment.options {
        0 => changed,
        _ => changed.and(timestamps(packet, segment, flow)?),
    };
    if flow.flags & flags::NO_ECN != 0 {
        A::clear_ecn(packet, segment.l3 as usize)?;
    }
    A::translate(packet, segment, &flow.to, changed)
}

/// The numbers in the header, and its ECN bits.
#[inline(always)]
fn numbers<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Result<Delta, DropReason> {
    let tcp = packet.at::<Tcp>(segment.l4 as usize)?;
    let seq = segment.seq.wrapping_add(flow.seq_delta).to_be();
    let mut delta = Delta::default().words(get32(&tcp.seq), seq);
    put32(&mut tcp.seq, seq);
    if segment.flags & tcp_flags::ACK != 0 {
        let ack = segment.ack.wrapping_add(flow.ack_delta).to_be();
        delta = delta.words(get32(&tcp.ack), ack);
        put32(&mut tcp.ack, ack);
    }
    if flow.window_shift != 0 {
        let old = get16(&tcp.window);
        let new = window(u16::from_be(old), flow.window_shift).to_be();
        delta = delta.word(old, new);
        put16(&mut tcp.window, new);
    }
    if flow.flags & flags::NO_ECN != 0 {
        let old = u16::from_ne_bytes([tcp.offset, tcp.flags]);
        tcp.flags &= !(tcp_flags::ECE | tcp_flags::CWR);
        delta = delta.word(old, u16::from_ne_bytes([tcp.offset, tcp.flags]));
    }
    Ok(delta)
}

/// The options: in place if they are timestamps alone, as they are on almost every segment.
#[inline(always)]
fn timestamps<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &Flow<A>,
) -> Result<Delta, DropReason> {
    let at = segment.l4 as usize + Tcp::LEN;
    if segment.options == ALIGNED_LEN {
        let [kind, tsval, tsecr] = packet.at::<[[u8; 4]; 3]>(at)?;
        if get32(kind) == ALIGNED_TIMESTAMPS {
            return Ok(add(tsval, flow.tsval_delta).and(add(tsecr, flow.tsecr_delta)));
        }
    }
    let place = (at as u32) << 8 | segment.options as u32;
    stage::splice_options(packet, place, flow.ack_delta, flow.tsval_delta, flow.tsecr_delta)
}

#[inline(always)]
fn add(field: &mut [u8; 4], delta: u32) -> Delta {
    let old = get32(field);
    let new = u32::from_be(old).wrapping_add(delta).to_be();
    put32(field, new);
    Delta::default().words(old, new)
}

/// Most SACK blocks that fit in the options.
const MAX_BLOCKS: usize = 4;

/// Translates timestamps and SACK blocks wherever they stand among `len` bytes of options at `at`; returns
/// what that does to the checksum. An option of a wrong size stays as it is: no receiver looks at it.
#[inline(always)]
pub fn options(packet: &mut Packet, at: usize, len: usize, deltas: &Deltas) -> Option<u32> {
    let [old, new] = scratch::options()?;
    old[..options::MAX].fill(0);
    if !packet.copy_to(at, &mut old[..options::MAX], len) {
        return None;
    }
    *new = *old;
    let mut places = options::Places::default();
    options::find(old.first_chunk()?, len, &mut places);
    // Where the option of a kind begins, and its length.
    let option = |kind: u8| {
        let place = places[kind as usize];
        let at = opaque(place.wrapping_sub(1) as usize) & 0x3f;
        (place != 0).then(|| (at, old[at + 1]))
    };
    if let Some((at, 10)) = option(options::TIMESTAMPS) {
        add_at(new, at + 2, deltas.tsval);
        add_at(new, at + 6, deltas.tsecr);
    }
    if let Some((at, size)) = option(options::SACK) {
        let blocks = (size as usize).wrapping_sub(2) / 8;
        if size as usize == 2 + blocks * 8 {
            for block in 0..MAX_BLOCKS {
                if block < blocks {
                    add_at(new, at + 2 + block * 8, deltas.ack);
                    add_at(new, at + 6 + block * 8, deltas.ack);
                }
            }
        }
    }
    let changed = Packet::difference::<{ options::MAX }>(old.first_chunk()?, new.first_chunk()?);
    packet.copy_from(at, &mut new[..options::MAX], len).then_some(changed)
}

/// Adds to the number that begins at an offset, aligned or not.
#[inline(always)]
fn add_at(bytes: &mut [u8; OPTIONS_ROOM], at: usize, delta: u32) {
    let old = u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let new = old.wrapping_add(delta).to_be_bytes();
    bytes[at] = new[0];
    bytes[at + 1] = new[1];
    bytes[at + 2] = new[2];
    bytes[at + 3] = new[3];
}
