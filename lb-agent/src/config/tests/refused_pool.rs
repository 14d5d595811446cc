//! What is refused between tables: each case is a list of services, and all messages that follow.

use super::*;

/// An edge with a source address of each IP version; five lines.
const BOTH: &str = r#"[edge]
name = "e"
interfaces = ["eth0"]
hash_seed = "s"
source_addresses = ["10.2.0.1", "2001:db8:2::1"]
"#;

/// A service on three lines, then one line per backend.
fn service(name: &str, forward: &str, listen: &[&str], backends: &[&str]) -> String {
    let backends: Vec<String> =
        backends.iter().map(|address| format!("  {{ address = {address:?} }},\n")).collect();
    format!(
        "[[service]]\nname = {name:?}\nforward = {forward:?}\nlisten = {listen:?}\nbackend = [\n{}]\n",
        backends.concat()
    )
}

fn services_refused(services: &[String], messages: &str) {
    let text = format!("{BOTH}{}", services.concat());
    assert_eq!(errors(&text), messages, "\n{text}");
}

#[test]
fn names_and_addresses_that_are_taken() {
    services_refused(
        &[
            service("a", "nat", &["203.0.113.10:80"], &["10.2.0.2:9000"]),
            service("a", "nat", &["203.0.113.10:81"], &["10.2.0.2:9000"]),
        ],
        "edge.toml:14: service \"a\": name \"a\" is already on line 7: give each service a name of its own",
    );
    services_refused(
        &[
            service("a", "nat", &["203.0.113.10:80"], &["10.2.0.2:9000"]),
            service("b", "nat", &["203.0.113.11:80", "203.0.113.10:80"], &["10.2.0.2:9000"]),
        ],
        "edge.toml:16: service \"b\": listen \"203.0.113.10:80\" is already taken by service \"a\": listen \
         on line 9: give each listener an address or port of its own",
    );
    services_refused(
        &[service("a", "nat", &["203.0.113.10:80", "203.0.113.10:80"], &["10.2.0.2:9000"])],
        "edge.toml:9: service \"a\": listen \"203.0.113.10:80\" is already on line 9: \
         give each listener an address or port of its own",
    );
    services_refused(
        &[service("a", "nat", &["203.0.113.10:80"], &["10.2.0.2:9000", "10.2.0.2:9000"])],
        "edge.toml:12: service \"a\": backend \"10.2.0.2:9000\": address \"10.2.0.2:9000\" \
         is already on line 11: remove one of the two",
    );
    let same_names = service("a", "nat", &["203.0.113.10:80"], &["10.2.0.2:9000", "10.2.0.3:9000"])
        .replace("{ address", "{ name = \"x\", address");
    services_refused(
        &[same_names],
        "edge.toml:12: service \"a\": backend \"x\": name \"x\" is already on line 11: \
         give each backend of a service a name of its own",
    );
}

#[test]
fn backends_on_the_edge_itself() {
    services_refused(
        &[
            service("a", "nat", &["203.0.113.10:80"], &["203.0.113.11:81"]),
            service("b", "nat", &["203.0.113.11:81"], &["203.0.113.11:9000", "10.2.0.1:9000"]),
        ],
        "edge.toml:11: service \"a\": backend \"203.0.113.11:81\": address \"203.0.113.11:81\" \
         is the listener on line 16: packets would go in a loop: write an address of the backend's own\n\
         edge.toml:18: service \"b\": backend \"203.0.113.11:9000\": address \"203.0.113.11:9000\" \
         has the VIP of the listener on line 16: packets would not leave the edge: \
         write an address of the backend's own\n\
         edge.toml:19: service \"b\": backend \"10.2.0.1:9000\": address \"10.2.0.1:9000\" \
         has a source address of the edge: packets would not leave it: \
         write an address of the backend's own",
    );
}

#[test]
fn versions_that_do_not_meet() {
    const V4: &str = "203.0.113.10:80";
    const V6: &str = "[2001:db8::10]:80";
    let backend = |address: &str| {
        format!("edge.toml:11: service \"a\": backend \"{address}\": address \"{address}\"")
    };
    for (forward, reason) in
        [("nat", "nat keeps the IP version"), ("dsr", "dsr keeps the IP version")]
    {
        services_refused(
            &[service("a", forward, &[V6], &["10.2.0.2:80"])],
            &format!(
                "{} is IPv4 but every listener of the service is IPv6: {reason}: \
                 write an IPv6 address, or add an IPv4 listener",
                backend("10.2.0.2:80")
            ),
        );
        services_refused(
            &[service("a", forward, &[V4], &["[2001:db8:2::2]:80"])],
            &format!(
                "{} is IPv6 but every listener of the service is IPv4: {reason}: \
                 write an IPv4 address, or add an IPv6 listener",
                backend("[2001:db8:2::2]:80")
            ),
        );
        services_refused(
            &[service("a", forward, &[V4, V6], &["10.2.0.2:80"])],
            &format!(
                "edge.toml:9: service \"a\": listen \"{V6}\" is IPv6 but no backend of the service is: \
                 {reason}: add IPv6 backends, or move the listener to a service of its own"
            ),
        );
    }
    services_refused(
        &[service("a", "ipip", &[V6], &["10.2.0.2:80"])],
        &format!(
            "{} is IPv4 but every listener of the service is IPv6: ipip carries IPv6 only in IPv6: \
             write an IPv6 address, or add an IPv4 listener",
            backend("10.2.0.2:80")
        ),
    );
    for (listen, backends) in [
        (vec![V4], vec!["[2001:db8:2::2]:80"]),
        (vec![V4, V6], vec!["[2001:db8:2::2]:80"]),
        (vec![V4, V6], vec!["[2001:db8:2::2]:80", "10.2.0.2:80"]),
    ] {
        valid(&format!("{BOTH}{}", service("a", "ipip", &listen, &backends)));
    }
}

/// A mistyped backend must not also bring the message that its version is missing.
#[test]
fn nothing_is_concluded_from_what_could_not_be_read() {
    services_refused(
        &[service(
            "a",
            "nat",
            &["203.0.113.10:80", "[2001:db8::10]:80"],
            &["10.2.0.2:80", "2001:db8::2"],
        )],
        "edge.toml:12: service \"a\": backend \"2001:db8::2\": address \"2001:db8::2\" has no port: \
         write e.g. \"[2001:db8::2]:9000\"",
    );
    let text = with(&minimal(), "10.2.0.1", "10.2.0.1/24");
    assert_eq!(
        errors(&text),
        "edge.toml:5: edge: source_addresses \"10.2.0.1/24\" has a prefix length: write e.g. \"10.2.0.1\""
    );
}

#[test]
fn ports_that_nothing_translates() {
    for forward in ["dsr", "ipip"] {
        services_refused(
            &[service(
                "a",
                forward,
                &["203.0.113.10:80", "203.0.113.10:81"],
                &["10.2.0.2:80", "10.2.0.3:9000"],
            )],
            &format!(
                "edge.toml:9: service \"a\": listen \"203.0.113.10:81\" has another port than 203.0.113.10:80, \
                 and {forward} does not translate ports: \
                 make it a service of its own, or write forward = \"nat\"\n\
                 edge.toml:12: service \"a\": backend \"10.2.0.3:9000\": address \"10.2.0.3:9000\" \
                 has another port than 203.0.113.10:80, and {forward} does not translate ports: \
                 write port 80, or forward = \"nat\""
            ),
        );
    }
}

#[test]
fn nat_without_a_source_address() {
    let service = service(
        "a",
        "nat",
        &["203.0.113.10:80", "[2001:db8::10]:80"],
        &["10.2.0.2:80", "[2001:db8:2::2]:80"],
    );
    assert_eq!(
        errors(&format!("{EDGE}{service}")),
        "edge.toml:9: service \"a\": listen \"[2001:db8::10]:80\" is IPv6 with nat, and edge.source_addresses \
         has no IPv6 address: add the address from which the edge talks to these backends"
    );
}

#[test]
fn more_than_the_tables_hold() {
    let tables =
        with(BOTH, "name = \"e\"", "name = \"e\"\ntables = { services = 2, backends = 3 }");
    let services: Vec<String> = (1..=4)
        .map(|n| {
            service(&format!("s{n}"), "nat", &[&format!("203.0.113.10:{n}")], &["10.2.0.2:80"])
        })
        .collect();
    assert_eq!(
        errors(&format!("{tables}{}", services.concat())),
        "edge.toml:21: service \"s3\" is one more than the 2 services, of both modes, that edge.tables.services makes room for: \
         raise edge.tables.services\n\
         edge.toml:33: service \"s4\": backend \"10.2.0.2:80\": address \"10.2.0.2:80\" is one more than \
         the 3 backends, of both modes, that edge.tables.backends makes room for: raise edge.tables.backends"
    );
}

/// Spliced connections are counted and routed by service and backend, too.
#[test]
fn l7_services_take_room_in_the_tables() {
    let tables =
        with(BOTH, "name = \"e\"", "name = \"e\"\ntables = { services = 2, backends = 2 }");
    let l7 = |n: usize| {
        let text =
            service(&format!("s{n}"), "nat", &[&format!("203.0.113.10:{n}")], &["10.2.0.2:80"]);
        with(&text, "forward = \"nat\"", "mode = \"l7\"")
    };
    let l4 = service("l4", "nat", &["203.0.113.11:80"], &["10.2.0.2:80"]);
    valid(&format!("{tables}{l4}{}", l7(1)));
    assert_eq!(
        errors(&format!("{tables}{}{l4}{}", l7(1), l7(2))),
        "edge.toml:21: service \"s2\" is one more than the 2 services, of both modes, that edge.tables.services \
         makes room for: raise edge.tables.services\n\
         edge.toml:26: service \"s2\": backend \"10.2.0.2:80\": address \"10.2.0.2:80\" is one more than \
         the 2 backends, of both modes, that edge.tables.backends makes room for: raise edge.tables.backends"
    );
}

#[test]
fn more_listeners_than_an_edge_can_have() {
    // 8,192 entries: 128 addresses, and 63 ports of each.
    let edge = with(EDGE, "name = \"e\"", "name = \"e\"\ntables = { services = 200 }");
    let of_address = |n: usize, ports: usize| {
        let listen: Vec<String> = (1..=ports).map(|port| format!("203.0.113.{n}:{port}")).collect();
        let listen: Vec<&str> = listen.iter().map(String::as_str).collect();
        service(&format!("s{n}"), "nat", &listen, &["10.2.0.2:80"])
    };
    let full: String = (1..=128).map(|n| of_address(n, 63)).collect();
    valid(&format!("{edge}{full}"));
    let mut text = format!("{edge}{full}");
    let line = text.lines().count() + 4;
    text += &of_address(129, 2);
    assert_eq!(
        errors(&text),
        format!(
            "edge.toml:{line}: service \"s129\": listen \"203.0.113.129:1\" is beyond the 8192 IPv4 listeners, \
             addresses of listeners and backends of mode = \"l7\", counted together, that an edge can have: \
             move services to another edge, or use more ports of fewer addresses"
        )
    );
    let l7 = with(&of_address(128, 62), "forward = \"nat\"", "mode = \"l7\"");
    let almost: String = (1..=127).map(|n| of_address(n, 63)).collect();
    valid(&format!("{edge}{almost}{l7}"));
    let one_more = with(&l7, "backend = [", "backend = [{ address = \"10.2.0.3:80\" },");
    assert!(errors(&format!("{edge}{almost}{one_more}")).contains("is beyond the 8192 IPv4"));
}

#[test]
fn zones_without_one_of_the_edges_own() {
    let text = with(&minimal(), "[[service]]\n", "[[service]]\nzones = {}\n");
    assert_eq!(
        errors(&text),
        "edge.toml:7: service \"chat\": zones prefers the edge's own zone, and [edge] has none: \
         write e.g. zone = \"rack-1\" in [edge], or prefer = false"
    );
    let text = with(&text, "[edge]\n", "[edge]\nzone = \"a\"\n");
    let (_, warnings) = parse("edge.toml", &text).unwrap();
    assert_eq!(
        warnings.iter().map(Warning::to_string).collect::<Vec<_>>(),
        ["edge.toml:8: service \"chat\": zones prefers zone \"a\", in which there is no backend: \
          write the zone of each backend, as [edge] zone is written"]
    );
}

#[test]
fn panic_where_nothing_fails_open() {
    let lines = "[[service]]\nfail_open = false\npanic_threshold = 50\n";
    assert_eq!(
        errors(&with(&minimal(), "[[service]]\n", lines)),
        "edge.toml:8: service \"chat\": panic_threshold 50 is without use while fail_open = false: \
         remove one of the two"
    );
}
