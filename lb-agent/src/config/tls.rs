//! `[service.tls]` and `[service.backend_tls]`: which files TLS takes, and how it is spoken. What is in the files is not
//! known here.

use std::path::PathBuf;
use std::time::Duration;

use lb_sidecar::settings::{TlsVersion, UnknownSni};

use super::address;
use super::error::Problems;
use super::reader::{Reader, Section};
use super::token::token;
use super::unique::Unique;

pub(super) static TLS: Section = Section {
    heading: "[service.tls]",
    keys: &[
        "certificates",
        "unknown_sni",
        "min_version",
        "alpn",
        "handshake_timeout",
        "expiry_warning",
        "client_ca",
        "client_auth",
        "client_cert_header",
    ],
};

pub(super) static CERTIFICATES: Section =
    Section { heading: "[[service.tls.certificates]]", keys: &["certificate", "key", "ocsp"] };

pub(super) static BACKEND_TLS: Section = Section {
    heading: "[service.backend_tls]",
    keys: &["verify", "ca", "sni", "certificate", "key"],
};

const DAY: Duration = Duration::from_secs(86_400);

/// Headers that a client's subject would take from their meaning.
const TAKEN: [&str; 6] =
    ["connection", "content-length", "cookie", "host", "transfer-encoding", "upgrade"];

/// TLS with clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// 1 to 1,000; the first one is for clients that ask for no name, or for one that nobody has.
    pub certificates: Vec<CertificateFiles>,
    pub unknown_sni: UnknownSni,
    pub min_version: TlsVersion,
    /// Protocols that clients may choose, the best one first; at least one.
    pub alpn: Vec<String>,
    /// From accept to the end of the handshake, 100 ms to 1 h.
    pub handshake_timeout: Duration,
    /// How long before its end a certificate is warned of, 0 to 400 d.
    pub expiry_warning: Duration,
    /// Clients' certificates, if they are asked for.
    pub client_auth: Option<ClientAuth>,
}

/// Absolute paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate, and those that lead to its root, in PEM.
    pub certificate: PathBuf,
    /// Its key, in PEM.
    pub key: PathBuf,
    /// The answer of its authority's OCSP responder, in DER.
    pub ocsp: Option<PathBuf>,
}

/// Clients' certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientAuth {
    /// Absolute path of the authorities' certificates, in PEM.
    pub ca: PathBuf,
    /// Whether a client without one is refused.
    pub required: bool,
    /// The request header for the subject.
    pub header: Option<String>,
}

/// TLS with backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendTls {
    pub verify: bool,
    /// Absolute path of the authorities' certificates, in PEM; none: the system's.
    pub ca: Option<PathBuf>,
    /// The name that is asked for and expected; none: the backend's address.
    pub sni: Option<String>,
    /// Certificate and key that backends are shown.
    pub client: Option<(PathBuf, PathBuf)>,
}

pub(super) fn read(reader: &Reader<'_>, problems: &Problems<'_>) -> Tls {
    let tenth = Duration::from_millis(100);
    let hour = Duration::from_secs(3_600);
    Tls {
        certificates: certificates(reader),
        unknown_sni: reader.choice(
            "unknown_sni",
            &[("default", UnknownSni::Default), ("refuse", UnknownSni::Refuse)],
        ),
        min_version: reader
            .choice("min_version", &[("1.2", TlsVersion::Tls12), ("1.3", TlsVersion::Tls13)]),
        alpn: alpn(reader, problems),
        handshake_timeout: reader.duration(
            "handshake_timeout",
            tenth..=hour,
            Duration::from_secs(10),
        ),
        expiry_warning: reader.duration("expiry_warning", Duration::ZERO..=400 * DAY, 30 * DAY),
        client_auth: client_auth(reader),
    }
}

fn certificates(reader: &Reader<'_>) -> Vec<CertificateFiles> {
    const EXAMPLE: &str =
        r#"[{ certificate = "/etc/sluice/chat.pem", key = "/etc/sluice/chat.key" }]"#;
    if reader.required("certificates", EXAMPLE).is_none() {
        return Vec::new();
    }
    let (number, tables) = reader.tables("certificates", &CERTIFICATES);
    if number == 0 || number > 1_000 {
        let what = if number == 0 { "is empty" } else { "has more than 1000 certificates" };
        reader.refuse("certificates", what, format!("write 1 to 1000, e.g. {EXAMPLE}"));
    }
    let read = tables.into_iter().enumerate().filter_map(|(n, table)| {
        let table = table.named_by(&reader.place, "certificate", n + 1, &["certificate"]);
        let path = |key: &'static str, example: &str| {
            table.required(key, example).and_then(|field| address::absolute_path(&field, example))
        };
        let certificate = path("certificate", r#""/etc/sluice/chat.pem""#);
        let key = path("key", r#""/etc/sluice/chat.key""#);
        let ocsp = table.field("ocsp");
        let ocsp =
            ocsp.and_then(|field| address::absolute_path(&field, r#""/etc/sluice/chat.ocsp""#));
        Some(CertificateFiles { certificate: certificate?, key: key?, ocsp })
    });
    read.collect()
}

fn alpn(reader: &Reader<'_>, problems: &Problems<'_>) -> Vec<String> {
    const EXAMPLE: &str = r#"["h2", "http/1.1"]"#;
    let default = vec!["h2".to_owned(), "http/1.1".to_owned()];
    let Some(field) = reader.field("alpn") else { return default };
    let Some(elements) = field.elements(2, EXAMPLE) else { return default };
    if elements.is_empty() {
        field.refuse("is empty", format!("write e.g. {EXAMPLE}"));
    }
    let mut unique = Unique::new(problems);
    let read = elements.iter().filter_map(|element| {
        let name = element.choice(&[("h2", "h2"), ("http/1.1", "http/1.1")])?;
        unique.insert(name, &element.place, "remove it").then(|| name.to_owned())
    });
    read.collect()
}

fn client_auth(reader: &Reader<'_>) -> Option<ClientAuth> {
    const EXAMPLE: &str = r#""/etc/sluice/clients.pem""#;
    let Some(ca) = reader.field("client_ca") else {
        for key in ["client_auth", "client_cert_header"] {
            if let Some(field) = reader.field(key) {
                let remedy = format!("add e.g. client_ca = {EXAMPLE}");
                field.refuse("needs to know whose certificates are accepted", remedy);
            }
        }
        return None;
    };
    Some(ClientAuth {
        ca: address::absolute_path(&ca, EXAMPLE)?,
        required: reader.choice("client_auth", &[("required", true), ("optional", false)]),
        header: reader.field("client_cert_header").and_then(|field| {
            const EXAMPLE: &str = r#""X-Client-Subject""#;
            let name = token(&field, "a header", EXAMPLE)?;
            if TAKEN.contains(&name.to_ascii_lowercase().as_str()) {
                field.refuse("has another meaning", format!("write e.g. {EXAMPLE}"));
                return None;
            }
            Some(name.to_owned())
        }),
    })
}

pub(super) fn read_backend(reader: &Reader<'_>) -> BackendTls {
    let path = |key: &'static str, example: &str| {
        reader.field(key).and_then(|field| address::absolute_path(&field, example))
    };
    let verify = reader.flag("verify", true);
    if !verify && let Some(field) = reader.field("ca") {
        field.refuse("verifies nothing with verify = false", "remove one of them");
    }
    let certificate = path("certificate", r#""/etc/sluice/edge.pem""#);
    let key = path("key", r#""/etc/sluice/edge.key""#);
    for (one, other, example) in [
        ("certificate", "key", r#""/etc/sluice/edge.key""#),
        ("key", "certificate", r#""/etc/sluice/edge.pem""#),
    ] {
        if let (Some(field), None) = (reader.field(one), reader.field(other)) {
            field.refuse(
                format!("is of no use without {other}"),
                format!("add e.g. {other} = {example}"),
            );
        }
    }
    BackendTls {
        verify,
        ca: path("ca", r#""/etc/sluice/backends.pem""#),
        sni: reader.field("sni").and_then(|field| {
            const EXAMPLE: &str = r#""chat.internal""#;
            let name = field.string(EXAMPLE)?;
            if !address::is_dns_name(name) {
                field.refuse("is not a DNS name", format!("write e.g. {EXAMPLE}"));
                return None;
            }
            Some(name.to_owned())
        }),
        client: certificate.zip(key),
    }
}
