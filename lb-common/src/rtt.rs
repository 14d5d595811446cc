//! Round trips of TCP handshakes, as XDP sees them: how many took how long.

use crate::map_data;

/// Buckets of [`HandshakeRtt`]: the first is up to 64 µs, each next one up to twice as long, the last has no bound.
pub const BUCKETS: usize = 21;

/// The first bucket takes what is shorter than two to the power of this, in microseconds.
const FIRST: u32 = 6;

/// The handshakes of one service, one element per CPU of the map `HANDSHAKE_RTT`, indexed by the service.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandshakeRtt {
    /// How many fell into each bucket.
    pub buckets: [u64; BUCKETS],
    /// Of all together, in microseconds.
    pub micros: u64,
}

map_data!(HandshakeRtt);

/// The bucket of a round trip in microseconds.
#[inline(always)]
pub const fn bucket(micros: u32) -> usize {
    let bits = u32::BITS - micros.leading_zeros();
    let bucket = bits.saturating_sub(FIRST) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// The longest round trip of a bucket in microseconds, with what is shorter; none for the last.
pub const fn bound(bucket: usize) -> Option<u64> {
    if bucket + 1 < BUCKETS { Some(1 << (bucket as u32 + FIRST)) } else { None }
}

impl core::ops::AddAssign for HandshakeRtt {
    fn add_assign(&mut self, other: Self) {
        for (sum, other) in self.buckets.iter_mut().zip(other.buckets) {
            *sum += other;
        }
        self.micros += other.micros;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layout() {
        assert_eq!(size_of::<HandshakeRtt>(), 22 * 8);
    }

    #[test]
    fn every_time_is_in_the_bucket_whose_bound_it_stays_below() {
        for micros in [0, 1, 63, 64, 65, 127, 128, 1_000, 1 << 24, (1 << 25) - 1, 1 << 25, u32::MAX]
        {
            let at = bucket(micros);
            assert!(bound(at).is_none_or(|bound| u64::from(micros) < bound), "{micros} in {at}");
            assert!(at == 0 || bound(at - 1).unwrap() <= u64::from(micros), "{micros} in {at}");
        }
        assert_eq!(
            (bound(0), bound(BUCKETS - 2), bound(BUCKETS - 1)),
            (Some(64), Some(1 << 25), None)
        );
    }
}
