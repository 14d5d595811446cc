//! Sequence-number arithmetic modulo 2^32 (RFC 9293 section 3.4).

/// Whether `a` comes before `b`: they are less than 2^31 apart.
#[inline(always)]
pub fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether `a` lies in the `len` numbers that begin with `start`.
#[inline(always)]
pub fn within(a: u32, start: u32, len: u32) -> bool {
    a.wrapping_sub(start) < len
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn order_survives_the_wrap(start in any::<u32>(), distance in 1u32..0x8000_0000) {
            let later = start.wrapping_add(distance);
            prop_assert!(before(start, later));
            prop_assert!(!before(later, start) || distance == 0x8000_0000);
            prop_assert!(!before(start, start));
        }

        #[test]
        fn a_window_holds_its_first_and_not_its_end(start in any::<u32>(), len in 1u32..=u32::MAX) {
            prop_assert!(within(start, start, len));
            prop_assert!(within(start.wrapping_add(len - 1), start, len));
            prop_assert!(!within(start.wrapping_add(len), start, len));
        }
    }
}
