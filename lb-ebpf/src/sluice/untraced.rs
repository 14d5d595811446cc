//! The data plane as it always runs: nothing is traced, and nothing is left of the calls that would.

use lb_common::{flow::Flow, outcome::DropReason, trace::Stage};
use lb_ebpf::packet::Packet;

use crate::{Verdict, Version, forward, parse::Segment};

/// Any IP version.
pub trait Traced {}
impl<A> Traced for A {}

#[inline(always)]
pub fn place<A>(own: &mut Segment<A>) -> Option<&mut Segment<A>> {
    Some(own)
}

#[inline(always)]
pub fn parsed<A>(_packet: &Packet, _is_icmp: bool) {}

#[inline(always)]
pub fn established<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    forward::established(packet, segment, flow)
}

#[inline(always)]
pub fn about<A>(_tuple: &lb_common::addr::Tuple<A>) {}

#[inline(always)]
pub fn flow<A>(_stage: Stage, _flow: &Flow<A>) {}

#[inline(always)]
pub fn step(_stage: Stage, _a: u16, _b: u32) {}

#[inline(always)]
pub fn finish(_packet: &Packet, _result: &Result<Verdict, DropReason>) {}
