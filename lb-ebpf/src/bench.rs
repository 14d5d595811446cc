//! The benchmark's programs: drivers which make each packet anew and hand it to the program under
//! test by a tail call, and the floor, which is what such a packet costs at least.
//!
//! `BPF_PROG_TEST_RUN` calls a program many times with one and the same frame, as the program left
//! it. A driver undoes what the program under test did to the frame's start and headers, and puts
//! another client in. It does no more than that, and the same for every program: what it costs is in the floor.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

use core::arch::asm;

use aya_ebpf::{
    bindings::xdp_action,
    macros::{map, xdp},
    maps::{Array, ProgramArray},
    programs::XdpContext,
};
use lb_common::bench::{self, Drive, LINK, WORDS};
use lb_ebpf::packet::Packet;

/// The licence under which the kernel lets us use its GPL-only helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// What is sent.
#[map]
static DRIVE: Array<Drive> = Array::with_max_entries(1, 0);

/// The program under test.
#[map]
static PROGRAM: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// Where in the words of the headers the varied address and port are, in bits from the lowest.
struct Place {
    family: usize,
    address: (usize, u32),
    port: (usize, u32),
}

/// Packets of many IPv4 clients: source address at byte 12, source port at byte 20.
#[xdp(frags)]
pub fn clients4(ctx: XdpContext) -> u32 {
    drive::<40>(ctx, &Place { family: 0, address: (1, 32), port: (2, 32) })
}

/// Answers of IPv4 backends to many flows: destination address at byte 16, port at byte 22.
#[xdp(frags)]
pub fn backends4(ctx: XdpContext) -> u32 {
    drive::<40>(ctx, &Place { family: 0, address: (2, 0), port: (2, 48) })
}

/// Packets of many IPv6 clients: the source address ends at byte 24, source port at byte 40.
#[xdp(frags)]
pub fn clients6(ctx: XdpContext) -> u32 {
    drive::<56>(ctx, &Place { family: 1, address: (2, 32), port: (5, 0) })
}

/// Answers of IPv6 backends to many flows: the destination address ends at byte 40, port at byte 42.
#[xdp(frags)]
pub fn backends6(ctx: XdpContext) -> u32 {
    drive::<56>(ctx, &Place { family: 1, address: (4, 32), port: (5, 16) })
}

/// The least that can be done with a packet.
#[xdp(frags)]
pub fn floor(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

#[inline(always)]
fn drive<const HEADERS: usize>(ctx: XdpContext, place: &Place) -> u32 {
    let mut packet = Packet::new(&ctx);
    if restore::<HEADERS>(&mut packet, place).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { PROGRAM.tail_call(&ctx, 0) };
    }
    xdp_action::XDP_ABORTED
}

#[inline(always)]
fn restore<const HEADERS: usize>(packet: &mut Packet, place: &Place) -> Option<()> {
    let drive = DRIVE.get_ptr_mut(0)?;
    // SAFETY: the element is there, the harness writes it only between runs, and those are on one CPU.
    let drive = unsafe { &mut *drive };
    let moved = drive.len as i32 - packet.linear_len() as i32;
    if moved != 0 {
        packet.grow_head(moved).ok()?;
    }
    let flow = drive.next_flow();
    let (address, port) = bench::place(flow, drive.port_bits);

    // Each word is stored once and whole, so that the fields which the program under test loads are
    // forwarded from the CPU's store buffer, as they are loaded from its cache in a real driver.
    let link = packet.at::<[u8; LINK]>(0).ok()?;
    put64(link, 0, drive.link[0]);
    put48(link, 8, drive.link[1]);
    let headers = packet.at::<[u8; HEADERS]>(LINK).ok()?;
    for index in 0..WORDS[place.family] {
        let mut word = drive.headers[index];
        if index == place.address.0 {
            word |= (address as u64) << place.address.1;
        }
        if index == place.port.0 {
            word |= (port as u64) << place.port.1;
        }
        put64(headers, index * 8, word);
    }
    Some(())
}

/// Stores a word with one instruction; bytes have alignment 1, and the compiler would use eight.
#[inline(always)]
fn put64<const LEN: usize>(bytes: &mut [u8; LEN], offset: usize, word: u64) {
    if let Some(field) = bytes[offset..].first_chunk_mut::<8>() {
        // SAFETY: writes the eight bytes of the field, to which we have the only reference.
        unsafe {
            asm!("*(u64 *)({field} + 0) = {word}", word = in(reg) word, field = in(reg) field,
                options(nostack, preserves_flags));
        }
    }
}

/// Stores the lower six bytes of a word, with two instructions.
#[inline(always)]
fn put48<const LEN: usize>(bytes: &mut [u8; LEN], offset: usize, word: u64) {
    if let Some(field) = bytes[offset..].first_chunk_mut::<6>() {
        // SAFETY: as above, six bytes.
        unsafe {
            asm!("*(u32 *)({field} + 0) = {word}", "*(u16 *)({field} + 4) = {high}",
                word = in(reg) word, high = in(reg) word >> 32, field = in(reg) field,
                options(nostack, preserves_flags));
        }
    }
}
