//! What has happened on an edge, for whoever asks later: a log in memory that forgets the oldest.
//!
//! Whoever sees something happen adds it; nobody but the admin API reads it. Ids grow, and go on growing with the next
//! agent: they begin with the time of the start in milliseconds, and no agent sees an event in every one.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};

/// Events that are kept.
pub const KEPT: usize = 4_096;

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The agent has started.
    AgentStarted,
    /// A configuration is in force.
    ConfigLoaded,
    /// A changed configuration was refused.
    ConfigRefused,
    /// Certificates, keys or ticket keys have changed, and were refused.
    CertificatesRefused,
    /// A certificate ends soon, or has.
    CertificateEnds,
    /// An operator has changed something while the edge runs.
    OperatorChanged,
    /// Health checks have found a backend well.
    BackendUp,
    /// Health checks have found that a backend has failed.
    BackendDown,
    /// A backend has failed its clients, and gets none for a while.
    BackendEjected,
    /// It gets clients again.
    BackendReturned,
    /// There was a reason to eject it, and no room.
    BackendSpared,
    /// A backend, or the edge, gives its clients up.
    DrainBegan,
    /// It takes clients again, or is taken out of the file.
    DrainEnded,
    /// Too little of the own zone is up: other zones get newcomers, too.
    SpillBegan,
    SpillEnded,
    /// Too few backends are up: all count as up.
    PanicBegan,
    PanicEnded,
    /// No backend is left for newcomers.
    TurningAwayBegan,
    TurningAwayEnded,
    /// A worker of the sidecar has started.
    WorkerStarted,
    /// A worker has ended.
    WorkerEnded,
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub id: u64,
    /// In milliseconds of Unix time.
    pub time: u64,
    pub kind: Kind,
    /// What it is about, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub backend: Option<String>,
    /// For people.
    pub text: String,
}

/// An event that has not been added yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    kind: Kind,
    service: Option<String>,
    backend: Option<String>,
    text: String,
}

impl News {
    /// Of the edge as a whole.
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, service: None, backend: None, text: text.into() }
    }

    /// Of a service.
    #[must_use]
    pub fn of(self, service: &str) -> Self {
        Self { service: Some(service.to_owned()), ..self }
    }

    /// Of one of its backends.
    #[must_use]
    pub fn at(self, service: &str, backend: &str) -> Self {
        Self { backend: Some(backend.to_owned()), ..self.of(service) }
    }
}

/// Some of the events, and which there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// Whose log it is: another number, another agent.
    #[serde(default)]
    pub agent: u64,
    /// The oldest first.
    pub events: Vec<Event>,
    /// Ids of the first and the last that is kept; none as long as nothing has happened.
    pub oldest: Option<u64>,
    pub newest: Option<u64>,
}

/// The log. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub struct Events(Arc<Mutex<Log>>);

#[derive(Debug, Default)]
struct Log {
    /// When it began, in milliseconds of Unix time.
    began: u64,
    kept: VecDeque<Event>,
    last: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Log { began: unix_millis(), ..Log::default() })))
    }
}

impl Events {
    /// Adds an event that happens now.
    pub fn add(&self, news: News) {
        self.lock().add(news, unix_millis());
    }

    /// At most `limit` events with ids above `since`, the oldest of them; without `since`, the newest there are.
    #[must_use]
    pub fn page(&self, since: Option<u64>, limit: usize) -> Page {
        self.lock().page(since, limit)
    }

    /// A panic while the lock is held leaves events behind, not broken invariants.
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn add(&mut self, news: News, time: u64) {
        let News { kind, service, backend, text } = news;
        if self.kept.is_empty() {
            self.last = self.last.max(time);
        }
        self.last += 1;
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Event { id: self.last, time, kind, service, backend, text });
    }

    fn page(&self, since: Option<u64>, limit: usize) -> Page {
        let first = match since {
            Some(since) => self.kept.partition_point(|event| event.id <= since),
            None => self.kept.len().saturating_sub(limit),
        };
        Page {
            agent: self.began,
            events: self.kept.iter().skip(first).take(limit).cloned().collect(),
            oldest: self.kept.front().map(|event| event.id),
            newest: self.kept.back().map(|event| event.id),
        }
    }
}

fn unix_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(events: usize) -> Log {
        let mut log = Log::default();
        for n in 0..events {
            log.add(News::new(Kind::BackendUp, format!("{n}")).at("chat", "a"), 1_000);
        }
        log
    }

    fn texts(page: &Page) -> Vec<&str> {
        page.events.iter().map(|event| event.text.as_str()).collect()
    }

    #[test]
    fn events_are_read_in_pages_and_none_twice() {
        let log = log(5);
        let newest = log.page(None, 2);
        assert_eq!(texts(&newest), ["3", "4"]);
        assert_eq!((newest.oldest, newest.newest), (Some(1_001), Some(1_005)));
        let mut since = 0;
        for wanted in [&["0", "1"][..], &["2", "3"], &["4"], &[]] {
            let page = log.page(Some(since), 2);
            assert_eq!(texts(&page), wanted);
            since = page.events.last().map_or(since, |event| event.id);
        }
        assert_eq!(Log::default().page(None, 9), Page::default());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let log = log(KEPT + 3);
        let page = log.page(Some(0), KEPT + 3);
        assert_eq!((page.events.len(), page.events[0].text.as_str()), (KEPT, "3"));
        assert_eq!(page.oldest, Some(1_004));
    }

    #[test]
    fn an_event_in_json_says_what_it_is_about() {
        let mut log = Log::default();
        log.add(News::new(Kind::ConfigLoaded, "generation 1"), 7);
        log.add(News::new(Kind::SpillBegan, "x").of("chat"), 9);
        let json = serde_json::to_value(log.page(None, 9).events).unwrap();
        let wanted = serde_json::json!([
            { "id": 8, "time": 7, "kind": "config_loaded", "text": "generation 1" },
            { "id": 9, "time": 9, "kind": "spill_began", "service": "chat", "text": "x" },
        ]);
        assert_eq!(json, wanted);
    }
}
