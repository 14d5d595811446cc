//! The broker: takes both sockets of a relayed connection and has the data plane join them. The sidecar's protocol is in
//! [`lb_sidecar::splice`], the arithmetic in [`lb_common::splice`].
//!
//! ```text
//! worker -> channel -> broker (steps, undo) -> socket  (repair mode)
//!                        plan (pure)        -> maps    (flows, handshakes, ways)
//!                        roster (what may be spliced, from the agent)
//! ```
//! Each worker has a thread here that ends with the worker's connection. It knows neither configuration nor health.

mod broker;
mod channel;
mod holds;
mod load;
mod maps;
pub mod plan;
pub mod roster;
pub mod socket;
mod timing;

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lb_sidecar::splice::{Answer, Refusal};

use self::{
    channel::{Channel, Heard},
    maps::Maps,
    socket::Socket,
};
use crate::bpf::{PinDir, sys};

pub use load::Load;
pub use roster::{Current, Roster};
pub use timing::{BOUNDS_MICROS, Timing, Timings};

/// How long a spliced connection's sockets stay open here. A packet may have passed the data plane before the hold and not
/// have come to its socket yet; the kernel answers one for which there is no socket with a RST.
const LINGER: Duration = Duration::from_millis(50);

/// Most connections whose sockets stay open: descriptors are not without end.
const MOST_LINGERING: usize = 64;

/// A broker's stack: it calls the kernel, and little else.
const STACK_BYTES: usize = 256 << 10;

/// Starts brokers. All of them share the maps and what may be spliced.
#[derive(Clone)]
pub struct Splicer(Arc<Shared>);

/// What brokers share.
struct Shared {
    maps: Maps,
    /// The program that drops what comes to a socket.
    filter: OwnedFd,
    roster: Arc<Current>,
    load: Load,
    timing: Timing,
}

impl Splicer {
    /// Opens the pinned maps, and removes what an earlier agent has left half done in them. No other agent may be at work.
    pub fn open(pins: &PinDir, roster: Arc<Current>) -> Result<Self> {
        let cleared = holds::clear(pins).context("the flow tables cannot be walked")?;
        if cleared > 0 {
            tracing::info!(
                cleared,
                "flow entries of connections that were about to be spliced removed"
            );
        }
        let filter =
            sys::drop_filter().context("the filter that stops sockets cannot be loaded")?;
        Ok(Self(Arc::new(Shared {
            maps: Maps::open(pins)?,
            filter,
            roster,
            load: Load::default(),
            timing: Timing::default(),
        })))
    }

    /// Starts a broker for a worker; returns the worker's end of its channel.
    pub fn start(&self, name: &str) -> io::Result<OwnedFd> {
        let (channel, worker) = Channel::pair()?;
        let (shared, name) = (Arc::clone(&self.0), name.to_owned());
        thread::Builder::new().name(format!("splice-{name}")).stack_size(STACK_BYTES).spawn(
            move || match serve(&shared, &channel) {
                Ok(()) => tracing::debug!(name, "a broker has ended"),
                Err(error) => tracing::error!(name, "no more connections are spliced: {error}"),
            },
        )?;
        Ok(worker)
    }

    /// The flow tables of IPv4 and IPv6, to be read only.
    #[must_use]
    pub fn flows(&self) -> &[Arc<OwnedFd>; 2] {
        self.0.maps.read_only()
    }

    /// What was spliced up to now.
    #[must_use]
    pub fn load(&self) -> &Load {
        &self.0.load
    }

    /// How long hand-overs have taken.
    #[must_use]
    pub fn timings(&self) -> Timings {
        self.0.timing.snapshot()
    }

    /// One offer, without a channel.
    #[must_use]
    pub fn offer(&self, [client, upstream]: [&Socket; 2]) -> Answer {
        broker::splice(&self.0, client, upstream)
    }
}

/// Answers offers until the worker's end is closed.
fn serve(shared: &Shared, channel: &Channel) -> io::Result<()> {
    let mut lingering: VecDeque<(Instant, [Socket; 2])> = VecDeque::new();
    loop {
        let patience = lingering.front().map(|(since, _)| LINGER.saturating_sub(since.elapsed()));
        let (id, answer) = match channel.receive(patience)? {
            Heard::End => return Ok(()),
            Heard::Nothing => {
                lingering.pop_front();
                continue;
            }
            Heard::Incomplete(id) => (id, Answer::Refused(Refusal::Failed)),
            Heard::Offer(id, sockets) => {
                let [client, upstream] = &sockets;
                let begin = Instant::now();
                let answer = broker::splice(shared, client, upstream);
                if answer == Answer::Spliced {
                    shared.timing.took(begin.elapsed());
                    lingering.push_back((Instant::now(), sockets));
                }
                (id, answer)
            }
        };
        if !channel.answer(id, answer)? {
            return Ok(());
        }
        while lingering.len() > MOST_LINGERING
            || lingering.front().is_some_and(|(since, _)| since.elapsed() >= LINGER)
        {
            lingering.pop_front();
        }
    }
}
