//! What a worker is told. Checked by whoever sends it; every value is in the range that its documentation names.

mod passthrough;
mod routing;

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use serde::{Deserialize, Serialize};

pub use passthrough::{Passthrough, SniRoute};
pub use routing::{
    Action, Answer, Conditions, DEFAULT_POOL, FieldRule, HeaderChanges, NO_ROUTE, PathRule, Pool,
    Redirect, Route, Share, ValueRule,
};

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The edge's name, for the access log.
    pub edge: String,
    /// Addresses to connect to backends from, in turn; none of an IP version: the kernel's choice.
    pub source_addresses: Vec<IpAddr>,
    /// Seed of the Maglev rings, the same on every edge with the same configuration.
    pub hash_seed: u64,
    /// Keys of the cookies: the first one signs, all of them are accepted.
    pub cookie_keys: Vec<CookieKey>,
    /// Services of `mode = "l7"`; each listener in one of them.
    pub services: Vec<Service>,
    /// Keys of the session tickets: the first one seals, all of them are accepted. None: no session is taken up again.
    pub ticket_keys: Vec<TicketKey>,
}

/// A secret that signs cookies.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CookieKey {
    /// 1 to 16 of `A-Za-z0-9_-`; stands in the cookie.
    pub id: String,
    /// At least 32 bytes, in base64.
    pub secret: String,
}

impl std::fmt::Debug for CookieKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CookieKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A secret that session tickets are sealed with.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKey {
    /// 1 to 16 of `A-Za-z0-9_-`.
    pub id: String,
    /// At least 32 bytes, in base64.
    pub secret: String,
}

impl std::fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TicketKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Listeners and the backends behind them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub affinity: Affinity,
    pub balance: Balance,
    /// Whether all backends count as up when all are down.
    pub fail_open: bool,
    /// Protocols that a client may upgrade to, in lower case: `websocket`.
    pub upgrades: Vec<String>,
    pub http: Http,
    pub forwarded: Forwarded,
    pub drain: Drain,
    /// Whether upgraded connections are offered to be spliced, see [`crate::splice`].
    pub splice: bool,
    /// Share of the connections whose access log lines are written, 0 to 1.
    pub log_sample: f64,
    /// Of all pools.
    pub backends: Vec<Backend>,
    /// Pools beside the default one.
    #[serde(default)]
    pub pools: Vec<Pool>,
    /// In order; what matches none goes to the default pool.
    #[serde(default)]
    pub routes: Vec<Route>,
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    #[serde(default)]
    pub limits: Limits,
    /// TLS with clients; without it they come in plain.
    pub tls: Option<Tls>,
    /// TLS with the backends.
    pub backend_tls: Option<BackendTls>,
    /// Whether every request is sent on to `https`.
    pub redirect_https: bool,
    /// Connections are passed on by what their ClientHello says, and no more of them is read: nothing here that is
    /// about HTTP or TLS counts.
    #[serde(default)]
    pub passthrough: Option<Passthrough>,
}

/// TLS with backends.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTls {
    /// Whether the backend's certificate must be valid.
    pub verify: bool,
    /// In PEM: whose certificates are accepted. At least one if `verify`.
    pub ca: String,
    /// The name that is asked for and expected; none: the backend's address.
    pub server_name: Option<String>,
    /// Certificate and key, in PEM, that backends are shown if they ask.
    pub client: Option<(String, String)>,
}

impl std::fmt::Debug for BackendTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendTls")
            .field("verify", &self.verify)
            .field("server_name", &self.server_name)
            .finish_non_exhaustive()
    }
}

/// TLS with clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tls {
    /// At least one. The first one is for clients that ask for no name, or for one that nobody has.
    pub certificates: Vec<Certificate>,
    pub unknown_sni: UnknownSni,
    pub min_version: TlsVersion,
    /// Protocols that clients may choose (RFC 7301), the best one first.
    pub alpn: Vec<String>,
    /// From accept to the end of the handshake.
    pub handshake_timeout: Duration,
    pub client_auth: Option<ClientAuth>,
}

impl Default for Tls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            unknown_sni: UnknownSni::Default,
            min_version: TlsVersion::Tls12,
            alpn: vec!["http/1.1".to_owned()],
            handshake_timeout: Duration::from_secs(10),
            client_auth: None,
        }
    }
}

/// What becomes of clients that ask for a name that no certificate has, or for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownSni {
    /// They get the first certificate.
    Default,
    /// The handshake ends (RFC 6066, section 3: `unrecognized_name`).
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TlsVersion {
    Tls12,
    Tls13,
}

/// A certificate and its key, which belong together.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// DNS names that it is for, `*.` before some.
    pub names: Vec<String>,
    /// In PEM: the certificate, and those that lead to its root.
    pub chain: String,
    /// In PEM.
    pub key: String,
    /// The answer of its authority's OCSP responder, in DER.
    pub ocsp: Option<Vec<u8>>,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientAuth {
    /// In PEM: whose certificates are accepted.
    pub ca: String,
    /// Whether a client without one is refused.
    pub required: bool,
    /// The request header that has the subject. What clients send in it themselves is removed.
    pub header: Option<String>,
}

/// What keeps a client on its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    None,
    /// The client's address, by the Maglev ring.
    Source,
    /// A signed cookie of the sidecar's own.
    Cookie(Cookie),
    /// The value of one of the application's cookies, by the ring.
    AppCookie {
        name: String,
    },
    /// The value of a request header, by the ring.
    Header {
        name: String,
    },
    /// The value of a parameter of the query, by the ring.
    Query {
        name: String,
    },
}

/// The sidecar's own cookie and its attributes (RFC 6265, section 4.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cookie {
    pub name: String,
    /// How long it holds, at least a second; `None` for the browser's session.
    pub ttl: Option<Duration>,
    pub path: String,
    pub domain: Option<String>,
    pub secure: bool,
    pub http_only: bool,
    pub same_site: Option<SameSite>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SameSite {
    Strict,
    Lax,
    None,
}

/// Who gets a client that belongs to nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
    /// Whoever has the fewest live connections for its weight.
    LeastConnections,
    /// By the hash of the client's address and port.
    Maglev,
}

/// Limits and timeouts of a service's HTTP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// From the first byte of a head (or from accept, for the first one) to its end.
    pub head_timeout: Duration,
    /// Between two reads of a request's body.
    pub body_timeout: Duration,
    /// Until a backend has accepted a connection.
    pub connect_timeout: Duration,
    /// From the end of a request to the head of its response, and between two reads of the response's body.
    pub response_timeout: Duration,
    /// How long a client connection may wait for its next request.
    pub keep_alive: Duration,
    /// How long an upgraded connection may be silent in both directions.
    pub idle_timeout: Duration,
    /// Largest request head, in bytes.
    pub head_bytes: u32,
    /// Further backends that are tried when a connect or handshake fails.
    pub retries: u32,
    /// Idle connections kept to each backend.
    pub pool: u32,
    /// TCP keepalive: after how long a silent peer is probed; zero for never.
    pub tcp_keepalive: Duration,
    /// TCP_USER_TIMEOUT (RFC 5482): how long sent data may stay unacknowledged; zero for the kernel's default.
    pub tcp_user_timeout: Duration,
    /// Whether a client may begin with HTTP/2 on a listener without TLS (RFC 9113, section 3.3).
    pub h2c: bool,
    /// Streams that a client of HTTP/2 may have open on a connection.
    pub max_streams: u32,
}

/// Headers that tell backends about clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    pub mode: ForwardedMode,
    /// From whom such headers are believed, address and prefix length: others' are replaced in any mode.
    pub trusted: Vec<(IpAddr, u8)>,
    /// The header that carries a request's id, kept from trusted sources and made otherwise.
    pub request_id: Option<String>,
}

/// What becomes of `X-Forwarded-For`, `-Proto`, `-Port` and `-Host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardedMode {
    /// The client's address is added to the list; the others are set where they are missing.
    Append,
    /// All are set from this connection.
    Replace,
    /// They pass as they are, and none is added.
    Keep,
}

/// How proxies in front and backends say and learn who a client is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyProtocol {
    /// Sources that must begin each connection with a header, address and prefix length; nobody else may. None: nobody
    /// is asked for one.
    pub accept: Vec<(IpAddr, u8)>,
    /// What connections to backends begin with.
    pub send: SendProxy,
}

/// Version of the PROXY protocol that backends are spoken to with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SendProxy {
    #[default]
    Off,
    V1,
    V2,
}

/// How much there may be; 0 is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Client connections of the service, over all workers, spliced ones included.
    pub connections: u32,
    /// New connections of the service at this worker in a second; more wait in the backlog.
    pub handshakes_per_second: u32,
    /// Connections of a source at this worker.
    pub connections_per_source: u32,
    /// New connections of a source at this worker in a second.
    pub handshakes_per_second_per_source: u32,
    /// So many of them may come at once.
    pub handshake_burst: u32,
    /// Bits of an IPv4 address that make a source, at most 32.
    pub source_prefix_ipv4: u8,
    /// Bits of an IPv6 address that make a source, at most 128.
    pub source_prefix_ipv6: u8,
    /// Requests and upgraded connections that a backend has at a time, over all workers.
    pub connections_per_backend: u32,
    /// Requests that wait at this worker for a backend that has so many.
    pub queue: u32,
    pub queue_timeout: Duration,
    /// Bytes of bodies and upgraded connections in a second, for each client connection and direction.
    pub bytes_per_second: u32,
    /// Largest body of a request, in bytes.
    pub body_bytes: u32,
}

/// How relayed connections are taken from a backend that drains, or from an edge that does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drain {
    /// Relayed connections closed each second by one worker.
    pub rate: u32,
}

/// One server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    /// Stands for it in cookies: 16 hexadecimal digits made from the service's name and its own, the same on every
    /// edge, and another after it was renamed.
    pub id: String,
    pub address: SocketAddr,
    /// Share of new clients, slow start included.
    pub weight: u32,
    pub state: State,
    /// As in [`Share::pool`].
    #[serde(default)]
    pub pool: u16,
}

/// Which clients a backend gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// All, by its weight; with weight 0 only those that belong to it.
    Up,
    /// None.
    Down,
    /// Those that belong to it, and who finds nobody else: backends that are nearer to the edge get the others.
    Spare,
    /// All, as if it were up: it is down, and so are too many others.
    Forced,
    /// Only those that belong to it, until the deadline in milliseconds of Unix time; then none, and what is relayed is
    /// closed at [`Drain::rate`].
    Draining { until: u64 },
}
