//! The arithmetic of a splice: what turns the numbers of one TCP connection into those of another. All modulo 2^32.
//!
//! The edge was an end of both connections and has left: each far end goes on counting as it counted towards the edge.

/// One of the edge's two connections, as its socket knew it when it left. Host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leg {
    /// The next sequence number that the edge would have sent. All before it is acknowledged.
    pub snd_nxt: u32,
    /// The next sequence number that the edge expects.
    pub rcv_nxt: u32,
    /// The edge's timestamp clock: no segment from the edge has had a later TSval. 0 without timestamps.
    pub tsval: u32,
    /// TSval of the far end's SYN or SYN-ACK: no segment from it will have an earlier one. 0 without timestamps.
    pub peer_tsval: u32,
    /// Scale of the windows that the far end announces (RFC 7323 section 2.3); 0 to 14.
    pub snd_scale: u8,
    /// Scale by which the far end reads the windows that it gets; 0 to 14.
    pub rcv_scale: u8,
}

/// What is added to the numbers of one direction's segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deltas {
    pub seq: u32,
    /// Also for SACK blocks (RFC 2018).
    pub ack: u32,
    pub tsval: u32,
    pub tsecr: u32,
    /// See [`window`].
    pub window_shift: i8,
}

/// For segments of the far end of `from`, on their way to the far end of `to`.
///
/// A timestamp that its receiver finds older than the last one makes it drop the segment (RFC 7323 section 5.3). So
/// the clock that `to` has shown its far end meets the earliest value that `from`'s far end can still send: what comes
/// out is never older, however fast or slowly that end's clock ticks.
#[must_use]
pub const fn deltas(from: &Leg, to: &Leg, timestamps: bool) -> Deltas {
    let (tsval, tsecr) = match timestamps {
        true => (to.tsval.wrapping_sub(from.peer_tsval), to.peer_tsval.wrapping_sub(from.tsval)),
        false => (0, 0),
    };
    Deltas {
        seq: to.snd_nxt.wrapping_sub(from.rcv_nxt),
        ack: to.rcv_nxt.wrapping_sub(from.snd_nxt),
        tsval,
        tsecr,
        window_shift: from.snd_scale as i8 - to.rcv_scale as i8,
    }
}

/// A window as its new receiver reads it: shifted left by `shift` bits, right if that is negative, at most 14 either way.
///
/// What does not fit is the largest that does. An open window stays open: a sender that reads zero would wait for an
/// announcement that never comes if the receiver's buffer is smaller than the unit of the scale.
#[inline(always)]
#[must_use]
pub const fn window(window: u16, shift: i8) -> u16 {
    let wide = window as u32;
    if shift >= 0 {
        let shifted = wide << (shift as u32 & 15);
        if shifted > u16::MAX as u32 { u16::MAX } else { shifted as u16 }
    } else {
        let shifted = wide >> (shift.unsigned_abs() as u32 & 15);
        if shifted == 0 && wide != 0 { 1 } else { shifted as u16 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::seq::before;

    fn legs() -> impl Strategy<Value = (Leg, Leg)> {
        let leg =
            (any::<[u32; 4]>(), 0..15_u8, 0..15_u8).prop_map(|(numbers, snd_scale, rcv_scale)| {
                let [snd_nxt, rcv_nxt, tsval, peer_tsval] = numbers;
                Leg { snd_nxt, rcv_nxt, tsval, peer_tsval, snd_scale, rcv_scale }
            });
        (leg.clone(), leg)
    }

    proptest! {
        #[test]
        fn the_stream_goes_on_where_the_edge_left((a, b) in legs(), ahead in any::<u32>()) {
            let there = deltas(&a, &b, true);
            // The client's next byte is the backend's next byte, and so is every one after it.
            let sent = a.rcv_nxt.wrapping_add(ahead);
            prop_assert_eq!(sent.wrapping_add(there.seq), b.snd_nxt.wrapping_add(ahead));
            // What the client acknowledges is what the backend has sent.
            prop_assert_eq!(a.snd_nxt.wrapping_add(there.ack), b.rcv_nxt);
        }

        #[test]
        fn what_is_echoed_comes_back_as_it_was_sent((a, b) in legs(), number in any::<u32>()) {
            let (there, back) = (deltas(&a, &b, true), deltas(&b, &a, true));
            prop_assert_eq!(number.wrapping_add(there.seq).wrapping_add(back.ack), number);
            prop_assert_eq!(number.wrapping_add(there.ack).wrapping_add(back.seq), number);
            prop_assert_eq!(number.wrapping_add(there.tsval).wrapping_add(back.tsecr), number);
            prop_assert_eq!(number.wrapping_add(there.tsecr).wrapping_add(back.tsval), number);
        }

        #[test]
        fn no_timestamp_goes_back((a, b) in legs(), since_syn in 0_u32..0x7fff_ffff) {
            let there = deltas(&a, &b, true);
            let sent = a.peer_tsval.wrapping_add(since_syn);
            prop_assert!(!before(sent.wrapping_add(there.tsval), b.tsval));
        }

        #[test]
        fn windows_keep_their_size(window in any::<u16>(), (a, b) in legs()) {
            let shift = deltas(&a, &b, false).window_shift;
            let announced = u64::from(window) << a.snd_scale;
            let read = u64::from(super::window(window, shift)) << b.rcv_scale;
            prop_assert_eq!(window == 0, read == 0);
            // Never more, but for the smallest window that is not zero.
            prop_assert!(read <= announced.max(1 << b.rcv_scale));
            // And less only by what the scale cannot say, or beyond the largest that it can.
            let lost = announced.min(u64::from(u16::MAX) << b.rcv_scale).saturating_sub(read);
            prop_assert!(lost < 1 << b.rcv_scale, "{} bytes lost", lost);
        }
    }

    #[test]
    fn without_timestamps_nothing_is_added() {
        let leg = Leg { tsval: 7, peer_tsval: 9, ..Leg::default() };
        let deltas = deltas(&leg, &Leg::default(), false);
        assert_eq!((deltas.tsval, deltas.tsecr), (0, 0));
    }

    #[test]
    fn windows_at_the_ends_of_the_range() {
        for (given, shift, expected) in [
            (0, 14, 0),
            (0, -14, 0),
            (1, 0, 1),
            (1, -14, 1),
            (u16::MAX, -14, 3),
            (u16::MAX, 1, u16::MAX),
            (1, 14, 1 << 14),
            (3, 14, 3 << 14),
            (4, 14, u16::MAX),
        ] {
            assert_eq!(window(given, shift), expected, "{given} shifted by {shift}");
        }
    }
}
