//! Links of XDP programs to interfaces.

use std::{
    io,
    mem::zeroed,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use nix::libc;

use super::{Attr, bpf, bpf_fd, kind, open_pin, raw};

const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// `BPF_XDP` of `enum bpf_attach_type`.
const ATTACH_XDP: u32 = 37;
/// `BPF_LINK_TYPE_XDP` of `enum bpf_link_type`.
const LINK_TYPE_XDP: u32 = 6;

#[repr(C)]
#[derive(Clone, Copy)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Create: program, interface, attach type, flags. Update: link, new program, flags, old program.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkAttr([u32; 4]);

/// The beginning of `struct bpf_link_info`, for a link of XDP.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkInfoRaw {
    link_type: u32,
    id: u32,
    program_id: u32,
    _pad: u32,
    ifindex: u32,
    _rest: [u32; 11],
}

impl Attr for InfoAttr {}
impl Attr for LinkAttr {}

/// The attachment of a program to an interface. It lasts as long as a descriptor or a pin does.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the kernel says about a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    pub id: u32,
    pub program_id: u32,
    /// Interface, numbered as in its own network namespace; 0 once the interface is gone.
    pub ifindex: u32,
}

impl Link {
    /// Attaches a program to an interface of the calling thread's network namespace. `xdp_flags` is
    /// one of the mode bits of `IFLA_XDP_FLAGS`.
    pub fn create(program: BorrowedFd<'_>, ifindex: u32, xdp_flags: u32) -> io::Result<Self> {
        let mut attr = LinkAttr([raw(program), ifindex, ATTACH_XDP, xdp_flags]);
        // SAFETY: the attributes hold no address, and BPF_LINK_CREATE returns a descriptor.
        unsafe { bpf_fd(LINK_CREATE, &mut attr) }.map(Self)
    }

    /// Opens a pinned link; anything else that is pinned there is an error.
    pub fn open(path: &Path) -> io::Result<Self> {
        let link = Self(open_pin(path)?);
        link.info()?;
        Ok(link)
    }

    /// Replaces the program atomically: each packet sees the old one or the new one.
    pub fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let mut attr = LinkAttr([raw(self.0.as_fd()), raw(program), 0, 0]);
        // SAFETY: the attributes hold no address.
        unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
    }

    /// Detaches the program, whoever else holds a descriptor or a pin of this link.
    pub fn detach(&self) -> io::Result<()> {
        let mut attr = LinkAttr([raw(self.0.as_fd()), 0, 0, 0]);
        // SAFETY: the attributes hold no address.
        unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
    }

    /// What the link is attached to.
    pub fn info(&self) -> io::Result<LinkInfo> {
        let found = kind(self.0.as_fd())?;
        if found != "bpf-link" {
            return Err(io::Error::other(format!("not a link but {found}")));
        }
        // SAFETY: plain integers, for which zero is a value.
        let mut info: LinkInfoRaw = unsafe { zeroed() };
        let mut attr = InfoAttr {
            bpf_fd: raw(self.0.as_fd()),
            info_len: size_of::<LinkInfoRaw>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        };
        // SAFETY: `info` is valid for writes of `info_len` bytes, outlives the call, and every bit
        // pattern is a value of it.
        unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr)? };
        if info.link_type != LINK_TYPE_XDP {
            return Err(io::Error::other(format!(
                "not a link of XDP but of type {}",
                info.link_type
            )));
        }
        Ok(LinkInfo { id: info.id, program_id: info.program_id, ifindex: info.ifindex })
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
