//! `[service.passthrough]`.

use super::*;
use lb_sidecar::settings::{Passthrough, Share, SniRoute, UnknownSni};

/// Another pool, of lines 10 to 13.
const POOL: &str = r#"[[service.pool]]
name = "chat"
[[service.pool.backend]]
address = "10.2.0.9:9000"
"#;

/// The l7 service with these lines, from line 10 on, and a further pool.
fn text(lines: &str) -> String {
    let text = with(&minimal_l7(), "[[service.backend]]", &format!("{lines}\n[[service.backend]]"));
    format!("{text}{POOL}")
}

fn passthrough(lines: &str) -> Passthrough {
    let (config, _) = parse("edge.toml", &text(lines)).unwrap_or_else(|it| panic!("{it}"));
    config.services[0].l7().unwrap().passthrough.clone().unwrap()
}

fn doubts(lines: &str) -> Vec<String> {
    let (_, warnings) = parse("edge.toml", &text(lines)).unwrap_or_else(|it| panic!("{it}"));
    warnings.iter().map(Warning::to_string).collect()
}

/// What is wrong with these lines.
fn refused_with(lines: &str) -> String {
    let errors = errors(&text(lines));
    let lines = errors.lines().map(|line| line.split_once("service \"chat\": ").unwrap().1);
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_written_is_what_is_meant() {
    let read = passthrough(
        r#"passthrough.unknown_sni = "refuse"
passthrough.route = [
    { sni = "Chat.Example.Com.", pool = "chat" },
    { name = "rest", sni = ["*.example.com", "example.org"], alpn = ["h2", "xmpp-client"], pools = { chat = 5, default = 95 } },
]"#,
    );
    let route = |name: &str, names: &[&str], alpn: &[&str], pools: &[(u16, u32)]| SniRoute {
        name: name.into(),
        names: names.iter().map(|it| (*it).to_owned()).collect(),
        alpn: alpn.iter().map(|it| (*it).to_owned()).collect(),
        pools: pools.iter().map(|&(pool, weight)| Share { pool, weight }).collect(),
    };
    let routes = vec![
        route("1", &["chat.example.com"], &[], &[(1, 1)]),
        route(
            "rest",
            &["*.example.com", "example.org"],
            &["h2", "xmpp-client"],
            &[(0, 95), (1, 5)],
        ),
    ];
    assert_eq!(read, Passthrough { routes, unknown_sni: UnknownSni::Refuse });
    let empty = Passthrough { routes: Vec::new(), unknown_sni: UnknownSni::Default };
    assert_eq!(passthrough("passthrough = {}"), empty);
    let kept = "passthrough = {}\naffinity = \"source\"\nhttp = { head_timeout = \"5s\", retries = 1 }\n\
                limits = { connections_per_source = 5 }\nproxy_protocol = { send = \"v2\" }\noutlier = {}";
    assert_eq!(passthrough(kept), empty);
}

#[test]
fn what_is_for_requests_is_refused() {
    let requests = "is for requests, and with passthrough none is read";
    for (line, expected) in [
        (
            "tls.certificates = [{ certificate = \"/c\", key = \"/k\" }]",
            format!("tls {requests}: remove it"),
        ),
        ("backend_tls = {}", format!("backend_tls {{}} {requests}: remove it")),
        (
            "route = [{ pool = \"chat\" }]",
            format!("route [{{ pool = \"chat\" }}] {requests}: remove it"),
        ),
        ("redirect = \"https\"", format!("redirect \"https\" {requests}: remove it")),
        ("upgrades = [\"websocket\"]", format!("upgrades [\"websocket\"] {requests}: remove it")),
        ("forwarded = {}", format!("forwarded {{}} {requests}: remove it")),
        ("http.h2c = true", format!("http: h2c true {requests}: remove it")),
        ("http.head_bytes = 2048", format!("http: head_bytes 2048 {requests}: remove it")),
        ("limits.body_bytes = 5", format!("limits: body_bytes 5 {requests}: remove it")),
        (
            "outlier.consecutive_5xx = 3",
            format!("outlier: consecutive_5xx 3 {requests}: remove it"),
        ),
        (
            "affinity = { kind = \"header\", name = \"X\" }",
            format!(
                "affinity {{ kind = \"header\", name = \"X\" }} {requests}: write \"source\" or \"none\""
            ),
        ),
        (
            "affinity = \"cookie\"",
            format!("affinity \"cookie\" {requests}: write \"source\" or \"none\""),
        ),
    ] {
        assert_eq!(refused_with(&format!("passthrough = {{}}\n{line}")), expected);
    }
}

#[test]
fn routes_that_cannot_be() {
    for (route, expected) in [
        ("{ pool = \"chat\" }", "sni is missing: add e.g. sni = \"chat.example.com\""),
        (
            "{ sni = [], pool = \"chat\" }",
            "sni [] is empty: write e.g. \"chat.example.com\", or leave it out",
        ),
        ("{ sni = \"a.example\" }", "pool is missing: add it, or pools, e.g. pool = \"default\""),
        (
            "{ sni = \"a.example\", pool = \"chat\", pools = { chat = 1 } }",
            "pools { chat = 1 } stands beside pool: write one of them",
        ),
        (
            "{ sni = \"a.example\", pool = \"chta\" }",
            "pool \"chta\" is not for a pool: the service has none named \"chta\": did you mean \"chat\"?",
        ),
        (
            "{ sni = \"a.*.example\", pool = \"chat\" }",
            "sni \"a.*.example\" has a * elsewhere than for all labels before a name: write e.g. \"*.example.com\"",
        ),
        (
            "{ sni = \"*\", pool = \"chat\" }",
            "sni \"*\" has a * elsewhere than for all labels before a name: write e.g. \"*.example.com\"",
        ),
        (
            "{ sni = \"a b\", pool = \"chat\" }",
            "sni \"a b\" is not a host: write e.g. \"chat.example.com\" or \"*.example.com\"",
        ),
        (
            "{ sni = \"192.0.2.1\", pool = \"chat\" }",
            "sni \"192.0.2.1\" is an address, and clients ask for names only (RFC 6066, section 3): write e.g. \"chat.example.com\"",
        ),
        (
            "{ sni = [\"a.example\", \"A.example\"], pool = \"chat\" }",
            "sni \"A.example\" is already on line 10: remove it",
        ),
        (
            "{ sni = \"a.example\", alpn = \"\", pool = \"chat\" }",
            "alpn \"\" is empty: write e.g. \"h2\"",
        ),
        (
            "{ name = \"none\", sni = \"a.example\", pool = \"chat\" }",
            "name \"none\" counts requests that no route matches: write another name",
        ),
    ] {
        let said = refused_with(&format!("passthrough.route = [{route}]"));
        let (_, said) = said.split_once("passthrough: route ").unwrap();
        assert_eq!(said.split_once(": ").unwrap().1, expected, "{route}");
    }
    assert_eq!(
        refused_with("passthrough.unknown_sni = \"refuse\""),
        "passthrough: unknown_sni refuses every client: there is no route: \
         add [[service.passthrough.route]], or remove it"
    );
}

#[test]
fn names_that_an_earlier_route_has_are_doubtful() {
    let routes = |routes: &str| doubts(&format!("passthrough.route = [{routes}]"));
    let never = |route: &str, sni: &str, by: &str| {
        format!(
            "edge.toml:10: service \"chat\": passthrough: route {route}: sni {sni:?} can never match: \
             route {by:?} on line 10 has it: put this route before that one, or remove the name"
        )
    };
    assert_eq!(
        routes(
            r#"{ sni = "*.example", pool = "chat" }, { sni = ["b", "a.example"], pool = "default" }"#
        ),
        [never("2", "a.example", "1")]
    );
    assert_eq!(
        routes(
            r#"{ sni = "a", pool = "chat" }, { name = "again", sni = "a", alpn = "h2", pool = "chat" }"#
        ),
        [never("\"again\"", "a", "1")]
    );
    for fine in [
        r#"{ sni = "a.example", pool = "chat" }, { sni = "*.example", pool = "default" }"#,
        r#"{ sni = "a", alpn = "h2", pool = "chat" }, { sni = "a", pool = "default" }"#,
        r#"{ sni = "a", alpn = "h2", pool = "chat" }, { sni = "a", alpn = ["h2", "x"], pool = "default" }"#,
        r#"{ sni = "*.example", pool = "chat" }, { sni = "example", pool = "default" }"#,
    ] {
        assert_eq!(routes(fine), [""; 0], "{fine}");
    }
}

#[test]
fn pools_that_get_nobody_are_doubtful() {
    let said = doubts("passthrough = {}");
    assert_eq!(
        said,
        [
            "edge.toml:13: service \"chat\": pool \"chat\" is in no route: it gets no client: name it in a route, or remove it"
        ]
    );
    let said = doubts(
        "passthrough = { unknown_sni = \"refuse\", route = [{ sni = \"a\", pool = \"chat\" }] }",
    );
    assert_eq!(
        said,
        [
            "edge.toml:10: service \"chat\": passthrough: unknown_sni \"refuse\" leaves the pool \"default\", which is in no route, without clients: name it in a route, or write unknown_sni = \"default\""
        ]
    );
}

#[test]
fn a_redirect_of_all_leaves_routes_nothing() {
    l7_refused(&[(
        "redirect = \"https\"\nroute = [{ answer.status = 404 }]",
        "edge.toml:10: service \"chat\": redirect \"https\" leaves the routes no request: \
         remove it, and let the last route have redirect = { scheme = \"https\", status = 308 }",
    )]);
}
