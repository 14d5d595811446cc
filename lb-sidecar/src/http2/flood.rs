//! How many frames of each kind that asks for work and carries no data a client may send.

use std::time::Duration;

use tokio::time::Instant;

use crate::outcome::Outcome;

/// Frames that cost a client little and its peer more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Streams that are reset as soon as they are opened (CVE-2023-44487).
    Reset,
    Settings,
    Ping,
    WindowUpdate,
    /// DATA with nothing in it that ends nothing.
    EmptyData,
    /// PRIORITY, and whatever has no meaning here.
    Other,
    /// A head in ever more parts.
    Continuation,
}

impl Flood {
    pub const ALL: [Self; 7] = [
        Self::Reset,
        Self::Settings,
        Self::Ping,
        Self::WindowUpdate,
        Self::EmptyData,
        Self::Other,
        Self::Continuation,
    ];

    pub const fn outcome(self) -> Outcome {
        match self {
            Self::Reset => Outcome::Http2RapidReset,
            Self::Settings => Outcome::Http2SettingsFlood,
            Self::Ping => Outcome::Http2PingFlood,
            Self::WindowUpdate => Outcome::Http2WindowFlood,
            Self::EmptyData => Outcome::Http2EmptyDataFlood,
            Self::Other => Outcome::Http2PriorityFlood,
            Self::Continuation => Outcome::Http2ContinuationFlood,
        }
    }

    /// At once, and each second. Well-behaved clients stay far below: browsers send a few SETTINGS and PINGs in a
    /// connection's life, cancel a page's requests at once when a user leaves it, and send WINDOW_UPDATE by what they
    /// get, which is credited ([`Budget::credit`]).
    const fn allowed(self) -> (u32, u32) {
        match self {
            Self::Reset => (100, 20),
            Self::Settings => (32, 1),
            Self::Ping => (100, 10),
            Self::WindowUpdate => (2_000, 200),
            Self::EmptyData => (32, 5),
            Self::Other => (500, 50),
            // In one head: as many as the largest has (64 KiB in frames of 16), and one more.
            Self::Continuation => (5, 0),
        }
    }
}

/// What is left of each kind.
#[derive(Debug)]
pub struct Budget {
    left: [u32; Flood::ALL.len()],
    filled: Instant,
}

impl Budget {
    pub fn new(now: Instant) -> Self {
        Self { left: Flood::ALL.map(|flood| flood.allowed().0), filled: now }
    }

    /// One more of these has come.
    pub fn take(&mut self, flood: Flood, now: Instant) -> Result<(), Flood> {
        self.refill(now);
        let left = &mut self.left[flood as usize];
        *left = left.checked_sub(1).ok_or(flood)?;
        Ok(())
    }

    /// So many more are in order.
    pub fn credit(&mut self, flood: Flood, count: u32) {
        let left = &mut self.left[flood as usize];
        *left = (*left + count).min(flood.allowed().0);
    }

    /// A head begins.
    pub fn begin_head(&mut self) {
        self.credit(Flood::Continuation, u32::MAX >> 1);
    }

    fn refill(&mut self, now: Instant) {
        let seconds = now.saturating_duration_since(self.filled).as_secs();
        if seconds == 0 {
            return;
        }
        self.filled += Duration::from_secs(seconds);
        for flood in Flood::ALL {
            let (_, rate) = flood.allowed();
            self.credit(flood, rate.saturating_mul(seconds.min(3_600) as u32));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_budget_and_it_comes_back() {
        let start = Instant::now();
        for flood in Flood::ALL {
            let mut budget = Budget::new(start);
            let (burst, rate) = flood.allowed();
            for _ in 0..burst {
                assert_eq!(budget.take(flood, start), Ok(()), "{flood:?}");
            }
            assert_eq!(budget.take(flood, start), Err(flood));
            for other in Flood::ALL.into_iter().filter(|other| *other != flood) {
                assert_eq!(budget.take(other, start), Ok(()), "{other:?} after {flood:?}");
            }
            let later = start + Duration::from_millis(2_900);
            let back = (0..burst).take_while(|_| budget.take(flood, later).is_ok()).count();
            assert_eq!(back as u32, (2 * rate).min(burst), "{flood:?}");
        }
    }

    #[test]
    fn credit_is_no_more_than_the_burst() {
        let now = Instant::now();
        let mut budget = Budget::new(now);
        budget.credit(Flood::Reset, 1_000);
        assert_eq!((0..1_000).take_while(|_| budget.take(Flood::Reset, now).is_ok()).count(), 100);
        budget.begin_head();
        assert_eq!(budget.left[Flood::Continuation as usize], 5);
    }
}
