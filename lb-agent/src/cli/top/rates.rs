//! What is on the screen: the newest status, and what has happened since the one before. Pure.

use std::{
    cmp::Reverse,
    collections::VecDeque,
    time::{Instant, SystemTime},
};

use lb_agent::run::status::{Backend, Status};

/// Events that are kept.
const EVENTS: usize = 100;

/// A status, and when it was.
pub struct Look {
    pub at: Instant,
    pub status: Status,
}

/// In which order backends stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    File,
    Connections,
    New,
    Bytes,
}

impl Order {
    pub const fn next(self) -> Self {
        match self {
            Self::File => Self::Connections,
            Self::Connections => Self::New,
            Self::New => Self::Bytes,
            Self::Bytes => Self::File,
        }
    }

    pub const fn label(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Connections => "connections",
            Self::New => "new/s",
            Self::Bytes => "bytes/s",
        }
    }
}

/// Everything that is drawn.
pub struct Model {
    pub now: Look,
    pub rows: Vec<Row>,
    pub order: Order,
    /// Backends above the screen.
    pub scroll: usize,
    /// The newest first.
    pub events: VecDeque<String>,
    /// Why there is nothing newer.
    pub problem: Option<String>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub service: String,
    pub backend: String,
    pub state: String,
    pub weight: u32,
    pub connections: u64,
    /// A second: clients that it was given.
    pub new: f64,
    /// A second, both directions.
    pub bytes: f64,
    /// Of the last probe.
    pub error: String,
}

impl Model {
    pub fn new(now: Look) -> Self {
        let (order, events) = (Order::File, VecDeque::new());
        let mut model = Self { now, rows: Vec::new(), order, scroll: 0, events, problem: None };
        model.rows = rows(&model.now.status, None);
        model
    }

    /// Goes on to a newer status.
    pub fn take(&mut self, now: Look) {
        let seconds = now.at.duration_since(self.now.at).as_secs_f64();
        let before = (seconds > 0.0).then_some((&self.now.status, seconds));
        let rows = rows(&now.status, before);
        for row in &rows {
            let same = |it: &&Row| it.service == row.service && it.backend == row.backend;
            match self.rows.iter().find(same) {
                Some(before) if before.state == row.state => {}
                Some(before) => {
                    let Row { service, backend, state, error, .. } = row;
                    let event = format!("{service}/{backend}: {} -> {state} {error}", before.state);
                    self.events.push_front(format!("{} {}", clock(), event.trim_end()));
                }
                None => self.events.push_front(format!(
                    "{} {}/{} is new",
                    clock(),
                    row.service,
                    row.backend
                )),
            }
        }
        self.events.truncate(EVENTS);
        (self.rows, self.now, self.problem) = (rows, now, None);
    }

    /// The backends as they stand.
    pub fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<_> = self.rows.iter().collect();
        match self.order {
            Order::File => {}
            Order::Connections => rows.sort_by_key(|row| Reverse(row.connections)),
            Order::New => rows.sort_by(|a, b| b.new.total_cmp(&a.new)),
            Order::Bytes => rows.sort_by(|a, b| b.bytes.total_cmp(&a.bytes)),
        }
        rows
    }
}

fn rows(status: &Status, before: Option<(&Status, f64)>) -> Vec<Row> {
    let mut rows = Vec::new();
    for service in &status.services {
        for backend in &service.backends {
            let (new, bytes) = counts(backend);
            let earlier = before.and_then(|(status, seconds)| {
                let services = status.services.iter();
                let mut backends = services.filter(|it| it.name == service.name);
                let backends = backends.next()?.backends.iter();
                Some((counts(backends.clone().find(|it| it.name == backend.name)?), seconds))
            });
            // Counters begin anew with whoever counts.
            let rate =
                |now: u64, before: u64, seconds: f64| now.saturating_sub(before) as f64 / seconds;
            let rates =
                earlier.map(|((n, b), seconds)| (rate(new, n, seconds), rate(bytes, b, seconds)));
            let (new, bytes) = rates.unwrap_or_default();
            let error = backend.health.last.as_ref().and_then(|last| last.error.clone());
            rows.push(Row {
                service: service.name.clone(),
                backend: backend.name.clone(),
                state: match backend.draining_until {
                    Some(_) => "draining".to_owned(),
                    None => backend.health.state.clone(),
                },
                weight: backend.effective_weight,
                connections: backend.connections,
                new,
                bytes,
                error: error.unwrap_or_default(),
            });
        }
    }
    rows
}

/// Clients that it was given, and bytes both ways.
fn counts(backend: &Backend) -> (u64, u64) {
    let of_sidecar = backend.requests.as_ref().map(|it| (it.picked, it.bytes_in + it.bytes_out));
    let of_xdp =
        backend.traffic.as_ref().map(|it| (it.picked, it.to_backend_bytes + it.to_client_bytes));
    let ((a, b), (c, d)) = (of_sidecar.unwrap_or_default(), of_xdp.unwrap_or_default());
    (a + c, b + d)
}

/// Of today, as UTC has it.
fn clock() -> String {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}Z", now / 3_600, now / 60 % 60, now % 60)
}
