//! Echo requests of ICMP and ICMPv6, without a program for it.

use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use crate::netns::NsHandle;

const HEADER: usize = 8;
const ECHO_REPLY4: u8 = 0;
const ECHO_REQUEST4: u8 = 8;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// Sends one echo request with `payload` and waits for the answer, which must bring the payload back.
/// `Ok(false)`: no answer in time.
pub fn ping(
    namespace: &NsHandle,
    target: IpAddr,
    payload: &[u8],
    timeout: Duration,
) -> Result<bool> {
    // The kernel's ping sockets fill in checksum and identifier, and take only what answers them.
    namespace.sysctl("ipv4/ping_group_range", "0 0")?;
    let exchange = || -> Result<bool> {
        let (domain, protocol, request, reply) = match target {
            IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4, ECHO_REQUEST4, ECHO_REPLY4),
            IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6, ECHO_REQUEST6, ECHO_REPLY6),
        };
        let socket = Socket::new(domain, Type::DGRAM, Some(protocol))?;
        socket.set_read_timeout(Some(timeout))?;
        let mut message = vec![0; HEADER];
        message[0] = request;
        message[7] = 1; // the sequence number
        message.extend_from_slice(payload);
        socket.send_to(&message, &SocketAddr::new(target, 0).into())?;
        let mut buffer = vec![MaybeUninit::uninit(); HEADER + payload.len() + 1];
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        // SAFETY: recv has written so many bytes.
        let answer: Vec<u8> = buffer[..length].iter().map(|b| unsafe { b.assume_init() }).collect();
        ensure!(answer.first() == Some(&reply), "not an echo reply: {answer:02x?}");
        ensure!(answer.get(HEADER..) == Some(payload), "another payload came back");
        Ok(true)
    };
    namespace.run(exchange).with_context(|| format!("ping {target} from {}", namespace.name()))
}
