//! `[[service]]`: listeners, how packets reach the backends, and the backends.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use lb_sidecar::settings::DEFAULT_POOL;

use super::access::{self, Access, SERVICE_ACCESS};
use super::address;
use super::backend::{self, Backend, Known};
use super::error::{Place, Problems};
use super::health::{self, HEALTH, Health};
use super::l7::{self, L7};
use super::pools::{self, ReadPools};
use super::reader::{Reader, Section};
use super::unique::Unique;
use super::zones::{self, ZONES, Zones};

pub(super) static SERVICE: Section = Section {
    heading: "[[service]]",
    keys: &[
        "name",
        "listen",
        "mode",
        "forward",
        "affinity",
        "balance",
        "idle_timeout",
        "close_timeout",
        "fail_open",
        "reset_on_backend_death",
        "upgrades",
        "splice",
        "access_log",
        "http",
        "forwarded",
        "drain",
        "health",
        "backend",
        "pool",
        "route",
        "outlier",
        "panic_threshold",
        "zones",
        "access",
        "tls",
        "backend_tls",
        "redirect",
        "proxy_protocol",
        "limits",
        "passthrough",
    ],
};

const CLOSE_TIMEOUT: Duration = seconds(30);

const L4_ONLY: [&str; 2] = ["forward", "reset_on_backend_death"];
pub(super) const L7_ONLY: [&str; 16] = [
    "balance",
    "upgrades",
    "splice",
    "access_log",
    "http",
    "forwarded",
    "drain",
    "pool",
    "route",
    "outlier",
    "tls",
    "backend_tls",
    "redirect",
    "proxy_protocol",
    "limits",
    "passthrough",
];

/// Listeners with their pool of backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Unique name: 1 to 63 of `A-Za-z0-9._-`.
    pub name: String,
    /// Where clients connect: 1 to 64 unicast addresses, none of them in another service.
    pub listen: Vec<SocketAddr>,
    /// Whether connections or requests are balanced.
    pub mode: Mode,
    /// l4: how packets reach the backends.
    pub forward: Forward,
    /// l4: what decides the backend of a new connection. See [`L7::affinity`].
    pub affinity: Affinity,
    /// How long a flow (l7: an upgraded connection) may be silent before both ends are closed, 1 s to 7 d.
    pub idle_timeout: Duration,
    /// l4: how long a flow is kept after FIN both ways or RST, 1 s to 10 min.
    pub close_timeout: Duration,
    /// Whether all backends get traffic when all are down.
    pub fail_open: bool,
    /// l4: whether the flows of a backend that dies are reset, at [`Edge::reset_rate`](super::Edge::reset_rate).
    pub reset_on_backend_death: bool,
    /// How backends are checked.
    pub health: Health,
    /// Of all pools, those of the default one first: at least one in each; names and addresses are unique in the
    /// service.
    pub backends: Vec<Backend>,
    /// Percent of the pool's weight: with less of it up, all backends get traffic; 0 to 100, and 0 without `fail_open`.
    pub panic_threshold: u32,
    /// Whether backends of the edge's own zone are preferred; only if the edge has a zone.
    pub zones: Option<Zones>,
    /// Who may send to it, of those whom the edge admits.
    pub access: Access,
}

/// What is balanced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// TCP connections, by XDP alone.
    L4,
    /// Requests, by the sidecar.
    L7(Box<L7>),
}

/// [`Mode`] as it is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum ModeKind {
    L4,
    L7,
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
    /// The backends that a listener of this service can use, at least one: all of an l7 service, else see
    /// [`Forward::carries`].
    pub fn pool(&self, listener: SocketAddr) -> impl Iterator<Item = &Backend> {
        self.backends.iter().filter(move |backend| {
            self.l7().is_some() || self.forward.carries(listener.ip(), backend.address.ip())
        })
    }

    /// The number of a pool, as backends have it.
    #[must_use]
    pub fn pool_number(&self, name: &str) -> Option<u16> {
        self.pool_names().position(|it| it == name).and_then(|it| u16::try_from(it).ok())
    }

    /// The names of its pools, by their numbers.
    pub fn pool_names(&self) -> impl Iterator<Item = &str> {
        let further = self.l7().into_iter().flat_map(|l7| &l7.pools);
        std::iter::once(DEFAULT_POOL).chain(further.map(|pool| pool.name.as_str()))
    }

    /// The name of a pool, where there are several: else nobody calls it by a name.
    #[must_use]
    pub fn pool_name(&self, number: u16) -> Option<&str> {
        let several = self.l7().is_some_and(|l7| !l7.pools.is_empty());
        self.pool_names().nth(number.into()).filter(|_| several)
    }

    /// What makes it an l7 service, if it is one.
    #[must_use]
    pub fn l7(&self) -> Option<&L7> {
        match &self.mode {
            Mode::L4 => None,
            Mode::L7(l7) => Some(l7),
        }
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
    /// The place of its affinity.
    pub affinity: Place,
    /// The places of its further pools.
    pub pools: Vec<Place>,
    /// The place of its zones, if it says anything of them.
    pub zones: Option<Place>,
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
    let mode = mode(&reader);
    if let Some(mode) = mode {
        // And reads them no further.
        refuse_keys_of_other_modes(&reader, mode);
    }
    let is_l7 = mode == Some(ModeKind::L7);
    let forward = if is_l7 { Some(Forward::Nat) } else { forward(&reader) };
    let listeners = listeners(&reader);
    let mut known = Known::new(problems);
    let backends = backend::read(&reader, 0, mode, &mut known);
    let pools =
        if is_l7 { pools::read(&reader, &mut known, problems) } else { ReadPools::default() };
    let complete = mode.is_some()
        && forward.is_some()
        && listeners.is_some()
        && backends.is_some()
        && pools.complete;
    let pool_places = pools.pools.iter().map(|pool| pool.place.clone()).collect();
    let (listen, listen_places) = listeners.unwrap_or_default().into_iter().unzip();
    let (backends, backend_places) =
        backends.unwrap_or_default().into_iter().chain(pools.backends).unzip();
    let idle_timeout =
        reader.duration("idle_timeout", seconds(1)..=seconds(7 * 86_400), seconds(3_600));
    let (mode, affinity) = match mode {
        Some(ModeKind::L4) => (Mode::L4, affinity(&reader)),
        Some(ModeKind::L7) => {
            let l7 = l7::read(&reader, idle_timeout, pools.pools, problems);
            (Mode::L7(Box::new(l7)), Affinity::None)
        }
        // What may stand elsewhere depends on it.
        None => (Mode::L4, Affinity::None),
    };
    let zones = reader.table("zones", &ZONES);
    let service = Service {
        name: name.unwrap_or_default(),
        listen,
        mode,
        forward: forward.unwrap_or(Forward::Nat),
        affinity,
        idle_timeout,
        close_timeout: reader.duration("close_timeout", seconds(1)..=seconds(600), CLOSE_TIMEOUT),
        fail_open: reader.flag("fail_open", true),
        reset_on_backend_death: is_l7 || reader.flag("reset_on_backend_death", true),
        health: reader
            .table("health", &HEALTH)
            .map_or_else(Health::default, |table| health::read(&table)),
        backends,
        panic_threshold: panic_threshold(&reader),
        zones: zones.as_ref().and_then(zones::read),
        access: access::read(&reader.table_or_empty("access", &SERVICE_ACCESS), problems),
    };
    let affinity = reader.field("affinity").map_or_else(|| reader.place.clone(), |it| it.place);
    ReadService {
        service,
        affinity,
        pools: pool_places,
        zones: zones.map(|table| table.place),
        place: reader.place,
        listen: listen_places,
        backends: backend_places,
        complete,
    }
}

/// `None` if it is there and wrong.
fn mode(reader: &Reader<'_>) -> Option<ModeKind> {
    match reader.field("mode") {
        None => Some(ModeKind::L4),
        Some(field) => field.choice(&[("l4", ModeKind::L4), ("l7", ModeKind::L7)]),
    }
}

fn refuse_keys_of_other_modes(reader: &Reader<'_>, mode: ModeKind) {
    let (mode, other, keys) = match mode {
        ModeKind::L4 => ("l4", "l7", &L7_ONLY[..]),
        ModeKind::L7 => ("l7", "l4", &L4_ONLY[..]),
    };
    for field in keys.iter().filter_map(|key| reader.field(key)) {
        if let Some((what, remedy)) = impossible(field.key()) {
            field.refuse(what, remedy);
            continue;
        }
        let remedy = format!("remove it, or write mode = {other:?}");
        field.refuse(format!("is not for mode {mode:?}"), remedy);
    }
}

/// What an l4 service cannot have, and why.
fn impossible(key: &str) -> Option<(&'static str, &'static str)> {
    (key == "proxy_protocol").then_some((
        r#"is not for mode "l4": XDP cannot put bytes into a stream that it does not end"#,
        r#"write mode = "l7", or forward = "dsr" or "ipip", which keep the client's address"#,
    ))
}

/// Of an l4 service.
fn affinity(reader: &Reader<'_>) -> Affinity {
    const CHOICES: [(&str, Affinity); 2] = [("none", Affinity::None), ("source", Affinity::Source)];
    let Some(field) = reader.field("affinity") else {
        return Affinity::None;
    };
    if !field.is_string() || field.string("") == Some("cookie") {
        let remedy = r#"write "none" or "source", or mode = "l7""#;
        field.refuse(r#"is not for mode "l4", which reads no requests"#, remedy);
        return Affinity::None;
    }
    field.choice(&CHOICES).unwrap_or(Affinity::None)
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

fn panic_threshold(reader: &Reader<'_>) -> u32 {
    let percent = reader.integer("panic_threshold", 0..=100, 0);
    if percent > 0
        && !reader.flag("fail_open", true)
        && let Some(field) = reader.field("panic_threshold")
    {
        field.refuse("is without use while fail_open = false", "remove one of the two");
    }
    percent
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
