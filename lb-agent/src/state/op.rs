//! One write to one map.

use std::fmt;

use lb_common::{
    abi::Edge,
    access,
    flow::forward,
    next_hop::NextHop,
    service::{Backend, Listener, Service, affinity, listener_flags, service_flags},
};

use std::net::IpAddr;

use super::{Endpoint, Prefix, Ring, backend_addr, ip_of};

/// A write to a map; `Display` is what logs and a dry run show.
#[derive(Clone, PartialEq)]
pub enum MapOp {
    SetNextHop {
        id: u16,
        hop: NextHop,
    },
    ClearNextHop {
        id: u16,
    },
    SetSource {
        index: u32,
        addr: IpAddr,
    },
    SetEdge(Edge),
    SetBackend {
        id: u16,
        backend: Backend,
    },
    ClearBackend {
        id: u16,
    },
    SetRoute {
        to: Prefix,
        next_hop: u16,
    },
    ClearRoute {
        to: Prefix,
    },
    /// The service is for logs; the ring is in use once the service points to it.
    WriteRing {
        number: u32,
        service: u16,
        slots: Ring,
    },
    /// Whether sources in the prefix may send to what is in the scope: a service, or the edge
    /// ([`lb_common::access::EDGE`]).
    SetAccess {
        scope: u16,
        from: Prefix,
        admit: bool,
    },
    ClearAccess {
        scope: u16,
        from: Prefix,
    },
    SetService {
        id: u16,
        service: Service,
    },
    ClearService {
        id: u16,
    },
    SetListener {
        at: Endpoint,
        listener: Listener,
    },
    ClearListener {
        at: Endpoint,
    },
}

impl MapOp {
    /// The services whose entries this operation writes; none for what all services share.
    pub fn service(&self) -> Option<u16> {
        match *self {
            Self::SetBackend { backend, .. } => Some(backend.service),
            Self::WriteRing { service, .. } => Some(service),
            Self::SetService { id, .. } | Self::ClearService { id } => Some(id),
            Self::SetAccess { scope, .. } | Self::ClearAccess { scope, .. } => {
                (scope != access::EDGE).then_some(scope)
            }
            Self::SetListener { listener, .. } if listener.service != 0 => Some(listener.service),
            _ => None,
        }
    }
}

impl fmt::Display for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::SetNextHop { id, ref hop } => show_next_hop(id, hop, f),
            Self::ClearNextHop { id } => write!(f, "next hop {id}: none"),
            Self::SetSource { index, addr } => write!(f, "source address {index}: {addr}"),
            Self::SetEdge(ref edge) => show_edge(edge, f),
            Self::SetBackend { id, ref backend } => show_backend(id, backend, f),
            Self::ClearBackend { id } => write!(f, "backend {id}: none"),
            Self::SetRoute { to, next_hop } => write!(f, "route to {to}: next hop {next_hop}"),
            Self::ClearRoute { to } => write!(f, "route to {to}: none"),
            Self::WriteRing { number, service, .. } => {
                write!(f, "ring {number}: new, for service {service}")
            }
            Self::SetAccess { scope, from, admit } => {
                let verdict = if admit { "admitted" } else { "denied" };
                write!(f, "access to {}: {from} {verdict}", show_scope(scope))
            }
            Self::ClearAccess { scope, from } => {
                write!(f, "access to {}: {from} not listed", show_scope(scope))
            }
            Self::SetService { id, ref service } => show_service(id, service, f),
            Self::ClearService { id } => write!(f, "service {id}: none"),
            Self::SetListener { at, listener } => {
                match (at.port, listener.service) {
                    (0, _) => write!(f, "address {at}: a service's")?,
                    (_, 0) => return write!(f, "upstream {at}: of the sidecar"),
                    (_, service) => write!(f, "listener {at}: service {service}")?,
                }
                if listener.flags & listener_flags::XDP_ONLY != 0 {
                    f.write_str(", not on the host")?;
                }
                match listener.flags & listener_flags::UPSTREAM {
                    0 => Ok(()),
                    _ => f.write_str(", upstream of the sidecar"),
                }
            }
            Self::ClearListener { at } if at.port == 0 => write!(f, "address {at}: no service's"),
            Self::ClearListener { at } => write!(f, "listener {at}: none"),
        }
    }
}

/// Without the 65,537 slots of a ring.
impl fmt::Debug for MapOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn show_scope(scope: u16) -> String {
    match scope {
        access::EDGE => "the edge".to_owned(),
        service => format!("service {service}"),
    }
}

fn show_next_hop(id: u16, hop: &NextHop, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    if hop.ifindex == 0 {
        return write!(f, "next hop {id}: not usable now");
    }
    let [a, b, c, d, e, g] = hop.dst;
    write!(f, "next hop {id}: {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
    write!(f, " on interface {}, MTU {}", hop.ifindex, hop.mtu)?;
    for tag in hop.tags.iter().take(usize::from(hop.tags_len / 4)) {
        write!(f, ", VLAN {}", u16::from_be(tag[1]) & 0xfff)?;
    }
    Ok(())
}

fn show_edge(edge: &Edge, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(
        f,
        "edge: {} IPv4 and {} IPv6 source addresses, {} ports from {}, route epoch {}",
        edge.sources[0],
        edge.sources[1],
        edge.nat_port_count,
        edge.nat_port_first,
        edge.route_epoch,
    )
}

fn show_backend(id: u16, backend: &Backend, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    write!(f, "backend {id}: {} of service {}", backend_addr(backend), backend.service)?;
    match backend.next_hop {
        0 => f.write_str(", next hop by the kernel")?,
        next_hop => write!(f, ", next hop {next_hop}")?,
    }
    if backend.tunnel_source != [0; 4] {
        write!(f, ", tunnel from {}", ip_of(backend.tunnel_source, backend.family))?;
    }
    match backend.mss_clamp {
        0 => Ok(()),
        mss => write!(f, ", MSS at most {mss}"),
    }
}

fn show_service(id: u16, service: &Service, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let forward = match service.forward {
        forward::NAT => "nat",
        forward::DSR => "dsr",
        forward::IPIP => "ipip",
        forward::SPLICE if service.flags & service_flags::RELAY != 0 => {
            return write!(f, "service {id}: the sidecar's, which relays");
        }
        forward::SPLICE => {
            return write!(f, "service {id}: the sidecar's, whose connections are spliced");
        }
        _ => "unknown",
    };
    let affinity = match service.affinity {
        affinity::SOURCE => ", affinity by source",
        _ => "",
    };
    let [v4, v6] = service.rings;
    write!(f, "service {id}: {forward}{affinity}, rings {v4} (IPv4) and {v6} (IPv6)")
}
