//! Segments without a flow: new connections, handshakes, and strays.

use lb_common::{
    flow::{Flow, forward},
    handshake::Handshake,
    hash,
    outcome::{DropReason, Event},
    service::{Listener, Service, service_flags},
    trace::Stage,
};
use lb_ebpf::packet::Packet;

use crate::{
    Verdict, Version, access, clock, count, handshake, nat, options,
    parse::Segment,
    rtt,
    scratch::{self, Use},
    service, trace,
};

/// Handles a segment that the flow table does not know.
#[inline(always)]
pub fn without_flow<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
) -> Result<Verdict, DropReason> {
    if let Some(handshake) = handshake::find(&segment.tuple)
        && !handshake::is_replaced_by(segment, handshake)
    {
        trace::flow(Stage::Handshake, &handshake.flow);
        return handshake::advance(packet, segment, handshake);
    }
    from_syn(packet, segment)
}

/// Opens a connection if the segment is a SYN for a service; otherwise it is a stray or not ours.
#[inline(always)]
fn from_syn<A: Version>(packet: &mut Packet, segment: &Segment<A>) -> Result<Verdict, DropReason> {
    let Some(listener) = service::listener(&segment.tuple.dst, segment.tuple.dport) else {
        if segment.is_syn_ack() && service::is_upstream(&segment.tuple.src, segment.tuple.sport) {
            return handshake::note(packet, segment);
        }
        trace::step(Stage::NoListener, 0, 0);
        return Ok(Verdict::Pass(if service::is_vip(&segment.tuple.dst) {
            Event::PassToHost
        } else {
            Event::PassNotService
        }));
    };
    packet.service = listener.service;
    trace::step(Stage::Listener, listener.service, 0);
    let src = &segment.tuple.src;
    if !src.is_valid_source() || service::is_vip(src) {
        return Err(DropReason::SpoofedSource);
    }
    let Some(service) = service::get(listener.service) else {
        return Err(DropReason::Inconsistent);
    };
    access::check(src, listener.service, service.access)?;
    let relays = service.flags & service_flags::RELAY != 0;
    match (service.forward, segment.is_syn()) {
        (forward::SPLICE, true) if !relays => handshake::note(packet, segment),
        (forward::SPLICE, _) => Ok(Verdict::Pass(Event::PassToSidecar)),
        (_, true) => open(packet, segment, listener, service),
        (_, false) => stray(packet, segment, listener, service),
    }
}

/// Picks a backend for a SYN and remembers the handshake.
#[inline(always)]
fn open<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    listener: Listener,
    service: &Service,
) -> Result<Verdict, DropReason> {
    let id = service::pick(listener.service, service, &segment.tuple)?;
    let Some(backend) = service::backend(id) else {
        return Err(DropReason::Inconsistent);
    };
    let Some(entry) = scratch::handshake(Use::Open) else {
        return Err(DropReason::Inconsistent);
    };
    // Written piece by piece: as a whole it would be put together on the stack.
    *entry = Handshake::default();
    entry.flow.to = segment.tuple;
    entry.flow.backend = id;
    entry.flow.forward = service.forward;
    entry.flow.last_seen = clock::now();
    entry.isn = segment.seq;
    entry.began = rtt::now();
    if service.forward == forward::NAT {
        let hash = hash::tuple(0, &segment.tuple);
        nat::reserve(packet, &segment.tuple, id, backend, hash, &mut entry.flow.to)?;
    }
    let options = options::of(packet, segment);
    entry.offer = options.offer;
    handshake::enter(&segment.tuple, entry)?;
    trace::flow(Stage::Opened, &entry.flow);
    options::clamp_mss(packet, segment, &options, backend)?;
    count::event(listener.service, Event::SynForwarded);
    count::backend(id, |counters| counters.picked += 1);
    A::forward(packet, &mut entry.flow)
}

/// A segment that is neither a SYN nor of a known connection. Where the backend may know it, it is
/// forwarded by hash; with `nat` nobody can.
#[inline(always)]
fn stray<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    listener: Listener,
    service: &Service,
) -> Result<Verdict, DropReason> {
    trace::step(Stage::Stray, listener.service, 0);
    if service.forward == forward::NAT {
        if segment.is_rst() {
            return Err(DropReason::NoFlow); // a RST is never answered by another (RFC 9293 3.5.2)
        }
        return A::reset(packet);
    }
    let id = service::pick(listener.service, service, &segment.tuple)?;
    let Some(Handshake { flow, .. }) = scratch::handshake(Use::Open) else {
        return Err(DropReason::Inconsistent);
    };
    *flow = Flow { to: segment.tuple, backend: id, forward: service.forward, ..Default::default() };
    count::event(listener.service, Event::ForwardedByHash);
    A::forward(packet, flow)
}
