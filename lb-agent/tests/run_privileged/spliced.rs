//! What the agent does for spliced connections: lists them, counts them, tells of their ends, and ends them.

use std::{
    fs,
    io::{ErrorKind, Read},
    net::{Shutdown, TcpStream},
    path::Path,
    time::{Duration, Instant},
};

use lb_agent::run::status::Service;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    edge::{ADMIN, Edge, VIP},
    network::{PATIENCE, text, wait_for, wait_until},
    sidecar::{config, two_serve},
    splice::{converse, echo, spliced, upgraded},
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

/// An edge with two echoing backends, and these lines in its service; and its configuration.
fn start(service: &str) -> (Edge, String) {
    let mut edge = Edge::new();
    TWO.iter().for_each(|(_, address)| echo(&edge.server, address));
    let config = config(&edge, service, &TWO);
    edge.start(&config);
    two_serve(&edge);
    (edge, config)
}

/// Clients of which all are spliced.
fn clients(edge: &Edge, number: usize) -> Vec<TcpStream> {
    let clients: Vec<_> = (0..number).map(|_| upgraded(edge)).collect();
    wait_until("all are spliced", || spliced(edge).len() == 2 * number);
    clients.iter().for_each(|client| client.set_read_timeout(Some(PATIENCE)).unwrap());
    clients
}

fn service(edge: &Edge) -> Service {
    edge.status().services.into_iter().next().unwrap()
}

/// Connections of each backend, and those of them that are spliced.
fn loads(edge: &Edge) -> Vec<(u64, u64)> {
    let backends = service(edge).backends;
    backends.iter().map(|it| (it.connections, it.spliced.unwrap())).collect()
}

fn was_reset(client: &mut TcpStream) -> bool {
    client.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_spliced_connection_is_listed_counted_and_logged_at_its_end() {
    let mut edge = Edge::new();
    TWO.iter().for_each(|(_, address)| echo(&edge.server, address));
    let log = edge.directory.join("access.log");
    let to_file = format!("access_log = {:?}", log.to_str().unwrap());
    edge.start(&config(&edge, "", &TWO).replacen("access_log = \"off\"", &to_file, 1));
    two_serve(&edge);
    let clients = clients(&edge, 6);
    // Least connections: what is spliced is load, to whichever worker a newcomer comes.
    wait_until("all are counted", || loads(&edge).iter().map(|it| it.1).sum::<u64>() == 6);
    let status = service(&edge);
    assert_eq!((status.spliced, status.id), (Some(6), Some(1)));
    wait_until("nothing is relayed", || service(&edge).relayed == Some(0));
    assert_eq!(service(&edge).connections, Some(6));
    assert!(loads(&edge).iter().all(|(all, spliced)| all == spliced), "{:?}", loads(&edge));
    for client in &clients {
        converse(client, 1_000, 7);
    }

    let output = edge.output(&format!("flows --config {} --json", edge.config_file().display()));
    let rows: Vec<Value> =
        text(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 6, "{rows:?}");
    for row in &rows {
        assert_eq!((&row["forward"], &row["state"]), (&"splice".into(), &"established".into()));
        assert_eq!((&row["service"], &row["listener"]), (&"chat".into(), &VIP.into()));
        assert_eq!(row["nat"]["backend"], row["backend_address"]);
        assert!(row["nat"]["edge"].as_str().unwrap().starts_with("10.2.0.1:"));
    }
    let shown = text(&edge.output(&format!("status --admin {ADMIN}")));
    assert!(shown.contains("  6 connections: 0 relayed, 6 spliced\n"), "{shown}");

    let local: Vec<String> =
        clients.iter().map(|it| it.local_addr().unwrap().to_string()).collect();
    clients.iter().for_each(|client| client.shutdown(Shutdown::Write).unwrap());
    drop(clients);
    // Close timeout, rest of the sweeper, and the log.
    let end = Instant::now() + Duration::from_secs(60);
    let closed = loop {
        let lines = lines(&log);
        let is_end = |line: &&Value| line["event"] == "close" && line["spliced"] == true;
        let closed: Vec<Value> = lines.iter().filter(is_end).cloned().collect();
        if closed.len() == 6 {
            break closed;
        }
        assert!(Instant::now() < end, "{lines:?}");
        std::thread::sleep(Duration::from_millis(100));
    };
    for line in closed {
        assert!(local.iter().any(|it| line["client"] == **it), "{line}");
        assert_eq!((&line["service"], &line["ended_by"]), (&"chat".into(), &"closed".into()));
        assert!(line["backend"] == "b2" || line["backend"] == "b3", "{line}");
        assert!(
            line["bytes_in"].as_u64() > Some(1_000) && line["bytes_out"].as_u64() > Some(1_000)
        );
        assert!(line["duration_ms"].as_f64() < Some(20_000.0), "until it was closed: {line}");
    }
    wait_until("they are counted", || service(&edge).ended.get("closed") == Some(&6));
    wait_until("nobody is left", || service(&edge).connections == Some(0));
}

#[test]
fn a_backend_that_drains_keeps_what_is_spliced_until_the_deadline_and_loses_it_at_the_pace() {
    let (edge, config) = start("drain = { deadline = \"5s\", rate = 10 }");
    const DEADLINE: Duration = Duration::from_secs(5);
    let clients = clients(&edge, 12);
    let name = "name = \"b2\"\n";
    let begun = Instant::now();
    edge.save(&config.replace(name, &format!("{name}drain = true\n")));
    let drained = |client: &TcpStream| {
        let port = client.local_addr().unwrap().port().to_be();
        let is_own =
            |entry: &&(lb_common::addr::Tuple<_>, lb_common::flow::Flow<_>)| entry.0.sport == port;
        spliced(&edge).iter().find(is_own).map(|(_, flow)| flow.backend == 1).unwrap()
    };
    let (own, others): (Vec<_>, Vec<_>) = clients.into_iter().partition(drained);
    assert!(own.len() >= 3, "{} of b2", own.len());
    own.iter().for_each(|client| converse(client, 1_000, 1));
    let number = own.len() as u32;
    for mut client in own {
        assert!(was_reset(&mut client));
        assert!(begun.elapsed() >= DEADLINE);
    }
    let least = DEADLINE + Duration::from_millis(100) * (number - 1);
    assert!(begun.elapsed() >= least, "{number} in {:?}", begun.elapsed());
    others.iter().for_each(|client| converse(client, 1_000, 2));
    wait_until("they are counted", || service(&edge).ended.get("drain") == Some(&number.into()));
    assert_eq!(edge.status().flows.drained, u64::from(number));
}

#[test]
fn an_edge_that_drains_gives_up_what_is_spliced_at_the_pace_and_the_rest_at_the_deadline() {
    let (mut edge, config) = start("drain = { deadline = \"12s\", rate = 1 }");
    let clients = clients(&edge, 30);
    let begun = Instant::now();
    edge.save(&config.replacen("[edge]", "[edge]\ndrain = true", 1));
    let draining = wait_for("it drains", || edge.status().draining);
    assert!(draining.connections >= 16 && draining.spliced >= 16, "{draining:?}");
    wait_until("the first is gone", || spliced(&edge).len() < 60);
    // Another agent goes on with it.
    edge.signal(Signal::SIGKILL);
    edge.wait();
    edge.spawn();
    wait_until("it drains on", || {
        edge.is_healthy() || edge.netns.http(ADMIN, "/healthz").is_some()
    });
    assert!(spliced(&edge).len() >= 20, "not all at once");
    for mut client in clients {
        assert!(was_reset(&mut client));
    }
    assert!(begun.elapsed() >= Duration::from_secs(12), "{:?}", begun.elapsed());
    wait_until("they are counted", || {
        let ended = service(&edge).ended;
        ended.get("deadline").copied().unwrap_or(0) > 5
    });
}

#[test]
fn without_splice_what_is_spliced_goes_on_under_the_next_agent_too() {
    let (mut edge, config) = start("splice = \"auto\"");
    let clients = clients(&edge, 4);
    let relayed = config.replace("\"auto\"", "\"off\"");
    edge.save(&relayed);
    wait_until("it is taken over", || edge.status().config_generation == 2);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    edge.start(&relayed);
    clients.iter().for_each(|client| converse(client, 1_000, 3));
    wait_until("they are counted", || service(&edge).spliced == Some(4));
    let relayed = upgraded(&edge);
    wait_until("another one is relayed", || service(&edge).relayed == Some(1));
    converse(&relayed, 1_000, 4);
    let output = edge.output(&format!("flows --config {} --json", edge.config_file().display()));
    assert_eq!(text(&output).matches("\"service\":\"chat\"").count(), 4, "{}", text(&output));
    edge.save(&config);
    wait_until("it is taken over", || edge.status().config_generation == 2);
    let another = upgraded(&edge);
    wait_until("another one is spliced", || service(&edge).spliced == Some(5));
    clients.iter().chain([&another]).for_each(|client| converse(client, 1_000, 5));
}
