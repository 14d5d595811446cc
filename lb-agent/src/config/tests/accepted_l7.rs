//! What a valid file with l7 services means.

use super::*;
use crate::config::{BackendTls, CertificateFiles, ClientAuth, Tls};
use lb_sidecar::settings::{
    Affinity, Balance, Cookie, Forwarded, ForwardedMode, Http, Limits, ProxyProtocol, SameSite,
    SendProxy, TlsVersion, UnknownSni,
};
use std::path::PathBuf;
use std::time::Duration;

/// The l7 service with more lines, and with keys for cookies.
fn l7_of(lines: &str) -> L7 {
    let text = format!("{}sidecar = {{ cookie_keys = \"/k\" }}\n{L7_SERVICE}", EDGE);
    let config =
        valid(&with(&text, "[[service.backend]]", &format!("{lines}\n[[service.backend]]")));
    config.services[0].l7().unwrap().clone()
}

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn cookie() -> Cookie {
    Cookie {
        name: "sluice".to_owned(),
        ttl: Some(seconds(86_400)),
        path: "/".to_owned(),
        domain: None,
        secure: false,
        http_only: true,
        same_site: Some(SameSite::Lax),
    }
}

#[test]
fn every_default_is_applied() {
    let expected = L7 {
        affinity: Affinity::None,
        balance: Balance::LeastConnections,
        upgrades: vec!["websocket".to_owned()],
        http: Http {
            head_timeout: seconds(10),
            body_timeout: seconds(30),
            connect_timeout: seconds(2),
            response_timeout: seconds(60),
            keep_alive: seconds(60),
            idle_timeout: seconds(3_600),
            head_bytes: 16_384,
            retries: 2,
            pool: 32,
            tcp_keepalive: seconds(60),
            tcp_user_timeout: seconds(30),
            h2c: false,
            max_streams: 128,
        },
        forwarded: Forwarded {
            mode: ForwardedMode::Append,
            trusted: Vec::new(),
            request_id: Some("X-Request-Id".to_owned()),
        },
        drain: Drain { deadline: seconds(300), rate: 100 },
        splice: true,
        access_log: Share::ALL,
        pools: Vec::new(),
        routes: Vec::new(),
        proxy_protocol: ProxyProtocol::default(),
        limits: Limits {
            handshake_burst: 20,
            source_prefix_ipv4: 32,
            source_prefix_ipv6: 64,
            queue: 128,
            queue_timeout: seconds(5),
            ..Limits::default()
        },
        outlier: None,
        tls: None,
        backend_tls: None,
        redirect_https: false,
        passthrough: None,
    };
    assert_eq!(*valid(&minimal_l7()).services[0].l7().unwrap(), expected);
    let tables = "affinity = \"none\"\nhttp = {}\nforwarded = {}\ndrain = {}";
    assert_eq!(l7_of(tables), expected);
}

#[test]
fn every_kind_of_affinity() {
    let name = |name: &str| name.to_owned();
    for (affinity, expected) in [
        (r#""none""#, Affinity::None),
        (r#""source""#, Affinity::Source),
        (r#""cookie""#, Affinity::Cookie(cookie())),
        (r#"{ kind = "none" }"#, Affinity::None),
        (r#"{ kind = "source" }"#, Affinity::Source),
        (r#"{ kind = "cookie" }"#, Affinity::Cookie(cookie())),
        (
            r#"{ kind = "cookie", ttl = "session" }"#,
            Affinity::Cookie(Cookie { ttl: None, ..cookie() }),
        ),
        (
            r#"{ kind = "cookie", name = "a|b", ttl = "400d", path = "/a,b", domain = "chat.example", secure = true, http_only = false, same_site = "none" }"#,
            Affinity::Cookie(Cookie {
                name: name("a|b"),
                ttl: Some(seconds(400 * 86_400)),
                path: name("/a,b"),
                domain: Some(name("chat.example")),
                secure: true,
                http_only: false,
                same_site: Some(SameSite::None),
            }),
        ),
        (
            r#"{ kind = "cookie", name = "__Host-x", secure = true, same_site = "strict" }"#,
            Affinity::Cookie(Cookie {
                name: name("__Host-x"),
                secure: true,
                same_site: Some(SameSite::Strict),
                ..cookie()
            }),
        ),
        (
            r#"{ kind = "app-cookie", name = "JSESSIONID" }"#,
            Affinity::AppCookie { name: name("JSESSIONID") },
        ),
        (r#"{ kind = "header", name = "X-User" }"#, Affinity::Header { name: name("X-User") }),
        (r#"{ kind = "query", name = "user[id]" }"#, Affinity::Query { name: name("user[id]") }),
    ] {
        assert_eq!(l7_of(&format!("affinity = {affinity}")).affinity, expected, "{affinity}");
    }
    let table = "[service.affinity]\nkind = \"cookie\"";
    assert_eq!(l7_of(table).affinity, Affinity::Cookie(cookie()));
}

#[test]
fn every_balance_and_mode_of_forwarded() {
    for (word, balance) in [
        ("least-connections", Balance::LeastConnections),
        ("round-robin", Balance::RoundRobin),
        ("maglev", Balance::Maglev),
    ] {
        assert_eq!(l7_of(&format!("balance = {word:?}")).balance, balance);
    }
    for (word, mode) in [
        ("append", ForwardedMode::Append),
        ("replace", ForwardedMode::Replace),
        ("keep", ForwardedMode::Keep),
    ] {
        assert_eq!(l7_of(&format!("forwarded = {{ mode = {word:?} }}")).forwarded.mode, mode);
    }
}

#[test]
fn prefixes_headers_and_shares() {
    let prefix = |ip: &str, length: u8| (ip.parse().unwrap(), length);
    let trusted = r#"["0.0.0.0/0", "10.0.0.0/8", "192.0.2.1", "192.0.2.0/32", "::/0", "2001:db8::/32", "::1"]"#;
    assert_eq!(
        l7_of(&format!("forwarded = {{ trusted = {trusted} }}")).forwarded.trusted,
        [
            prefix("0.0.0.0", 0),
            prefix("10.0.0.0", 8),
            prefix("192.0.2.1", 32),
            prefix("192.0.2.0", 32),
            prefix("::", 0),
            prefix("2001:db8::", 32),
            prefix("::1", 128),
        ]
    );
    assert_eq!(l7_of("forwarded = { request_id = \"\" }").forwarded.request_id, None);
    assert_eq!(l7_of("upgrades = []").upgrades, Vec::<String>::new());
    assert_eq!(l7_of("upgrades = [\"WebSocket\", \"x\"]").upgrades, ["websocket", "x"]);
    for (written, share) in [("0", 0.0), ("1", 1.0), ("0.0", 0.0), ("1.0", 1.0), ("0.001", 0.001)] {
        assert_eq!(
            l7_of(&format!("access_log = {written}")).access_log,
            Share::new(share).unwrap()
        );
    }
}

#[test]
fn splicing_may_be_off() {
    assert!(l7_of("splice = \"auto\"").splice);
    assert!(!l7_of("splice = \"off\"").splice);
}

#[test]
fn the_idle_timeout_is_that_of_upgraded_connections() {
    assert_eq!(l7_of("idle_timeout = \"5m\"").http.idle_timeout, seconds(300));
}

#[test]
fn the_sidecars_processes() {
    let sidecar = |line: &str| {
        let text =
            with(&minimal_l7(), "[[service]]", &format!("[edge.sidecar]\n{line}\n[[service]]"));
        valid(&text).edge.sidecar
    };
    assert_eq!(sidecar("workers = 64").workers, Some(64));
    assert_eq!(sidecar("workers = 0").workers, None);
    assert_eq!(sidecar("user = \"_sluice-1.x\"").user, "_sluice-1.x");
    let log = |to: &str| sidecar(&format!("access_log = {to:?}")).access_log;
    assert_eq!(log("stdout"), AccessLog::Stdout);
    assert_eq!(log("off"), AccessLog::Off);
    assert_eq!(log("/var/log/a"), AccessLog::File(PathBuf::from("/var/log/a")));
}

/// The sidecar has a connection of its own to the backend.
#[test]
fn ip_versions_and_ports_may_change_and_no_source_address_is_needed() {
    let text = with(&minimal_l7(), "source_addresses = [\"10.2.0.1\"]\n", "");
    let text = with(&text, "\"203.0.113.10:80\"", "\"[2001:db8::10]:80\", \"203.0.113.10:81\"");
    let config = valid(&text);
    let service = &config.services[0];
    for listener in &service.listen {
        assert_eq!(service.pool(*listener).count(), 1, "{listener}");
    }
    assert_eq!((config.l4().count(), config.l7().count()), (0, 1));
}

#[test]
fn one_vip_may_have_listeners_of_both_modes() {
    let config =
        valid(&format!("{}{}", minimal(), with(&with(L7_SERVICE, "chat", "rooms"), ":80", ":81")));
    let names = |services: Vec<&Service>| -> Vec<String> {
        services.iter().map(|service| service.name.clone()).collect()
    };
    assert_eq!(names(config.l4().collect()), ["chat"]);
    assert_eq!(names(config.l7().collect()), ["rooms"]);
}

#[test]
fn a_pool_without_room_for_newcomers_is_doubtful() {
    for (lines, warning) in [
        (
            "drain = true",
            "edge.toml:8: service \"chat\": listen \"203.0.113.10:80\" has only backends that drain or have weight 0: \
             no new client will be accepted: give at least one of them a weight and no drain",
        ),
        (
            "weight = 0",
            "edge.toml:8: service \"chat\": listen \"203.0.113.10:80\" has only backends of weight 0: \
             no new connection will be accepted: give at least one of them a weight",
        ),
    ] {
        let text = with(&minimal_l7(), "address =", &format!("{lines}\naddress ="));
        let (config, warnings) = parse("edge.toml", &text).unwrap();
        assert_eq!(config.services[0].backends[0].drain, lines.starts_with("drain"));
        assert_eq!(warnings.iter().map(Warning::to_string).collect::<Vec<_>>(), [warning]);
    }
}

#[test]
fn proxies_before_and_behind() {
    let l7 = l7_of(
        "proxy_protocol = { accept = \"required\", trusted = [\"10.0.0.0/8\", \"2001:db8::1\"], send = \"v2\" }",
    );
    let trusted = vec![("10.0.0.0".parse().unwrap(), 8), ("2001:db8::1".parse().unwrap(), 128)];
    assert_eq!(l7.proxy_protocol, ProxyProtocol { accept: trusted, send: SendProxy::V2 });
    let l7 = l7_of("proxy_protocol = { send = \"v1\" }");
    assert_eq!(l7.proxy_protocol, ProxyProtocol { accept: Vec::new(), send: SendProxy::V1 });
}

#[test]
fn limits_of_all_kinds() {
    let l7 = l7_of(
        "[service.limits]\nconnections = 1\nhandshakes_per_second = 10\nconnections_per_source = 2\n\
         handshakes_per_second_per_source = 3\nhandshake_burst = 4\nsource_prefix_ipv4 = 24\n\
         source_prefix_ipv6 = 48\nconnections_per_backend = 5\nqueue = 6\nqueue_timeout = \"7s\"\n\
         bytes_per_second = 16384\nbody_bytes = 9",
    );
    let expected = Limits {
        connections: 1,
        handshakes_per_second: 10,
        connections_per_source: 2,
        handshakes_per_second_per_source: 3,
        handshake_burst: 4,
        source_prefix_ipv4: 24,
        source_prefix_ipv6: 48,
        connections_per_backend: 5,
        queue: 6,
        queue_timeout: seconds(7),
        bytes_per_second: 16_384,
        body_bytes: 9,
    };
    assert_eq!(l7.limits, expected);
}

#[test]
fn an_empty_table_switches_outlier_detection_on() {
    let of = |lines: &str| {
        let text =
            with(&minimal_l7(), "[[service.backend]]", &format!("{lines}\n[[service.backend]]"));
        valid(&text).services[0].l7().unwrap().outlier
    };
    assert_eq!(of(""), None);
    let outlier = of("[service.outlier]").unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.max_ejection_percent), (5, 50));
    assert_eq!(outlier.max_ejection_time, Duration::from_secs(300));
    // The default is never shorter than the first ejection.
    let outlier = of("outlier = { consecutive_5xx = 0, base_ejection_time = \"10m\" }").unwrap();
    assert_eq!((outlier.consecutive_5xx, outlier.consecutive_connect_failures), (0, 5));
    assert_eq!(outlier.max_ejection_time, Duration::from_secs(600));
}

#[test]
fn tls_with_clients_and_backends() {
    let tls = l7_of(
        r#"
        tls.certificates = [{ certificate = "/c.pem", key = "/c.key", ocsp = "/c.ocsp" }]
        tls.unknown_sni = "refuse"
        tls.min_version = "1.3"
        tls.client_ca = "/ca.pem"
        tls.client_auth = "optional"
        tls.client_cert_header = "X-Client"
        backend_tls = { ca = "/b.pem", sni = "b.example", certificate = "/e.pem", key = "/e.key" }
        affinity = "cookie"
        "#,
    );
    let expected = Tls {
        certificates: vec![CertificateFiles {
            certificate: "/c.pem".into(),
            key: "/c.key".into(),
            ocsp: Some("/c.ocsp".into()),
        }],
        unknown_sni: UnknownSni::Refuse,
        min_version: TlsVersion::Tls13,
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
        handshake_timeout: seconds(10),
        expiry_warning: seconds(30 * 86_400),
        client_auth: Some(ClientAuth {
            ca: "/ca.pem".into(),
            required: false,
            header: Some("X-Client".to_owned()),
        }),
    };
    assert_eq!(tls.tls.unwrap(), expected);
    let expected = BackendTls {
        verify: true,
        ca: Some("/b.pem".into()),
        sni: Some("b.example".to_owned()),
        client: Some(("/e.pem".into(), "/e.key".into())),
    };
    assert_eq!(tls.backend_tls.unwrap(), expected);
    let Affinity::Cookie(cookie) = tls.affinity else { panic!() };
    assert!(cookie.secure, "by itself");
    let plain = l7_of(
        "tls.certificates = [{ certificate = \"/c\", key = \"/k\" }]\naffinity = { kind = \"cookie\", secure = false }",
    );
    assert!(matches!(plain.affinity, Affinity::Cookie(cookie) if !cookie.secure));
    assert!(l7_of("redirect = \"https\"").redirect_https);
}
