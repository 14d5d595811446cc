//! `sockaddr_ll`, which neither socket2 nor nix can build without `unsafe`: here is all of it.

use nix::libc;
use socket2::{SockAddr, SockAddrStorage};

use crate::netlink::Mac;

/// The destination of a frame on the link `ifindex`. `ethertype` in host byte order.
pub fn link_address(ifindex: u32, ethertype: u16, mac: Mac) -> SockAddr {
    let mut address = [0; 8];
    address[..mac.len()].copy_from_slice(&mac);
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is plain data, no larger and no stricter aligned than the sockaddr_storage under it, and
    // the zeroed bytes are a valid value of it.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    *link = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: ifindex as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: mac.len() as u8,
        sll_addr: address,
    };
    // SAFETY: the storage holds an initialised address of just this family and length.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) }
}
