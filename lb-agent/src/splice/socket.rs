//! A TCP socket of a worker, stopped and started as a splice needs it: a filter which drops all that comes, and repair mode
//! (`TCP_REPAIR`), in which a socket tells its numbers and is closed without a word.
//!
//! Nothing that a worker passes here is trusted to be a TCP socket: the kernel refuses what does not apply to others.

use std::{
    io,
    mem::size_of,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use nix::libc::{self, c_int};
use rustix::net::{getpeername, getsockname};

use super::plan::{Facts, Numbers};

/// `TCP_ESTABLISHED` of the kernel's states.
const ESTABLISHED: u8 = 1;

/// `TCPI_OPT_*`.
const OPT_TIMESTAMPS: u8 = 1;
const OPT_SACK: u8 = 2;
const OPT_ECN: u8 = 8;

const REPAIR_ON: c_int = 1;
/// With a window probe to the far end.
const REPAIR_OFF_PROBE: c_int = 0;
/// Without a window probe to the far end.
const REPAIR_OFF: c_int = -1;
const RECEIVE_QUEUE: c_int = 1;
const SEND_QUEUE: c_int = 2;

/// Sends an acknowledgement that is owed, and delays later ones as before.
const QUICKACK_ONCE: c_int = 2;

/// The beginning of the kernel's `struct tcp_info`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TcpInfo {
    state: u8,
    _ca_state: [u8; 4],
    options: u8,
    /// Two bit fields: of the far end's windows, and of ours.
    scales: u8,
    _flags: u8,
    _timers_and_mss: [u32; 4],
    /// Segments.
    unacked: u32,
    _counts: [u32; 4],
    _ages: [u32; 4],
    _estimates: [u32; 6],
    advmss: u32,
    _more_estimates: [u32; 4],
    _rates: [u64; 2],
    _bytes_acked: u64,
    bytes_received: u64,
    _segments: [u32; 2],
    notsent_bytes: u32,
    _min_rtt: u32,
}

const _: () = assert!(size_of::<TcpInfo>() == 152);

/// A socket that came with an offer.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub fn local(&self) -> io::Result<SocketAddr> {
        Ok(getsockname(&self.0)?.try_into()?)
    }

    pub fn peer(&self) -> io::Result<SocketAddr> {
        let Some(peer) = getpeername(&self.0)? else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        Ok(peer.try_into()?)
    }

    /// What the socket says of itself.
    pub fn facts(&self) -> io::Result<Facts> {
        let facts = self.facts_but_unread()?;
        // Of all that waits to be read, also behind a gap: that is acknowledged, too, if the far end has SACK.
        let [waiting]: [u32; 1] = self.get(libc::SOL_SOCKET, libc::SO_MEMINFO)?;
        Ok(Facts { quiet: facts.quiet && waiting == 0, ..facts })
    }

    /// The same in half the time, where all that has come is known to have been read.
    pub fn facts_but_unread(&self) -> io::Result<Facts> {
        let info: TcpInfo = self.get(libc::IPPROTO_TCP, libc::TCP_INFO)?;
        let (low, high) = (info.scales & 15, info.scales >> 4);
        let (snd_scale, rcv_scale) =
            if cfg!(target_endian = "little") { (low, high) } else { (high, low) };
        Ok(Facts {
            established: info.state == ESTABLISHED,
            quiet: info.unacked == 0 && info.notsent_bytes == 0,
            unacknowledged: info.unacked > 0,
            timestamps: info.options & OPT_TIMESTAMPS != 0,
            sack: info.options & OPT_SACK != 0,
            ecn: info.options & OPT_ECN != 0,
            snd_scale,
            rcv_scale,
            advmss: info.advmss,
            received: info.bytes_received as u32,
        })
    }

    /// Sends an acknowledgement that the stack has put off, or the far end would send again what it had said.
    pub fn acknowledge(&self) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_QUICKACK, QUICKACK_ONCE)
    }

    /// Asks the far end for the acknowledgement that it has put off: a segment that it has had before must be answered at once
    /// (RFC 9293 section 3.10.7.4). Linux sends one whenever repair mode ends (kernel: `tcp_send_window_probe`).
    pub fn ask_for_acknowledgement(&self) -> io::Result<()> {
        self.repair()?;
        self.end_repair(REPAIR_OFF_PROBE)
    }

    /// Drops all that comes from now on, by this program.
    pub fn stop(&self, filter: BorrowedFd<'_>) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, filter.as_raw_fd())
    }

    /// Whether the socket is in repair mode, which takes privileges to be switched on.
    pub fn is_in_repair(&self) -> io::Result<bool> {
        self.get::<c_int>(libc::IPPROTO_TCP, libc::TCP_REPAIR).map(|on| on != 0)
    }

    /// Enters repair mode: from now on a close sends nothing.
    pub fn repair(&self) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_REPAIR, REPAIR_ON)
    }

    /// The numbers of a socket in repair mode.
    pub fn numbers(&self, timestamps: bool) -> io::Result<Numbers> {
        let clock = |it: &Self| it.get::<u32>(libc::IPPROTO_TCP, libc::TCP_TIMESTAMP);
        Ok(Numbers {
            snd_nxt: self.sequence(SEND_QUEUE)?,
            rcv_nxt: self.sequence(RECEIVE_QUEUE)?,
            tsval: if timestamps { clock(self)? } else { 0 },
        })
    }

    fn sequence(&self, queue: c_int) -> io::Result<u32> {
        self.set(libc::IPPROTO_TCP, libc::TCP_REPAIR_QUEUE, queue)?;
        self.get(libc::IPPROTO_TCP, libc::TCP_QUEUE_SEQ)
    }

    /// Leaves repair mode and takes the filter off: the socket is as it was.
    pub fn resume(&self) -> io::Result<()> {
        let mut result = Ok(());
        if self.is_in_repair()? {
            result = self.end_repair(REPAIR_OFF);
        }
        match self.set(libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
            // There was none.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => result,
            detached => result.and(detached),
        }
    }

    /// Leaves repair mode, with `SO_REUSEADDR`, which repair mode takes away, and without which a listener of the same port could
    /// not be opened.
    fn end_repair(&self, how: c_int) -> io::Result<()> {
        self.set(libc::IPPROTO_TCP, libc::TCP_REPAIR, how)?;
        self.set(libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)
    }

    fn get<T: Pod>(&self, level: c_int, name: c_int) -> io::Result<T> {
        let mut value = T::zeroed();
        let mut length = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is valid for writes of `length` bytes, any of which a Pod type can hold; both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                std::ptr::from_mut(&mut value).cast(),
                &mut length,
            )
        };
        match result {
            0 if length as usize == size_of::<T>() => Ok(value),
            0 => Err(io::ErrorKind::Unsupported.into()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn set(&self, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
        // SAFETY: the kernel reads the bytes of `value`, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(&value).cast(),
                size_of::<c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
