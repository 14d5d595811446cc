//! The keys of services with `mode = "l7"`, and of the sidecar that serves them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::millis;
use crate::tls::Files;

/// `[edge.sidecar]`.
#[derive(Clone, Debug)]
pub struct SidecarConfig {
    pub workers: u32,
    /// The edge under test fills these in: they lie in its scratch directory.
    pub cookie_keys: Option<PathBuf>,
    pub access_log: Option<PathBuf>,
}

impl Default for SidecarConfig {
    /// Two workers: enough to see that one is not the other.
    fn default() -> Self {
        Self { workers: 2, cookie_keys: None, access_log: None }
    }
}

impl fmt::Display for SidecarConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[edge.sidecar]\nworkers = {}", self.workers)?;
        for (key, path) in [("cookie_keys", &self.cookie_keys), ("access_log", &self.access_log)] {
            if let Some(path) = path {
                writeln!(f, "{key} = \"{}\"", path.display())?;
            }
        }
        Ok(())
    }
}

/// What a service with `mode = "l7"` has of its own.
#[derive(Clone, Debug)]
pub struct L7Config {
    /// Whether a cookie keeps clients on their backends.
    pub sticky: bool,
    pub balance: &'static str,
    /// Whether all of its connections are in the access log, or none.
    pub logged: bool,
    /// Whether upgraded connections may be spliced, as they may if nothing is said.
    pub spliced: bool,
    pub drain: DrainConfig,
    /// With which certificate clients are served by TLS.
    pub tls: Option<Files>,
}

impl L7Config {
    /// The name of the cookie.
    pub const COOKIE: &str = "sluice";
}

impl Default for L7Config {
    fn default() -> Self {
        Self {
            sticky: true,
            balance: "round-robin",
            logged: true,
            spliced: true,
            drain: DrainConfig::default(),
            tls: None,
        }
    }
}

/// `[service.drain]`.
#[derive(Clone, Copy, Debug)]
pub struct DrainConfig {
    /// How long a draining backend keeps who belongs to it.
    pub deadline: Duration,
    /// Relayed connections closed each second after that.
    pub rate: u32,
}

impl Default for DrainConfig {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(3600), rate: 100 }
    }
}

impl fmt::Display for L7Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "mode = \"l7\"\nbalance = \"{}\"", self.balance)?;
        writeln!(f, "access_log = {:.1}", f64::from(u8::from(self.logged)))?;
        let cookie = Self::COOKIE;
        if self.sticky {
            writeln!(f, "affinity = {{ kind = \"cookie\", name = \"{cookie}\", ttl = \"1d\" }}")?;
        } else {
            writeln!(f, "affinity = \"none\"")?;
        }
        if !self.spliced {
            writeln!(f, "splice = \"off\"")?;
        }
        if let Some(Files { certificate, key }) = &self.tls {
            let (certificate, key) = (certificate.display(), key.display());
            let files = format!("{{ certificate = \"{certificate}\", key = \"{key}\" }}");
            writeln!(f, "tls = {{ certificates = [{files}] }}")?;
        }
        let DrainConfig { deadline, rate } = self.drain;
        writeln!(f, "drain = {{ deadline = {}, rate = {rate} }}", millis(deadline))
    }
}
