//! What is refused in `[edge]`.

use super::*;

#[test]
fn values_of_the_edge() {
    const NAME: &str = "write 1 to 63 letters, digits and ._-, e.g. \"edge-1\"";
    let long = "n".repeat(64);
    refused(&[
        ("\"e\"", "\"\"", &format!("edge.toml:2: edge: name \"\" is not a name: {NAME}")),
        ("\"e\"", "\"e 1\"", &format!("edge.toml:2: edge: name \"e 1\" is not a name: {NAME}")),
        (
            "\"e\"",
            &format!("{long:?}"),
            &format!("edge.toml:2: edge: name \"{}… is not a name: {NAME}", "n".repeat(59)),
        ),
        (
            "[\"eth0\"]",
            "[]",
            "edge.toml:3: edge: interfaces [] is empty: name at least one, e.g. [\"eth0\"]",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\", \"a-name-too-long-\", \"a/b\"]",
            "edge.toml:3: edge: interfaces \"a-name-too-long-\" is not an interface name: \
             write 1 to 15 bytes without spaces, / and :, e.g. \"eth0\"\n\
             edge.toml:3: edge: interfaces \"a/b\" is not an interface name: \
             write 1 to 15 bytes without spaces, / and :, e.g. \"eth0\"",
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\",\n\"eth0\"]",
            "edge.toml:4: edge: interfaces \"eth0\" is already on line 3: remove it",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nxdp = \"fast\"",
            "edge.toml:3: edge: xdp \"fast\" is not a choice here: write \"auto\", \"native\" or \"generic\"",
        ),
        (
            "\"s\"",
            "\"\"",
            "edge.toml:4: edge: hash_seed is empty: write e.g. \"same on every edge\"",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nreset_rate = 0",
            "edge.toml:3: edge: reset_rate 0 is out of range: write 1 to 1000000",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nreset_rate = 9223372036854775807",
            "edge.toml:3: edge: reset_rate 9223372036854775807 is out of range: write 1 to 1000000",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nadmin = \"localhost:9900\"",
            "edge.toml:3: edge: admin \"localhost:9900\" is a host name: names are not resolved: \
             write e.g. \"127.0.0.1:9900\"",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\nadmin_hosts = [\"Edge.example\",\n\"edge.example\",\n\"http://edge.example\"]",
            "edge.toml:4: edge: admin_hosts \"edge.example\" is already on line 3: remove it\n\
             edge.toml:5: edge: admin_hosts \"http://edge.example\" is not a host name: \
             write a name without a port and a scheme, e.g. \"edge-1.example.com\"",
        ),
        (
            "name = \"e\"",
            "name = \"e\"\ntables = { flows_ipv4 = 1000, handshakes = 0 }",
            "edge.toml:3: edge: tables: flows_ipv4 1000 is out of range: write 1024 to 16777216\n\
             edge.toml:3: edge: tables: handshakes 0 is out of range: write 256 to 4194304",
        ),
    ]);
}

#[test]
fn source_addresses() {
    for (address, what, remedy) in [
        ("10.2.0.256", "is not an IP address", "write e.g."),
        ("10.2.0.1:80", "has a port", "write e.g."),
        ("10.2.0.0/24", "has a prefix length", "write e.g."),
        (
            "127.0.0.1",
            "is a loopback address, which never reaches a NIC",
            "write a unicast address, e.g.",
        ),
        ("::", "is the unspecified address", "write a unicast address, e.g."),
    ] {
        let text = with(&minimal(), "\"10.2.0.1\"", &format!("{address:?}"));
        let expected = format!(
            "edge.toml:5: edge: source_addresses {address:?} {what}: {remedy} \"10.2.0.1\""
        );
        assert_eq!(errors(&text), expected);
    }
    refused(&[(
        "\"10.2.0.1\"",
        "\"10.2.0.1\",\n\"10.2.0.1\"",
        "edge.toml:6: edge: source_addresses \"10.2.0.1\" is already on line 5: remove it",
    )]);
}

#[test]
fn more_source_addresses_than_nat_can_use() {
    let sources = |v4: usize, v6: usize| {
        let v4 = (1..=v4).map(|n| format!("\"10.2.1.{n}\",\n"));
        let v6 = (1..=v6).map(|n| format!("\"2001:db8:1::{n}\",\n"));
        with(&minimal(), "\"10.2.0.1\"", &v4.chain(v6).collect::<String>())
    };
    valid(&sources(64, 64));
    assert_eq!(
        errors(&sources(65, 63)),
        "edge.toml:69: edge: source_addresses \"10.2.1.65\" is one more than the 64 IPv4 addresses that nat can use: \
         remove it"
    );
    assert_eq!(
        errors(&sources(1, 65)),
        "edge.toml:70: edge: source_addresses \"2001:db8:1::65\" is one more than the 64 IPv6 addresses that nat can \
         use: remove it"
    );
}

#[test]
fn nat_ports() {
    const REMEDY: &str = "write lowest-highest within 1024 to 60999, e.g. \"1024-60999\"";
    for (ports, message) in [
        ("all", format!("is not a range of ports: {REMEDY}")),
        ("5000", format!("is not a range of ports: {REMEDY}")),
        ("5000-", format!("is not a range of ports: {REMEDY}")),
        ("+5000-6000", format!("is not a range of ports: {REMEDY}")),
        ("1024-70000", format!("is not a range of ports: {REMEDY}")),
        ("1023-6000", format!("leaves the ports for nat: {REMEDY}")),
        ("1024-61000", format!("leaves the ports for nat: {REMEDY}")),
        ("6000-5000", "ends before it begins: write \"5000-6000\"".to_owned()),
    ] {
        let text =
            with(&minimal(), "name = \"e\"", &format!("name = \"e\"\nnat_ports = {ports:?}"));
        assert_eq!(errors(&text), format!("edge.toml:3: edge: nat_ports {ports:?} {message}"));
    }
}

#[test]
fn access_lists() {
    for (line, message) in [
        (
            "deny = \"198.51.100.0/24\"",
            "access: deny \"198.51.100.0/24\" is a string, not an array: \
             write e.g. deny = [\"198.51.100.0/24\"]",
        ),
        (
            "deny = [\"chat.example\"]",
            "access: deny \"chat.example\" is not an address and prefix length: \
             write e.g. \"198.51.100.0/24\"",
        ),
        (
            "allow = [\"198.51.100.7/24\"]",
            "access: allow \"198.51.100.7/24\" has bits beyond the prefix length 24: \
             write \"198.51.100.0/24\"",
        ),
        (
            "deny = [\"::1\", \"::1/128\"]",
            "access: deny \"::1/128\" is already on line 7: write it once, in one of the lists",
        ),
        (
            "deny = [\"10.0.0.0/8\"]\nallow = [\"10.0.0.0/8\"]",
            "access: deny \"10.0.0.0/8\" is already taken by edge: access: allow on line 8: \
             write it once, in one of the lists",
        ),
        ("denny = []", "access: key \"denny\" is not known: did you mean \"deny\"?"),
    ] {
        let text = with(&minimal(), "[[service]]", &format!("[edge.access]\n{line}\n[[service]]"));
        assert_eq!(errors(&text), format!("edge.toml:7: edge: {message}"));
    }
}
