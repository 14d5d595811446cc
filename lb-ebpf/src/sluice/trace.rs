//! The traced variant: each packet's way is written down stage by stage, and told to the agent at its end if the
//! filter admits the packet.
//!
//! Only with the feature `trace`, of which another object is built from the same source. The agent puts it in the
//! place of the usual one for as long as somebody traces; the usual one has nothing of this, so tracing costs nothing
//! while it is off.
//!
//! The way is kept in memory of the CPU until its end, since the client of a backend's packet is known only by
//! its flow. What writes there is a function with a global symbol each (`stage`): checked once, and with a stack of
//! its own, since the stages' own stacks have no room.

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{bpf_get_smp_processor_id, generated::bpf_ktime_get_ns},
    macros::map,
    maps::{Array, PerCpuArray, RingBuf},
    programs::XdpContext,
};
use lb_common::{
    abi::TICK_SHIFT,
    addr::{Tuple, V4, V6},
    flow::{Flow, flags},
    outcome::DropReason,
    trace::{Counts, End, Filter, MAX_STEPS, Stage, Step, Trace},
};
use lb_ebpf::{
    atomic::fetch_add,
    packet::{Packet, opaque},
};

use crate::{Verdict, Version, clock, parse::Segment, scratch, stage};

/// The way of the packet under way.
#[map]
static TRACE: PerCpuArray<Trace> = PerCpuArray::with_max_entries(1, 0);

/// Whose packets are told of.
#[map]
static TRACE_FILTER: Array<Filter> = Array::with_max_entries(1, 0);

/// Packets told of in a second: the second in the upper half, their number in the lower.
#[map]
static TRACE_PACE: Array<u64> = Array::with_max_entries(1, 0);

/// How many were told of, and how many not.
#[map]
static TRACE_COUNTS: PerCpuArray<Counts> = PerCpuArray::with_max_entries(1, 0);

/// What the agent reads.
#[map]
static TRACES: RingBuf = RingBuf::with_byte_size(256 * 1024, 0);

/// A way of writing a segment's or flow's IP version down.
pub trait Traced: Sized {
    fn parsed(packet: &Packet, is_icmp: bool);
    fn about(tuple: &Tuple<Self>);
    fn flow(stage: Stage, flow: &Flow<Self>);
}

/// Where a segment is parsed to: not on the stack of the program's entry, which is missing to every chain of calls.
#[inline(always)]
pub fn place<A: scratch::Scratch>(_own: &mut Segment<A>) -> Option<&'static mut Segment<A>> {
    scratch::fresh()
}

/// Begins the way of the packet whose segment is in scratch memory.
#[inline(always)]
pub fn parsed<A: Traced>(packet: &Packet, is_icmp: bool) {
    A::parsed(packet, is_icmp);
}

/// Forwards a plain segment of an established flow: not in the program's entry, whose stack would grow.
#[inline(always)]
pub fn established<A: Version>(
    packet: &mut Packet,
    _segment: &Segment<A>,
    flow: &mut Flow<A>,
) -> Result<Verdict, DropReason> {
    A::established(packet, flow)
}

/// What an ICMP error is about.
#[inline(always)]
pub fn about<A: Traced>(tuple: &Tuple<A>) {
    A::about(tuple);
}

/// A stage that knows the packet's flow.
#[inline(always)]
pub fn flow<A: Traced>(stage: Stage, flow: &Flow<A>) {
    A::flow(stage, flow);
}

/// A stage that knows two numbers.
#[inline(always)]
pub fn step(stage: Stage, a: u16, b: u32) {
    trace_step((b as u64) << 32 | (a as u64) << 16 | stage as u64);
}

/// The end of the way.
#[inline(always)]
pub fn finish(packet: &Packet, result: &Result<Verdict, DropReason>) {
    trace_finish(stage::pack(packet.service, result));
}

const DONE: u64 = 0;

#[inline(always)]
fn current() -> Option<&'static mut Trace> {
    // SAFETY: the element is this CPU's own, XDP programs do not preempt each other, and each function here lets go of
    // it before it returns.
    TRACE.get_ptr_mut(0).map(|trace| unsafe { &mut *trace })
}

#[inline(always)]
fn add(trace: &mut Trace, stage: u8, a: u16, b: u32) {
    let at = opaque(trace.len as usize);
    if at < MAX_STEPS {
        trace.steps[at] = Step { stage, _pad: 0, a, b };
        trace.len = at as u8 + 1;
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_step(packed: u64) -> u64 {
    if let Some(trace) = current() {
        add(trace, packed as u8, (packed >> 16) as u16, (packed >> 32) as u32);
    }
    DONE
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn trace_finish(outcome: u64) -> u64 {
    let Some(trace) = current() else { return DONE };
    if trace.family == 0 {
        return DONE;
    }
    tell(trace, outcome);
    // What comes next may be nothing that is parsed.
    trace.family = 0;
    DONE
}

#[inline(always)]
fn tell(trace: &mut Trace, outcome: u64) {
    let Some(filter) = TRACE_FILTER.get(0) else { return };
    let Some(counts) = TRACE_COUNTS.get_ptr_mut(0) else { return };
    // SAFETY: the element is this CPU's own.
    let counts = unsafe { &mut *counts };
    trace.service = (outcome >> 32) as u16;
    trace.verdict = outcome as u32 & 0xffff;
    let is_over = clock::now().wrapping_sub(filter.until) as i32 >= 0;
    if is_over || !filter.admits(trace) {
        return;
    }
    // SAFETY: the helpers take no argument and only read a number.
    let (now, cpu) = unsafe { (bpf_ktime_get_ns(), bpf_get_smp_processor_id()) };
    if !is_within(filter.rate, now) {
        counts.limited += 1;
        return;
    }
    trace.time = now;
    trace.cpu = cpu as u16;
    match TRACES.output::<Trace>(&*trace, 0) {
        Ok(()) => counts.told += 1,
        Err(_) => counts.full += 1,
    }
}

/// Counts a packet against the rate, all CPUs together. Two CPUs that begin a second at once may lose one.
#[inline(always)]
fn is_within(rate: u32, now: u64) -> bool {
    /// 64 ticks: 1.07 s, so the rate is never exceeded.
    const SECOND: u32 = TICK_SHIFT + 6;
    let second = now >> SECOND;
    let Some(pace) = TRACE_PACE.get_ptr_mut(0) else { return false };
    // SAFETY: eight aligned bytes of a map, which BPF reads, writes and adds to whole.
    unsafe {
        if *pace >> 32 != second & 0xffff_ffff {
            *pace = second << 32;
        }
        (fetch_add(pace, 1) as u32) < rate
    }
}

macro_rules! traced {
    ($version:ty, $family:literal, $words:expr;
     $parsed:ident, $about:ident, $flow:ident) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $parsed(ctx: *mut xdp_md, is_icmp: u32) -> u64 {
            let Some(segment) = scratch::segment::<$version>() else { return DONE };
            let Some(trace) = current() else { return DONE };
            let packet = Packet::new(&XdpContext::new(ctx));
            let tuple = &segment.tuple;
            put(&mut trace.came[0], $words(&tuple.src), tuple.sport);
            put(&mut trace.came[1], $words(&tuple.dst), tuple.dport);
            put(&mut trace.about[0], [0; 4], 0);
            put(&mut trace.about[1], [0; 4], 0);
            trace.seq = segment.seq;
            trace.ack = segment.ack;
            trace.ifindex = packet.ingress();
            trace.ip_len = segment.ip_len;
            trace.payload = segment.payload;
            trace.backend = 0;
            trace.flags = segment.flags;
            trace.family = $family;
            trace.icmp = is_icmp as u8;
            trace.to_client = 0;
            trace.len = 0;
            DONE
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $about(tuple: *mut Tuple<$version>) -> u64 {
            // SAFETY: a reference of the caller, which nobody else uses before we return.
            let Some(tuple) = (unsafe { tuple.as_ref() }) else { return DONE };
            let Some(trace) = current() else { return DONE };
            put(&mut trace.about[0], $words(&tuple.src), tuple.sport);
            put(&mut trace.about[1], $words(&tuple.dst), tuple.dport);
            add(trace, Stage::About as u8, 0, 0);
            DONE
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $flow(flow: *mut Flow<$version>, stage: u32) -> u64 {
            // SAFETY: as above.
            let Some(flow) = (unsafe { flow.as_ref() }) else { return DONE };
            let Some(trace) = current() else { return DONE };
            put(&mut trace.to[0], $words(&flow.to.src), flow.to.sport);
            put(&mut trace.to[1], $words(&flow.to.dst), flow.to.dport);
            trace.backend = flow.backend;
            trace.to_client = flow.flags & flags::TO_CLIENT;
            add(trace, stage as u8, flow.flags as u16, flow.forward as u32);
            DONE
        }

        impl Traced for $version {
            #[inline(always)]
            fn parsed(packet: &Packet, is_icmp: bool) {
                $parsed(packet.ctx(), is_icmp as u32);
            }

            #[inline(always)]
            fn about(tuple: &Tuple<Self>) {
                $about(core::ptr::from_ref(tuple).cast_mut());
            }

            #[inline(always)]
            fn flow(stage: Stage, flow: &Flow<Self>) {
                $flow(core::ptr::from_ref(flow).cast_mut(), stage as u32);
            }
        }
    };
}

/// Word by word: as a whole it would go through the stack.
#[inline(always)]
fn put(end: &mut End, addr: [u32; 4], port: u16) {
    end.addr[0] = addr[0];
    end.addr[1] = addr[1];
    end.addr[2] = addr[2];
    end.addr[3] = addr[3];
    end.port = port;
}

traced!(V4, 4, |addr: &V4| [addr.0, 0, 0, 0]; trace_parsed_v4, trace_about_v4, trace_flow_v4);
traced!(V6, 6, |addr: &V6| addr.0; trace_parsed_v6, trace_about_v6, trace_flow_v6);
