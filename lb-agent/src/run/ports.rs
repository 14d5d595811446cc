//! Whether the host's own connections could meet those of `nat`. Pure, but for reading two sysctls.

use std::{collections::BTreeSet, fs, net::IpAddr, ops::RangeInclusive};

use crate::config::{Config, Forward};

/// For both IP versions.
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// What the operator should know, if it is so. What cannot be read is no reason to worry anyone.
#[must_use]
pub fn warning(config: &Config, on_host: &BTreeSet<IpAddr>) -> Option<String> {
    let read = |path| fs::read_to_string(path).ok();
    conflict(config, on_host, &read(LOCAL)?, &read(RESERVED)?)
}

/// The same with the sysctls' text. The kernel gives a connection of the host any port of the one range, and none that
/// is in the other list.
fn conflict(
    config: &Config,
    on_host: &BTreeSet<IpAddr>,
    local: &str,
    reserved: &str,
) -> Option<String> {
    config.l4().find(|service| service.forward == Forward::Nat)?;
    let shared = config.edge.source_addresses.iter().find(|addr| on_host.contains(addr))?;
    let (first, last) = local.trim().split_once(char::is_whitespace)?;
    let local: RangeInclusive<u16> = first.parse().ok()?..=last.trim().parse().ok()?;
    let reserved: Vec<_> = reserved.trim().split(',').filter_map(range).collect();
    let nat = &config.edge.nat_ports;
    let free = |port: &u16| local.contains(port) && !reserved.iter().any(|it| it.contains(port));
    let port = nat.clone().find(free)?;
    let (low, high) = (nat.start(), nat.end());
    Some(format!(
        "[edge] nat_ports = \"{low}-{high}\": the host's own connections from {shared} may use these ports, too, as {port}, \
         and meet those of nat: sysctl net.ipv4.ip_local_reserved_ports={low}-{high}"
    ))
}

/// One element of a list like `8080,9000-9100`.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    Some(first.parse().ok()?..=last.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(forward: &str) -> Config {
        let text = format!(
            r#"
            [edge]
            name = "e"
            interfaces = ["eth0"]
            source_addresses = ["10.9.9.9", "10.2.0.1"]
            nat_ports = "20000-39999"
            hash_seed = "s"
            [[service]]
            name = "chat"
            listen = ["203.0.113.10:9000"]
            forward = "{forward}"
            [[service.backend]]
            name = "a"
            address = "10.2.0.2:9000"
            "#
        );
        crate::config::parse("edge.toml", &text).unwrap().0
    }

    #[test]
    fn only_ports_that_both_may_use_from_one_address_are_worth_a_word() {
        let ours = BTreeSet::from(["10.2.0.1".parse().unwrap()]);
        let nat = config("nat");
        let told = conflict(&nat, &ours, "32768\t60999\n", "\n").unwrap();
        assert!(told.contains("from 10.2.0.1 ") && told.contains("as 32768"), "{told}");
        assert!(told.ends_with("sysctl net.ipv4.ip_local_reserved_ports=20000-39999"), "{told}");
        assert!(conflict(&nat, &ours, "32768\t60999\n", "80,32768-39998\n").is_some());
        for (local, reserved) in [
            ("32768\t60999\n", "20000-39999\n"),
            ("32768\t60999\n", "80,32768-39998,39999\n"),
            ("40000\t60999\n", "\n"),
            ("\n", "\n"),
        ] {
            assert_eq!(conflict(&nat, &ours, local, reserved), None, "{local:?} {reserved:?}");
        }
        assert_eq!(conflict(&nat, &BTreeSet::new(), "32768\t60999\n", "\n"), None);
        assert_eq!(conflict(&config("dsr"), &ours, "32768\t60999\n", "\n"), None);
    }
}
