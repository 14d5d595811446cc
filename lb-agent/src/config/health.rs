//! `[service.health]`: how a backend is asked whether it is well.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::address;
use super::duration;
use super::reader::{Reader, Section, alternatives};
use super::status::{self, StatusSet};

pub(super) static HEALTH: Section = Section {
    heading: "[service.health]",
    keys: &[
        "kind",
        "interval",
        "timeout",
        "rise",
        "fall",
        "jitter",
        "slow_start",
        "port",
        "path",
        "host",
        "status",
        "body",
        "verify",
        "ca",
        "sni",
    ],
};

/// How a backend is asked whether it is well, and what follows from the answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// What is asked.
    pub probe: Probe,
    /// From the start of one probe to the start of the next, 100 ms to 1 h.
    pub interval: Duration,
    /// From the start of a probe until it counts as failed, 10 ms to `interval`.
    pub timeout: Duration,
    /// Successes in a row which bring a backend up, 1 to 100.
    pub rise: u32,
    /// Failures in a row which take a backend down, 1 to 100.
    pub fall: u32,
    /// By how many percent of itself each interval is varied at random, 0 to 50.
    pub jitter_percent: u32,
    /// How long the share of a backend that came up grows to its full weight, 0 (at once) to 1 h.
    pub slow_start: Duration,
    /// The port to ask where it is not the backend's own, 1 to 65535.
    pub port: Option<u16>,
}

/// What a backend is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// Nothing: it counts as well.
    None,
    /// Whether it accepts a TCP connection.
    Tcp,
    /// Whether it answers a GET request as wanted.
    Http(HttpProbe),
    /// The same over TLS.
    Https(HttpProbe, TlsProbe),
    /// Whether it upgrades to WebSocket and answers a ping.
    Websocket(Target),
}

/// Where a request goes within a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Path and query: visible ASCII, begins with `/`.
    pub path: String,
    /// The Host header; `None` for the address and port that are asked.
    pub host: Option<String>,
}

/// A GET request and the answer wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Where the request goes.
    pub target: Target,
    /// Status codes that count as success.
    pub status: StatusSet,
    /// What the body must contain, at most 1,024 bytes; empty where any body will do.
    pub body: String,
}

/// How TLS is spoken with a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsProbe {
    /// How its certificate is judged.
    pub verify: Verify,
    /// The name asked for and expected in the certificate: `sni`, else `host` where that is a name.
    /// `None`: no name is sent, and the certificate must hold the IP address.
    pub server_name: Option<String>,
}

/// How a certificate is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verify {
    /// Not at all.
    No,
    /// By the certificate authorities which the system trusts.
    System,
    /// By the PEM file at this absolute path. That it exists is not known here.
    Ca(PathBuf),
}

impl Health {
    /// Where a backend is asked: at its own address, on `port` if one is set.
    #[must_use]
    pub fn address(&self, backend: SocketAddr) -> SocketAddr {
        SocketAddr::new(backend.ip(), self.port.unwrap_or(backend.port()))
    }
}

/// What a service without a health table gets: a TCP probe with every default.
impl Default for Health {
    fn default() -> Self {
        Self {
            probe: Probe::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter_percent: 10,
            slow_start: Duration::ZERO,
            port: None,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    None,
    Tcp,
    Http,
    Https,
    Websocket,
}

const KINDS: [(&str, Kind); 5] = [
    ("tcp", Kind::Tcp),
    ("http", Kind::Http),
    ("https", Kind::Https),
    ("websocket", Kind::Websocket),
    ("none", Kind::None),
];

/// The kinds of probe that a key is for.
fn kinds_of(key: &str) -> &'static [Kind] {
    match key {
        "kind" => &[Kind::None, Kind::Tcp, Kind::Http, Kind::Https, Kind::Websocket],
        "path" | "host" => &[Kind::Http, Kind::Https, Kind::Websocket],
        "status" | "body" => &[Kind::Http, Kind::Https],
        "verify" | "ca" | "sni" => &[Kind::Https],
        _ => &[Kind::Tcp, Kind::Http, Kind::Https, Kind::Websocket],
    }
}

pub(super) fn read(reader: &Reader<'_>) -> Health {
    let default = Health::default();
    let kind = reader.required("kind", r#""tcp""#).and_then(|field| field.choice(&KINDS));
    if let Some(kind) = kind {
        refuse_keys_of_other_kinds(reader, kind);
    }
    let target = target(reader);
    let http = HttpProbe {
        target: target.clone(),
        status: reader.field("status").and_then(|field| status::read(&field)).unwrap_or_default(),
        body: reader
            .field("body")
            .and_then(|field| address::text(&field, 1_024, r#""ok""#))
            .unwrap_or_default(),
    };
    let tls = tls(reader, target.host.as_deref());
    let interval = reader.duration("interval", milliseconds(100)..=hours(1), default.interval);
    Health {
        probe: match kind.unwrap_or(Kind::None) {
            Kind::None => Probe::None,
            Kind::Tcp => Probe::Tcp,
            Kind::Http => Probe::Http(http),
            Kind::Https => Probe::Https(http, tls),
            Kind::Websocket => Probe::Websocket(target),
        },
        interval,
        timeout: timeout(reader, interval, default.timeout),
        rise: reader.integer("rise", 1..=100, default.rise),
        fall: reader.integer("fall", 1..=100, default.fall),
        jitter_percent: reader.integer("jitter", 0..=50, default.jitter_percent),
        slow_start: reader.duration("slow_start", Duration::ZERO..=hours(1), default.slow_start),
        port: reader
            .field("port")
            .and_then(|field| field.integer(&(1..=65_535), 8080))
            .and_then(|port| u16::try_from(port).ok()),
    }
}

fn refuse_keys_of_other_kinds(reader: &Reader<'_>, kind: Kind) {
    let word = |kind| KINDS.iter().find(|(_, other)| *other == kind).map_or("", |(word, _)| word);
    for key in HEALTH.keys {
        let kinds = kinds_of(key);
        if kinds.contains(&kind) {
            continue;
        }
        if let Some(field) = reader.field(key) {
            let words: Vec<String> =
                kinds.iter().map(|kind| format!("{:?}", word(*kind))).collect();
            let remedy = format!("remove it, or write kind = {}", alternatives(&words));
            field.refuse(format!("is not for kind {:?}", word(kind)), remedy);
        }
    }
}

/// At most the interval, so that the probes of a backend never overlap.
fn timeout(reader: &Reader<'_>, interval: Duration, default: Duration) -> Duration {
    let default = default.min(interval);
    let timeout = reader.duration("timeout", milliseconds(10)..=hours(1), default);
    if timeout > interval
        && let Some(field) = reader.field("timeout")
    {
        let interval = duration::format(interval);
        field.refuse(
            format!("is longer than the interval {interval:?}"),
            format!("write at most {interval:?}"),
        );
    }
    timeout
}

fn target(reader: &Reader<'_>) -> Target {
    let path = reader.field("path").and_then(|field| {
        const EXAMPLE: &str = r#""/health""#;
        let path = field.string(EXAMPLE)?;
        if !path.starts_with('/') || path.len() > 2_048 || !is_visible(path) || path.contains('#') {
            field.refuse(
                "is not a path",
                format!("write /, then visible ASCII without #, e.g. {EXAMPLE}"),
            );
            return None;
        }
        Some(path.to_owned())
    });
    let host = reader.field("host").and_then(|field| {
        const EXAMPLE: &str = r#""chat.example""#;
        let host = field.string(EXAMPLE)?;
        let foreign = |c: char| matches!(c, '/' | '@' | '?' | '#' | '"' | '\\' | ',');
        if host.is_empty() || host.len() > 255 || !is_visible(host) || host.contains(foreign) {
            field.refuse(
                "is not a host",
                format!("write a name or address, with or without a port, e.g. {EXAMPLE}"),
            );
            return None;
        }
        Some(host.to_owned())
    });
    Target { path: path.unwrap_or_else(|| "/".to_owned()), host }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn tls(reader: &Reader<'_>, host: Option<&str>) -> TlsProbe {
    let verify = reader.flag("verify", true);
    let ca = reader.field("ca").and_then(|field| {
        const EXAMPLE: &str = r#""/etc/sluice/ca.pem""#;
        let ca = address::absolute_path(&field, EXAMPLE)?;
        if !verify {
            field.refuse("is without use while verify = false", "remove one of the two");
            return None;
        }
        Some(ca)
    });
    let sni = reader.field("sni").and_then(|field| {
        const EXAMPLE: &str = r#""chat.example""#;
        let name = field.string(EXAMPLE)?;
        if !address::is_dns_name(name) {
            field.refuse("is not a DNS name", format!("write e.g. {EXAMPLE}"));
            return None;
        }
        Some(name.to_owned())
    });
    let host_name = || {
        let host = host?;
        let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
        address::is_dns_name(name).then(|| name.to_owned())
    };
    TlsProbe {
        verify: match (verify, ca) {
            (false, _) => Verify::No,
            (true, None) => Verify::System,
            (true, Some(path)) => Verify::Ca(path),
        },
        server_name: sni.or_else(host_name),
    }
}

const fn milliseconds(n: u64) -> Duration {
    Duration::from_millis(n)
}

const fn hours(n: u64) -> Duration {
    Duration::from_secs(n * 3_600)
}
