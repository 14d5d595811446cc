//! What the traced variant of the data plane tells of a packet: its way, stage by stage.
//!
//! Nothing here is in a pinned map: filter and records live and end with the traced program, so they are no part of
//! the ABI. Program and agent are built together.

use crate::map_data;

macro_rules! stages {
    ($($(#[doc = $doc:literal])+ $variant:ident = $number:literal, $label:literal;)+) => {
        /// Where a packet came by. `a` and `b` are those of [`Step`].
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Stage {
            $($(#[doc = $doc])+ $variant = $number,)+
        }

        impl Stage {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The one with this number.
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// Its name.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)+ }
            }
        }
    };
}

stages! {
    /// The flow table knows the tuple. `a`: bits of `flow::flags`; `b`: one of `flow::forward`.
    Flow = 1, "flow";
    /// It does not.
    NoFlow = 2, "no_flow";
    /// The handshake table knows the tuple. As `Flow`.
    Handshake = 3, "handshake";
    /// A listener has the destination. `a`: its service.
    Listener = 4, "listener";
    /// No listener has it.
    NoListener = 5, "no_listener";
    /// The access lists were asked. `a`: the service; `b`: 1 if they deny the source.
    Access = 6, "access";
    /// A backend was picked. `a`: the backend; `b`: the ring's slot.
    Pick = 7, "pick";
    /// A new connection is remembered, with its rewrite. As `Flow`.
    Opened = 8, "opened";
    /// What a side of the sidecar's connection offers is remembered for a splice.
    Noted = 9, "noted";
    /// The backend's SYN-ACK was seen.
    Answered = 10, "answered";
    /// The client has completed its handshake. `a`: 1 if the flow table had room.
    Completed = 11, "completed";
    /// A FIN or RST was noted. `a`: bits of `flow::flags`.
    Ending = 12, "ending";
    /// A segment that belongs to no connection. `a`: the service.
    Stray = 13, "stray";
    /// An ICMP message about a segment.
    About = 14, "about";
    /// It is forwarded. `a`: one of `flow::forward`.
    Forward = 15, "forward";
    /// Too big for the next hop. `a`: the largest packet that it takes.
    TooBig = 16, "too_big";
    /// It leaves. `b`: the interface.
    Out = 17, "out";
    /// The next hop is not in the table: the kernel's FIB was asked, or the agent. `a`: a kind of `verdict`.
    Unresolved = 18, "unresolved";
}

/// Most steps that a record has room for; a packet takes fewer.
pub const MAX_STEPS: usize = 16;

/// An address and a port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct End {
    /// Network byte order; an IPv4 address is the first word.
    pub addr: [u32; 4],
    /// Network byte order.
    pub port: u16,
    pub _pad: u16,
}

/// Where a packet came by, and what was decided there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// One of [`Stage`].
    pub stage: u8,
    pub _pad: u8,
    pub a: u16,
    pub b: u32,
}

/// A packet's way. One record of the ring buffer `TRACES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// When it was done, `CLOCK_MONOTONIC` in nanoseconds.
    pub time: u64,
    /// As it came: source and destination.
    pub came: [End; 2],
    /// As its flow has it rewritten, once [`Trace::backend`] is known.
    pub to: [End; 2],
    /// For an ICMP error: what the sender of the quoted segment would receive.
    pub about: [End; 2],
    /// Sequence number, host byte order, as all that follows.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// The interface that it came by.
    pub ifindex: u32,
    /// A verdict as stages give it: the kind, shifted left by 8, and the number of an event or reason.
    pub verdict: u32,
    /// Length of the IP packet in bytes.
    pub ip_len: u16,
    /// Bytes of TCP payload.
    pub payload: u16,
    /// Which processor saw it.
    pub cpu: u16,
    /// Which service it was counted for; 0 for none.
    pub service: u16,
    /// The backend; 0 until one is known.
    pub backend: u16,
    /// TCP flags.
    pub flags: u8,
    /// 4 or 6; 0: nothing to tell.
    pub family: u8,
    /// 1 for ICMP, 0 for TCP.
    pub icmp: u8,
    /// 1 if it goes to the client: client and VIP are the ends of `to`.
    pub to_client: u8,
    /// How many of `steps` there are.
    pub len: u8,
    pub _pad: u8,
    pub steps: [Step; MAX_STEPS],
}

/// Verdicts of [`Trace::verdict`].
pub mod verdict {
    /// Out of the interface that it came by.
    pub const TRANSMIT: u32 = 1;
    /// Out of another one.
    pub const REDIRECT: u32 = 2;
    /// The agent has a copy and sends it on.
    pub const PUNTED: u32 = 3;
    /// With an event's number.
    pub const PASS: u32 = 4;
    /// With a drop reason's number.
    pub const DROP: u32 = 5;
}

impl Trace {
    /// Client and VIP, as far as they are known.
    #[inline(always)]
    pub fn ends(&self) -> (&End, &End) {
        if self.to_client != 0 {
            (&self.to[1], &self.to[0])
        } else if self.icmp != 0 && self.about[0].port != 0 {
            (&self.about[0], &self.about[1])
        } else {
            (&self.came[0], &self.came[1])
        }
    }
}

/// Whose packets are told of: the only element of the map `TRACE_FILTER`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// The client; the port is 0 for any.
    pub client: End,
    /// The VIP; likewise.
    pub vip: End,
    /// Which bits of the client's address count.
    pub client_mask: [u32; 4],
    /// Which of the VIP's.
    pub vip_mask: [u32; 4],
    /// 4 or 6; 0 for both.
    pub family: u16,
    /// 0 for any.
    pub backend: u16,
    /// Most packets a second.
    pub rate: u32,
    /// From then on nobody is told anything, in ticks; an agent that dies may leave the traced program behind.
    pub until: u32,
    pub _pad: u32,
}

impl Filter {
    /// Whether a packet is to be told of.
    #[inline(always)]
    pub fn admits(&self, trace: &Trace) -> bool {
        let (client, vip) = trace.ends();
        (self.family == 0 || self.family == trace.family as u16)
            && (self.backend == 0 || self.backend == trace.backend)
            && matches(client, &self.client, &self.client_mask)
            && matches(vip, &self.vip, &self.vip_mask)
    }
}

#[inline(always)]
fn matches(end: &End, wanted: &End, mask: &[u32; 4]) -> bool {
    let differs = (end.addr[0] ^ wanted.addr[0]) & mask[0]
        | (end.addr[1] ^ wanted.addr[1]) & mask[1]
        | (end.addr[2] ^ wanted.addr[2]) & mask[2]
        | (end.addr[3] ^ wanted.addr[3]) & mask[3];
    differs == 0 && (wanted.port == 0 || wanted.port == end.port)
}

/// What became of the packets that the filter admits, one element per CPU of the map `TRACE_COUNTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Told.
    pub told: u64,
    /// Not told: above the rate.
    pub limited: u64,
    /// Not told: the agent does not read fast enough.
    pub full: u64,
}

map_data!(Trace, Filter, Counts);

impl core::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.told += other.told;
        self.limited += other.limited;
        self.full += other.full;
    }
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn layout() {
        assert_eq!(size_of::<End>(), 20);
        assert_eq!(size_of::<Step>(), 8);
        assert_eq!(offset_of!(Trace, seq), 8 + 6 * 20);
        assert_eq!(offset_of!(Trace, steps), 8 + 120 + 16 + 16);
        assert_eq!(size_of::<Trace>(), 160 + 128);
        assert_eq!(size_of::<Filter>(), 40 + 32 + 16);
        assert_eq!(size_of::<Counts>(), 24);
    }

    #[test]
    fn stages_are_numbered_as_they_are_listed() {
        for (n, stage) in Stage::ALL.iter().enumerate() {
            assert_eq!(*stage as usize, n + 1);
            assert_eq!(Stage::from_number(*stage as u8), Some(*stage));
        }
        assert_eq!(Stage::from_number(0), None);
    }

    fn end(addr: u32, port: u16) -> End {
        End { addr: [addr, 0, 0, 0], port, _pad: 0 }
    }

    #[test]
    fn a_filter_knows_the_client_in_both_directions() {
        let up = Trace { family: 4, came: [end(1, 10), end(2, 80)], ..Trace::default() };
        let down = Trace {
            family: 4,
            came: [end(7, 90), end(8, 10)],
            to: [end(2, 80), end(1, 10)],
            to_client: 1,
            backend: 3,
            ..Trace::default()
        };
        let error = Trace { icmp: 1, about: up.came, came: [end(9, 0), end(2, 0)], ..up };
        let filter = Filter {
            client: end(1, 10),
            vip: end(2, 0),
            client_mask: [u32::MAX; 4],
            vip_mask: [u32::MAX; 4],
            family: 4,
            ..Filter::default()
        };
        for trace in [up, down, error] {
            assert!(filter.admits(&trace), "{trace:?}");
            assert!(Filter::default().admits(&trace));
            assert!(!Filter { client: end(5, 10), ..filter }.admits(&trace));
            assert!(!Filter { client: end(1, 11), ..filter }.admits(&trace));
            assert!(!Filter { vip: end(3, 0), ..filter }.admits(&trace));
            assert!(!Filter { family: 6, ..filter }.admits(&trace));
        }
        assert!(Filter { backend: 3, ..filter }.admits(&down));
        assert!(!Filter { backend: 3, ..filter }.admits(&up), "no backend is known");
    }
}
