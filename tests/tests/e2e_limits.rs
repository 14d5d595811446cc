//! What runs out, what is used again at once, and what falls silent. Needs root.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use lb_common::outcome::{DropReason, Event};
use socket2::{Domain, Socket, Type};
use tests::chat::{Load, LoadConfig};
use tests::edge::Forward;
use tests::netns::NsHandle;
use tests::privilege::require_root;
use tests::seed::seed;
use tests::site::{BULK, BULK_PORT, CHAT, Plan};

const SOON: Duration = Duration::from_secs(15);
const LATER: Duration = Duration::from_secs(60);

#[test]
fn no_more_ports_refuses_the_new_and_keeps_the_old() {
    require_root();
    const PORTS: u64 = 10;
    let plan = Plan { backends: 1, ..Plan::new(Forward::Nat, seed("port exhaustion")) };
    let site = plan.build_with(|config| config.nat_ports = 20_000..=20_000 + PORTS as u16 - 1);
    let site = site.unwrap();
    // Per IP version so many connections to the one backend can be, and these are some of them.
    let load = site.start(site.chats(8)).unwrap();
    site.roughen();
    load.wait_progress(3, LATER).unwrap();

    let config = LoadConfig { connect_timeout: Duration::from_millis(300), ..site.chats(60) };
    let crowd = Load::start(Some(site.lab.client(0)), config).unwrap();
    let full = |_: &tests::edge::Status| {
        let stats = crowd.stats();
        stats.errors > stats.connections && stats.connected > 0
    };
    let (status, _) = site.edge.wait_for("the ports run out", SOON, full).unwrap();
    assert!(status.dropped(DropReason::NatPortsExhausted) > 0, "{status}");
    assert!(status.event(Event::PortTranslated) > 0, "{status}");
    assert!(crowd.stats().connected <= 2 * PORTS - 8, "{}", crowd.stats());
    load.wait_progress(10, LATER).unwrap();
    site.smoothen();
    let crowd = crowd.stop();
    assert_eq!(crowd.wrong, 0, "{crowd}");
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

/// A connection from a given port, whatever became of the last one from there.
fn connect_from(client: &NsHandle, port: u16, target: SocketAddr) -> std::io::Result<TcpStream> {
    client.run(|| {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        let own: SocketAddr =
            if target.is_ipv4() { ([0, 0, 0, 0], port).into() } else { ([0u16; 8], port).into() };
        socket.bind(&own.into())?;
        socket.connect_timeout(&target.into(), SOON)?;
        socket.set_read_timeout(Some(SOON))?;
        Ok(socket.into())
    })
}

fn connect_after_time_wait(client: &NsHandle, port: u16, target: SocketAddr) -> TcpStream {
    let deadline = Instant::now() + SOON;
    loop {
        match connect_from(client, port, target) {
            Ok(stream) => return stream,
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                assert!(Instant::now() < deadline, "still in TIME-WAIT");
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("cannot connect to {target}: {error}"),
        }
    }
}

/// Has the server greet and echo a line.
fn talk(stream: &mut TcpStream, line: &str) {
    let mut answer = String::new();
    stream.write_all(line.as_bytes()).unwrap();
    let mut buffer = [0; 256];
    while !answer.ends_with(line) {
        let length = stream.read(&mut buffer).unwrap();
        assert!(length > 0, "the stream ended after {answer:?}");
        answer.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
    }
}

#[test]
fn a_port_can_be_used_again_right_after_a_close() {
    require_root();
    let site = Plan { backends: 2, ..Plan::new(Forward::Nat, seed("port reuse")) }.build().unwrap();
    let client = site.lab.client(0);
    for target in site.listeners(BULK) {
        for round in 0..10 {
            // After a RST no kernel keeps anything of the connection, but the edge's entry still closes.
            let mut stream = connect_from(client, 40_000, target).unwrap();
            talk(&mut stream, &format!("round {round}\n"));
            let socket = Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            drop(socket);
        }
        // After FINs both ways the client's kernel waits: a second at least, if it may use timestamps.
        client.sysctl("ipv4/tcp_tw_reuse", "1").unwrap();
        for round in 0..2 {
            let mut stream = connect_after_time_wait(client, 41_000, target);
            talk(&mut stream, &format!("round {round}\n"));
            stream.shutdown(Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0; 16]).unwrap(), 0, "the server closes, too");
        }
    }
    let status = site.edge.status().unwrap();
    assert!(status.event(Event::FlowReplaced) > 0, "{status}");
}

/// Established connections at a port, as the kernel of a namespace knows them.
fn established(namespace: &NsHandle, port: u16) -> usize {
    let of = |table: &str| -> usize {
        let path = format!("/proc/thread-self/net/{table}");
        let text = namespace.run(|| std::fs::read_to_string(&path)).unwrap();
        let lines = text.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
        let local = format!(":{port:04X}");
        lines.filter(|fields| fields[1].ends_with(&local) && fields[3] == "01").count()
    };
    of("tcp") + of("tcp6")
}

#[test]
fn a_silent_connection_is_reset_at_both_ends() {
    require_root();
    let timeout = Duration::from_secs(2);
    let plan = Plan { backends: 1, ..Plan::new(Forward::Nat, seed("idle timeout")) };
    let site = plan.build_with(|config| config.service(BULK).idle_timeout = timeout).unwrap();
    // Those of another service have their own, longer time.
    let chats = site.start(LoadConfig { interval: 2 * timeout, ..site.chats(4) }).unwrap();
    let backend = site.lab.backend(0);
    for target in site.listeners(BULK) {
        let mut stream = connect_from(site.lab.client(0), 0, target).unwrap();
        talk(&mut stream, "hello\n");
        let silent = Instant::now();
        // A probe may be there for a moment.
        wait_until("only it is there", || established(backend, BULK_PORT + 9000) == 1);
        let error = stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        let took = silent.elapsed();
        assert!(took >= timeout - Duration::from_millis(100), "reset after {took:?} already");
        wait_until("the backend's end is reset", || established(backend, BULK_PORT + 9000) == 0);
    }
    let stats = chats.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

#[test]
fn a_connection_that_speaks_at_times_is_not_idle() {
    require_root();
    let timeout = Duration::from_secs(4);
    let plan = Plan { backends: 1, ..Plan::new(Forward::Nat, seed("not idle")) };
    let site = plan.build_with(|config| config.service(CHAT).idle_timeout = timeout).unwrap();
    let speaking = LoadConfig { interval: timeout / 4, ..site.chats(4) };
    let load = site.start(speaking).unwrap();
    load.wait_progress(6, LATER).unwrap();
    let stats = load.stop();
    assert_eq!((stats.errors, stats.wrong), (0, 0), "{stats}");
}

fn wait_until(what: &str, mut wish: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !wish() {
        assert!(Instant::now() < deadline, "{what}: not so after {SOON:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
