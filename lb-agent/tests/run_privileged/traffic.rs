//! What the agent does for connections: lists them, ends those that are idle or whose backend is gone.

use std::{io::ErrorKind, time::Instant};

use crate::{
    edge::{Echo, Edge, VIP, say},
    network::{text, wait_until},
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

#[test]
fn flows_are_listed_without_and_with_names() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("", &TWO[..1]));
    let mut stream = edge.client.connect(VIP);
    say(&mut stream, "hello").unwrap();
    let client = stream.local_addr().unwrap().to_string();

    let config = edge.config_file();
    let by_name = format!("flows --json --service chat --backend b2 --config {}", config.display());
    let output = edge.output(&by_name);
    let row: serde_json::Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    assert_eq!((&row["client"], &row["listener"]), (&client.clone().into(), &VIP.into()));
    assert_eq!((&row["service"], &row["backend"]), (&"chat".into(), &"b2".into()));
    assert_eq!((&row["forward"], &row["state"]), (&"nat".into(), &"established".into()));
    assert_eq!(row["nat"]["backend"], "10.2.0.2:9000");

    let table = text(&edge.output(&format!("flows --edge {} --client 10.1.0.2", edge.name)));
    assert!(table.contains(&client) && table.contains("10.2.0.2:9000"), "{table}");
    let none = text(&edge.output(&format!("flows --edge {} --client 10.1.0.9", edge.name)));
    assert!(!none.contains(&client), "{none}");
    let wrong = edge.output(&format!("flows --edge {} --service shop", edge.name));
    assert_eq!(wrong.status.code(), Some(1));
    assert!(text(&wrong).contains("service \"shop\": not known"), "{}", text(&wrong));
}

#[test]
fn when_a_backend_dies_its_clients_and_it_are_told_and_nobody_else() {
    let mut edge = Edge::new();
    let mut servers = TWO.map(|(name, address)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("", &TWO));
    let mut streams: Vec<_> = (0..20).map(|_| edge.client.connect(VIP)).collect();
    let served_by: Vec<String> =
        streams.iter_mut().map(|stream| say(stream, "!").unwrap()).collect();
    let of_dead = served_by.iter().filter(|name| *name == "b2!").count();
    assert!(of_dead > 0 && of_dead < streams.len(), "{served_by:?}");

    wait_until("both have been judged", || {
        edge.status().services[0].backends.iter().all(|backend| backend.health.state == "up")
    });
    // It takes no connections any more; those that it has are silent.
    servers[0].close();
    let start = Instant::now();
    edge.wait_for_log("from=up to=down");
    for (stream, name) in streams.iter_mut().zip(&served_by).filter(|(_, name)| *name == "b2!") {
        let mut buffer = [0];
        let error = std::io::Read::read_exact(stream, &mut buffer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{name}");
    }
    println!("{of_dead} clients were told {:?} after the backend's death", start.elapsed());
    wait_until("the backend is told", || servers[0].errors.lock().unwrap().len() == of_dead);
    for stream in streams.iter_mut().zip(&served_by).filter(|(_, name)| *name == "b3!") {
        assert_eq!(say(stream.0, "?").unwrap(), "b3?");
    }
    assert_eq!(servers[1].errors.lock().unwrap().len(), 0);
    for _ in 0..10 {
        assert_eq!(say(&mut edge.client.connect(VIP), "!").unwrap(), "b3!");
    }
    wait_until("the resets are counted", || edge.status().flows.reset == of_dead as u64);

    // With the last one the pool fails open, and says so; and again when it is over.
    servers[1].close();
    edge.wait_for_log("TOO FEW BACKENDS ARE UP");
    wait_until("the status says so", || edge.status().services[0].fail_open);
    for stream in streams.iter_mut().zip(&served_by).filter(|(_, name)| *name == "b3!") {
        assert_eq!(say(stream.0, "?").unwrap(), "b3?", "nobody is reset while failing open");
    }
    let _again = Echo::start(&edge.server, "10.2.0.3:9000", "b3");
    edge.wait_for_log("no longer failing open");
}

#[test]
fn an_idle_connection_is_ended_at_both_ends() {
    let mut edge = Edge::new();
    let server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("idle_timeout = \"1s\"", &TWO[..1]));
    let mut stream = edge.client.connect(VIP);
    say(&mut stream, "hello").unwrap();
    let mut buffer = [0];
    let error = std::io::Read::read_exact(&mut stream, &mut buffer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    wait_until("the backend is told", || {
        server.errors.lock().unwrap().as_slice() == [ErrorKind::ConnectionReset]
    });
    wait_until("it is counted", || edge.status().flows.expired == 1);
}

#[test]
fn the_id_of_a_removed_backend_is_free_once_its_flows_are_gone() {
    let mut edge = Edge::new();
    let _servers = TWO.map(|(name, address)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("", &TWO));
    let mut streams: Vec<_> = (0..20).map(|_| edge.client.connect(VIP)).collect();
    let served_by: Vec<String> =
        streams.iter_mut().map(|stream| say(stream, "!").unwrap()).collect();
    edge.save(&edge.config("", &TWO[1..]));
    edge.wait_for_log("its id is free");
    for (stream, name) in streams.iter_mut().zip(&served_by) {
        let answer = say(stream, "?");
        match name.as_str() {
            "b3!" => assert_eq!(answer.unwrap(), "b3?"),
            _ => assert!(answer.is_err(), "{answer:?}"),
        }
    }
}
