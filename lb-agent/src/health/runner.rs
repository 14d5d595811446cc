//! Keeps one task per target at work and reports what changes.
//!
//! The clock is tokio's, the probes are whatever implements [`Probe`], and the schedule's randomness comes from a
//! seed: tests run this on paused time.

mod task;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{
    sync::{mpsc, watch},
    task::AbortHandle,
    time::Instant,
};

use super::{failure::Failure, history::History, judge::State, probe::Prober, spec::Check};

/// Names a target: the same backend in two services is checked for each of them, and one that moves to another
/// address is another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetKey {
    /// Name of the service.
    pub service: String,
    /// Name of the backend within it.
    pub backend: String,
    /// Address of the backend: what was found at one says nothing of another.
    pub address: SocketAddr,
}

impl fmt::Display for TargetKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.backend)
    }
}

/// A backend to check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The backend's own address; `check.port` may replace the port.
    pub addr: SocketAddr,
    /// How to check it.
    pub check: Check,
}

/// A backend's state has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthEvent {
    /// Whose state.
    pub key: TargetKey,
    /// When it was judged so. For [`State::Up`], the time from which slow start counts.
    pub at: Instant,
    /// The state from now on: up or down.
    pub state: State,
    /// The failure that tipped the scale; `None` when the backend came up.
    pub reason: Option<Failure>,
    /// How long the probe took that tipped it.
    pub latency: Duration,
}

/// What is known of a target, for a status page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The backend's own address.
    pub addr: SocketAddr,
    /// State as judged.
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// The probe that ended last, if any has.
    pub last: Option<LastProbe>,
    /// Probes that have ended.
    pub probes: u64,
    /// Those of them that failed, the edge's own failures included.
    pub failures: u64,
    /// Probes that were due while an earlier one still ran.
    pub overlaps: u64,
    /// How the last probes ended.
    pub history: History,
}

/// How a probe ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastProbe {
    /// When it ended.
    pub at: Instant,
    /// How it ended.
    pub result: Result<(), Failure>,
    /// From the first SYN to the end of the probe.
    pub latency: Duration,
}

/// Something that can tell whether a backend is healthy.
pub trait Probe: Send + Sync + 'static {
    /// Probes the backend at `addr` once, within `check.timeout`.
    fn probe(
        &self,
        check: &Check,
        addr: SocketAddr,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

impl Probe for Prober {
    async fn probe(&self, check: &Check, addr: SocketAddr) -> Result<(), Failure> {
        Self::probe(self, check, addr).await
    }
}

/// Runs the checks of a set of targets. Dropping it stops them all.
///
/// Events go to a channel that its owner should read promptly. If it is full, probing goes on, and of the events
/// of one target only the latest waits for room.
#[derive(Debug)]
pub struct Runner<P> {
    probe: Arc<P>,
    events: mpsc::Sender<HealthEvent>,
    rng: StdRng,
    running: HashMap<TargetKey, Running>,
    view: StatusView,
}

#[derive(Debug)]
struct Running {
    target: watch::Sender<Arc<Target>>,
    task: AbortHandle,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<P: Probe> Runner<P> {
    /// A runner without targets. Transitions are sent to `events`.
    #[must_use]
    pub fn new(probe: P, events: mpsc::Sender<HealthEvent>) -> Self {
        Self::with_seed(probe, events, rand::random())
    }

    /// The same with a schedule that follows from `seed`.
    #[must_use]
    pub fn with_seed(probe: P, events: mpsc::Sender<HealthEvent>, seed: u64) -> Self {
        Self {
            probe: Arc::new(probe),
            events,
            rng: StdRng::seed_from_u64(seed),
            running: HashMap::new(),
            view: StatusView::default(),
        }
    }

    /// Makes `targets` the set that is checked. Must be called within a tokio runtime.
    ///
    /// Unchanged targets go on as if nothing had happened. A changed one is checked by its new address and check from
    /// now on and keeps its state until that is judged otherwise. New ones begin as [`State::Unknown`]; those
    /// without a check are up at once. Of removed ones an event may still be in the channel: ignore keys that are
    /// not known any more.
    pub fn reconcile(&mut self, mut targets: HashMap<TargetKey, Target>) {
        let view = &self.view;
        self.running.retain(|key, running| {
            let Some(target) = targets.remove(key) else {
                view.lock().remove(key);
                return false;
            };
            running.target.send_if_modified(|current| {
                let changed = **current != target;
                if changed {
                    *current = Arc::new(target);
                }
                changed
            });
            true
        });
        for (key, target) in targets {
            let running = self.start(key.clone(), target);
            self.running.insert(key, running);
        }
    }

    fn start(&mut self, key: TargetKey, target: Target) -> Running {
        let status = Arc::new(Mutex::new(Status::of(&target)));
        self.view.lock().insert(key.clone(), Arc::clone(&status));
        let (sender, receiver) = watch::channel(Arc::new(target));
        let rng = StdRng::seed_from_u64(self.rng.random());
        let task = task::Task::new(
            key,
            receiver,
            Arc::clone(&self.probe),
            self.events.clone(),
            status,
            rng,
        );
        Running { target: sender, task: tokio::spawn(task.run()).abort_handle() }
    }

    /// A handle on the status of all targets, now and later; to be kept by whoever serves it.
    #[must_use]
    pub fn view(&self) -> StatusView {
        self.view.clone()
    }

    /// The status of all targets at this moment.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<TargetKey, Status> {
        self.view.snapshot()
    }
}

impl Status {
    fn of(target: &Target) -> Self {
        Self {
            addr: target.addr,
            state: State::Unknown,
            since: Instant::now(),
            last: None,
            probes: 0,
            failures: 0,
            overlaps: 0,
            history: History::default(),
        }
    }
}

type Statuses = HashMap<TargetKey, Arc<Mutex<Status>>>;

/// Reads the status of a runner's targets. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct StatusView(Arc<Mutex<Statuses>>);

impl StatusView {
    /// The status of all targets at this moment.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<TargetKey, Status> {
        self.lock().iter().map(|(key, status)| (key.clone(), lock(status).clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Statuses> {
        lock(&self.0)
    }
}

/// A panic while the lock is held leaves numbers behind, not broken invariants.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
