//! Starting, stopping, dying, taking over; interfaces that go and come back.

use std::{collections::BTreeMap, fs};

use aya::maps::MapData;
use lb_agent::bpf::PinDir;
use nix::sys::signal::Signal;

use crate::{
    edge::{ADMIN, Echo, Edge, VIP, say},
    network::{text, wait_until},
};

fn map_ids(pins: &PinDir) -> BTreeMap<String, u32> {
    let names = fs::read_dir(pins.path().join("maps")).unwrap();
    names
        .map(|entry| {
            let entry = entry.unwrap();
            let map = MapData::from_pin(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), map.info().unwrap().id())
        })
        .collect()
}

fn punted(edge: &Edge) -> u64 {
    let status = edge.status();
    let outcomes = [&status.outcomes, &status.services[0].outcomes];
    outcomes.iter().filter_map(|it| it.events.get("punted")).sum()
}

#[test]
fn an_edge_starts_shows_itself_and_stops_without_its_data_plane() {
    let mut edge = Edge::new();
    edge.start(&edge.config("", &[("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")]));
    let status = edge.status();
    assert!(status.ready && !status.adopted);
    assert_eq!(status.edge, edge.name);
    let interfaces: Vec<_> =
        status.interfaces.iter().map(|it| (it.name.as_str(), it.xdp.as_deref())).collect();
    assert_eq!(interfaces, [("back0", Some("native")), ("front0", Some("native"))]);
    let service = &status.services[0];
    assert_eq!((service.name.as_str(), service.forward.as_deref()), ("chat", Some("nat")));
    assert_eq!(service.listeners[0].address, VIP);
    wait_until("the VIP is seen on the host", || edge.status().services[0].listeners[0].on_host);
    let shares: f64 = service.backends.iter().map(|backend| backend.share["ipv4"]).sum();
    assert!((shares - 1.0).abs() < 1e-9, "{service:?}");

    let shown = text(&edge.output(&format!("status --config {}", edge.config_file().display())));
    for part in ["ready", "interface front0: attached, native XDP", "b2", "10.2.0.3:9000"] {
        assert!(shown.contains(part), "{part:?} is missing in {shown}");
    }
    let socket = format!("--socket /run/sluice/{}/admin.sock", edge.name);
    for at in [socket, format!("--admin {ADMIN}")] {
        let json = edge.output(&format!("status --json {at}"));
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!(json["services"][0]["backends"][1]["name"], "b3");
    }

    edge.signal(Signal::SIGTERM);
    assert!(edge.wait().success());
    edge.wait_for_log("traffic goes on");
    edge.wait_for_log(&format!("lb-agent unload --edge {}", edge.name));
    assert!(edge.has_xdp("front0") && edge.addresses("front0").contains("10.1.0.10/32"));
}

#[test]
fn a_flow_survives_the_agents_death_and_the_next_agent() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    let config = edge.config("", &[("b2", "10.2.0.2:9000")]);
    edge.start(&config);
    let mut stream = edge.client.connect(VIP);
    assert_eq!(say(&mut stream, "before").unwrap(), "b2:before");
    // Until then packets need the agent, which resolves where they go.
    wait_until("the ways to both ends are known", || {
        let before = punted(&edge);
        say(&mut stream, "?").unwrap();
        punted(&edge) == before
    });
    let (maps, first) = (map_ids(&edge.pins()), edge.status().program_id);
    let link = edge.pins().link("front0").unwrap().unwrap().info().unwrap().id;

    edge.signal(Signal::SIGKILL);
    edge.wait();
    assert_eq!(say(&mut stream, "without").unwrap(), "b2:without");

    edge.start(&config);
    let status = edge.status();
    assert!(status.adopted && status.program_id != first);
    assert_eq!(map_ids(&edge.pins()), maps);
    assert_eq!(edge.pins().link("front0").unwrap().unwrap().info().unwrap().id, link);
    assert_eq!(say(&mut stream, "after").unwrap(), "b2:after");
    assert_eq!(edge.status().services[0].backends[0].id, Some(1), "ids are kept");
    let mut another = edge.client.connect(VIP);
    assert_eq!(say(&mut another, "new").unwrap(), "b2:new");
}

#[test]
fn what_the_maps_know_of_backends_survives_a_restart() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    let config = edge.config("", &[("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")]);
    edge.start(&config);
    wait_until("b3 is down", || edge.status().services[0].backends[1].share["ipv4"] == 0.0);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    // Before the first probe can have ended.
    edge.start(&config.replace("\"100ms\", timeout", "\"1h\", timeout"));
    let backends = &edge.status().services[0].backends;
    let shares = [backends[0].share["ipv4"], backends[1].share["ipv4"]];
    assert_eq!(shares, [1.0, 0.0], "{backends:?}");
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("", &[("b2", "10.2.0.2:9000")]));
    let index = edge.status().interfaces[1].index;
    edge.netns.ip("link del front0");
    wait_until("the loss is noticed", || !edge.status().interfaces[1].attached);
    edge.wait_for_log("no longer attached");
    assert!(edge.status().interfaces[1].problem.as_deref().unwrap().contains("front0"));

    edge.netns.link("front0", &edge.client, "c0");
    edge.netns.ip("addr add 10.1.0.1/24 dev front0");
    edge.client.ip("addr add 10.1.0.2/24 dev c0");
    wait_until("the program is back", || edge.status().interfaces[1].attached);
    assert_ne!(edge.status().interfaces[1].index, index);
    wait_until("so is the VIP", || edge.addresses("front0").contains("10.1.0.10/32"));
    assert!(edge.has_xdp("front0"));
    assert_eq!(say(&mut edge.client.connect(VIP), "again").unwrap(), "b2:again");
}
