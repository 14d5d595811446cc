//! Backends that are spoken to by TLS, and plain ports that send clients to TLS.

mod harness;

use std::sync::Arc;

use harness::{tls::Authority, *};
use lb_sidecar::settings::{BackendTls, Certificate, Service};
use rustls::{
    ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// A backend with this certificate; with an authority, it wants one from whoever comes.
fn acceptor(certificate: &Certificate, clients: Option<&Authority>) -> TlsAcceptor {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(authority.roots()), provider)
                .build()
                .unwrap(),
        ),
    };
    let chain = CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    TlsAcceptor::from(Arc::new(builder.with_single_cert(vec![chain], key).unwrap()))
}

async fn head(stream: &mut TlsStream<TcpStream>) -> Option<String> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8(read).unwrap())
}

/// Answers with what it was asked, or upgrades and echoes.
async fn backend(acceptor: TlsAcceptor) -> Server {
    Server::new(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            while let Some(asked) = head(&mut stream).await {
                if field(&asked, "upgrade").is_some() {
                    stream.write_all(format!("{SWITCH}hello").as_bytes()).await.unwrap();
                    let (mut read, mut write) = tokio::io::split(stream);
                    _ = tokio::io::copy(&mut read, &mut write).await;
                    _ = write.shutdown().await;
                    return;
                }
                let name = stream.get_ref().1.server_name().unwrap_or_default().to_owned();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nasked-for: {name}\r\ncontent-length: {}\r\n\r\n{asked}",
                    asked.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await
}

fn told(authority: &Authority) -> BackendTls {
    BackendTls {
        verify: true,
        ca: authority.pem.clone(),
        server_name: Some("chat.internal".into()),
        client: None,
    }
}

fn by(tls: BackendTls) -> impl FnOnce(&mut Service) {
    |service| {
        service.backend_tls = Some(tls);
        service.splice = true;
    }
}

#[test]
fn requests_and_upgrades_go_by_tls() {
    run(|| async {
        let authority = Authority::new();
        let server = backend(acceptor(&authority.server(&["chat.internal"]), None)).await;
        let edge = Edge::new(&[server.address], by(told(&authority)));
        let mut client = edge.connect().await;
        for _ in 0..3 {
            let answer = client.get("/").await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert_eq!(field(&answer, "asked-for"), Some("chat.internal"));
        }
        assert_eq!(edge.count("reused"), 2);

        let mut client = edge.connect().await;
        client.send(ASK).await;
        client.read_until("\r\n\r\nhello").await;
        for n in 0..100 {
            let message = format!("message {n};");
            client.send(&message).await;
            assert_eq!(client.read_until(";").await, message);
        }
        client.0.shutdown().await.unwrap();
        assert_eq!(client.read_to_end().await, "");
        edge.quiet().await;
        assert_eq!(edge.count("splice_tls"), 1);
    });
}

#[test]
fn backends_that_are_not_who_they_should_be_get_nothing() {
    run(|| async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let right = authority.server(&["chat.internal"]);
        for (certificate, label) in [
            (stranger.server(&["chat.internal"]), "backend_tls_untrusted"),
            (authority.server(&["other.internal"]), "backend_tls_untrusted"),
            (authority.expired(&["chat.internal"]), "backend_tls_untrusted"),
        ] {
            let server = backend(acceptor(&certificate, None)).await;
            for ask in [GET, ASK] {
                let edge = Edge::new(&[server.address], by(told(&authority)));
                let mut client = edge.connect().await;
                client.send(ask).await;
                let answer = client.answer().await;
                assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
                assert_eq!(edge.count(label), 1);
            }
            // Whoever does not verify takes it.
            let tls = BackendTls { verify: false, ..told(&authority) };
            let edge = Edge::new(&[server.address], by(tls));
            assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 200 "));
        }
        // One that speaks no TLS, one that is right: the latter is asked in its place.
        let plain = Server::answering(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        let good = backend(acceptor(&right, None)).await;
        let edge = Edge::new(&[plain.address, good.address], |service| {
            by(told(&authority))(service);
            service.http.connect_timeout = std::time::Duration::from_millis(300);
        });
        for n in 0..4 {
            let mut client = edge.connect().await;
            client.send(if n % 2 == 0 { GET } else { ASK }).await;
            let head = client.read_until("\r\n\r\n").await;
            assert!(
                head.starts_with("HTTP/1.1 200 ") || head.starts_with("HTTP/1.1 101 "),
                "{head}"
            );
        }
        assert!(edge.count("retry_connect") > 0);
    });
}

#[test]
fn the_edge_shows_its_certificate_to_backends_that_ask() {
    run(|| async {
        let authority = Authority::new();
        let server =
            backend(acceptor(&authority.server(&["chat.internal"]), Some(&authority))).await;
        let edge = Edge::new(&[server.address], by(told(&authority)));
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 502 "));
        let tls = BackendTls { client: Some(authority.client("edge")), ..told(&authority) };
        let edge = Edge::new(&[server.address], by(tls));
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn without_a_name_the_address_is_expected() {
    run(|| async {
        let authority = Authority::new();
        let server = backend(acceptor(&authority.server(&["127.0.0.1"]), None)).await;
        let tls = BackendTls { server_name: None, ..told(&authority) };
        let edge = Edge::new(&[server.address], by(tls));
        assert!(edge.connect().await.get("/").await.starts_with("HTTP/1.1 200 "));
    });
}

#[test]
fn a_body_that_ends_without_a_word_was_cut_off() {
    run(|| async {
        let authority = Authority::new();
        let acceptor = acceptor(&authority.server(&["chat.internal"]), None);
        for says_end in [true, false] {
            let acceptor = acceptor.clone();
            let server = Server::new(move |stream| {
                let acceptor = acceptor.clone();
                async move {
                    let mut stream = acceptor.accept(stream).await.unwrap();
                    head(&mut stream).await.unwrap();
                    stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nto the end").await.unwrap();
                    if says_end {
                        stream.shutdown().await.unwrap();
                    } else {
                        stream.flush().await.unwrap();
                        stream.into_inner().0.shutdown().await.unwrap();
                    }
                }
            })
            .await;
            let edge = Edge::new(&[server.address], by(told(&authority)));
            let mut client = edge.connect().await;
            client.send(GET).await;
            client.read_until("to the end").await;
            if says_end {
                client.read_until("\r\n0\r\n\r\n").await;
            } else {
                edge.counted("backend_cut", 1).await;
            }
        }
    });
}

#[test]
fn a_plain_port_sends_everybody_to_https() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |service| service.redirect_https = true);
        let mut client = edge.connect().await;
        for (request, to) in [
            ("GET /a?b=c HTTP/1.1\r\nHost: chat.example\r\n\r\n", "https://chat.example/a?b=c"),
            ("HEAD / HTTP/1.1\r\nHost: chat.example:8080\r\n\r\n", "https://chat.example/"),
            ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "https://[2001:db8::1]/"),
            ("GET http://other.example/x HTTP/1.1\r\nHost: a\r\n\r\n", "https://other.example/x"),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "https://a/"),
        ] {
            client.send(request).await;
            let answer = client.answer().await;
            assert!(answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{answer}");
            assert_eq!(field(&answer, "location"), Some(to), "{request}");
        }
        for request in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: \r\n\r\n",
            "GET / HTTP/1.0\r\n\r\n",
        ] {
            let mut client = edge.connect().await;
            client.send(request).await;
            let answer = client.read_to_end().await;
            assert!(answer.contains(" 400 Bad Request\r\n"), "{request}: {answer}");
        }
        let mut client = edge.connect().await;
        client.send("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").await;
        assert!(client.answer().await.starts_with("HTTP/1.1 308 "));
        let mut client = edge.connect().await;
        client.send(ASK).await;
        assert!(client.read_to_end().await.contains("location: https://a/chat"));
        assert_eq!(edge.count("redirected_to_https"), 7);
    });
}
