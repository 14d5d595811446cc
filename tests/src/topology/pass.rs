//! An XDP program that lets everything pass, for the other end of a veth pair.
//!
//! What XDP transmits (`XDP_TX`) on one end of a pair waits in a ring until the other end is polled, and
//! the driver wakes the other end only if that has an XDP program: GRO brings the polling, but not the
//! waking. Without it, a lone answer waits until something else is sent the same way.

use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use lb_agent::bpf::sys::Link;
use nix::libc;

use crate::netns::NsHandle;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// Takes frames of more than a page, too: no limit to the MTU.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// `XDP_FLAGS_DRV_MODE`
const IN_DRIVER: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];

/// The part of `union bpf_attr` for `BPF_PROG_LOAD` up to the flags; the kernel takes the rest as zero.
#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    kind: u32,
    instructions_len: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Attaches the program; it goes with the returned link.
pub(super) fn attach(namespace: &NsHandle, device: &str) -> Result<Link> {
    let attach = || -> Result<Link> {
        let program = load().context("cannot load an XDP program that passes everything")?;
        let index = nix::net::if_::if_nametoindex(device)?;
        Ok(Link::create(program.as_fd(), index, IN_DRIVER)?)
    };
    namespace.run(attach).with_context(|| format!("XDP on {device} in {}", namespace.name()))
}

fn load() -> io::Result<OwnedFd> {
    let attributes = ProgramLoad {
        kind: BPF_PROG_TYPE_XDP,
        instructions_len: PASS.len() as u32,
        instructions: PASS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        flags: BPF_F_XDP_HAS_FRAGS,
        ..ProgramLoad::default()
    };
    let (pointer, length) = (&raw const attributes, size_of::<ProgramLoad>());
    // SAFETY: the attributes are as long as is said, and what they point to is static.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, pointer, length) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just opened the descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
