//! What a link does to frames: the settings, and the decision for each frame. No I/O, no clock, and no
//! randomness but the seed's.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    AToB = 0,
    BToA = 1,
}

/// What one direction of a link does. The default is a perfect wire. Shares are percentages of the frames.
#[derive(Clone, Debug, PartialEq)]
pub struct Impairment {
    pub delay: Duration,
    /// Added to the delay: a random time up to this. It never reorders: [`Impairment::reorder`] does.
    pub jitter: Duration,
    pub drop: f64,
    /// Frames held back by [`Impairment::reorder_hold`], so that later ones overtake them.
    pub reorder: f64,
    pub reorder_hold: Duration,
    pub duplicate: f64,
    /// Frames with one flipped bit past the Ethernet header. TCP's checksum finds any single flip, but not
    /// every pair: where bytes are to stay right, only one link of a path may corrupt.
    pub corrupt: f64,
    /// Bits per second, Ethernet header included.
    pub rate: Option<u64>,
    /// How many frames may wait; more are lost.
    pub queue: usize,
}

impl Default for Impairment {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            drop: 0.0,
            reorder: 0.0,
            reorder_hold: Duration::from_millis(2),
            duplicate: 0.0,
            corrupt: 0.0,
            rate: None,
            queue: 1000,
        }
    }
}

/// What shall happen to one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fate {
    pub drop: bool,
    /// Delay and jitter; the hold of a reordered frame comes on top.
    pub delay: Duration,
    pub reorder: bool,
    pub duplicate: bool,
    /// A number that chooses the bit to flip.
    pub corrupt: Option<u64>,
}

impl Impairment {
    /// A wire that only has latency.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }

    /// Drops, reorders, duplicates and corrupts, each this percentage of the frames.
    #[must_use]
    pub fn rough(percent: f64) -> Self {
        let shares = Self { drop: percent, reorder: percent, ..Self::default() };
        Self { duplicate: percent, corrupt: percent, ..shares }
    }

    /// A cut wire.
    #[must_use]
    pub fn cut() -> Self {
        Self { drop: 100.0, ..Self::default() }
    }

    /// The fate of frame number `frame`. Every decision has its own dice, rolled whatever the settings are:
    /// a change of one share does not change who is hit by the others.
    #[must_use]
    pub fn decide(&self, seed: u64, direction: Direction, frame: u64) -> Fate {
        let stream = seed ^ (direction as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice =
            SmallRng::seed_from_u64(stream.wrapping_add(frame.wrapping_mul(0xd134_2543_de82_ef95)));
        let mut hit = |percent: f64| dice.random::<f64>() * 100.0 < percent;
        let drop = hit(self.drop);
        let reorder = hit(self.reorder);
        let duplicate = hit(self.duplicate);
        let corrupt = hit(self.corrupt);
        let bit = dice.random();
        let delay = self.delay + self.jitter.mul_f64(dice.random::<f64>());
        if drop {
            return Fate { drop, ..Fate::default() };
        }
        Fate { drop, delay, reorder, duplicate, corrupt: corrupt.then_some(bit) }
    }

    /// How long the wire is busy with a frame.
    pub(super) fn serialization(&self, bytes: usize) -> Duration {
        let bits = bytes as f64 * 8.0;
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bits / rate.max(1) as f64))
    }
}

/// Both directions of a link.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Impairments {
    pub a_to_b: Impairment,
    pub b_to_a: Impairment,
}

impl Impairments {
    #[must_use]
    pub fn of(&self, direction: Direction) -> &Impairment {
        match direction {
            Direction::AToB => &self.a_to_b,
            Direction::BToA => &self.b_to_a,
        }
    }

    /// The fate of frame number `frame` of a direction.
    #[must_use]
    pub fn decide(&self, seed: u64, direction: Direction, frame: u64) -> Fate {
        self.of(direction).decide(seed, direction, frame)
    }
}

impl From<Impairment> for Impairments {
    fn from(both: Impairment) -> Self {
        Self { a_to_b: both.clone(), b_to_a: both }
    }
}

/// Flips a bit past the Ethernet header, for the receiver's checksum to find. Returns false where there is
/// none that would (ARP and whatever else is not IP): a real network card, which checks the frame's own
/// checksum, would have dropped that frame.
pub(super) fn corrupt(frame: &mut [u8], dice: u64) -> bool {
    const HEADER: usize = 14;
    let bits = frame.len().saturating_sub(HEADER) as u64 * 8;
    let is_ip = matches!(frame.get(12..HEADER), Some([0x08, 0x00] | [0x86, 0xdd]));
    if bits == 0 || !is_ip {
        return false;
    }
    let bit = dice % bits;
    frame[HEADER + (bit / 8) as usize] ^= 1 << (bit % 8);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FRAMES: u64 = 20_000;

    fn fates(impairment: &Impairment, seed: u64, direction: Direction) -> Vec<Fate> {
        (0..FRAMES).map(|frame| impairment.decide(seed, direction, frame)).collect()
    }

    #[test]
    fn a_seed_reproduces_the_fates_and_another_one_does_not() {
        let rough = Impairment { jitter: Duration::from_millis(3), ..Impairment::rough(5.0) };
        let first = fates(&rough, 7, Direction::AToB);
        assert_eq!(first, fates(&rough, 7, Direction::AToB));
        assert_ne!(first, fates(&rough, 8, Direction::AToB));
        assert_ne!(first, fates(&rough, 7, Direction::BToA));
    }

    #[test]
    fn a_perfect_wire_does_nothing() {
        assert!(
            fates(&Impairment::default(), 1, Direction::AToB).iter().all(|f| *f == Fate::default())
        );
    }

    #[test]
    fn shares_are_what_was_asked_for() {
        let fates = fates(&Impairment::rough(5.0), 42, Direction::BToA);
        let share = |hit: fn(&Fate) -> bool| {
            fates.iter().filter(|f| hit(f)).count() as f64 * 100.0 / FRAMES as f64
        };
        let dropped = share(|f| f.drop);
        assert!((4.5..5.5).contains(&dropped), "dropped {dropped} %");
        for (what, percent) in [
            ("reordered", share(|f| f.reorder)),
            ("duplicated", share(|f| f.duplicate)),
            ("corrupted", share(|f| f.corrupt.is_some())),
        ] {
            assert!(
                (4.2..5.3).contains(&percent),
                "{what} {percent} % of all, 5 % of those not dropped"
            );
        }
    }

    #[test]
    fn a_cut_wire_drops_everything() {
        assert!(fates(&Impairment::cut(), 3, Direction::AToB).iter().all(|f| f.drop));
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        let (delay, jitter) = (Duration::from_millis(10), Duration::from_millis(4));
        let wire = Impairment { delay, jitter, ..Impairment::default() };
        let fates = fates(&wire, 9, Direction::AToB);
        assert!(fates.iter().all(|f| f.delay >= delay && f.delay <= delay + jitter));
        assert!(fates.iter().any(|f| f.delay > delay + jitter / 2));
    }

    #[test]
    fn what_no_checksum_protects_is_not_corrupted() {
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[0x08, 0x06]);
        let before = arp.clone();
        assert!(!corrupt(&mut arp, 12345));
        assert_eq!(arp, before);
        assert!(!corrupt(&mut [0; 14], 1));
        assert!(!corrupt(&mut [], 1));
    }

    proptest! {
        #[test]
        fn corruption_flips_one_bit_past_the_header(length in 15usize..2000, dice: u64) {
            let mut frame = vec![0; length];
            frame[12..14].copy_from_slice(&[0x86, 0xdd]);
            let before = frame.clone();
            prop_assert!(corrupt(&mut frame, dice));
            prop_assert_eq!(&frame[..14], &before[..14]);
            let flipped: u32 = frame.iter().zip(&before).map(|(a, b)| (a ^ b).count_ones()).sum();
            prop_assert_eq!(flipped, 1);
        }

        #[test]
        fn a_changed_share_leaves_the_other_decisions_alone(seed: u64, frame: u64, duplicate in 0.0..100.0f64) {
            let one = Impairment::rough(30.0);
            let other = Impairment { duplicate, ..one.clone() };
            let (a, b) = (one.decide(seed, Direction::AToB, frame), other.decide(seed, Direction::AToB, frame));
            prop_assert_eq!((a.drop, a.reorder, a.corrupt), (b.drop, b.reorder, b.corrupt));
        }
    }
}
