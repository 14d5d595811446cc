//! SYN, FIN and RST on a tuple that has a flow: how connections end, and begin anew.

use lb_common::{
    addr::Tuple,
    flow::{Flow, flags, forward},
    outcome::{DropReason, Event},
    seq::{before, within},
    trace::Stage,
};
use lb_ebpf::{packet::Packet, wire::tcp_flags};

use crate::{Verdict, Version, count, flow, handshake, parse::Segment, service, trace};

/// A FIN may be this far ahead of what was seen: segments before it may have been lost on the way to
/// us. Beyond, it is somebody else's.
const SLACK: u32 = 1 << 16;

/// Handles a segment of a flow that has SYN, FIN or RST, or whose flow seems to end or begin anew.
#[inline(always)]
pub fn flagged<A: Version>(
    packet: &mut Packet,
    segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    if segment.is_plain() {
        if flow.flags & flags::RESET != 0 {
            take_back(flow, flags::RESET, flags::PEER_RESET);
        }
        if flow.flags & flags::FIN != 0 && is_new_data(segment, flow) {
            take_back(flow, flags::FIN, flags::PEER_FIN);
        }
        let flow = match flow.flags & flags::RESTART {
            0 => flow,
            _ => restarting(segment, flow),
        };
        flow::touch(flow, segment);
        return A::forward(packet, flow);
    }
    // A guessed RST must not count as a number that the sender has sent: repeated, it would be right.
    if !segment.is_syn() && note_end(segment, flow) {
        flow::touch(flow, segment);
    }
    A::forward(packet, flow)
}

/// Notes what a FIN or RST means for its flow; false for a RST that the receiver will not take.
#[inline(never)]
pub fn note_end<A: Version>(segment: &Segment<A>, flow: &mut Flow<A>) -> bool {
    let was_closing = flow.is_closing();
    if segment.is_rst() {
        if !resets(segment, flow) {
            return false;
        }
        end(flow, flags::RESET, flags::PEER_RESET);
    } else if segment.flags & tcp_flags::FIN != 0 && finishes(segment, flow) {
        end(flow, flags::FIN, flags::PEER_FIN);
    }
    trace::step(Stage::Ending, flow.flags as u16, 0);
    if flow.is_closing() && !was_closing {
        let reset = flow.flags & flags::RESET != 0;
        count::backend(flow.backend, |counters| {
            if reset { counters.reset += 1 } else { counters.closed += 1 }
        });
    }
    true
}

/// Takes an end back whose sender goes on: a forger's, or a bit that was flipped on the way, for nobody
/// here verifies the TCP checksum.
#[inline(never)]
fn take_back<A: Version>(flow: &mut Flow<A>, own: u8, others: u8) {
    flow.flags &= !own;
    if let Some(partner) = partner(flow) {
        partner.flags &= !others;
    }
}

/// Data behind a FIN, which no sender has.
#[inline(always)]
fn is_new_data<A>(segment: &Segment<A>, flow: &Flow<A>) -> bool {
    segment.payload > 0 && !before(segment.end(), flow.seq_next)
}

/// Whether a flow gives way to a SYN: another connection of a client that uses the port again.
///
/// If the flow is closing, it makes room at once. If it is not, the SYN may be an old duplicate or
/// a forgery, so the flow stays until the newcomer completes its handshake; see [`restarting`].
#[inline(never)]
pub fn gives_way<A: Version>(segment: &Segment<A>, flow: &mut Flow<A>) -> bool {
    if flow.flags & flags::TO_CLIENT != 0 {
        return false;
    }
    if flow.is_closing() {
        count::event(service::of_backend(flow.backend), Event::FlowReplaced);
        if flow.is_two_way() {
            flow::remove(&flow.to.reversed());
        }
        flow::remove(&segment.tuple);
        return true;
    }
    if flow.forward == forward::SPLICE {
        // The backend answers with its present numbers. A client that has forgotten the connection resets
        // it with them, and comes again; anybody else could not (RFC 5961 section 4).
        return false;
    }
    if before(segment.seq, flow.seq_next) {
        // Older than the connection: a duplicate of its own SYN, or of an earlier one. The backend
        // answers with its present numbers (RFC 5961 section 4), and the client will know.
        return false;
    }
    flow.flags |= flags::RESTART;
    true
}

/// Whether the receiver will take this RST: its number is the next that it expects. We know that from
/// what the sender has sent, or else from what the receiver has acknowledged.
#[inline(always)]
fn resets<A: Version>(segment: &Segment<A>, flow: &Flow<A>) -> bool {
    // What the other side has acknowledged it counts in its own numbers.
    let received = segment.seq.wrapping_add(flow.seq_delta);
    segment.seq == flow.seq_next
        || partner(flow).is_some_and(|partner| received == partner.ack)
        || is_first(flow)
}

/// Nothing was seen of this direction yet, so nothing can be known.
#[inline(always)]
fn is_first<A>(flow: &Flow<A>) -> bool {
    flow.packets == 0
}

#[inline(always)]
fn finishes<A>(segment: &Segment<A>, flow: &Flow<A>) -> bool {
    segment.end() == flow.seq_next || within(segment.seq, flow.seq_next, SLACK)
}

/// The entry of the other direction, if it has one.
#[inline(always)]
fn partner<A: Version>(flow: &Flow<A>) -> Option<&'static mut Flow<A>> {
    if !flow.is_two_way() {
        return None;
    }
    let key: Tuple<A> = flow.to.reversed();
    flow::find(&key)
}

/// Notes an end at both entries.
#[inline(always)]
fn end<A: Version>(flow: &mut Flow<A>, own: u8, others: u8) {
    flow.flags |= own;
    if let Some(partner) = partner(flow) {
        partner.flags |= others;
    }
}

/// Handles a plain segment of a flow for which a newcomer's SYN was seen. Returns the flow that the
/// segment belongs to: the newcomer's, if this segment completes its handshake.
#[inline(always)]
fn restarting<'a, A: Version>(segment: &Segment<A>, flow: &'a mut Flow<A>) -> &'a mut Flow<A> {
    let Some(newcomer) = handshake::find(&segment.tuple) else {
        flow.flags &= !flags::RESTART;
        return flow;
    };
    if newcomer.flow.forward == forward::SPLICE {
        // The service was `nat` once and is the sidecar's now, whose SYN-ACKs are not seen. The old flow
        // stays: its backend resets who is not its client.
        flow.flags &= !flags::RESTART;
        return flow;
    }
    // Exact, without the slack of a first handshake: the old connection's numbers are about too.
    let exact = if newcomer.flow.forward == forward::NAT {
        handshake::completes(segment, newcomer) && segment.ack == newcomer.peer_isn.wrapping_add(1)
    } else {
        segment.seq == newcomer.isn.wrapping_add(1)
    };
    if !exact {
        return flow;
    }
    if flow.forward == forward::NAT {
        flow::remove(&flow.to.reversed());
    }
    count::event(service::of_backend(flow.backend), Event::FlowReplaced);
    handshake::complete(newcomer);
    flow::find(&segment.tuple).unwrap_or(flow)
}
