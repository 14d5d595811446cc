//! What a service of `mode = "l7"` has and one of `mode = "l4"` has not.
//!
//! Where the sidecar takes a part as it stands here, its own type is used.

use std::time::Duration;

use lb_sidecar::settings::{
    Affinity, Balance, Forwarded, Http, Limits, Passthrough, Pool, ProxyProtocol, Route,
};

use super::affinity;
use super::error::Problems;
use super::forwarded;
use super::http;
use super::limits;
use super::outlier::{self, Outlier};
use super::passthrough;
use super::pools::ReadPool;
use super::proxy_protocol;
use super::reader::{Reader, Section};
use super::route;
use super::share::Share;
use super::tls::{self, BackendTls, Tls};
use super::token::token;
use super::unique::Unique;

pub(super) static DRAIN: Section =
    Section { heading: "[service.drain]", keys: &["deadline", "rate"] };

/// How requests and what they upgrade to are treated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct L7 {
    /// What keeps a client on its backend. Of the two with a counterpart in `mode = "l4"`, the one that is written.
    pub affinity: Affinity,
    /// Who gets a client that belongs to nobody.
    pub balance: Balance,
    /// Protocols that a client may upgrade to, in lower case; at most 16, no duplicates.
    pub upgrades: Vec<String>,
    /// Limits and timeouts, [`Service::idle_timeout`](super::Service::idle_timeout) among them.
    pub http: Http,
    /// What backends are told about clients.
    pub forwarded: Forwarded,
    /// How a backend that drains, or an edge, loses its clients.
    pub drain: Drain,
    /// Whether XDP takes upgraded connections over where it can. A service without keeps those that it has taken.
    pub splice: bool,
    /// Share of the connections that the access log tells of.
    pub access_log: Share,
    /// Beside the default one; names are unique.
    pub pools: Vec<Pool>,
    /// The first that matches decides; names are unique.
    pub routes: Vec<Route>,
    /// Who says who clients are, and who is told.
    pub proxy_protocol: ProxyProtocol,
    /// Of the service, whatever the number of workers.
    pub limits: Limits,
    /// When backends are ejected; none: never.
    pub outlier: Option<Outlier>,
    /// TLS with clients, if they come by it.
    pub tls: Option<Tls>,
    /// TLS with backends.
    pub backend_tls: Option<BackendTls>,
    /// Whether every request is sent on to `https`.
    pub redirect_https: bool,
    /// Where TLS goes that is passed on unread; then none of it is about requests.
    pub passthrough: Option<Passthrough>,
}

/// How a backend that drains, or an edge, loses its clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// How long clients that belong to the backend, or are connected to the edge, may stay: 0 (not at all) to 7 d.
    pub deadline: Duration,
    /// Relayed connections closed each second, by the whole edge, 1 to 100,000: of a backend after the deadline, of an
    /// edge before it.
    pub rate: u32,
}

/// Reads the rest of an l7 service. `idle_timeout` is the service's, and so are the pools.
pub(super) fn read(
    reader: &Reader<'_>,
    idle_timeout: Duration,
    pools: Vec<ReadPool>,
    problems: &Problems<'_>,
) -> L7 {
    let passthrough = passthrough::read(reader, &pools, problems);
    let routes = match &passthrough {
        Some(_) => Vec::new(),
        None => route::read(reader, &pools, problems),
    };
    let balance = balance(reader).unwrap_or(Balance::LeastConnections);
    let pools = pools
        .into_iter()
        .map(|pool| Pool { name: pool.name, balance: pool.balance.unwrap_or(balance) });
    let tls = reader.table("tls", &tls::TLS).map(|table| tls::read(&table, problems));
    let redirect_https = reader.choice("redirect", &[("off", false), ("https", true)]);
    if redirect_https
        && tls.is_some()
        && let Some(field) = reader.field("redirect")
    {
        let remedy = "write it in a service of its own, without tls";
        field.refuse("would send clients round in circles", remedy);
    }
    if redirect_https
        && reader.field("route").is_some()
        && let Some(field) = reader.field("redirect")
    {
        let remedy = "remove it, and let the last route have redirect = { scheme = \"https\", status = 308 }";
        field.refuse("leaves the routes no request", remedy);
    }
    let http = reader.table_or_empty("http", &http::HTTP);
    let limits = reader.table_or_empty("limits", &limits::LIMITS);
    let outlier = reader.table("outlier", &outlier::OUTLIER);
    let mut affinity = affinity::read(reader, tls.is_some());
    if passthrough.is_some() {
        passthrough::refuse(&http, &passthrough::IN_HTTP);
        passthrough::refuse(&limits, &passthrough::IN_LIMITS);
        outlier.iter().for_each(|table| passthrough::refuse(table, &passthrough::IN_OUTLIER));
        if !matches!(affinity, Affinity::None | Affinity::Source)
            && let Some(field) = reader.field("affinity")
        {
            let remedy = r#"write "source" or "none""#;
            field.refuse("is for requests, and with passthrough none is read", remedy);
            affinity = Affinity::None;
        }
    }
    L7 {
        affinity,
        balance,
        upgrades: upgrades(reader, problems),
        http: http::read(&http, idle_timeout),
        forwarded: forwarded::read(
            &reader.table_or_empty("forwarded", &forwarded::FORWARDED),
            problems,
        ),
        drain: drain(&reader.table_or_empty("drain", &DRAIN)),
        splice: reader.choice("splice", &[("auto", true), ("off", false)]),
        access_log: reader
            .field("access_log")
            .and_then(|field| field.share("1.0"))
            .unwrap_or(Share::ALL),
        pools: pools.collect(),
        routes,
        proxy_protocol: proxy_protocol::read(
            &reader.table_or_empty("proxy_protocol", &proxy_protocol::PROXY_PROTOCOL),
            problems,
        ),
        limits: limits::read(&limits),
        outlier: outlier.map(|table| outlier::read(&table)),
        tls,
        backend_tls: reader
            .table("backend_tls", &tls::BACKEND_TLS)
            .map(|table| tls::read_backend(&table)),
        redirect_https,
        passthrough,
    }
}

/// Of a service, or of one of its pools.
pub(super) fn balance(reader: &Reader<'_>) -> Option<Balance> {
    const CHOICES: [(&str, Balance); 3] = [
        ("least-connections", Balance::LeastConnections),
        ("round-robin", Balance::RoundRobin),
        ("maglev", Balance::Maglev),
    ];
    reader.field("balance").and_then(|field| field.choice(&CHOICES))
}

fn upgrades(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#""websocket""#;
    let Some(field) = reader.field("upgrades") else {
        return vec!["websocket".to_owned()];
    };
    let Some(elements) = field.elements(16, r#"["websocket"]"#) else {
        return Vec::new();
    };
    let mut unique = Unique::new(problems);
    let read = elements.iter().filter_map(|element| {
        let protocol = token(element, "a protocol", EXAMPLE)?.to_ascii_lowercase();
        if protocol == "h2c" {
            let what = "would carry requests past the sidecar, unread";
            element.refuse(what, "remove it");
            return None;
        }
        unique.insert(protocol.clone(), &element.place, "remove it").then_some(protocol)
    });
    read.collect()
}

fn drain(reader: &Reader<'_>) -> Drain {
    let days = |n: u64| Duration::from_secs(n * 86_400);
    Drain {
        deadline: reader.duration("deadline", Duration::ZERO..=days(7), Duration::from_secs(300)),
        rate: reader.integer("rate", 1..=100_000, 100),
    }
}
