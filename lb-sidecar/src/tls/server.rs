//! How clients are served: from a service's settings to rustls's.

use std::{collections::HashMap, fmt, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    CommonState, HandshakeKind, ProtocolVersion, RootCertStore, ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::{
    Client, Info, handshake,
    handshake::{Asked, Known},
    subject::subject,
    tickets::Tickets,
};
use crate::settings::{Certificate, ClientAuth, TicketKey, Tls, TlsVersion, UnknownSni};

/// Tickets that a client gets with each full handshake of TLS 1.3: it has one connection, and comes back with one.
const TICKETS: usize = 1;

/// Makes what clients of this service are served by. An error says what is wrong with its certificates, never a secret.
pub fn config(service: &str, tls: &Tls, keys: &[TicketKey]) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(ring::default_provider());
    let versions = match tls.min_version {
        TlsVersion::Tls12 => &[&TLS13, &TLS12][..],
        TlsVersion::Tls13 => &[&TLS13],
    };
    let names = Names::new(tls, &provider)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)?;
    let builder = match &tls.client_auth {
        None => builder.with_no_client_auth(),
        Some(auth) => builder.with_client_cert_verifier(verifier(auth, provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(names));
    config.alpn_protocols = tls.alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = Arc::new(Tickets::new(service, tls, keys));
    config.send_tls13_tickets = TICKETS;
    // What a handshake costs in bytes is paid by whoever asks; the client may say less.
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

fn verifier(
    auth: &ClientAuth,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(auth.ca.as_bytes()) {
        roots.add(certificate?)?;
    }
    ensure!(!roots.is_empty(), "has no certificate");
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let builder = if auth.required { builder } else { builder.allow_unauthenticated() };
    Ok(builder.build()?)
}

/// A certificate's chain and its key, which belong together.
pub fn certified(certificate: &Certificate, provider: &CryptoProvider) -> Result<CertifiedKey> {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .context("the certificate is not PEM")?;
    ensure!(!chain.is_empty(), "the certificate is not PEM");
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes())
        .map_err(|_| anyhow::anyhow!("the key is not a private key in PEM"))?;
    let key = CertifiedKey::from_der(chain, key, provider)
        .context("certificate and key do not belong together")?;
    Ok(CertifiedKey { ocsp: certificate.ocsp.clone(), ..key })
}

/// Who is served with which certificate.
struct Names {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
    refuse: bool,
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Names").finish_non_exhaustive()
    }
}

impl Names {
    fn new(tls: &Tls, provider: &CryptoProvider) -> Result<Self> {
        let (mut exact, mut wildcards) = (HashMap::new(), HashMap::new());
        let mut first = None;
        for certificate in &tls.certificates {
            let key = Arc::new(certified(certificate, provider)?);
            for name in &certificate.names {
                let name = name.to_ascii_lowercase();
                // Of several with one name the first one counts.
                match name.strip_prefix("*.") {
                    Some(parent) => {
                        wildcards.entry(parent.to_owned()).or_insert_with(|| key.clone())
                    }
                    None => exact.entry(name).or_insert_with(|| key.clone()),
                };
            }
            first.get_or_insert(key);
        }
        let first = first.context("there is no certificate")?;
        Ok(Self { exact, wildcards, first, refuse: tls.unknown_sni == UnknownSni::Refuse })
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        self.exact.get(&name).or_else(|| self.wildcards.get(name.split_once('.')?.1))
    }
}

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name();
        let (known, chosen) = match name.and_then(|name| self.find(name)) {
            Some(found) => (Known::Here, Some(found)),
            None if self.refuse => (Known::Refused, None),
            None => (Known::ByDefault, Some(&self.first)),
        };
        handshake::note(Asked { name: name.map(Into::into), known });
        chosen.cloned()
    }
}

/// What has been agreed on with a client that asked for `name`.
pub fn info(session: &CommonState, name: Option<Box<str>>) -> Info {
    let version = match session.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        _ => "TLSv1.2",
    };
    let suite = session.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str());
    let leaf = session.peer_certificates().and_then(|chain| chain.first());
    Info {
        version,
        cipher: suite.unwrap_or_default(),
        name,
        alpn: session.alpn_protocol().map(Into::into),
        client: leaf.map(|leaf| Client { subject: subject(leaf).map(Into::into) }),
        resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}
