//! `[[service.backend]]`: one server.

use std::net::SocketAddr;
use std::time::Duration;

use super::address;
use super::error::{Place, Problems};
use super::reader::{Reader, Section};
use super::service::ModeKind;
use super::unique::Unique;

pub(super) static BACKEND: Section = Section {
    heading: "[[service.backend]]",
    keys: &["name", "address", "weight", "drain", "zone"],
};

/// One server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Name, unique in the service: 1 to 63 of `A-Za-z0-9._-:[]`.
    pub name: String,
    /// Its own unicast address and port; unique in the service, and never a VIP.
    pub address: SocketAddr,
    /// Its share among the weights of the pool, 0 to 1,000; with 0 it gets no new connection.
    pub weight: u32,
    /// Whether it only gets clients that belong to it, and loses them after [`Drain`](super::Drain); false in an l4
    /// service.
    pub drain: bool,
    /// Where it stands: 1 to 63 of `A-Za-z0-9._-`. Nothing depends on it yet.
    pub zone: Option<String>,
    /// How it loses its clients, if it drains because somebody asked for it while the edge ran. Never from a file.
    pub asked: Option<Asked>,
}

/// A drain that somebody asked for: what counts in the place of the service's [`Drain`](super::Drain).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    /// When, in milliseconds of Unix time.
    pub since: u64,
    /// How long clients that belong to it may stay.
    pub deadline: Duration,
    /// Connections closed each second afterwards.
    pub rate: u32,
}

/// The backends of a service, each with the place of its address. `None` if an address is wrong or
/// there is no backend.
pub(super) fn read(
    outer: &Reader<'_>,
    mode: Option<ModeKind>,
    problems: &Problems<'_>,
) -> Option<Vec<(Backend, Place)>> {
    const EXAMPLE: &str = r#"add e.g. [[service.backend]] with address = "10.2.0.2:9000""#;
    let (number, readers) = outer.tables("backend", &BACKEND);
    if number == 0 {
        outer.refuse("[[service.backend]]", "is missing", EXAMPLE);
        return None;
    }
    let all_tables = readers.len() == number;
    let mut names = Unique::new(problems);
    let mut addresses = Unique::new(problems);
    let read: Vec<_> = readers
        .into_iter()
        .enumerate()
        .map(|(n, reader)| {
            let reader = reader.named_by(&outer.place, "backend", n + 1, &["name", "address"]);
            if mode == Some(ModeKind::L4)
                && let Some(field) = reader.field("drain")
            {
                let remedy = "remove it; weight = 0 keeps new connections away";
                field.refuse(r#"is not for mode "l4""#, remedy);
            }
            read_one(&reader, &mut names, &mut addresses)
        })
        .collect();
    read.into_iter().collect::<Option<Vec<_>>>().filter(|_| all_tables)
}

fn read_one(
    reader: &Reader<'_>,
    names: &mut Unique<'_, String>,
    addresses: &mut Unique<'_, SocketAddr>,
) -> Option<(Backend, Place)> {
    const EXAMPLE: &str = r#""10.2.0.2:9000""#;
    let weight = reader.integer("weight", 0..=1_000, 100);
    let drain = reader.flag("drain", false);
    let zone = reader.field("zone").and_then(|field| address::name(&field, "._-", r#""rack-1""#));
    let named = reader.field("name");
    let name = named.as_ref().and_then(|field| address::name(field, "._-:[]", r#""chat-1""#));
    let field = reader.required("address", EXAMPLE);
    let address =
        field.and_then(|field| Some((address::socket_address(&field, EXAMPLE)?, field.place)));

    if let (Some(named), Some(name)) = (&named, &name) {
        names.insert(
            name.clone(),
            &named.place,
            "give each backend of a service a name of its own",
        );
    }
    let (address, place) = address?;
    let new = addresses.insert(address, &place, "remove one of the two");
    let name = match name {
        Some(name) => name,
        None => {
            let name = address.to_string();
            if new && named.is_none() {
                names.insert(name.clone(), &place, "give this backend a name");
            }
            name
        }
    };
    Some((Backend { name, address, weight, drain, zone, asked: None }, place))
}
