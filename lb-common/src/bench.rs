//! What the benchmark's driver program and its harness share: the frame that is sent over and over,
//! and how clients are told apart in it.

use crate::map_data;

/// Frames begin with an Ethernet header without tags; what the driver restores word by word follows it.
pub const LINK: usize = 14;

/// Words of 8 bytes behind the link header which the driver restores: the IP and the TCP header, of
/// IPv6 without the last four bytes of TCP, which nothing here writes.
pub const WORDS: [usize; 2] = [5, 7];

/// The only element of the map `DRIVE`: what the driver sends.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drive {
    /// The link header, in its first [`LINK`] bytes.
    pub link: [u64; 2],
    /// The IP and the TCP header as they lie in memory. Where the varied address and port go, the
    /// bits of the numbers that are put there are zero.
    pub headers: [u64; 7],
    /// Length of the frame in bytes.
    pub len: u32,
    /// How many flows there are.
    pub flows: u32,
    /// State of the generator that picks a flow for each packet; written by the driver.
    pub state: u32,
    /// How many of the number's low bits go to the port; the others go to the address.
    pub port_bits: u32,
    /// What the generator multiplies its state by.
    pub factor: u32,
    /// What it adds then.
    pub step: u32,
}

map_data!(Drive);

impl Drive {
    /// Flows follow each other in no order that a cache or a prefetcher could make use of, all equally
    /// likely. A linear congruential generator modulo 2^32 (Numerical Recipes' constants), of which only
    /// the upper bits are any good; those are what [`Drive::next_flow`] keeps.
    pub fn in_random_order(self) -> Self {
        Self { factor: 1_664_525, step: 1_013_904_223, ..self }
    }

    /// Each flow follows the one that was entered before it.
    pub fn in_order_of_arrival(self) -> Self {
        Self { factor: 1, step: (u32::MAX / self.flows.max(1)).saturating_add(1), ..self }
    }

    /// The number of the next packet's flow.
    #[inline(always)]
    pub fn next_flow(&mut self) -> u32 {
        self.state = self.state.wrapping_mul(self.factor).wrapping_add(self.step);
        ((self.state as u64 * self.flows as u64) >> 32) as u32
    }
}

/// What a flow's number adds to an address and to a port, both in network byte order.
#[inline(always)]
pub fn place(flow: u32, port_bits: u32) -> (u32, u16) {
    let port_bits = port_bits & 15;
    let ports = (1 << port_bits) - 1;
    ((flow >> port_bits).to_be(), ((flow & ports) as u16).to_be())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flow_gets_its_share() {
        let mut drive = Drive { flows: 1000, ..Drive::default() }.in_random_order();
        let mut counts = [0_u32; 1000];
        (0..1_000_000).for_each(|_| counts[drive.next_flow() as usize] += 1);
        let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
        assert!(*least > 800 && *most < 1200, "{least} to {most}");
    }

    #[test]
    fn flows_come_in_order_of_arrival() {
        for flows in [1, 1_000, 100_000, 1 << 20] {
            let mut drive = Drive { flows, ..Drive::default() }.in_order_of_arrival();
            let mut last = drive.next_flow();
            for _ in 0..3 * flows {
                let next = drive.next_flow();
                // The step is rounded up, so that now and then one flow is left out.
                assert!([1, 2].contains(&((next + flows - last) % flows)) || flows == 1);
                last = next;
            }
        }
    }

    #[test]
    fn every_flow_has_its_place() {
        for flow in 0..100_000 {
            let (address, port) = place(flow, 4);
            assert_eq!(u32::from_be(address) << 4 | u16::from_be(port) as u32, flow);
        }
        assert_eq!(place(0x123, 4), (0x12_u32.to_be(), 3_u16.to_be()));
    }

    #[test]
    fn headers_fit() {
        assert_eq!(WORDS[0] * 8, 20 + 20);
        assert_eq!(WORDS[1] * 8, 40 + 16);
        assert_eq!(size_of::<Drive>(), 2 * 8 + 7 * 8 + 6 * 4);
    }
}
