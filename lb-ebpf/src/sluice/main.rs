//! The XDP program of the edge.
//!
//! ```text
//! frame -> parse -> flow table -> [handshake table -> service table -> pick] -> rewrite -> transmit
//! ```
//! This file only calls, counts and converts; each stage has a file of its own, and each map lives
//! with the stage that reads it.
#![no_std]
#![no_main]

mod access;
mod answer;
mod clock;
mod close;
mod count;
mod edge;
mod flow;
mod forward;
mod handshake;
mod icmp;
mod nat;
mod next_hop;
mod open;
mod options;
mod parse;
mod punt;
mod report;
mod rewrite;
mod rtt;
mod scratch;
mod service;
mod splice;
mod stage;
#[cfg(feature = "trace")]
mod trace;
#[cfg(not(feature = "trace"))]
#[path = "untraced.rs"]
mod trace;
mod transmit;
mod tunnel;

use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use lb_common::{
    flow::flags,
    outcome::{DropReason, Event, NO_SERVICE},
    trace::Stage,
};
use lb_ebpf::{packet::Packet, wire::ethertype};

use crate::parse::{Parsed, Segment, Stop};

/// The licence under which the kernel lets us use its GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// What becomes of a packet that is not dropped.
enum Verdict {
    /// Left to the kernel, untouched.
    Pass(Event),
    /// Sent out of the interface that it came by.
    Transmit,
    /// Sent out of another interface, which the redirecting helper knows.
    Redirect,
    /// The agent has a copy and sends it on.
    Punted,
}

/// All that a stage needs to know of an IP version.
trait Version:
    parse::Parse
    + rewrite::Rewrite
    + flow::Table
    + handshake::Table
    + service::Tables
    + access::Lists
    + nat::Sources
    + next_hop::Routes
    + answer::Answer
    + scratch::Scratch
    + stage::Stages
    + trace::Traced
{
}
impl Version for lb_common::addr::V4 {}
impl Version for lb_common::addr::V6 {}

#[xdp(frags)]
#[inline(always)]
pub fn sluice(ctx: XdpContext) -> u32 {
    let mut packet = Packet::new(&ctx);
    let result = process(&mut packet);
    trace::finish(&packet, &result);
    match result {
        Ok(Verdict::Transmit) => xdp_action::XDP_TX,
        Ok(Verdict::Redirect) => xdp_action::XDP_REDIRECT,
        Ok(Verdict::Punted) => xdp_action::XDP_DROP,
        Ok(Verdict::Pass(event)) => {
            count::event(NO_SERVICE, event);
            xdp_action::XDP_PASS
        }
        Err(reason) => {
            count::drop(packet.service, reason);
            if report::is_alarming(reason) {
                stage::report(packet.service, reason.index());
            }
            xdp_action::XDP_DROP
        }
    }
}

#[inline(always)]
fn process(packet: &mut Packet) -> Result<Verdict, DropReason> {
    match parse::link(packet) {
        Some((ethertype::IPV4, l3)) => path::<lb_common::addr::V4>(packet, l3),
        Some((ethertype::IPV6, l3)) => path::<lb_common::addr::V6>(packet, l3),
        _ => Ok(Verdict::Pass(Event::PassNotIp)),
    }
}

#[inline(always)]
fn path<A: Version>(packet: &mut Packet, l3: usize) -> Result<Verdict, DropReason> {
    let mut segment = Segment::<A>::default();
    let Some(segment) = trace::place(&mut segment) else {
        return Err(DropReason::Inconsistent);
    };
    let parsed = A::parse(packet, l3, segment);
    let segment = &*segment;
    trace::parsed::<A>(packet, matches!(parsed, Ok(Parsed::Icmp)));
    match parsed {
        Ok(Parsed::Tcp) => tcp(packet, segment),
        Ok(Parsed::Icmp) => {
            scratch::keep(segment)?;
            A::icmp(packet)
        }
        Err(Stop::Pass(event)) => Ok(Verdict::Pass(event)),
        Err(Stop::Bad(reason)) if service::is_vip(&segment.tuple.dst) => Err(reason),
        Err(Stop::Bad(_)) => Ok(Verdict::Pass(Event::PassNotService)),
    }
}

/// A flow with one of these needs more than its rewrite.
const OUT_OF_THE_ORDINARY: u8 = flags::RESTART | flags::RESET | flags::FIN | flags::HOLD;

#[inline(always)]
fn tcp<A: Version>(packet: &mut Packet, segment: &Segment<A>) -> Result<Verdict, DropReason> {
    let Some(flow) = flow::find(&segment.tuple) else {
        scratch::keep(segment)?;
        trace::step(Stage::NoFlow, 0, 0);
        return A::without_flow(packet);
    };
    trace::flow(Stage::Flow, flow);
    if segment.is_plain() && flow.flags & OUT_OF_THE_ORDINARY == 0 {
        let result = trace::established(packet, segment, flow);
        if result.is_err() {
            packet.service = service::of_backend(flow.backend);
        }
        return result;
    }
    if flow.flags & flags::HOLD != 0 {
        if segment.is_rst() {
            // Nobody sends it again: the socket that is there must hear of it.
            return Ok(Verdict::Pass(Event::PassToSidecar));
        }
        packet.service = service::of_backend(flow.backend);
        return Err(DropReason::SpliceHold);
    }
    scratch::keep(segment)?;
    if segment.is_syn() && close::gives_way(segment, flow) {
        return A::without_flow(packet);
    }
    packet.service = service::of_backend(flow.backend);
    A::flagged(packet, flow)
}
