//! Clients that come by TLS.

mod harness;

use std::{sync::Arc, time::Duration};

use harness::{
    tls::{Authority, connect, ticket_key, tls, try_connect},
    *,
};
use lb_sidecar::settings::{ClientAuth, Service, TlsVersion, UnknownSni};
use rustls::{
    ALL_VERSIONS, ClientConfig, HandshakeKind,
    version::{TLS12, TLS13},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn trusting(authority: &Authority) -> Arc<ClientConfig> {
    Arc::new(authority.trusting(ALL_VERSIONS))
}

async fn to_end(stream: &mut TlsStream<TcpStream>) -> std::io::Result<String> {
    let mut read = String::new();
    tokio::time::timeout(LONG, stream.read_to_string(&mut read)).await.expect("no end")?;
    Ok(read)
}

/// With certificates for `chat.example` and `*.rooms.example`.
fn served(authority: &Authority) -> impl FnOnce(&mut Service) {
    let certificates =
        vec![authority.server(&["chat.example"]), authority.server(&["*.rooms.example"])];
    |service| service.tls = Some(tls(certificates))
}

#[test]
fn requests_by_both_versions_with_all_that_backends_are_told() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], served(&authority));
        for version in [&TLS12, &TLS13] {
            let config = Arc::new(authority.trusting(&[version]));
            let mut client = connect(edge.address, &config, "chat.example").await;
            for _ in 0..2 {
                client.write_all(GET.as_bytes()).await.unwrap();
                let answer = read_until(&mut client, "\r\n\r\n").await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
                let told = read_until(&mut client, "\r\n\r\n").await;
                assert_eq!(field(&told, "x-forwarded-proto"), Some("https"), "{told}");
            }
            let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            client.write_all(last.as_bytes()).await.unwrap();
            to_end(&mut client).await.expect("the end is said before the connection ends");
        }
        assert_eq!((edge.count("tls_handshake"), edge.count("request")), (2, 6));
        edge.quiet().await;
    });
}

#[test]
fn upgrades_are_relayed_and_end_as_they_should() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::upgrading("hello").await;
        let edge = Edge::new(&[server.address], |service| {
            served(&authority)(service);
            service.splice = true;
        });
        for version in [&TLS12, &TLS13] {
            let config = Arc::new(authority.trusting(&[version]));
            let mut client = connect(edge.address, &config, "chat.example").await;
            client.write_all(format!("{ASK}early").as_bytes()).await.unwrap();
            let head = read_until(&mut client, "\r\n\r\n").await;
            assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
            assert_eq!(read_until(&mut client, "early").await, "helloearly");
            for n in 0..100 {
                let message = format!("message {n};");
                client.write_all(message.as_bytes()).await.unwrap();
                assert_eq!(read_until(&mut client, ";").await, message);
            }
            client.shutdown().await.unwrap();
            assert_eq!(to_end(&mut client).await.unwrap(), "");
        }
        edge.quiet().await;
        assert_eq!((edge.count("upgraded"), edge.count("splice_tls")), (2, 2));
    });
}

#[test]
fn much_goes_both_ways_through_a_relay_unharmed() {
    run(|| async {
        const BYTES: usize = 8 << 20;
        let authority = Authority::new();
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let sent: Vec<u8> = (0..BYTES).map(|n| ((n * 31) >> 7) as u8).collect();
        let (mut read, mut write) = tokio::io::split(client);
        let expected = sent.clone();
        let sending = tokio::task::spawn_local(async move {
            for part in sent.chunks(100_003) {
                write.write_all(part).await.unwrap();
            }
            write.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        tokio::time::timeout(6 * LONG, read.read_to_end(&mut got)).await.unwrap().unwrap();
        assert!(got == expected, "{} bytes came", got.len());
        sending.await.unwrap();
        edge.quiet().await;
    });
}

#[test]
fn the_name_chooses_the_certificate() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let config = trusting(&authority);
        for name in ["chat.example", "CHAT.example", "a.rooms.example"] {
            connect(edge.address, &config, name).await;
        }
        // They get the first certificate, and do not like it.
        for name in ["a.b.rooms.example", "rooms.example", "other.example", "127.0.0.1"] {
            let error = try_connect(edge.address, &config, name).await.unwrap_err();
            assert!(error.to_string().contains("certificate"), "{name}: {error}");
        }
        edge.counted("tls_refused", 4).await;
        edge.counted("tls_default_name", 4).await;

        let edge = Edge::new(&[server.address], |service| {
            served(&authority)(service);
            service.tls.as_mut().unwrap().unknown_sni = UnknownSni::Refuse;
        });
        connect(edge.address, &config, "chat.example").await;
        for name in ["other.example", "127.0.0.1"] {
            let error = try_connect(edge.address, &config, name).await.unwrap_err();
            assert!(error.to_string().contains("UnrecognisedName"), "{name}: {error}");
        }
        edge.counted("tls_unknown_name", 2).await;
        assert_eq!(edge.count("tls_default_name"), 0);
        edge.quiet().await;
    });
}

#[test]
fn plain_http_where_tls_is_spoken_and_the_reverse() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let mut client = edge.connect().await;
        client.send(GET).await;
        let answer = client.read_to_end().await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.ends_with("this port speaks TLS: ask for https://"), "{answer}");
        edge.counted("plain_on_tls", 1).await;

        let edge = Edge::new(&[server.address], |_| {});
        let config = trusting(&authority);
        try_connect(edge.address, &config, "chat.example").await.unwrap_err();
        edge.counted("tls_on_plain", 1).await;
        edge.quiet().await;
    });
}

#[test]
fn handshakes_that_come_to_nothing() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], |service| {
            served(&authority)(service);
            let tls = service.tls.as_mut().unwrap();
            tls.min_version = TlsVersion::Tls13;
            tls.handshake_timeout = Duration::from_millis(300);
        });
        let old = Arc::new(authority.trusting(&[&TLS12]));
        let error = try_connect(edge.address, &old, "chat.example").await.unwrap_err();
        assert!(error.to_string().contains("ProtocolVersion"), "{error}");
        edge.counted("tls_incompatible", 1).await;

        let mut other = authority.trusting(ALL_VERSIONS);
        other.alpn_protocols = vec![b"smtp".to_vec()];
        let error = try_connect(edge.address, &Arc::new(other), "chat.example").await.unwrap_err();
        assert!(error.to_string().contains("ApplicationProtocol"), "{error}");
        edge.counted("tls_incompatible", 2).await;

        let mut client = edge.connect().await;
        client.send([0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]).await;
        client.read_to_end().await;
        edge.counted("tls_failed", 1).await;
        for sent in [&[][..], &[0x16, 3, 1, 0x20, 0], &[0xff; 3]] {
            let before = edge.count("tls_timeout");
            let mut client = edge.connect().await;
            client.send(sent).await;
            client.read_to_end().await;
            if sent != [0xff; 3] {
                edge.counted("tls_timeout", before + 1).await;
            }
        }
        let mut client = edge.connect().await;
        client.send([0x16, 3]).await;
        drop(client);
        edge.counted("tls_cut", 1).await;
        edge.quiet().await;
    });
}

#[test]
fn a_session_is_taken_up_again_at_another_edge_with_the_same_keys() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let certificate = authority.server(&["chat.example"]);
        let edges: Vec<Edge> = (0..3)
            .map(|n| {
                let certificates = vec![certificate.clone()];
                let edge = Edge::new(&[server.address], |service| {
                    service.tls = Some(tls(certificates));
                });
                let mut settings = edge.settings.clone();
                let mut key = ticket_key();
                if n == 2 {
                    key.id = "k2".into();
                }
                settings.ticket_keys = vec![key];
                edge.worker.apply(settings);
                edge
            })
            .collect();
        for version in [&TLS12, &TLS13] {
            let config = Arc::new(authority.trusting(&[version]));
            for (edge, kind) in [(0, HandshakeKind::Full), (1, HandshakeKind::Resumed)] {
                let mut client = connect(edges[edge].address, &config, "chat.example").await;
                client.write_all(GET.as_bytes()).await.unwrap();
                read_until(&mut client, "\r\n\r\n").await;
                read_until(&mut client, "\r\n\r\n").await;
                assert_eq!(client.get_ref().1.handshake_kind(), Some(kind));
            }
            let client = connect(edges[2].address, &config, "chat.example").await;
            assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        }
        assert_eq!((edges[0].count("tls_resumed"), edges[1].count("tls_resumed")), (0, 2));
    });
}

#[test]
fn clients_with_certificates() {
    run(|| async {
        let (authority, stranger) = (Authority::new(), Authority::new());
        let server = Server::echo("b").await;
        for required in [false, true] {
            let edge = Edge::new(&[server.address], |service| {
                served(&authority)(service);
                let header = Some("X-Client".to_owned());
                service.tls.as_mut().unwrap().client_auth =
                    Some(ClientAuth { ca: authority.pem.clone(), required, header });
            });
            let lie = "GET / HTTP/1.1\r\nHost: a\r\nX-Client: CN=admin\r\n\r\n";
            let known = Arc::new(authority.trusting_with(&authority.client("alice")));
            let mut client = connect(edge.address, &known, "chat.example").await;
            client.write_all(lie.as_bytes()).await.unwrap();
            read_until(&mut client, "\r\n\r\n").await;
            let told = read_until(&mut client, "\r\n\r\n").await;
            assert_eq!(field(&told, "x-client"), Some("CN=alice"), "{told}");

            // One name that reads like two is told as one, and none so long that it could be taken for another.
            let forged = "bob,OU=Admins\u{200b}";
            for (name, told) in
                [(forged, Some(r"CN=bob\,OU\=Admins\E2\80\8B")), (&"x".repeat(9_000), None)]
            {
                let config = Arc::new(authority.trusting_with(&authority.client(name)));
                let mut client = connect(edge.address, &config, "chat.example").await;
                client.write_all(lie.as_bytes()).await.unwrap();
                read_until(&mut client, "\r\n\r\n").await;
                let head = read_until(&mut client, "\r\n\r\n").await;
                assert_eq!(field(&head, "x-client"), told, "{head}");
            }
            edge.counted("tls_subject_left_out", 1).await;

            let unknown = Arc::new(authority.trusting_with(&stranger.client("mallory")));
            let mut client = connect(edge.address, &unknown, "chat.example").await;
            to_end(&mut client).await.unwrap_err();
            edge.counted("tls_untrusted", 1).await;

            let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
            if required {
                to_end(&mut client).await.unwrap_err();
                edge.counted("tls_untrusted", 2).await;
            } else {
                client.write_all(lie.as_bytes()).await.unwrap();
                read_until(&mut client, "\r\n\r\n").await;
                let told = read_until(&mut client, "\r\n\r\n").await;
                assert_eq!(field(&told, "x-client"), None, "{told}");
            }
        }
    });
}

#[test]
fn other_certificates_are_for_those_who_come_next() {
    run(|| async {
        let (old, new) = (Authority::new(), Authority::new());
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], served(&old));
        let mut client = connect(edge.address, &trusting(&old), "chat.example").await;
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let mut settings = edge.settings.clone();
        served(&new)(&mut settings.services[0]);
        edge.worker.apply(settings);
        client.write_all(b"still here").await.unwrap();
        read_until(&mut client, "still here").await;
        try_connect(edge.address, &trusting(&old), "chat.example").await.unwrap_err();
        connect(edge.address, &trusting(&new), "chat.example").await;
    });
}

#[test]
fn whoever_goes_without_a_word_takes_nobody_with_him() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        // A FIN without a close_notify, as many clients do it.
        let (mut socket, _) = client.into_inner();
        socket.shutdown().await.unwrap();
        let mut rest = Vec::new();
        socket.read_to_end(&mut rest).await.unwrap();
        edge.quiet().await;
    });
}

#[test]
fn records_that_are_not_what_they_should_be_end_the_connection() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::upgrading("").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        client.write_all(ASK.as_bytes()).await.unwrap();
        read_until(&mut client, "\r\n\r\n").await;
        let (mut socket, _) = client.into_inner();
        socket
            .write_all(&[
                23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0,
            ])
            .await
            .unwrap();
        let mut rest = Vec::new();
        _ = tokio::time::timeout(LONG, socket.read_to_end(&mut rest)).await.unwrap();
        edge.quiet().await;
    });
}

/// Truncated, repeated and changed bytes of a real handshake: nothing panics, everybody is closed.
#[test]
fn handshakes_with_changed_bytes_are_refused() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    run(|| async {
        let mut random = StdRng::seed_from_u64(seed);
        let authority = Authority::new();
        let edge = Edge::new(&[nobody()], |service| {
            served(&authority)(service);
            service.tls.as_mut().unwrap().handshake_timeout = Duration::from_millis(100);
        });
        let name = "chat.example".try_into().unwrap();
        let mut hello = Vec::new();
        rustls::ClientConnection::new(trusting(&authority), name)
            .unwrap()
            .write_tls(&mut hello)
            .unwrap();
        for _ in 0..200 {
            let mut bytes = hello.clone();
            for _ in 0..random.random_range(1..4) {
                let at = random.random_range(5..bytes.len());
                match random.random_range(0..3) {
                    0 => bytes[at] ^= 1 << random.random_range(0..8),
                    1 => bytes.truncate(at.max(6)),
                    _ => bytes.extend_from_within(..at),
                }
            }
            let mut client = edge.connect().await;
            client.send_anyway(&bytes).await;
            _ = client.0.shutdown().await;
            client.read_to_end().await;
        }
        edge.quiet().await;
        assert_eq!(edge.count("connection"), 200);
    });
}

/// What `openssl s_client` prints and returns.
async fn openssl(edge: &Edge, arguments: &[&str], input: &str) -> String {
    use std::process::Stdio;
    let mut child = tokio::process::Command::new("openssl")
        .args(["s_client", "-connect", &edge.address.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl");
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = tokio::time::timeout(LONG, child.wait_with_output()).await.unwrap().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn openssl_is_served_or_refused_as_it_should_be() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let edge = Edge::new(&[server.address], served(&authority));
        let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        for (arguments, expected) in [
            (&["-servername", "chat.example", "-tls1_3"][..], "HTTP/1.1 200 OK"),
            (&["-servername", "chat.example", "-tls1_2"], "HTTP/1.1 200 OK"),
            (&["-noservername"], "HTTP/1.1 200 OK"),
            (&["-servername", "nobody.example"], "HTTP/1.1 200 OK"),
            (&["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        ] {
            let said = openssl(&edge, &[arguments, &["-ign_eof"]].concat(), last).await;
            assert!(said.contains(expected), "{arguments:?}: {said}");
        }
        for (arguments, expected, label) in [
            (
                &["-tls1", "-cipher", "ALL:@SECLEVEL=0"][..],
                "alert handshake failure",
                "tls_incompatible",
            ),
            (
                &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"][..],
                "alert handshake failure",
                "tls_incompatible",
            ),
            (&["-tls1_2", "-cipher", "AES128-SHA"], "handshake failure", "tls_incompatible"),
            (&["-alpn", "h2"], "no application protocol", "tls_incompatible"),
        ] {
            let before = edge.count(label);
            let said = openssl(&edge, arguments, "").await;
            assert!(said.contains(expected), "{arguments:?}: {said}");
            edge.counted(label, before + 1).await;
        }
        // A renegotiation is refused, and the connection ends.
        let said = openssl(&edge, &["-tls1_2", "-legacy_renegotiation"], "R\n").await;
        assert!(said.contains("RENEGOTIATING") && said.contains("no renegotiation"), "{said}");
        edge.quiet().await;
    });
}

#[test]
fn an_expired_certificate_is_served_and_clients_say_what_they_think_of_it() {
    run(|| async {
        let authority = Authority::new();
        let server = Server::echo("b").await;
        let certificate = authority.expired(&["chat.example"]);
        let edge =
            Edge::new(&[server.address], |service| service.tls = Some(tls(vec![certificate])));
        let error =
            try_connect(edge.address, &trusting(&authority), "chat.example").await.unwrap_err();
        assert!(error.to_string().contains("expired"), "{error}");
        edge.counted("tls_refused", 1).await;
    });
}
