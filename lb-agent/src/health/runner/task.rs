//! The task of one target: when to probe, what the results amount to, whom to tell.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{Rng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use super::{HealthEvent, LastProbe, Probe, Status, Target, TargetKey, lock};
use crate::health::{
    failure::Failure,
    judge::{Judge, State, Transition},
    spec::{Check, Kind},
};

/// Probes of one target that may run at once. With `timeout <= interval` and at most 50 % jitter three can be due;
/// more would mean that a probe outlives its timeout.
const MOST_AT_ONCE: usize = 4;

/// A probe that has ended.
struct Ended {
    start: Instant,
    result: Result<(), Failure>,
    latency: Duration,
}

pub(super) struct Task<P> {
    key: TargetKey,
    target: watch::Receiver<Arc<Target>>,
    probe: Arc<P>,
    events: mpsc::Sender<HealthEvent>,
    status: Arc<Mutex<Status>>,
    rng: StdRng,
    /// What the channel had no room for. A later event replaces it: only the latest state matters.
    waiting: Option<HealthEvent>,
    /// Start of the latest probe that failed. A success of an earlier one, which was slow, is out of date: were it
    /// to count, a backend that dies while it answers would be detected an interval late.
    failed: Option<Instant>,
}

impl<P: Probe> Task<P> {
    pub(super) fn new(
        key: TargetKey,
        target: watch::Receiver<Arc<Target>>,
        probe: Arc<P>,
        events: mpsc::Sender<HealthEvent>,
        status: Arc<Mutex<Status>>,
        rng: StdRng,
    ) -> Self {
        Self { key, target, probe, events, status, rng, waiting: None, failed: None }
    }

    /// Checks the target, as it is at any time, until it is removed.
    pub(super) async fn run(mut self) {
        loop {
            let target = Arc::clone(&self.target.borrow_and_update());
            lock(&self.status).addr = target.addr;
            if !self.check(target).await {
                return;
            }
        }
    }

    /// Checks `target` until it changes (true) or is removed (false).
    async fn check(&mut self, target: Arc<Target>) -> bool {
        let check = &target.check;
        let state = lock(&self.status).state;
        self.failed = None;
        let mut judge = Judge::new(check.rise, check.fall, state);
        let unchecked = check.kind == Kind::None;
        if unchecked && state != State::Up {
            self.tell(Transition { from: state, to: State::Up, reason: None }, Duration::ZERO);
        }
        // First probes are spread over the interval, so that a thousand targets do not start at once.
        let mut next = Instant::now() + check.interval.mul_f64(self.rng.random());
        let mut probes = JoinSet::new();
        let events = self.events.clone();
        loop {
            tokio::select! {
                changed = self.target.changed() => return changed.is_ok(),
                permit = events.reserve(), if self.waiting.is_some() => {
                    if let (Ok(permit), Some(event)) = (permit, self.waiting.take()) {
                        permit.send(event);
                    }
                }
                Some(ended) = probes.join_next(), if !probes.is_empty() => {
                    self.take(&mut judge, ended);
                }
                () = sleep_until(next), if !unchecked => {
                    next = (next + gap(check, self.rng.random())).max(Instant::now());
                    if !probes.is_empty() {
                        lock(&self.status).overlaps += 1;
                    }
                    if probes.len() < MOST_AT_ONCE {
                        probes.spawn(run_one(Arc::clone(&self.probe), Arc::clone(&target)));
                    }
                }
            }
        }
    }

    /// Takes the result of a probe into the status, and to the judge.
    fn take(&mut self, judge: &mut Judge, ended: Result<Ended, JoinError>) {
        let now = Instant::now();
        let Ended { start, result, latency } = ended.unwrap_or_else(|_| Ended {
            start: now,
            result: Err(Failure::Unusable("the probe panicked".into())),
            latency: Duration::ZERO,
        });
        let last = {
            let mut status = lock(&self.status);
            status.probes += 1;
            status.failures += u64::from(result.is_err());
            status.history.add(result.is_ok().then_some(latency));
            status.last.replace(LastProbe { at: now, result: result.clone(), latency })
        };
        if let Err(failure) = &result
            && failure.is_local()
            && last.is_none_or(|last| last.result != result)
        {
            warn!(service = self.key.service, backend = self.key.backend, %failure, "health unknown: the edge cannot probe");
        }
        match &result {
            Ok(()) if self.failed.is_some_and(|failed| start < failed) => return,
            Err(failure) if !failure.is_local() => self.failed = self.failed.max(Some(start)),
            Ok(()) | Err(_) => {}
        }
        if let Some(transition) = judge.observe(result) {
            self.tell(transition, latency);
        }
    }

    /// Makes a transition known: to the log, the status and the channel.
    fn tell(&mut self, transition: Transition, latency: Duration) {
        let Transition { from, to, reason } = transition;
        let at = Instant::now();
        {
            let mut status = lock(&self.status);
            status.state = to;
            status.since = at;
        }
        let (service, backend) = (&self.key.service, &self.key.backend);
        match &reason {
            Some(reason) => {
                warn!(service, backend, %from, %to, %reason, ?latency, "health changed")
            }
            None => info!(service, backend, %from, %to, ?latency, "health changed"),
        }
        let event = HealthEvent { key: self.key.clone(), at, state: to, reason, latency };
        match self.events.try_send(event) {
            Err(mpsc::error::TrySendError::Full(event)) => self.waiting = Some(event),
            // A closed channel has no reader that could believe in the older state.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => self.waiting = None,
        }
    }
}

async fn run_one<P: Probe>(probe: Arc<P>, target: Arc<Target>) -> Ended {
    let start = Instant::now();
    let result = probe.probe(&target.check, target.addr).await;
    Ended { start, result, latency: start.elapsed() }
}

/// Time from one probe's start to the next, for a `random` number from 0 to 1: never more than the interval.
fn gap(check: &Check, random: f64) -> Duration {
    let jitter = f64::from(check.jitter_percent.min(50)) / 100.0;
    // An interval of 0 is not valid, and must not keep a processor busy even so.
    check.interval.mul_f64(1.0 - jitter * random).max(Duration::from_millis(1))
}
