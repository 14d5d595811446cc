//! The byte streams of the sessions: random to look at, computable at any position.

use std::fmt;

/// Who sends the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client = 1,
    Server = 2,
}

/// The stream of one side of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    key: u64,
}

/// The first byte that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    pub position: u64,
    pub expected: u8,
    pub found: u8,
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { position, expected, found } = self;
        write!(f, "byte {position} is {found:#04x} instead of {expected:#04x}")
    }
}

impl std::error::Error for Wrong {}

/// The finalizer of splitmix64: neighbouring inputs have unrelated outputs.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Pattern {
    /// The stream of `side` in a session; a session's number is used once per seed.
    #[must_use]
    pub fn new(seed: u64, session: u64, side: Side) -> Self {
        Self { key: mix(mix(mix(seed).wrapping_add(session)) ^ side as u64) }
    }

    fn word(self, index: u64) -> [u8; 8] {
        mix(self.key.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15))).to_le_bytes()
    }

    /// Writes the bytes from `position` on.
    pub fn fill(self, position: u64, out: &mut [u8]) {
        let mut at = position;
        let mut rest = out;
        while !rest.is_empty() {
            let word = self.word(at / 8);
            let from = &word[(at % 8) as usize..];
            let length = from.len().min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&from[..length]);
            at += length as u64;
            rest = later;
        }
    }

    /// Checks bytes that came at `position`.
    pub fn verify(self, position: u64, bytes: &[u8]) -> Result<(), Wrong> {
        let mut expected = vec![0; bytes.len()];
        self.fill(position, &mut expected);
        match expected.iter().zip(bytes).position(|(a, b)| a != b) {
            None => Ok(()),
            Some(i) => {
                Err(Wrong { position: position + i as u64, expected: expected[i], found: bytes[i] })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(pattern: Pattern, position: u64, length: usize) -> Vec<u8> {
        let mut out = vec![0; length];
        pattern.fill(position, &mut out);
        out
    }

    proptest! {
        #[test]
        fn pieces_are_the_whole(seed: u64, start in 0u64..1 << 40, cuts in proptest::collection::vec(0usize..50, 1..8)) {
            let pattern = Pattern::new(seed, 1, Side::Client);
            let whole = bytes(pattern, start, cuts.iter().sum());
            let mut pieces = Vec::new();
            for cut in cuts {
                pieces.extend(bytes(pattern, start + pieces.len() as u64, cut));
            }
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn a_changed_lost_or_repeated_byte_is_found(seed: u64, at in 0usize..1000) {
            let pattern = Pattern::new(seed, 3, Side::Server);
            let good = bytes(pattern, 5, 1016);
            prop_assert!(pattern.verify(5, &good).is_ok());
            let mut changed = good.clone();
            changed[at] ^= 4;
            prop_assert_eq!(pattern.verify(5, &changed).unwrap_err().position, 5 + at as u64);
            let mut lost = good.clone();
            lost.remove(at);
            prop_assert!(pattern.verify(5, &lost).is_err());
            let mut repeated = good.clone();
            repeated.insert(at, good[at]);
            prop_assert!(pattern.verify(5, &repeated).is_err());
        }
    }

    #[test]
    fn sessions_sides_and_seeds_differ() {
        let first = bytes(Pattern::new(1, 1, Side::Client), 0, 32);
        for other in [
            Pattern::new(2, 1, Side::Client),
            Pattern::new(1, 2, Side::Client),
            Pattern::new(1, 1, Side::Server),
        ] {
            assert_ne!(first, bytes(other, 0, 32));
        }
    }
}
