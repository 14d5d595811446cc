//! What the proxies of a benchmark serve TLS with, and clients that count tickets.

use std::{
    collections::VecDeque,
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::Result;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, NamedGroup, SignatureScheme,
    client::{
        ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};

use crate::{
    owner::OwnedDir,
    tls::{self, Authority, Files},
};

/// One certificate for all proxies: ECDSA with P-256.
pub struct Identity {
    authority: Authority,
    pub files: Files,
    /// Certificate and key in one file, as HAProxy wants them.
    pub together: PathBuf,
    _scratch: OwnedDir,
}

impl Identity {
    pub fn new() -> Result<Self> {
        let scratch = OwnedDir::scratch("bench-tls")?;
        let (authority, files) = (Authority::new()?, Files::new(scratch.path()));
        authority.issue(&files, &[])?;
        let together = scratch.path().join("together.pem");
        let certificate = fs::read_to_string(&files.certificate)?;
        fs::write(&together, certificate + &fs::read_to_string(&files.key)?)?;
        Ok(Self { authority, files, together, _scratch: scratch })
    }

    /// A client that checks everything, and offers one protocol.
    pub fn careful(&self, protocol: &str) -> Result<Arc<ClientConfig>> {
        let mut config = ClientConfig::clone(&*self.authority.client()?);
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        Ok(Arc::new(config))
    }

    /// A client that costs little: it expects this very certificate, and does not verify that it was signed with.
    /// TLS 1.3 with AES-128-GCM and X25519, so that every proxy does the same.
    pub fn quick(&self, protocol: &str, tickets: Arc<Tickets>) -> Result<Arc<ClientConfig>> {
        let mut provider = tls::provider();
        provider.cipher_suites.retain(|it| it.suite() == SUITE);
        provider.kx_groups.retain(|it| it.name() == NamedGroup::X25519);
        let expected = CertificateDer::from_pem_file(&self.files.certificate)?;
        let pinned = Arc::new(Pinned { expected, provider: provider.clone() });
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(pinned)
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        config.resumption = Resumption::store(tickets);
        Ok(Arc::new(config))
    }
}

const SUITE: rustls::CipherSuite = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;

/// Expects one certificate.
#[derive(Debug)]
struct Pinned {
    expected: CertificateDer<'static>,
    provider: CryptoProvider,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *leaf == self.expected {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("another certificate".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2".into()))
    }

    /// Verifying costs more than signing: of two cores it would take most. The careful client has done it.
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if signed.scheme == SignatureScheme::ECDSA_NISTP256_SHA256 {
            Ok(HandshakeSignatureValid::assertion())
        } else {
            Err(Error::General("not signed with ECDSA and P-256".into()))
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Tickets of all clients together. Each is used once.
#[derive(Debug, Default)]
pub struct Tickets {
    come: AtomicU64,
    /// None where clients resume nothing.
    kept: Option<Mutex<VecDeque<Tls13ClientSessionValue>>>,
}

/// More are not kept: the oldest go.
const MOST_TICKETS: usize = 1_000;

impl Tickets {
    /// Clients that get tickets and never use one.
    #[must_use]
    pub fn unused() -> Arc<Self> {
        Arc::default()
    }

    /// Clients that come back with them.
    #[must_use]
    pub fn used() -> Arc<Self> {
        Arc::new(Self { kept: Some(Mutex::default()), ..Self::default() })
    }

    /// How many have come.
    pub fn come(&self) -> u64 {
        self.come.load(Ordering::Relaxed)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, _: ServerName<'static>, _: NamedGroup) {}

    fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, _: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.come.fetch_add(1, Ordering::Relaxed);
        if let Some(kept) = &self.kept {
            let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() == MOST_TICKETS {
                kept.pop_front();
            }
            kept.push_back(ticket);
        }
    }

    fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let kept = self.kept.as_ref()?;
        kept.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}
