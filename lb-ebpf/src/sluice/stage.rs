//! The stages off the way of an established flow's packets, which the verifier checks one by one.
//!
//! A function with a global symbol is checked once, for all arguments that its types allow. Any other
//! is checked again for each way to each of its calls, and the ways multiply: as plain functions these
//! stages took more than the million instructions that the verifier looks at. In return such a function
//! may take only the context, numbers, and pointers to plain memory, which it must expect to be null,
//! and returns a number (kernel: `btf_prepare_func_args`). To Linux 6.1, memory that came as an argument
//! can be neither key nor value of a map, so the segment under way is not an argument: it lies in
//! [`scratch`] memory. This file translates; the stages themselves know nothing of it.
//!
//! A chain of calls, stages or not, has 512 bytes of stack, and Linux 6.1 counts each frame in steps of
//! 32. `cargo xtask kernels` tells when that is too little.

use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    checksum::Delta,
    flow::Flow,
    outcome::{DropReason, Event},
    service::Backend,
    splice::Deltas,
    trace::{Stage, verdict},
};
use lb_ebpf::packet::Packet;

use crate::{
    Verdict, access, answer, close, forward, handshake, icmp,
    nat::{self, Reserved, Source},
    open,
    options::{self, Options},
    parse::IcmpError,
    report, scratch, splice, trace, transmit,
};

/// The stages of an IP version.
pub trait Stages: Addr {
    /// [`open::without_flow`]
    fn without_flow(packet: &mut Packet) -> Result<Verdict, DropReason>;

    /// [`close::flagged`]
    fn flagged(packet: &mut Packet, flow: &mut Flow<Self>) -> Result<Verdict, DropReason>;

    /// [`forward::established`]
    #[cfg(feature = "trace")]
    fn established(packet: &mut Packet, flow: &mut Flow<Self>) -> Result<Verdict, DropReason>;

    /// [`forward::forward`]
    fn forward(packet: &mut Packet, flow: &mut Flow<Self>) -> Result<Verdict, DropReason>;

    /// [`icmp::message`]
    fn icmp(packet: &mut Packet) -> Result<Verdict, DropReason>;

    /// [`forward::forward_error`]
    fn forward_error(
        packet: &mut Packet,
        error: &IcmpError<Self>,
        flow: &mut Flow<Self>,
    ) -> Result<Verdict, DropReason>;

    /// [`answer::reset`]
    fn reset(packet: &mut Packet) -> Result<Verdict, DropReason>;

    /// [`answer::packet_too_big`]
    fn packet_too_big(packet: &mut Packet, l3: u32, mtu: u16) -> Result<Verdict, DropReason>;

    /// [`nat::reserve_source`]
    fn reserve_source(
        packet: &Packet,
        client: &Tuple<Self>,
        backend_id: u16,
        backend: &Backend,
        source: Source,
        to: &mut Tuple<Self>,
    ) -> Result<Reserved, DropReason>;

    /// [`handshake::promote`]
    fn promote() -> bool;

    /// [`options::read`]
    fn options(packet: &Packet, options: &mut Options);

    /// [`access::is_denied`]
    fn is_denied(src: &Self, service: u16, access: u8) -> bool;
}

const DONE: u64 = 0;
const TAKEN: u64 = 1;
const FULL: u64 = 2;
const TRANSMIT: u64 = (verdict::TRANSMIT as u64) << 8;
const REDIRECT: u64 = (verdict::REDIRECT as u64) << 8;
const PUNTED: u64 = (verdict::PUNTED as u64) << 8;
/// With the event's number.
const PASS: u64 = (verdict::PASS as u64) << 8;
/// With the reason's number.
const DROP: u64 = (verdict::DROP as u64) << 8;

/// A null pointer for an argument: no caller gives one.
const NULL: u64 = DROP | DropReason::Inconsistent as u64;

/// A stage's result and the service that it is counted for, as one number.
#[inline(always)]
pub fn pack(service: u16, result: &Result<Verdict, DropReason>) -> u64 {
    let outcome = match result {
        Ok(Verdict::Transmit) => TRANSMIT,
        Ok(Verdict::Redirect) => REDIRECT,
        Ok(Verdict::Punted) => PUNTED,
        Ok(Verdict::Pass(event)) => PASS | *event as u64,
        Err(reason) => DROP | *reason as u64,
    };
    (service as u64) << 32 | outcome
}

#[inline(always)]
fn unpack(packet: &mut Packet, outcome: u64) -> Result<Verdict, DropReason> {
    packet.service = (outcome >> 32) as u16;
    let number = outcome as u32 & 0xff;
    match outcome & 0xff00 {
        TRANSMIT => Ok(Verdict::Transmit),
        REDIRECT => Ok(Verdict::Redirect),
        PUNTED => Ok(Verdict::Punted),
        PASS => match Event::from_number(number) {
            Some(event) => Ok(Verdict::Pass(event)),
            None => Err(DropReason::Inconsistent),
        },
        _ => match DropReason::from_number(number) {
            Some(reason) => Err(reason),
            None => Err(DropReason::Inconsistent),
        },
    }
}

/// Runs a stage on the frame of a context.
#[inline(always)]
fn run(
    ctx: *mut xdp_md,
    service: u16,
    stage: impl FnOnce(&mut Packet) -> Result<Verdict, DropReason>,
) -> u64 {
    let mut packet = Packet::new(&XdpContext::new(ctx));
    packet.service = service;
    let result = stage(&mut packet);
    pack(packet.service, &result)
}

/// Turns the pointers that a global function got into references.
macro_rules! references {
    ($($pointer:ident),*) => {
        $(
            // SAFETY: a reference of the caller, which nobody else uses before we return.
            let Some($pointer) = (unsafe { $pointer.as_mut() }) else { return NULL };
        )*
    };
}

/// A global function that runs a stage on a frame, and on the segment in scratch memory if it is for
/// an IP version.
macro_rules! packet_stage {
    ($stage:path as $name:ident($($pointer:ident: $to:ty),*; $($number:ident: $type:ty),*)) => {
        packet_stage!(@ $stage as $name(; $($pointer: $to),*; $($number: $type),*));
    };
    ($version:ty, $stage:path as $name:ident($($pointer:ident: $to:ty),*)) => {
        packet_stage!(@ $stage as $name(segment: $version; $($pointer: $to),*;));
    };
    (@ $stage:path as $name:ident(
        $($segment:ident: $version:ty)?; $($pointer:ident: $to:ty),*; $($number:ident: $type:ty),*
    )) => {
        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $name(
            ctx: *mut xdp_md,
            service: u16,
            $($pointer: *mut $to,)*
            $($number: $type,)*
        ) -> u64 {
            references!($($pointer),*);
            $(let Some($segment) = scratch::segment::<$version>() else { return NULL };)?
            run(ctx, service, |packet| $stage(packet, $($segment,)? $($pointer,)* $($number,)*))
        }
    };
}

packet_stage!(transmit::unresolved as stage_unresolved(; kind: u16, link_backend: u16));

/// [`transmit::unresolved`]
#[inline(always)]
pub fn unresolved(
    packet: &mut Packet,
    kind: u16,
    link_backend: u16,
) -> Result<Verdict, DropReason> {
    let outcome = stage_unresolved(packet.ctx(), packet.service, kind, link_backend);
    // Here, since the stack of the stage itself has no room for it.
    trace::step(Stage::Unresolved, outcome as u16 >> 8, 0);
    unpack(packet, outcome)
}

/// [`report::report`]
#[inline(always)]
pub fn report(service: u16, outcome: u32) {
    stage_report(service, outcome);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stage_report(service: u16, outcome: u32) -> u64 {
    report::report(service, outcome);
    DONE
}

/// [`splice::options`]; `place` is the offset of the options, shifted left by 8, and their length.
#[inline(always)]
pub fn splice_options(
    packet: &mut Packet,
    place: u32,
    ack: u32,
    tsval: u32,
    tsecr: u32,
) -> Result<Delta, DropReason> {
    match stage_splice_options(packet.ctx(), place, ack, tsval, tsecr) {
        sum if sum <= u32::MAX as u64 => Ok(Delta::from_sum(sum)),
        _ => Err(DropReason::Truncated),
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn stage_splice_options(
    ctx: *mut xdp_md,
    place: u32,
    ack: u32,
    tsval: u32,
    tsecr: u32,
) -> u64 {
    let mut packet = Packet::new(&XdpContext::new(ctx));
    let (at, len) = ((place >> 8) as usize, (place & 0xff) as usize);
    match splice::options(&mut packet, at, len, &Deltas { ack, tsval, tsecr, ..Deltas::default() })
    {
        Some(sum) => sum as u64,
        None => u64::MAX,
    }
}

/// The global functions of an IP version, and the trait that calls them.
macro_rules! stages {
    ($version:ty:
        $without_flow:ident, $flagged:ident, $established:ident, $forward:ident, $icmp:ident, $forward_error:ident,
        $reset:ident, $packet_too_big:ident, $reserve_source:ident, $promote:ident, $options:ident, $is_denied:ident
    ) => {
        packet_stage!($version, open::without_flow as $without_flow());
        packet_stage!($version, close::flagged as $flagged(flow: Flow<$version>));
        #[cfg(feature = "trace")]
        packet_stage!($version, forward::established as $established(flow: Flow<$version>));
        packet_stage!($version, forward::forward as $forward(flow: Flow<$version>));
        packet_stage!($version, icmp::message as $icmp());
        packet_stage!(forward::forward_error
            as $forward_error(error: IcmpError<$version>, flow: Flow<$version>;));
        packet_stage!($version, answer::reset as $reset());
        packet_stage!(answer::packet_too_big::<$version> as $packet_too_big(; l3: u32, mtu: u16));

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $reserve_source(
            ctx: *mut xdp_md,
            client: *mut Tuple<$version>,
            numbers: u64,
            backend: *mut Backend,
            to: *mut Tuple<$version>,
        ) -> u64 {
            references!(client, backend, to);
            let packet = Packet::new(&XdpContext::new(ctx));
            let backend_id = (numbers >> 32) as u16;
            let source = Source { index: (numbers >> 16) as u16, port: numbers as u16 };
            match nat::reserve_source(&packet, client, backend_id, backend, source, to) {
                Ok(Reserved::Done) => DONE,
                Ok(Reserved::Taken) => TAKEN,
                Err(reason) => DROP | reason as u64,
            }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $promote() -> u64 {
            let Some(segment) = scratch::segment::<$version>() else { return FULL };
            let Some(handshake) = handshake::find(&segment.tuple) else { return FULL };
            if handshake::promote(segment, handshake) { DONE } else { FULL }
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $options(ctx: *mut xdp_md, options: *mut Options) -> u64 {
            references!(options);
            let Some(segment) = scratch::segment::<$version>() else { return NULL };
            options::read(&Packet::new(&XdpContext::new(ctx)), segment, options);
            DONE
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        extern "C" fn $is_denied(src: *mut $version, service: u16, access: u32) -> u64 {
            references!(src);
            access::is_denied(src, service, access as u8) as u64
        }

        impl Stages for $version {
            #[inline(always)]
            fn without_flow(packet: &mut Packet) -> Result<Verdict, DropReason> {
                let outcome = $without_flow(packet.ctx(), packet.service);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn flagged(packet: &mut Packet, flow: &mut Flow<Self>) -> Result<Verdict, DropReason> {
                let outcome = $flagged(packet.ctx(), packet.service, flow);
                unpack(packet, outcome)
            }

            #[cfg(feature = "trace")]
            #[inline(always)]
            fn established(
                packet: &mut Packet,
                flow: &mut Flow<Self>,
            ) -> Result<Verdict, DropReason> {
                let outcome = $established(packet.ctx(), packet.service, flow);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn forward(packet: &mut Packet, flow: &mut Flow<Self>) -> Result<Verdict, DropReason> {
                let outcome = $forward(packet.ctx(), packet.service, flow);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn icmp(packet: &mut Packet) -> Result<Verdict, DropReason> {
                let outcome = $icmp(packet.ctx(), packet.service);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn forward_error(
                packet: &mut Packet,
                error: &IcmpError<Self>,
                flow: &mut Flow<Self>,
            ) -> Result<Verdict, DropReason> {
                let outcome = $forward_error(packet.ctx(), packet.service, pointer(error), flow);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn reset(packet: &mut Packet) -> Result<Verdict, DropReason> {
                let outcome = $reset(packet.ctx(), packet.service);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn packet_too_big(
                packet: &mut Packet,
                l3: u32,
                mtu: u16,
            ) -> Result<Verdict, DropReason> {
                let outcome = $packet_too_big(packet.ctx(), packet.service, l3, mtu);
                unpack(packet, outcome)
            }

            #[inline(always)]
            fn reserve_source(
                packet: &Packet,
                client: &Tuple<Self>,
                backend_id: u16,
                backend: &Backend,
                source: Source,
                to: &mut Tuple<Self>,
            ) -> Result<Reserved, DropReason> {
                // A function has five arguments at most.
                let source = (source.index as u64) << 16 | source.port as u64;
                let numbers = (backend_id as u64) << 32 | source;
                let (client, backend) = (pointer(client), pointer(backend));
                match $reserve_source(packet.ctx(), client, numbers, backend, to) {
                    DONE => Ok(Reserved::Done),
                    TAKEN => Ok(Reserved::Taken),
                    outcome => match DropReason::from_number(outcome as u32 & 0xff) {
                        Some(reason) => Err(reason),
                        None => Err(DropReason::Inconsistent),
                    },
                }
            }

            #[inline(always)]
            fn promote() -> bool {
                $promote() == DONE
            }

            #[inline(always)]
            fn options(packet: &Packet, options: &mut Options) {
                $options(packet.ctx(), options);
            }

            #[inline(always)]
            fn is_denied(src: &Self, service: u16, access: u8) -> bool {
                $is_denied(pointer(src), service, access as u32) != 0
            }
        }
    };
}

/// A reference as an argument of a global function, which has no use for "read only".
#[inline(always)]
fn pointer<T>(to: &T) -> *mut T {
    core::ptr::from_ref(to).cast_mut()
}

stages!(V4:
    without_flow_v4, flagged_v4, established_v4, forward_v4, icmp_v4, forward_error_v4,
    reset_v4, packet_too_big_v4, reserve_source_v4, promote_v4, options_v4, is_denied_v4
);
stages!(V6:
    without_flow_v6, flagged_v6, established_v6, forward_v6, icmp_v6, forward_error_v6,
    reset_v6, packet_too_big_v6, reserve_source_v6, promote_v6, options_v6, is_denied_v6
);
