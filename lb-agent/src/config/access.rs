//! `[edge.access]` and `[service.access]`: who may send at all.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::address;
use super::error::Problems;
use super::reader::{Reader, Section};
use super::unique::Unique;

pub(super) static EDGE_ACCESS: Section =
    Section { heading: "[edge.access]", keys: &["allow", "deny"] };

pub(super) static SERVICE_ACCESS: Section =
    Section { heading: "[service.access]", keys: &["allow", "deny"] };

/// Prefixes in one list at most. All lists together have room for
/// [`MAX_ENTRIES`](lb_common::access::MAX_ENTRIES) of an IP version.
const MOST: usize = 50_000;

/// Address and length of a prefix, without bits beyond the length.
pub type Prefix = (IpAddr, u8);

/// Whose packets XDP lets through: the longest prefix that a source is in decides. Who is in none is denied if
/// `allow` has any, and admitted otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Not in `deny`.
    pub allow: BTreeSet<Prefix>,
    /// Not in `allow`.
    pub deny: BTreeSet<Prefix>,
}

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> Access {
    let mut unique = Unique::new(problems);
    let allow = prefixes(reader, "allow", &mut unique);
    let deny = prefixes(reader, "deny", &mut unique);
    Access { allow, deny }
}

fn prefixes(
    reader: &Reader<'_>,
    key: &'static str,
    unique: &mut Unique<'_, Prefix>,
) -> BTreeSet<Prefix> {
    const EXAMPLE: &str = r#""198.51.100.0/24""#;
    let Some(elements) =
        reader.field(key).and_then(|field| field.elements(MOST, r#"["198.51.100.0/24"]"#))
    else {
        return BTreeSet::new();
    };
    let read = elements.iter().filter_map(|element| {
        let prefix = address::prefix(element, EXAMPLE)?;
        unique
            .insert(prefix, &element.place, "write it once, in one of the lists")
            .then_some(prefix)
    });
    read.collect()
}
