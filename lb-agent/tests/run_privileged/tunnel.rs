//! `forward = "ipip"` to a backend without a tunnel device, which answers the client past the edge.
//!
//! ```text
//! client c0 10.1.0.2 -- front0 edge back0 -- 10.2.0.2 s0 server (decap)
//!        c1 10.3.0.2 ----------------------- 10.3.0.3 s1
//! ```

use std::os::unix::fs::MetadataExt;

use lb_agent::decap::pins_in;

use crate::{
    edge::{AGENT, Echo, Edge, command_in, say},
    network::{Netns, text, wait_until},
};

const TUNNELLED: &str = "203.0.113.10:9000";

fn decap(server: &Netns, arguments: &str) -> String {
    let output = command_in(server, AGENT, &format!("decap {arguments}")).output().unwrap();
    assert!(output.status.success(), "decap {arguments}: {}", text(&output));
    text(&output)
}

#[test]
fn a_client_reaches_a_backend_through_a_tunnel_and_decap() {
    let mut edge = Edge::new();
    let device = "s0";
    edge.client.link("c1", &edge.server, "s1");
    edge.client.ip("addr add 10.3.0.2/24 dev c1");
    edge.client.ip("route add 203.0.113.10 via 10.1.0.1");
    edge.server.ip("addr add 10.3.0.3/24 dev s1");
    edge.server.ip("addr add 203.0.113.10/32 dev lo");
    edge.server.ip("route add 10.1.0.0/24 via 10.3.0.2");
    let _server = Echo::start(&edge.server, "0.0.0.0:9000", "b2:");

    let attached = decap(&edge.server, &format!("attach --interface {device} --vip 203.0.113.10"));
    assert!(attached.contains("attached (Native XDP) for 203.0.113.10;"), "{attached}");
    let config = edge.config("forward = \"ipip\"", &[("b2", "10.2.0.2:9000")]);
    edge.start(&config.replace("10.1.0.10:80", TUNNELLED));
    let mut stream = edge.client.connect(TUNNELLED);
    assert_eq!(say(&mut stream, "hello").unwrap(), "b2:hello");
    wait_until("the connection is counted", || {
        edge.status().services[0].backends[0].traffic.as_ref().unwrap().opened == 1
    });

    // The VIPs are exactly those of the last call, and the program is swapped without a gap.
    let again = format!("attach --interface {device} --vip 2001:db8::10 --vip 203.0.113.10");
    assert!(decap(&edge.server, &again).contains("brought up to date"), "{attached}");
    assert_eq!(say(&mut stream, "again").unwrap(), "b2:again");
    let status = decap(&edge.server, "status");
    let of_ours = status.split("interface ").find(|it| it.starts_with(device)).unwrap();
    assert!(of_ours.contains("attached, VIPs 203.0.113.10, 2001:db8::10"), "{status}");
    let decapsulated = of_ours.lines().find_map(|line| line.trim().strip_prefix("decapsulated "));
    assert!(decapsulated.unwrap().parse::<u64>().unwrap() > 3, "{status}");

    let detached = decap(&edge.server, &format!("detach --interface {device}"));
    assert!(detached.contains("removed the program, 2 maps"), "{detached}");
    assert!(!pins_in(edge.server.file().metadata().unwrap().ino()).exists());
    assert!(!edge.server.ip(&format!("link show dev {device}")).contains("xdp"));
}
