//! What is known of a spliced connection when it leaves the flow table. Pure.
//!
//! No socket of the edge saw its end, so this is all that the access log and the counters can have.

use std::time::Duration;

use lb_common::{
    abi::TICK_SHIFT,
    addr::{Addr, Tuple},
    flow::flags,
};

use super::aging::{Connection, Doom, age};

/// How a spliced connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum How {
    /// Both ends have sent their FIN.
    Closed,
    ClientReset,
    BackendReset,
    /// Nothing came for too long: both ends were reset.
    Idle,
    /// Its backend was down or gone: likewise.
    Reset,
    /// Its backend or the edge drained: likewise.
    Drain,
    /// It was still there when the time of the edge's drain was over: likewise.
    Deadline,
    /// One of its entries was gone, by whatever accident.
    Lost,
}

impl How {
    pub const ALL: [Self; 8] = [
        Self::Closed,
        Self::ClientReset,
        Self::BackendReset,
        Self::Idle,
        Self::Reset,
        Self::Drain,
        Self::Deadline,
        Self::Lost,
    ];

    /// In the access log and in counters; as with relays, where these have the same.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::Idle => "idle",
            Self::Reset => "reset",
            Self::Drain => "drain",
            Self::Deadline => "deadline",
            Self::Lost => "lost",
        }
    }

    /// Of a connection that its ends have closed.
    pub fn by_ends<A: Addr>(connection: &Connection<A>) -> Self {
        let has_reset = |clients| {
            connection.entries().any(|entry| {
                let own = entry.is_clients() == clients;
                entry.flow.flags & if own { flags::RESET } else { flags::PEER_RESET } != 0
            })
        };
        // Whoever is reset may answer in kind, the backend more often than the client.
        match (has_reset(true), has_reset(false)) {
            (true, _) => Self::ClientReset,
            (false, true) => Self::BackendReset,
            (false, false) => Self::Closed,
        }
    }

    /// Of a connection that the edge has reset.
    #[must_use]
    pub const fn by_reset(doom: Option<Doom>) -> Self {
        match doom {
            None => Self::Idle,
            Some(Doom::Dead) => Self::Reset,
            Some(Doom::Drain { .. }) => Self::Drain,
            Some(Doom::Deadline) => Self::Deadline,
        }
    }
}

/// A spliced connection that has left the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended<A> {
    /// From the client to where it connected to.
    pub client: Tuple<A>,
    /// From the edge to the backend.
    pub upstream: Tuple<A>,
    /// Id of the backend.
    pub backend: u16,
    /// Bytes of IP packets from the client, since the splice.
    pub bytes_in: u64,
    /// And to it.
    pub bytes_out: u64,
    /// Since the splice; of one that its ends have closed, until the last packet.
    pub duration: Duration,
    pub how: How,
}

impl<A: Addr> Ended<A> {
    /// None of a connection that is not spliced.
    pub fn of(connection: &Connection<A>, how: How, now: u32) -> Option<Self> {
        if !connection.is_spliced() {
            return None;
        }
        let clients = connection.entries().find(|entry| entry.is_clients());
        let backends = connection.entries().find(|entry| !entry.is_clients());
        let flow = &connection.entry.flow;
        let idle = connection.entries().map(|entry| age(now, entry.flow.last_seen)).min();
        let after_the_end = match how {
            How::Closed | How::ClientReset | How::BackendReset => idle.unwrap_or(0),
            _ => 0,
        };
        let ticks = age(now, flow.created).saturating_sub(after_the_end);
        Some(Self {
            // Half a connection still says who talked to whom.
            client: clients.map(|it| it.key).or(backends.map(|it| it.flow.to.reversed()))?,
            upstream: clients.map(|it| it.flow.to).or(backends.map(|it| it.key.reversed()))?,
            backend: flow.backend,
            bytes_in: clients.map_or(0, |it| it.flow.bytes),
            bytes_out: backends.map_or(0, |it| it.flow.bytes),
            duration: Duration::from_nanos(u64::from(ticks) << TICK_SHIFT),
            how,
        })
    }
}

#[cfg(test)]
mod tests {
    use lb_common::{
        addr::V4,
        flow::{Flow, forward},
    };

    use super::*;
    use crate::flows::aging::{Entry, Stage};

    const CLIENT_TO_VIP: Tuple<V4> = Tuple { src: V4(1), dst: V4(2), sport: 10, dport: 80 };
    const EDGE_TO_BACKEND: Tuple<V4> = Tuple { src: V4(3), dst: V4(4), sport: 20, dport: 9000 };

    /// Spliced at 1,000 ticks; the last packet came at 1,500.
    fn pair(flags: [u8; 2]) -> [Entry<V4>; 2] {
        let entry = |key, to, flags, bytes| {
            let flow = Flow {
                to,
                flags,
                bytes,
                backend: 7,
                forward: forward::SPLICE,
                created: 1_000,
                last_seen: 1_500 - bytes as u32,
                ..Flow::default()
            };
            Entry { key, flow, stage: Stage::Flow }
        };
        let backends = (EDGE_TO_BACKEND.reversed(), CLIENT_TO_VIP.reversed());
        [
            entry(CLIENT_TO_VIP, EDGE_TO_BACKEND, flags[0], 100),
            entry(backends.0, backends.1, flags[1] | flags::TO_CLIENT, 0),
        ]
    }

    #[test]
    fn who_has_ended_it_is_seen_in_either_entry() {
        let both = flags::FIN | flags::PEER_FIN;
        for (client, backend, how) in [
            (both, both, How::Closed),
            (flags::RESET, 0, How::ClientReset),
            (0, flags::PEER_RESET, How::ClientReset),
            (flags::PEER_RESET, 0, How::BackendReset),
            (both, both | flags::RESET, How::BackendReset),
            (flags::RESET | flags::PEER_RESET, flags::RESET | flags::PEER_RESET, How::ClientReset),
        ] {
            let [a, b] = pair([client, backend]);
            for (entry, partner) in [(a, b), (b, a)] {
                let connection = Connection { entry, partner: Some(partner) };
                assert_eq!(How::by_ends(&connection), how, "{client} {backend}");
            }
        }
    }

    #[test]
    fn either_entry_and_half_of_them_say_who_talked_to_whom() {
        let [clients, backends] = pair([0, 0]);
        let of = |entry, partner| {
            let connection = Connection { entry, partner };
            Ended::of(&connection, How::Closed, 2_000).unwrap()
        };
        let whole = of(clients, Some(backends));
        assert_eq!(whole, of(backends, Some(clients)));
        assert_eq!((whole.client, whole.upstream), (CLIENT_TO_VIP, EDGE_TO_BACKEND));
        assert_eq!((whole.bytes_in, whole.bytes_out, whole.backend), (100, 0, 7));
        assert_eq!(whole.duration, Duration::from_nanos(500 << TICK_SHIFT), "to the last packet");
        for half in [of(clients, None), of(backends, None)] {
            assert_eq!((half.client, half.upstream), (CLIENT_TO_VIP, EDGE_TO_BACKEND));
        }
        let connection = Connection { entry: clients, partner: Some(backends) };
        let idle = Ended::of(&connection, How::Idle, 2_000).unwrap();
        assert_eq!(idle.duration, Duration::from_nanos(1_000 << TICK_SHIFT), "to its end");
    }

    #[test]
    fn what_is_not_spliced_is_of_no_interest() {
        let [mut clients, backends] = pair([flags::HOLD, flags::HOLD]);
        let held = Connection { entry: clients, partner: Some(backends) };
        assert_eq!(Ended::of(&held, How::Lost, 2_000), None);
        clients.flow.flags = 0;
        clients.flow.forward = forward::NAT;
        let nat = Connection { entry: clients, partner: None };
        assert_eq!(Ended::of(&nat, How::Closed, 2_000), None);
    }

    #[test]
    fn labels_are_all_different() {
        let labels: std::collections::BTreeSet<_> = How::ALL.iter().map(|it| it.label()).collect();
        assert_eq!(labels.len(), How::ALL.len());
    }
}
