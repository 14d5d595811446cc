//! ICMP: errors about our flows, and pings for addresses that only the data plane has.

use lb_common::{
    flow::{Flow, forward},
    outcome::{DropReason, Event},
};
use lb_ebpf::packet::Packet;

use crate::{
    Verdict, Version, count, flow,
    forward::forward_error,
    handshake,
    parse::{Echo, IcmpError},
    service,
};

/// Carries an ICMP error to the end whose segment it is about, so that path-MTU discovery works.
#[inline(never)]
pub fn error<A: Version>(packet: &mut Packet, error: &IcmpError<A>) -> Result<Verdict, DropReason> {
    // Who sent the quoted segment receives what comes the other way.
    let towards_sender = error.quoted.reversed();
    if let Some(flow) = flow::find(&towards_sender) {
        return carry(packet, error, flow);
    }
    if let Some(handshake) = handshake::find(&towards_sender) {
        return carry(packet, error, &mut handshake.flow);
    }
    let Some(listener) = service::listener(&towards_sender.dst, towards_sender.dport) else {
        return Ok(Verdict::Pass(Event::PassNotService));
    };
    packet.service = listener.service;
    let Some(service) = service::get(listener.service) else {
        return Err(DropReason::Inconsistent);
    };
    if service.forward == forward::NAT {
        return Err(DropReason::NoFlow);
    }
    let id = service::pick(listener.service, service, &towards_sender)?;
    let mut flow =
        Flow { to: towards_sender, backend: id, forward: service.forward, ..Default::default() };
    carry(packet, error, &mut flow)
}

#[inline(always)]
fn carry<A: Version>(
    packet: &mut Packet,
    error: &IcmpError<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    packet.service = service::of_backend(flow.backend);
    let verdict = forward_error(packet, error, flow)?;
    count::event(packet.service, Event::IcmpErrorForwarded);
    Ok(verdict)
}

/// Answers a ping for an address that is on no host.
#[inline(never)]
pub fn echo<A: Version>(packet: &mut Packet, echo: &Echo<A>) -> Result<Verdict, DropReason> {
    if !service::is_xdp_only(&echo.dst) {
        return Ok(Verdict::Pass(Event::PassNotService));
    }
    if !echo.src.is_valid_source() || service::is_vip(&echo.src) {
        return Err(DropReason::SpoofedSource);
    }
    A::echo(packet, echo)?;
    count::event(packet.service, Event::EchoAnswered);
    Ok(Verdict::Transmit)
}
