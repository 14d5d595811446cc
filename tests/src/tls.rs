//! Certificates of a site: an authority of its own, files that an edge serves with, and clients that trust it.

mod front;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};

use crate::owner::unique_name;

pub use front::Front;

/// Whom clients ask for.
pub const NAME: &str = "chat.test";

/// The files of one certificate.
#[derive(Clone, Debug)]
pub struct Files {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Files {
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { certificate: directory.join("chat.pem"), key: directory.join("chat.key") }
    }
}

/// An authority.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Not that of what it signs, which would look signed by itself; nor another one's.
        let name = unique_name("authority");
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The key of that.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Signs a new certificate for [`NAME`] and further names or addresses, and saves it and its key with renames, as tools
    /// do that renew them.
    pub fn issue(&self, files: &Files, more: &[&str]) -> Result<()> {
        let names = [&[NAME], more].concat();
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        self.save(files, &CertificateParams::new(names)?)
    }

    /// [`Authority::issue`] with a certificate that is beyond its end.
    pub fn issue_expired(&self, files: &Files) -> Result<()> {
        let mut params = CertificateParams::new([NAME.to_owned()])?;
        params.not_after = date_time_ymd(2020, 1, 1);
        self.save(files, &params)
    }

    fn save(&self, files: &Files, params: &CertificateParams) -> Result<()> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        for (path, text) in
            [(&files.key, key.serialize_pem()), (&files.certificate, certificate.pem())]
        {
            let new = path.with_extension("new");
            fs::write(&new, text)?;
            fs::set_permissions(&new, fs::Permissions::from_mode(0o600))?;
            fs::rename(&new, path)?;
        }
        Ok(())
    }

    /// A client that trusts nobody else.
    pub fn client(&self) -> Result<Arc<ClientConfig>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes())?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Arc::new(config))
    }
}

/// What clients encrypt with.
#[must_use]
pub fn provider() -> CryptoProvider {
    rustls::crypto::ring::default_provider()
}

/// What clients expect in the certificate.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::try_from(NAME).expect("a DNS name")
}
