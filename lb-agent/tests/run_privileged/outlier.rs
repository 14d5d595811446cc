//! Backends that fail their clients while their health checks succeed: out, back, out for longer.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use lb_agent::run::status::Backend;

use crate::{
    edge::{ADMIN, Edge, VIP},
    network::{Netns, wait_for, wait_until},
    sidecar::{SWITCHED, Web, config},
};

const TWO: [(&str, &str); 2] = [("b2", "10.2.0.2:9000"), ("b3", "10.2.0.3:9000")];

/// Answers requests with its name, or with 503 while it `fails`; upgrades always succeed, and then it sends back what it
/// gets.
struct Moody {
    stop: Arc<AtomicBool>,
    fails: Arc<AtomicBool>,
}

impl Moody {
    fn start(netns: &Netns, address: &str, name: &'static str) -> Self {
        let listener = netns.run(|| TcpListener::bind(address)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let moody = Self { stop: Arc::default(), fails: Arc::default() };
        let (stop, fails) = (Arc::clone(&moody.stop), Arc::clone(&moody.fails));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let fails = Arc::clone(&fails);
                stream.set_nonblocking(false).unwrap();
                thread::spawn(move || serve(stream, name, &fails));
            }
        });
        moody
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }
}

impl Drop for Moody {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn serve(mut stream: std::net::TcpStream, name: &str, fails: &AtomicBool) {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while let Ok(1) = stream.read(&mut byte) {
        head.push(byte[0]);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        if head.starts_with(b"GET /chat") {
            let _ = stream.write_all(SWITCHED.as_bytes());
            while stream.read(&mut byte).is_ok_and(|n| n > 0) {
                let _ = stream.write_all(&byte);
            }
            return;
        }
        head.clear();
        let status = if fails.load(Ordering::Relaxed) { "503 No" } else { "200 OK" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        let _ = stream.write_all(answer.as_bytes());
    }
}

fn b3(edge: &Edge) -> Backend {
    edge.status().services[0].backends[1].clone()
}

/// The status lines and bodies of some requests.
fn answers(edge: &Edge, times: usize) -> Vec<(String, String)> {
    (0..times).filter_map(|_| edge.client.http(VIP, "/")).collect()
}

fn is_ok(answer: &(String, String)) -> bool {
    answer.0.contains(" 200 ")
}

/// Asks until `b3` is ejected, and says for how many times it was.
fn ejected(edge: &Edge) -> u32 {
    wait_for("b3 is ejected", || {
        answers(edge, 6);
        b3(edge).ejected.map(|it| it.times)
    })
}

#[test]
fn a_backend_that_answers_with_errors_is_out_comes_back_and_is_out_for_longer() {
    let mut edge = Edge::new();
    let _good = Moody::start(&edge.server, "10.2.0.2:9000", "b2");
    let moody = Moody::start(&edge.server, "10.2.0.3:9000", "b3");
    let service = "balance = \"round-robin\"\nsplice = \"off\"\n\
         outlier = { consecutive_5xx = 3, base_ejection_time = \"5s\" }";
    edge.start(&config(&edge, service, &TWO).replace("workers = 2", "workers = 1"));
    wait_until("both serve", || {
        let bodies: Vec<_> = answers(&edge, 4).into_iter().map(|it| it.1).collect();
        bodies.contains(&"b2".to_owned()) && bodies.contains(&"b3".to_owned())
    });
    let mut chats: Vec<_> = (0..2).map(|_| chat(&edge)).collect();

    moody.fail(true);
    assert_eq!(ejected(&edge), 1);
    let out = b3(&edge);
    assert_eq!((out.health.state.as_str(), out.effective_weight), ("up", 0));
    let reason = out.ejected.unwrap().reason;
    assert!(reason.contains("requests in a row were answered with 5xx"), "{reason}");
    assert!(answers(&edge, 20).iter().all(is_ok), "nobody meets it");
    let metrics = edge.netns.http(ADMIN, "/metrics").unwrap().1;
    for line in [
        "sluice_backend_ejected{service=\"chat\",backend=\"b3\"} 1.0",
        "sluice_backend_ejections_total{service=\"chat\",backend=\"b3\"} 1.0",
    ] {
        assert!(metrics.lines().any(|it| it == line), "{line}");
    }

    // It is not dead: who chats with it goes on.
    for chat in &mut chats {
        chat.write_all(b"x").unwrap();
        let mut byte = [0];
        chat.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    wait_until("it is back", || b3(&edge).ejected.is_none());
    assert_eq!(ejected(&edge), 2);
    let left = b3(&edge).ejected.unwrap().seconds_left;
    assert!(left > 5.0 && left <= 10.0, "{left}");

    moody.fail(false);
    wait_until("it is back and serves", || answers(&edge, 2).iter().any(|it| it.1 == "b3"));
    assert_eq!(b3(&edge).ejections, Some(2));
    edge.wait_for_log("back from its ejection");
}

#[test]
fn a_backend_that_accepts_no_connections_is_ejected_and_nobody_notices() {
    let mut edge = Edge::new();
    let _good = Web::start(&edge.server, "10.2.0.2:9000", "b2");
    // Health is asked at the port of a server that is well.
    let service = "balance = \"round-robin\"\noutlier = { max_ejection_percent = 10 }";
    let config = config(&edge, service, &TWO);
    let config = config
        .replace("kind = \"tcp\"", "kind = \"none\"")
        .replace(", interval = \"100ms\", timeout = \"100ms\", rise = 1, fall = 2", "");
    edge.start(&config);
    assert_eq!(ejected(&edge), 1);
    assert_eq!(b3(&edge).health.state, "up");
    // Workers report once a second.
    wait_until("it is not even tried", || {
        let failed = || b3(&edge).requests.unwrap().failed;
        let before = failed();
        let all_well = answers(&edge, 20).iter().all(is_ok);
        thread::sleep(Duration::from_millis(1_200));
        all_well && failed() == before
    });
    edge.wait_for_log("connects in a row failed");
}

/// A client that chats.
fn chat(edge: &Edge) -> std::net::TcpStream {
    let mut stream = edge.client.connect(VIP);
    let ask = "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(ask.as_bytes()).unwrap();
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}
