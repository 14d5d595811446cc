//! What is refused in an l7 service and in `[edge.sidecar]`.

use super::*;

#[test]
fn keys_of_the_other_mode() {
    for (line, value) in [
        ("forward = \"nat\"", "forward \"nat\""),
        ("forward = \"gre\"", "forward \"gre\""),
        ("reset_on_backend_death = true", "reset_on_backend_death true"),
    ] {
        let text = with(&minimal_l7(), "name = \"chat\"", &format!("name = \"chat\"\n{line}"));
        assert_eq!(
            errors(&text),
            format!(
                "edge.toml:8: service \"chat\": {value} is not for mode \"l7\": \
                 remove it, or write mode = \"l4\""
            )
        );
    }
    for (line, value) in [
        ("balance = \"maglev\"", "balance \"maglev\""),
        ("balance = \"other\"", "balance \"other\""),
        ("upgrades = []", "upgrades []"),
        ("splice = \"off\"", "splice \"off\""),
        ("access_log = 0", "access_log 0"),
        ("http = { colour = 1 }", "http { colour = 1 }"),
        ("forwarded = {}", "forwarded {}"),
        ("drain = {}", "drain {}"),
        ("pool = []", "pool []"),
        ("route = []", "route []"),
    ] {
        let text = with(&minimal(), "name = \"chat\"", &format!("name = \"chat\"\n{line}"));
        assert_eq!(
            errors(&text),
            format!(
                "edge.toml:8: service \"chat\": {value} is not for mode \"l4\": \
                 remove it, or write mode = \"l7\""
            )
        );
    }
    refused(&[
        (
            "address =",
            "drain = false\naddress =",
            "edge.toml:10: service \"chat\": backend \"10.2.0.2:9000\": drain false is not for mode \"l4\": \
             remove it; weight = 0 keeps new connections away",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\naffinity = { kind = \"source\" }",
            "edge.toml:8: service \"chat\": affinity { kind = \"source\" } is not for mode \"l4\", which reads no \
             requests: write \"none\" or \"source\", or mode = \"l7\"",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\naffinity = \"cookie\"",
            "edge.toml:8: service \"chat\": affinity \"cookie\" is not for mode \"l4\", which reads no \
             requests: write \"none\" or \"source\", or mode = \"l7\"",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\naffinity = \"client\"",
            "edge.toml:8: service \"chat\": affinity \"client\" is not a choice here: write \"none\" or \"source\"",
        ),
    ]);
}

/// A mistyped mode must not bring messages about keys that are right for the one that was meant.
#[test]
fn nothing_is_concluded_from_a_mode_that_is_none() {
    let text = with(&minimal_l7(), "mode = \"l7\"", "mode = \"http\"\nhttp = { retries = 1 }");
    let text = with(&text, "address =", "drain = true\naddress =");
    assert_eq!(
        errors(&text),
        "edge.toml:9: service \"chat\": mode \"http\" is not a choice here: write \"l4\" or \"l7\""
    );
}

#[test]
fn values_of_a_service() {
    let many: Vec<String> = (1..=17).map(|n| format!("p{n}")).collect();
    l7_refused(&[
        (
            "balance = \"random\"",
            "edge.toml:10: service \"chat\": balance \"random\" is not a choice here: \
             write \"least-connections\", \"round-robin\" or \"maglev\"",
        ),
        (
            "splice = \"on\"",
            "edge.toml:10: service \"chat\": splice \"on\" is not a choice here: write \"auto\" or \"off\"",
        ),
        (
            "splice = true",
            "edge.toml:10: service \"chat\": splice true is true or false, not a string: \
             write e.g. splice = \"auto\"",
        ),
        (
            "slice = \"off\"",
            "edge.toml:10: service \"chat\": key \"slice\" is not known: did you mean \"splice\"?",
        ),
        (
            "access_log = 1.01",
            "edge.toml:10: service \"chat\": access_log 1.01 is out of range: write 0 to 1",
        ),
        (
            "access_log = nan",
            "edge.toml:10: service \"chat\": access_log nan is out of range: write 0 to 1",
        ),
        (
            "access_log = \"off\"",
            "edge.toml:10: service \"chat\": access_log \"off\" is a string, not a number: write e.g. access_log = 1.0",
        ),
        (
            "upgrades = \"websocket\"",
            "edge.toml:10: service \"chat\": upgrades \"websocket\" is a string, not an array: \
             write e.g. upgrades = [\"websocket\"]",
        ),
        (
            "upgrades = [\"web socket\"]",
            "edge.toml:10: service \"chat\": upgrades \"web socket\" is not the name of a protocol: \
             write 1 to 128 letters, digits and !#$%&'*+-.^_`|~, e.g. \"websocket\"",
        ),
        (
            "upgrades = [\"H2C\"]",
            "edge.toml:10: service \"chat\": upgrades \"H2C\" would carry requests past the sidecar, unread: remove it",
        ),
        (
            "upgrades = [\"websocket\",\n\"WebSocket\"]",
            "edge.toml:11: service \"chat\": upgrades \"WebSocket\" is already on line 10: remove it",
        ),
        (
            &format!("upgrades = {many:?}"),
            "edge.toml:10: service \"chat\": upgrades [\"p1\", \"p2\", \"p3\", \"p4\", \"p5\", \"p6\", \"p7\", \"p8\", \"p9\", \"p10\"… \
             has 17 elements: write at most 16",
        ),
        (
            "http = { retrys = 1 }",
            "edge.toml:10: service \"chat\": http: key \"retrys\" is not known: did you mean \"retries\"?",
        ),
        (
            "http = 5",
            "edge.toml:10: service \"chat\": http 5 is an integer, not a table: write [service.http]",
        ),
        (
            "[service.http]\nretries = 11\nhead_bytes = 1000",
            "edge.toml:11: service \"chat\": http: retries 11 is out of range: write 0 to 10\n\
             edge.toml:12: service \"chat\": http: head_bytes 1000 is out of range: write 1024 to 65536",
        ),
        (
            "http = { tcp_keepalive = \"1500ms\" }",
            "edge.toml:10: service \"chat\": http: tcp_keepalive \"1500ms\" is not a whole number of seconds: \
             write e.g. \"60s\"",
        ),
        (
            "drain = { rate = 0 }",
            "edge.toml:10: service \"chat\": drain: rate 0 is out of range: write 1 to 100000",
        ),
        (
            "drain = true",
            "edge.toml:10: service \"chat\": drain true is true or false, not a table: write [service.drain]",
        ),
    ]);
}

/// Each case is the inside of `affinity = { .. }` and the message after `affinity: `.
fn affinity_refused(cases: &[(&str, &str)]) {
    let base =
        with(&minimal_l7(), "[[service]]", "sidecar = { cookie_keys = \"/k\" }\n[[service]]");
    for (affinity, message) in cases {
        let text = with(&base, "mode = ", &format!("affinity = {{ {affinity} }}\nmode = "));
        let expected = format!("edge.toml:10: service \"chat\": affinity: {message}");
        assert_eq!(errors(&text), expected, "\n{text}");
    }
}

#[test]
fn affinity_in_words() {
    l7_refused(&[
        (
            "affinity = \"header\"",
            "edge.toml:10: service \"chat\": affinity \"header\" needs a name: \
             write e.g. affinity = { kind = \"header\", name = \"user\" }",
        ),
        (
            "affinity = \"sticky\"",
            "edge.toml:10: service \"chat\": affinity \"sticky\" is not a choice here: \
             write \"none\", \"source\" or \"cookie\"",
        ),
        (
            "affinity = 1",
            "edge.toml:10: service \"chat\": affinity 1 is an integer, not a table: write [service.affinity]",
        ),
        (
            "affinity = {}",
            "edge.toml:10: service \"chat\": affinity: kind is missing: add e.g. kind = \"cookie\"",
        ),
    ]);
}

#[test]
fn affinity_in_tables() {
    const TOKEN: &str = "write 1 to 128 letters, digits and !#$%&'*+-.^_`|~, e.g.";
    affinity_refused(&[
        (
            r#"kind = "ip""#,
            r#"kind "ip" is not a choice here: write "cookie", "app-cookie", "header", "query", "source" or "none""#,
        ),
        (
            r#"kind = "source", name = "x""#,
            r#"name "x" is not for kind "source": remove it, or write kind = "cookie", "app-cookie", "header" or "query""#,
        ),
        (
            r#"kind = "header", name = "x", ttl = "1d""#,
            r#"ttl "1d" is not for kind "header": remove it, or write kind = "cookie""#,
        ),
        (r#"kind = "header""#, r#"name is missing: add e.g. name = "X-User""#),
        (r#"kind = "app-cookie""#, r#"name is missing: add e.g. name = "JSESSIONID""#),
        (r#"kind = "query""#, r#"name is missing: add e.g. name = "sid""#),
        (
            r#"kind = "header", name = "X User""#,
            &format!(r#"name "X User" is not the name of a header: {TOKEN} "X-User""#),
        ),
        (
            r#"kind = "header", name = "X:User""#,
            &format!(r#"name "X:User" is not the name of a header: {TOKEN} "X-User""#),
        ),
        (
            r#"kind = "app-cookie", name = "a=b""#,
            &format!(r#"name "a=b" is not the name of a cookie: {TOKEN} "JSESSIONID""#),
        ),
        (
            r#"kind = "cookie", name = "a;b""#,
            &format!(r#"name "a;b" is not the name of a cookie: {TOKEN} "sluice""#),
        ),
        (
            r#"kind = "cookie", name = """#,
            &format!(r#"name "" is not the name of a cookie: {TOKEN} "sluice""#),
        ),
        (
            r#"kind = "query", name = "a&b""#,
            r#"name "a&b" is not the name of a parameter: write 1 to 128 visible ASCII characters without &=#%+;"<>, e.g. "sid""#,
        ),
    ]);
}

#[test]
fn attributes_of_a_cookie() {
    affinity_refused(&[
        (r#"kind = "cookie", ttl = "401d""#, r#"ttl "401d" is out of range: write "1s" to "400d""#),
        (
            r#"kind = "cookie", ttl = "forever""#,
            r#"ttl "forever" is not a duration: write a number and ms, s, m, h or d, e.g. "1d""#,
        ),
        (
            r#"kind = "cookie", ttl = "1500ms""#,
            r#"ttl "1500ms" is not a whole number of seconds: write e.g. "1d", or "session""#,
        ),
        (
            r#"kind = "cookie", ttl = 60"#,
            r#"ttl 60 is an integer, not a duration: write e.g. ttl = "1d""#,
        ),
        (
            r#"kind = "cookie", path = "chat""#,
            r#"path "chat" is not a cookie's path: write /, then visible ASCII without ;, at most 1024 bytes, e.g. "/""#,
        ),
        (
            r#"kind = "cookie", path = "/; Secure""#,
            r#"path "/; Secure" is not a cookie's path: write /, then visible ASCII without ;, at most 1024 bytes, e.g. "/""#,
        ),
        (
            r#"kind = "cookie", domain = ".chat.example""#,
            r#"domain ".chat.example" is not a DNS name: write e.g. "chat.example""#,
        ),
        (
            r#"kind = "cookie", domain = "10.2.0.1""#,
            r#"domain "10.2.0.1" is not a DNS name: write e.g. "chat.example""#,
        ),
        (
            r#"kind = "cookie", same_site = "none""#,
            r#"same_site "none" is ignored by browsers without secure: add secure = true"#,
        ),
        (
            r#"kind = "cookie", same_site = "Lax""#,
            r#"same_site "Lax" is not a choice here: write "lax", "strict" or "none""#,
        ),
        (
            r#"kind = "cookie", secure = 1"#,
            r#"secure 1 is an integer, not true or false: write e.g. secure = false"#,
        ),
    ]);
    const HOST: &str = r#"is refused by browsers without secure, with a domain and with another path than /: write secure = true, path = "/" and no domain, or another name"#;
    for rest in [
        "secure = false",
        r#"secure = true, path = "/a""#,
        r#"secure = true, domain = "a.example""#,
    ] {
        affinity_refused(&[(
            &format!("kind = \"cookie\", name = \"__host-a\", {rest}"),
            &format!("name \"__host-a\" {HOST}"),
        )]);
    }
    affinity_refused(&[(
        r#"kind = "cookie", name = "__Secure-a""#,
        r#"name "__Secure-a" is refused by browsers without secure: write secure = true, or another name"#,
    )]);
}

#[test]
fn a_cookie_without_keys() {
    const MESSAGE: &str = "signs cookies, and edge.sidecar.cookie_keys names no keys: \
        write cookie_keys = \"/etc/sluice/cookie.keys\" in [edge.sidecar], and make the file, the same on every edge: \
        (umask 077; echo \"k1 $(openssl rand -base64 32)\" > /etc/sluice/cookie.keys)";
    l7_refused(&[
        (
            "affinity = \"cookie\"",
            &format!("edge.toml:10: service \"chat\": affinity \"cookie\" {MESSAGE}"),
        ),
        (
            "[service.affinity]\nkind = \"cookie\"",
            &format!("edge.toml:10: service \"chat\": affinity {MESSAGE}"),
        ),
    ]);
    // A path that is wrong is one mistake.
    let text = with(&minimal_l7(), "mode =", "affinity = \"cookie\"\nmode =");
    let text = with(&text, "[[service]]", "sidecar = { cookie_keys = \"keys\" }\n[[service]]");
    assert_eq!(
        errors(&text),
        "edge.toml:6: edge: sidecar: cookie_keys \"keys\" is not an absolute path: \
         write e.g. \"/etc/sluice/cookie.keys\""
    );
}

#[test]
fn what_backends_are_told() {
    const ID: &str = "write 1 to 128 letters, digits and !#$%&'*+-.^_`|~, e.g. \"X-Request-Id\", or \"\" for none";
    const PREFIX: &str = "is not an address and prefix length: write e.g. \"10.0.0.0/8\"";
    for (keys, message) in [
        ("mode = \"add\"", "mode \"add\" is not a choice here: write \"append\", \"replace\" or \"keep\"".to_owned()),
        ("trusted = \"10.0.0.0/8\"", "trusted \"10.0.0.0/8\" is a string, not an array: write e.g. trusted = [\"10.0.0.0/8\"]".to_owned()),
        ("trusted = [\"10.0.0.0/33\"]", format!("trusted \"10.0.0.0/33\" {PREFIX}")),
        ("trusted = [\"10.0.0.0/\"]", format!("trusted \"10.0.0.0/\" {PREFIX}")),
        ("trusted = [\"10.0.0.0/+8\"]", format!("trusted \"10.0.0.0/+8\" {PREFIX}")),
        ("trusted = [\"::/129\"]", format!("trusted \"::/129\" {PREFIX}")),
        ("trusted = [\"10/8\"]", format!("trusted \"10/8\" {PREFIX}")),
        ("trusted = [\"lan\"]", format!("trusted \"lan\" {PREFIX}")),
        (
            "trusted = [\"10.0.0.1/8\"]",
            "trusted \"10.0.0.1/8\" has bits beyond the prefix length 8: write \"10.0.0.0/8\"".to_owned(),
        ),
        (
            "trusted = [\"2001:db8::1/0\"]",
            "trusted \"2001:db8::1/0\" has bits beyond the prefix length 0: write \"::/0\"".to_owned(),
        ),
        (
            "trusted = [\"192.0.2.1\", \"192.0.2.1/32\"]",
            "trusted \"192.0.2.1/32\" is already on line 10: remove it".to_owned(),
        ),
        ("request_id = \"X Id\"", format!("request_id \"X Id\" is not the name of a header: {ID}")),
        ("request_id = \"Host\"", "request_id \"Host\" has another meaning: write e.g. \"X-Request-Id\"".to_owned()),
        (
            "request_id = false",
            "request_id false is true or false, not a string: write e.g. request_id = \"X-Request-Id\"".to_owned(),
        ),
    ] {
        let lines = format!("forwarded = {{ {keys} }}");
        let expected = format!("edge.toml:10: service \"chat\": forwarded: {message}");
        l7_refused(&[(&lines, &expected)]);
    }
}

#[test]
fn the_sidecars_processes() {
    let long = "u".repeat(33);
    for (line, message) in [
        (
            "user = \"root\"",
            "user \"root\" needs no privilege and gets none: write e.g. \"nobody\"".to_owned(),
        ),
        ("user = \"\"", "user \"\" is not the name of a user: write e.g. \"nobody\"".to_owned()),
        (
            "user = \"-x\"",
            "user \"-x\" is not the name of a user: write e.g. \"nobody\"".to_owned(),
        ),
        (
            "user = \"a b\"",
            "user \"a b\" is not the name of a user: write e.g. \"nobody\"".to_owned(),
        ),
        (
            &format!("user = {long:?}"),
            format!("user {long:?} is not the name of a user: write e.g. \"nobody\""),
        ),
        ("workers = 65", "workers 65 is out of range: write 0 to 64".to_owned()),
        (
            "cookie_keys = \"\"",
            "cookie_keys \"\" is not an absolute path: write e.g. \"/etc/sluice/cookie.keys\""
                .to_owned(),
        ),
        (
            "access_log = \"stderr\"",
            "access_log \"stderr\" is not an absolute path: \
             write e.g. \"stdout\", \"off\" or \"/var/log/sluice/access.log\""
                .to_owned(),
        ),
        (
            "accesslog = \"off\"",
            "key \"accesslog\" is not known: did you mean \"access_log\"?".to_owned(),
        ),
    ] {
        let text = with(&minimal(), "[[service]]", &format!("[edge.sidecar]\n{line}\n[[service]]"));
        assert_eq!(errors(&text), format!("edge.toml:7: edge: sidecar: {message}"));
    }
}

/// Listeners and backends of both modes are in one network.
#[test]
fn addresses_that_are_taken() {
    let l7 = with(L7_SERVICE, "chat", "rooms");
    assert_eq!(
        errors(&format!("{}{l7}", minimal())),
        "edge.toml:13: service \"rooms\": listen \"203.0.113.10:80\" is already taken by service \"chat\": listen \
         on line 8: give each listener an address or port of its own"
    );
    let l7 = with(&with(&l7, ":80", ":81"), "10.2.0.2:9000", "203.0.113.10:80");
    assert_eq!(
        errors(&format!("{}{l7}", minimal())),
        "edge.toml:16: service \"rooms\": backend \"203.0.113.10:80\": address \"203.0.113.10:80\" is the listener \
         on line 8: packets would go in a loop: write an address of the backend's own"
    );
}

#[test]
fn the_proxy_protocol() {
    const PLACE: &str = "edge.toml:10: service \"chat\": proxy_protocol";
    const NAME: &str = "name the proxies, e.g.";
    for (keys, message) in [
        (
            "accept = \"required\"",
            format!(": trusted is missing: {NAME} trusted = [\"10.0.0.0/8\"]"),
        ),
        (
            "accept = \"required\", trusted = []",
            format!(
                ": trusted [] names nobody: {NAME} [\"10.0.0.0/8\"], or write accept = \"off\""
            ),
        ),
        (
            "trusted = [\"10.0.0.0/8\"]",
            ": trusted [\"10.0.0.0/8\"] has no meaning without accept: \
             remove it, or write accept = \"required\""
                .to_owned(),
        ),
        (
            "accept = \"optional\"",
            ": accept \"optional\" is not a choice here: write \"off\" or \"required\"".to_owned(),
        ),
        (
            "send = \"v3\"",
            ": send \"v3\" is not a choice here: write \"off\", \"v1\" or \"v2\"".to_owned(),
        ),
    ] {
        let line = format!("proxy_protocol = {{ {keys} }}");
        l7_refused(&[(&line, &format!("{PLACE}{message}"))]);
    }
    let l4 = with(&minimal(), "[[service]]\n", "[[service]]\nproxy_protocol = { send = \"v2\" }\n");
    assert_eq!(
        errors(&l4),
        "edge.toml:7: service \"chat\": proxy_protocol { send = \"v2\" } is not for mode \"l4\": XDP cannot put \
         bytes into a stream that it does not end: write mode = \"l7\", or forward = \"dsr\" or \"ipip\", which \
         keep the client's address"
    );
}

#[test]
fn limits() {
    const PLACE: &str = "edge.toml:10: service \"chat\": limits";
    for (keys, message) in [
        ("queue = 65537", "queue 65537 is out of range: write 0 to 65536"),
        ("source_prefix_ipv4 = 33", "source_prefix_ipv4 33 is out of range: write 0 to 32"),
        (
            "bytes_per_second = 16383",
            "bytes_per_second 16383 is too slow: write 0 for no limit, or at least 16384",
        ),
        (
            "queue_timeout = \"1ms\"",
            "queue_timeout \"1ms\" is out of range: write \"10ms\" to \"1m\"",
        ),
        ("connection = 5", "key \"connection\" is not known: did you mean \"connections\"?"),
    ] {
        let line = format!("limits = {{ {keys} }}");
        l7_refused(&[(&line, &format!("{PLACE}: {message}"))]);
    }
    let l4 = with(&minimal(), "[[service]]\n", "[[service]]\nlimits = { connections = 5 }\n");
    assert_eq!(
        errors(&l4),
        "edge.toml:7: service \"chat\": limits { connections = 5 } is not for mode \"l4\": remove it, or write \
         mode = \"l7\""
    );
}

#[test]
fn outliers() {
    let error = |message: &str| format!("edge.toml:10: service \"chat\": outlier: {message}");
    for (outlier, message) in [
        (
            "base_ejection_time = \"1m\", max_ejection_time = \"30s\"",
            error(
                "max_ejection_time \"30s\" is shorter than base_ejection_time \"1m\": write at least \"1m\"",
            ),
        ),
        (
            "max_ejection_percent = 0",
            error("max_ejection_percent 0 is out of range: write 1 to 100"),
        ),
        ("consecutive_5xx = 1001", error("consecutive_5xx 1001 is out of range: write 0 to 1000")),
        (
            "max_ejection_percents = 10",
            error(
                "key \"max_ejection_percents\" is not known: did you mean \"max_ejection_percent\"?",
            ),
        ),
    ] {
        l7_refused(&[(&format!("outlier = {{ {outlier} }}"), &message)]);
    }
    let text = with(&minimal(), "[[service]]\n", "[[service]]\noutlier = {}\n");
    assert_eq!(
        errors(&text),
        "edge.toml:7: service \"chat\": outlier {} is not for mode \"l4\": remove it, or write mode = \"l7\""
    );
}
