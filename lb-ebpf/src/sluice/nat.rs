//! Source addresses and ports of `nat`.

use aya_ebpf::{macros::map, maps::Array};
use lb_common::{
    abi::MAX_SOURCES,
    addr::{Addr, Tuple, V4, V6},
    outcome::{DropReason, Event},
    service::Backend,
};

use lb_ebpf::packet::Packet;

use crate::{Version, count, edge, flow, handshake};

/// IPv4 addresses of the edge towards the backends.
#[map]
static SOURCES4: Array<V4> = Array::with_max_entries(MAX_SOURCES as u32, 0);

/// IPv6 addresses of the edge towards the backends.
#[map]
static SOURCES6: Array<V6> = Array::with_max_entries(MAX_SOURCES as u32, 0);

/// Address and port pairs that are tried for a flow. With half of all ports taken, sixteen probes
/// fail once in 65,536 flows; a bound keeps the cost of a SYN bounded.
const PROBES: u32 = 16;

/// The source addresses of an IP version.
pub trait Sources: Addr {
    fn sources() -> &'static Array<Self>
    where
        Self: Sized;
}

impl Sources for V4 {
    #[inline(always)]
    fn sources() -> &'static Array<V4> {
        &SOURCES4
    }
}

impl Sources for V6 {
    #[inline(always)]
    fn sources() -> &'static Array<V6> {
        &SOURCES6
    }
}

/// Reserves a source for a client's new connection to a backend: the client's own port if that is
/// free on any source address, else another. Writes the tuple towards the backend.
#[inline(always)]
pub fn reserve<A: Version>(
    packet: &Packet,
    client: &Tuple<A>,
    backend_id: u16,
    backend: &Backend,
    hash: u32,
    to: &mut Tuple<A>,
) -> Result<(), DropReason> {
    let Some(edge) = edge::get() else {
        return Err(DropReason::Inconsistent);
    };
    let sources = edge.sources[A::FAMILY];
    if sources == 0 || sources > MAX_SOURCES as u32 {
        return Err(DropReason::NoSourceAddress);
    }
    let (first, ports) = (edge.nat_port_first, edge.nat_port_count.max(1));
    let own = u16::from_be(client.sport);
    let own_is_usable = own.wrapping_sub(first) < ports;
    let start = hash % sources;
    let mut random = hash;
    for probe in 0..PROBES {
        let keep = own_is_usable && probe < sources;
        random = random.wrapping_mul(0x2c1b_3c6d).wrapping_add(0x9e37_79b9);
        let port = if keep { own } else { first + ((random >> 16) % ports as u32) as u16 };
        let source = Source { index: ((start + probe) % sources) as u16, port };
        match A::reserve_source(packet, client, backend_id, backend, source, to)? {
            Reserved::Taken => continue,
            Reserved::Done => {}
        }
        if port != own {
            count::event(backend.service, Event::PortTranslated);
        }
        return Ok(());
    }
    Err(DropReason::NatPortsExhausted)
}

/// A source that may be free.
#[derive(Clone, Copy)]
pub struct Source {
    /// Index of the source address.
    pub index: u16,
    /// Port, host byte order.
    pub port: u16,
}

/// What became of a reservation.
pub enum Reserved {
    Done,
    Taken,
}

/// Reserves a source if it is free, and writes the tuple towards the backend.
///
/// A port is taken if the flow table has an entry for the backend's answers, or if the handshake
/// table's new entry meets an old one (`BPF_NOEXIST`), so two flows can never share a port. It is taken
/// also if a socket of the host has it, the sidecar's or anybody's.
#[inline(always)]
pub fn reserve_source<A: Version>(
    packet: &Packet,
    client: &Tuple<A>,
    backend_id: u16,
    backend: &Backend,
    source: Source,
    to: &mut Tuple<A>,
) -> Result<Reserved, DropReason> {
    let Some(address) = A::sources().get(source.index as u32) else {
        return Err(DropReason::NoSourceAddress);
    };
    *to = Tuple {
        src: *address,
        dst: A::from_backend(backend.addr),
        sport: source.port.to_be(),
        dport: backend.port,
    };
    let answers = to.reversed();
    if flow::find(&answers).is_some() || packet.has_socket(&answers) {
        return Ok(Reserved::Taken);
    }
    handshake::reserve(&answers, client, backend_id)
}
