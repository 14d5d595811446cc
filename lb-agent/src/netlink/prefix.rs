//! An IP prefix, and the longest match over a map of them.
//!
//! Knows nothing of routes: what a prefix stands for is the caller's business.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

/// An IPv4 or IPv6 prefix in canonical form: every bit behind the length is zero.
///
/// Sorts by family, address, length, so that a prefix comes before everything it covers: one pass
/// over a sorted map with a stack of open prefixes sees each prefix's nearest cover.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

impl Prefix {
    /// The prefix of `len` bits which contains `addr`. A length beyond the family's is cut to it.
    pub fn new(addr: IpAddr, len: u8) -> Self {
        let len = len.min(bits(addr));
        Self { addr: mask(addr, len), len }
    }

    /// The prefix of one address: /32 or /128.
    pub fn host(addr: IpAddr) -> Self {
        Self { addr, len: bits(addr) }
    }

    /// The first address.
    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length in bits: 0 to 32 or 0 to 128. (Every prefix has at least one address, hence no `is_empty`.)
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether it is the prefix of a single address.
    pub fn is_host(&self) -> bool {
        self.len == bits(self.addr)
    }

    /// Whether `addr` is of this family and inside.
    pub fn contains(&self, addr: IpAddr) -> bool {
        self.addr.is_ipv4() == addr.is_ipv4() && mask(addr, self.len) == self.addr
    }

    /// Whether every address of `other` is inside.
    pub fn covers(&self, other: &Prefix) -> bool {
        self.len <= other.len && self.contains(other.addr)
    }
}

/// The entry with the longest prefix that contains `addr`, as `BPF_MAP_TYPE_LPM_TRIE` finds it.
pub fn longest_match<V>(map: &BTreeMap<Prefix, V>, addr: IpAddr) -> Option<(&Prefix, &V)> {
    (0..=bits(addr)).rev().find_map(|len| map.get_key_value(&Prefix::new(addr, len)))
}

fn bits(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn mask(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(a) => {
            let keep = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            IpAddr::V4((a.to_bits() & keep).into())
        }
        IpAddr::V6(a) => {
            let keep = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            IpAddr::V6((a.to_bits() & keep).into())
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix {
    type Err = String;

    /// `10.0.0.0/8`, or a bare address for a host prefix. Host bits that are set are refused: the
    /// writer meant either another prefix or another address.
    fn from_str(text: &str) -> Result<Self, String> {
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr, Some(len)),
            None => (text, None),
        };
        let addr: IpAddr = addr.parse().map_err(|_| format!("{text}: not an IP prefix"))?;
        let Some(len) = len else {
            return Ok(Self::host(addr));
        };
        let len: u8 = len
            .parse()
            .ok()
            .filter(|len| *len <= bits(addr))
            .ok_or_else(|| format!("{text}: the length must be 0 to {}", bits(addr)))?;
        let prefix = Self::new(addr, len);
        if prefix.addr != addr {
            return Err(format!("{text}: host bits are set; {prefix} is the prefix"));
        }
        Ok(prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn a_prefix_contains_its_addresses_and_no_other_family() {
        assert!(p("10.0.0.0/8").contains("10.255.0.1".parse().unwrap()));
        assert!(!p("10.0.0.0/8").contains("11.0.0.0".parse().unwrap()));
        assert!(p("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(!p("0.0.0.0/0").contains("::".parse().unwrap()));
        assert!(p("2001:db8::/33").contains("2001:db8:7fff::1".parse().unwrap()));
        assert!(!p("2001:db8::/33").contains("2001:db8:8000::1".parse().unwrap()));
        assert!(p("::1").is_host());
    }

    #[test]
    fn text_that_is_not_a_canonical_prefix_is_refused() {
        for text in ["10.0.0.1/8", "10.0.0.0/33", "::/129", "10.0.0/8", "10.0.0.0/", "", "::/-1"] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_cover_sorts_before_what_it_covers() {
        let mut all =
            [p("10.1.0.0/16"), p("10.0.0.0/8"), p("10.0.0.0/16"), p("0.0.0.0/0"), p("::/0")];
        all.sort();
        assert_eq!(
            all.map(|p| p.to_string()),
            ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "::/0"]
        );
    }

    #[test]
    fn the_longest_match_wins() {
        let map = BTreeMap::from([(p("0.0.0.0/0"), 1), (p("10.0.0.0/8"), 2), (p("10.1.1.1"), 3)]);
        let find = |a: &str| longest_match(&map, a.parse().unwrap()).map(|(_, v)| *v);
        assert_eq!(find("10.1.1.1"), Some(3));
        assert_eq!(find("10.1.1.2"), Some(2));
        assert_eq!(find("9.9.9.9"), Some(1));
        assert_eq!(find("::1"), None);
    }
}
