//! The link emulator: a wire between two namespaces that delays, drops, reorders, duplicates and corrupts.
//!
//! There is a TAP device at each end, without offloads, and a thread per direction which carries frames
//! across in user space. What happens to a frame depends only on the seed, the direction and the frame's
//! number, so that a printed seed brings a failure back.

mod impairment;
mod queue;
mod tap;

use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use serde::Serialize;

use crate::netns::NsHandle;

pub use impairment::{Direction, Fate, Impairment, Impairments};
pub use queue::DelayQueue;
use tap::Tap;

/// How many frames are read before those that are due get their turn.
const BURST: usize = 32;

/// What happened to the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Frames that entered the link; also the number of the next one.
    pub received: u64,
    /// Frames that left it, duplicates included.
    pub forwarded: u64,
    pub dropped: u64,
    pub reordered: u64,
    pub duplicated: u64,
    pub corrupted: u64,
    /// Lost because the delay queue was full.
    pub overflowed: u64,
    /// Lost because the device at the far end did not take them (it is down).
    pub refused: u64,
}

#[derive(Debug, Default)]
struct Counting {
    received: AtomicU64,
    forwarded: AtomicU64,
    dropped: AtomicU64,
    reordered: AtomicU64,
    duplicated: AtomicU64,
    corrupted: AtomicU64,
    overflowed: AtomicU64,
    refused: AtomicU64,
}

impl Counting {
    fn read(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            received: get(&self.received),
            forwarded: get(&self.forwarded),
            dropped: get(&self.dropped),
            reordered: get(&self.reordered),
            duplicated: get(&self.duplicated),
            corrupted: get(&self.corrupted),
            overflowed: get(&self.overflowed),
            refused: get(&self.refused),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// A running link. Its devices vanish when it is dropped.
#[derive(Debug)]
pub struct Link {
    shared: Arc<Shared>,
    /// Closed to end the threads.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    seed: u64,
    impairments: RwLock<Impairments>,
    counting: [Counting; 2],
}

impl Link {
    /// Makes device `dev_a` in `ns_a` and `dev_b` in `ns_b` and connects them. Both are down and without
    /// addresses: they are the caller's to configure. Direction A to B is from `ns_a` to `ns_b`.
    pub fn emulate(
        ns_a: &NsHandle,
        dev_a: &str,
        ns_b: &NsHandle,
        dev_b: &str,
        impairments: impl Into<Impairments>,
        seed: u64,
    ) -> Result<Self> {
        let a = Arc::new(Tap::open(ns_a, dev_a)?);
        let b = Arc::new(Tap::open(ns_b, dev_b)?);
        let shared = Arc::new(Shared {
            seed,
            impairments: RwLock::new(impairments.into()),
            counting: Default::default(),
        });
        let (stopped, stop) = io::pipe()?;
        let stopped = Arc::new(stopped);
        let mut link = Self { shared, stop: Some(stop), threads: Vec::new() };
        for (direction, from, to) in [(Direction::AToB, &a, &b), (Direction::BToA, &b, &a)] {
            let (from, to) = (Arc::clone(from), Arc::clone(to));
            let (shared, stopped) = (Arc::clone(&link.shared), Arc::clone(&stopped));
            let thread = std::thread::Builder::new()
                .name(format!("link-{direction:?}"))
                .spawn(move || carry(direction, &from, &to, &shared, stopped.as_fd()))
                .context("no thread for a link")?;
            link.threads.push(thread);
        }
        Ok(link)
    }

    #[must_use]
    pub fn seed(&self) -> u64 {
        self.shared.seed
    }

    #[must_use]
    pub fn impairments(&self) -> Impairments {
        self.shared.impairments.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the impairment of both directions for the frames that come from now on.
    pub fn set(&self, impairments: impl Into<Impairments>) {
        *self.shared.impairments.write().unwrap_or_else(PoisonError::into_inner) =
            impairments.into();
    }

    #[must_use]
    pub fn counters(&self, direction: Direction) -> Counters {
        self.shared.counting[direction as usize].read()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.stop.take());
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One direction: reads frames, decides their fates and writes those that are due.
fn carry(direction: Direction, from: &Tap, to: &Tap, shared: &Shared, stopped: BorrowedFd<'_>) {
    let counting = &shared.counting[direction as usize];
    let start = Instant::now();
    let mut queue = DelayQueue::default();
    let mut buffer = vec![0; tap::MAX_FRAME];
    let mut number = 0;
    loop {
        while let Some(frame) = queue.pop_due(start.elapsed()) {
            count(if to.write(&frame).is_ok() { &counting.forwarded } else { &counting.refused });
        }
        let timeout = queue.next_due().map(|due| due.saturating_sub(start.elapsed()));
        if wait(from.as_fd(), stopped, timeout) {
            return;
        }
        let impairment =
            shared.impairments.read().unwrap_or_else(PoisonError::into_inner).of(direction).clone();
        for _ in 0..BURST {
            let Ok(length) = from.read(&mut buffer) else { break };
            let fate = impairment.decide(shared.seed, direction, number);
            number += 1;
            count(&counting.received);
            take(&mut queue, &buffer[..length], &impairment, fate, start.elapsed(), counting);
        }
    }
}

fn take(
    queue: &mut DelayQueue,
    frame: &[u8],
    impairment: &Impairment,
    fate: Fate,
    now: Duration,
    counting: &Counting,
) {
    if fate.drop {
        return count(&counting.dropped);
    }
    let mut frame = frame.to_vec();
    if let Some(dice) = fate.corrupt {
        count(&counting.corrupted);
        if !impairment::corrupt(&mut frame, dice) {
            return;
        }
    }
    if fate.reorder {
        count(&counting.reordered);
    }
    if fate.duplicate {
        count(&counting.duplicated);
    }
    let copies = if fate.duplicate { 2 } else { 1 };
    for _ in 0..copies {
        if !queue.push(now, frame.clone(), impairment, fate) {
            count(&counting.overflowed);
        }
    }
}

/// Waits for a frame, for the next one that is due, or for the end (then it returns true).
fn wait(from: BorrowedFd<'_>, stopped: BorrowedFd<'_>, timeout: Option<Duration>) -> bool {
    let mut fds = [PollFd::new(from, PollFlags::POLLIN), PollFd::new(stopped, PollFlags::POLLIN)];
    let polled = ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None);
    match polled {
        // A device whose namespace was removed under us is in error for ever.
        Ok(_) => {
            let gone = PollFlags::POLLERR | PollFlags::POLLNVAL;
            fds[1].any().unwrap_or(true) || fds[0].revents().is_none_or(|r| r.intersects(gone))
        }
        Err(error) => error != nix::errno::Errno::EINTR,
    }
}
