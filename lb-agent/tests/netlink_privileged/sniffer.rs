//! Every IP packet that passes a namespace's devices.

use std::{io::Read, net::SocketAddr};

use lb_agent::reset::packet::destination;
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::{Netns, PATIENCE};

/// Opened before what it shall see. A packet that is forwarded is seen twice.
pub struct Sniffer(Socket);

impl Sniffer {
    pub fn new(netns: &Netns) -> Self {
        let all = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
        let socket = netns.enter(|| Socket::new(Domain::PACKET, Type::DGRAM, Some(all)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    /// The first packet for which `found` has an answer.
    pub fn find<T>(&mut self, found: impl Fn(&[u8]) -> Option<T>) -> T {
        let mut buffer = [0; 65536];
        loop {
            let length = self.0.read(&mut buffer).expect("the packet comes");
            if let Some(answer) = found(&buffer[..length]) {
                return answer;
            }
        }
    }
}

/// The sequence number after the payload of a TCP segment from `src` to `dst`, if it has one of `length` bytes.
pub fn next_sequence(
    packet: &[u8],
    src: SocketAddr,
    dst: SocketAddr,
    length: usize,
) -> Option<u32> {
    let header = if src.is_ipv4() { 20 } else { 40 };
    if destination(packet)? != dst.ip() {
        return None;
    }
    let tcp = packet.get(header..)?;
    let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
    let payload = tcp.len().checked_sub(usize::from(tcp.get(12)? >> 4) * 4)?;
    let matches = payload == length && (port(0), port(2)) == (src.port(), dst.port());
    let sequence = u32::from_be_bytes(tcp[4..8].try_into().unwrap());
    matches.then(|| sequence.wrapping_add(length as u32))
}
