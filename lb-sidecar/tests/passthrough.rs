//! TLS that is passed on by the name that its ClientHello asks for.

mod harness;

use std::{
    collections::BTreeSet,
    io::{ErrorKind, Read as _},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use harness::{
    tls::{Authority, connect, try_connect},
    *,
};
use lb_sidecar::settings::{
    Affinity, Balance, Passthrough, Pool, SendProxy, Service, Share, SniRoute, State, UnknownSni,
};
use rustls::{
    ALL_VERSIONS, ClientConfig, ClientConnection, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};

/// A server that ends TLS itself: says its name and the client's certificate names, and then sends back what it gets.
async fn served(authority: &Authority, name: &'static str) -> Server {
    let certificate = authority.server(&["chat.example", "*.rooms.example", "other.example"]);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.chain.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"xmpp-client".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Server::new(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            if stream.write_all(format!("{name};").as_bytes()).await.is_err() {
                return;
            }
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await
}

fn route(names: &[&str], alpn: &[&str], pool: u16) -> SniRoute {
    SniRoute {
        name: names[0].trim_start_matches("*.").to_owned(),
        names: names.iter().map(|it| (*it).to_owned()).collect(),
        alpn: alpn.iter().map(|it| (*it).to_owned()).collect(),
        pools: vec![Share { pool, weight: 1 }],
    }
}

/// Passes everything on to the default pool.
fn passing(service: &mut Service) {
    service.passthrough =
        Some(Passthrough { routes: Vec::new(), unknown_sni: UnknownSni::Default });
}

/// Each backend is a pool of its own: `chat.example` has the second, names below `rooms.example` the third.
fn pooled(unknown_sni: UnknownSni) -> impl FnOnce(&mut Service) {
    move |service| {
        for (pool, backend) in (0..).zip(&mut service.backends) {
            backend.pool = pool;
        }
        service.pools = ["chat", "rooms"]
            .map(|name| Pool { name: name.into(), balance: Balance::RoundRobin })
            .into();
        let routes = vec![
            route(&["chat.example"], &[], 1),
            route(&["*.rooms.example", "b.example"], &[], 2),
        ];
        service.passthrough = Some(Passthrough { routes, unknown_sni });
    }
}

async fn three(authority: &Authority) -> [Server; 3] {
    [
        served(authority, "rest").await,
        served(authority, "chat").await,
        served(authority, "rooms").await,
    ]
}

fn trusting(authority: &Authority) -> Arc<ClientConfig> {
    Arc::new(authority.trusting(ALL_VERSIONS))
}

/// What comes up to the next semicolon.
async fn word(stream: &mut TlsStream<TcpStream>) -> String {
    let mut read = Vec::new();
    while !read.ends_with(b";") {
        let byte = timeout(LONG, stream.read_u8()).await.expect("nothing more comes");
        read.push(byte.unwrap_or_else(|it| panic!("{it} after {read:?}")));
    }
    read.pop();
    String::from_utf8(read).unwrap()
}

/// The bytes that a client of this name begins with.
fn hello(authority: &Authority, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = ClientConnection::new(trusting(authority), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// What is answered to these bytes, up to the end of the connection.
async fn answer_to(edge: &Edge, bytes: &[u8]) -> Vec<u8> {
    let mut client = edge.connect().await;
    client.send_anyway(bytes).await;
    let mut read = Vec::new();
    match timeout(LONG, client.0.read_to_end(&mut read)).await {
        Ok(_) => read,
        Err(_) => panic!("the connection does not end after {read:?}"),
    }
}

fn alert(description: u8) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, description]
}

#[test]
fn the_name_chooses_the_pool_and_the_backend_ends_tls() {
    run(|| async {
        let authority = Authority::new();
        let servers = three(&authority).await;
        let edge = Edge::new(&servers.each_ref().map(|it| it.address), pooled(UnknownSni::Default));
        let config = trusting(&authority);
        for (name, expected) in [
            ("chat.example", "chat"),
            ("a.rooms.example", "rooms"),
            ("CHAT.example", "chat"),
            ("other.example", "rest"),
        ] {
            let mut client = connect(edge.address, &config, name).await;
            assert_eq!(word(&mut client).await, expected, "{name}");
            for n in 0..50 {
                client.write_all(format!("message {n};").as_bytes()).await.unwrap();
                assert_eq!(word(&mut client).await, format!("message {n}"));
            }
            client.shutdown().await.unwrap();
            let mut rest = Vec::new();
            // The backend's own close_notify, or this would be an error.
            timeout(LONG, client.read_to_end(&mut rest)).await.expect("no end").unwrap();
            assert_eq!(rest, b"");
        }
        edge.quiet().await;
        assert_eq!((edge.count("passed_through"), edge.count("request")), (4, 0));
        assert_eq!((edge.count("tls_handshake"), edge.count("upgraded")), (0, 0));
        let report = &edge.worker.report().services[0];
        let routes = [("chat.example", 2), ("rooms.example", 1), ("none", 1)];
        assert_eq!(report.routes, routes.map(|(name, n)| (name.to_owned(), n)));
        let picked: Vec<_> = report.backends.iter().map(|it| (it.picked, it.live)).collect();
        assert_eq!(picked, [(1, 0), (2, 0), (1, 0)]);
        assert!(report.backends.iter().all(|it| it.bytes_in > 500 && it.bytes_out > 500));
    });
}

#[test]
fn much_goes_both_ways_unharmed() {
    run(|| async {
        const BYTES: usize = 4 << 20;
        let authority = Authority::new();
        let server = served(&authority, "b").await;
        let edge = Edge::new(&[server.address], passing);
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        word(&mut client).await;
        let sent: Vec<u8> = (0..BYTES).map(|n| (n * 7 + n / 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(client);
        let sending = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut received = Vec::new();
        let receiving = timeout(LONG, read.read_to_end(&mut received));
        let ((), received_all) = tokio::join!(sending, receiving);
        received_all.expect("no end").unwrap();
        assert!(received == sent, "{} of {BYTES} bytes", received.len());
        edge.quiet().await;
    });
}

#[test]
fn a_hello_in_pieces_and_in_many_records_is_passed_on_as_it_came() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let mut read = vec![0; 4096];
            let mut all = Vec::new();
            while let Ok(n @ 1..) = stream.read(&mut read).await {
                all.extend_from_slice(&read[..n]);
            }
            let _ = stream.write_all(&all).await;
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            service.passthrough = Some(Passthrough {
                routes: vec![route(&["chat.example"], &[], 0)],
                unknown_sni: UnknownSni::Refuse,
            });
        });
        let hello = hello(&Authority::new(), "chat.example");
        let record = |part: &[u8]| [&[22, 3, 1, 0, part.len() as u8], part].concat();
        let in_records: Vec<u8> = hello[5..].chunks(40).flat_map(record).collect();
        for bytes in [&hello, &in_records] {
            // Early data follow at once.
            let bytes = [&bytes[..], b"and more"].concat();
            for piece in [1, 3, bytes.len()] {
                let mut client = edge.connect().await;
                for part in bytes.chunks(piece) {
                    client.send(part).await;
                    tokio::task::yield_now().await;
                }
                client.0.shutdown().await.unwrap();
                let mut back = Vec::new();
                timeout(LONG, client.0.read_to_end(&mut back)).await.expect("no end").unwrap();
                assert_eq!(back, bytes, "in pieces of {piece}");
            }
        }
        assert_eq!(edge.count("passed_through"), 6);
        edge.quiet().await;
    });
}

#[test]
fn unknown_names_go_to_the_default_pool_or_nowhere() {
    run(|| async {
        let authority = Authority::new();
        let servers = three(&authority).await;
        let addresses = servers.each_ref().map(|it| it.address);
        let nameless = "127.0.0.1";
        let edge = Edge::new(&addresses, pooled(UnknownSni::Default));
        // The certificate is for no address, which comes to light only when it is there.
        let refused = try_connect(edge.address, &trusting(&authority), nameless).await;
        assert!(refused.unwrap_err().to_string().contains("certificate"), "the backend answered");
        assert_eq!(edge.worker.report().services[0].backends[0].picked, 1);
        assert_eq!(edge.count("tls_default_name"), 1);

        let edge = Edge::new(&addresses, pooled(UnknownSni::Refuse));
        for (n, name) in ["other.example", "example", nameless].into_iter().enumerate() {
            let refused = try_connect(edge.address, &trusting(&authority), name).await;
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("UnrecognisedName"), "{name}: {error}");
            edge.counted("tls_unknown_name", n as u64 + 1).await;
        }
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        assert_eq!(word(&mut client).await, "chat");
        assert_eq!(edge.count("passed_through"), 1);
        let routes = &edge.worker.report().services[0].routes;
        assert_eq!(routes.last(), Some(&("none".to_owned(), 3)));
    });
}

#[test]
fn a_protocol_chooses_as_well() {
    run(|| async {
        let authority = Authority::new();
        let servers = three(&authority).await;
        let edge = Edge::new(&servers.each_ref().map(|it| it.address), |service| {
            pooled(UnknownSni::Default)(service);
            let routes = &mut service.passthrough.as_mut().unwrap().routes;
            routes.insert(0, route(&["chat.example"], &["xmpp-client"], 2));
        });
        for (protocols, expected) in
            [(&[&b"xmpp-client"[..], b"h2"][..], "rooms"), (&[b"h2"], "chat"), (&[], "chat")]
        {
            let mut config = authority.trusting(ALL_VERSIONS);
            config.alpn_protocols = protocols.iter().map(|it| it.to_vec()).collect();
            let mut client = connect(edge.address, &Arc::new(config), "chat.example").await;
            assert_eq!(word(&mut client).await, expected, "{protocols:?}");
        }
    });
}

#[test]
fn what_is_no_hello_has_an_answer_and_a_counter() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |service| {
            passing(service);
            service.http.head_timeout = Duration::from_millis(300);
        });
        let hello = hello(&Authority::new(), "chat.example");
        let endless: Vec<u8> = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xf0][..], &[0; 17_000]].concat();
        let tiny: Vec<u8> = hello[5..].iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]).collect();
        let mut twisted = hello.clone();
        twisted[5] = 2;
        for (what, bytes, expected, counter) in [
            ("garbage", &b"\x00\x01\x02garbage"[..], alert(50), "tls_failed"),
            ("another message", &twisted, alert(50), "tls_failed"),
            ("too large", &endless, alert(50), "tls_hello_too_large"),
            ("too many records", &tiny, alert(50), "tls_hello_too_large"),
            ("nothing", b"", Vec::new(), "tls_timeout"),
            ("the half of it", &hello[..hello.len() / 2], Vec::new(), "tls_timeout"),
            ("nobody behind it", &hello, alert(80), "connect_failed"),
        ] {
            let before = edge.count(counter);
            assert_eq!(answer_to(&edge, bytes).await, expected, "{what}");
            edge.counted(counter, before + 1).await;
        }
        let http = answer_to(&edge, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let http = String::from_utf8(http).unwrap();
        assert!(http.starts_with("HTTP/1.1 400 ") && http.contains("https://"), "{http}");
        edge.counted("plain_on_tls", 1).await;
        let mut gone = edge.connect().await;
        gone.send(&hello[..7]).await;
        drop(gone);
        edge.counted("tls_cut", 1).await;
        edge.quiet().await;
        assert_eq!((edge.count("passed_through"), edge.count("request")), (0, 0));
    });
}

#[test]
fn a_slow_hello_has_its_time_and_no_more() {
    run(|| async {
        let edge = Edge::new(&[nobody()], |service| {
            passing(service);
            service.http.head_timeout = Duration::from_millis(300);
        });
        let hello = hello(&Authority::new(), "chat.example");
        let mut client = edge.connect().await;
        let began = std::time::Instant::now();
        let mut pieces = hello.chunks(1);
        // Each byte in good time, all of them not.
        while edge.count("tls_timeout") == 0 {
            assert!(began.elapsed() < LONG, "it never ends");
            client.send_anyway(pieces.next().expect("it ends before the hello")).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(began.elapsed() >= Duration::from_millis(290), "{:?}", began.elapsed());
        edge.quiet().await;
    });
}

#[test]
fn another_backend_is_tried_and_the_source_decides_where_it_should() {
    run(|| async {
        let authority = Authority::new();
        let servers = [served(&authority, "a").await, served(&authority, "b").await];
        let addresses = [nobody(), servers[0].address, servers[1].address];
        let edge = Edge::new(&addresses, |service| {
            passing(service);
            service.affinity = Affinity::Source;
        });
        let config = trusting(&authority);
        let mut words = BTreeSet::new();
        for _ in 0..8 {
            words.insert(word(&mut connect(edge.address, &config, "chat.example").await).await);
        }
        assert_eq!(words.len(), 1, "one source, one backend: {words:?}");
        assert_eq!(edge.count("passed_through"), 8);

        let edge = Edge::new(&[nobody(), servers[0].address], passing);
        for _ in 0..4 {
            let mut client = connect(edge.address, &config, "chat.example").await;
            assert_eq!(word(&mut client).await, "a");
        }
        assert!(edge.count("retry_connect") >= 2, "{}", edge.count("retry_connect"));
        let failed = edge.worker.report().services[0].backends[0].connects;
        assert!(failed.failures >= 2 && failed.successes == 0, "{failed:?}");
    });
}

#[test]
fn a_proxys_header_names_the_client_and_the_backend_is_told() {
    run(|| async {
        let server = Server::new(|mut stream| async move {
            let mut read = vec![0; 8192];
            let n = stream.read(&mut read).await.unwrap();
            let end = read[..n].windows(2).position(|it| it == b"\r\n").unwrap() + 2;
            stream.write_all(&read[..end]).await.unwrap();
        })
        .await;
        let edge = Edge::new(&[server.address], |service| {
            passing(service);
            service.proxy_protocol.accept = vec![("127.0.0.0".parse().unwrap(), 8)];
            service.proxy_protocol.send = SendProxy::V1;
        });
        let line = "PROXY TCP4 192.0.2.7 203.0.113.10 40001 443\r\n";
        let bytes = [line.as_bytes(), &hello(&Authority::new(), "chat.example")].concat();
        assert_eq!(String::from_utf8_lossy(&answer_to(&edge, &bytes).await), line);
    });
}

#[test]
fn limits_hold_and_a_full_backend_is_waited_for() {
    run(|| async {
        let authority = Authority::new();
        let server = served(&authority, "b").await;
        let edge = Edge::new(&[server.address], |service| {
            passing(service);
            service.limits.connections_per_backend = 1;
            service.limits.queue = 1;
            service.limits.queue_timeout = LONG;
        });
        let config = trusting(&authority);
        let mut first = connect(edge.address, &config, "chat.example").await;
        word(&mut first).await;
        let second = {
            let (address, config) = (edge.address, config.clone());
            tokio::task::spawn_local(async move {
                let mut second = connect(address, &config, "chat.example").await;
                word(&mut second).await
            })
        };
        edge.counted("queued", 1).await;
        let third = try_connect(edge.address, &config, "chat.example").await;
        assert!(third.unwrap_err().to_string().contains("InternalError"));
        edge.counted("backend_full", 1).await;
        drop(first);
        assert_eq!(timeout(LONG, second).await.unwrap().unwrap(), "b");
        edge.quiet().await;

        let edge = Edge::new(&[server.address], |service| {
            passing(service);
            service.limits.connections_per_source = 1;
            service.limits.source_prefix_ipv4 = 32;
        });
        let mut first = connect(edge.address, &config, "chat.example").await;
        word(&mut first).await;
        assert!(try_connect(edge.address, &config, "chat.example").await.is_err());
        edge.counted("source_connections", 1).await;
    });
}

/// Waits for the end of a connection, with or without a RST.
async fn ended(mut client: TlsStream<TcpStream>) {
    let mut rest = Vec::new();
    let read = timeout(LONG, client.read_to_end(&mut rest)).await.expect("it stays");
    if let Err(error) = read {
        let kinds = [ErrorKind::UnexpectedEof, ErrorKind::ConnectionReset];
        assert!(kinds.contains(&error.kind()), "{error}");
    }
}

#[test]
fn a_drain_ends_what_is_passed_on_and_who_has_not_said_anything() {
    run(|| async {
        let authority = Authority::new();
        let server = served(&authority, "b").await;
        let mut edge = Edge::new(&[server.address], passing);
        let mut client = connect(edge.address, &trusting(&authority), "chat.example").await;
        word(&mut client).await;
        edge.settings.services[0].backends[0].state = State::Draining { until: 0 };
        edge.worker.apply(edge.settings.clone());
        edge.worker.tick();
        ended(client).await;
        edge.quiet().await;

        let mut silent = edge.connect().await;
        edge.until(|| edge.worker.report().services[0].connections == 1, String::new).await;
        edge.worker.retire(None);
        assert_eq!(silent.read_to_end().await, "");
        edge.quiet().await;
        assert_eq!(edge.count("tls_timeout"), 0);
    });
}

#[test]
fn other_settings_leave_connections_alone_and_count_on() {
    run(|| async {
        let authority = Authority::new();
        let servers = three(&authority).await;
        let addresses: [SocketAddr; 3] = servers.each_ref().map(|it| it.address);
        let mut edge = Edge::new(&addresses, pooled(UnknownSni::Default));
        let config = trusting(&authority);
        let mut before = connect(edge.address, &config, "chat.example").await;
        assert_eq!(word(&mut before).await, "chat");
        let told = edge.settings.services[0].passthrough.as_mut().unwrap();
        told.routes[0].pools[0].pool = 2;
        edge.worker.apply(edge.settings.clone());
        let mut after = connect(edge.address, &config, "chat.example").await;
        assert_eq!(word(&mut after).await, "rooms");
        before.write_all(b"still here;").await.unwrap();
        assert_eq!(word(&mut before).await, "still here");
        assert_eq!(edge.worker.report().services[0].routes[0], ("chat.example".to_owned(), 2));
    });
}

/// A pool before the one that a client asks for moves its number.
fn insert_pool(service: &mut Service, backend: usize) {
    let pool = Pool { name: "new".into(), balance: Balance::RoundRobin };
    service.pools.insert(0, pool);
    service.backends.iter_mut().filter(|it| it.pool > 0).for_each(|it| it.pool += 1);
    service.backends[backend].pool = 1;
    let routes = &mut service.passthrough.as_mut().unwrap().routes;
    routes.iter_mut().flat_map(|it| &mut it.pools).for_each(|it| it.pool += 1);
}

#[test]
fn a_hello_goes_by_the_settings_of_its_time() {
    run(|| async {
        let authority = Authority::new();
        let servers = three(&authority).await;
        let mut edge =
            Edge::new(&servers.each_ref().map(|it| it.address), pooled(UnknownSni::Default));
        let hello = hello(&authority, "chat.example");
        let (first, rest) = hello.split_at(20);
        let mut client = edge.connect().await;
        client.send(first).await;
        edge.until(|| edge.worker.report().services[0].connections == 1, String::new).await;
        insert_pool(&mut edge.settings.services[0], 0);
        edge.worker.apply(edge.settings.clone());
        client.send(rest).await;
        edge.counted("passed_through", 1).await;
        let picked = |edge: &Edge| -> Vec<u64> {
            edge.worker.report().services[0].backends.iter().map(|it| it.picked).collect()
        };
        assert_eq!(picked(&edge), [0, 1, 0]);

        // Nothing is passed on any more.
        let mut client = edge.connect().await;
        client.send(first).await;
        edge.counted("connection", 2).await;
        edge.until(|| edge.worker.report().services[0].connections == 2, String::new).await;
        edge.settings.services[0].passthrough = None;
        edge.worker.apply(edge.settings.clone());
        client.send(rest).await;
        let mut read = Vec::new();
        timeout(LONG, client.0.read_to_end(&mut read)).await.expect("no end").unwrap();
        assert_eq!(read, alert(80));
        edge.counted("no_backend", 1).await;
        assert_eq!(picked(&edge), [0, 1, 0]);
    });
}

#[test]
fn the_log_tells_of_names_and_ends() {
    run(|| async {
        let (mut log, writer) = std::io::pipe().unwrap();
        let authority = Authority::new();
        let servers = three(&authority).await;
        let edge = Edge::new(&servers.each_ref().map(|it| it.address), |service| {
            pooled(UnknownSni::Refuse)(service);
            service.log_sample = 1.0;
        });
        edge.worker.life.log_to(writer.into()).unwrap();
        let config = trusting(&authority);
        let mut client = connect(edge.address, &config, "a.rooms.example").await;
        word(&mut client).await;
        drop(client);
        edge.quiet().await;
        assert!(try_connect(edge.address, &config, "other.example").await.is_err());
        edge.quiet().await;
        edge.worker.life.log().unwrap().finish(LONG);
        let mut bytes = [0; 65_536];
        let mut text = Vec::new();
        while text.iter().filter(|byte| **byte == b'\n').count() < 3 {
            let n = log.read(&mut bytes).unwrap();
            text.extend_from_slice(&bytes[..n]);
        }
        let lines: Vec<serde_json::Value> = String::from_utf8(text)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let [passed, close, refused] = &lines[..] else { panic!("{lines:?}") };
        let field = |line: &serde_json::Value, name: &str| line[name].as_str().map(str::to_owned);
        assert_eq!(field(passed, "event").as_deref(), Some("passthrough"));
        assert_eq!(field(passed, "sni").as_deref(), Some("a.rooms.example"));
        assert_eq!(field(passed, "route").as_deref(), Some("rooms.example"));
        assert_eq!(field(passed, "pool").as_deref(), Some("rooms"));
        assert_eq!(field(passed, "backend").as_deref(), Some("b2"));
        assert!(passed.get("method").is_none() && passed.get("status").is_none());
        assert_eq!(field(close, "event").as_deref(), Some("close"));
        assert_eq!(close["connection"], passed["connection"]);
        assert!(close["bytes_in"].as_u64() > Some(100));
        assert_eq!(field(refused, "sni").as_deref(), Some("other.example"));
        assert_eq!(field(refused, "refused").as_deref(), Some("tls_unknown_name"));
        assert!(refused.get("backend").is_none());
    });
}
