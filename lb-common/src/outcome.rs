//! What can become of a packet. Array index, metric label and test expectation at once.
//!
//! The numbers are stable: a new outcome is appended, a dropped one leaves a gap.

use core::fmt;

macro_rules! outcomes {
    (
        $(#[$meta:meta])* $name:ident {
            $($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $label:literal;)+
        }
    ) => {
        $(#[$meta])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl $name {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The one with this number.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name in metrics, tables and logs.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }

            /// What it means, for people: the documentation of the variant.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+),)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.label())
            }
        }
    };
}

pub(crate) use outcomes;

outcomes! {
    /// Why a packet was dropped.
    DropReason {
        /// The frame or packet ends before its headers do.
        Truncated = 0, "truncated";
        /// An IP header contradicts itself: version, header length or total length.
        BadIpHeader = 1, "bad_ip_header";
        /// A TCP header contradicts itself: data offset below 5 or beyond the packet, SYN with FIN or RST.
        BadTcpHeader = 2, "bad_tcp_header";
        /// A fragment; a TCP header can only be trusted in a whole packet.
        Fragment = 3, "fragment";
        /// The source is an address of a service, or one that no peer can have.
        SpoofedSource = 4, "spoofed_source";
        /// The service has no backend to pick.
        NoBackend = 5, "no_backend";
        /// No free source port for NAT within the bounded number of probes.
        NatPortsExhausted = 6, "nat_ports_exhausted";
        /// The service needs NAT and no source address of this IP version is configured.
        NoSourceAddress = 7, "no_source_address";
        /// The TTL or hop limit has run out.
        TtlExceeded = 8, "ttl_exceeded";
        /// No route, or a route that forbids, to the packet's next hop.
        NoRoute = 9, "no_route";
        /// The next hop is not resolved and the queue to the agent was full.
        PuntQueueFull = 10, "punt_queue_full";
        /// An acknowledgement that does not complete the handshake it belongs to.
        HandshakeMismatch = 11, "handshake_mismatch";
        /// A RST or an ICMP error that belongs to no flow.
        NoFlow = 12, "no_flow";
        /// The driver left no room to grow or shrink the frame.
        NoHeadroom = 13, "no_headroom";
        /// The kernel refused a new entry in the handshake table.
        HandshakeTableFull = 14, "handshake_table_full";
        /// IPv6 extension headers beyond what is walked.
        ExtensionHeaders = 15, "extension_headers";
        /// Too big for the next hop, and itself an ICMP error, which must not be answered by another.
        TooBig = 16, "too_big";
        /// The map entry that this packet needs is missing: the agent is in mid-change.
        Inconsistent = 17, "inconsistent";
        /// The connection was just then being spliced. TCP sends the segment again.
        SpliceHold = 18, "splice_hold";
        /// The source is in a deny list, or not in the allow list that there is.
        DeniedSource = 19, "denied_source";
    }
}

outcomes! {
    /// What happened to a packet that was not dropped, as far as it is not counted per backend.
    Event {
        /// Not IPv4 or IPv6: left to the kernel.
        PassNotIp = 0, "pass_not_ip";
        /// Not for a service: left to the kernel.
        PassNotService = 1, "pass_not_service";
        /// IP headers so broken that the destination cannot be known: left to the kernel, which drops them.
        PassMalformed = 2, "pass_malformed";
        /// For the service's address, but no TCP port of the service: left to the kernel.
        PassToHost = 3, "pass_to_host";
        /// A SYN was forwarded and its handshake is remembered.
        SynForwarded = 4, "syn_forwarded";
        /// A SYN was seen again and went the same way.
        SynRetransmitted = 5, "syn_retransmitted";
        /// A handshake was completed and the flow entered.
        FlowOpened = 6, "flow_opened";
        /// The flow table was full: the flow goes on from the handshake table, where newcomers can evict it.
        FlowTableFull = 7, "flow_table_full";
        /// A segment without a flow was forwarded by hash (`dsr`, `ipip`).
        ForwardedByHash = 8, "forwarded_by_hash";
        /// A segment without a flow was answered with a RST (`nat`).
        ResetSent = 9, "reset_sent";
        /// A new connection on the tuple of an old one, whose entry was replaced.
        FlowReplaced = 10, "flow_replaced";
        /// NAT gave the flow another source port, since the client's was taken.
        PortTranslated = 11, "port_translated";
        /// An ICMP echo request for a service's address was answered.
        EchoAnswered = 12, "echo_answered";
        /// An ICMP error was carried through to the end that it is for.
        IcmpErrorForwarded = 13, "icmp_error_forwarded";
        /// A packet too big for the tunnel was answered with the size that fits.
        PacketTooBigSent = 14, "packet_too_big_sent";
        /// The maximum segment size in a SYN was lowered to fit the tunnel.
        MssClamped = 15, "mss_clamped";
        /// The next hop came from the kernel's FIB, since the agent's table had none.
        FibLookup = 16, "fib_lookup";
        /// The next hop was not resolved: the packet was handed to the agent, which resolves it.
        Punted = 17, "punted";
        /// For a connection of the sidecar: left to the kernel.
        PassToSidecar = 18, "pass_to_sidecar";
        /// What a SYN or SYN-ACK of the sidecar's connections offered is remembered, for the splice.
        OfferNoted = 19, "offer_noted";
    }
}

/// Counters of one service in the map `OUTCOMES`.
pub const COUNTERS_PER_SERVICE: u32 = 64;

/// The pseudo-service of what belongs to none.
pub const NO_SERVICE: u16 = 0;

const FIRST_DROP: u32 = 32;

impl Event {
    /// Index within a service's counters.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }
}

impl DropReason {
    /// Index within a service's counters.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        FIRST_DROP + self as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_an_index_of_its_own() {
        let mut seen = [false; COUNTERS_PER_SERVICE as usize];
        let indexes =
            Event::ALL.iter().map(|e| e.index()).chain(DropReason::ALL.iter().map(|r| r.index()));
        for index in indexes {
            assert!(!core::mem::replace(&mut seen[index as usize], true), "index {index} twice");
        }
        assert!(Event::ALL.iter().all(|e| e.index() < FIRST_DROP));
    }

    #[test]
    fn labels_are_unique_snake_case() {
        let labels = || {
            Event::ALL.iter().map(|e| e.label()).chain(DropReason::ALL.iter().map(|r| r.label()))
        };
        for (n, label) in labels().enumerate() {
            assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{label}");
            assert!(labels().skip(n + 1).all(|other| other != label), "{label} twice");
        }
    }
}
