//! How much sources, a service and its backends may have, with the real agent. Needs root.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use tests::chat::{Load, LoadConfig};
use tests::edge::{Forward, L7Config};
use tests::netns::NsHandle;
use tests::privilege::require_root;
use tests::process;
use tests::seed::seed;
use tests::site::{Plan, Site, WEB};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);

/// With these keys of `[service.limits]`, and one worker: limits of sources hold at each.
fn limited(plan: Plan, keys: &str) -> Site {
    require_root();
    let site = plan.build_with(|config| {
        config.sidecar.workers = 1;
        config.service(WEB).tables = format!("\n[service.limits]\n{keys}\n");
    });
    site.unwrap()
}

fn plan(what: &str, spliced: bool) -> Plan {
    let l7 = Some(L7Config { spliced, ..L7Config::default() });
    Plan { l7, ..Plan::new(Forward::Nat, seed(what)) }
}

/// Chats by IPv4, which do not come again.
fn chats(site: &Site, client: usize, connections: usize) -> Load {
    let config = LoadConfig {
        targets: site.listeners(WEB)[..1].to_vec(),
        reconnect: false,
        ..site.chats_of(WEB, connections)
    };
    Load::start(Some(site.lab.client(client)), config).unwrap()
}

/// Waits until the workers have counted this, and looks whether the metrics say so.
fn counted(site: &Site, label: &str, times: u64) {
    site.edge.wait_for(label, SOON, |it| it.happened(WEB, label) >= times).unwrap();
    let metrics = site.edge.get("/metrics").unwrap().body;
    let line =
        format!("sluice_sidecar_outcomes_total{{service=\"{WEB}\",outcome=\"{label}\"}} {times}.0");
    assert!(metrics.lines().any(|it| it == line), "{line}: {metrics}");
}

#[test]
fn a_source_has_so_many_connections_and_another_one_its_own() {
    let plan = Plan { clients: 2, ..plan("source connections", false) };
    let site = limited(plan, "connections_per_source = 4");
    let crowd = chats(&site, 0, 10);
    crowd.wait_until(SOON, |it| it.connected == 4 && it.errors == 6).unwrap();
    counted(&site, "source_connections", 6);
    let others = chats(&site, 1, 4);
    others.wait_until(SOON, |it| it.connected == 4).unwrap();
    crowd.wait_until(SOON, |it| it.messages > 40).unwrap();
    assert_eq!((others.stop().errors, crowd.stop().wrong), (0, 0));
    // Who has gone makes room.
    let again = chats(&site, 0, 4);
    again.wait_until(SOON, |it| it.connected == 4).unwrap();
    counted(&site, "source_connections", 6);
}

/// Whether a request is answered, on a connection of its own.
fn is_answered(client: &NsHandle, target: SocketAddr) -> bool {
    client.run(|| {
        // A connection that is refused may be reset at any time, even before the client has looked.
        let Ok(mut stream) = TcpStream::connect_timeout(&target, SOON) else { return false };
        stream.set_read_timeout(Some(SOON)).unwrap();
        let _ = write!(stream, "GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer.starts_with("HTTP/1.1 200 ")
    })
}

#[test]
fn a_source_comes_no_faster_than_it_may() {
    const RATE: u64 = 2;
    const BURST: u64 = 5;
    let keys = format!("handshakes_per_second_per_source = {RATE}\nhandshake_burst = {BURST}");
    let site = limited(plan("source handshakes", false), &keys);
    let (client, target) = (site.lab.client(0), site.listeners(WEB)[0]);
    let start = Instant::now();
    let (mut served, mut refused) = (0, 0);
    while refused < 10 {
        assert!(start.elapsed() < LATER, "{served} served, {refused} refused");
        if is_answered(client, target) { served += 1 } else { refused += 1 }
    }
    let may = BURST + (start.elapsed().as_secs_f64() * RATE as f64).ceil() as u64;
    assert!((BURST..=may).contains(&served), "{served} of {may} in {:?}", start.elapsed());
    counted(&site, "source_handshakes", refused);
    // It only has to wait a little.
    while !is_answered(client, target) {
        assert!(start.elapsed() < LATER);
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn of_a_service_so_many_come_in_a_second_and_nobody_is_refused() {
    const RATE: usize = 10;
    let site =
        limited(plan("service handshakes", false), &format!("handshakes_per_second = {RATE}"));
    let (crowd, start) = (chats(&site, 0, 3 * RATE), Instant::now());
    crowd.wait_connected(LATER).unwrap();
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(2), "{} came within {took:?}", 3 * RATE);
    site.edge
        .wait_for("they waited", SOON, |it| it.happened(WEB, "connection_delayed") > 0)
        .unwrap();
    let stats = crowd.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

#[test]
fn a_service_has_so_many_connections_spliced_ones_included() {
    // Of one backend, which is reached by the clients' IP version: others are not spliced.
    let plan = Plan { backends: 1, ..plan("service connections", true) };
    let site = limited(plan, "connections = 5");
    let crowd = chats(&site, 0, 9);
    crowd.wait_until(SOON, |it| it.connected == 5 && it.errors == 4).unwrap();
    counted(&site, "too_many_connections", 4);
    let all = |it: &tests::edge::Status| it.happened(WEB, "spliced") == 5;
    site.edge.wait_for("all are spliced", SOON, all).unwrap();
    // The sidecar has none of them any more, and still there is no room, as soon as it has heard of them.
    let (client, target) = (site.lab.client(0), site.listeners(WEB)[0]);
    wait_until(&site, || !is_answered(client, target));
    for _ in 0..20 {
        assert!(!is_answered(client, target));
    }
    counted(&site, "too_many_connections", 4 + 1 + 20);
    assert_eq!(crowd.stop().wrong, 0);
    wait_until(&site, || is_answered(client, target));
}

fn wait_until(site: &Site, wish: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !wish() {
        assert!(Instant::now() < deadline, "{}", site.edge.status().unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// curl, which waits in the queue.
fn curl(site: &Site) -> Command {
    let mut command = site.lab.client(0).command("curl");
    command.args(["--silent", "--show-error", "--include", "--max-time", "30"]);
    command.arg(format!("http://{}/health", site.listeners(WEB)[0]));
    command
}

fn told_to_come_again(answer: &str, text: &str) {
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("\r\nretry-after: 1\r\n") && answer.ends_with(text), "{answer}");
}

#[test]
fn a_full_backend_has_a_queue_and_the_queue_an_end() {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let plan = Plan { backends: 1, ..plan("backend connections", false) };
    let keys = "connections_per_backend = 2\nqueue = 1\nqueue_timeout = \"10s\"";
    let site = limited(plan, keys);
    let full = chats(&site, 0, 2);
    full.wait_until(SOON, |it| it.connected == 2).unwrap();
    std::thread::scope(|scope| {
        let start = Instant::now();
        let waits = scope.spawn(|| process::run(&mut curl(&site)).unwrap());
        counted(&site, "queued", 1);
        let answer = process::run(&mut curl(&site)).unwrap();
        assert!(!waits.is_finished(), "who finds the queue full need not wait");
        told_to_come_again(&answer, "the backend has no room");
        counted(&site, "backend_full", 1);
        let answer = waits.join().unwrap();
        assert!(start.elapsed() >= TIMEOUT, "{:?}", start.elapsed());
        told_to_come_again(&answer, "the backend had no room in time");
        counted(&site, "queue_timeout", 1);

        let waits = scope.spawn(|| process::run(&mut curl(&site)).unwrap());
        counted(&site, "queued", 2);
        full.wait_progress(2, SOON).unwrap();
        let stats = full.stop();
        assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
        let answer = waits.join().unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    });
}

#[test]
fn each_connection_has_so_many_bytes_in_a_second() {
    const RATE: u64 = 65_536;
    /// It may be ahead by a quarter of a second.
    const AHEAD: u64 = RATE / 4;
    const BYTES: u64 = 5 * RATE;
    const CONNECTIONS: usize = 3;
    let site = limited(plan("bandwidth", true), &format!("bytes_per_second = {RATE}"));
    let config = LoadConfig {
        reconnect: false,
        interval: Duration::ZERO,
        message: (8_000, 8_000),
        window: 8,
        ..site.chats_of(WEB, CONNECTIONS)
    };
    let start = Instant::now();
    let load = Load::start(Some(site.lab.client(0)), config).unwrap();
    let all = |it: &tests::chat::LoadStats| it.per_connection.iter().all(|it| it.bytes >= BYTES);
    let stats = load.wait_until(LATER, all).unwrap();
    let took = start.elapsed();
    let least = Duration::from_secs_f64((BYTES - AHEAD) as f64 / RATE as f64);
    assert!(took >= least, "{took:?}: {stats}");
    // Each has its own: one after the other would take so long.
    let together = Duration::from_secs(5) * CONNECTIONS as u32 - Duration::from_secs(2);
    assert!(took < together, "{took:?}: {stats}");
    counted(&site, "splice_limited", CONNECTIONS as u64);
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}
