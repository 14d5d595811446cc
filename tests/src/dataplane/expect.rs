//! What a case expects: verdict, every byte, and every counter.

use std::{collections::BTreeMap, fmt::Write as _};

use lb_common::{
    counters::BackendCounters,
    outcome::{DropReason, Event, NO_SERVICE},
};

use super::{Action, Counters, Output};
use crate::packet::check;

/// A counter of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    Event(Event),
    Drop(DropReason),
}

impl Counted {
    pub fn all() -> impl Iterator<Item = Self> {
        let drops = DropReason::ALL.iter().map(|reason| Self::Drop(*reason));
        Event::ALL.iter().map(|event| Self::Event(*event)).chain(drops)
    }

    pub fn index(self) -> u32 {
        match self {
            Self::Event(event) => event.index(),
            Self::Drop(reason) => reason.index(),
        }
    }
}

impl From<Event> for Counted {
    fn from(event: Event) -> Self {
        Self::Event(event)
    }
}

impl From<DropReason> for Counted {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

/// Counters of backends by id.
pub type Backends = BTreeMap<u16, BackendCounters>;

/// All that must come of a frame. Counters that are not named must not move.
#[derive(Clone, Debug)]
pub struct Expect {
    action: Action,
    /// `None`: nobody will see the frame.
    frame: Option<Vec<u8>>,
    counters: Counters,
    /// The frame came with wrong checksums, and leaves so.
    broken: bool,
}

impl Expect {
    fn new(action: Action, frame: Option<Vec<u8>>) -> Self {
        Self { action, frame, counters: Counters::default(), broken: false }
    }

    /// Left to the kernel, untouched.
    #[must_use]
    pub fn pass(sent: &[u8], event: Event) -> Self {
        Self::new(Action::Pass, Some(sent.to_vec())).counts(NO_SERVICE, event)
    }

    /// Dropped and counted.
    #[must_use]
    pub fn drop(service: u16, reason: DropReason) -> Self {
        Self::new(Action::Drop, None).counts(service, reason)
    }

    /// Dropped here, and in the agent's hands.
    #[must_use]
    pub fn punted(service: u16) -> Self {
        Self::new(Action::Drop, None).counts(service, Event::Punted)
    }

    /// Sent out of the interface that the frame came by.
    #[must_use]
    pub fn transmit(frame: Vec<u8>) -> Self {
        Self::new(Action::Transmit, Some(frame))
    }

    /// Sent out of another interface.
    #[must_use]
    pub fn redirect(frame: Vec<u8>) -> Self {
        Self::new(Action::Redirect, Some(frame))
    }

    /// One more of this outcome.
    #[must_use]
    pub fn counts(mut self, service: u16, outcome: impl Into<Counted>) -> Self {
        *self.counters.outcomes.entry((service, outcome.into())).or_default() += 1;
        self
    }

    /// More in a backend's counters.
    #[must_use]
    pub fn backend(mut self, id: u16, rise: BackendCounters) -> Self {
        *self.counters.backends.entry(id).or_default() += rise;
        self
    }

    /// One packet of so many bytes, from the IP header on, to a backend.
    #[must_use]
    pub fn to_backend(self, id: u16, bytes: usize) -> Self {
        let rise = BackendCounters {
            to_backend_packets: 1,
            to_backend_bytes: bytes as u64,
            ..BackendCounters::default()
        };
        self.backend(id, rise)
    }

    /// One packet of so many bytes, from the IP header on, to a client.
    #[must_use]
    pub fn to_client(self, id: u16, bytes: usize) -> Self {
        let rise = BackendCounters {
            to_client_packets: 1,
            to_client_bytes: bytes as u64,
            ..BackendCounters::default()
        };
        self.backend(id, rise)
    }

    /// The frame came with wrong checksums and leaves so.
    #[must_use]
    pub fn broken(mut self) -> Self {
        self.broken = true;
        self
    }

    #[track_caller]
    pub(super) fn assert(&self, name: &str, sent: &[u8], output: &Output, counters: &Counters) {
        let Self { action, frame, counters: expected, broken } = self;
        let context = || {
            format!(
                "case: {name}\nsent     {}\ncame out {} with {:?}\ncounted  {counters:?}",
                hex(sent),
                hex(&output.frame),
                output.action
            )
        };
        assert_eq!(output.action, *action, "the verdict\n{}", context());
        if let Some(frame) = frame {
            assert!(output.frame == *frame, "{}\n{}", difference(frame, &output.frame), context());
        }
        assert_eq!(counters, expected, "the counters, first those that rose\n{}", context());
        let leaves = matches!(action, Action::Transmit | Action::Redirect);
        if leaves && !broken {
            let verified = check::verify(&output.frame);
            assert!(verified.is_ok(), "{verified:?}\n{}", context());
        }
    }
}

/// Where two frames differ.
pub fn difference(expected: &[u8], seen: &[u8]) -> String {
    let mut text = format!("expected {} bytes, {} came out", expected.len(), seen.len());
    for at in 0..expected.len().max(seen.len()) {
        let show = |bytes: &[u8]| bytes.get(at).map_or("--".into(), |byte| format!("{byte:02x}"));
        if expected.get(at) != seen.get(at) {
            let _ = write!(text, "\n  byte {at}: {} expected, {} seen", show(expected), show(seen));
        }
    }
    text
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What was added to a backend's counters.
pub fn rise(before: BackendCounters, now: BackendCounters) -> BackendCounters {
    BackendCounters {
        to_backend_packets: now.to_backend_packets - before.to_backend_packets,
        to_backend_bytes: now.to_backend_bytes - before.to_backend_bytes,
        to_client_packets: now.to_client_packets - before.to_client_packets,
        to_client_bytes: now.to_client_bytes - before.to_client_bytes,
        picked: now.picked - before.picked,
        opened: now.opened - before.opened,
        closed: now.closed - before.closed,
        reset: now.reset - before.reset,
    }
}
