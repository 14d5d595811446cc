//! The one program that is not in the object file.

use std::{io, os::fd::OwnedFd};

use nix::libc;

use super::{Attr, bpf_fd};

const PROG_LOAD: libc::c_int = 5;

/// `BPF_PROG_TYPE_SOCKET_FILTER`.
const SOCKET_FILTER: u32 = 1;

/// `r0 = 0; exit`: none of the packet's bytes is let through.
const DROP: [u64; 2] = [0xb7, 0x95];

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

/// Loads a socket filter (`SO_ATTACH_BPF`) that drops everything.
pub fn drop_filter() -> io::Result<OwnedFd> {
    let mut attr = ProgramAttr {
        prog_type: SOCKET_FILTER,
        insn_cnt: DROP.len() as u32,
        insns: DROP.as_ptr() as u64,
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
