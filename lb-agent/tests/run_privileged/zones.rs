//! Backends of the edge's own zone come first, and others help when it fails: with XDP alone, and through the sidecar.

use std::{net::TcpStream, time::Duration};

use crate::{
    edge::{ADMIN, Echo, Edge, VIP, say},
    network::wait_until,
    sidecar::{Web, config, get},
};

const POOL: [(&str, &str); 3] =
    [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000"), ("b4", "10.2.0.4:9000")];

/// `b2` and `b3` are in the edge's own zone, `b4` is not.
fn zoned(config: &str) -> String {
    let config = config.replacen("[edge]", "[edge]\nzone = \"a\"", 1);
    let config = config.replace(":9000\"\n", ":9000\"\nzone = \"a\"\n");
    config.replace("10.2.0.4:9000\"\nzone = \"a\"", "10.2.0.4:9000\"\nzone = \"b\"")
}

fn edge() -> Edge {
    let edge = Edge::new();
    edge.server.ip("addr add 10.2.0.4/24 dev s0");
    edge
}

fn metric(edge: &Edge, line: &str) -> bool {
    edge.netns.http(ADMIN, "/metrics").unwrap().1.lines().any(|it| it == line)
}

/// Who serves each of some new connections.
fn served_by(edge: &Edge, connections: usize) -> (Vec<TcpStream>, Vec<String>) {
    let mut streams: Vec<_> = (0..connections).map(|_| edge.client.connect(VIP)).collect();
    let names = streams.iter_mut().map(|stream| say(stream, "!").unwrap()).collect();
    (streams, names)
}

#[test]
fn xdp_prefers_the_own_zone_and_moves_nobody() {
    let mut edge = edge();
    let mut servers: Vec<_> =
        POOL.iter().map(|(name, address)| Echo::start(&edge.server, address, name)).collect();
    let service = "zones = {}\nreset_on_backend_death = false";
    edge.start(&zoned(&edge.config(service, &POOL)));
    let (mut before, names) = served_by(&edge, 40);
    assert!(names.iter().all(|name| name != "b4!"), "{names:?}");
    assert!(names.contains(&"b2!".to_owned()) && names.contains(&"b3!".to_owned()), "{names:?}");
    assert_eq!(edge.status().services[0].spilling, Some(false));

    // Half of the zone is too little: the other one helps.
    servers[0].close();
    wait_until("it spills", || edge.status().services[0].spilling == Some(true));
    assert!(metric(&edge, "sluice_service_spilling{service=\"chat\"} 1.0"));
    let (_, now) = served_by(&edge, 40);
    assert!(now.contains(&"b4!".to_owned()) && !now.contains(&"b2!".to_owned()), "{now:?}");
    for (stream, name) in before.iter_mut().zip(&names) {
        assert_eq!(&say(stream, "!").unwrap(), name, "who is connected stays");
    }

    let _again = Echo::start(&edge.server, "10.2.0.2:9000", "b2");
    wait_until("the zone is alone again", || edge.status().services[0].spilling == Some(false));
    let (_, now) = served_by(&edge, 40);
    assert!(now.iter().all(|name| name != "b4!"), "{now:?}");
    edge.wait_for_log("the own zone needs no help any more");
}

#[test]
fn so_does_the_sidecar_and_who_fails_in_the_zone_is_helped_at_once() {
    let mut edge = edge();
    let webs: Vec<_> =
        POOL.iter().map(|(name, address)| Web::start(&edge.server, address, name)).collect();
    let config = config(&edge, "zones = {}\nhttp = { pool = 0 }", &POOL);
    let slow = config.replace("\"100ms\", timeout", "\"1h\", timeout");
    edge.start(&zoned(&slow));
    let served = || -> Vec<_> { (0..20).filter_map(|_| get(&edge, "/")).collect() };
    wait_until("both of the zone serve", || {
        let names = served();
        ["b2", "b3"].iter().all(|name| names.iter().any(|it| it == name))
    });
    assert!(served().iter().all(|name| name != "b4"));
    let weights: Vec<_> =
        edge.status().services[0].backends.iter().map(|it| it.effective_weight).collect();
    assert_eq!(weights, [100, 100, 0]);

    // Health does not know it yet: the request goes on to the other zone.
    drop(webs);
    std::thread::sleep(Duration::from_millis(50));
    let _far = Web::start(&edge.server, "10.2.0.4:9000", "b4");
    wait_until("b4 helps", || get(&edge, "/").as_deref() == Some("b4"));
}

#[test]
fn below_the_threshold_all_count_as_up_and_nobody_is_reset() {
    let mut edge = edge();
    let mut servers: Vec<_> =
        POOL.iter().map(|(name, address)| Echo::start(&edge.server, address, name)).collect();
    edge.start(&edge.config("panic_threshold = 50", &POOL));
    wait_until("all are up", || {
        edge.status().services[0].backends.iter().all(|it| it.health.state == "up")
    });
    let (mut streams, names) = served_by(&edge, 30);
    servers[0].close();
    edge.wait_for_log("from=up to=down");
    wait_until("its clients are reset", || edge.status().flows.reset > 0);
    assert!(!edge.status().services[0].fail_open, "two of three are up");

    servers[1].close();
    wait_until("too few are up", || edge.status().services[0].fail_open);
    assert!(metric(&edge, "sluice_service_failing_open{service=\"chat\"} 1.0"));
    for (stream, name) in streams.iter_mut().zip(&names).filter(|(_, name)| *name != "b2!") {
        assert_eq!(&say(stream, "!").unwrap(), name, "nobody is reset in panic");
    }
}
