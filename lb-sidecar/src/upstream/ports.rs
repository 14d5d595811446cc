//! The source ports of connections to backends.
//!
//! The kernel does not know the ports of spliced connections. If it chose one of them for another connection to the same
//! backend, XDP would take that one's packets. So a worker chooses the port itself wherever it can see the flow table,
//! and binds its socket to it.
//!
//! Where it cannot (no table yet, or a kernel before 5.19), the kernel chooses as ever, and the connection is never offered
//! to be spliced: the more of those there were, the more of the kernel's later choices would fail.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::Duration,
};

use tokio::time::Instant;

use crate::splice::flows::Flows;

/// Look-ups for one connection. With nine of ten ports taken, one in a thousand connections finds none.
const LOOK_UPS: u32 = 64;

/// How long the kernel's choice of a source address is believed.
const ROUTE: Duration = Duration::from_secs(1);

/// Addresses whose routes are remembered.
const MOST_ROUTES: usize = 1_024;

/// See the module.
pub struct Ports {
    /// Whence the kernel would choose.
    ranges: Vec<RangeInclusive<u16>>,
    /// The last one, as a number among them all.
    last: Cell<u32>,
    routes: RefCell<HashMap<IpAddr, (IpAddr, Instant)>>,
}

impl Ports {
    /// Those that the kernel uses in this network namespace.
    pub fn of_kernel() -> Self {
        let read = |name: &str| {
            fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap_or_default()
        };
        // Its default, if it does not say.
        let range = range(&read("ip_local_port_range")).unwrap_or(32_768..=60_999);
        Self::new(choice(range, &ranges(&read("ip_local_reserved_ports"))))
    }

    fn new(ranges: Vec<RangeInclusive<u16>>) -> Self {
        // Workers that begin at different places do not compete.
        Self { ranges, last: Cell::new(rand::random()), routes: RefCell::default() }
    }

    /// Addresses and ports to connect to a backend from, of which no flow has the tuple; a few, or none.
    pub fn candidates(
        &self,
        flows: &impl Flows,
        backend: SocketAddr,
        address: IpAddr,
    ) -> impl Iterator<Item = SocketAddr> {
        (0..LOOK_UPS).filter_map(move |tried| {
            if tried > 0 {
                // Where one is taken, so are its neighbours: by flows, or by the thousands of sockets that another worker
                // has bound in turn.
                self.last.set(rand::random());
            }
            let local = SocketAddr::new(address, self.next()?);
            (flows.holds(backend, local) == Some(false)).then_some(local)
        })
    }

    /// In turn, as long as nobody meddles with it.
    fn next(&self) -> Option<u16> {
        let count: u32 = self.ranges.iter().map(|range| range.len() as u32).sum();
        let next = self.last.get().wrapping_add(1).checked_rem(count)?;
        self.last.set(next);
        let mut n = next as usize;
        for range in &self.ranges {
            match range.len() {
                len if n < len => return Some(range.start() + n as u16),
                len => n -= len,
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn begin_like(&self, other: &Self) {
        self.last.set(other.last.get());
    }

    /// The address that the kernel would connect from.
    pub fn address_to(&self, backend: IpAddr) -> io::Result<IpAddr> {
        let now = Instant::now();
        let mut routes = self.routes.borrow_mut();
        if let Some((address, until)) = routes.get(&backend)
            && *until > now
        {
            return Ok(*address);
        }
        let any: IpAddr = match backend {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        // Nothing is sent; any port will do.
        socket.connect((backend, 9))?;
        let address = socket.local_addr()?.ip();
        if routes.len() >= MOST_ROUTES {
            routes.clear();
        }
        routes.insert(backend, (address, now + ROUTE));
        Ok(address)
    }
}

/// Two numbers, and white space between them.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ends = text.split_ascii_whitespace().map(str::parse);
    Some(ends.next()?.ok()?..=ends.next()?.ok()?)
}

/// `1024-2047,8080`, sorted or not.
fn ranges(text: &str) -> Vec<RangeInclusive<u16>> {
    let parts = text.trim().split(',').filter_map(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse().ok()?..=last.parse().ok()?)
    });
    parts.collect()
}

/// What is not reserved. Whoever reserves all of it does so for `nat`, which leaves alone what has a socket; the kernel
/// itself would choose nothing then.
fn choice(
    range: RangeInclusive<u16>,
    reserved: &[RangeInclusive<u16>],
) -> Vec<RangeInclusive<u16>> {
    let free = without(range.clone(), reserved);
    if free.is_empty() { vec![range] } else { free }
}

fn without(
    range: RangeInclusive<u16>,
    reserved: &[RangeInclusive<u16>],
) -> Vec<RangeInclusive<u16>> {
    let mut left = vec![range];
    for taken in reserved {
        left = left
            .into_iter()
            .flat_map(|range| {
                let below = *range.start()..=(*range.end()).min(taken.start().saturating_sub(1));
                let above = (*range.start()).max(taken.end().saturating_add(1))..=*range.end();
                // A range that ends at the edge of all ports has nothing beyond.
                let below = (*taken.start() > 0).then_some(below);
                let above = (*taken.end() < u16::MAX).then_some(above);
                [below, above]
            })
            .flatten()
            .filter(|range| !range.is_empty())
            .collect();
    }
    left
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// The ports that flows hold.
    struct Held(HashSet<u16>);

    impl Flows for Held {
        fn are_known(&self, _: IpAddr) -> bool {
            true
        }

        fn holds(&self, _: SocketAddr, local: SocketAddr) -> Option<bool> {
            Some(self.0.contains(&local.port()))
        }
    }

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn backend() -> SocketAddr {
        "127.0.0.9:9".parse().unwrap()
    }

    fn chosen(ports: &Ports, held: &Held) -> Option<u16> {
        ports.candidates(held, backend(), LOCAL).next().map(|local| local.port())
    }

    #[test]
    fn ports_take_turns_and_those_of_flows_are_left_out() {
        let ports = Ports::new(vec![10..=19, 30..=39]);
        let held = Held((10..=17).chain(30..=39).collect());
        let mut seen = HashSet::new();
        for _ in 0..100 {
            seen.extend(chosen(&ports, &held));
        }
        assert_eq!(seen, HashSet::from([18, 19]));
        let free = Held(HashSet::new());
        let all: HashSet<_> = (0..20).map(|_| chosen(&ports, &free).unwrap()).collect();
        assert_eq!(all, (10..=19).chain(30..=39).collect(), "each once");
    }

    #[test]
    fn it_does_not_look_for_ever() {
        let ports = Ports::new(vec![10..=19]);
        assert_eq!(chosen(&ports, &Held((10..=19).collect())), None);
        let free = Held(HashSet::new());
        assert_eq!(
            ports.candidates(&free, backend(), LOCAL).count(),
            LOOK_UPS as usize,
            "others may hold them"
        );
        assert_eq!(chosen(&Ports::new(vec![]), &free), None);
    }

    #[test]
    fn nearly_full_is_not_full() {
        let ports = Ports::new(vec![10_000..=19_999]);
        // The free ones are all at the end.
        let held = Held((10_000..=18_999).collect());
        let found = (0..1_000).filter(|_| chosen(&ports, &held).is_some()).count();
        assert!(found > 900, "{found}");
    }

    #[test]
    fn what_is_reserved_is_not_chosen() {
        for (range, reserved, left) in [
            ("32768\t60999\n", "", vec![32_768..=60_999]),
            ("32768\t60999\n", "\n", vec![32_768..=60_999]),
            ("10 20", "1-9,21-65535", vec![10..=20]),
            ("10 20", "1-65535", vec![]),
            ("10 20", "0-15", vec![16..=20]),
            ("10 20", "12,15-16\n", vec![10..=11, 13..=14, 17..=20]),
            ("10 20", "10,20", vec![11..=19]),
            ("65530 65535", "65535", vec![65_530..=65_534]),
        ] {
            let what = format!("{range:?} {reserved:?}");
            let range = self::range(range).unwrap();
            assert_eq!(without(range, &ranges(reserved)), left, "{what}");
        }
        assert_eq!(choice(10..=20, &[1..=u16::MAX]), [10..=20], "unless that is all");
        assert_eq!(range(""), None);
    }

    #[tokio::test]
    async fn the_kernels_choice_of_an_address_is_known() {
        let ports = Ports::of_kernel();
        assert_eq!(ports.address_to("127.0.0.9".parse().unwrap()).unwrap(), LOCAL);
        assert_eq!(ports.address_to("127.0.0.9".parse().unwrap()).unwrap(), LOCAL, "remembered");
    }
}
