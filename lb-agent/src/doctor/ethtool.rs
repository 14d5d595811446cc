//! What a driver says of itself and of its offloads: the old ioctls, which every driver has.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, RawFd},
};

use nix::libc;

const GET_DRIVER: u32 = 0x03;
const GET_TX_CHECKSUM: u32 = 0x16;
const GET_FLAGS: u32 = 0x25;
const FLAG_LRO: u32 = 1 << 15;

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    command: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Asks about one interface.
pub struct Ethtool {
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    pub fn open(interface: &str) -> io::Result<Self> {
        let mut name = [0; libc::IFNAMSIZ];
        if interface.len() >= name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in name.iter_mut().zip(interface.bytes()) {
            *to = from.cast_signed();
        }
        // Any socket of the network namespace will do.
        Ok(Self {
            socket: UdpSocket::bind("127.0.0.1:0").or_else(|_| UdpSocket::bind("[::]:0"))?,
            name,
        })
    }

    /// The driver's name.
    pub fn driver(&self) -> Option<String> {
        let mut info = DriverInfo { command: GET_DRIVER, driver: [0; 32], rest: [0; 160] };
        // SAFETY: the command fills a struct ethtool_drvinfo, which this is, by layout and size (196 bytes).
        unsafe { self.ask((&raw mut info).cast()) }.ok()?;
        let text: Vec<u8> = info.driver.into_iter().take_while(|byte| *byte != 0).collect();
        String::from_utf8(text).ok()
    }

    /// Whether the device is left to fill in checksums of what is sent.
    pub fn tx_checksum(&self) -> Option<bool> {
        Some(self.value(GET_TX_CHECKSUM)? != 0)
    }

    /// Whether the device merges what is received.
    pub fn lro(&self) -> Option<bool> {
        Some(self.value(GET_FLAGS)? & FLAG_LRO != 0)
    }

    fn value(&self, command: u32) -> Option<u32> {
        let mut value = Value { command, data: 0 };
        // SAFETY: these commands fill a struct ethtool_value, which this is.
        unsafe { self.ask((&raw mut value).cast()) }.ok()?;
        Some(value.data)
    }

    /// # Safety
    ///
    /// `data` points to what the command in its first word reads and writes.
    unsafe fn ask(&self, data: *mut libc::c_char) -> io::Result<()> {
        let mut request = libc::ifreq {
            ifr_name: self.name,
            ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data },
        };
        let socket: RawFd = self.socket.as_raw_fd();
        // SAFETY: SIOCETHTOOL reads an ifreq, and what it points to is right by this function's contract.
        let result = unsafe { libc::ioctl(socket, libc::SIOCETHTOOL as _, &raw mut request) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_structs_have_these_sizes() {
        assert_eq!((size_of::<DriverInfo>(), size_of::<Value>()), (196, 8));
    }

    #[test]
    fn the_loopback_has_offloads_and_nobody_else_has_any() {
        let lo = Ethtool::open("lo").unwrap();
        assert!(lo.tx_checksum().is_some() && lo.lro().is_some());
        let none = Ethtool::open("no-such-dev").unwrap();
        assert_eq!((none.driver(), none.tx_checksum(), none.lro()), (None, None, None));
        assert!(Ethtool::open("a-name-that-is-too-long").is_err());
    }
}
