//! The handshake table: connections on their way to be established.
//!
//! It is an LRU, so a flood of SYNs can only push out other SYNs. A handshake that the client
//! completes becomes a flow.

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    macros::map,
    maps::LruHashMap,
};
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    flow::{Flow, flags as flow_flags, forward},
    handshake::{Handshake, flags},
    outcome::{DropReason, Event},
    seq::within,
    trace::Stage,
};
use lb_ebpf::{packet::Packet, wire::tcp_flags};

use crate::{
    Verdict, Version, clock, close, count,
    flow::{self, Refused},
    nat::Reserved,
    next_hop, options,
    parse::Segment,
    rtt,
    scratch::{self, Use},
    service, stage, trace,
};

/// Handshakes by the tuple on the wire, IPv4.
#[map]
static HANDSHAKES4: LruHashMap<Tuple<V4>, Handshake<V4>> = LruHashMap::with_max_entries(1 << 16, 0);

/// Handshakes by the tuple on the wire, IPv6.
#[map]
static HANDSHAKES6: LruHashMap<Tuple<V6>, Handshake<V6>> = LruHashMap::with_max_entries(1 << 16, 0);

/// The handshake table of an IP version.
pub trait Table: Addr {
    fn handshakes() -> &'static LruHashMap<Tuple<Self>, Handshake<Self>>;
}

impl Table for V4 {
    #[inline(always)]
    fn handshakes() -> &'static LruHashMap<Tuple<V4>, Handshake<V4>> {
        &HANDSHAKES4
    }
}

impl Table for V6 {
    #[inline(always)]
    fn handshakes() -> &'static LruHashMap<Tuple<V6>, Handshake<V6>> {
        &HANDSHAKES6
    }
}

/// How far beyond the exact number the one that completes a handshake may be: with TCP Fast Open
/// (RFC 7413) either side may have sent an initial window before. A blind attacker's chance is
/// 1 in 65,536 a packet.
const SLACK: u32 = 1 << 16;

#[inline(always)]
pub fn find<A: Table>(tuple: &Tuple<A>) -> Option<&'static mut Handshake<A>> {
    // SAFETY: map values live as long as the program runs; see the flow table.
    A::handshakes().get_ptr_mut(tuple).map(|handshake| unsafe { &mut *handshake })
}

/// Enters a handshake in the place of any that is there.
#[inline(always)]
pub fn enter<A: Table>(tuple: &Tuple<A>, handshake: &Handshake<A>) -> Result<(), DropReason> {
    A::handshakes()
        .insert(tuple, handshake, BPF_ANY as u64)
        .map_err(|_| DropReason::HandshakeTableFull)
}

#[inline(always)]
fn remove<A: Table>(tuple: &Tuple<A>) {
    // An error says that it is gone already.
    let _ = A::handshakes().remove(tuple);
}

/// Reserves the tuple of a backend's answers for a client.
#[inline(always)]
pub fn reserve<A: Version>(
    answers: &Tuple<A>,
    client: &Tuple<A>,
    backend: u16,
) -> Result<Reserved, DropReason> {
    const EEXIST: i32 = -17;
    let to = client.reversed();
    let Some(handshake) = scratch::handshake(Use::Reserve) else {
        return Err(DropReason::Inconsistent);
    };
    *handshake = Handshake { flow: to_client(to, backend), ..Default::default() };
    handshake.flow.last_seen = clock::now();
    match A::handshakes().insert(answers, &*handshake, BPF_NOEXIST as u64) {
        Ok(()) => Ok(Reserved::Done),
        // The client's own earlier attempt on this tuple.
        Err(EEXIST) if find(answers).is_some_and(|old| old.flow.to == to) => Ok(Reserved::Done),
        Err(EEXIST) => Ok(Reserved::Taken),
        Err(_) => Err(DropReason::HandshakeTableFull),
    }
}

/// A flow of `nat` from a backend to a client.
#[inline(always)]
fn to_client<A: Version>(to: Tuple<A>, backend: u16) -> Flow<A> {
    // The epoch first: if the routes change in between, the next hop is looked up anew.
    let route_epoch = next_hop::epoch();
    Flow {
        next_hop: next_hop::towards(&to.dst),
        to,
        backend,
        forward: forward::NAT,
        flags: flow_flags::TO_CLIENT,
        route_epoch,
        ..Default::default()
    }
}

/// Who holds the tuple of the answers to a client's handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    Ours,
    /// The LRU has taken the entry.
    Nobodys,
    /// And somebody else has got the port since.
    Anothers,
}

#[inline(never)]
fn answers<A: Version>(client: &Tuple<A>, handshake: &Handshake<A>) -> Answers {
    if handshake.flow.forward != forward::NAT {
        return Answers::Ours;
    }
    match find(&handshake.flow.to.reversed()) {
        Some(held) if held.flow.to == client.reversed() => Answers::Ours,
        Some(_) => Answers::Anothers,
        None => Answers::Nobodys,
    }
}

/// Whether a segment begins a connection in place of this handshake: another one of the same client
/// port, or the same one again, if its answers would not come back any more.
#[inline(always)]
pub fn is_replaced_by<A: Version>(segment: &Segment<A>, handshake: &Handshake<A>) -> bool {
    let is_from_client = handshake.flow.flags & flow_flags::TO_CLIENT == 0;
    is_from_client
        && segment.is_syn()
        && (segment.seq != handshake.isn || answers(&segment.tuple, handshake) != Answers::Ours)
}

/// Handles a segment whose tuple has a handshake.
#[inline(always)]
pub fn advance<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    handshake: &'static mut Handshake<A>,
) -> Result<Verdict, DropReason> {
    packet.service = service::of_backend(handshake.flow.backend);
    handshake.flow.last_seen = clock::now();
    if handshake.flow.forward == forward::SPLICE {
        // A client's new SYN was told from the one that is noted; a backend's SYN-ACK has a key of its own.
        return match segment.is_syn_ack() && segment.seq != handshake.isn {
            true => note(packet, segment),
            false => {
                measure(segment, handshake);
                Ok(Verdict::Pass(Event::PassToSidecar))
            }
        };
    }
    if handshake.flow.flags & flow_flags::TO_CLIENT != 0 {
        if segment.is_syn_ack() {
            answered(packet, segment, handshake);
        }
        return A::forward(packet, &mut handshake.flow);
    }
    if segment.is_syn() {
        handshake.began = 0;
        if let Some(backend) = service::backend(handshake.flow.backend) {
            let options = options::of(packet, segment);
            options::clamp_mss(packet, segment, &options, backend)?;
        }
        let verdict = A::forward(packet, &mut handshake.flow);
        count::event(packet.service, Event::SynRetransmitted);
        return verdict;
    }
    if segment.is_rst() {
        // The client gives up. Nobody will miss the entries; the LRU takes them.
        return A::forward(packet, &mut handshake.flow);
    }
    if !completes(segment, handshake) {
        return Err(DropReason::HandshakeMismatch);
    }
    complete(handshake);
    match flow::find(&segment.tuple) {
        Some(flow) => {
            // The bare acknowledgement may have been lost on the way to us, and this be the client's FIN.
            if segment.is_plain() || close::note_end(segment, flow) {
                flow::touch(flow, segment);
            }
            A::forward(packet, flow)
        }
        None => A::forward(packet, &mut handshake.flow),
    }
}

/// Remembers what a side of the sidecar's connections offers, which may be spliced, and leaves its SYN or
/// SYN-ACK to the kernel.
#[inline(always)]
pub fn note<A: Version>(packet: &mut Packet, segment: &Segment<A>) -> Result<Verdict, DropReason> {
    let Some(entry) = scratch::handshake(Use::Open) else {
        return Err(DropReason::Inconsistent);
    };
    *entry = Handshake::default();
    entry.flow.to = segment.tuple;
    entry.flow.forward = forward::SPLICE;
    entry.flow.last_seen = clock::now();
    entry.isn = segment.seq;
    entry.offer = options::of(packet, segment).offer;
    if segment.is_syn() {
        entry.began = rtt::now();
    }
    // Without room the connection is served all the same.
    if enter(&segment.tuple, entry).is_ok() {
        count::event(packet.service, Event::OfferNoted);
        trace::step(Stage::Noted, 0, 0);
    }
    Ok(Verdict::Pass(Event::PassToSidecar))
}

/// Measures the handshake of a client of the sidecar, whose SYN-ACK is not seen here, with the first segment after its
/// SYN.
#[inline(always)]
fn measure<A: Version>(segment: &Segment<A>, handshake: &mut Handshake<A>) {
    let began = handshake.began;
    if began == 0 {
        return;
    }
    handshake.began = 0;
    let completes = segment.is_plain() && segment.seq == handshake.isn.wrapping_add(1);
    if completes && let Some(at) = service::listener(&segment.tuple.dst, segment.tuple.dport) {
        rtt::observe(at.service, began);
    }
}

/// Remembers what the backend's SYN-ACK says, at its own entry and at the client's.
#[inline(always)]
fn answered<A: Version>(packet: &Packet, segment: &Segment<A>, handshake: &mut Handshake<A>) {
    trace::step(Stage::Answered, 0, 0);
    handshake.isn = segment.seq;
    handshake.offer = options::of(packet, segment).offer;
    if let Some(client) = find(&handshake.flow.to.reversed()) {
        client.peer_isn = segment.seq;
        client.flags |= flags::ANSWERED;
    }
}

/// Whether a client's segment shows that it has got the backend's SYN-ACK, and the answers are still
/// its own: a port that has become another's is never taken.
///
/// `nat` has seen the SYN-ACK and knows which number must be acknowledged. `dsr` and `ipip` have
/// not: there the client's own number has to do, which keeps blind senders out all the same.
#[inline(always)]
pub fn completes<A: Version>(segment: &Segment<A>, handshake: &Handshake<A>) -> bool {
    if segment.flags & tcp_flags::ACK == 0 {
        return false;
    }
    let fits = if handshake.flags & flags::COMPLETED != 0 {
        true
    } else if handshake.flow.forward == forward::NAT {
        handshake.flags & flags::ANSWERED != 0
            && within(segment.ack, handshake.peer_isn.wrapping_add(1), SLACK)
    } else {
        within(segment.seq, handshake.isn.wrapping_add(1), SLACK)
    };
    fits && answers(&segment.tuple, handshake) != Answers::Anothers
}

/// Makes a flow of a completed handshake. If the flow table is full, the flow goes on from the
/// handshake table for as long as newcomers leave it there.
#[inline(always)]
pub fn complete<A: Version>(handshake: &mut Handshake<A>) {
    let backend = handshake.flow.backend;
    let has_room = A::promote();
    trace::step(Stage::Completed, has_room as u16, 0);
    if !has_room {
        handshake.flags |= flags::COMPLETED;
        let service = service::of_backend(backend);
        count::event(service, Event::FlowTableFull);
        stage::report(service, Event::FlowTableFull.index());
    }
}

/// Enters the flow of a completed handshake into the flow table; false if that is full.
#[inline(always)]
pub fn promote<A: Version>(segment: &Segment<A>, handshake: &mut Handshake<A>) -> bool {
    let now = clock::now();
    // The SYN-ACK was the backend's last word: it has said one number and acknowledged one. If the
    // flow has waited for room since, the client's present numbers are as near as can be known.
    let (back_next, back_ack) = match handshake.flags & flags::COMPLETED {
        0 => (handshake.peer_isn.wrapping_add(1), handshake.isn.wrapping_add(1)),
        _ => (segment.ack, segment.seq),
    };
    // The entry is about to go; in the end it serves to build the flow, off the stack.
    let flow = &mut handshake.flow;
    flow.created = now;
    flow.last_seen = now;
    flow.seq_next = segment.seq;
    flow.ack = segment.ack;
    let (backend, is_nat) = (flow.backend, flow.forward == forward::NAT);
    let service = service::of_backend(backend);
    // Once, also if there is no room yet.
    rtt::observe(service, handshake.began);
    handshake.began = 0;
    let flow = &mut handshake.flow;
    let answers = flow.to.reversed();
    if is_nat {
        let Some(Handshake { flow: back, .. }) = scratch::handshake::<A>(Use::Reserve) else {
            return false;
        };
        *back = to_client(segment.tuple.reversed(), backend);
        back.created = now;
        back.last_seen = now;
        back.seq_next = back_next;
        back.ack = back_ack;
        match flow::enter_new(&answers, back) {
            Ok(()) => {}
            // The same connection, promoted by a segment on another CPU at this moment.
            Err(Refused::Taken) if flow::find(&answers).is_some_and(|old| old.to == back.to) => {}
            Err(_) => return false,
        }
    }
    if flow::enter(&segment.tuple, flow).is_err() {
        if is_nat {
            flow::remove(&answers);
        }
        return false;
    }
    remove(&segment.tuple);
    if is_nat {
        remove(&answers);
    }
    count::event(service, Event::FlowOpened);
    count::backend(backend, |counters| counters.opened += 1);
    true
}
