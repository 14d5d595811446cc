//! The configuration file: read, checked, every error at once.
//!
//! [`parse`] is pure: text in, a [`Config`] out in which every default is applied and every promise of
//! its documentation holds. It knows nothing of the kernel, of interfaces that exist or of backends that
//! answer. What may stand in the file is in `docs/config.md`; a test holds that page to this module.

mod access;
mod address;
mod affinity;
mod backend;
mod duration;
mod edge;
mod error;
mod forwarded;
mod health;
mod http;
mod l7;
mod limits;
mod nearest;
mod outlier;
mod passthrough;
mod pool;
mod pools;
mod proxy_protocol;
mod reader;
mod route;
mod service;
mod share;
mod sidecar;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod token;
mod unique;
mod zones;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml_edit::Document;

use error::Problems;
use reader::{Reader, Section};

pub use access::Access;
pub use backend::{Asked, Backend};
pub use edge::{Edge, Tables, VipAddresses, XdpMode};
pub use error::{ConfigErrors, Problem, Warning};
pub use health::{Health, HttpProbe, Probe, Target, TlsProbe, Verify};
pub use l7::{Drain, L7};
pub use outlier::Outlier;
pub use service::{Affinity, Forward, Mode, Service};
pub use share::Share;
pub use sidecar::{AccessLog, Sidecar};
pub use status::StatusSet;
pub use tls::{BackendTls, CertificateFiles, ClientAuth, Tls};
pub use zones::Zones;

pub(crate) use address::{is_name, unusable};
pub(crate) use duration::parse as parse_duration;
pub(crate) use nearest::nearest;

/// A configuration that can be put to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The host.
    pub edge: Edge,
    /// At least one, in the order of the file.
    pub services: Vec<Service>,
}

impl Config {
    /// The services of `mode = "l4"`, which are all that the data plane knows.
    pub fn l4(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| service.l7().is_none())
    }

    /// The services of `mode = "l7"`, which the sidecar serves.
    pub fn l7(&self) -> impl Iterator<Item = &Service> {
        self.services.iter().filter(|service| service.l7().is_some())
    }
}

/// The largest file that is read, in bytes (16 MiB).
pub const MOST_BYTES: u64 = 16 << 20;

/// Keys with what is not for everybody who can see the status of an edge: the seed makes what stands in cookies, and the
/// hash that picks backends; headers may hold what backends know the edge by.
pub(crate) const SECRETS: [&str; 3] = ["hash_seed", "request_headers", "response_headers"];

static ROOT: Section = Section { heading: "the top level", keys: &["edge", "service"] };

/// Every kind of table that the file may hold.
static SECTIONS: [&Section; 29] = [
    &edge::EDGE,
    &edge::TABLES,
    &sidecar::SIDECAR,
    &service::SERVICE,
    &affinity::AFFINITY,
    &http::HTTP,
    &forwarded::FORWARDED,
    &l7::DRAIN,
    &outlier::OUTLIER,
    &zones::ZONES,
    &health::HEALTH,
    &backend::BACKEND,
    &pools::POOL,
    &route::ROUTE,
    &route::HEADER,
    &route::QUERY,
    &route::REDIRECT,
    &route::ANSWER,
    &route::REQUEST_HEADERS,
    &route::RESPONSE_HEADERS,
    &access::EDGE_ACCESS,
    &access::SERVICE_ACCESS,
    &tls::TLS,
    &tls::CERTIFICATES,
    &tls::BACKEND_TLS,
    &limits::LIMITS,
    &proxy_protocol::PROXY_PROTOCOL,
    &passthrough::PASSTHROUGH,
    &passthrough::ROUTE,
];

/// Reads and checks a configuration file; warnings go to the log.
pub fn load(path: impl AsRef<Path>) -> Result<Config, ConfigErrors> {
    let path = path.as_ref();
    let (config, warnings) = parse(&path.display().to_string(), &read(path)?)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// The text of a configuration file, for [`parse`].
pub fn read(path: impl AsRef<Path>) -> Result<String, ConfigErrors> {
    let path = path.as_ref();
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes)).map_err(
        |error| {
            let remedy = "name a file that this user may read".to_owned();
            ConfigErrors::of_file(&name, format!("cannot be read: {error}"), remedy)
        },
    )?;
    if bytes.len() as u64 > MOST_BYTES {
        let what = format!("is larger than {} MiB", MOST_BYTES >> 20);
        return Err(ConfigErrors::of_file(&name, what, "name a configuration file".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        let what = "the text is not UTF-8".to_owned();
        ConfigErrors::at_line(&name, line, String::new(), what, "save the file as UTF-8".to_owned())
    })
}

/// Checks the text of a configuration file. `file_name` is what messages call it.
pub fn parse(file_name: &str, text: &str) -> Result<(Config, Vec<Warning>), ConfigErrors> {
    let problems = Problems::new(file_name, text);
    let document = Document::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| problems.line_at(span.start));
        let value = problems.line_text(line);
        let remedy = error.message().lines().collect::<Vec<_>>().join(", ");
        ConfigErrors::at_line(file_name, line, value, "is not valid TOML".to_owned(), remedy)
    })?;
    let root = Reader::root(&problems, document.as_table(), &ROOT);
    let edge = edge::read(&root.table_or_empty("edge", &edge::EDGE), &problems);
    let services = service::read(&root, &problems);
    pool::check(&edge, &services, &problems);
    let warnings = problems.finish()?;
    let services = services.into_iter().map(|read| read.service).collect();
    Ok((Config { edge: edge.edge, services }, warnings))
}
