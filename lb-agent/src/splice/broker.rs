//! Joins the two connections of an offer in the data plane, or leaves them exactly as they were.
//!
//! ```text
//! check -> hold -> stop -> freeze -> join -> confirm -> answer
//! ```
//! Each step can be undone, and none sends anything. An agent may die after any of them: what it leaves on the sockets,
//! the next one finds there when they are offered again.

use std::{io, os::fd::AsFd};

use lb_common::{
    flow::{Flow, flags},
    handshake::Handshake,
};
use lb_sidecar::splice::{Answer, Refusal};
use nix::libc;

use super::{
    Shared,
    maps::{FlowTables, Version},
    plan::{self, AnyKeys, Ends, Facts, Frame, Keys, Pair, Side},
    roster::Roster,
    socket::Socket,
};
use crate::bpf::sys::{self, Put};

/// Why an attempt ends.
enum Stop {
    Refused(Refusal),
    /// The kernel refused a step.
    Error(io::Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Error(error)
    }
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Refused(refusal) => refusal,
            // A socket without a peer has been reset.
            Stop::Error(error) if error.kind() == io::ErrorKind::NotConnected => Self::Closing,
            Stop::Error(error) => {
                tracing::debug!("a connection could not be spliced: {error}");
                Self::Failed
            }
        }
    }
}

/// Splices a client's connection and a backend's.
pub fn splice(shared: &Shared, client: &Socket, upstream: &Socket) -> Answer {
    let sockets = Sockets { client, upstream };
    let begun = sockets.both().iter().any(|socket| socket.is_in_repair().unwrap_or(false));
    match attempt(shared, sockets, begun) {
        Ok(()) => Answer::Spliced,
        Err(stop) => {
            // What an attempt has done it has undone; not so what one before it had.
            if begun {
                sockets.resume();
            }
            Answer::Refused(stop.into())
        }
    }
}

fn attempt(shared: &Shared, sockets: Sockets<'_>, begun: bool) -> Result<(), Stop> {
    let Sockets { client, upstream } = sockets;
    let ends = Ends::new(client.peer()?, client.local()?, upstream.local()?, upstream.peer()?);
    let roster = shared.roster.get();
    let backend = || roster.find(ends.listener, ends.backend).ok_or(Refusal::NotSpliced);
    match ends.keys() {
        Ok(AnyKeys::V4(keys)) => offer(shared, &roster, sockets, keys, begun, backend),
        Ok(AnyKeys::V6(keys)) => offer(shared, &roster, sockets, keys, begun, backend),
        Err(refusal) => Err(backend().err().unwrap_or(refusal).into()),
    }
}

fn offer<A: Version>(
    shared: &Shared,
    roster: &Roster,
    sockets: Sockets<'_>,
    keys: Keys<A>,
    begun: bool,
    backend: impl Fn() -> Result<u16, Refusal>,
) -> Result<(), Stop> {
    let tables = A::tables(&shared.maps);
    // Only an agent can have switched repair mode on: it knew these sockets.
    if begun && was_joined(tables, &keys)? {
        return Ok(());
    }
    let backend = backend()?;
    let mut attempt =
        Attempt { shared, tables, roster, keys, sockets, backend, entered: 0, stopped: false };
    let result = attempt.run();
    match result {
        Ok(()) => shared.load.spliced(backend),
        Err(_) => attempt.undo(),
    }
    result
}

/// Whether an agent that died had come as far as joining both directions. If it had not, its entries are removed.
fn was_joined<A: Version>(tables: &A::Tables, keys: &Keys<A>) -> io::Result<bool> {
    let Keys { client, backend } = keys;
    let of = |key, partner| -> io::Result<_> {
        Ok(tables.flow(key)?.filter(|entry| plan::is_partner(entry, partner)))
    };
    let (from_client, from_backend) = (of(client, backend)?, of(backend, client)?);
    let is_joined = |entry: &Option<Flow<A>>| entry.is_some_and(|it| it.flags & flags::HOLD == 0);
    if is_joined(&from_client) && is_joined(&from_backend) {
        return Ok(true);
    }
    for (entry, key) in [(from_client, client), (from_backend, backend)] {
        if entry.is_some() {
            tables.remove(key)?;
        }
    }
    Ok(false)
}

#[derive(Clone, Copy)]
struct Sockets<'a> {
    client: &'a Socket,
    upstream: &'a Socket,
}

impl Sockets<'_> {
    fn both(&self) -> [&Socket; 2] {
        [self.client, self.upstream]
    }

    fn facts(&self) -> io::Result<[Facts; 2]> {
        Ok([self.client.facts()?, self.upstream.facts()?])
    }

    /// So that there is a quiet moment a round trip from now, if the far ends only put off what they owe.
    fn ask_for_acknowledgements(&self, facts: &[Facts; 2]) -> io::Result<()> {
        let owed = self.both().into_iter().zip(facts).filter(|(_, facts)| facts.unacknowledged);
        owed.map(|(socket, _)| socket).try_for_each(Socket::ask_for_acknowledgement)
    }

    fn resume(&self) {
        for socket in self.both() {
            if let Err(error) = socket.resume() {
                tracing::error!("a connection that is not spliced cannot go on: {error}");
            }
        }
    }
}

struct Attempt<'a, A: Version> {
    shared: &'a Shared,
    tables: &'a A::Tables,
    roster: &'a Roster,
    keys: Keys<A>,
    sockets: Sockets<'a>,
    backend: u16,
    /// How many entries are in the table, the client's first.
    entered: usize,
    /// Whether anything was done to the sockets.
    stopped: bool,
}

/// What was read before anything was done.
struct Before<A> {
    facts: [Facts; 2],
    syn: Handshake<A>,
    syn_ack: Handshake<A>,
    frame: Frame,
}

impl<A: Version> Attempt<'_, A> {
    fn run(&mut self) -> Result<(), Stop> {
        let before = self.check()?;
        self.hold(before.frame)?;
        self.stop()?;
        let pair = self.freeze(&before)?;
        self.join(&pair)?;
        self.confirm(&before)
    }

    /// What can be known without stopping anything.
    fn check(&self) -> Result<Before<A>, Stop> {
        let facts = self.sockets.facts()?;
        if let Err(refusal) = plan::joinable(&facts[0], &facts[1]) {
            if refusal == Refusal::Busy {
                self.sockets.ask_for_acknowledgements(&facts)?;
            }
            return Err(refusal.into());
        }
        let syn = self.tables.handshake(&self.keys.client)?;
        let syn_ack = self.tables.handshake(&self.keys.backend)?;
        let (syn, syn_ack) = syn.zip(syn_ack).ok_or(Refusal::UnknownHandshake)?;
        plan::segments_fit::<A>((&facts[0], &syn.offer), (&facts[1], &syn_ack.offer))?;
        let maps = &self.shared.maps;
        self.usable(maps.next_hop_of(self.backend)?)?;
        self.usable(self.tables.route(self.keys.client.src)?)?;
        for socket in self.sockets.both() {
            socket.acknowledge()?;
        }
        let frame = Frame {
            backend: self.backend,
            now: sys::now_ticks(),
            route_epoch: maps.route_epoch()?,
        };
        Ok(Before { facts, syn, syn_ack, frame })
    }

    fn usable(&self, next_hop: u16) -> Result<(), Stop> {
        let egress = self.shared.maps.egress(next_hop)?.ok_or(Refusal::UnknownNextHop)?;
        if self.roster.has_xdp(egress) { Ok(()) } else { Err(Refusal::NoXdp.into()) }
    }

    /// The data plane drops what comes from now on; TCP sends it again.
    fn hold(&mut self, frame: Frame) -> Result<(), Stop> {
        let held = plan::hold(&self.keys, frame);
        self.enter(&held, Put::New).map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => Refusal::TupleTaken.into(),
            Some(libc::E2BIG | libc::ENOMEM) => Refusal::TableFull.into(),
            _ => Stop::Error(error),
        })
    }

    /// So do the sockets: what had passed the data plane before must not be acknowledged any more.
    fn stop(&mut self) -> Result<(), Stop> {
        self.stopped = true;
        for socket in self.sockets.both() {
            socket.stop(self.shared.filter.as_fd())?;
            socket.repair()?;
        }
        Ok(())
    }

    /// The numbers at which both connections stand still.
    fn freeze(&self, before: &Before<A>) -> Result<Pair<A>, Stop> {
        let [client, upstream] = before.facts;
        let [client_now, upstream_now] = self.sockets.facts()?;
        if !(plan::unchanged(&client, &client_now) && plan::unchanged(&upstream, &upstream_now)) {
            return Err(Refusal::Busy.into());
        }
        let client = Side {
            facts: client,
            numbers: self.sockets.client.numbers(client.timestamps)?,
            handshake: &before.syn,
        };
        let upstream = Side {
            facts: upstream,
            numbers: self.sockets.upstream.numbers(upstream.timestamps)?,
            handshake: &before.syn_ack,
        };
        Ok(plan::join(&self.keys, &client, &upstream, before.frame)?)
    }

    /// The data plane carries both directions from now on.
    fn join(&mut self, pair: &Pair<A>) -> Result<(), Stop> {
        Ok(self.enter(pair, Put::Existing)?)
    }

    /// A segment that was already past the filter when it came would be lost with the socket.
    fn confirm(&self, before: &Before<A>) -> Result<(), Stop> {
        for (socket, before) in self.sockets.both().into_iter().zip(&before.facts) {
            if !plan::unchanged(before, &socket.facts_but_unread()?) {
                return Err(Refusal::Failed.into());
            }
        }
        Ok(())
    }

    fn enter(&mut self, pair: &Pair<A>, put: Put) -> io::Result<()> {
        self.tables.put(&self.keys.client, &pair.from_client, put)?;
        self.entered = self.entered.max(1);
        self.tables.put(&self.keys.backend, &pair.from_backend, put)?;
        self.entered = 2;
        Ok(())
    }

    fn undo(&self) {
        for key in [&self.keys.client, &self.keys.backend].into_iter().take(self.entered) {
            if let Err(error) = self.tables.remove(key) {
                tracing::error!(
                    "the flow entry of a connection that is not spliced stays: {error}"
                );
            }
        }
        if self.stopped {
            self.sockets.resume();
        }
    }
}
