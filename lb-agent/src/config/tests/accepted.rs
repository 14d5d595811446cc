//! What a valid file means.

use super::*;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn socket(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn every_default_is_applied() {
    let config = valid(&minimal());
    let expected = Config {
        edge: Edge {
            name: "e".to_owned(),
            interfaces: vec!["eth0".to_owned()],
            xdp: XdpMode::Auto,
            source_addresses: vec![ip("10.2.0.1")],
            nat_ports: 1024..=60999,
            hash_seed: "s".to_owned(),
            admin: socket("127.0.0.1:9900"),
            reset_rate: 1000,
            vip_addresses: VipAddresses::Auto,
            drain: false,
            tables: Tables {
                flows_ipv4: 1_048_576,
                flows_ipv6: 262_144,
                handshakes: 65_536,
                preallocate: true,
                services: 64,
                backends: 4_096,
            },
            sidecar: Sidecar {
                user: "nobody".to_owned(),
                workers: None,
                cookie_keys: None,
                access_log: AccessLog::Stdout,
                ticket_keys: None,
            },
            admin_token_file: None,
            admin_hosts: Vec::new(),
            zone: None,
            access: Access::default(),
        },
        services: vec![Service {
            name: "chat".to_owned(),
            listen: vec![socket("203.0.113.10:80")],
            mode: Mode::L4,
            forward: Forward::Nat,
            affinity: Affinity::None,
            idle_timeout: Duration::from_secs(3600),
            close_timeout: Duration::from_secs(30),
            fail_open: true,
            reset_on_backend_death: true,
            health: Health {
                probe: Probe::Tcp,
                interval: Duration::from_secs(2),
                timeout: Duration::from_secs(1),
                rise: 2,
                fall: 3,
                jitter_percent: 10,
                slow_start: Duration::ZERO,
                port: None,
            },
            backends: vec![Backend {
                name: "10.2.0.2:9000".to_owned(),
                address: socket("10.2.0.2:9000"),
                weight: 100,
                drain: false,
                zone: None,
                pool: 0,
                asked: None,
            }],
            panic_threshold: 0,
            zones: None,
            access: Access::default(),
        }],
    };
    assert_eq!(config, expected);
}

#[test]
fn the_example_means_what_it_says() {
    let config = valid(include_str!("../../../../edge.example.toml"));
    assert_eq!(config.edge.xdp, XdpMode::Native);
    let [chat, uploads, rooms, rooms_tls, rooms_plain] = &config.services[..] else {
        panic!("{config:?}")
    };

    let target = Target { path: "/chat".to_owned(), host: None };
    assert_eq!(chat.health.probe, Probe::Websocket(target));
    let names = |listener| -> Vec<&str> {
        chat.pool(socket(listener)).map(|backend| backend.name.as_str()).collect()
    };
    assert_eq!(names("203.0.113.10:80"), ["chat-1", "chat-2"]);
    assert_eq!(names("[2001:db8::10]:80"), ["chat-1-v6"]);
    assert_eq!(chat.backends[1].zone.as_deref(), Some("rack-2"));

    assert_eq!((uploads.forward, uploads.affinity), (Forward::Ipip, Affinity::Source));
    assert_eq!(uploads.pool(socket("203.0.113.11:443")).count(), 2);
    let Probe::Https(http, tls) = &uploads.health.probe else { panic!("{uploads:?}") };
    assert_eq!(http.status.to_string(), "200-299, 304");
    assert!(http.status.contains(204) && http.status.contains(304) && !http.status.contains(300));
    assert_eq!(http.body, "ready");
    let server_name = Some("uploads.example".to_owned());
    assert_eq!(*tls, TlsProbe { verify: Verify::System, server_name });

    assert!(config.l4().eq([chat, uploads]));
    assert!(config.l7().eq([rooms, rooms_tls, rooms_plain]));
    assert_eq!(rooms.pool(socket("[2001:db8::12]:80")).count(), 4);
    let pools = rooms.l7().unwrap().pools.iter().map(|pool| pool.name.as_str());
    assert_eq!(pools.collect::<Vec<_>>(), ["canary", "api"]);
    assert_eq!(rooms.l7().unwrap().routes.len(), 7);
    assert_eq!(config.edge.sidecar.cookie_keys, Some(PathBuf::from("/etc/sluice/cookie.keys")));
}

/// The same in another notation means the same.
#[test]
fn tables_may_be_written_inline_or_dotted() {
    let inline = r#"
edge = { name = "e", interfaces = ["eth0"], hash_seed = "s", source_addresses = ["10.2.0.1"] }
service = [
  { name = "chat", listen = ["203.0.113.10:80"], backend = [{ address = "10.2.0.2:9000" }] },
]"#;
    assert_eq!(valid(inline), valid(&minimal()));
    let dotted = with(&minimal(), "[[service]]", "tables.services = 64\n[[service]]");
    assert_eq!(valid(&dotted), valid(&minimal()));
    let crlf = minimal().replace('\n', "\r\n");
    assert_eq!(valid(&crlf), valid(&minimal()));
}

#[test]
fn every_kind_of_probe() {
    let target = |path: &str, host: Option<&str>| Target {
        path: path.to_owned(),
        host: host.map(str::to_owned),
    };
    let http = |target| HttpProbe { target, status: StatusSet::default(), body: String::new() };
    let tls =
        |verify, name: Option<&str>| TlsProbe { verify, server_name: name.map(str::to_owned) };
    for (health, probe) in [
        (r#"kind = "none""#, Probe::None),
        (r#"kind = "tcp""#, Probe::Tcp),
        (r#"kind = "http""#, Probe::Http(http(target("/", None)))),
        (
            r#"kind = "http", path = "/a?b=c", host = "h:81""#,
            Probe::Http(http(target("/a?b=c", Some("h:81")))),
        ),
        (r#"kind = "https""#, Probe::Https(http(target("/", None)), tls(Verify::System, None))),
        (
            r#"kind = "https", host = "h.example:8443""#,
            Probe::Https(
                http(target("/", Some("h.example:8443"))),
                tls(Verify::System, Some("h.example")),
            ),
        ),
        (
            r#"kind = "https", host = "10.2.0.2""#,
            Probe::Https(http(target("/", Some("10.2.0.2"))), tls(Verify::System, None)),
        ),
        (
            r#"kind = "https", host = "[2001:db8::2]:443""#,
            Probe::Https(http(target("/", Some("[2001:db8::2]:443"))), tls(Verify::System, None)),
        ),
        (
            r#"kind = "https", host = "a", sni = "b", verify = false"#,
            Probe::Https(http(target("/", Some("a"))), tls(Verify::No, Some("b"))),
        ),
        (
            r#"kind = "https", ca = "/ca.pem""#,
            Probe::Https(http(target("/", None)), tls(Verify::Ca(PathBuf::from("/ca.pem")), None)),
        ),
        (
            r#"kind = "websocket", path = "/chat", host = "h""#,
            Probe::Websocket(target("/chat", Some("h"))),
        ),
    ] {
        let line = format!("health = {{ {health} }}\n[[service.backend]]");
        let config = valid(&with(&minimal(), "[[service.backend]]", &line));
        assert_eq!(config.services[0].health.probe, probe, "{health}");
    }
}

#[test]
fn status_codes_in_every_notation() {
    for (status, shown) in [
        ("204", "204"),
        ("\"204\"", "204"),
        ("\"200-299\"", "200-299"),
        ("\"301, 200-204\"", "200-204, 301"),
        ("[404, \"200-204\", \"101\"]", "101, 200-204, 404"),
    ] {
        let line =
            format!("health = {{ kind = \"http\", status = {status} }}\n[[service.backend]]");
        let config = valid(&with(&minimal(), "[[service.backend]]", &line));
        let Probe::Http(http) = &config.services[0].health.probe else { panic!() };
        assert_eq!(http.status.to_string(), shown);
    }
}

#[test]
fn a_short_interval_shortens_the_default_timeout() {
    let line = "health = { kind = \"tcp\", interval = \"200ms\" }\n[[service.backend]]";
    let config = valid(&with(&minimal(), "[[service.backend]]", line));
    assert_eq!(config.services[0].health.timeout, Duration::from_millis(200));
}

#[test]
fn a_probe_goes_to_the_backends_port_or_to_its_own() {
    let backend = socket("[2001:db8::2]:9000");
    let mut health = Health::default();
    assert_eq!(health.address(backend), backend);
    health.port = Some(81);
    assert_eq!(health.address(backend), socket("[2001:db8::2]:81"));
}

#[test]
fn what_each_forward_carries() {
    let (v4, v6) = (ip("192.0.2.1"), ip("2001:db8::1"));
    for (forward, expected) in [
        (Forward::Nat, [true, false, false, true]),
        (Forward::Dsr, [true, false, false, true]),
        (Forward::Ipip, [true, true, false, true]),
    ] {
        let pairs = [(v4, v4), (v4, v6), (v6, v4), (v6, v6)];
        assert_eq!(pairs.map(|(listener, backend)| forward.carries(listener, backend)), expected);
    }
}

#[test]
fn no_source_address_is_needed_without_nat() {
    let text = with(&minimal(), "source_addresses = [\"10.2.0.1\"]\n", "");
    let text = with(&text, "name = \"chat\"", "name = \"chat\"\nforward = \"dsr\"");
    let config = valid(&with(&text, "10.2.0.2:9000", "10.2.0.2:80"));
    assert_eq!(config.edge.source_addresses, Vec::<IpAddr>::new());
}

#[test]
fn one_backend_may_serve_two_services() {
    let second = with(&with(SERVICE, "chat", "chat-2"), ":80", ":81");
    assert_eq!(valid(&format!("{}{second}", minimal())).services.len(), 2);
}

#[test]
fn warnings_say_what_is_doubtful() {
    for (old, new, warning) in [
        (
            "hash_seed",
            "admin = \"0.0.0.0:9900\"\nhash_seed",
            "edge.toml:4: edge: admin \"0.0.0.0:9900\" is not a loopback address: whoever reaches \
             it controls the edge: write \"127.0.0.1:9900\", or let a firewall guard it",
        ),
        (
            "[[service.backend]]",
            "[[service.backend]]\nweight = 0",
            "edge.toml:8: service \"chat\": listen \"203.0.113.10:80\" has only backends of weight 0: \
             no new connection will be accepted: give at least one of them a weight",
        ),
    ] {
        let (_, warnings) = parse("edge.toml", &with(&minimal(), old, new)).unwrap();
        assert_eq!(warnings.iter().map(Warning::to_string).collect::<Vec<_>>(), [warning]);
    }
}

#[test]
fn zones_are_preferred_where_the_table_stands() {
    let of = |zones: &str| {
        let text = with(&minimal(), "[edge]\n", "[edge]\nzone = \"a\"\n");
        let text = with(&text, "[[service.backend]]\n", "[[service.backend]]\nzone = \"a\"\n");
        let service =
            &valid(&with(&text, "[[service]]\n", &format!("[[service]]\n{zones}\n"))).services[0];
        service.zones.map(|zones| zones.min_healthy_percent)
    };
    assert_eq!(of(""), None);
    assert_eq!(of("zones = {}"), Some(70));
    assert_eq!(of("zones = { prefer = true, min_healthy_percent = 0 }"), Some(0));
    assert_eq!(of("zones = { prefer = false, min_healthy_percent = 50 }"), None);
    let text = with(&minimal(), "[[service]]\n", "[[service]]\nzones = { prefer = false }\n");
    assert_eq!(valid(&text).services[0].zones, None, "and no zone is needed");
}

#[test]
fn access_lists_are_of_the_edge_and_of_services_of_both_modes() {
    let lists =
        "access = { allow = [\"198.51.100.0/24\", \"2001:db8::/32\"], deny = [\"198.51.100.7\"] }";
    let edge = with(&minimal(), "[edge]\n", &format!("[edge]\n{lists}\n"));
    let access = valid(&edge).edge.access;
    assert_eq!(access.allow, [(ip("198.51.100.0"), 24), (ip("2001:db8::"), 32)].into());
    assert_eq!(access.deny, [(ip("198.51.100.7"), 32)].into());
    for text in [minimal(), minimal_l7()] {
        let config = valid(&with(&text, "[[service]]\n", &format!("[[service]]\n{lists}\n")));
        assert_eq!(config.services[0].access, access);
        assert_eq!(config.edge.access, Access::default());
    }
}
