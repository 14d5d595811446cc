//! Pools and routes of an l7 service.

use super::*;
use lb_sidecar::settings::{
    Action, Answer, Balance, Conditions, FieldRule, HeaderChanges, PathRule, Pool, Redirect, Route,
    Share, ValueRule,
};

/// Two more pools, of lines 12 to 19.
const POOLS: &str = r#"[[service.pool]]
name = "canary"
balance = "maglev"
backend = [{ name = "c1", address = "10.2.0.8:9000" }]
[[service.pool]]
name = "api"
[[service.pool.backend]]
address = "10.2.0.9:9000"
"#;

/// The l7 service with the pools and further lines, which begin on line 20.
fn with_routes(lines: &str) -> String {
    format!("{}{POOLS}{lines}", minimal_l7())
}

/// The first of these routes, whatever is doubtful about the file.
fn route(lines: &str) -> Route {
    let text = with_routes(&format!("[[service.route]]\n{lines}\n"));
    let (config, _) = parse("edge.toml", &text).unwrap_or_else(|it| panic!("{it}\n{text}"));
    config.services[0].l7().unwrap().routes[0].clone()
}

fn when(lines: &str) -> Conditions {
    route(&format!("pool = \"default\"\n{lines}")).when
}

fn text(it: &str) -> String {
    it.to_owned()
}

/// Each case is the lines of a route, from line 21 on, and gives all messages that follow.
fn route_refused(cases: &[(&str, &str)]) {
    for (lines, messages) in cases {
        let text = with_routes(&format!("[[service.route]]\n{lines}\n"));
        let messages: Vec<_> = messages.lines().map(|line| format!("edge.toml:{line}")).collect();
        assert_eq!(errors(&text), messages.join("\n"), "\n{text}");
    }
}

/// Everything that is doubtful about these routes, without the pools that they leave unused.
fn warnings(lines: &str) -> Vec<String> {
    let text = with_routes(lines);
    let (_, warnings) = parse("edge.toml", &text).unwrap_or_else(|it| panic!("{it}\n{text}"));
    let warnings = warnings.iter().map(Warning::to_string);
    warnings.filter(|it| !it.contains("is in no route")).collect()
}

#[test]
fn pools_have_their_backends_behind_those_of_the_service() {
    let (config, _) = parse("edge.toml", &with_routes("")).unwrap();
    let service = &config.services[0];
    let backends: Vec<_> = service.backends.iter().map(|it| (it.name.as_str(), it.pool)).collect();
    assert_eq!(backends, [("10.2.0.2:9000", 0), ("c1", 1), ("10.2.0.9:9000", 2)]);
    let pools = [("canary", Balance::Maglev), ("api", Balance::LeastConnections)];
    let pools = pools.map(|(name, balance)| Pool { name: text(name), balance });
    assert_eq!(service.l7().unwrap().pools, pools);
}

#[test]
fn every_condition() {
    assert_eq!(when(""), Conditions::default());
    assert_eq!(
        when("host = [\"Chat.Example.com.\", \"*.example.com\", \"192.0.2.1\", \"2001:db8::1\"]")
            .hosts,
        ["chat.example.com", "*.example.com", "192.0.2.1", "[2001:db8::1]"]
    );
    assert_eq!(when("host = \"a\"").hosts, ["a"]);
    for (line, expected) in [
        ("path = \"/a\"", vec![PathRule::Exact(text("/a"))]),
        (
            "path_prefix = [\"/a\", \"/b/\"]",
            vec![PathRule::Prefix(text("/a")), PathRule::Prefix(text("/b/"))],
        ),
        ("path_regex = '^/room/[0-9]+$'", vec![PathRule::Regex(text("^/room/[0-9]+$"))]),
    ] {
        assert_eq!(when(line).paths, expected);
    }
    assert_eq!(when("method = [\"GET\", \"POST\"]").methods, ["GET", "POST"]);
    assert_eq!(
        (when("upgrade = true").upgrade, when("upgrade = false").upgrade),
        (Some(true), Some(false))
    );
    let rule = |name: &str, value| FieldRule { name: text(name), value };
    assert_eq!(
        when("header = { name = \"X-A\", value = \"1\" }").headers,
        [rule("x-a", ValueRule::Exact(text("1")))]
    );
    assert_eq!(
        when("query = [{ name = \"a\" }, { name = \"b\", regex = 'c' }]").query,
        [rule("a", ValueRule::Any), rule("b", ValueRule::Regex(text("c")))]
    );
    assert_eq!(when("[[service.route.header]]\nname = \"a\"").headers, [rule("a", ValueRule::Any)]);
}

#[test]
fn every_action() {
    let shares = |shares: &[(u16, u32)]| {
        Action::Pools(shares.iter().map(|&(pool, weight)| Share { pool, weight }).collect())
    };
    let redirect = Redirect {
        status: 302,
        scheme: None,
        host: None,
        port: None,
        path: None,
        prefix: None,
        keep_query: true,
    };
    for (lines, expected) in [
        ("pool = \"default\"", shares(&[(0, 1)])),
        ("pool = \"api\"", shares(&[(2, 1)])),
        ("pools = { canary = 5, default = 95 }", shares(&[(0, 95), (1, 5)])),
        ("pools = { default = 1, canary = 0 }", shares(&[(0, 1), (1, 0)])),
        (
            "redirect = { scheme = \"https\" }",
            Action::Redirect(Redirect { scheme: Some(text("https")), ..redirect.clone() }),
        ),
        (
            "path_prefix = \"/a\"\nredirect = { status = 308, host = \"B.example\", port = 8443, prefix = \"/b\", keep_query = false }",
            Action::Redirect(Redirect {
                status: 308,
                host: Some(text("b.example")),
                port: Some(8443),
                prefix: Some(text("/b")),
                keep_query: false,
                ..redirect
            }),
        ),
        (
            "answer = { status = 403 }",
            Action::Answer(Answer {
                status: 403,
                body: String::new(),
                content_type: text("text/plain; charset=utf-8"),
            }),
        ),
    ] {
        assert_eq!(route(lines).action, expected, "{lines}");
    }
    let changed = route(
        "path_prefix = \"/a\"\npool = \"api\"\nrewrite_prefix = \"/\"\n[service.route.request_headers]\n\
         set = { Host = \"b\", X-A = \"\" }\nadd = { X-B = \"a b\" }\nremove = [\"Cookie\"]",
    );
    assert_eq!(changed.rewrite_prefix.as_deref(), Some("/"));
    let field = |name: &str, value: &str| (text(name), text(value));
    let expected = HeaderChanges {
        remove: vec![text("cookie")],
        set: vec![field("host", "b"), field("x-a", "")],
        add: vec![field("x-b", "a b")],
    };
    assert_eq!(changed.request_headers, expected);
    assert_eq!(changed.response_headers, HeaderChanges::default());
}

#[test]
fn names_of_routes() {
    assert_eq!(route("pool = \"api\"").name, "1");
    assert_eq!(route("name = \"rooms\"\npool = \"api\"").name, "rooms");
    route_refused(&[
        (
            "name = \"none\"\npool = \"api\"",
            "21: service \"chat\": route \"none\": name \"none\" counts requests that no route matches: write another name",
        ),
        (
            "name = \"a\"\npath = \"/\"\npool = \"api\"\n[[service.route]]\nname = \"a\"\npool = \"api\"",
            "25: service \"chat\": route \"a\": name \"a\" is already on line 21: give each route of a service a name of its own",
        ),
    ]);
}

#[test]
fn wrong_pools() {
    for (old, new, message) in [
        (
            "name = \"api\"",
            "name = \"default\"",
            "edge.toml:17: service \"chat\": pool \"default\": name \"default\" is the pool of [[service.backend]]: \
             write another name, or make its backends [[service.backend]]",
        ),
        (
            "name = \"api\"",
            "name = \"canary\"",
            "edge.toml:17: service \"chat\": pool \"canary\": name \"canary\" is already on line 13: give each pool \
             of a service a name of its own",
        ),
        (
            "address = \"10.2.0.9:9000\"",
            "address = \"10.2.0.2:9000\"",
            "edge.toml:19: service \"chat\": pool \"api\": backend \"10.2.0.2:9000\": address \"10.2.0.2:9000\" is \
             already taken by service \"chat\": backend \"10.2.0.2:9000\": address on line 11: remove one of the two",
        ),
        (
            "[[service.pool.backend]]\naddress = \"10.2.0.9:9000\"\n",
            "",
            "edge.toml:16: service \"chat\": pool \"api\": [[service.pool.backend]] is missing: add e.g. \
             [[service.pool.backend]] with address = \"10.2.0.2:9000\"",
        ),
    ] {
        assert_eq!(errors(&with(&with_routes(""), old, new)), message);
    }
}

#[test]
fn wrong_conditions() {
    let of = |line: &str| format!("pool = \"api\"\n{line}");
    let cases = [
        (
            "host = \"a.example:80\"",
            "host \"a.example:80\" has a port, and the port of a request is not looked at: write \"a.example\"",
        ),
        (
            "host = \"a.*.example\"",
            "host \"a.*.example\" has a * elsewhere than for all labels before a name: write e.g. \"*.example.com\"",
        ),
        (
            "host = \"a b\"",
            "host \"a b\" is not a host: write e.g. \"chat.example.com\" or \"*.example.com\"",
        ),
        ("host = [\"a\", \"A\"]", "host \"A\" is already on line 22: remove it"),
        ("host = []", "host [] is empty: write e.g. \"chat.example.com\", or leave it out"),
        ("path = \"chat\"", "path \"chat\" does not begin with /: write e.g. \"/chat\""),
        (
            "path = \"/a?b\"",
            "path \"/a?b\" has more than a path: parameters are matched by query: write e.g. \"/chat\"",
        ),
        (
            "path = \"/a%20b\"",
            "path \"/a%20b\" has a %: the path is decoded before it is compared: write e.g. \"/chat\"",
        ),
        (
            "path_prefix = \"/a//b\"",
            "path_prefix \"/a//b\" never comes: paths with empty segments, . or .. are refused: write e.g. \"/api\"",
        ),
        (
            "path_regex = '^/(a'",
            "path_regex '^/(a' is not a regular expression: at character 3: unclosed group: write e.g. '^/room/[0-9]+$'",
        ),
        (
            "path_regex = 'a{5000}{5000}'",
            "path_regex 'a{5000}{5000}' takes more memory than a pattern may: write e.g. '^/room/[0-9]+$'",
        ),
        (
            "path = \"/a\"\npath_prefix = \"/b\"",
            "path_prefix \"/b\" stands beside path: write one of them, or two routes",
        ),
        (
            "method = \"get\"",
            "method \"get\" has small letters, which no method in use has: write \"GET\"",
        ),
        ("method = \"CONNECT\"", "method \"CONNECT\" is not served by any route: remove it"),
        ("header = { value = \"a\" }", "header: name is missing: add e.g. name = \"version\""),
        (
            "header = { name = \"Upgrade\" }",
            "header: name \"Upgrade\" is for the connection, and does not reach the routes: write upgrade = true in the route, or leave it out",
        ),
        (
            "header = { name = \"Host\" }",
            "header: name \"Host\" has a condition of its own: write host = in the route",
        ),
        (
            "query = { name = \"a\", value = \"b\", regex = \"c\" }",
            "query: regex \"c\" stands beside value: write one of them",
        ),
        (
            "query = 7",
            "query 7 is an integer, not an array of tables: write [[service.route.query]]",
        ),
    ];
    for (line, message) in cases {
        let at = if line.contains('\n') { 23 } else { 22 };
        route_refused(&[(&of(line), &format!("{at}: service \"chat\": route 1: {message}"))]);
    }
}

#[test]
fn wrong_actions() {
    let cases = [
        (
            20,
            "",
            "pool is missing: add it, or one of pools, redirect and answer, e.g. pool = \"default\"",
        ),
        (
            22,
            "pool = \"api\"\nanswer = { status = 200 }",
            "answer { status = 200 } stands beside pool: write one of them",
        ),
        (
            21,
            "pool = \"canray\"",
            "pool \"canray\" is not for a pool: the service has none named \"canray\": did you mean \"canary\"?",
        ),
        (
            21,
            "pool = \"rooms\"",
            "pool \"rooms\" is not for a pool: the service has none named \"rooms\": write \"default\", \"canary\" or \"api\", or add a [[service.pool]]",
        ),
        (
            21,
            "pools = { api = 5, other = 5 }",
            "pools: other 5 is not for a pool: the service has none named \"other\": write \"default\", \"canary\" or \"api\", or add a [[service.pool]]",
        ),
        (
            21,
            "pools = { api = 0, canary = 0 }",
            "pools { api = 0, canary = 0 } has only weights 0: give at least one pool a weight",
        ),
        (21, "pools = {}", "pools {} is empty: write e.g. pools = { default = 95, canary = 5 }"),
        (21, "pools = { api = 1001 }", "pools: api 1001 is out of range: write 0 to 1000"),
        (
            21,
            "redirect = {}",
            "redirect: scheme is missing: add it, or one of host, port, path and prefix, e.g. scheme = \"https\"",
        ),
        (
            21,
            "redirect = { status = 305, scheme = \"https\" }",
            "redirect: status 305 is not the status of a redirect: write 301, 302, 303, 307 or 308",
        ),
        (
            21,
            "redirect = { prefix = \"/a\" }",
            "redirect: prefix \"/a\" has no prefix to take the place of: add path_prefix to the route",
        ),
        (
            21,
            "redirect = { path = \"//evil\" }",
            "redirect: path \"//evil\" begins with two slashes, which is a host for browsers: write e.g. \"/new\"",
        ),
        (
            21,
            "answer = { status = 204, body = \"a\" }",
            "answer: body \"a\" is for a status that has none, 204: remove it",
        ),
        (21, "answer = { body = \"a\" }", "answer: status is missing: add e.g. status = 404"),
        (
            22,
            "answer = { status = 200 }\nrequest_headers = { remove = [\"a\"] }",
            "request_headers is for requests that go to a backend: remove it",
        ),
        (
            22,
            "pool = \"api\"\nrewrite_prefix = \"/b\"",
            "rewrite_prefix \"/b\" has no prefix to take the place of: add path_prefix to the route",
        ),
        (
            22,
            "pool = \"api\"\nresponse_headers = { set = { Content-Length = \"5\" } }",
            "response_headers: set: Content-Length is for \"content-length\", which belongs to the message or its connection: remove it",
        ),
        (
            22,
            "pool = \"api\"\nresponse_headers = { set = { X = \"a\\nb\" } }",
            "response_headers: set: X is not the value of a header: write up to 4096 visible ASCII characters, and spaces between them",
        ),
        (
            22,
            "pool = \"api\"\nrequest_headers = { add = { Host = \"a\" } }",
            "request_headers: add: Host would be a second one: set it",
        ),
    ];
    for (line, lines, message) in cases {
        route_refused(&[(lines, &format!("{line}: service \"chat\": route 1: {message}"))]);
    }
}

#[test]
fn pools_that_nobody_uses_and_pools_without_weight() {
    let text = with_routes("[[service.route]]\npool = \"api\"\n");
    let text =
        with(&text, "address = \"10.2.0.9:9000\"", "address = \"10.2.0.9:9000\"\nweight = 0");
    let (_, warnings) = parse("edge.toml", &text).unwrap();
    let warnings: Vec<_> = warnings.iter().map(Warning::to_string).collect();
    assert_eq!(
        warnings,
        [
            "edge.toml:12: service \"chat\": pool \"canary\" is in no route: it gets no client: name it in a route, or \
             remove it",
            "edge.toml:16: service \"chat\": pool \"api\" has only backends that drain or have weight 0: no new client \
             will be accepted: give at least one of them a weight and no drain",
        ]
    );
}

/// Whether the second of two routes is reported as out of reach.
fn covered(first: &str, second: &str) -> bool {
    let routes = format!(
        "[[service.route]]\npool = \"api\"\n{first}\n[[service.route]]\npool = \"canary\"\n{second}\n"
    );
    let warnings = warnings(&routes);
    assert!(warnings.iter().all(|it| it.contains(
        "route 2 can never match: route \"1\" on line 20 has all of its requests: put it before that one, or remove it"
    )), "{warnings:?}");
    warnings.len() == 1
}

#[test]
fn routes_that_an_earlier_one_covers_are_reported() {
    for (first, second) in [
        ("", ""),
        ("", "path = \"/a\"\nhost = \"b\""),
        ("path_prefix = \"/\"", ""),
        ("path_prefix = \"/a\"", "path = \"/a/b\""),
        ("path_prefix = \"/a\"", "path_prefix = [\"/a/b\", \"/a/\"]"),
        ("path_regex = '^/a'", "path = \"/ab\""),
        ("path_regex = '^/a'", "path_regex = '^/a'"),
        ("host = \"*.b\"", "host = [\"a.b\", \"*.a.b\"]"),
        ("method = [\"GET\", \"HEAD\"]", "method = \"GET\""),
        ("header = { name = \"a\" }", "header = { name = \"A\", value = \"1\" }"),
        (
            "query = { name = \"a\", regex = '^1' }",
            "query = [{ name = \"b\" }, { name = \"a\", value = \"12\" }]",
        ),
        ("upgrade = true", "upgrade = true\npath = \"/a\""),
    ] {
        assert!(covered(first, second), "{first} | {second}");
    }
}

#[test]
fn routes_with_something_of_their_own_are_not() {
    for (first, second) in [
        ("path = \"/a\"", ""),
        ("path_prefix = \"/a\"", "path_prefix = \"/ab\""),
        ("path_prefix = \"/a/\"", "path_prefix = \"/a\""),
        ("path_prefix = \"/a\"", "path = [\"/a\", \"/b\"]"),
        ("path_regex = '^/a$'", "path = \"/ab\""),
        ("host = \"a.b\"", "host = \"*.b\""),
        ("host = \"*.b\"", "host = \"b\""),
        ("host = \"*.b\"", ""),
        ("method = \"GET\"", "method = [\"GET\", \"HEAD\"]"),
        ("header = { name = \"a\", value = \"1\" }", "header = { name = \"a\" }"),
        ("query = { name = \"a\" }", "query = { name = \"A\" }"),
        ("upgrade = true", "upgrade = false"),
        ("upgrade = true", ""),
    ] {
        assert!(!covered(first, second), "{first} | {second}");
    }
}

#[test]
fn redirects_to_themselves_are_refused() {
    let message = "20: service \"chat\": route 1 redirects to itself: clients would go round: lead to another \
                   host or path, or add a condition that the new place does not meet";
    route_refused(&[
        ("redirect = { path = \"/a\" }", message),
        ("path_prefix = \"/a\"\nredirect = { path = \"/a/b\" }", message),
        ("path_prefix = \"/a\"\nredirect = { prefix = \"/a/b\" }", message),
        ("path_regex = 'a'\nredirect = { path = \"/cat\" }", message),
        ("host = \"*.b\"\nredirect = { host = \"a.b\" }", message),
    ]);
    for lines in [
        "path = \"/a\"\nredirect = { path = \"/b\" }",
        "redirect = { scheme = \"https\" }",
        "redirect = { port = 8443 }",
        "redirect = { host = \"elsewhere\" }",
        "method = \"GET\"\nredirect = { path = \"/a\" }",
        "host = \"a\"\nredirect = { host = \"b\" }",
    ] {
        route(lines);
    }
    let after_the_place =
        "path = \"/a\"\npool = \"api\"\n[[service.route]]\nredirect = { path = \"/a\" }";
    assert_eq!(route(after_the_place).name, "1");
}
