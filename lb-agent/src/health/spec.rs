//! What to check and how often. Plain data: produced from the configuration, read by the runner and the prober.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use hyper::{Uri, header::HeaderValue};
use rustls::pki_types::ServerName;

use super::status_ranges::StatusRanges;

/// Most bytes of a response body, of a response head or of a WebSocket message that a probe takes from a backend.
pub const READ_LIMIT: usize = 64 * 1024;

/// How one backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What a probe does.
    pub kind: Kind,
    /// Time between the starts of two probes: 100 ms to 1 h.
    pub interval: Duration,
    /// From the first SYN to the end of the probe: 1 ms up to `interval`.
    pub timeout: Duration,
    /// Successes in a row that bring a backend from down to up: 1 to 1000.
    pub rise: u32,
    /// Failures in a row that bring a backend down: 1 to 1000.
    pub fall: u32,
    /// A probe may start earlier by up to this share of `interval`, in percent: 0 to 50. It never starts later, so a
    /// dead backend is known within `fall * interval + timeout` at any jitter.
    pub jitter_percent: u8,
    /// Time over which the weight of a backend that came up rises to its full value: 0 (off) to 24 h.
    pub slow_start: Duration,
    /// Port to check, if not the backend's own: 1 to 65535.
    pub port: Option<u16>,
    /// What a connection begins with, if anything is to be said on it: a header of the PROXY protocol.
    pub preamble: Vec<u8>,
}

impl Default for Check {
    /// A TCP connect every 2 s with 1 s to answer; two successes to come up, three failures to go down.
    fn default() -> Self {
        Self {
            kind: Kind::Tcp,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            jitter_percent: 10,
            slow_start: Duration::ZERO,
            port: None,
            preamble: Vec::new(),
        }
    }
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the backend counts as up from the beginning.
    None,
    /// Connect, then close without sending data.
    Tcp,
    /// An HTTP/1.1 `GET` (RFC 9112).
    Http(HttpSpec),
    /// The same over TLS 1.2 or 1.3.
    Https(HttpSpec, TlsSpec),
    /// An upgrade, then a ping and its pong (RFC 6455).
    WebSocket(WebSocketSpec),
}

/// An HTTP request and what its answer must look like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpSpec {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// `Host` header; without it the checked address and port.
    pub host: Option<String>,
    /// Status codes that count as healthy.
    pub status: StatusRanges,
    /// What the first 64 KiB of the body must contain; without it the body is not read.
    pub body: Option<String>,
}

impl Default for HttpSpec {
    fn default() -> Self {
        Self { path: "/".into(), host: None, status: StatusRanges::default(), body: None }
    }
}

/// How far the backend's TLS is trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// Check the certificate's chain, name and dates.
    pub verify: bool,
    /// PEM file of the authorities to trust in place of the system's. Read again when it changes.
    pub ca: Option<PathBuf>,
    /// Name to send (SNI, RFC 6066) and to verify; without it the host of the HTTP check, else the checked IP address.
    pub server_name: Option<String>,
}

impl Default for TlsSpec {
    fn default() -> Self {
        Self { verify: true, ca: None, server_name: None }
    }
}

/// Where a WebSocket is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketSpec {
    /// Path and query, beginning with `/`.
    pub path: String,
    /// `Host` header; without it the checked address and port.
    pub host: Option<String>,
}

impl Default for WebSocketSpec {
    fn default() -> Self {
        Self { path: "/".into(), host: None }
    }
}

impl Check {
    /// The address that is checked for the backend at `backend`.
    #[must_use]
    pub fn address(&self, backend: SocketAddr) -> SocketAddr {
        let mut addr = backend;
        if let Some(port) = self.port {
            addr.set_port(port);
        }
        addr
    }

    /// Everything that is wrong with this check, each with the value and the remedy; empty if it can run.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut demand = |holds: bool, problem: String| {
            if !holds {
                found.push(problem);
            }
        };
        let hour = Duration::from_secs(3600);
        demand(
            (Duration::from_millis(100)..=hour).contains(&self.interval),
            format!("interval {:?}: must be within 100ms and 1h", self.interval),
        );
        demand(
            (Duration::from_millis(1)..=self.interval).contains(&self.timeout),
            format!(
                "timeout {:?}: must be within 1ms and the interval ({:?})",
                self.timeout, self.interval
            ),
        );
        for (name, value) in [("rise", self.rise), ("fall", self.fall)] {
            demand(
                (1..=1000).contains(&value),
                format!("{name} {value}: must be within 1 and 1000"),
            );
        }
        demand(
            self.jitter_percent <= 50,
            format!("jitter {}%: must be at most 50%", self.jitter_percent),
        );
        demand(
            self.slow_start <= 24 * hour,
            format!("slow_start {:?}: must be at most 24h", self.slow_start),
        );
        demand(self.port != Some(0), "port 0: must be within 1 and 65535".into());
        match &self.kind {
            Kind::None | Kind::Tcp => {}
            Kind::Http(http) => found.extend(http.problems()),
            Kind::Https(http, tls) => {
                found.extend(http.problems());
                found.extend(tls.problems());
            }
            Kind::WebSocket(ws) => found.extend(request_problems(&ws.path, ws.host.as_deref())),
        }
        found
    }
}

impl HttpSpec {
    fn problems(&self) -> Vec<String> {
        let mut found = request_problems(&self.path, self.host.as_deref());
        if let Some(body) = &self.body
            && (body.is_empty() || body.len() > READ_LIMIT)
        {
            found.push(format!(
                "body of {} bytes: must be within 1 and {READ_LIMIT} bytes",
                body.len()
            ));
        }
        found
    }
}

impl TlsSpec {
    fn problems(&self) -> Vec<String> {
        match &self.server_name {
            Some(name) if ServerName::try_from(name.as_str()).is_err() => {
                vec![format!("server_name {name:?}: neither a DNS name nor an IP address")]
            }
            _ => Vec::new(),
        }
    }
}

fn request_problems(path: &str, host: Option<&str>) -> Vec<String> {
    let mut found = Vec::new();
    if !path.starts_with('/') || path.contains('#') || path.parse::<Uri>().is_err() {
        found.push(format!(
            "path {path:?}: must begin with / and hold no space, control character or #"
        ));
    }
    if let Some(host) = host
        && (host.is_empty()
            || host.contains(char::is_whitespace)
            || HeaderValue::from_str(host).is_err())
    {
        found.push(format!(
            "host {host:?}: must be a host name or address, with a port where it has one"
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_have_no_problems() {
        for kind in [
            Kind::None,
            Kind::Tcp,
            Kind::Http(HttpSpec::default()),
            Kind::Https(HttpSpec::default(), TlsSpec::default()),
            Kind::WebSocket(WebSocketSpec {
                path: "/chat?room=a%20b".into(),
                host: Some("chat.example:80".into()),
            }),
        ] {
            assert_eq!(Check { kind, ..Check::default() }.problems(), Vec::<String>::new());
        }
    }

    #[test]
    fn every_problem_is_named_with_its_value() {
        let check = Check {
            kind: Kind::Https(
                HttpSpec {
                    path: "no slash".into(),
                    host: Some("a\r\nb".into()),
                    body: Some(String::new()),
                    ..HttpSpec::default()
                },
                TlsSpec { server_name: Some("not a name".into()), ..TlsSpec::default() },
            ),
            interval: Duration::from_millis(10),
            timeout: Duration::from_secs(1),
            rise: 0,
            fall: 1001,
            jitter_percent: 51,
            slow_start: Duration::from_secs(90_000),
            preamble: Vec::new(),
            port: Some(0),
        };
        let problems = check.problems();
        for (problem, begin) in problems.iter().zip([
            "interval 10ms",
            "timeout 1s",
            "rise 0",
            "fall 1001",
            "jitter 51%",
            "slow_start 90000s",
            "port 0",
            "path \"no slash\"",
            "host \"a\\r\\nb\"",
            "body of 0 bytes",
            "server_name \"not a name\"",
        ]) {
            assert!(problem.starts_with(begin), "{problem:?} does not begin with {begin:?}");
        }
        assert_eq!(problems.len(), 11);
    }

    #[test]
    fn the_port_of_the_check_replaces_the_backends() {
        let backend: SocketAddr = "[2001:db8::2]:9000".parse().unwrap();
        assert_eq!(Check::default().address(backend), backend);
        let check = Check { port: Some(8081), ..Check::default() };
        assert_eq!(check.address(backend), "[2001:db8::2]:8081".parse().unwrap());
    }
}
