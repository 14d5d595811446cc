//! What each source has open, and how fast it comes. A source is a prefix: an address, or a network of them.

use std::{
    cell::RefCell,
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    rc::Rc,
    time::Duration,
};

use tokio::time::Instant;

use crate::{outcome::Outcome, service::Service, settings::Limits};

/// Sources that are remembered at a time. Who has nothing open and has not come for a while is forgotten.
pub const MOST: usize = 65_536;

/// An address without the bits that do not count; IPv4 as it is mapped to IPv6.
type Prefix = u128;

#[derive(Default)]
struct Source {
    open: u32,
    /// When its new connections are paid for, one after the other. What lies in the past is forgotten.
    paid: Option<Instant>,
}

/// The sources of a service.
#[derive(Default)]
pub struct Sources(RefCell<HashMap<Prefix, Source>>);

impl Sources {
    /// Forgets who has nothing open and nothing to pay.
    pub fn forget(&self, now: Instant) {
        let mut sources = self.0.borrow_mut();
        sources.retain(|_, source| source.open > 0 || source.paid.is_some_and(|paid| paid > now));
        if sources.is_empty() {
            sources.shrink_to_fit();
        }
    }

    fn enter(&self, prefix: Prefix, limits: &Limits, now: Instant) -> Result<(), Outcome> {
        if self.0.borrow().len() >= MOST && !self.0.borrow().contains_key(&prefix) {
            self.forget(now);
        }
        let mut sources = self.0.borrow_mut();
        let room = sources.len() < MOST;
        let source = match sources.entry(prefix) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) if room => new.insert(Source::default()),
            Entry::Vacant(_) => return Err(Outcome::SourceTableFull),
        };
        source.enter(limits, now)
    }

    fn leave(&self, prefix: Prefix) {
        let mut sources = self.0.borrow_mut();
        let Entry::Occupied(mut source) = sources.entry(prefix) else { return };
        source.get_mut().open -= 1;
        if source.get().open == 0 && source.get().paid.is_none() {
            source.remove();
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.borrow().len()
    }
}

impl Source {
    fn enter(&mut self, limits: &Limits, now: Instant) -> Result<(), Outcome> {
        if limits.connections_per_source > 0 && self.open >= limits.connections_per_source {
            return Err(Outcome::SourceConnections);
        }
        if limits.handshakes_per_second_per_source > 0 {
            let one = Duration::from_secs(1) / limits.handshakes_per_second_per_source;
            let most = one * limits.handshake_burst.max(1);
            let paid = self.paid.unwrap_or(now).max(now) + one;
            if paid > now + most {
                return Err(Outcome::SourceHandshakes);
            }
            self.paid = Some(paid);
        }
        self.open += 1;
        Ok(())
    }
}

/// Stands for one connection of a source.
pub struct Permit {
    service: Rc<Service>,
    prefix: Prefix,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.service.sources.leave(self.prefix);
    }
}

/// Counts a connection, unless its source has too many, or too many new ones. Where there is no room to count,
/// nobody is refused: whoever fills the table must not lock others out.
pub fn admit(
    service: &Rc<Service>,
    limits: &Limits,
    source: IpAddr,
) -> Result<Option<Permit>, Outcome> {
    let prefix = prefix(source, limits);
    match service.sources.enter(prefix, limits, Instant::now()) {
        Ok(()) => Ok(Some(Permit { service: Rc::clone(service), prefix })),
        Err(Outcome::SourceTableFull) => {
            service.count(Outcome::SourceTableFull);
            Ok(None)
        }
        Err(outcome) => Err(outcome),
    }
}

fn prefix(source: IpAddr, limits: &Limits) -> Prefix {
    let (bits, length) = match source.to_canonical() {
        IpAddr::V4(ip) => (ip.to_ipv6_mapped().to_bits(), 96 + limits.source_prefix_ipv4.min(32)),
        IpAddr::V6(ip) => (ip.to_bits(), limits.source_prefix_ipv6.min(128)),
    };
    bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: u32, handshakes: u32, burst: u32) -> Limits {
        Limits {
            connections_per_source: connections,
            handshakes_per_second_per_source: handshakes,
            handshake_burst: burst,
            ..Limits::default()
        }
    }

    #[test]
    fn a_source_is_a_prefix() {
        let limits = Limits { source_prefix_ipv4: 24, source_prefix_ipv6: 48, ..limits(1, 0, 0) };
        let of = |text: &str| prefix(text.parse().unwrap(), &limits);
        assert_eq!(of("192.0.2.1"), of("192.0.2.255"));
        assert_eq!(of("192.0.2.1"), of("::ffff:192.0.2.9"));
        assert_ne!(of("192.0.2.1"), of("192.0.3.1"));
        assert_eq!(of("2001:db8:1:2::3"), of("2001:db8:1:ffff::"));
        assert_ne!(of("2001:db8:1::"), of("2001:db8:2::"));
        let all = Limits { source_prefix_ipv4: 0, source_prefix_ipv6: 0, ..limits };
        let of = |text: &str| prefix(text.parse().unwrap(), &all);
        assert_eq!(of("192.0.2.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8::"), of("::1"));
    }

    #[test]
    fn so_many_at_a_time_and_who_leaves_makes_room() {
        let (sources, now) = (Sources::default(), Instant::now());
        let limits = limits(2, 0, 0);
        assert_eq!(
            [(); 3].map(|()| sources.enter(1, &limits, now)),
            [Ok(()), Ok(()), Err(Outcome::SourceConnections)]
        );
        assert_eq!(sources.enter(2, &limits, now), Ok(()), "another source");
        sources.leave(1);
        assert_eq!(sources.enter(1, &limits, now), Ok(()));
        [1, 1, 2].into_iter().for_each(|prefix| sources.leave(prefix));
        assert_eq!(sources.len(), 0, "nothing is remembered of who has left");
    }

    #[test]
    fn a_burst_at_once_and_then_so_many_in_a_second() {
        let (sources, start) = (Sources::default(), Instant::now());
        let limits = limits(0, 10, 3);
        let at = |millis| {
            let came = sources.enter(1, &limits, start + Duration::from_millis(millis));
            if came.is_ok() {
                sources.leave(1);
            }
            came
        };
        assert_eq!([0, 0, 0].map(at), [Ok(()); 3]);
        assert_eq!(at(0), Err(Outcome::SourceHandshakes));
        assert_eq!(
            [99, 100, 150, 200].map(at),
            [Err(Outcome::SourceHandshakes), Ok(()), Err(Outcome::SourceHandshakes), Ok(())]
        );
        sources.forget(start + Duration::from_millis(300));
        assert_eq!(sources.len(), 1, "it has not paid yet");
        sources.forget(start + Duration::from_secs(1));
        assert_eq!(sources.len(), 0);
    }

    #[test]
    fn the_table_is_bounded_and_lets_idle_sources_go() {
        let (sources, start) = (Sources::default(), Instant::now());
        let limits = limits(0, 1, 1);
        for source in 0..MOST as u128 {
            sources.enter(source, &limits, start).unwrap();
            if source > 0 {
                sources.leave(source);
            }
        }
        assert_eq!(sources.enter(1 << 100, &limits, start), Err(Outcome::SourceTableFull));
        assert_eq!(sources.len(), MOST);
        let later = start + Duration::from_secs(2);
        assert_eq!(sources.enter(1 << 100, &limits, later), Ok(()));
        assert_eq!(sources.len(), 2, "who is connected stays");
    }
}
