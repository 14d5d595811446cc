//! The addresses of the lab.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The service addresses that clients reach through the edge unless others are given.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x10);

/// One of the two nets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Net {
    Front = 1,
    Back = 2,
}

impl Net {
    #[must_use]
    pub fn v4(self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self as u8, 0, host)
    }

    #[must_use]
    pub fn v6(self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00 | self as u16, 0, 0, 0, 0, 0, 0, u16::from(host))
    }

    /// Addresses as `ip` takes them.
    pub(super) fn addresses(self, host: u8) -> [String; 2] {
        [format!("{}/24", self.v4(host)), format!("{}/64", self.v6(host))]
    }

    pub(super) fn prefixes(self) -> [String; 2] {
        [format!("{}/24", self.v4(0)), format!("{}/64", self.v6(0))]
    }

    /// Hardware addresses that a person recognizes in a capture.
    pub(super) fn mac(self, host: u8) -> String {
        format!("02:00:00:00:{:02x}:{host:02x}", self as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_the_one_of_the_design() {
        assert_eq!(Net::Front.addresses(1), ["10.1.0.1/24", "fd01::1/64"]);
        assert_eq!(Net::Back.addresses(2), ["10.2.0.2/24", "fd02::2/64"]);
        assert_eq!(Net::Back.prefixes(), ["10.2.0.0/24", "fd02::/64"]);
        assert_eq!(Net::Back.mac(16), "02:00:00:00:02:10");
        assert_eq!(VIP4.to_string(), "203.0.113.10");
        assert_eq!(VIP6.to_string(), "2001:db8::10");
    }
}
