//! Sends packets which no socket of this host could: TCP resets in another's name, and packets that XDP punted.
//!
//! A reset must have exactly the sequence number that the receiver expects next: anything else inside the window
//! only earns a challenge ACK (RFC 5961, 3.2). The caller knows it from the flow table; nothing here guesses.

mod link_address;
pub mod packet;

use std::{
    io,
    net::{IpAddr, SocketAddr, SocketAddrV6},
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::netlink::Mac;

/// `IPPROTO_RAW`: send only, with the IP header in the buffer, for any transport protocol.
const IPPROTO_RAW: i32 = nix::libc::IPPROTO_RAW;

/// How a reset reaches its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// The kernel routes it by its destination.
    Route,
    /// Inside another IP packet, which the kernel routes: to a backend of an `ipip` service. IPv4 and IPv6 in either.
    Tunnel { outer_src: IpAddr, outer_dst: IpAddr },
    /// In a frame on one link: to a backend of a `dsr` service, whose VIP is not routed to it. The index is of the
    /// device that has the neighbour, for a VLAN of the subinterface (the kernel tags).
    Link { ifindex: u32, dst_mac: Mac, src_mac: Mac },
}

/// One TCP reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reset {
    /// In whose name: the receiver's peer. Need not be an address of this host.
    pub src: SocketAddr,
    /// Who receives it; of the same family.
    pub dst: SocketAddr,
    /// Host byte order. The receiver's RCV.NXT, exactly.
    pub seq: u32,
    /// Host byte order. Needed only by a receiver in SYN-SENT (RFC 9293, 3.10.7.3).
    pub ack: Option<u32>,
    pub via: Via,
}

/// The sockets for it, of the network namespace of the thread which opened them. Needs CAP_NET_RAW.
///
/// The sockets do not block: if a device's queue is full, the error is `WouldBlock`, and the caller, who paces
/// resets anyway, tries again.
#[derive(Debug)]
pub struct ResetSender {
    v4: Socket,
    /// None on a host without IPv6.
    v6: Option<Socket>,
    link: Socket,
}

impl ResetSender {
    /// Opens the sockets.
    pub fn open() -> io::Result<Self> {
        let raw = |domain| {
            Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(IPPROTO_RAW)))
        };
        let v4 = raw(Domain::IPV4).map_err(explain)?;
        v4.set_header_included_v4(true)?;
        let v6 = match raw(Domain::IPV6) {
            Ok(socket) => {
                // Linux 4.5; IPPROTO_RAW implies it, too.
                socket.set_header_included_v6(true)?;
                Some(socket)
            }
            Err(error) if error.raw_os_error() == Some(nix::libc::EAFNOSUPPORT) => None,
            Err(error) => return Err(explain(error)),
        };
        // Protocol 0: it never receives, and so costs nothing on the receive path.
        let link = Socket::new(Domain::PACKET, Type::RAW.nonblocking(), None).map_err(explain)?;
        Ok(Self { v4, v6, link })
    }

    /// Sends one reset.
    pub fn send(&self, reset: Reset) -> io::Result<()> {
        let Reset { src, dst, seq, ack, via } = reset;
        let invalid = || {
            let text =
                format!("reset from {src} to {dst} via {via:?}: addresses of different families");
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let packet = packet::reset(src, dst, seq, ack).ok_or_else(invalid)?;
        match via {
            Via::Route => self.send_to(dst, &packet),
            Via::Tunnel { outer_src, outer_dst } => {
                let outer = packet::tunnel(outer_src, outer_dst, &packet).ok_or_else(invalid)?;
                self.send_to(SocketAddr::new(outer_dst, 0), &outer)
            }
            Via::Link { ifindex, dst_mac, src_mac } => {
                self.send_frame(ifindex, dst_mac, src_mac, &packet)
            }
        }
    }

    /// Sends a whole IP packet in a frame on one link: see [`Via::Link`].
    pub fn send_frame(
        &self,
        ifindex: u32,
        dst_mac: Mac,
        src_mac: Mac,
        ip_packet: &[u8],
    ) -> io::Result<()> {
        let invalid = || {
            let text = format!("{} bytes: neither IPv4 nor IPv6", ip_packet.len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        };
        let frame = packet::ethernet(dst_mac, src_mac, ip_packet).ok_or_else(invalid)?;
        let ethertype = packet::ethertype(ip_packet).ok_or_else(invalid)?;
        let to = link_address::link_address(ifindex, ethertype, dst_mac);
        whole(self.link.send_to(&frame, &to)?, frame.len())
    }

    /// Hands a whole IP packet to the kernel to route by its destination, as punted packets are: the kernel resolves
    /// the neighbour, and XDP finds it the next time. The TTL is not decremented: whoever forwards has done it.
    ///
    /// The source may be anybody's. Neither family needs IP_TRANSPARENT or IP_FREEBIND for that: with the header
    /// included the kernel looks at the source address of the socket, which has none, and never at the packet's
    /// (raw_sendmsg(), rawv6_sendmsg()). It follows that policy rules which select by source do not apply. The kernel
    /// sets an IPv4 header's length and checksum, and its identification if that is 0.
    pub fn send_packet(&self, ip_packet: &[u8]) -> io::Result<()> {
        let dst = packet::destination(ip_packet).ok_or_else(|| {
            let text = format!("{} bytes: not a whole IPv4 or IPv6 packet", ip_packet.len());
            io::Error::new(io::ErrorKind::InvalidInput, text)
        })?;
        self.send_to(SocketAddr::new(dst, 0), ip_packet)
    }

    fn send_to(&self, dst: SocketAddr, packet: &[u8]) -> io::Result<()> {
        let (socket, to) = match dst {
            SocketAddr::V4(dst) => (&self.v4, SockAddr::from(dst)),
            SocketAddr::V6(dst) => {
                let missing = || io::Error::from_raw_os_error(nix::libc::EAFNOSUPPORT);
                // The port of a raw address is a protocol number: another than the socket's is refused.
                let to = SocketAddrV6::new(*dst.ip(), 0, 0, dst.scope_id());
                (self.v6.as_ref().ok_or_else(missing)?, to.into())
            }
        };
        whole(socket.send_to(packet, &to)?, packet.len())
    }
}

fn whole(sent: usize, length: usize) -> io::Result<()> {
    if sent == length { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Says what an operator can do about a socket that could not be opened.
fn explain(error: io::Error) -> io::Error {
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => ": give the agent CAP_NET_RAW, or run it as root",
        _ => "",
    };
    io::Error::new(error.kind(), format!("raw sockets for resets: {error}{remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named_with_the_remedy() {
        let error = explain(io::Error::from_raw_os_error(nix::libc::EPERM));
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("CAP_NET_RAW"), "{error}");
    }
}
