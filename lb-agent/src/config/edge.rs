//! `[edge]`: the host, its interfaces and the sizes of its tables.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;

use super::access::{self, Access, EDGE_ACCESS};
use super::address;
use super::error::Problems;
use super::reader::{Field, Reader, Section};
use super::sidecar::{self, SIDECAR, Sidecar};
use super::unique::Unique;
use lb_common::abi::MAX_SOURCES;

pub(super) static EDGE: Section = Section {
    heading: "[edge]",
    keys: &[
        "name",
        "interfaces",
        "xdp",
        "source_addresses",
        "nat_ports",
        "hash_seed",
        "admin",
        "reset_rate",
        "vip_addresses",
        "drain",
        "tables",
        "sidecar",
        "admin_token_file",
        "admin_hosts",
        "zone",
        "access",
    ],
};

pub(super) static TABLES: Section = Section {
    heading: "[edge.tables]",
    keys: &["flows_ipv4", "flows_ipv6", "handshakes", "preallocate", "services", "backends"],
};

/// The host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Name in logs and metrics: 1 to 63 of `A-Za-z0-9._-`.
    pub name: String,
    /// Interfaces that the XDP program is attached to: at least one, no duplicates, each a name
    /// that Linux accepts. That they exist is not known here.
    pub interfaces: Vec<String>,
    /// How the XDP program is attached.
    pub xdp: XdpMode,
    /// Addresses from which `nat` and the sidecar talk to backends; no duplicates, at most [`MAX_SOURCES`] of an IP
    /// version. Holds one of every
    /// IP version that a `nat` service listens on, and may be empty otherwise.
    pub source_addresses: Vec<IpAddr>,
    /// Source ports that `nat` may use, within 1024 to 60999.
    pub nat_ports: RangeInclusive<u16>,
    /// Seed of the hash that picks backends, 1 to 256 bytes: edges with the same seed and services
    /// pick the same backends.
    pub hash_seed: String,
    /// Where the admin API and the metrics listen.
    pub admin: SocketAddr,
    /// Flows reset per second when a backend dies, 1 to 1,000,000.
    pub reset_rate: u32,
    /// Whether the agent adds VIPs to the host.
    pub vip_addresses: VipAddresses,
    /// Whether the edge gives its l7 clients up, and takes no more.
    pub drain: bool,
    /// Sizes of the BPF tables.
    pub tables: Tables,
    /// The processes that serve l7 services.
    pub sidecar: Sidecar,
    /// The file with the token that allows changes over [`Edge::admin`]; without one they need the Unix socket.
    pub admin_token_file: Option<PathBuf>,
    /// Names, in lower case, by which browsers may call [`Edge::admin`], beside those that nobody else can own.
    pub admin_hosts: Vec<String>,
    /// Where the host stands: 1 to 63 of `A-Za-z0-9._-`.
    pub zone: Option<String>,
    /// Who may send to any service.
    pub access: Access,
}

/// How the XDP program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver; with a warning, generic where the driver refuses.
    Auto,
    /// In the driver, or not at all.
    Native,
    /// In the network stack: every driver can, and every packet costs more.
    Generic,
}

/// Whether the agent adds VIPs to the host's interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VipAddresses {
    /// Those within a subnet of an interface, so that the host answers ARP and neighbour solicitations.
    Auto,
    /// All of them.
    Always,
    /// None: something else (a router's route, a BGP daemon) brings the packets.
    Never,
}

/// Capacities of the BPF tables, in entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    /// IPv4 flow entries, 1,024 to 16,777,216. A `nat` flow takes two.
    pub flows_ipv4: u32,
    /// IPv6 flow entries, 1,024 to 16,777,216. A `nat` flow takes two.
    pub flows_ipv6: u32,
    /// Handshakes under way, 256 to 4,194,304.
    pub handshakes: u32,
    /// Whether the flow tables take their memory at start (fast) or as they fill (small when idle).
    pub preallocate: bool,
    /// Services of `mode = "l4"`, 1 to 1,024.
    pub services: u32,
    /// Backends of all of them together, 1 to 16,384.
    pub backends: u32,
}

/// An edge, and whether its source addresses are known for certain.
pub(super) struct ReadEdge {
    pub edge: Edge,
    /// False if a source address could not be read: conclusions from the others would mislead.
    pub sources_complete: bool,
    /// Whether `sidecar.cookie_keys` is there, be it right or wrong.
    pub keys_written: bool,
}

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> ReadEdge {
    let name = reader.required("name", r#""edge-1""#);
    let seed = reader.required("hash_seed", r#""same on every edge""#);
    let sidecar = reader.table_or_empty("sidecar", &SIDECAR);
    let (source_addresses, sources_complete) = source_addresses(reader, problems);
    let edge = Edge {
        name: name
            .and_then(|field| address::name(&field, "._-", r#""edge-1""#))
            .unwrap_or_default(),
        interfaces: interfaces(reader, problems),
        xdp: reader.choice(
            "xdp",
            &[("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)],
        ),
        source_addresses,
        nat_ports: reader
            .field("nat_ports")
            .and_then(|field| nat_ports(&field))
            .unwrap_or(1024..=60999),
        hash_seed: seed
            .and_then(|field| address::text(&field, 256, r#""same on every edge""#))
            .unwrap_or_default(),
        admin: admin(reader, problems),
        reset_rate: reader.integer("reset_rate", 1..=1_000_000, 1_000),
        vip_addresses: reader.choice(
            "vip_addresses",
            &[
                ("auto", VipAddresses::Auto),
                ("always", VipAddresses::Always),
                ("never", VipAddresses::Never),
            ],
        ),
        drain: reader.flag("drain", false),
        tables: tables(&reader.table_or_empty("tables", &TABLES)),
        sidecar: sidecar::read(&sidecar),
        admin_token_file: reader
            .field("admin_token_file")
            .and_then(|field| address::absolute_path(&field, r#""/etc/sluice/admin.token""#)),
        admin_hosts: admin_hosts(reader, problems),
        zone: reader.field("zone").and_then(|field| address::name(&field, "._-", r#""rack-1""#)),
        access: access::read(&reader.table_or_empty("access", &EDGE_ACCESS), problems),
    };
    let keys_written = sidecar.field("cookie_keys").is_some();
    ReadEdge { edge, sources_complete, keys_written }
}

fn tables(reader: &Reader<'_>) -> Tables {
    Tables {
        flows_ipv4: reader.integer("flows_ipv4", 1_024..=16_777_216, 1_048_576),
        flows_ipv6: reader.integer("flows_ipv6", 1_024..=16_777_216, 262_144),
        handshakes: reader.integer("handshakes", 256..=4_194_304, 65_536),
        preallocate: reader.flag("preallocate", true),
        services: reader.integer("services", 1..=1_024, 64),
        backends: reader.integer("backends", 1..=16_384, 4_096),
    }
}

fn interfaces(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#"["eth0"]"#;
    let Some(field) = reader.required("interfaces", EXAMPLE) else {
        return Vec::new();
    };
    let Some(elements) = field.elements(64, EXAMPLE) else {
        return Vec::new();
    };
    if elements.is_empty() {
        field.refuse("is empty", format!("name at least one, e.g. {EXAMPLE}"));
    }
    let mut unique = Unique::new(problems);
    let names = elements.iter().filter_map(|element| {
        let name = element.string(EXAMPLE)?;
        if !is_interface_name(name) {
            let remedy = "write 1 to 15 bytes without spaces, / and :, e.g. \"eth0\"";
            element.refuse("is not an interface name", remedy);
            return None;
        }
        unique.insert(name.to_owned(), &element.place, "remove it").then(|| name.to_owned())
    });
    names.collect()
}

/// What Linux's `dev_valid_name` accepts.
fn is_interface_name(name: &str) -> bool {
    let valid = |byte: u8| !byte.is_ascii_whitespace() && !matches!(byte, b'/' | b':' | 0 | 0x0b);
    (1..16).contains(&name.len()) && name != "." && name != ".." && name.bytes().all(valid)
}

fn source_addresses(reader: &Reader<'_>, problems: &Problems<'_>) -> (Vec<IpAddr>, bool) {
    const EXAMPLE: &str = r#""10.2.0.1""#;
    let Some(field) = reader.field("source_addresses") else {
        return (Vec::new(), true);
    };
    let Some(elements) = field.elements(2 * MAX_SOURCES, r#"["10.2.0.1"]"#) else {
        return (Vec::new(), false);
    };
    let mut unique = Unique::new(problems);
    let read: Vec<Option<IpAddr>> =
        elements.iter().map(|element| address::ip_address(element, EXAMPLE)).collect();
    let complete = read.iter().all(Option::is_some);
    let places = elements.iter().map(|element| &element.place);
    let addresses = read.into_iter().zip(places).filter_map(|(ip, place)| Some((ip?, place)));
    let addresses: Vec<_> =
        addresses.filter(|(ip, place)| unique.insert(*ip, place, "remove it")).collect();
    for v4 in [true, false] {
        let mut same = addresses.iter().filter(|(ip, _)| ip.is_ipv4() == v4);
        if let Some((ip, place)) = same.nth(MAX_SOURCES) {
            let version = address::family(*ip);
            let what =
                format!("is one more than the {MAX_SOURCES} {version} addresses that nat can use");
            problems.error(place, what, "remove it");
        }
    }
    (addresses.into_iter().map(|(ip, _)| ip).collect(), complete)
}

/// Ports from 61000 on are left to the agent's own connections (health checks, the sidecar), and those
/// below 1024 to the host's services.
fn nat_ports(field: &Field<'_>) -> Option<RangeInclusive<u16>> {
    const REMEDY: &str = r#"write lowest-highest within 1024 to 60999, e.g. "1024-60999""#;
    let text = field.string(r#""1024-60999""#)?;
    let port =
        |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<u16>().ok())?;
    let Some((low, high)) = text.split_once('-').and_then(|(low, high)| port(low).zip(port(high)))
    else {
        field.refuse("is not a range of ports", REMEDY);
        return None;
    };
    if low > high {
        field.refuse("ends before it begins", format!("write \"{high}-{low}\""));
        return None;
    }
    if low < 1024 || high > 60999 {
        field.refuse("leaves the ports for nat", REMEDY);
        return None;
    }
    Some(low..=high)
}

fn admin(reader: &Reader<'_>, problems: &Problems<'_>) -> SocketAddr {
    const EXAMPLE: &str = r#""127.0.0.1:9900""#;
    let default = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 9900);
    let Some(field) = reader.field("admin") else {
        return default;
    };
    let Some(address) = address::any_socket_address(&field, EXAMPLE) else {
        return default;
    };
    if !address.ip().to_canonical().is_loopback() {
        let what = "is not a loopback address: whoever reaches it controls the edge";
        problems.warn(&field.place, what, format!("write {EXAMPLE}, or let a firewall guard it"));
    }
    address
}

fn admin_hosts(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#""edge-1.example.com""#;
    let Some(field) = reader.field("admin_hosts") else {
        return Vec::new();
    };
    let elements = field.elements(16, r#"["edge-1.example.com"]"#).unwrap_or_default();
    let mut unique = Unique::new(problems);
    let names = elements.iter().filter_map(|element| {
        let name = element.string(EXAMPLE)?.to_ascii_lowercase();
        if !is_host_name(&name) {
            let remedy = format!("write a name without a port and a scheme, e.g. {EXAMPLE}");
            element.refuse("is not a host name", remedy);
            return None;
        }
        unique.insert(name.clone(), &element.place, "remove it").then_some(name)
    });
    names.collect()
}

/// RFC 1123, section 2.1, and underscores, which some networks have.
fn is_host_name(name: &str) -> bool {
    let label = |label: &str| address::is_name(label, "_-") && !label.starts_with('-');
    name.len() <= 253 && name.split('.').all(label)
}
