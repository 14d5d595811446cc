//! The `bpf(2)` calls that aya does not offer, and no others.
//!
//! aya 0.14 has no batch calls and loads no program that is not in an object file; it hides the interface of a link; it turns an `EINVAL` of
//! `BPF_LINK_CREATE` into an attachment over netlink, which dies with nobody and cannot be pinned; and
//! it creates maps only with the flags that the object file names. Everything else goes through aya.
//!
//! All unsafe code of the agent's kernel side is in this module.

use std::{
    ffi::CString,
    io,
    mem::zeroed,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use nix::libc;

mod batch;
mod hash;
mod link;
mod per_cpu;
mod program;

pub use batch::{BatchAttr, MAP_LOOKUP_BATCH, MAP_UPDATE_BATCH, batch};
pub use hash::{Bucket, HashFd, Put};
pub use link::{Link, LinkInfo};
pub use per_cpu::PerCpuFd;
pub use program::drop_filter;

/// `BPF_F_NO_PREALLOC`: elements of a hash table are allocated as they come.
pub const NO_PREALLOC: u32 = 1 << 0;

/// `BPF_F_RDONLY`: who has the descriptor can look elements up, and nothing else.
const READ_ONLY: u32 = 1 << 3;

const MAP_CREATE: libc::c_int = 0;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;

// Each attribute struct is one member of the kernel's `union bpf_attr`; the kernel takes a shorter union
// than its own and reads the rest as zero.

#[repr(C)]
#[derive(Clone, Copy)]
struct MapCreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ObjAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// Plain integers only, so that a value of it can be handed to the kernel byte by byte.
trait Attr: Copy {}
impl Attr for MapCreateAttr {}
impl Attr for ObjAttr {}

/// # Safety
/// Every address in `attr` must be null or point to memory that is valid for what `command` reads and
/// writes there.
unsafe fn bpf<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is valid for reads and writes of its own size; the caller vouches for what it
    // points to.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>() as u32)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// # Safety
/// As for [`bpf`], and `command` must be one that returns a new file descriptor.
unsafe fn bpf_fd<A: Attr>(command: libc::c_int, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: the caller vouches for `attr`.
    let fd = unsafe { bpf(command, attr)? };
    // SAFETY: the kernel has just made this descriptor for us (with O_CLOEXEC, as bpf(2) always
    // does), and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd() as u32
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Creates a map. The kernel keeps the first 15 bytes of the name, for people.
pub fn map_create(
    name: &str,
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
) -> io::Result<OwnedFd> {
    let mut map_name = [0; 16];
    let len = name.len().min(15);
    map_name[..len].copy_from_slice(&name.as_bytes()[..len]);
    let mut attr = MapCreateAttr {
        map_type,
        key_size,
        value_size,
        max_entries,
        map_flags,
        inner_map_fd: 0,
        numa_node: 0,
        map_name,
    };
    // SAFETY: the attributes hold no address, and BPF_MAP_CREATE returns a descriptor.
    unsafe { bpf_fd(MAP_CREATE, &mut attr) }
}

/// Pins a map, program or link on a bpffs; an existing path is refused.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: raw(object), file_flags: 0 };
    // SAFETY: `path` is a C string that outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens what is pinned at the path, whatever it is: look at [`kind`] before using it.
pub fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    open_pin_with(path, 0)
}

/// Opens a pinned map so that its elements can be read, and not written.
pub fn open_pin_read_only(path: &Path) -> io::Result<OwnedFd> {
    open_pin_with(path, READ_ONLY)
}

fn open_pin_with(path: &Path, file_flags: u32) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut attr = ObjAttr { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags };
    // SAFETY: `path` is a C string that outlives the call, and BPF_OBJ_GET returns a descriptor.
    unsafe { bpf_fd(OBJ_GET, &mut attr) }
}

/// What a descriptor of `bpf(2)` stands for: `bpf-map`, `bpf-prog`, `bpf-link`.
pub fn kind(object: BorrowedFd<'_>) -> io::Result<String> {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
    let link = link.to_string_lossy();
    let kind = link.strip_prefix("anon_inode:").unwrap_or(&link);
    // The kernel calls a link by either name, depending on how its descriptor was made.
    Ok(kind.trim_matches(['[', ']']).replace("bpf_link", "bpf-link"))
}

/// The data plane's clock (`bpf_ktime_get_coarse_ns`) in ticks of [`lb_common::abi::TICK_SHIFT`].
pub fn now_ticks() -> u32 {
    // SAFETY: plain integers, for which zero is a value.
    let mut now: libc::timespec = unsafe { zeroed() };
    // SAFETY: `now` is valid for writes. The call cannot fail: the clock exists since Linux 2.6.32.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    let nanos = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
    (nanos >> lb_common::abi::TICK_SHIFT) as u32
}
