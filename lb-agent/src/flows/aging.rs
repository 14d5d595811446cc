//! When a connection's entries leave the flow table, and what its ends are told. No I/O, no clock.
//!
//! A `nat` or spliced connection has two entries, which live and die together: `K -> to T` for the client's
//! packets and `T.reversed() -> to K.reversed()` for the backend's. So the partner of any entry has the
//! key `to.reversed()`, whichever of the two one starts from.
//!
//! Two kinds of entries are no connections. The offers that the data plane notes in the handshake tables for the
//! sidecar's connections ([`Entry::is_note`]) say what may be spliced later. The entries that hold a connection while it is
//! being spliced ([`Entry::is_held`]) are there for milliseconds; nobody but the broker may end them, or what became of
//! the broker.

use lb_common::{
    abi,
    addr::{Addr, Tuple},
    flow::{Flow, flags, forward},
};

/// Ticks for which one of two entries may be without its partner: the data plane enters them one after
/// the other, and removes and replaces them so.
pub const ORPHAN_TICKS: u32 = abi::ticks_from_millis(5_000);

/// After this without a packet a handshake is over: the last SYN that a client retransmits comes 63 s
/// after the first (RFC 6298 with six retries).
pub const HANDSHAKE_TICKS: u32 = abi::ticks_from_millis(64_000);

/// After this without a packet, what was noted of a side's offer is forgotten: the connection stays a relay.
pub const NOTE_TICKS: u32 = abi::ticks_from_millis(600_000);

/// For so long an entry may hold a connection: the broker needs milliseconds. One that is older has lost its broker.
pub const HOLD_TICKS: u32 = abi::ticks_from_millis(30_000);

/// How far a time may lie ahead of a clock that was read before: the walk may have been stopped between
/// the two, by a debugger or a starved processor. A day; whatever differs more is long past.
const AHEAD_TICKS: u32 = abi::ticks_from_millis(86_400_000);

/// Longest time that can be told from the future, in ticks: 1.1 years.
pub const MAX_TICKS: u32 = i32::MAX as u32;

/// How far a connection has come, as far as one of its entries can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Established, in the flow table.
    Flow,
    /// Established, but the flow table had no room: it goes on from the handshake table. Only the client's
    /// entry says so.
    Waiting,
    /// In the handshake table.
    HalfOpen,
}

/// An element of a flow table or a handshake table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<A> {
    pub key: Tuple<A>,
    pub flow: Flow<A>,
    pub stage: Stage,
}

/// How flows of a backend age.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Ticks without a packet either way until both ends are reset; at most [`MAX_TICKS`].
    pub idle_timeout: u32,
    /// Ticks without a packet until a flow that both ends have closed, or one has reset, is forgotten.
    pub close_timeout: u32,
    /// Whether its flows are reset, idle or not.
    pub doomed: Option<Doom>,
    /// Whether those are that it had at some time.
    pub renewed: Option<Renewed>,
}

/// Somebody has asked for the flows of a backend to be reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewed {
    /// In ticks: who has come since is spared.
    pub at: u32,
    /// At what pace.
    pub doom: Doom,
}

impl Policy {
    /// Whether this flow of the backend is to be reset at `now`, idle or not.
    fn doom_of<A>(&self, flow: &Flow<A>, now: u32) -> Option<Doom> {
        let older = |it: &Renewed| age(now, flow.created) > age(now, it.at);
        self.doomed.or(self.renewed.filter(older).map(|it| it.doom))
    }
}

/// Why the flows of a backend are reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doom {
    /// It is down or no longer in the config.
    Dead,
    /// Its own clients have had their time, or the edge gives up its clients.
    Drain {
        /// Id of the service, whose backends drain together.
        service: u16,
        /// Flows to reset per second, of the whole service.
        rate: u32,
    },
    /// The edge gives up its clients, and their time is over.
    Deadline,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Idle for too long: forgotten at a paced rate, and both ends are told by a RST.
    Expire,
    /// Over: forgotten, and nobody is told.
    Close,
    /// Never established, and the client has stopped trying: forgotten, and nobody is told.
    Abandon,
    /// Its backend is doomed: forgotten at a paced rate, and both ends are told by a RST.
    Reset(Doom),
    /// A note that nobody will ask for: forgotten.
    Forget,
    /// Held for a splice that never came: forgotten, and nobody is told. The ends' own timers are all that is left.
    Release,
}

/// The entries of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<A> {
    /// The entry that was come across.
    pub entry: Entry<A>,
    /// For `nat` and spliced ones, the other direction's. `dsr` and `ipip` have none.
    pub partner: Option<Entry<A>>,
}

/// A RST to be sent, as it stands on the wire between the edge and its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rst<A> {
    /// From the end that the receiver believes to talk to, to the receiver.
    pub tuple: Tuple<A>,
    /// The sequence number which the receiver expects next, so that it accepts the RST at once
    /// (RFC 5961 section 3.2). Host byte order.
    pub seq: u32,
}

/// Who has to learn that a connection has ended. An end whose numbers are not known is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResetOrder<A> {
    /// Id of the backend; with `dsr` and `ipip`, the RST to it takes the way of its packets.
    pub backend: u16,
    /// One of [`forward`].
    pub forward: u8,
    pub to_client: Option<Rst<A>>,
    pub to_backend: Option<Rst<A>>,
}

/// Ticks since `then`. The data plane may have seen a packet after `now` was read: that is no age.
///
/// The clock wraps after 2.3 years, so what was last seen longer ago than that looks younger.
pub fn age(now: u32, then: u32) -> u32 {
    match then.wrapping_sub(now) {
        ahead if ahead <= AHEAD_TICKS => 0,
        _ => now.wrapping_sub(then),
    }
}

/// Whether a time is before another one, up to [`MAX_TICKS`].
pub fn is_before(time: u32, other: u32) -> bool {
    time != other && other.wrapping_sub(time) <= MAX_TICKS
}

impl<A: Addr> Entry<A> {
    /// The key of the other direction's entry; `None` if the connection has only one.
    pub fn partner_key(&self) -> Option<Tuple<A>> {
        (self.flow.is_two_way() && !self.is_note()).then(|| self.flow.to.reversed())
    }

    /// Whether it only notes what one side of a connection of the sidecar has offered.
    pub fn is_note(&self) -> bool {
        self.stage != Stage::Flow && self.flow.forward == forward::SPLICE
    }

    /// Whether it holds a connection that is about to be spliced.
    pub fn is_held(&self) -> bool {
        self.flow.flags & flags::HOLD != 0
    }

    /// Whether `other` is the other direction of the same connection.
    pub fn is_partner(&self, other: &Self) -> bool {
        self.partner_key() == Some(other.key) && other.partner_key() == Some(self.key)
    }

    /// Ticks since the last packet; `None` if it is not known: a handshake whose time nobody has noted.
    pub fn age(&self, now: u32) -> Option<u32> {
        let known = self.stage == Stage::Flow || self.flow.last_seen != 0;
        known.then(|| age(now, self.flow.last_seen))
    }

    /// Whether it carries the packets of the client.
    pub fn is_clients(&self) -> bool {
        self.flow.flags & flags::TO_CLIENT == 0
    }

    /// Whether the connection may have aged, as far as this entry alone can tell. Most have not, and
    /// need no look at their partner.
    pub fn may_have_aged(&self, policy: &Policy, now: u32) -> bool {
        let older = |than| self.age(now).is_some_and(|age| age > than);
        if self.is_note() {
            return older(NOTE_TICKS);
        }
        if self.is_held() {
            return self.has_lost_its_broker(now);
        }
        if self.stage == Stage::HalfOpen {
            return older(HANDSHAKE_TICKS);
        }
        let ends = flags::FIN | flags::PEER_FIN | flags::RESET | flags::PEER_RESET;
        let ending = self.flow.flags & ends != 0;
        policy.doom_of(&self.flow, now).is_some()
            || older(policy.idle_timeout)
            || (ending && older(policy.close_timeout))
    }

    fn has_lost_its_broker(&self, now: u32) -> bool {
        // What is dropped may count as a packet: the last one says nothing.
        self.is_held() && age(now, self.flow.created) > HOLD_TICKS
    }
}

impl<A: Addr> Connection<A> {
    /// What becomes of the connection now.
    pub fn judge(&self, policy: &Policy, now: u32) -> Verdict {
        let newest = self.entries().filter_map(|entry| entry.age(now)).min().unwrap_or(0);
        if self.entry.is_note() {
            if newest > NOTE_TICKS { Verdict::Forget } else { Verdict::Keep }
        } else if self.entries().any(Entry::is_held) {
            let lost = self.entries().any(|entry| entry.has_lost_its_broker(now));
            if lost { Verdict::Release } else { Verdict::Keep }
        } else if self.is_half_open() {
            // With the backend dead or alive: it holds a port of `nat`.
            if newest > HANDSHAKE_TICKS { Verdict::Abandon } else { Verdict::Keep }
        } else if self.is_closing() {
            if newest > policy.close_timeout { Verdict::Close } else { Verdict::Keep }
        } else if let Some(doom) = policy.doom_of(&self.entry.flow, now) {
            Verdict::Reset(doom)
        } else if newest > policy.idle_timeout {
            Verdict::Expire
        } else {
            Verdict::Keep
        }
    }

    /// The keys to remove, the client's first: what it sends from then on is answered by the data plane
    /// as a connection that does not exist.
    pub fn keys(&self) -> impl Iterator<Item = Tuple<A>> {
        let (first, second) = match self.partner {
            Some(partner) if partner.is_clients() => (partner.key, Some(self.entry.key)),
            partner => (self.entry.key, partner.map(|partner| partner.key)),
        };
        std::iter::once(first).chain(second)
    }

    /// Who is to learn that the connection has ended, and by which numbers.
    pub fn reset_order(&self) -> ResetOrder<A> {
        let clients = self.entries().find(|entry| entry.is_clients());
        let backends = self.entries().find(|entry| !entry.is_clients());
        // What the client last acknowledged is what it expects next.
        let to_client = clients.and_then(|entry| {
            acknowledged(&entry.flow).map(|seq| Rst { tuple: entry.key.reversed(), seq })
        });
        let to_backend = if self.entry.flow.is_two_way() {
            // Likewise for the backend. It knows the edge's address and, once spliced, the edge's numbers.
            backends.and_then(|entry| {
                acknowledged(&entry.flow).map(|seq| Rst { tuple: entry.key.reversed(), seq })
            })
        } else {
            // The backend's own packets are never seen; what the client sent last is the best guess.
            clients.filter(|entry| entry.flow.packets != 0).map(|entry| {
                let seq = entry.flow.seq_next.wrapping_add(entry.flow.seq_delta);
                Rst { tuple: entry.flow.to, seq }
            })
        };
        let Flow { backend, forward, .. } = self.entry.flow;
        ResetOrder { backend, forward, to_client, to_backend }
    }

    /// Its entries, the one that was come across first.
    pub fn entries(&self) -> impl Iterator<Item = &Entry<A>> {
        std::iter::once(&self.entry).chain(&self.partner)
    }

    /// Whether it is half of a connection: of no use to either end once it stays so for
    /// [`ORPHAN_TICKS`]. Of handshakes the kernel evicts one half as well as two, and each ages by itself. What holds a
    /// connection has a time of its own.
    pub fn is_broken(&self) -> bool {
        self.entry.stage == Stage::Flow
            && self.entry.flow.is_two_way()
            && !self.entry.is_held()
            && self.partner.is_none()
    }

    /// Whether both of its ends talk through the edge as spliced.
    pub fn is_spliced(&self) -> bool {
        self.entry.flow.forward == forward::SPLICE
            && !self.entry.is_note()
            && !self.entries().any(Entry::is_held)
    }

    fn is_half_open(&self) -> bool {
        self.entries().all(|entry| entry.stage == Stage::HalfOpen)
    }

    fn is_closing(&self) -> bool {
        // The directions are written by different CPUs without a lock, and may not yet know of each
        // other's FIN.
        let both = self
            .partner
            .is_some_and(|partner| partner.flow.flags & self.entry.flow.flags & flags::FIN != 0);
        both || self.entries().any(|entry| entry.flow.is_closing())
    }
}

/// What this direction's sender expects next; `None` if it has never said.
fn acknowledged<A>(flow: &Flow<A>) -> Option<u32> {
    // Zero stands for "no acknowledgement yet". A real zero costs one RST in 2^32 connections.
    (flow.packets != 0 && flow.ack != 0).then_some(flow.ack)
}

#[cfg(test)]
mod tests;
