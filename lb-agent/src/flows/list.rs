//! Established flows as an operator wants to see them, read from the pinned tables. No running agent is needed.

use std::{
    collections::BTreeSet,
    fmt,
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
use serde::{Deserialize, Serialize};

use super::{
    aging::{Entry, age},
    table::{self, Family, FlowTable, Position},
};
use crate::bpf::{PinDir, sys::Bucket};

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

/// What went in one direction, as it is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Carried {
    pub packets: u32,
    pub bytes: u64,
}

impl From<(u32, u64)> for Carried {
    fn from((packets, bytes): (u32, u64)) -> Self {
        Self { packets, bytes }
    }
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

/// Where a page of connections ends, and the next one begins: `IPV6-BUCKET-SKIP` as text. What comes and goes meanwhile
/// may be missed or seen twice; what stays is on one page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cursor {
    ipv6: bool,
    /// None: the first one.
    bucket: Option<u32>,
    /// Entries from there on that were looked at.
    skip: usize,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bucket = self.bucket.map(|it| it.to_string()).unwrap_or_default();
        write!(f, "{}-{bucket}-{}", u8::from(self.ipv6), self.skip)
    }
}

impl TryFrom<String> for Cursor {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("cursor {text:?} is none: write the `next` of an answer");
        let [ipv6, bucket, skip] = text.split('-').collect::<Vec<_>>()[..] else {
            return Err(wrong());
        };
        let bucket = match bucket {
            "" => None,
            bucket => Some(bucket.parse().map_err(|_| wrong())?),
        };
        let skip = skip.parse().map_err(|_| wrong())?;
        Ok(Self { ipv6: ipv6 == "1", bucket, skip })
    }
}

/// Up to `limit` connections of an edge at the time `now` in ticks, in no order; and whether there may be more.
pub fn list(
    pins: &PinDir,
    filter: &Filter,
    limit: usize,
    now: u32,
) -> io::Result<(Vec<Listed>, bool)> {
    let (listed, next) = page(pins, filter, limit, None, now)?;
    Ok((listed, next.is_some()))
}

/// The same from where another page has ended, and where this one does if there may be more.
pub fn page(
    pins: &PinDir,
    filter: &Filter,
    limit: usize,
    from: Option<Cursor>,
    now: u32,
) -> io::Result<(Vec<Listed>, Option<Cursor>)> {
    let mut listed = Vec::new();
    let mut from = from.unwrap_or_default();
    if !from.ipv6 {
        let next = page_of::<V4>(pins, filter, limit, from, now, &mut listed)?;
        if next.is_some() {
            return Ok((listed, next));
        }
        from = Cursor { ipv6: true, ..Cursor::default() };
    }
    let next = page_of::<V6>(pins, filter, limit, from, now, &mut listed)?;
    Ok((listed, next))
}

fn page_of<A: Family + Hash + Into<IpAddr>>(
    pins: &PinDir,
    filter: &Filter,
    limit: usize,
    from: Cursor,
    now: u32,
    listed: &mut Vec<Listed>,
) -> io::Result<Option<Cursor>>
where
    Tuple<A>: Pod,
    Flow<A>: Pod,
{
    let mut table = table::flows::<A>(pins)?;
    let mut batch = Vec::new();
    let mut position = from.bucket.map(|number| Position::Bucket(Bucket::at(number)));
    // Where the batch begins. A kernel without batches has no buckets to begin at: such a walk begins anew, and passes by
    // what was seen.
    let (mut at, mut seen) = (Cursor { skip: 0, ..from }, from.skip);
    loop {
        let next = table.batch(position, &mut batch)?;
        let passed = seen.min(batch.len());
        for (n, entry) in batch.iter().enumerate().skip(passed).filter(|(_, it)| filter.takes(it)) {
            if listed.len() >= limit {
                return Ok(Some(Cursor { skip: at.skip + n, ..at }));
            }
            let partner = match entry.partner_key() {
                Some(key) => table.get(&key)?.map(|partner| partner.flow),
                None => None,
            };
            listed.push(row(entry, partner.as_ref(), now));
        }
        (at, seen) = match next {
            None => return Ok(None),
            Some(Position::Bucket(it)) => (Cursor { bucket: Some(it.number()), skip: 0, ..at }, 0),
            Some(Position::Key(..)) => {
                (Cursor { skip: at.skip + batch.len(), ..at }, seen - passed)
            }
        };
        position = next;
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

    #[test]
    fn a_cursor_is_read_as_it_is_written() {
        for cursor in [
            Cursor::default(),
            Cursor { ipv6: true, bucket: Some(7), skip: 3 },
            Cursor { ipv6: false, bucket: None, skip: 5_000 },
        ] {
            assert_eq!(Cursor::try_from(cursor.to_string()), Ok(cursor));
        }
        for bad in ["", "1", "0-x-1", "0-1--1", "0-1-2-3"] {
            assert!(Cursor::try_from(bad.to_owned()).unwrap_err().contains(bad));
        }
    }
}
