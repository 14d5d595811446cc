//! The configuration changes under a running agent.

use std::fs;

use nix::sys::signal::Signal;

use crate::{
    edge::{ADMIN, Echo, Edge, VIP, say},
    network::wait_until,
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

fn generation_is(edge: &Edge, wanted: u64) {
    wait_until("the configuration is taken over", || edge.status().config_generation == wanted);
}

#[test]
fn saving_the_file_is_enough_and_a_signal_as_good() {
    let mut edge = Edge::new();
    let _servers = TWO.map(|(_, address)| Echo::start(&edge.server, address, "x:"));
    let config = edge.config("", &TWO);
    edge.start(&config);
    assert_eq!(edge.status().config_generation, 1);

    edge.save(&edge.config("", &TWO[..1]));
    generation_is(&edge, 2);
    assert_eq!(edge.status().services[0].backends.len(), 1);
    // In place, as `echo > edge.toml` does.
    fs::write(edge.config_file(), &config).unwrap();
    generation_is(&edge, 3);
    assert_eq!(edge.status().services[0].backends.len(), 2);
    edge.signal(Signal::SIGHUP);
    generation_is(&edge, 4);
}

#[test]
fn a_bad_file_is_refused_with_all_its_errors_and_changes_nothing() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    let good = edge.config("", &TWO[..1]);
    edge.start(&good);
    let mut stream = edge.client.connect(VIP);
    edge.save(&good.replace("10.2.0.2:9000", "10.2.0.300:9000").replace("xdp =", "xpd ="));
    wait_until("it is refused", || edge.status().config_refused.is_some());
    let refused = edge.status().config_refused.unwrap();
    assert!(refused.contains("10.2.0.300") && refused.contains("xpd"), "{refused}");
    for part in ["edge.toml:", "10.2.0.300:9000", "xpd", "goes on with the one before"] {
        edge.wait_for_log(part);
    }
    assert_eq!(edge.status().config_generation, 1);
    assert_eq!(edge.status().services[0].backends[0].address, "10.2.0.2:9000");
    assert_eq!(say(&mut stream, "still").unwrap(), "b2:still");
    assert_eq!(say(&mut edge.client.connect(VIP), "new").unwrap(), "b2:new");

    edge.save(&good);
    wait_until("the good one is taken", || edge.status().config_refused.is_none());
}

#[test]
fn what_cannot_change_under_a_running_agent_says_how_it_can() {
    let mut edge = Edge::new();
    let good = edge.config("", &TWO);
    edge.start(&good);
    edge.save(&good.replace("flows_ipv4 = 4096", "flows_ipv4 = 8192").replace("slc-", "other-"));
    wait_until("it is refused", || edge.status().config_refused.is_some());
    let refused = edge.status().config_refused.unwrap();
    let unload = format!("lb-agent unload --edge {}", edge.name);
    for part in ["name = \"other-", "[edge.tables]", &unload] {
        assert!(refused.contains(part), "{part:?} is missing in {refused}");
    }
}

#[test]
fn an_interface_that_cannot_be_attached_refuses_the_whole_file() {
    let mut edge = Edge::new();
    let good = edge.config("", &TWO);
    edge.start(&good);
    // The loopback device has no native XDP.
    edge.save(&good.replace(r#""back0"]"#, r#""back0", "lo"]"#).replace("b3", "b4"));
    wait_until("it is refused", || edge.status().config_refused.is_some());
    assert!(edge.status().config_refused.unwrap().contains("interface lo"));
    assert_eq!(edge.status().services[0].backends[1].name, "b3");

    edge.save(&good.replace(r#", "back0"]"#, "]"));
    generation_is(&edge, 2);
    wait_until("the other is detached", || !edge.has_xdp("back0"));
    assert!(edge.has_xdp("front0"));
}

#[test]
fn the_admin_api_moves_and_vips_follow_the_file() {
    let mut edge = Edge::new();
    let good = edge.config("", &TWO);
    edge.start(&good);
    edge.save(&good.replace(ADMIN, "127.0.0.1:9901").replace("10.1.0.10:80", "10.1.0.11:80"));
    wait_until("the API has moved", || edge.netns.http("127.0.0.1:9901", "/healthz").is_some());
    wait_until("and nobody is left", || edge.netns.http(ADMIN, "/healthz").is_none());
    wait_until("the VIP has changed", || {
        let addresses = edge.addresses("front0");
        addresses.contains("10.1.0.11/32") && !addresses.contains("10.1.0.10/32")
    });
}
