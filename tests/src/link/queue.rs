//! The frames on their way: a bounded queue ordered by the time at which each is due. Time is an argument.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::impairment::{Fate, Impairment};

/// Frames that wait for their time, counted from the start of the link.
#[derive(Debug, Default)]
pub struct DelayQueue {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Tells apart what is due at the same time: first come, first served.
    next: u64,
    /// Until then the wire is busy with frames before.
    busy_until: Duration,
    /// When the last frame in order is due: jitter must not let the next one overtake it.
    last_due: Duration,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Duration,
    number: u64,
    frame: Vec<u8>,
}

impl DelayQueue {
    /// Takes a frame that came at `now`. Returns false, and loses it, if too many are waiting.
    #[must_use]
    pub fn push(&mut self, now: Duration, frame: Vec<u8>, wire: &Impairment, fate: Fate) -> bool {
        if self.waiting.len() >= wire.queue {
            return false;
        }
        self.busy_until = self.busy_until.max(now) + wire.serialization(frame.len());
        let in_order = (self.busy_until + fate.delay).max(self.last_due);
        let due = if fate.reorder {
            in_order + wire.reorder_hold
        } else {
            self.last_due = in_order;
            in_order
        };
        self.waiting.push(Reverse(Waiting { due, number: self.next, frame }));
        self.next += 1;
        true
    }

    /// The next frame whose time has come.
    pub fn pop_due(&mut self, now: Duration) -> Option<Vec<u8>> {
        if self.next_due()? > now {
            return None;
        }
        self.waiting.pop().map(|Reverse(waiting)| waiting.frame)
    }

    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        self.waiting.peek().map(|Reverse(waiting)| waiting.due)
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    fn after(delay: Duration) -> Fate {
        Fate { delay, ..Fate::default() }
    }

    fn drain(queue: &mut DelayQueue, now: Duration) -> Vec<u8> {
        std::iter::from_fn(|| queue.pop_due(now)).map(|frame| frame[0]).collect()
    }

    #[test]
    fn a_frame_waits_for_its_time() {
        let mut queue = DelayQueue::default();
        assert!(queue.push(MS, vec![1], &Impairment::default(), after(5 * MS)));
        assert_eq!(queue.pop_due(5 * MS), None);
        assert_eq!(queue.next_due(), Some(6 * MS));
        assert_eq!(queue.pop_due(6 * MS), Some(vec![1]));
        assert!(queue.is_empty());
    }

    #[test]
    fn a_reordered_frame_is_overtaken() {
        let wire = Impairment::default();
        let mut queue = DelayQueue::default();
        let held = Fate { reorder: true, ..Fate::default() };
        assert!(queue.push(MS, vec![1], &wire, held));
        assert!(queue.push(MS, vec![2], &wire, Fate::default()));
        assert_eq!(drain(&mut queue, MS + wire.reorder_hold), [2, 1]);
    }

    #[test]
    fn a_full_queue_loses_the_newcomer() {
        let wire = Impairment { queue: 2, ..Impairment::default() };
        let mut queue = DelayQueue::default();
        let accepted = [1, 2, 3].map(|n| queue.push(MS, vec![n], &wire, Fate::default()));
        assert_eq!(accepted, [true, true, false]);
        assert_eq!(queue.len(), 2);
        assert_eq!(drain(&mut queue, MS), [1, 2]);
    }

    #[test]
    fn a_rate_spaces_the_frames() {
        let wire = Impairment { rate: Some(8_000), ..Impairment::default() };
        let mut queue = DelayQueue::default();
        for n in 1..=3 {
            assert!(queue.push(Duration::ZERO, vec![n; 10], &wire, Fate::default()));
        }
        assert_eq!(drain(&mut queue, 10 * MS), [1]);
        assert_eq!(drain(&mut queue, 29 * MS), [2]);
        assert_eq!(drain(&mut queue, 30 * MS), [3]);
    }

    proptest! {
        #[test]
        fn jitter_does_not_reorder(delays in proptest::collection::vec(0u64..1000, 1..50)) {
            let mut queue = DelayQueue::default();
            for (n, delay) in delays.iter().enumerate() {
                let (now, fate) = (Duration::from_micros(n as u64), after(Duration::from_micros(*delay)));
                prop_assert!(queue.push(now, vec![n as u8], &Impairment::default(), fate));
            }
            let order = drain(&mut queue, Duration::from_secs(1));
            prop_assert!(order.is_sorted());
            prop_assert_eq!(order.len(), delays.len());
        }
    }
}
