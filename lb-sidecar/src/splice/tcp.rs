//! What a worker asks the kernel about a TCP connection, and tells it, for the sake of a splice. None of it needs a
//! privilege.

use std::{
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use nix::{
    getsockopt_impl, libc, setsockopt_impl,
    sys::socket::{
        GetSockOpt as _, SetSockOpt as _,
        sockopt::{TcpMaxSeg, TcpRepair},
    },
};
use socket2::SockRef;

/// The beginning of the kernel's `struct tcp_info`, which only ever grows at its end.
#[repr(C)]
#[derive(Clone, Copy)]
struct TcpInfo {
    state: u8,
    ca_state: u8,
    retransmits: u8,
    probes: u8,
    backoff: u8,
    options: u8,
    /// The peer's in the lower half, ours in the upper one; of a bit field, by the order of this machine's.
    scales: u8,
    rate_flags: u8,
    rto: u32,
    ato: u32,
    snd_mss: u32,
    rcv_mss: u32,
    counts: [u32; 5],
    times: [u32; 4],
    pmtu: u32,
    rcv_ssthresh: u32,
    rtt: u32,
    rttvar: u32,
}

const OPTION_TIMESTAMPS: u8 = 1;
const OPTION_WINDOW_SCALE: u8 = 4;

/// Bytes that timestamps take of every segment (RFC 7323, appendix A).
const TIMESTAMPS: u32 = 12;

#[derive(Clone, Copy)]
struct GetInfo;
getsockopt_impl!(
    GetInfo,
    libc::IPPROTO_TCP,
    libc::TCP_INFO,
    TcpInfo,
    nix::sys::socket::sockopt::GetStruct<TcpInfo>
);

#[derive(Clone, Copy)]
struct WindowClamp;
setsockopt_impl!(
    WindowClamp,
    libc::IPPROTO_TCP,
    libc::TCP_WINDOW_CLAMP,
    u32,
    nix::sys::socket::sockopt::SetStruct<'_, u32>
);

nix::ioctl_read_bad!(unread, libc::FIONREAD, libc::c_int);
/// `SIOCOUTQNSD` of `linux/sockios.h`.
const SIOCOUTQNSD: libc::c_int = 0x894b;
nix::ioctl_read_bad!(unsent, SIOCOUTQNSD, libc::c_int);

/// What a client has said in its handshake, as far as the connection to its backend has to fit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The largest segment that it takes, options included.
    pub mss: u32,
    /// The highest window to let the kernel scale for, where it would scale by more than the client does.
    pub window_clamp: Option<u32>,
    /// The smoothed round trip.
    pub rtt: Duration,
}

impl Peer {
    /// None if the connection has ended.
    pub fn of(socket: &impl AsFd) -> Option<Self> {
        let info = GetInfo.get(socket).ok()?;
        let timestamps = info.options & OPTION_TIMESTAMPS != 0;
        let scale = (info.options & OPTION_WINDOW_SCALE != 0).then(|| scales(info.scales));
        Some(Self {
            mss: info.snd_mss + if timestamps { TIMESTAMPS } else { 0 },
            window_clamp: window_clamp(scale),
            rtt: Duration::from_micros(info.rtt.into()),
        })
    }
}

fn scales(byte: u8) -> (u8, u8) {
    let (low, high) = (byte & 0xf, byte >> 4);
    if cfg!(target_endian = "little") { (low, high) } else { (high, low) }
}

/// Of the client's scale and ours to it, if windows are scaled at all. The backend's connection would get the same as
/// ours.
fn window_clamp(scales: Option<(u8, u8)>) -> Option<u32> {
    // The kernel takes the smallest scale with which it can say the highest window (tcp_select_initial_window).
    match scales {
        None => Some(u16::MAX.into()),
        Some((client, ours)) if client < ours => Some((1 << (client + 16)) - 1),
        Some(_) => None,
    }
}

/// Makes a socket that is not connected yet fit a client: the backend sends no segment that the client could not take, and
/// the client's windows can be said to it without loss.
pub fn fit(socket: &impl AsFd, peer: &Peer) {
    // Whatever the kernel does not take makes the broker refuse the connection later; it can be relayed.
    _ = TcpMaxSeg.set(socket, &peer.mss);
    if let Some(clamp) = &peer.window_clamp {
        _ = WindowClamp.set(socket, clamp);
    }
}

/// Whether nothing waits here: all that came was read, and all that there was to send has left.
///
/// It need not be acknowledged yet. A peer that always has something to say soon puts its acknowledgements off until then
/// (RFC 9293 section 3.8.6.3): who waited for them here would always find other data in their place. The broker asks for them.
pub fn is_at_rest(socket: &impl AsFd) -> bool {
    let socket = socket.as_fd().as_raw_fd();
    let (mut inward, mut outward) = (0, 0);
    // SAFETY: the descriptor is borrowed for the calls, and each stores one int.
    let asked = unsafe { unread(socket, &mut inward).and(unsent(socket, &mut outward)) };
    asked.is_ok() && (inward, outward) == (0, 0)
}

/// Takes off what a broker has put on to drop all that comes.
pub fn take_filter_off(socket: &impl AsFd) {
    // Without one it is an error, and all is well.
    _ = SockRef::from(socket).detach_filter();
}

/// Whether a broker has begun to take its numbers.
pub fn is_in_repair(socket: &impl AsFd) -> bool {
    TcpRepair.get(socket).is_ok_and(|mode| mode != 0)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    fn pair(fit: impl FnOnce(&socket2::Socket)) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        fit(&socket);
        socket.connect(&listener.local_addr().unwrap().into()).unwrap();
        (socket.into(), listener.accept().unwrap().0)
    }

    #[test]
    fn the_clamp_keeps_our_scale_at_the_clients_or_below() {
        for (scales, clamp) in [
            (None, Some(65_535)),
            (Some((0, 7)), Some(65_535)),
            (Some((2, 7)), Some(262_143)),
            (Some((6, 7)), Some((1 << 22) - 1)),
            (Some((7, 7)), None),
            (Some((14, 7)), None),
            (Some((0, 0)), None),
        ] {
            assert_eq!(window_clamp(scales), clamp, "{scales:?}");
        }
    }

    /// The far end of a connection that was made to fit a client sees the client's numbers.
    #[test]
    fn what_a_client_says_is_what_the_backend_hears() {
        for (mss, scale) in [(536, 0), (1_200, 3), (1_460, 5)] {
            let client =
                Peer { mss, window_clamp: window_clamp(Some((scale, 14))), rtt: Duration::ZERO };
            let (near, far) = pair(|socket| fit(socket, &client));
            let heard = Peer::of(&far).unwrap();
            assert_eq!(heard.mss, mss);
            let info = GetInfo.get(&far).unwrap();
            assert_eq!(scales(info.scales).0, scale, "the near end's scale");
            assert_eq!(scales(GetInfo.get(&near).unwrap().scales).1, scale);
        }
    }

    #[test]
    fn at_rest_means_read_and_sent() {
        let (mut near, mut far) = pair(|_| {});
        assert!(is_at_rest(&near) && is_at_rest(&far));
        near.write_all(b"x").unwrap();
        assert!(!is_at_rest(&far), "nobody has read it");
        far.read_exact(&mut [0]).unwrap();
        assert!(is_at_rest(&far));
        assert!(!is_in_repair(&near));
        take_filter_off(&near);
    }
}
