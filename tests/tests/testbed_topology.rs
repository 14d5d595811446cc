//! The networks carry chats as they should, with no program of ours in the edge. Needs root.

use std::net::SocketAddr;
use std::time::Duration;

use tests::chat::{ChatServer, EchoServer, Exchange, Load, LoadConfig, ServerConfig, exchange};
use tests::link::{Direction, Impairment};
use tests::privilege::require_root;
use tests::process::{Process, binary};
use tests::seed::seed;
use tests::topology::{Arms, Node, Return, Topology, VIP4, VIP6};

const LATER: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(15);
const PORT: u16 = 9000;

fn anywhere() -> [SocketAddr; 2] {
    [format!("0.0.0.0:{PORT}"), format!("[::]:{PORT}")].map(|text| text.parse().unwrap())
}

fn reach(client: &Node, server: &Node) {
    for target in server.sockets(PORT) {
        let plan = Exchange { timeout: SOON, ..Exchange::new(target, 1, 10_000) };
        exchange(Some(client), &plan).unwrap();
    }
}

/// What `ethtool -k` says of a feature.
fn feature(node: &tests::netns::NsHandle, device: &str, name: &str) -> String {
    let all = node.exec("ethtool", &["-k", device]).unwrap();
    let line = all.lines().find_map(|l| l.trim().strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn a_device_can_go_down_away_and_come_back() {
    require_root();
    let lab = Topology::builder().backends(1).build().unwrap();
    let _server = EchoServer::start(Some(lab.backend(0)), "echo", &anywhere()).unwrap();
    let edge = lab.edge().port("eth1");
    let index = || lab.edge().run(|| nix::net::if_::if_nametoindex("eth1"));
    let first = index().unwrap();
    let reach = || reach(lab.client(0), lab.backend(0));
    reach();
    edge.down().unwrap();
    edge.up().unwrap();
    reach();
    edge.unplug().unwrap();
    edge.plug().unwrap();
    reach();
    edge.delete().unwrap();
    assert!(index().is_err());
    edge.create().unwrap();
    assert_ne!(index().unwrap(), first);
    reach();
    // Those at the ends know their routes again, too.
    for node in [lab.client(0), lab.backend(0)] {
        node.port("eth0").down().unwrap();
        node.port("eth0").up().unwrap();
        reach();
        node.port("eth0").delete().unwrap();
        node.port("eth0").create().unwrap();
        reach();
    }
}

#[test]
fn both_arms_and_ways_of_return_connect_everybody() {
    require_root();
    for arms in [Arms::One, Arms::Two] {
        for returns in [Return::Edge, Return::Direct] {
            let lab = Topology::builder().clients(2).backends(2).arms(arms).returns(returns);
            let lab = lab.build().unwrap();
            assert_eq!(lab.router().is_some(), (arms, returns) == (Arms::Two, Return::Direct));
            for backend in lab.backends() {
                let _server = EchoServer::start(Some(backend), "echo", &anywhere()).unwrap();
                for client in lab.clients() {
                    reach(client, backend);
                }
            }
        }
    }
}

#[test]
fn devices_are_fit_for_xdp() {
    require_root();
    let lab = Topology::builder().backends(1).build().unwrap();
    for (node, device) in [(lab.edge(), "eth0"), (lab.edge(), "eth1"), (lab.backend(0), "eth0")] {
        assert_eq!(feature(node, device, "tx-checksumming"), "off");
        let peer = node.port(device).switch_port();
        assert_eq!(feature(lab.switch(), peer, "tx-checksumming"), "off");
        assert_eq!(feature(lab.switch(), peer, "generic-receive-offload"), "on");
        let link = lab.switch().exec("ip", &["link", "show", peer]).unwrap();
        assert!(link.contains("prog/xdp"), "frames of XDP_TX would wait for others: {link}");
    }
    let link = lab.edge().exec("ip", &["-br", "link", "show", "eth0"]).unwrap();
    assert!(link.contains("02:00:00:00:01:01"), "{link}");
}

#[test]
fn a_backend_with_the_vip_answers_for_it_and_stays_silent_about_it() {
    require_root();
    let lab = Topology::builder().backends(2).arms(Arms::One).returns(Return::Direct);
    let lab = lab.build().unwrap();
    // Without an edge program, a static route is how packets for the VIP find a backend.
    let backend = lab.backend(1);
    let _server = EchoServer::start(Some(backend), "echo-2", &anywhere()).unwrap();
    let edge = lab.edge();
    edge.ip(&format!(
        "route add {VIP4} via {}\nroute add {VIP6} via {}",
        backend.v4(),
        backend.v6()
    ))
    .unwrap();
    for vip in lab.vips() {
        let plan = Exchange { timeout: SOON, ..Exchange::new((*vip, PORT).into(), 1, 10_000) };
        let report = exchange(Some(lab.client(0)), &plan).unwrap();
        assert_eq!(report.backend, "echo-2");
    }
    // Nobody answers ARP for the VIP.
    let client = lab.client(0);
    client.ip(&format!("route replace {VIP4} dev eth0")).unwrap();
    let target = SocketAddr::from((VIP4, PORT));
    let error = client.run(|| std::net::TcpStream::connect_timeout(&target, SOON)).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable);
}

#[test]
fn chats_cross_the_lab_byte_for_byte() {
    require_root();
    let lab = Topology::builder().clients(2).build().unwrap();
    let servers: Vec<_> = (0..3)
        .map(|i| {
            let push = Some((Duration::from_millis(50), 500));
            let config = ServerConfig::new(&format!("chat-{}", i + 1), anywhere());
            ChatServer::start(Some(lab.backend(i)), ServerConfig { push, ..config }).unwrap()
        })
        .collect();
    let targets: Vec<_> = lab.backends().iter().flat_map(|b| b.sockets(PORT)).collect();
    let loads: Vec<_> = lab
        .clients()
        .iter()
        .map(|client| {
            let config = LoadConfig {
                interval: Duration::from_millis(20),
                window: 4,
                ..LoadConfig::new(targets.clone(), 60, seed("chats"))
            };
            Load::start(Some(client), config).unwrap()
        })
        .collect();
    for load in loads {
        let stats = load.wait_progress(50, LATER).unwrap();
        assert_eq!(stats.backends.values().map(|b| b.connected).collect::<Vec<_>>(), [20; 3]);
        let stats = load.stop();
        assert_eq!((stats.errors, stats.wrong, stats.sessions), (0, 0, 60), "{stats}");
        assert!(stats.pushed > 0);
    }
    for server in servers {
        assert_eq!(server.stats().wrong, 0);
        server.stop();
    }
}

#[test]
fn chats_survive_a_rough_wire() {
    require_root();
    let seed = seed("rough wires");
    let lab = Topology::builder()
        .backends(1)
        .client_link(0, Impairment::default(), seed)
        .backend_link(0, Impairment::delayed(Duration::from_millis(1)), seed)
        .build()
        .unwrap();
    let config = ServerConfig::new("chat-1", anywhere());
    let _server = ChatServer::start(Some(lab.backend(0)), config).unwrap();
    let config = LoadConfig {
        stall: Duration::from_secs(30),
        ..LoadConfig::new(lab.backend(0).sockets(PORT), 8, seed)
    };
    let load = Load::start(Some(lab.client(0)), config).unwrap();
    // The handshakes have a good wire: a lost SYN waits for seconds, and makes later losses wait as well.
    load.wait_progress(5, SOON).unwrap();
    let links = [lab.client(0), lab.backend(0)].map(|node| node.port("eth0").link().unwrap());
    links[0].set(Impairment::rough(4.0));
    // Only one link corrupts: two flipped bits can cancel each other in TCP's checksum.
    links[1].set(Impairment { corrupt: 0.0, ..Impairment::rough(2.0) });
    load.wait_progress(20, Duration::from_secs(60)).unwrap();
    for link in &links {
        let counters = link.counters(Direction::AToB);
        assert!(counters.dropped > 0 && counters.duplicated > 0, "{counters:?}");
    }
    let counters = links[0].counters(Direction::AToB);
    assert!(counters.corrupted > 0, "{counters:?}");
    for link in &links {
        link.set(Impairment::default());
    }
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

#[test]
fn a_killed_chat_server_is_noticed_and_its_successor_found() {
    require_root();
    let lab = Topology::builder().backends(1).build().unwrap();
    let start = |name: &str| {
        let mut server = lab.backend(0).command(binary("chat-server").unwrap());
        server.args(["--name", name]);
        for address in anywhere() {
            server.args(["--listen", &address.to_string()]);
        }
        let server = Process::spawn(name, server).unwrap();
        server.wait_for_line(SOON, |line| line.contains("listening on [::]")).unwrap();
        server
    };
    let mut first = start("first");
    let targets = lab.backend(0).sockets(PORT);
    let load = Load::start(Some(lab.client(0)), LoadConfig::new(targets, 10, 3)).unwrap();
    load.wait_progress(2, SOON).unwrap();
    first.kill().unwrap();
    load.wait_until(SOON, |stats| stats.connected == 0 && stats.errors >= 10).unwrap();
    let _second = start("second");
    let stats = load.wait_until(SOON, |stats| stats.connected_to("second") == 10).unwrap();
    assert_eq!((stats.reconnects, stats.wrong), (10, 0), "{stats}");
}

#[test]
fn the_client_program_reports_in_json() {
    require_root();
    let lab = Topology::builder().backends(1).build().unwrap();
    let config = ServerConfig::new("chat-1", anywhere());
    let _server = ChatServer::start(Some(lab.backend(0)), config).unwrap();
    let [v4, v6] = lab.backend(0).sockets(PORT).map(|address| address.to_string());
    let mut client = lab.client(0).command(binary("chat-client").unwrap());
    client.args(["--target", &v4, "--target", &v6, "--connections", "8", "--seed", "5"]);
    client.args(["--duration", "2", "--interval", "2"]);
    let mut client = Process::spawn("chat-client", client).unwrap();
    assert!(client.wait(SOON).unwrap().success());
    let line = client.wait_for_line(SOON, |line| line.starts_with('{')).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(stats["wrong"], 0);
    assert_eq!(stats["errors"], 0);
    assert_eq!(stats["backends"]["chat-1"]["connections"], 8);
    assert_eq!(stats["per_connection"].as_array().unwrap().len(), 8);
    assert!(stats["messages"].as_u64().unwrap() > 100, "{line}");
}
