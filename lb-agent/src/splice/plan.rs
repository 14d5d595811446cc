//! From what both sockets and both handshakes say to the two flow entries, or to the reason why there are none. Pure.

use std::net::{IpAddr, SocketAddr};

use lb_common::{
    addr::{Addr, Tuple, V4, V6},
    flow::{Flow, flags, forward},
    handshake::{Handshake, Offer, offers},
    splice::{Leg, deltas},
};
use lb_sidecar::splice::Refusal;

/// The four ends of a relayed connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ends {
    pub client: SocketAddr,
    /// Where the client connected to.
    pub listener: SocketAddr,
    /// Where the edge connects from.
    pub edge: SocketAddr,
    pub backend: SocketAddr,
}

/// The tuples with which segments come in: the keys of the flow entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys<A> {
    /// From the client.
    pub client: Tuple<A>,
    /// From the backend.
    pub backend: Tuple<A>,
}

/// The same of either IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnyKeys {
    V4(Keys<V4>),
    V6(Keys<V6>),
}

/// What a socket says without being stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Neither side has closed.
    pub established: bool,
    /// All that was sent is acknowledged, and nothing waits to be sent or read.
    pub quiet: bool,
    /// Some of what was sent is not acknowledged yet.
    pub unacknowledged: bool,
    pub timestamps: bool,
    pub sack: bool,
    pub ecn: bool,
    /// [`Leg::snd_scale`].
    pub snd_scale: u8,
    /// [`Leg::rcv_scale`].
    pub rcv_scale: u8,
    /// The largest segment that the edge has told the far end of.
    pub advmss: u32,
    /// Bytes that have come in order, modulo 2^32.
    pub received: u32,
}

/// The numbers of a socket in repair mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    pub snd_nxt: u32,
    pub rcv_nxt: u32,
    /// Its timestamp clock.
    pub tsval: u32,
}

/// One of the two connections, all that is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a, A> {
    pub facts: Facts,
    pub numbers: Numbers,
    /// Of the far end's SYN or SYN-ACK.
    pub handshake: &'a Handshake<A>,
}

/// What a flow entry says beside the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Id of the backend.
    pub backend: u16,
    /// In ticks.
    pub now: u32,
    /// The epoch of the routes: entries get another, so that the first packet looks up its way.
    pub route_epoch: u8,
}

/// The values of the two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair<A> {
    /// For what comes from the client.
    pub from_client: Flow<A>,
    /// For what comes from the backend.
    pub from_backend: Flow<A>,
}

/// `TCP_TIMESTAMP` is told without its lowest bit, and a segment may have left in the next tick.
const CLOCK_MARGIN: u32 = 2;

impl Ends {
    /// IPv4 addresses in IPv6 ones are what they are on the wire.
    #[must_use]
    pub fn new(
        client: SocketAddr,
        listener: SocketAddr,
        edge: SocketAddr,
        backend: SocketAddr,
    ) -> Self {
        let plain = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
        Self {
            client: plain(client),
            listener: plain(listener),
            edge: plain(edge),
            backend: plain(backend),
        }
    }

    /// The keys, if both connections have the same IP version.
    pub fn keys(&self) -> Result<AnyKeys, Refusal> {
        let Self { client, listener, edge, backend } = *self;
        match (client.ip(), listener.ip(), edge.ip(), backend.ip()) {
            (IpAddr::V4(c), IpAddr::V4(l), IpAddr::V4(e), IpAddr::V4(b)) => {
                let [c, l, e, b] = [c, l, e, b].map(V4::from);
                Ok(AnyKeys::V4(self.with_ports(c, l, e, b)))
            }
            (IpAddr::V6(c), IpAddr::V6(l), IpAddr::V6(e), IpAddr::V6(b)) => {
                let [c, l, e, b] = [c, l, e, b].map(V6::from);
                Ok(AnyKeys::V6(self.with_ports(c, l, e, b)))
            }
            _ => Err(Refusal::IpVersions),
        }
    }

    fn with_ports<A>(&self, client: A, listener: A, edge: A, backend: A) -> Keys<A> {
        let port = |addr: SocketAddr| addr.port().to_be();
        Keys {
            client: Tuple {
                src: client,
                dst: listener,
                sport: port(self.client),
                dport: port(self.listener),
            },
            backend: Tuple {
                src: backend,
                dst: edge,
                sport: port(self.backend),
                dport: port(self.edge),
            },
        }
    }
}

/// Whether two connections can be joined, as far as the sockets know, and now.
pub fn joinable(client: &Facts, upstream: &Facts) -> Result<(), Refusal> {
    if !(client.established && upstream.established) {
        return Err(Refusal::Closing);
    }
    if client.timestamps != upstream.timestamps {
        return Err(Refusal::Timestamps);
    }
    if client.sack != upstream.sack {
        return Err(Refusal::Sack);
    }
    if client.quiet && upstream.quiet { Ok(()) } else { Err(Refusal::Busy) }
}

/// Whether each side takes the largest segments that the other was told it may send.
pub fn segments_fit<A: Addr>(
    (client, syn): (&Facts, &Offer),
    (upstream, syn_ack): (&Facts, &Offer),
) -> Result<(), Refusal> {
    let [to_client, to_backend] = [syn, syn_ack].map(largest_segment::<A>);
    // None sends more than its own link takes, which is what it announces.
    let from_client = client.advmss.min(to_client);
    let from_backend = upstream.advmss.min(to_backend);
    if from_client <= to_backend && from_backend <= to_client { Ok(()) } else { Err(Refusal::Mss) }
}

/// The largest segment that a side takes (RFC 9293 section 3.7.1).
fn largest_segment<A: Addr>(offer: &Offer) -> u32 {
    match (offer.flags & offers::MSS, A::FAMILY) {
        (0, 0) => 536,
        (0, _) => 1_220,
        _ => offer.mss.into(),
    }
}

/// Whether nothing has happened to a socket since it said `before`.
#[must_use]
pub fn unchanged(before: &Facts, now: &Facts) -> bool {
    now.established && now.quiet && now.received == before.received
}

/// Entries which drop what comes.
#[must_use]
pub fn hold<A: Addr>(keys: &Keys<A>, frame: Frame) -> Pair<A> {
    let held = |to, flags| Flow { flags: flags | flags::HOLD, ..blank(to, frame) };
    Pair {
        from_client: held(keys.backend.reversed(), 0),
        from_backend: held(keys.client.reversed(), flags::TO_CLIENT),
    }
}

/// The entries which join the two connections.
pub fn join<A: Addr>(
    keys: &Keys<A>,
    client: &Side<'_, A>,
    upstream: &Side<'_, A>,
    frame: Frame,
) -> Result<Pair<A>, Refusal> {
    for side in [client, upstream] {
        // A handshake of an earlier connection with the same tuple says nothing of this one.
        let isn = side.numbers.rcv_nxt.wrapping_sub(side.facts.received).wrapping_sub(1);
        if side.handshake.flow.forward != forward::SPLICE || side.handshake.isn != isn {
            return Err(Refusal::UnknownHandshake);
        }
    }
    let (a, b) = (client.leg(), upstream.leg());
    let timestamps = client.facts.timestamps;
    let no_ecn = match client.facts.ecn == upstream.facts.ecn {
        true => 0,
        false => flags::NO_ECN,
    };
    let entry = |from: &Leg, to: &Leg, tuple, flags| {
        let deltas = deltas(from, to, timestamps);
        Flow {
            seq_delta: deltas.seq,
            ack_delta: deltas.ack,
            tsval_delta: deltas.tsval,
            tsecr_delta: deltas.tsecr,
            window_shift: deltas.window_shift,
            seq_next: from.rcv_nxt,
            ack: from.snd_nxt,
            flags: flags | no_ecn,
            ..blank(tuple, frame)
        }
    };
    Ok(Pair {
        from_client: entry(&a, &b, keys.backend.reversed(), 0),
        from_backend: entry(&b, &a, keys.client.reversed(), flags::TO_CLIENT),
    })
}

fn blank<A: Addr>(to: Tuple<A>, frame: Frame) -> Flow<A> {
    Flow {
        to,
        last_seen: frame.now,
        backend: frame.backend,
        forward: forward::SPLICE,
        route_epoch: frame.route_epoch.wrapping_sub(1),
        // Numbers of an entry without packets count as unknown.
        packets: 1,
        created: frame.now,
        ..Flow::default()
    }
}

/// Whether an entry is that of a splice, held or joined, whose other direction has this key.
#[must_use]
pub fn is_partner<A: Copy + PartialEq>(entry: &Flow<A>, partner: &Tuple<A>) -> bool {
    entry.forward == forward::SPLICE && entry.to.reversed() == *partner
}

impl<A> Side<'_, A> {
    fn leg(&self) -> Leg {
        let Self { facts, numbers, handshake } = self;
        Leg {
            snd_nxt: numbers.snd_nxt,
            rcv_nxt: numbers.rcv_nxt,
            tsval: numbers.tsval.wrapping_add(CLOCK_MARGIN),
            peer_tsval: handshake.offer.tsval,
            snd_scale: facts.snd_scale,
            rcv_scale: facts.rcv_scale,
        }
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
