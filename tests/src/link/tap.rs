//! A TAP device: Ethernet frames in and out of a namespace's kernel by a file descriptor.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use nix::libc;

use crate::netns::NsHandle;

/// The longest frame: the largest MTU, the Ethernet header and VLAN tags.
pub(super) const MAX_FRAME: usize = 65_535 + 14 + 8;

/// `struct ifreq` as far as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == size_of::<libc::ifreq>());

nix::ioctl_write_int!(tun_set_interface, b'T', 202);
nix::ioctl_write_int!(tun_set_offload, b'T', 208);

/// An open TAP device, which lives as long as this does.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
}

impl Tap {
    /// Makes device `name` in a namespace, without offloads: each frame is as it would be on a wire.
    pub(super) fn open(namespace: &NsHandle, name: &str) -> Result<Self> {
        // The device belongs to the namespace of the thread that opens the file.
        namespace
            .run(|| Self::open_here(name))
            .with_context(|| format!("cannot make TAP device {name} in {}", namespace.name()))
    }

    fn open_here(name: &str) -> Result<Self> {
        ensure!(name.len() < libc::IFNAMSIZ, "a device's name has at most 15 bytes");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("/dev/net/tun (the kernel needs CONFIG_TUN, and we CAP_NET_ADMIN)")?;
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
        let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: TUNSETIFF takes a pointer to a `struct ifreq`, which `request` is in size and layout, and
        // which lives through the call.
        unsafe { tun_set_interface(file.as_raw_fd(), &raw mut request as u64) }
            .context("TUNSETIFF")?;
        // SAFETY: TUNSETOFFLOAD takes an integer: none of the TUN_F_* flags.
        unsafe { tun_set_offload(file.as_raw_fd(), 0) }.context("TUNSETOFFLOAD")?;
        Ok(Self { file })
    }

    /// Reads a frame; `WouldBlock` if there is none.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.file).read(buffer)
    }

    pub(super) fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.file).write(frame).map(drop)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
