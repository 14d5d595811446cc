//! The frame that a program was called for. All `unsafe` access to packet memory is here.
//!
//! Offsets count from the first byte of the frame. After [`Packet::grow_head`] or
//! [`Packet::trim_tail`] all offsets known before are void; the borrow checker sees to it that no
//! reference into the frame is kept across them.

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_md,
    helpers::{
        bpf_csum_diff, bpf_fib_lookup, bpf_redirect, bpf_sk_release, bpf_skc_lookup_tcp,
        bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len, bpf_xdp_load_bytes,
        bpf_xdp_store_bytes,
    },
    programs::XdpContext,
};
use lb_common::{
    addr::{Addr, Tuple},
    outcome::{DropReason, NO_SERVICE},
};

use crate::wire::Wire;

/// No header that we look at starts later: 22 bytes of Ethernet and VLAN, an IPv6 header with its
/// extensions, ICMPv6, and the quoted headers. The verifier wants a bound; this is one.
const MAX_OFFSET: usize = 1023;

/// A frame, and the service that its outcome is counted for.
pub struct Packet {
    ctx: *mut xdp_md,
    /// Set by the stage that finds it out.
    pub service: u16,
}

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &XdpContext) -> Self {
        Self { ctx: ctx.ctx, service: NO_SERVICE }
    }

    /// The one way to the frame's bytes: a header at an offset, if it lies wholly within the frame.
    #[inline(always)]
    pub fn at<T: Wire>(&mut self, offset: usize) -> Result<&mut T, DropReason> {
        // A check that follows from an earlier one would be left out by the compiler, and the verifier
        // does not see what follows from what.
        let offset = opaque(offset);
        if offset > MAX_OFFSET {
            return Err(DropReason::Truncated);
        }
        // SAFETY: the kernel guarantees that [data, data_end) is the frame's linear part, and the
        // header's last byte is checked against it. `T: Wire` has alignment 1 and no invalid bit
        // pattern. The reference borrows `self` exclusively, so no two of them alias.
        unsafe {
            let (start, end): (*mut u8, *mut u8);
            // The context has these pointers in fields of 32 bits. Read as Rust integers, the
            // compiler may keep and widen them, and a packet pointer that went through a 32-bit
            // move is a number to the verifier; so they are loaded as whole registers.
            asm!(
                "{start} = *(u32 *)({ctx} + 0)",
                "{end} = *(u32 *)({ctx} + 4)",
                start = out(reg) start,
                end = out(reg) end,
                ctx = in(reg) self.ctx,
                options(readonly, nostack, preserves_flags),
            );
            let header = start.add(offset);
            if header.add(size_of::<T>()) > end {
                return Err(DropReason::Truncated);
            }
            Ok(&mut *header.cast::<T>())
        }
    }

    /// Length of the frame in bytes, all fragments of a multi-buffer frame included.
    #[inline(always)]
    pub fn len(&self) -> usize {
        // SAFETY: the context is valid for the program's whole run; the helper only reads it.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as usize }
    }

    /// Length of the part of the frame that [`Packet::at`] can reach.
    #[inline(always)]
    pub fn linear_len(&self) -> usize {
        // SAFETY: as above.
        unsafe { ((*self.ctx).data_end - (*self.ctx).data) as usize }
    }

    /// Index of the interface that the frame came by.
    #[inline(always)]
    pub fn ingress(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.ctx).ingress_ifindex }
    }

    /// Copies `len` bytes, at least one, from `offset` on; false if the frame has fewer.
    #[inline(always)]
    pub fn copy_to(&self, offset: usize, buffer: &mut [u8], len: usize) -> bool {
        // The helper wants a length of one at least. Older verifiers (6.1) do not conclude that from a
        // comparison with zero, but from this.
        let last = opaque(len.wrapping_sub(1));
        if last >= buffer.len() {
            return false;
        }
        let len = last + 1;
        // SAFETY: `buffer` has room for `len` bytes; the helper checks the frame's side.
        unsafe {
            bpf_xdp_load_bytes(self.ctx, offset as u32, buffer.as_mut_ptr().cast(), len as u32) == 0
        }
    }

    /// Writes `len` bytes, at least one, from `offset` on; false if the frame has fewer.
    #[inline(always)]
    pub fn copy_from(&mut self, offset: usize, buffer: &mut [u8], len: usize) -> bool {
        // As in `copy_to`.
        let last = opaque(len.wrapping_sub(1));
        if last >= buffer.len() {
            return false;
        }
        let len = last + 1;
        // SAFETY: `buffer` has `len` bytes, which the helper only reads; it checks the frame's side, and
        // `&mut self` ends all references into the frame.
        unsafe {
            bpf_xdp_store_bytes(self.ctx, offset as u32, buffer.as_mut_ptr().cast(), len as u32)
                == 0
        }
    }

    /// Moves the frame's start: a positive number makes room in front, a negative one cuts off.
    #[inline(always)]
    pub fn grow_head(&mut self, bytes: i32) -> Result<(), DropReason> {
        // SAFETY: the helper checks the room that there is, and `&mut self` ends all references.
        match unsafe { bpf_xdp_adjust_head(self.ctx, -bytes) } {
            0 => Ok(()),
            _ => Err(DropReason::NoHeadroom),
        }
    }

    /// Sets the frame's length to at most its present one.
    #[inline(always)]
    pub fn trim_tail(&mut self, len: usize) -> Result<(), DropReason> {
        let excess = len as i32 - self.len() as i32;
        if excess >= 0 {
            return if excess == 0 { Ok(()) } else { Err(DropReason::Truncated) };
        }
        // SAFETY: as for the head.
        match unsafe { bpf_xdp_adjust_tail(self.ctx, excess) } {
            0 => Ok(()),
            _ => Err(DropReason::NoHeadroom),
        }
    }

    /// The one's-complement sum of a header at an offset, added to `seed`.
    #[inline(always)]
    pub fn sum<T: Wire>(&mut self, offset: usize, seed: u32) -> Result<u64, DropReason> {
        let header: *mut T = self.at::<T>(offset)?;
        // SAFETY: `at` has checked the whole header; its length is a multiple of four, which the
        // helper wants (asserted at compile time).
        let sum = unsafe {
            const { assert!(size_of::<T>().is_multiple_of(4) && size_of::<T>() <= 512) };
            bpf_csum_diff(core::ptr::null_mut(), 0, header.cast(), size_of::<T>() as u32, seed)
        };
        Ok(sum as u32 as u64)
    }

    /// What the change from `old` to `new` adds to a one's-complement sum over them.
    #[inline(always)]
    pub fn difference<const LEN: usize>(old: &[u8; LEN], new: &[u8; LEN]) -> u32 {
        const { assert!(LEN.is_multiple_of(4) && LEN <= 512) };
        // SAFETY: both have LEN bytes, which the helper only reads; it wants a multiple of four.
        unsafe {
            let (from, to) = (old.as_ptr().cast_mut().cast(), new.as_ptr().cast_mut().cast());
            bpf_csum_diff(from, LEN as u32, to, LEN as u32, 0) as u32
        }
    }

    /// Asks the kernel's FIB. Returns the helper's code (`BPF_FIB_LKUP_RET_*`).
    #[inline(always)]
    pub fn fib_lookup(&self, params: &mut aya_ebpf::bindings::bpf_fib_lookup) -> i64 {
        // SAFETY: `params` is initialised and as long as is said.
        unsafe {
            let len = size_of_val(params) as i32;
            bpf_fib_lookup(self.ctx.cast(), params, len, 0)
        }
    }

    /// Whether a socket of this host would get a segment with a tuple, listeners and TIME-WAIT included.
    #[inline(always)]
    pub fn has_socket<A: Addr>(&self, tuple: &Tuple<A>) -> bool {
        const THIS_NAMESPACE: u64 = -1_i64 as u64; // BPF_F_CURRENT_NETNS
        // SAFETY: a tuple has the layout of the kernel's `struct bpf_sock_tuple` for its IP version, which
        // the kernel knows by the size; it only reads it. What it finds is released at once.
        unsafe {
            let tuple: *mut Tuple<A> = core::ptr::from_ref(tuple).cast_mut();
            let size = size_of::<Tuple<A>>() as u32;
            let socket = bpf_skc_lookup_tcp(self.ctx.cast(), tuple.cast(), size, THIS_NAMESPACE, 0);
            if socket.is_null() {
                return false;
            }
            bpf_sk_release(socket.cast());
        }
        true
    }

    /// Makes `XDP_REDIRECT` send the frame to an interface.
    #[inline(always)]
    pub fn redirect(&self, ifindex: u32) {
        // SAFETY: the helper takes numbers only. With no flags it always answers XDP_REDIRECT; an
        // interface that does not exist is found out at transmission.
        unsafe { bpf_redirect(ifindex, 0) };
    }

    /// The context, for a function that makes its own [`Packet`] of it.
    #[inline(always)]
    pub fn ctx(&self) -> *mut xdp_md {
        self.ctx
    }
}

/// The same number, of which the compiler knows nothing: it cannot prove a check away, or do it on a
/// copy in another register, which the verifier would not connect with this one.
#[inline(always)]
pub fn opaque(mut number: usize) -> usize {
    // SAFETY: moves a register to itself.
    unsafe { asm!("{0} = {0}", inout(reg) number, options(nomem, nostack, preserves_flags)) }
    number
}

/// The same number, of which the verifier knows only that it is less than 64; it must be.
///
/// The verifier follows a loop once for every range of a number that it can tell apart. Where it has
/// to forget what it knows, one round covers all.
#[inline(always)]
pub fn blurred(number: usize) -> usize {
    let mut zero = number;
    // SAFETY: subtracts a register from itself, which the verifier does not see through.
    unsafe { asm!("{0} -= {0}", inout(reg) zero, options(pure, nomem, nostack, preserves_flags)) }
    opaque(number.wrapping_add(zero)) & 0x3f
}
