//! What operators change while an edge runs: what becomes of clients, of the next agent, and of what must be refused.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Stdio},
    time::Duration,
};

use lb_agent::{bpf::lock::RUN_DIR, run::status::Backend};
use nix::sys::signal::Signal;

use crate::{
    drain::{chat, head},
    edge::{ADMIN, Echo, Edge, VIP, say},
    network::{text, wait_until},
    sidecar::{self, Web},
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

fn socket(edge: &Edge) -> PathBuf {
    [RUN_DIR, &edge.name, "admin.sock"].iter().collect()
}

/// Runs a command of the command line against the edge, and returns what it says.
pub fn cli(edge: &Edge, arguments: &str) -> Result<String, String> {
    let output = edge.output(&format!("{arguments} --socket {}", socket(edge).display()));
    match output.status.success() {
        true => Ok(text(&output)),
        false => Err(text(&output)),
    }
}

fn backend(edge: &Edge, name: &str) -> Backend {
    let mut backends = edge.status().services.remove(0).backends.into_iter();
    backends.find(|it| it.name == name).unwrap_or_else(|| panic!("no {name}"))
}

/// Who serves some new clients who say a word.
fn served(edge: &Edge) -> Vec<String> {
    let ask = |_| say(&mut edge.client.connect(VIP), "x").unwrap();
    let mut all: Vec<_> = (0..16).map(ask).collect();
    all.sort();
    all.dedup();
    all
}

#[test]
fn a_backend_of_xdp_drains_and_its_flows_end_at_the_deadline() {
    let mut edge = Edge::new();
    let _servers = [("10.2.0.2:9000", "b2:"), ("10.2.0.3:9000", "b3:")]
        .map(|(address, name)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("", &TWO));
    wait_until("both serve", || served(&edge) == ["b2:x", "b3:x"]);
    let mut clients: Vec<_> = (0..16).map(|_| edge.client.connect(VIP)).collect();
    let mut of_b2: Vec<_> = clients
        .iter_mut()
        .filter_map(|client| {
            (say(client, "x").unwrap() == "b2:x").then(|| client.try_clone().unwrap())
        })
        .collect();
    assert!(!of_b2.is_empty());

    let said = cli(&edge, "drain chat b2 --deadline 5s --rate 1000").unwrap();
    assert_eq!(said, "chat/b2 drains (revision 1)\n");
    assert_eq!(served(&edge), ["b3:x"], "nobody new");
    assert_eq!(say(&mut of_b2[0], "y").unwrap(), "b2:y", "who is there stays for now");
    assert!(backend(&edge, "b2").draining_until.is_some());
    for client in &mut of_b2 {
        let error = client.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }
    let said = cli(&edge, "drain chat b2 --wait").unwrap();
    assert!(said.ends_with("0 connections left\n"), "{said}");

    assert_eq!(cli(&edge, "undrain chat b2").unwrap(), "chat/b2 serves (revision 3)\n");
    wait_until("both serve", || served(&edge) == ["b2:x", "b3:x"]);
}

#[test]
fn who_waits_for_a_drain_hears_that_it_was_called_off_under_the_next_agent_too() {
    let mut edge = Edge::new();
    let _servers = [("10.2.0.2:9000", "b2:"), ("10.2.0.3:9000", "b3:")]
        .map(|(address, name)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("", &TWO));
    wait_until("both serve", || served(&edge) == ["b2:x", "b3:x"]);
    let mut clients: Vec<_> = (0..16).map(|_| edge.client.connect(VIP)).collect();
    clients.iter_mut().for_each(|client| _ = say(client, "x").unwrap());
    wait_until("they are counted", || backend(&edge, "b2").connections > 0);
    let waits = |edge: &Edge, arguments: &str| {
        let mut command =
            edge.command(&format!("{arguments} --wait --socket {}", socket(edge).display()));
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let end = |waits: Child| {
        let output = waits.wait_with_output().unwrap();
        (output.status.code(), text(&output))
    };

    let waiting = waits(&edge, "drain chat b2 --deadline 10m");
    wait_until("it drains", || backend(&edge, "b2").draining_until.is_some());
    edge.signal(Signal::SIGKILL);
    edge.wait();
    std::thread::sleep(Duration::from_secs(2));
    edge.spawn();
    wait_until("the next one is ready", || edge.is_healthy());
    wait_until("it counts", || backend(&edge, "b2").connections > 0);
    cli(&edge, "undrain chat b2").unwrap();
    let (code, said) = end(waiting);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("waits for the agent") && !said.contains("\n0 connections"), "{said}");
    assert!(said.contains("chat/b2: its drain was called off"), "{said}");

    let waiting = waits(&edge, "drain --edge --grace 10m");
    wait_until("it is announced", || !edge.is_healthy());
    cli(&edge, "undrain --edge").unwrap();
    let (code, said) = end(waiting);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the edge: its drain was called off"), "{said}");
}

#[test]
fn a_relayed_connection_ends_with_1012_after_a_drain_that_the_next_agent_knows_of() {
    let mut edge = Edge::new();
    let _webs = TWO.map(|(name, address)| {
        Web::start(&edge.server, address, if name == "b2" { "b2" } else { "b3" })
    });
    edge.start(&sidecar::config(&edge, "splice = \"off\"\nbalance = \"round-robin\"", &TWO));
    wait_until("requests are answered", || sidecar::get(&edge, "/").is_some());
    cli(&edge, "drain chat b3").unwrap();
    let mut client = chat(&edge);
    cli(&edge, "undrain chat b3").unwrap();
    cli(&edge, "drain chat b2 --deadline 3s --rate 10").unwrap();
    assert!((0..6).all(|_| sidecar::get(&edge, "/").as_deref() == Some("b3")));

    edge.signal(Signal::SIGKILL);
    edge.wait();
    edge.spawn();
    wait_until("the next one is ready", || edge.is_healthy());
    assert!(backend(&edge, "b2").draining_until.is_some(), "it knows");
    let diff = cli(&edge, "config diff").unwrap();
    assert!(diff.contains("chat/b2") && diff.contains("true, deadline 3s, rate 10"), "{diff}");
    let mut frame = [0; 4];
    client.read_exact(&mut frame).unwrap();
    assert_eq!(frame, [0x88, 2, 0x03, 0xf4], "service restart");
}

#[test]
fn weights_maintenance_and_new_backends_are_in_force_at_once_and_forgotten_at_once() {
    let mut edge = Edge::new();
    let _servers = [("10.2.0.2:9000", "b2:"), ("10.2.0.3:9000", "b3:")]
        .map(|(address, name)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("", &TWO[..1]));
    cli(&edge, "add-backend chat 10.2.0.3:9000 --name b3 --weight 50").unwrap();
    wait_until("it joins", || served(&edge) == ["b2:x", "b3:x"]);
    assert_eq!(backend(&edge, "b3").weight, 50);
    cli(&edge, "weight chat b2 0").unwrap();
    assert_eq!(served(&edge), ["b3:x"]);
    cli(&edge, "weight chat b2 100").unwrap();
    cli(&edge, "maintenance chat b3").unwrap();
    assert_eq!(served(&edge), ["b2:x"]);
    let table = cli(&edge, "backends").unwrap();
    assert!(table.contains("draining") && table.contains("10.2.0.3:9000"), "{table}");
    let services = cli(&edge, "services --json").unwrap();
    assert!(services.contains("\"services\""), "{services}");

    // A file that is saved leaves what was changed.
    edge.save(&edge.config("idle_timeout = \"2h\"", &TWO[..1]));
    wait_until("it is taken over", || edge.log().contains("the new configuration is in force"));
    assert_eq!(backend(&edge, "b3").address, "10.2.0.3:9000");
    // And one that has the backend takes it over.
    edge.save(&edge.config("", &TWO));
    edge.wait_for_log("the file has a backend of this name now");
    assert_eq!(cli(&edge, "config diff").unwrap(), "the edge is as its file says\n");

    cli(&edge, "remove-backend chat b2").unwrap();
    assert_eq!(edge.status().services[0].backends.len(), 1);
    assert!(cli(&edge, "config diff").unwrap().contains("taken out"));
    cli(&edge, "config forget").unwrap();
    assert_eq!(edge.status().services[0].backends.len(), 2);
}

#[test]
fn what_cannot_be_is_refused_with_a_remedy_and_changes_nothing() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("", &TWO));
    wait_until("b3 is down", || backend(&edge, "b3").health.state == "down");
    for (arguments, parts) in [
        ("drain chta b2", ["there is no service \"chta\"", "did you mean \"chat\"?"]),
        ("drain chat b4x", ["no backend \"b4x\"", "there are \"b2\", \"b3\""]),
        ("drain chat b2", ["no backend left that takes clients", "force"]),
        ("weight chat b2 0", ["no backend left that takes clients", "force"]),
        ("remove-backend chat b2", ["no backend left that takes clients", "force"]),
        ("weight chat b2 1001", ["weight 1001", "0 to 1000"]),
        ("add-backend chat 10.1.0.10:81", ["has a VIP", "of the backend's own"]),
        ("drain chat b2 --deadline 5", ["has no unit", "30s"]),
    ] {
        let said = cli(&edge, arguments).unwrap_err();
        assert!(parts.iter().all(|part| said.contains(part)), "{arguments}: {said}");
    }
    assert_eq!(cli(&edge, "config diff").unwrap(), "the edge is as its file says\n");
    assert_eq!(cli(&edge, "drain chat b2 --force").unwrap(), "chat/b2 drains (revision 1)\n");
    let mode = fs::metadata(socket(&edge)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    edge.signal(Signal::SIGTERM);
    edge.wait();
    assert!(!socket(&edge).exists());
    assert!(cli(&edge, "services").unwrap_err().contains("nobody answers"));
}

#[test]
fn a_stale_socket_is_no_obstacle_and_a_live_one_is_named() {
    let mut edge = Edge::new();
    let path = socket(&edge);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
    edge.save(&edge.config("", &TWO));
    let output = edge.output(&edge.run_arguments());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output).contains("admin.sock: another process listens there"),
        "{}",
        text(&output)
    );
    drop(live);
    edge.start(&edge.config("", &TWO));
    assert!(cli(&edge, "services").unwrap().contains("chat"));
}

#[test]
fn an_edge_says_that_it_drains_before_it_does() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    edge.start(&sidecar::config(&edge, "splice = \"off\"", &sidecar::BACKEND));
    wait_until("requests are answered", || sidecar::get(&edge, "/").is_some());
    cli(&edge, "drain --edge --grace 5s --deadline 1m --rate 50").unwrap();
    let (head, body) = edge.netns.http(ADMIN, "/readyz").unwrap();
    assert!(head.contains(" 503 ") && body == "draining\n", "{head} {body}");
    assert!(sidecar::get(&edge, "/").is_some(), "clients are still taken");
    wait_until("then they are not", || sidecar::get(&edge, "/").is_none());
    assert!(edge.status().draining.is_some());
    cli(&edge, "undrain --edge").unwrap();
    wait_until("it serves again", || edge.is_healthy() && sidecar::get(&edge, "/").is_some());
}

#[test]
fn changes_over_tcp_need_a_token_and_no_other_site_has_a_say() {
    let mut edge = Edge::new();
    let token = edge.directory.join("token");
    fs::write(&token, "0123456789abcdef\n").unwrap();
    let line = format!("[edge]\nadmin_token_file = {token:?}");
    edge.start(&edge.config("", &TWO).replacen("[edge]", &line, 1));
    let post = |head: &str| {
        let mut stream = edge.netns.connect(ADMIN);
        let request = format!(
            "POST /v1/services/chat/backends/b2/weight HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 12\r\n{head}\r\n{{\"weight\":7}}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let answer = head_of(&mut stream);
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    let token = "Authorization: Bearer 0123456789abcdef\r\n";
    assert_eq!(post(""), "401");
    assert_eq!(post("Authorization: Bearer 0123456789abcdeX\r\n"), "401");
    assert_eq!(post(&format!("Origin: http://evil.example\r\n{token}")), "403");
    assert_eq!(backend(&edge, "b2").weight, 100);
    assert_eq!(post(token), "200");
    assert_eq!(backend(&edge, "b2").weight, 7);
}

fn head_of(stream: &mut std::net::TcpStream) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    head(stream)
}

#[test]
fn a_client_is_told_beforehand_which_backend_it_gets_and_why() {
    let mut edge = Edge::new();
    let _servers = [("10.2.0.2:9000", "b2:"), ("10.2.0.3:9000", "b3:")]
        .map(|(address, name)| Echo::start(&edge.server, address, name));
    edge.start(&edge.config("affinity = \"source\"", &TWO));
    wait_until("both are up", || {
        ["b2", "b3"].iter().all(|it| backend(&edge, it).health.state == "up")
    });
    let explained = cli(&edge, &format!("explain 10.1.0.2 {VIP}")).unwrap();
    let mut client = edge.client.connect(VIP);
    let name = say(&mut client, "x").unwrap();
    let name = name.split(':').next().unwrap().to_owned();
    assert!(explained.contains(&format!("=> {name} (10.2.0.")), "{name}: {explained}");
    assert!(explained.contains("the client's address falls on slot"), "{explained}");
    let port = client.local_addr().unwrap().port();
    let explained = cli(&edge, &format!("explain 10.1.0.2:{port} {VIP}")).unwrap();
    assert!(explained.contains("the flow decides") && explained.contains(&name), "{explained}");
    let explained = cli(&edge, &format!("explain 10.1.0.2:{port} {VIP} --json")).unwrap();
    assert!(explained.contains("\"newcomer\": false"), "{explained}");

    edge.save(&edge.config("", &TWO));
    wait_until("it is taken over", || edge.status().config_generation == 2);
    for port in 40_000..40_008 {
        let explained = cli(&edge, &format!("explain 10.1.0.2:{port} {VIP} --json")).unwrap();
        let explained: serde_json::Value = serde_json::from_str(&explained).unwrap();
        let served = served_at(&edge, port);
        assert_eq!(explained["backend"]["name"].as_str(), served.split(':').next(), "{explained}");
    }
    let refused = cli(&edge, "explain 10.1.0.2 10.1.0.10:81").unwrap_err();
    assert!(refused.contains("no service listens at 10.1.0.10:81"), "{refused}");
}

/// Who serves the client of this port.
fn served_at(edge: &Edge, port: u16) -> String {
    use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrIn};
    let socket = edge.client.run(move || {
        let kind = (AddressFamily::Inet, SockType::Stream, SockFlag::empty());
        let socket = socket::socket(kind.0, kind.1, kind.2, None).unwrap();
        let from = SockaddrIn::new(10, 1, 0, 2, port);
        socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &from).unwrap();
        let to: SockaddrIn = VIP.parse().unwrap();
        socket::connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to).unwrap();
        socket
    });
    say(&mut std::net::TcpStream::from(socket), "x").unwrap()
}

#[test]
fn the_connections_of_a_backend_are_reset_once() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("", &TWO[..1]));
    wait_until("it serves", || served(&edge) == ["b2:x"]);
    let mut before = edge.client.connect(VIP);
    assert_eq!(say(&mut before, "x").unwrap(), "b2:x");
    std::thread::sleep(Duration::from_millis(100));
    cli(&edge, "reset-flows chat b2").unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let mut after = edge.client.connect(VIP);
    assert_eq!(say(&mut after, "x").unwrap(), "b2:x");
    assert_eq!(before.read(&mut [0]).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let events = cli(&edge, "events").unwrap();
    assert!(
        events.contains("operator_changed") && events.contains("its connections are reset"),
        "{events}"
    );
    // A walk later it is still there, and nobody looks for more.
    edge.wait_for_log("what was to be reset is");
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(say(&mut after, "y").unwrap(), "b2:y");
}

#[test]
fn relayed_connections_are_reset_once_too_and_flows_are_listed() {
    let mut edge = Edge::new();
    let _web = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    edge.start(&sidecar::config(&edge, "splice = \"off\"", &sidecar::BACKEND));
    wait_until("requests are answered", || sidecar::get(&edge, "/").is_some());
    let mut client = chat(&edge);
    let address = client.local_addr().unwrap();
    let explained = cli(&edge, &format!("explain {address} {VIP}")).unwrap();
    assert!(explained.contains("a worker relays it"), "{explained}");
    let explained = cli(&edge, &format!("explain {address} {VIP} --json")).unwrap();
    assert!(explained.contains("\"newcomer\": true"), "{explained}");
    cli(&edge, "reset-flows chat b2").unwrap();
    let mut frame = [0; 4];
    client.read_exact(&mut frame).unwrap();
    assert_eq!(frame, [0x88, 2, 0x03, 0xf4], "service restart");
    assert!(sidecar::get(&edge, "/").is_some());
}

fn json_of(edge: &Edge, path: &str) -> serde_json::Value {
    let (head, body) = edge.netns.http(ADMIN, path).unwrap();
    assert!(head.contains(" 200 "), "{path}: {head} {body}");
    serde_json::from_str(&body).unwrap()
}

#[test]
fn connections_are_listed_a_page_at_a_time_each_of_them_once() {
    let mut edge = Edge::new();
    let _server = Echo::start(&edge.server, "10.2.0.2:9000", "b2:");
    edge.start(&edge.config("", &TWO[..1]));
    wait_until("it serves", || served(&edge) == ["b2:x"]);
    let mut clients: Vec<_> = (0..30).map(|_| edge.client.connect(VIP)).collect();
    clients.iter_mut().for_each(|client| _ = say(client, "x").unwrap());
    let mut listed = Vec::new();
    let mut path = "/v1/flows?service=chat&backend=b2&client=10.1.0.2&limit=7".to_owned();
    loop {
        let page = json_of(&edge, &path);
        let flows = page["flows"].as_array().unwrap();
        assert!(flows.len() <= 7 && flows.iter().all(|it| it["backend"] == "b2"), "{page}");
        listed.extend(flows.iter().map(|it| it["client"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/flows?service=chat&backend=b2&client=10.1.0.2&limit=7&cursor={next}");
    }
    for client in &clients {
        let address = client.local_addr().unwrap().to_string();
        assert_eq!(listed.iter().filter(|it| **it == address).count(), 1, "{address}");
    }
    let (head, body) = edge.netns.http(ADMIN, "/v1/flows?backend=b3").unwrap();
    assert!(head.contains(" 404 ") && body.contains("did you mean"), "{head} {body}");
}

#[test]
fn a_cookie_is_explained() {
    let mut edge = Edge::new();
    let keys = edge.directory.join("keys");
    fs::write(&keys, format!("k1 {}\n", "QUFB".repeat(11))).unwrap();
    let _webs = [("10.2.0.2:9000", "b2"), ("10.2.0.3:9000", "b3")]
        .map(|(address, name)| Web::start(&edge.server, address, name));
    let config =
        sidecar::config(&edge, "", &TWO).replace("affinity = \"none\"", "affinity = \"cookie\"");
    let keys = format!("workers = 2\ncookie_keys = {keys:?}");
    edge.start(&config.replace("workers = 2", &keys));
    wait_until("both are up", || {
        ["b2", "b3"].iter().all(|it| backend(&edge, it).health.state == "up")
    });
    let mut client = edge.client.connect(VIP);
    client.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let answer = head_of(&mut client);
    let cookie = answer
        .lines()
        .find_map(|line| line.strip_prefix("set-cookie: ").or(line.strip_prefix("Set-Cookie: ")));
    let cookie = cookie.unwrap().split(';').next().unwrap();
    let mut name = [0; 2];
    client.read_exact(&mut name).unwrap();
    let name = String::from_utf8_lossy(&name).into_owned();
    let explained = cli(&edge, &format!("explain 10.1.0.2 {VIP} --cookie {cookie}")).unwrap();
    assert!(explained.contains("hit: the cookie's backend"), "{explained}");
    assert!(explained.contains(&format!("=> {name} (")), "{explained}");
    let explained = cli(&edge, &format!("explain 10.1.0.2 {VIP} --cookie {cookie}x")).unwrap();
    assert!(
        explained.contains("none of this edge's") && explained.contains("not decided yet"),
        "{explained}"
    );
}

#[test]
fn of_two_changes_at_once_one_is_told_that_the_other_came_first() {
    let mut edge = Edge::new();
    edge.start(&edge.config("", &TWO));
    let path = socket(&edge);
    let ask = |backend: &str| {
        let body = r#"{"weight": 7, "revision": 0}"#;
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let request = format!(
            "POST /v1/services/chat/backends/{backend}/weight HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let answers = std::thread::scope(|scope| {
        let ask = &ask;
        let both = ["b2", "b3"].map(|backend| scope.spawn(move || ask(backend)));
        both.map(|thread| thread.join().unwrap())
    });
    let (late, first): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.contains(" 409 "));
    assert_eq!((late.len(), first.len()), (1, 1), "{answers:?}");
    assert!(first[0].contains(" 200 ") && late[0].contains("revision 0 was seen"), "{answers:?}");
    let weights: Vec<_> = ["b2", "b3"].iter().map(|it| backend(&edge, it).weight).collect();
    assert_eq!(weights.iter().sum::<u32>(), 107, "{weights:?}");
}
