//! `[[service]]`: listeners, how packets reach the backends, and the backends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address;
use super::backend::{self, Backend};
use super::error::{Place, Problems};
use super::health::{self, HEALTH, Health};
use super::reader::{Reader, Section};
use super::unique::Unique;

pub(super) static SERVICE: Section = Section {
    heading: "[[service]]",
    keys: &[
        "name",
        "listen",
        "mode",
        "forward",
        "affinity",
        "idle_timeout",
        "close_timeout",
        "fail_open",
        "reset_on_backend_death",
        "health",
        "backend",
    ],
};

/// Listeners with their pool of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique name: 1 to 63 of `A-Za-z0-9._-`.
    pub name: String,
    /// Where clients connect: 1 to 64 unicast addresses, none of them in another service.
    pub listen: Vec<SocketAddr>,
    /// Whether connections or requests are balanced.
    pub mode: Mode,
    /// How packets reach the backends.
    pub forward: Forward,
    /// What decides the backend of a new connection.
    pub affinity: Affinity,
    /// How long a flow may be silent before both ends get a RST, 1 s to 7 d.
    pub idle_timeout: Duration,
    /// How long a flow is kept after FIN both ways or RST, 1 s to 10 min.
    pub close_timeout: Duration,
    /// Whether all backends get traffic when all are down.
    pub fail_open: bool,
    /// Whether the flows of a backend that dies are reset, at [`Edge::reset_rate`](super::Edge::reset_rate).
    pub reset_on_backend_death: bool,
    /// How backends are checked.
    pub health: Health,
    /// At least one; names and addresses are unique in the service.
    pub backends: Vec<Backend>,
}

/// What is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TCP connections, by XDP alone.
    L4,
}

/// How packets reach the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Both directions through the edge, with addresses and ports translated.
    Nat,
    /// The MAC rewritten: backends on the same layer 2 which hold the VIP and answer clients themselves.
    Dsr,
    /// IP in IP: backends anywhere which hold the VIP and answer clients themselves.
    Ipip,
}

impl Forward {
    /// Whether packets to a listener of one IP version can reach a backend of another: `ipip` carries
    /// IPv4 in IPv6, and nothing else crosses.
    #[must_use]
    pub fn carries(self, listener: IpAddr, backend: IpAddr) -> bool {
        listener.is_ipv4() == backend.is_ipv4() || (self == Self::Ipip && listener.is_ipv4())
    }
}

/// What decides the backend of a new connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The client's address and port.
    None,
    /// The client's address: all its connections go to one backend.
    Source,
}

impl Service {
    /// The backends that a listener of this service can use, see [`Forward::carries`]; at least one.
    pub fn pool(&self, listener: SocketAddr) -> impl Iterator<Item = &Backend> {
        self.backends
            .iter()
            .filter(move |backend| self.forward.carries(listener.ip(), backend.address.ip()))
    }
}

/// A service, and where its parts stand.
pub(super) struct ReadService {
    pub service: Service,
    /// The table.
    pub place: Place,
    /// The listeners' places, in the order of `service.listen`.
    pub listen: Vec<Place>,
    /// The backends' addresses' places, in the order of `service.backends`.
    pub backends: Vec<Place>,
    /// False if `forward` or an address could not be read: conclusions from the rest would mislead.
    pub complete: bool,
}

pub(super) fn read(outer: &Reader<'_>, problems: &Problems<'_>) -> Vec<ReadService> {
    let (number, readers) = outer.tables("service", &SERVICE);
    if number == 0 {
        outer.refuse(
            "[[service]]",
            "is missing",
            "add at least one, with name, listen and [[service.backend]]",
        );
    }
    let mut names = Unique::new(problems);
    let numbered = readers.into_iter().enumerate();
    numbered
        .map(|(n, reader)| read_one(reader, &outer.place, n + 1, &mut names, problems))
        .collect()
}

fn read_one(
    reader: Reader<'_>,
    outer: &Place,
    position: usize,
    names: &mut Unique<'_, String>,
    problems: &Problems<'_>,
) -> ReadService {
    let reader = reader.named_by(outer, "service", position, &["name"]);
    let name = reader.required("name", r#""chat""#).and_then(|field| {
        let name = address::name(&field, "._-", r#""chat""#)?;
        names
            .insert(name.clone(), &field.place, "give each service a name of its own")
            .then_some(name)
    });
    mode(&reader);
    let forward = forward(&reader);
    let listeners = listeners(&reader);
    let backends = backend::read(&reader, problems);
    let complete = forward.is_some() && listeners.is_some() && backends.is_some();
    let (listen, listen_places) = listeners.unwrap_or_default().into_iter().unzip();
    let (backends, backend_places) = backends.unwrap_or_default().into_iter().unzip();
    let service = Service {
        name: name.unwrap_or_default(),
        listen,
        mode: Mode::L4,
        forward: forward.unwrap_or(Forward::Nat),
        affinity: reader
            .choice("affinity", &[("none", Affinity::None), ("source", Affinity::Source)]),
        idle_timeout: reader.duration(
            "idle_timeout",
            seconds(1)..=seconds(7 * 86_400),
            seconds(3_600),
        ),
        close_timeout: reader.duration("close_timeout", seconds(1)..=seconds(600), seconds(30)),
        fail_open: reader.flag("fail_open", true),
        reset_on_backend_death: reader.flag("reset_on_backend_death", true),
        health: reader
            .table("health", &HEALTH)
            .map_or_else(Health::default, |table| health::read(&table)),
        backends,
    };
    ReadService {
        service,
        place: reader.place,
        listen: listen_places,
        backends: backend_places,
        complete,
    }
}

fn mode(reader: &Reader<'_>) {
    let Some(field) = reader.field("mode") else {
        return;
    };
    let Some(mode) = field.choice(&[("l4", "l4"), ("l7", "l7")]) else {
        return;
    };
    if mode == "l7" {
        field.refuse("is not available in this version", r#"write mode = "l4""#);
    }
}

/// `None` if it is there and wrong.
fn forward(reader: &Reader<'_>) -> Option<Forward> {
    match reader.field("forward") {
        None => Some(Forward::Nat),
        Some(field) => {
            field.choice(&[("nat", Forward::Nat), ("dsr", Forward::Dsr), ("ipip", Forward::Ipip)])
        }
    }
}

/// `None` if a listener is wrong or there is none.
fn listeners(reader: &Reader<'_>) -> Option<Vec<(SocketAddr, Place)>> {
    const EXAMPLE: &str = r#"["203.0.113.10:80"]"#;
    let field = reader.required("listen", EXAMPLE)?;
    let elements = field.elements(64, EXAMPLE)?;
    if elements.is_empty() {
        field.refuse("is empty", format!("write e.g. listen = {EXAMPLE}"));
        return None;
    }
    let read: Vec<_> = elements
        .into_iter()
        .map(|element| {
            Some((address::socket_address(&element, r#""203.0.113.10:80""#)?, element.place))
        })
        .collect();
    read.into_iter().collect()
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
