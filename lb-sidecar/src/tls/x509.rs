//! What certificates say of themselves.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, anyhow, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use x509_parser::{
    asn1_rs::{Any, Enumerated, Sequence},
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::FromDer as _,
};

use super::server::certified;
use crate::settings::Certificate;

/// What a server's certificate is for, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// DNS names, `*.` before some.
    pub names: Vec<String>,
    /// Seconds of Unix time.
    pub not_before: i64,
    pub not_after: i64,
}

/// Reads the first certificate of a chain in PEM, to which the key must belong.
pub fn leaf(chain: &str, key: &str) -> Result<Leaf> {
    let certificate =
        Certificate { names: Vec::new(), chain: chain.to_owned(), key: key.to_owned(), ocsp: None };
    let certified = certified(&certificate, &ring::default_provider())?;
    let first = certified.end_entity_cert().context("the certificate is not PEM")?;
    let (_, parsed) = X509Certificate::from_der(first)
        .map_err(|_| anyhow!("the certificate cannot be understood"))?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|it| &it.value.general_names);
    let names = names.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Ok(Leaf {
        names: names.collect(),
        not_before: parsed.validity().not_before.timestamp(),
        not_after: parsed.validity().not_after.timestamp(),
    })
}

/// Whether a file in PEM has at least one authority, and nothing that is none.
pub fn authorities(pem: &str) -> Result<()> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|_| anyhow!("is not PEM"))?;
        roots.add(certificate).context("has a certificate that cannot be used")?;
    }
    ensure!(!roots.is_empty(), "has no certificate in PEM");
    Ok(())
}

/// Whether a file is a responder's answer in DER, and has what was asked for (`OCSPResponse` in RFC 6960, section 4.2.1).
/// What it says of which certificate is left to the clients.
pub fn ocsp(answer: &[u8]) -> Result<()> {
    let foreign = |_| anyhow!("is not an answer of OCSP in DER");
    let (rest, answer) = Sequence::from_der(answer).map_err(foreign)?;
    let (bytes, status) = Enumerated::from_der(&answer.content).map_err(foreign)?;
    ensure!(rest.is_empty(), "has more behind the answer of OCSP");
    ensure!(status.0 == 0, "says that the responder had no answer (status {})", status.0);
    Any::from_der(bytes).map_err(foreign)?;
    Ok(())
}

/// Certificates as PEM (RFC 7468).
pub fn to_pem<'a>(certificates: impl Iterator<Item = &'a [u8]>) -> String {
    let mut pem = String::new();
    for certificate in certificates {
        let text = STANDARD.encode(certificate);
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        for line in text.as_bytes().chunks(64) {
            _ = writeln!(pem, "{}", String::from_utf8_lossy(line));
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_of_ocsp_is_told_so() {
        let refused = |answer: &[u8]| ocsp(answer).unwrap_err().to_string();
        // Status successful, and responseBytes with nothing in them.
        let good = [0x30, 7, 0x0a, 1, 0, 0xa0, 2, 0x30, 0];
        ocsp(&good).unwrap();
        let foreign = "is not an answer of OCSP in DER";
        for answer in
            [&b""[..], b"-----BEGIN OCSP RESPONSE-----", &good[..8], &[0x30, 3, 0x0a, 1, 0]]
        {
            assert_eq!(refused(answer), foreign, "{answer:?}");
        }
        assert_eq!(refused(&[&good[..], b"\n"].concat()), "has more behind the answer of OCSP");
        let later = refused(&[0x30, 3, 0x0a, 1, 3]);
        assert_eq!(later, "says that the responder had no answer (status 3)");
    }
}
