//! From the kernel's netlink messages to [`super::state`]. Pure.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoVlan, LinkAttribute, LinkFlags, LinkInfo as Info, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric,
        RouteType, RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::{
    prefix::Prefix,
    state::{Address, LinkInfo, Mac, Neighbour, PROTO_UNSPEC, Route, RouteKind, Vlan, VlanTag},
};

/// NUD_* of include/uapi/linux/neighbour.h, and the groups of include/net/neighbour.h.
const NUD_REACHABLE: u16 = 0x02;
const NUD_STALE: u16 = 0x04;
const NUD_DELAY: u16 = 0x08;
const NUD_PROBE: u16 = 0x10;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NUD_VALID: u16 =
    NUD_PERMANENT | NUD_NOARP | NUD_REACHABLE | NUD_PROBE | NUD_STALE | NUD_DELAY;

const RT_TABLE_DEFAULT: u32 = 253;
const RT_TABLE_MAIN: u32 = 254;
const RT_TABLE_LOCAL: u32 = 255;

pub fn link(message: LinkMessage) -> LinkInfo {
    let flags = message.header.flags;
    let mut link = LinkInfo {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up | LinkFlags::Running),
        loopback: flags.contains(LinkFlags::Loopback),
        ..LinkInfo::default()
    };
    let mut elsewhere = false;
    let mut tag = None;
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => link.mac = Mac::try_from(bytes).ok(),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(index) => link.peer = Some(index).filter(|i| *i != 0),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|i| *i != 0),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        Info::Kind(kind) => link.kind = Some(kind.to_string()),
                        Info::Data(InfoData::Vlan(data)) => tag = Some(vlan_tag(&data)),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if elsewhere {
        link.peer = None;
    }
    link.vlan = link.peer.zip(tag).map(|(parent, tag)| Vlan { parent, tag });
    link
}

fn vlan_tag(data: &[InfoVlan]) -> VlanTag {
    let mut tag = VlanTag { tpid: 0x8100, vid: 0 };
    for item in data {
        match item {
            InfoVlan::Id(vid) => tag.vid = *vid,
            InfoVlan::Protocol(protocol) => tag.tpid = (*protocol).into(),
            _ => {}
        }
    }
    tag
}

pub fn address(message: AddressMessage) -> Option<Address> {
    let mut local = None;
    let mut peer = None;
    let mut proto = PROTO_UNSPEC;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(addr) => local = Some(*addr),
            AddressAttribute::Address(addr) => peer = Some(*addr),
            AddressAttribute::Protocol(p) => proto = u8::from(*p),
            _ => {}
        }
    }
    // On a point-to-point link IFA_ADDRESS is the other end; IPv6 sends IFA_LOCAL only there.
    let addr = local.or(peer)?;
    Some(Address {
        ifindex: message.header.index,
        addr,
        prefix_len: message.header.prefix_len,
        proto,
    })
}

/// A route of the main table which the kernel would use; None for any other.
pub fn route(message: RouteMessage) -> Option<Route> {
    let header = &message.header;
    let mut dst = match header.address_family {
        AddressFamily::Inet => IpAddr::from([0; 4]),
        AddressFamily::Inet6 => IpAddr::from([0; 16]),
        _ => return None,
    };
    if header.flags.intersects(RouteFlags::Dead | RouteFlags::Cloned) {
        return None;
    }
    let plain = header.kind == RouteType::Unicast && !header.flags.contains(RouteFlags::Linkdown);
    let mut kind = if plain { RouteKind::Plain } else { RouteKind::KernelOnly };
    let mut table = u32::from(header.table);
    let (mut via, mut src, mut metric, mut ifindex) = (None, None, 0, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(addr) => dst = ip(addr)?,
            RouteAttribute::Gateway(addr) => via = ip(addr),
            RouteAttribute::Via(RouteVia::Inet(addr)) => via = Some((*addr).into()),
            RouteAttribute::Via(RouteVia::Inet6(addr)) => via = Some((*addr).into()),
            RouteAttribute::PrefSource(addr) => src = ip(addr),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Oif(index) => ifindex = *index,
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::MultiPath(_)
            | RouteAttribute::Encap(_)
            | RouteAttribute::EncapType(_)
            | RouteAttribute::Via(_)
            | RouteAttribute::NewDestination(_)
            | RouteAttribute::NewDestinationAddress(_) => kind = RouteKind::KernelOnly,
            // A path MTU belongs to the route, and next hops are shared between routes.
            RouteAttribute::Metrics(metrics)
                if metrics.iter().any(|m| matches!(m, RouteMetric::Mtu(_))) =>
            {
                kind = RouteKind::KernelOnly;
            }
            _ => {}
        }
    }
    if table != u32::from(RouteHeader::RT_TABLE_MAIN) {
        return None;
    }
    // A nexthop object with nexthop_compat_mode off is named but not described.
    if ifindex == 0 {
        kind = RouteKind::KernelOnly;
    }
    if header.tos != 0 || header.source_prefix_length != 0 {
        kind = RouteKind::Selective;
    }
    let prefix = Prefix::new(dst, header.destination_prefix_length);
    Some(Route { prefix, via, ifindex, metric, src, kind })
}

fn ip(addr: &RouteAddress) -> Option<IpAddr> {
    match addr {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

/// A unicast neighbour; None for multicast, broadcast and proxy entries, and for bridge FDB entries.
pub fn neighbour(message: NeighbourMessage) -> Option<Neighbour> {
    if message.header.flags.contains(NeighbourFlags::Proxy) {
        return None;
    }
    let state = u16::from(message.header.state);
    let mut addr = None;
    let mut mac = None;
    for attribute in message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => {
                addr = Some(IpAddr::from(a))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => {
                addr = Some(IpAddr::from(a))
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::try_from(bytes).ok(),
            _ => {}
        }
    }
    let addr = addr.filter(|a| !a.is_multicast() && !a.is_unspecified())?;
    let mac = mac.filter(|_| state & NUD_VALID != 0);
    // The group bit: the subnet's broadcast address has an entry, too (NUD_NOARP).
    if mac.is_some_and(|m| m[0] & 1 != 0) {
        return None;
    }
    let permanent = state & (NUD_PERMANENT | NUD_NOARP) != 0;
    Some(Neighbour {
        ifindex: message.header.ifindex,
        addr,
        mac,
        reachable: mac.is_some(),
        permanent,
    })
}

/// Whether a policy rule is one of the kernel's own: no selector, to table local, main or default.
pub fn is_default_rule(message: &RuleMessage) -> bool {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let selective = message.attributes.iter().any(|attribute| match attribute {
        RuleAttribute::Table(t) => {
            table = *t;
            false
        }
        // Every rule has these. The kernel says "no suppression" as -1.
        RuleAttribute::Priority(_) | RuleAttribute::Protocol(_) => false,
        RuleAttribute::SuppressPrefixLen(len) | RuleAttribute::SuppressIfGroup(len) => {
            *len != u32::MAX
        }
        RuleAttribute::L3MDev(on) => *on,
        _ => true,
    });
    !selective
        && header.action == RuleAction::ToTable
        && header.src_len == 0
        && header.dst_len == 0
        && header.tos == 0
        && [RT_TABLE_LOCAL, RT_TABLE_MAIN, RT_TABLE_DEFAULT].contains(&table)
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{InfoKind, VlanProtocol};
    use rtnetlink::packet_core::{Emitable, Parseable};

    use super::*;

    /// A VLAN device as the kernel describes it, through the bytes of the message.
    fn vlan_device(elsewhere: bool) -> LinkInfo {
        let mut message = LinkMessage::default();
        message.header.index = 9;
        message.header.flags = LinkFlags::Up | LinkFlags::Running;
        message.attributes = vec![
            LinkAttribute::IfName("eth0.7".into()),
            LinkAttribute::Link(2),
            LinkAttribute::Address(vec![2, 0, 0, 0, 0, 9]),
            LinkAttribute::Mtu(1500),
            LinkAttribute::LinkInfo(vec![
                Info::Kind(InfoKind::Vlan),
                Info::Data(InfoData::Vlan(vec![
                    InfoVlan::Protocol(VlanProtocol::Ieee8021Ad),
                    InfoVlan::Id(7),
                ])),
            ]),
        ];
        if elsewhere {
            message.attributes.push(LinkAttribute::LinkNetNsId(0));
        }
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        link(LinkMessage::parse(&bytes[..]).unwrap())
    }

    #[test]
    fn a_vlan_subinterface_names_its_parent_and_tag() {
        let device = vlan_device(false);
        let tag = VlanTag { tpid: 0x88a8, vid: 7 };
        assert_eq!(device.vlan, Some(Vlan { parent: 2, tag }));
        assert_eq!((device.kind.as_deref(), device.up), (Some("vlan"), true));
    }

    #[test]
    fn a_parent_in_another_namespace_is_none_of_ours() {
        let device = vlan_device(true);
        assert_eq!((device.vlan, device.peer), (None, None));
    }
}
