//! The runner on paused time with backends that exist only as a table of states.

mod events;
mod schedule;
mod targets;

use tokio::time::{advance, sleep, timeout};

use super::*;
use crate::health::{Kind, Prober, SourcePorts, Stage, WebSocketSpec};

const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(1);

/// How a backend behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Backend {
    /// Answers after this time.
    Good(Duration),
    /// Refuses at once.
    Refusing,
    /// Never answers.
    Silent,
    /// Cannot be probed, for a reason of the edge.
    Unprobed,
    /// Has found a bug in the probe.
    Panicking,
}

/// Backends by port; what is not in the table refuses. Also keeps when probes started.
#[derive(Clone, Debug, Default)]
struct Network {
    backends: Arc<Mutex<HashMap<u16, Backend>>>,
    starts: Arc<Mutex<Vec<(u16, Instant)>>>,
}

impl Network {
    fn set(&self, port: u16, backend: Backend) {
        lock(&self.backends).insert(port, backend);
    }

    fn starts(&self, port: u16) -> Vec<Instant> {
        lock(&self.starts).iter().filter(|(p, _)| *p == port).map(|(_, at)| *at).collect()
    }
}

impl Probe for Network {
    async fn probe(&self, check: &Check, addr: SocketAddr) -> Result<(), Failure> {
        let port = check.address(addr).port();
        lock(&self.starts).push((port, Instant::now()));
        let backend = lock(&self.backends).get(&port).copied().unwrap_or(Backend::Refusing);
        match backend {
            Backend::Good(after) => {
                sleep(after).await;
                Ok(())
            }
            Backend::Refusing => Err(refused()),
            Backend::Silent => {
                sleep(check.timeout).await;
                Err(Failure::Timeout { stage: Stage::Pong, after: check.timeout })
            }
            Backend::Unprobed => Err(Failure::Unusable("no authorities".into())),
            Backend::Panicking => panic!("a bug in the probe, as this test wants it"),
        }
    }
}

fn refused() -> Failure {
    Failure::Closed { stage: Stage::Connect }
}

fn key(port: u16) -> TargetKey {
    TargetKey {
        service: "chat".into(),
        backend: format!("chat-{port}"),
        address: ([10, 2, 0, 2], port).into(),
    }
}

fn check() -> Check {
    Check {
        kind: Kind::Tcp,
        interval: INTERVAL,
        timeout: TIMEOUT,
        rise: 2,
        fall: 3,
        ..Check::default()
    }
}

fn target(port: u16, check: Check) -> (TargetKey, Target) {
    (key(port), Target { addr: ([10, 2, 0, 2], port).into(), check })
}

struct Lab {
    network: Network,
    runner: Runner<Network>,
    events: mpsc::Receiver<HealthEvent>,
}

impl Lab {
    fn new(room: usize, seed: u64) -> Self {
        let network = Network::default();
        let (sender, events) = mpsc::channel(room);
        Self { runner: Runner::with_seed(network.clone(), sender, seed), network, events }
    }

    fn targets(&mut self, targets: impl IntoIterator<Item = (TargetKey, Target)>) {
        self.runner.reconcile(targets.into_iter().collect());
    }

    fn status(&self, port: u16) -> Status {
        self.runner.snapshot().remove(&key(port)).unwrap()
    }

    /// The next event, which must be there within an hour of the tests' time.
    async fn event(&mut self) -> HealthEvent {
        timeout(Duration::from_secs(3600), self.events.recv()).await.expect("no event").unwrap()
    }

    async fn expect(&mut self, port: u16, state: State) -> HealthEvent {
        let event = self.event().await;
        assert_eq!((&event.key, event.state), (&key(port), state));
        assert_eq!(self.status(port).state, state);
        event
    }

    /// No event for so long.
    async fn silence(&mut self, long: Duration) {
        if let Ok(event) = timeout(long, self.events.recv()).await {
            panic!("unexpected: {event:?}");
        }
    }
}

const QUICK: Backend = Backend::Good(Duration::from_millis(5));
