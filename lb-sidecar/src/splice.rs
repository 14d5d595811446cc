//! The offer of a relayed connection to the agent's broker, which may splice it into XDP.
//!
//! The broker is at the other end of a `SOCK_SEQPACKET` Unix socket that comes with
//! [`ToWorker::Broker`](crate::control::ToWorker::Broker). One message is one offer: its id, and two descriptors
//! (`SCM_RIGHTS`), the client's connection first, then the backend's. The broker answers each offer once, in any order.
//! From the offer to the answer the worker neither reads nor writes either connection, and keeps its descriptors: with
//! [`Answer::Spliced`] it closes them, which sends nothing; with [`Answer::Refused`] it goes on relaying.
//!
//! When the socket ends before the answer came, the agent has died at some step. The worker then takes off any socket
//! filter; connections of which neither socket is in repair mode it relays again, the others it offers to the next
//! broker, which finishes or undoes what the one before began.

pub(crate) mod desk;
pub mod flows;
pub(crate) mod tcp;

use std::rc::Rc;

use crate::upstream::Ports;

/// An offer on the wire: the id, in this machine's byte order.
pub const OFFER_BYTES: usize = 8;

/// An answer on the wire: the id of the offer, and one byte of [`Answer::to_byte`].
pub const ANSWER_BYTES: usize = 9;

/// What a worker needs for its connections to be spliced.
pub struct Splicing {
    pub desk: Rc<desk::Desk>,
    pub flows: flows::Tables,
    pub ports: Ports,
}

impl Splicing {
    pub(crate) fn new() -> Rc<Self> {
        let (desk, flows) = (Rc::default(), flows::Tables::default());
        Rc::new(Self { desk, flows, ports: Ports::of_kernel() })
    }
}

/// What became of an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// XDP carries the connection. Both sockets are in repair mode, so that closing them sends nothing.
    Spliced,
    /// Everything is as it was before the offer.
    Refused(Refusal),
}

macro_rules! refusals {
    ($($(#[$doc:meta])* $name:ident = $number:literal $label:literal $retry:ident,)*) => {
        /// Why a connection was not spliced.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Refusal { $($(#[$doc])* $name = $number,)* }

        impl Refusal {
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// In counters, behind `splice_`; it never changes.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)* }
            }

            /// Whether a later offer of the same connection may fare better.
            #[must_use]
            pub const fn is_passing(self) -> bool {
                match self { $(Self::$name => refusals!(@ $retry),)* }
            }
        }
    };
    (@ later) => { true };
    (@ never) => { false };
}

refusals! {
    /// Data was under way, in one direction or the other.
    Busy = 1 "busy" later,
    /// A side has closed, or is about to.
    Closing = 2 "closing" never,
    /// One side has TCP timestamps and the other has not (RFC 7323).
    Timestamps = 3 "timestamps" never,
    /// One side may send SACK and the other may not (RFC 2018).
    Sack = 4 "sack" never,
    /// One side may send larger segments than the other takes.
    Mss = 5 "mss" never,
    /// Client and backend have different IP versions.
    IpVersions = 6 "ip_versions" never,
    /// The data plane has not seen a side's SYN, or has forgotten it.
    UnknownHandshake = 7 "unknown_handshake" never,
    /// The flow table has no room.
    TableFull = 8 "table_full" later,
    /// Packets of a side leave by an interface without Sluice's XDP program.
    NoXdp = 9 "no_xdp" later,
    /// The way to a side is not known yet.
    UnknownNextHop = 10 "unknown_next_hop" later,
    /// The sockets are not those of a service that is spliced and of one of its backends.
    NotSpliced = 11 "not_spliced" never,
    /// The tuple has an entry in the flow table.
    TupleTaken = 12 "tuple_taken" never,
    /// The kernel refused a step, or something came in the midst of it.
    Failed = 13 "failed" later,
}

impl Answer {
    /// 0, or the refusal's number.
    #[must_use]
    pub const fn to_byte(self) -> u8 {
        match self {
            Self::Spliced => 0,
            Self::Refused(refusal) => refusal as u8,
        }
    }

    /// None for a number that this version does not know.
    #[must_use]
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            0 => Some(Self::Spliced),
            _ => Refusal::ALL.iter().find(|it| **it as u8 == byte).map(|it| Self::Refused(*it)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_survive_the_wire_and_unknown_ones_are_none() {
        for answer in
            [Answer::Spliced].into_iter().chain(Refusal::ALL.iter().copied().map(Answer::Refused))
        {
            assert_eq!(Answer::from_byte(answer.to_byte()), Some(answer));
        }
        assert_eq!(Answer::from_byte(200), None);
    }
}
