//! HTTPS against a rustls server with certificates made here.

use std::{fs, path::PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::health::{Prober, TlsSpec};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, name);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// An HTTPS server whose certificate names `names`; it answers with the server name that the client sent.
async fn https(authority: &Authority, names: &[&str]) -> SocketAddr {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(names).unwrap().signed_by(&key, authority).unwrap();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut tls) = acceptor.accept(stream).await else {
                return;
            };
            let name = tls.get_ref().1.server_name().unwrap_or("none").to_owned();
            let mut read = Vec::new();
            while !read.ends_with(b"\r\n\r\n") {
                let Ok(byte) = tls.read_u8().await else {
                    return;
                };
                read.push(byte);
            }
            let answer =
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nserver name: {name};");
            let _ = tls.write_all(answer.as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    })
    .await
}

/// A PEM file which is removed at the end of the test.
struct PemFile(PathBuf);

impl PemFile {
    fn new(test: &str, pem: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("sluice-health-{test}-{}.pem", std::process::id()));
        fs::write(&path, pem).unwrap();
        Self(path)
    }

    fn spec(&self) -> TlsSpec {
        TlsSpec { ca: Some(self.0.clone()), ..TlsSpec::default() }
    }
}

impl Drop for PemFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn kind(host: Option<&str>, body: &str, tls: TlsSpec) -> Kind {
    let http =
        HttpSpec { host: host.map(Into::into), body: Some(body.into()), ..HttpSpec::default() };
    Kind::Https(http, tls)
}

#[tokio::test]
async fn a_certificate_of_the_given_authority_is_trusted_for_its_names() {
    let authority = authority("sluice test");
    let addr = https(&authority, &["chat.example", "127.0.0.1"]).await;
    let ca = PemFile::new("trusted", &authority.pem());
    let named = |name: &str| TlsSpec { server_name: Some(name.into()), ..ca.spec() };
    for (kind, expected) in [
        (kind(Some("chat.example:443"), "name: chat.example;", ca.spec()), "ok"),
        (kind(None, "name: none;", ca.spec()), "ok"),
        (kind(Some("elsewhere.example"), "name: chat.example;", named("chat.example")), "ok"),
        (
            kind(Some("elsewhere.example"), "", ca.spec()),
            "TLS: invalid peer certificate: certificate not valid for name",
        ),
    ] {
        let found = verdict(kind, addr, PATIENT).await;
        assert!(found.starts_with(expected), "{found}");
    }
}

#[tokio::test]
async fn an_unknown_authority_is_trusted_only_without_verification() {
    let addr = https(&authority("unknown"), &["chat.example"]).await;
    let other = PemFile::new("other", &authority("other").pem());
    let found = verdict(kind(Some("chat.example"), "", other.spec()), addr, PATIENT).await;
    assert_eq!(found, "TLS: invalid peer certificate: UnknownIssuer");
    let anyone = TlsSpec { verify: false, ..TlsSpec::default() };
    assert_eq!(
        run(kind(Some("chat.example"), "name: chat.example;", anyone), addr, PATIENT).await,
        Ok(())
    );
}

/// Needs no authorities on this system: without any, the check is unusable, and that is a failure too.
#[tokio::test]
async fn a_self_signed_certificate_is_not_trusted_by_default() {
    let addr = https(&authority("nobody"), &["chat.example"]).await;
    let failure =
        run(kind(Some("chat.example"), "", TlsSpec::default()), addr, PATIENT).await.unwrap_err();
    let no_authorities =
        failure.is_local() && failure.to_string().contains("no authorities on this system");
    assert!(no_authorities || matches!(failure, Failure::Tls(_)), "{failure}");
}

#[tokio::test]
async fn a_ca_file_is_read_again_when_it_changes() {
    let authority = authority("rotated");
    let addr = https(&authority, &["chat.example"]).await;
    let ca = PemFile::new("rotated", "");
    let check = Check {
        kind: kind(Some("chat.example"), "name", ca.spec()),
        timeout: PATIENT,
        interval: PATIENT,
        ..Check::default()
    };
    let prober = Prober::new(SourcePorts::default());
    let failure = prober.probe(&check, addr).await.unwrap_err();
    assert!(
        failure.is_local() && failure.to_string().ends_with("no certificate in PEM form"),
        "{failure}"
    );
    fs::write(&ca.0, authority.pem()).unwrap();
    assert_eq!(prober.probe(&check, addr).await, Ok(()));
    fs::remove_file(&ca.0).unwrap();
    let failure = prober.probe(&check, addr).await.unwrap_err();
    assert!(failure.is_local() && failure.to_string().contains("No such file"), "{failure}");
}

#[tokio::test]
async fn what_is_no_tls_fails() {
    let anyone = TlsSpec { verify: false, ..TlsSpec::default() };
    let kind = kind(None, "", anyone);
    let plain = server(|mut stream| async move {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        drain(&mut stream).await;
    })
    .await;
    let found = verdict(kind.clone(), plain, PATIENT).await;
    assert!(found.starts_with("TLS: received corrupt message"), "{found}");
    assert_eq!(
        verdict(kind.clone(), hanging("").await, HASTY).await,
        "no TLS handshake within 200ms"
    );
    let closing = server(|mut stream| async move {
        let _ = stream.read_u8().await;
        let _ = stream.shutdown().await;
        drain(&mut stream).await;
    })
    .await;
    assert_eq!(
        verdict(kind, closing, PATIENT).await,
        "connection closed before the end of the TLS handshake"
    );
}
