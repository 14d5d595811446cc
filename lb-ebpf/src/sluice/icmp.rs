//! ICMP: errors about our flows, and pings for addresses that only the data plane has.

use lb_common::{
    flow::{Flow, flags, forward},
    handshake::Handshake,
    outcome::{DropReason, Event},
    trace::Stage,
};
use lb_ebpf::packet::Packet;

use crate::{
    Verdict, Version,
    answer::Answer,
    count, flow, handshake,
    parse::{IcmpError, IcmpKind, Segment},
    scratch::{self, Use},
    service, trace,
};

/// Handles an ICMP message.
#[inline(always)]
pub fn message<A: Version>(
    packet: &mut Packet,
    message: &Segment<A>,
) -> Result<Verdict, DropReason> {
    let broken = match A::icmp_kind(packet, message) {
        Ok(IcmpKind::EchoRequest) => return echo(packet, message),
        Ok(IcmpKind::Error) => {
            let mut error = IcmpError::default();
            match A::quoted(packet, message, &mut error) {
                Ok(true) => return self::error(packet, &error),
                Ok(false) => None,
                Err(reason) => Some(reason),
            }
        }
        Ok(IcmpKind::Other) => None,
        Err(reason) => Some(reason),
    };
    match broken {
        // As with other broken packets, only ours to judge if it is for a VIP.
        Some(reason) if service::is_vip(&message.tuple.dst) => Err(reason),
        _ => Ok(Verdict::Pass(Event::PassNotService)),
    }
}

/// Carries an ICMP error to the end whose segment it is about, so that path-MTU discovery works.
#[inline(always)]
fn error<A: Version>(packet: &mut Packet, error: &IcmpError<A>) -> Result<Verdict, DropReason> {
    let towards_sender = &error.towards_sender;
    trace::about(towards_sender);
    if let Some(flow) = flow::find(towards_sender) {
        if flow.flags & flags::HOLD != 0 {
            return Ok(Verdict::Pass(Event::PassToSidecar));
        }
        trace::flow(Stage::Flow, flow);
        return carry(packet, error, flow);
    }
    if let Some(handshake) = handshake::find(towards_sender) {
        if handshake.flow.forward == forward::SPLICE {
            return Ok(Verdict::Pass(Event::PassToSidecar));
        }
        trace::flow(Stage::Handshake, &handshake.flow);
        return carry(packet, error, &mut handshake.flow);
    }
    let Some(listener) = service::listener(&towards_sender.dst, towards_sender.dport) else {
        return Ok(Verdict::Pass(Event::PassNotService));
    };
    packet.service = listener.service;
    let Some(service) = service::get(listener.service) else {
        return Err(DropReason::Inconsistent);
    };
    match service.forward {
        forward::NAT => return Err(DropReason::NoFlow),
        forward::SPLICE => return Ok(Verdict::Pass(Event::PassToSidecar)),
        _ => {}
    }
    let id = service::pick(listener.service, service, towards_sender)?;
    let Some(Handshake { flow, .. }) = scratch::handshake(Use::Open) else {
        return Err(DropReason::Inconsistent);
    };
    *flow =
        Flow { to: *towards_sender, backend: id, forward: service.forward, ..Default::default() };
    carry(packet, error, flow)
}

#[inline(always)]
fn carry<A: Version>(
    packet: &mut Packet,
    error: &IcmpError<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    packet.service = service::of_backend(flow.backend);
    let verdict = A::forward_error(packet, error, flow)?;
    count::event(packet.service, Event::IcmpErrorForwarded);
    Ok(verdict)
}

/// Answers a ping for an address that is on no host.
#[inline(always)]
fn echo<A: Version>(packet: &mut Packet, echo: &Segment<A>) -> Result<Verdict, DropReason> {
    if !service::is_xdp_only(&echo.tuple.dst) {
        return Ok(Verdict::Pass(Event::PassNotService));
    }
    if !echo.tuple.src.is_valid_source() || service::is_vip(&echo.tuple.src) {
        return Err(DropReason::SpoofedSource);
    }
    <A as Answer>::echo(packet, echo)?;
    count::event(packet.service, Event::EchoAnswered);
    Ok(Verdict::Transmit)
}
