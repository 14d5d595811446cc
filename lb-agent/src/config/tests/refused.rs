//! What is refused in a single key or table, and with which words.

use super::*;

#[test]
fn keys_that_are_not_known() {
    refused(&[
        (
            "name = \"e\"",
            "name = \"e\"\nsource_adresses = []",
            "edge.toml:3: edge: key \"source_adresses\" is not known: did you mean \"source_addresses\"?",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nflows_ipv4 = 5000",
            "edge.toml:3: edge: key \"flows_ipv4\" is not known: it belongs in [edge.tables]",
        ),
        (
            "[edge]",
            "weight = 5\n[edge]",
            "edge.toml:1: key \"weight\" is not known: it belongs in [[service.backend]]",
        ),
        (
            "[edge]",
            "[egde]\n[edge]",
            "edge.toml:1: key \"egde\" is not known: did you mean \"edge\"?",
        ),
        (
            "address = ",
            "colour = \"red\"\naddress = ",
            "edge.toml:10: service \"chat\": backend \"10.2.0.2:9000\": key \"colour\" is not known: \
             known here are name, address, weight, drain, zone",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\nhealth = { kind = \"tcp\", intervall = \"1s\" }",
            "edge.toml:8: service \"chat\": health: key \"intervall\" is not known: did you mean \"interval\"?",
        ),
        (
            "[[service]]",
            "[edge.tables]\nbackend = 5\n[[service]]",
            "edge.toml:7: edge: tables: key \"backend\" is not known: did you mean \"backends\"?",
        ),
    ]);
}

#[test]
fn values_of_the_wrong_type() {
    refused(&[
        (
            "[\"eth0\"]",
            "\"eth0\"",
            "edge.toml:3: edge: interfaces \"eth0\" is a string, not an array: write e.g. interfaces = [\"eth0\"]",
        ),
        (
            "hash_seed = \"s\"",
            "hash_seed = 5",
            "edge.toml:4: edge: hash_seed is an integer, not a string: \
             write e.g. hash_seed = \"same on every edge\"",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nreset_rate = \"1000\"",
            "edge.toml:3: edge: reset_rate \"1000\" is a string, not an integer: write e.g. reset_rate = 1000",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nreset_rate = 1.5",
            "edge.toml:3: edge: reset_rate 1.5 is a float, not an integer: write e.g. reset_rate = 1000",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nreset_rate = 1979-05-27",
            "edge.toml:3: edge: reset_rate 1979-05-27 is a date, not an integer: write e.g. reset_rate = 1000",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\ntables = true",
            "edge.toml:3: edge: tables true is true or false, not a table: write [edge.tables]",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\nfail_open = \"yes\"",
            "edge.toml:8: service \"chat\": fail_open \"yes\" is a string, not true or false: \
             write e.g. fail_open = true",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\nidle_timeout = 3600",
            "edge.toml:8: service \"chat\": idle_timeout 3600 is an integer, not a duration: \
             write e.g. idle_timeout = \"1h\"",
        ),
        (
            "[[service.backend]]",
            "[service.backend]",
            "edge.toml:9: service \"chat\": backend is a table, not an array of tables: write [[service.backend]]",
        ),
        (
            "[[service.backend]]\naddress = \"10.2.0.2:9000\"",
            "backend = [\"10.2.0.2:9000\"]",
            "edge.toml:9: service \"chat\": backend \"10.2.0.2:9000\" is a string, not a table: \
             write [[service.backend]]",
        ),
        (
            "listen = [\"203.0.113.10:80\"]",
            "listen = [\n  \"203.0.113.10:80\",\n  80,\n]",
            "edge.toml:10: service \"chat\": listen 80 is an integer, not a string: \
             write e.g. listen = \"203.0.113.10:80\"",
        ),
    ]);
    assert_eq!(
        errors(&format!("service = 1\n{EDGE}")),
        "edge.toml:1: service 1 is an integer, not an array of tables: write [[service]]"
    );
}

#[test]
fn keys_that_are_missing() {
    refused(&[
        ("name = \"e\"\n", "", "edge.toml:1: edge: name is missing: add e.g. name = \"edge-1\""),
        (
            "listen = [\"203.0.113.10:80\"]\n",
            "",
            "edge.toml:6: service \"chat\": listen is missing: add e.g. listen = [\"203.0.113.10:80\"]",
        ),
        (
            "name = \"chat\"\n",
            "",
            "edge.toml:6: service 1: name is missing: add e.g. name = \"chat\"",
        ),
        (
            "address = \"10.2.0.2:9000\"",
            "name = \"chat-1\"",
            "edge.toml:9: service \"chat\": backend \"chat-1\": address is missing: \
             add e.g. address = \"10.2.0.2:9000\"",
        ),
        (
            "[[service.backend]]\naddress = \"10.2.0.2:9000\"",
            "",
            "edge.toml:6: service \"chat\": [[service.backend]] is missing: \
             add e.g. [[service.backend]] with address = \"10.2.0.2:9000\"",
        ),
        (
            "name = \"chat\"",
            "name = \"chat\"\nhealth = {}",
            "edge.toml:8: service \"chat\": health: kind is missing: add e.g. kind = \"tcp\"",
        ),
    ]);
}

#[test]
fn addresses_of_listeners() {
    const WRITE: &str = "write e.g. \"203.0.113.10:80\"";
    const UNICAST: &str = "write a unicast address, e.g. \"203.0.113.10:80\"";
    for (address, message) in [
        ("", format!("is not an IP address and port: {WRITE}")),
        ("203.0.113.256:80", format!("is not an IP address and port: {WRITE}")),
        ("203.0.113.10:65536", format!("is not an IP address and port: {WRITE}")),
        ("203.0.113.10", "has no port: write e.g. \"203.0.113.10:9000\"".to_owned()),
        ("2001:db8::10:80", "has no port: write e.g. \"[2001:db8::10:80]:9000\"".to_owned()),
        ("chat.example:80", format!("is a host name: names are not resolved: {WRITE}")),
        ("203.0.113.10:0", "has port 0: write a port from 1 to 65535".to_owned()),
        ("0.0.0.0:80", format!("is the unspecified address: {UNICAST}")),
        ("[::]:80", format!("is the unspecified address: {UNICAST}")),
        ("127.0.0.1:80", format!("is a loopback address, which never reaches a NIC: {UNICAST}")),
        ("[::1]:80", format!("is a loopback address, which never reaches a NIC: {UNICAST}")),
        ("224.0.0.1:80", format!("is a multicast address: {UNICAST}")),
        ("[ff02::1]:80", format!("is a multicast address: {UNICAST}")),
        ("255.255.255.255:80", format!("is the broadcast address: {UNICAST}")),
        (
            "169.254.0.1:80",
            format!("is a link-local address, which means another host on every link: {UNICAST}"),
        ),
        (
            "[fe80::1]:80",
            format!("is a link-local address, which means another host on every link: {UNICAST}"),
        ),
        ("[fe80::1%2]:80", format!("has a zone, which belongs to link-local addresses: {WRITE}")),
        ("[::ffff:203.0.113.10]:80", format!("is an IPv4 address written as IPv6: {UNICAST}")),
    ] {
        let text = with(&minimal(), "\"203.0.113.10:80\"", &format!("{address:?}"));
        let expected = format!("edge.toml:8: service \"chat\": listen {address:?} {message}");
        assert_eq!(errors(&text), expected);
    }
}

#[test]
fn values_of_a_service() {
    let many: Vec<String> = (1..=65).map(|port| format!("203.0.113.10:{port}")).collect();
    refused(&[
        (
            "\"203.0.113.10:80\"",
            "",
            "edge.toml:8: service \"chat\": listen [] is empty: write e.g. listen = [\"203.0.113.10:80\"]",
        ),
        (
            "[\"203.0.113.10:80\"]",
            &format!("{many:?}"),
            "edge.toml:8: service \"chat\": listen [\"203.0.113.10:1\", \"203.0.113.10:2\", \"203.0.113.10:3\", \"203.… \
             has 65 elements: write at most 64",
        ),
        (
            "\"chat\"",
            "\"chat\"\nmode = \"tcp\"",
            "edge.toml:8: service \"chat\": mode \"tcp\" is not a choice here: write \"l4\" or \"l7\"",
        ),
        (
            "\"chat\"",
            "\"chat\"\nforward = \"gre\"",
            "edge.toml:8: service \"chat\": forward \"gre\" is not a choice here: \
             write \"nat\", \"dsr\" or \"ipip\"",
        ),
        (
            "\"chat\"",
            "\"chat\"\nidle_timeout = \"8d\"\nclose_timeout = \"500ms\"",
            "edge.toml:8: service \"chat\": idle_timeout \"8d\" is out of range: write \"1s\" to \"7d\"\n\
             edge.toml:9: service \"chat\": close_timeout \"500ms\" is out of range: write \"1s\" to \"10m\"",
        ),
        (
            "\"chat\"",
            "\"chat\"\nidle_timeout = \"60\"",
            "edge.toml:8: service \"chat\": idle_timeout \"60\" has no unit: \
             write a number and ms, s, m, h or d, e.g. \"1h\"",
        ),
    ]);
}

#[test]
fn values_of_a_backend() {
    refused(&[
        (
            "address = \"10.2.0.2:9000\"",
            "name = \"chat-1\"\naddress = \"10.2.0.300:9000\"",
            "edge.toml:11: service \"chat\": backend \"chat-1\": address \"10.2.0.300:9000\" \
             is not an IP address and port: write e.g. \"10.2.0.2:9000\"",
        ),
        (
            "\"10.2.0.2:9000\"",
            "\"chat-1.internal:9000\"",
            "edge.toml:10: service \"chat\": backend \"chat-1.internal:9000\": address \"chat-1.internal:9000\" \
             is a host name: names are not resolved: write e.g. \"10.2.0.2:9000\"",
        ),
        (
            "address =",
            "weight = 1001\nzone = \"\"\naddress =",
            "edge.toml:10: service \"chat\": backend \"10.2.0.2:9000\": weight 1001 is out of range: \
             write 0 to 1000\n\
             edge.toml:11: service \"chat\": backend \"10.2.0.2:9000\": zone \"\" is not a name: \
             write 1 to 63 letters, digits and ._-, e.g. \"rack-1\"",
        ),
        (
            "address =",
            "weight = -1\naddress =",
            "edge.toml:10: service \"chat\": backend \"10.2.0.2:9000\": weight -1 is out of range: write 0 to 1000",
        ),
    ]);
}

#[test]
fn a_name_in_a_message_cannot_break_its_line() {
    let text = with(&minimal(), "name = \"chat\"", r#"name = "a\nb\u001b[31m""#);
    let expected = "edge.toml:7: service \"a…\": name \"a\\nb\\u001b[31m\" is not a name: \
                    write 1 to 63 letters, digits and ._-, e.g. \"chat\"";
    assert_eq!(errors(&text), expected);
}

#[test]
fn many_errors_are_all_reported_in_the_order_of_lines() {
    let text = r#"[edge]
name = "edge 1"
interfaces = ["eth0", 5]
hash_sed = "s"
reset_rate = "many"
[edge.tables]
flows_ipv4 = 3

[[service]]
name = "chat"
listen = ["203.0.113.10:80", "203.0.113.10"]
mode = "l5"
forward = "net"
health = { kind = "tcp", path = "/", interval = "2" }
[[service.backend]]
address = "chat-1:9000"
weigth = 5
[[service.backend]]
name = "chat-2"
"#;
    let expected = r#"edge.toml:1: edge: hash_seed is missing: add e.g. hash_seed = "same on every edge"
edge.toml:2: edge: name "edge 1" is not a name: write 1 to 63 letters, digits and ._-, e.g. "edge-1"
edge.toml:3: edge: interfaces 5 is an integer, not a string: write e.g. interfaces = ["eth0"]
edge.toml:4: edge: key "hash_sed" is not known: did you mean "hash_seed"?
edge.toml:5: edge: reset_rate "many" is a string, not an integer: write e.g. reset_rate = 1000
edge.toml:7: edge: tables: flows_ipv4 3 is out of range: write 1024 to 16777216
edge.toml:11: service "chat": listen "203.0.113.10" has no port: write e.g. "203.0.113.10:9000"
edge.toml:12: service "chat": mode "l5" is not a choice here: write "l4" or "l7"
edge.toml:13: service "chat": forward "net" is not a choice here: write "nat", "dsr" or "ipip"
edge.toml:14: service "chat": health: path "/" is not for kind "tcp": remove it, or write kind = "http", "https" or "websocket"
edge.toml:14: service "chat": health: interval "2" has no unit: write a number and ms, s, m, h or d, e.g. "2s"
edge.toml:16: service "chat": backend "chat-1:9000": address "chat-1:9000" is a host name: names are not resolved: write e.g. "10.2.0.2:9000"
edge.toml:17: service "chat": backend "chat-1:9000": key "weigth" is not known: did you mean "weight"?
edge.toml:18: service "chat": backend "chat-2": address is missing: add e.g. address = "10.2.0.2:9000""#;
    assert_eq!(errors(text), expected);
}

/// What is refused is shown to everybody who can read the status.
#[test]
fn a_secret_is_in_no_message() {
    let headers = |lines: &str| {
        let route = format!("[[service.route]]\npool = \"default\"\n{lines}\n");
        with(&minimal_l7(), "[[service.backend]]", &format!("{route}[[service.backend]]"))
    };
    let seed = |value: &str| with(&minimal(), "hash_seed = \"s\"", &format!("hash_seed = {value}"));
    for text in [
        seed(&format!("\"nobody{}\"", "y".repeat(256))),
        seed("[\"nobody\"]"),
        seed("\"nobody"),
        seed("nobody"),
        headers("request_headers = \"Authorization: nobody\""),
        headers("request_headers = { set = \"nobody\" }"),
        headers("request_headers = { set = { Authorization = \"nobody \" } }"),
        headers(
            "[service.route.response_headers]\nadd = { X-Key = [\"nobody\"], Expect = \"nobody\" }",
        ),
        headers("request_headers = { set = { Authorization = \"nobody\" }"),
    ] {
        let message = errors(&text);
        assert!(!message.contains("nobody"), "{message}");
    }
}
