//! The hash by which a new flow finds its place in a service's ring.
//!
//! Seeded from the config, so that every edge with the same config picks the same backend, and so
//! that nobody who does not know the seed can aim all his flows at one backend.

use crate::{
    addr::{Addr, Tuple},
    ring::SLOTS,
};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 / golden ratio, odd

/// Mixes one word in. Two rounds of this per word would be wasted: [`finish`] spreads the rest.
#[inline(always)]
fn mix(state: u64, word: u32) -> u64 {
    let state = (state ^ word as u64).wrapping_mul(MULTIPLIER);
    state ^ (state >> 32)
}

/// The finalizer of MurmurHash3 (public domain): every input bit reaches every output bit.
#[inline(always)]
fn finish(mut state: u64) -> u32 {
    state ^= state >> 33;
    state = state.wrapping_mul(0xff51_afd7_ed55_8ccd);
    state ^= state >> 33;
    state = state.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    (state ^ (state >> 33)) as u32
}

#[inline(always)]
fn mix_addr<A: Addr>(mut state: u64, addr: &A) -> u64 {
    let words = addr.words();
    state = mix(state, words[0]);
    if A::LEN == 16 {
        state = mix(mix(mix(state, words[1]), words[2]), words[3]);
    }
    state
}

/// Hash of a whole tuple: `affinity = "none"`.
#[inline(always)]
pub fn tuple<A: Addr>(seed: u64, tuple: &Tuple<A>) -> u32 {
    let state = mix_addr(mix_addr(seed, &tuple.src), &tuple.dst);
    finish(mix(state, (tuple.sport as u32) << 16 | tuple.dport as u32))
}

/// Hash of a source address alone: `affinity = "source"` keeps a client on its backend.
#[inline(always)]
pub fn source<A: Addr>(seed: u64, src: &A) -> u32 {
    finish(mix_addr(seed, src))
}

/// The seed for which the config's text stands (FNV-1a, 64 bit).
pub fn seed(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ byte as u64).wrapping_mul(0x100_0000_01b3)
    })
}

/// The slot of the ring that a hash falls on, without a division.
#[inline(always)]
pub fn slot(hash: u32) -> usize {
    ((hash as u64 * SLOTS as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::{V4, V6};

    #[test]
    fn slots_stay_in_the_ring() {
        assert_eq!(slot(0), 0);
        assert_eq!(slot(u32::MAX), SLOTS - 1);
    }

    /// Chi-squared over 256 bins for keys that differ in a few bits only, as real clients do.
    fn chi_squared(hashes: impl Iterator<Item = u32>) -> f64 {
        let mut bins = [0u32; 256];
        let mut n = 0;
        for hash in hashes {
            bins[slot(hash) * 256 / SLOTS] += 1;
            n += 1;
        }
        let expected = n as f64 / 256.0;
        bins.iter().map(|&seen| (seen as f64 - expected).powi(2) / expected).sum()
    }

    #[test]
    fn neighbouring_clients_spread_evenly() {
        // 255 degrees of freedom: 341 is exceeded once in 5,000 by a perfect hash.
        let dst = V4(u32::from_ne_bytes([203, 0, 113, 10]));
        let ports = (0..60_000u16).map(|port| {
            tuple(
                7,
                &Tuple {
                    src: V4(u32::from_ne_bytes([10, 0, 0, 1])),
                    dst,
                    sport: port.to_be(),
                    dport: 80u16.to_be(),
                },
            )
        });
        assert!(chi_squared(ports) < 341.0);
        let sources = (0..60_000u32).map(|n| source(7, &V4((0x0a00_0000 + n).to_be())));
        assert!(chi_squared(sources) < 341.0);
        let sources6 = (0..60_000u32).map(|n| source(7, &V6([1, 2, n.to_be(), 4])));
        assert!(chi_squared(sources6) < 341.0);
    }

    #[test]
    fn the_seed_decides() {
        let src = V4(1);
        assert_ne!(source(seed("a"), &src), source(seed("b"), &src));
        assert_eq!(source(seed("a"), &src), source(seed("a"), &src));
    }
}
