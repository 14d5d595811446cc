use std::collections::HashSet;

use super::*;
use crate::config;

const EDGE: &str = r#"
    [edge]
    name = "e"
    interfaces = ["eth0"]
    hash_seed = "s"
    source_addresses = ["10.2.0.1"]
    sidecar = { cookie_keys = "/k" }
"#;

const POOL: &str = r#"
    [[service.backend]]
    name = "b1"
    address = "10.2.0.2:9000"
    [[service.backend]]
    name = "b2"
    address = "[2001:db8::2]:9000"
    weight = 50
"#;

fn config(services: &str) -> Config {
    config::parse("edge.toml", &format!("{EDGE}{services}")).unwrap_or_else(|it| panic!("{it}")).0
}

fn service(keys: &str) -> Config {
    config(&format!(
        "[[service]]\nname = \"chat\"\nlisten = [\"203.0.113.10:80\"]\nmode = \"l7\"\n{keys}\n{POOL}"
    ))
}

fn whole(_: &Service, backend: &Backend) -> Seen {
    Seen { up: true, weight: backend.weight }
}

fn never(_: &Service, backend: &Backend) -> u64 {
    panic!("{} does not drain", backend.name)
}

fn built(config: &Config) -> Settings {
    settings(config, &[], 1, whole, never)
}

#[test]
fn only_l7_services_and_all_of_them() {
    let l4 = "[[service]]\nname = \"l4\"\nlisten = [\"203.0.113.10:81\"]\n\
              [[service.backend]]\naddress = \"10.2.0.2:9000\"\n";
    let l7 = |name: &str, port: u16| {
        format!(
            "[[service]]\nname = \"{name}\"\nlisten = [\"203.0.113.10:{port}\"]\nmode = \"l7\"\n{POOL}"
        )
    };
    let settings = built(&config(&format!("{}{l4}{}", l7("a", 80), l7("b", 82))));
    let names: Vec<_> = settings.services.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    let listen: Vec<_> = settings.services.iter().map(|it| it.listen[0].port()).collect();
    assert_eq!(listen, [80, 82]);
    assert_eq!(settings.edge, "e");
    assert_eq!(settings.hash_seed, hash::seed("s"));
    assert_eq!(settings.source_addresses, ["10.2.0.1".parse::<std::net::IpAddr>().unwrap()]);
}

#[test]
fn what_is_configured_arrives() {
    let config = service(
        "fail_open = false\nidle_timeout = \"5m\"\nbalance = \"maglev\"\nupgrades = [\"a\", \"b\"]\n\
         access_log = 0.25\nsplice = \"off\"\naffinity = { kind = \"header\", name = \"X-User\" }\n\
         http = { retries = 3 }\nforwarded = { mode = \"keep\" }",
    );
    let key = CookieKey { id: "k1".into(), secret: "s".into() };
    let settings = settings(&config, std::slice::from_ref(&key), 1, whole, never);
    assert_eq!(settings.cookie_keys, [key]);
    let chat = &settings.services[0];
    assert!(!chat.fail_open);
    assert_eq!(chat.balance, settings::Balance::Maglev);
    assert_eq!(chat.upgrades, ["a", "b"]);
    assert_eq!(chat.affinity, settings::Affinity::Header { name: "X-User".into() });
    assert_eq!(chat.http.retries, 3);
    assert_eq!(chat.http.idle_timeout.as_secs(), 300);
    assert_eq!(chat.forwarded.mode, settings::ForwardedMode::Keep);
    assert!(!chat.splice);
    assert!((chat.log_sample - 0.25).abs() < f64::EPSILON);
    let backends: Vec<_> =
        chat.backends.iter().map(|it| (it.name.as_str(), it.address.port(), it.weight)).collect();
    assert_eq!(backends, [("b1", 9000, 100), ("b2", 9000, 50)]);
}

#[test]
fn tls_that_is_passed_on_arrives_with_all_that_connections_have() {
    let config = service(
        "affinity = \"source\"\nproxy_protocol = { send = \"v2\" }\n\
         passthrough = { unknown_sni = \"refuse\", route = [{ sni = \"*.example\", pool = \"default\" }] }",
    );
    let built = built(&config);
    let told = built.services[0].passthrough.as_ref().unwrap();
    assert_eq!(told.unknown_sni, settings::UnknownSni::Refuse);
    assert_eq!(
        (&told.routes[0].name[..], &told.routes[0].names[..]),
        ("1", &["*.example".to_owned()][..])
    );
    assert_eq!(told.routes[0].pools, [settings::Share { pool: 0, weight: 1 }]);
    assert_eq!(built.services[0].affinity, settings::Affinity::Source);
    assert_eq!(built.services[0].proxy_protocol.send, settings::SendProxy::V2);
    assert!(built.services[0].splice && built.services[0].tls.is_none());
}

#[test]
fn health_and_drains_make_the_state() {
    let drains = POOL.replace("weight = 50", "weight = 50\ndrain = true");
    let config = config(&format!(
        "[[service]]\nname = \"chat\"\nlisten = [\"203.0.113.10:80\"]\nmode = \"l7\"\n\
         drain = {{ deadline = \"2m\" }}\n{drains}"
    ));
    let states = |up: bool| {
        let seen = |_: &Service, _: &Backend| Seen { up, weight: 7 };
        let since = |service: &Service, backend: &Backend| {
            assert_eq!((service.name.as_str(), backend.name.as_str()), ("chat", "b2"));
            1_000
        };
        let settings = settings(&config, &[], 1, seen, since);
        settings.services[0].backends.iter().map(|it| (it.state, it.weight)).collect::<Vec<_>>()
    };
    assert_eq!(states(true), [(State::Up, 7), (State::Draining { until: 121_000 }, 7)]);
    assert_eq!(states(false), [(State::Forced, 7), (State::Down, 7)]);
}

#[test]
fn the_own_zone_and_panic_make_the_state() {
    let zones = POOL
        .replace("weight = 50", "weight = 50\nzone = \"b\"")
        .replace(":9000\"\n", ":9000\"\nzone = \"a\"\n");
    let zones = zones.replacen("zone = \"a\"\n    weight", "weight", 1);
    let text = format!(
        "{}[[service]]\nname = \"chat\"\nlisten = [\"203.0.113.10:80\"]\nmode = \"l7\"\n\
         zones = {{}}\npanic_threshold = 60\n{zones}",
        EDGE.replace("hash_seed", "zone = \"a\"\nhash_seed")
    );
    let config = config::parse("edge.toml", &text).unwrap_or_else(|it| panic!("{it}")).0;
    let states = |ups: [bool; 2]| {
        let seen = |_: &Service, backend: &Backend| Seen {
            up: ups[usize::from(backend.name == "b2")],
            weight: backend.weight,
        };
        let settings = settings(&config, &[], 1, seen, never);
        settings.services[0].backends.iter().map(|it| it.state).collect::<Vec<_>>()
    };
    assert_eq!(states([true, true]), [State::Up, State::Spare]);
    assert_eq!(states([true, false]), [State::Up, State::Down]);
    // A third of the weight is less than the threshold.
    assert_eq!(states([false, true]), [State::Forced, State::Up]);
    assert_eq!(states([false, false]), [State::Forced, State::Forced]);
}

#[test]
fn workers_share_the_rates_of_a_service() {
    for (rate, workers, expected) in
        [(100, 1, 100), (100, 4, 25), (10, 3, 3), (1, 64, 1), (7, 0, 7)]
    {
        let config = service(&format!(
            "drain = {{ rate = {rate} }}\nlimits = {{ handshakes_per_second = {rate} }}"
        ));
        let told = &settings(&config, &[], workers, whole, never).services[0];
        let rates = (told.drain.rate, told.limits.handshakes_per_second);
        assert_eq!(rates, (expected, expected), "{rate} by {workers}");
    }
    let none = built(&service(""));
    assert_eq!(none.services[0].limits.handshakes_per_second, 0, "no limit stays none");
}

/// Cookies in browsers hold these: they must not change with the version.
#[test]
fn ids_are_what_they_always_were() {
    let settings = built(&service(""));
    let ids: Vec<_> = settings.services[0].backends.iter().map(|it| it.id.as_str()).collect();
    assert_eq!(ids, ["ef76cdcee8471d82", "a5783346f1411732"]);
}

#[test]
fn an_id_depends_on_seed_service_and_backend() {
    let mut seen = HashSet::new();
    for seed in ["s", "t"] {
        for (service, backend) in [("a", "bc"), ("ab", "c"), ("a", "b"), ("b", "a")] {
            let id = Ids::new(seed).of(service, backend);
            assert_eq!(id.len(), 16);
            assert!(
                id.bytes().all(|it| it.is_ascii_digit() || (b'a'..=b'f').contains(&it)),
                "{id}"
            );
            assert_eq!(id, Ids::new(seed).of(service, backend));
            assert!(seen.insert(id));
        }
    }
}
