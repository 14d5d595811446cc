//! Internet checksums (RFC 1071) and their incremental update (RFC 1624).
//!
//! The one's-complement sum does not depend on byte order as long as all words are read alike
//! (RFC 1071 section 2 (B)), so words are summed here as they lie in memory and nothing is swapped.

/// Folds a sum of 16-bit words to 16 bits, with end-around carry.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum of what was summed up, as it is written to a header.
#[inline(always)]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// The difference which a change of some words makes to a checksum that covers them.
///
/// Start from [`Delta::default`], replace words, then [`Delta::apply`] it to every checksum field
/// that covers the changed words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(u64);

impl Delta {
    /// A 16-bit word changed. Both as they lie in memory, at an even offset.
    #[inline(always)]
    #[must_use]
    pub fn word(self, old: u16, new: u16) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// Two neighbouring words changed. Both as they lie in memory, at an even offset.
    #[inline(always)]
    #[must_use]
    pub fn words(self, old: u32, new: u32) -> Self {
        Self(self.0 + (!old) as u64 + new as u64)
    }

    /// The sum that stands for the change, which may be kept and given back to [`Delta::from_sum`].
    #[inline(always)]
    pub fn sum(self) -> u64 {
        self.0
    }

    /// The change that a sum stands for.
    #[inline(always)]
    pub fn from_sum(sum: u64) -> Self {
        Self(sum)
    }

    /// Both changes together.
    #[inline(always)]
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 + other.0)
    }

    /// The changed checksum: `HC' = ~(~HC + ~m + m')`, equation 3 of RFC 1624, which unlike
    /// equation 2 of RFC 1141 keeps the two representations of zero right.
    #[inline(always)]
    pub fn apply(self, checksum: u16) -> u16 {
        !fold((!checksum) as u64 + fold(self.0) as u64)
    }
}

/// Sums a slice as it lies in memory; an odd last byte is padded with zero (RFC 1071 section 4.1).
pub fn sum(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(2);
    let mut sum = 0;
    for pair in &mut chunks {
        sum += u16::from_ne_bytes([pair[0], pair[1]]) as u64;
    }
    if let [last] = chunks.remainder() {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(fold(sum(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn an_updated_checksum_still_verifies(
            mut bytes in proptest::collection::vec(any::<u8>(), 40),
            word in 1usize..20,
            new in any::<u16>(),
            pair in 1usize..19,
            new_pair in any::<u32>(),
        ) {
            bytes[0..2].fill(0);
            let checksum = finish(sum(&bytes));
            let read = |bytes: &[u8], word: usize| u16::from_ne_bytes([bytes[word * 2], bytes[word * 2 + 1]]);

            let delta = Delta::default().word(read(&bytes, word), new);
            bytes[word * 2..word * 2 + 2].copy_from_slice(&new.to_ne_bytes());
            let old_pair = u32::from_ne_bytes(bytes[pair * 2..pair * 2 + 4].try_into().unwrap());
            let delta = delta.words(old_pair, new_pair);
            bytes[pair * 2..pair * 2 + 4].copy_from_slice(&new_pair.to_ne_bytes());

            bytes[0..2].copy_from_slice(&delta.apply(checksum).to_ne_bytes());
            prop_assert_eq!(fold(sum(&bytes)), 0xffff);
        }
    }
}
