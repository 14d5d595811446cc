//! How backends are spoken to by TLS: from a service's settings to rustls's.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result, ensure};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};

use super::Anyone;
use crate::settings::BackendTls;

/// Makes what backends of a service are spoken to by. An error says what is wrong with the certificates, never a secret.
pub fn client_config(tls: &BackendTls) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(ring::default_provider());
    let anyone = Anyone::of(&provider);
    let builder =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match tls.verify {
        false => builder.dangerous().with_custom_certificate_verifier(Arc::new(anyone)),
        true => {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(tls.ca.as_bytes()) {
                // A system's bundle may have some that nobody understands any more.
                _ = roots.add(certificate.context("ca")?);
            }
            ensure!(!roots.is_empty(), "ca: no certificate in PEM");
            builder.with_root_certificates(roots)
        }
    };
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => {
            let chain = CertificateDer::pem_slice_iter(chain.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .context("certificate: not PEM")?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|_| anyhow::anyhow!("key: not a private key in PEM"))?;
            builder
                .with_client_auth_cert(chain, key)
                .context("certificate and key do not belong together")?
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The name to ask for and to expect: the one that is told, or the backend's address.
pub fn server_name(tls: &BackendTls, address: IpAddr) -> Option<ServerName<'static>> {
    match &tls.server_name {
        Some(name) => ServerName::try_from(name.clone()).ok(),
        None => Some(ServerName::from(address)),
    }
}
