//! So many bytes in a second. A timer exists only while somebody must wait.

use std::{
    cell::Cell,
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

/// How far ahead of its rate a stream may be when it takes the next bytes.
const AHEAD: Duration = Duration::from_millis(125);
/// How much of a second may be taken at a time.
const PIECE: u64 = 8;

/// The pace of one direction of a connection, which several may share.
pub struct Pace {
    rate: u64,
    /// When all that has passed would have passed at the rate.
    paid: Cell<Instant>,
}

impl Pace {
    /// None without a limit.
    pub fn new(bytes_per_second: u32) -> Option<Self> {
        let rate = u64::from(bytes_per_second);
        (rate > 0).then(|| Self { rate, paid: Cell::new(Instant::now()) })
    }

    /// So many have passed.
    pub fn spend(&self, bytes: usize) {
        let cost = bytes as u64 * 1_000_000_000 / self.rate;
        self.paid.set(self.paid.get().max(Instant::now()) + Duration::from_nanos(cost));
    }

    /// Most bytes to take at a time: who keeps to it is never more than a quarter of a second ahead.
    pub fn most(&self) -> usize {
        usize::try_from(self.rate / PIECE).unwrap_or(usize::MAX).max(1)
    }

    /// When the next bytes may pass, if not now.
    fn due(&self) -> Option<Instant> {
        let due = self.paid.get() - AHEAD;
        (due > Instant::now()).then_some(due)
    }
}

/// Somebody who has to wait at times.
#[derive(Default)]
pub struct Pause(Option<Pin<Box<Sleep>>>);

impl Pause {
    /// Ready when the next bytes may pass.
    pub fn poll(&mut self, pace: &Pace, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(due) = pace.due() {
            let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if sleep.deadline() != due {
                sleep.as_mut().reset(due);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
        self.0 = None;
        Poll::Ready(())
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_and_a_pause_is_not_saved_up() {
        let pace = Pace::new(100_000).unwrap();
        let mut pause = Pause::default();
        for _ in 0..2 {
            let start = Instant::now();
            for _ in 0..200 {
                poll_fn(|cx| pause.poll(&pace, cx)).await;
                pace.spend(1_000);
            }
            let took = start.elapsed();
            assert!((1.6..2.1).contains(&took.as_secs_f64()), "{took:?}");
            tokio::time::sleep(Duration::from_secs(60)).await;
            assert!(poll_fn(|cx| Poll::Ready(pause.poll(&pace, cx))).await.is_ready());
            assert!(pause.0.is_none(), "nobody waits");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_that_share_a_pace_have_one_rate() {
        let pace = Pace::new(100_000).unwrap();
        let start = Instant::now();
        let one = async || {
            let mut pause = Pause::default();
            for _ in 0..100 {
                poll_fn(|cx| pause.poll(&pace, cx)).await;
                pace.spend(1_000);
            }
        };
        tokio::join!(one(), one());
        let took = start.elapsed();
        assert!((1.6..2.1).contains(&took.as_secs_f64()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_all_that_it_may_is_a_quarter_of_a_second_ahead_at_most() {
        let pace = Pace::new(100_000).unwrap();
        let mut pause = Pause::default();
        let (start, mut bytes) = (Instant::now(), 0);
        while bytes < 400_000 {
            poll_fn(|cx| pause.poll(&pace, cx)).await;
            pace.spend(pace.most());
            bytes += pace.most();
            let ahead = bytes as f64 / 100_000.0 - start.elapsed().as_secs_f64();
            assert!((0.0..=0.25).contains(&ahead), "{ahead} after {bytes}");
        }
    }

    #[test]
    fn without_a_limit_there_is_no_pace() {
        assert!(Pace::new(0).is_none());
    }
}
