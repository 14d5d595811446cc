//! Established flows as an operator wants to see them, read from the pinned tables. No running agent is needed.

use std::{
    collections::BTreeSet,
    hash::Hash,
    io,
    net::{IpAddr, SocketAddr},
};

use aya::Pod;
use lb_common::{
    abi::TICK_SHIFT,
    addr::{Addr, Tuple, V4, V6},
    flow::{Flow, flags, forward},
};

use super::{
    aging::{Entry, age},
    table::{self, Family, FlowTable},
};
use crate::bpf::PinDir;

/// One connection.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    pub client: SocketAddr,
    /// Where the client connected to.
    pub listener: SocketAddr,
    /// Id of the backend.
    pub backend: u16,
    /// With `nat` and `splice`, the edge's own end and the backend as they talk to each other.
    pub nat: Option<(SocketAddr, SocketAddr)>,
    pub forward: &'static str,
    pub state: &'static str,
    /// Since the last packet of either direction.
    pub idle_seconds: f64,
    pub age_seconds: f64,
    /// Packets and bytes from the client, and to it (`nat` and `splice`: otherwise they do not pass the edge).
    pub from_client: (u32, u64),
    pub to_client: Option<(u32, u64)>,
}

/// Which connections are wanted; `None` stands for all.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub client: Option<IpAddr>,
    pub listeners: Option<BTreeSet<SocketAddr>>,
    pub backends: Option<BTreeSet<u16>>,
}

impl Filter {
    fn takes<A: Addr + Into<IpAddr>>(&self, entry: &Entry<A>) -> bool {
        let (client, listener) = ends(&entry.key);
        entry.is_clients()
            && self.client.is_none_or(|wanted| wanted == client.ip())
            && self.listeners.as_ref().is_none_or(|wanted| wanted.contains(&listener))
            && self.backends.as_ref().is_none_or(|wanted| wanted.contains(&entry.flow.backend))
    }
}

/// Up to `limit` connections of an edge at the time `now` in ticks, in no order; and whether there may be more.
pub fn list(
    pins: &PinDir,
    filter: &Filter,
    limit: usize,
    now: u32,
) -> io::Result<(Vec<Listed>, bool)> {
    let mut listed = Vec::new();
    let more = list_family::<V4>(pins, filter, limit, now, &mut listed)?
        || list_family::<V6>(pins, filter, limit, now, &mut listed)?;
    Ok((listed, more))
}

fn list_family<A: Family + Hash + Into<IpAddr>>(
    pins: &PinDir,
    filter: &Filter,
    limit: usize,
    now: u32,
    listed: &mut Vec<Listed>,
) -> io::Result<bool>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let mut table = table::flows::<A>(pins)?;
    let (mut batch, mut from) = (Vec::new(), None);
    loop {
        from = table.batch(from, &mut batch)?;
        for entry in batch.iter().filter(|entry| filter.takes(entry)) {
            if listed.len() >= limit {
                return Ok(true);
            }
            let partner = match entry.partner_key() {
                Some(key) => table.get(&key)?.map(|partner| partner.flow),
                None => None,
            };
            listed.push(row(entry, partner.as_ref(), now));
        }
        if from.is_none() {
            return Ok(false);
        }
    }
}

fn row<A: Addr + Into<IpAddr>>(entry: &Entry<A>, partner: Option<&Flow<A>>, now: u32) -> Listed {
    let Entry { key, flow, .. } = entry;
    let (client, listener) = ends(key);
    let both = [Some(flow), partner].into_iter().flatten();
    let idle = both.map(|flow| age(now, flow.last_seen)).min().unwrap_or(0);
    let ending = flags::FIN | flags::PEER_FIN;
    Listed {
        client,
        listener,
        backend: flow.backend,
        nat: flow.is_two_way().then(|| ends(&flow.to)),
        forward: match flow.forward {
            forward::NAT => "nat",
            forward::DSR => "dsr",
            forward::IPIP => "ipip",
            forward::SPLICE => "splice",
            _ => "unknown",
        },
        state: match () {
            () if entry.is_held() => "held",
            () if flow.flags & (flags::RESET | flags::PEER_RESET) != 0 => "reset",
            () if flow.is_closing() => "closed",
            () if flow.flags & ending != 0 => "closing",
            () => "established",
        },
        idle_seconds: seconds(idle),
        age_seconds: seconds(age(now, flow.created)),
        from_client: (flow.packets, flow.bytes),
        to_client: partner.map(|flow| (flow.packets, flow.bytes)),
    }
}

/// Source and destination.
fn ends<A: Addr + Into<IpAddr>>(tuple: &Tuple<A>) -> (SocketAddr, SocketAddr) {
    let end = |addr: A, port| SocketAddr::new(addr.into(), u16::from_be(port));
    (end(tuple.src, tuple.sport), end(tuple.dst, tuple.dport))
}

fn seconds(ticks: u32) -> f64 {
    f64::from(ticks) * (1_u64 << TICK_SHIFT) as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::flows::aging::Stage;

    fn entry() -> Entry<V4> {
        let addr = |n| V4::from(Ipv4Addr::new(10, 0, 0, n));
        let tuple = |src, sport: u16, dst, dport: u16| Tuple {
            src: addr(src),
            dst: addr(dst),
            sport: sport.to_be(),
            dport: dport.to_be(),
        };
        let to = tuple(3, 5_001, 4, 9_000);
        let flow = Flow {
            to,
            backend: 7,
            forward: forward::NAT,
            created: 100,
            last_seen: 160,
            packets: 2,
            bytes: 80,
            ..Flow::default()
        };
        Entry { key: tuple(1, 5_000, 2, 80), flow, stage: Stage::Flow }
    }

    #[test]
    fn a_row_says_who_talks_to_whom() {
        let entry = entry();
        let partner = Flow { last_seen: 219, packets: 3, ..Flow::default() };
        let row = row(&entry, Some(&partner), 220);
        assert_eq!(row.client, "10.0.0.1:5000".parse().unwrap());
        assert_eq!(row.listener, "10.0.0.2:80".parse().unwrap());
        let (edge, backend) = row.nat.unwrap();
        assert_eq!(
            (edge.to_string(), backend.to_string()),
            ("10.0.0.3:5001".into(), "10.0.0.4:9000".into())
        );
        assert_eq!((row.forward, row.state), ("nat", "established"));
        assert!((row.age_seconds - 2.0).abs() < 0.02 && row.idle_seconds < 0.02, "{row:?}");
        assert_eq!((row.from_client, row.to_client), ((2, 80), Some((3, 0))));
    }

    #[test]
    fn a_spliced_connection_has_both_tuples_and_may_be_held() {
        let mut entry = entry();
        entry.flow.forward = forward::SPLICE;
        let partner = Flow { packets: 3, bytes: 9, ..Flow::default() };
        let spliced = row(&entry, Some(&partner), 220);
        assert_eq!((spliced.forward, spliced.state), ("splice", "established"));
        assert_eq!(spliced.nat.unwrap().1, "10.0.0.4:9000".parse().unwrap());
        assert_eq!(spliced.to_client, Some((3, 9)));
        entry.flow.flags = flags::HOLD;
        assert_eq!(row(&entry, None, 220).state, "held");
    }

    #[test]
    fn a_filter_takes_what_all_of_it_takes() {
        let entry = entry();
        let client: IpAddr = "10.0.0.1".parse().unwrap();
        assert!(Filter::default().takes(&entry));
        for (filter, taken) in [
            (Filter { client: Some(client), ..Filter::default() }, true),
            (Filter { client: Some("10.0.0.9".parse().unwrap()), ..Filter::default() }, false),
            (Filter { backends: Some([7].into()), ..Filter::default() }, true),
            (
                Filter { backends: Some([8].into()), client: Some(client), ..Filter::default() },
                false,
            ),
            (
                Filter {
                    listeners: Some(["10.0.0.2:80".parse().unwrap()].into()),
                    ..Filter::default()
                },
                true,
            ),
            (
                Filter {
                    listeners: Some(["10.0.0.2:81".parse().unwrap()].into()),
                    ..Filter::default()
                },
                false,
            ),
        ] {
            assert_eq!(filter.takes(&entry), taken, "{filter:?}");
        }
        let flow = Flow { flags: flags::TO_CLIENT, ..entry.flow };
        assert!(!Filter::default().takes(&Entry { flow, ..entry }), "one row for each connection");
    }
}
