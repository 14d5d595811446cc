//! TLS for HTTPS checks: whom to trust, under which name.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use lb_sidecar::tls::Anyone;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::Deadline;
use crate::health::{
    failure::{Failure, Stage},
    spec::{HttpSpec, TlsSpec},
};

/// Largest CA file that is read. The system's bundles are about 200 KiB.
const CA_FILE_LIMIT: u64 = 4 * 1024 * 1024;

/// The TLS configurations in use. To parse a bundle of authorities for each probe would cost more than the probe.
#[derive(Debug, Default)]
pub(super) struct Configs {
    unverified: OnceLock<Arc<ClientConfig>>,
    system: OnceLock<Arc<ClientConfig>>,
    files: Mutex<HashMap<PathBuf, (Stamp, Arc<ClientConfig>)>>,
}

/// Tells whether a file is the one that was read.
type Stamp = (SystemTime, u64);

impl Configs {
    /// The TLS handshake on `stream`.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        http: &HttpSpec,
        tls: &TlsSpec,
        addr: SocketAddr,
        deadline: Deadline,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = server_name(http, tls, addr)?;
        let connector = TlsConnector::from(self.config(tls)?);
        let handshake = deadline.wait(Stage::Tls, connector.connect(name, stream)).await?;
        handshake.map_err(|error| {
            match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                Some(reason) => Failure::Tls(short(reason.to_string())),
                None => Failure::broken(Stage::Tls, &error),
            }
        })
    }

    fn config(&self, tls: &TlsSpec) -> Result<Arc<ClientConfig>, Failure> {
        match (tls.verify, &tls.ca) {
            (false, _) => Ok(Arc::clone(self.unverified.get_or_init(unverified))),
            (true, Some(file)) => self.of_file(file),
            (true, None) => match self.system.get() {
                Some(config) => Ok(Arc::clone(config)),
                None => {
                    let config = trusting(system_roots()?);
                    Ok(Arc::clone(self.system.get_or_init(|| config)))
                }
            },
        }
    }

    fn of_file(&self, file: &Path) -> Result<Arc<ClientConfig>, Failure> {
        let unusable =
            |e: &dyn std::fmt::Display| Failure::Unusable(format!("ca {}: {e}", file.display()));
        let stamp = fs::metadata(file)
            .and_then(|meta| Ok((meta.modified()?, meta.len())))
            .map_err(|e| unusable(&e))?;
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, config)) = files.get(file)
            && *known == stamp
        {
            return Ok(Arc::clone(config));
        }
        if stamp.1 > CA_FILE_LIMIT {
            return Err(unusable(&format_args!(
                "{} bytes, at most {CA_FILE_LIMIT} are read",
                stamp.1
            )));
        }
        let pem = fs::read(file).map_err(|e| unusable(&e))?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            roots.add(certificate.map_err(|e| unusable(&e))?).map_err(|e| unusable(&e))?;
        }
        if roots.is_empty() {
            return Err(unusable(&"no certificate in PEM form"));
        }
        let config = trusting(roots);
        files.insert(file.into(), (stamp, Arc::clone(&config)));
        Ok(config)
    }
}

/// The name to send and to verify: the check's own, else the host of its request, else the address.
fn server_name(
    http: &HttpSpec,
    tls: &TlsSpec,
    addr: SocketAddr,
) -> Result<ServerName<'static>, Failure> {
    let name = match (&tls.server_name, &http.host) {
        (Some(name), _) => name.as_str(),
        (None, Some(host)) => without_port(host),
        (None, None) => return Ok(ServerName::from(addr.ip())),
    };
    ServerName::try_from(name.to_owned()).map_err(|_| {
        Failure::Unusable(format!("server_name {name:?}: neither a DNS name nor an IP address"))
    })
}

/// The host of a `Host` field: `name`, `name:port`, `[v6]` or `[v6]:port`.
fn without_port(host: &str) -> &str {
    match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    }
}

fn system_roots() -> Result<RootCertStore, Failure> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|e| format!(" ({e})")).unwrap_or_default();
        let remedy = "install ca-certificates, or set a ca for the check";
        return Err(Failure::Unusable(format!("no authorities on this system{why}: {remedy}")));
    }
    Ok(roots)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn trusting(roots: RootCertStore) -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    for_probes(config)
}

fn unverified() -> Arc<ClientConfig> {
    let provider = provider();
    let anyone = Arc::new(Anyone::of(&provider));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for TLS 1.2 and 1.3")
        .dangerous()
        .with_custom_certificate_verifier(anyone)
        .with_no_client_auth();
    for_probes(config)
}

fn for_probes(mut config: ClientConfig) -> Arc<ClientConfig> {
    // A resumed session shows no certificate: one that expired meanwhile would go unnoticed.
    config.resumption = Resumption::disabled();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

/// rustls quotes the certificate's names, and those are the backend's to choose.
fn short(text: String) -> String {
    match text.char_indices().nth(300) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_comes_from_the_check_or_the_host_or_the_address() {
        let addr: SocketAddr = "[2001:db8::2]:443".parse().unwrap();
        for (name, host, expected) in [
            (Some("sni.example"), Some("host.example"), "sni.example"),
            (None, Some("host.example:8443"), "host.example"),
            (None, Some("[2001:db8::1]:8443"), "2001:db8::1"),
            (None, Some("10.0.0.1"), "10.0.0.1"),
            (None, None, "2001:db8::2"),
        ] {
            let http = HttpSpec { host: host.map(Into::into), ..HttpSpec::default() };
            let tls = TlsSpec { server_name: name.map(Into::into), ..TlsSpec::default() };
            let found = server_name(&http, &tls, addr).unwrap();
            assert_eq!(found, ServerName::try_from(expected).unwrap());
        }
    }
}
