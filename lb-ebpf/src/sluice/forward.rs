//! Forwarding: from a flow to a frame on its way. Every way of forwarding comes through here.

use lb_common::{
    checksum::Delta,
    flow::{Flow, flags, forward},
    outcome::DropReason,
    service::Backend,
    trace::Stage,
};
use lb_ebpf::packet::Packet;

use crate::{
    Verdict, Version, access, count, flow, next_hop,
    parse::{IcmpError, Segment},
    service, splice, trace, transmit, tunnel,
};

/// Where a flow's packets go, before anything in the packet is changed.
pub struct Way {
    /// Id of the next hop, 0 for the kernel's FIB.
    pub next_hop: u16,
    /// The backend, on the way to it.
    pub backend: Option<&'static Backend>,
    /// Id of the backend whose MAC address is meant although the IP destination is another (`dsr`).
    pub link_backend: u16,
    /// The packet travels in another one.
    pub tunnelled: bool,
}

/// The way of a flow's packets; `None` if its backend is gone.
#[inline(always)]
fn way<A: Version>(flow: &mut Flow<A>) -> Option<Way> {
    if flow.flags & flags::TO_CLIENT != 0 {
        let next_hop = next_hop::of_client(flow);
        return Some(Way { next_hop, backend: None, link_backend: 0, tunnelled: false });
    }
    let backend = service::backend(flow.backend)?;
    Some(Way {
        next_hop: backend.next_hop,
        backend: Some(backend),
        link_backend: if flow.forward == forward::DSR { flow.backend } else { 0 },
        tunnelled: flow.forward == forward::IPIP,
    })
}

/// Forwards a plain segment of an established flow, which it keeps alive unless its source is denied.
#[inline(always)]
pub fn established<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    let way = admitted(packet, segment, flow)?;
    flow::touch(flow, segment);
    along(packet, segment, flow, &way)
}

/// Forwards a segment of a flow.
#[inline(always)]
pub fn forward<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    let way = admitted(packet, segment, flow)?;
    along(packet, segment, flow, &way)
}

/// The way of a flow's packets, if the source of this one may send at all.
#[inline(always)]
fn admitted<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Way, DropReason> {
    let Some(way) = way(flow) else {
        return Err(DropReason::Inconsistent);
    };
    if let Some(backend) = way.backend {
        packet.service = backend.service;
        access::check(&segment.tuple.src, backend.service, backend.access)?;
    }
    Ok(way)
}

#[inline(always)]
fn along<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
    way: &Way,
) -> Result<Verdict, DropReason> {
    trace::step(Stage::Forward, flow.forward as u16, 0);
    if let Some(mtu) = too_big(way, segment.ip_len) {
        trace::step(Stage::TooBig, mtu, 0);
        return A::packet_too_big(packet, segment.l3, mtu);
    }
    if flow.forward == forward::NAT {
        A::translate(packet, segment, &flow.to, Delta::default())?;
        traffic(flow, way, segment.ip_len);
        return transmit::plain::<A>(packet, segment.l3 as usize, way);
    }
    if flow.forward == forward::SPLICE {
        splice::translate(packet, segment, flow)?;
        traffic(flow, way, segment.ip_len);
        return transmit::plain::<A>(packet, segment.l3 as usize, way);
    }
    let traffic_class = A::hop(packet, segment.l3 as usize)?;
    traffic(flow, way, segment.ip_len);
    onward::<A>(packet, segment.l3 as usize, segment.ip_len, traffic_class, way)
}

/// Counts a packet that is on its way: what is refused or answered here was never sent to anybody.
#[inline(always)]
fn traffic<A>(flow: &Flow<A>, way: &Way, ip_len: u16) {
    let bytes = ip_len as u64;
    count::backend(flow.backend, |counters| {
        if way.backend.is_some() {
            counters.to_backend_packets += 1;
            counters.to_backend_bytes += bytes;
        } else {
            counters.to_client_packets += 1;
            counters.to_client_bytes += bytes;
        }
    });
}

/// Carries an ICMP error the way of the flow that it is about.
#[inline(always)]
pub fn forward_error<A: Version>(
    packet: &mut Packet,
    error: &IcmpError<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    let Some(way) = way(flow) else {
        return Err(DropReason::Inconsistent);
    };
    trace::step(Stage::Forward, flow.forward as u16, 0);
    if too_big(&way, error.ip_len as u16).is_some() {
        return Err(DropReason::TooBig);
    }
    if flow.is_two_way() {
        A::translate_error(packet, error, &flow.to, flow.ack_delta)?;
        return transmit::plain::<A>(packet, error.l3 as usize, &way);
    }
    let traffic_class = A::hop(packet, error.l3 as usize)?;
    onward::<A>(packet, error.l3 as usize, error.ip_len as u16, traffic_class, &way)
}

/// Sends on a packet whose own headers stay as they are, but for the TTL, of which `Rewrite::hop` has
/// taken one off.
#[inline(always)]
fn onward<A: Version>(
    packet: &mut Packet,
    l3: usize,
    ip_len: u16,
    traffic_class: u8,
    way: &Way,
) -> Result<Verdict, DropReason> {
    match way.backend {
        Some(backend) if way.tunnelled => {
            tunnel::send::<A>(packet, l3, ip_len, traffic_class, backend)
        }
        _ => transmit::plain::<A>(packet, l3, way),
    }
}

/// The largest packet that can go this way, if this one is larger. For a next hop that is not known
/// yet, only a packet that IP itself cannot hold is too large: the kernel will see to the rest.
#[inline(always)]
fn too_big(way: &Way, ip_len: u16) -> Option<u16> {
    let mut mtu = next_hop::get(way.next_hop).map_or(u16::MAX, |hop| hop.mtu);
    if let Some(backend) = way.backend
        && way.tunnelled
    {
        mtu = mtu.saturating_sub(tunnel::overhead(backend));
    }
    (ip_len > mtu).then_some(mtu)
}
