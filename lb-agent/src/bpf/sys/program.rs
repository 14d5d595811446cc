//! The one program that is not in the object file.

use std::{io, os::fd::OwnedFd};

use nix::libc;

use super::{Attr, bpf_fd};

const PROG_LOAD: libc::c_int = 5;

/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u32 = 1;

/// Of a segment as a TCP socket's filter sees it, from the TCP header on, the bit for RST: as a number of bytes to let through it
/// is none, or too few to matter, since the kernel never cuts into the header (`tcp_filter`).
///
/// ```text
/// r6 = r1;  r0 = byte 13;  r0 &= RST;  exit
/// ```
const DROP_ALL_BUT_RST: [u64; 4] = [0x16bf, 13 << 32 | 0x30, 4 << 32 | 0x57, 0x95];

#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

impl Attr for ProgramAttr {}

/// Loads a filter for TCP sockets (`SO_ATTACH_BPF`) that drops everything but RSTs: all else TCP sends again.
pub fn drop_filter() -> io::Result<OwnedFd> {
    let mut attr = ProgramAttr {
        prog_type: SOCKET_FILTER,
        insn_cnt: DROP_ALL_BUT_RST.len() as u32,
        insns: DROP_ALL_BUT_RST.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"sluice_drop\0\0\0\0\0",
    };
    // SAFETY: the instructions and the C string are constants, and BPF_PROG_LOAD returns a descriptor.
    unsafe { bpf_fd(PROG_LOAD, &mut attr) }
}
