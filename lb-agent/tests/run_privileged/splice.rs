//! Upgraded connections leave the sidecar for the data plane, and then need neither the sidecar nor the agent.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
};

use lb_agent::bpf::{specs::names, sys::HashFd};
use lb_common::{
    addr::{Tuple, V4},
    flow::{Flow, flags, forward},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    edge::{Edge, VIP},
    network::{Netns, PATIENCE, wait_until},
    sidecar::{BACKEND, SWITCHED, config, two_serve},
};

/// A server that upgrades every connection, and then sends back what it gets.
pub fn echo(netns: &Netns, address: &str) {
    let listener = netns.run(|| TcpListener::bind(address)).unwrap();
    thread::spawn(move || {
        // With its namespace it ends.
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                if read_head(&mut stream).is_none()
                    || stream.write_all(SWITCHED.as_bytes()).is_err()
                {
                    return;
                }
                let mut buffer = [0; 65_536];
                while let Ok(1..) = stream
                    .read(&mut buffer)
                    .map(|n| stream.write_all(&buffer[..n]).map_or(0, |()| n))
                {}
            });
        }
    });
}

fn read_head(stream: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (String::new(), [0]);
    while !head.ends_with("\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0].into());
    }
    Some(head)
}

pub fn upgraded(edge: &Edge) -> TcpStream {
    let mut client = edge.client.connect(VIP);
    client.set_nodelay(true).unwrap();
    let request = format!(
        "GET /chat HTTP/1.1\r\nHost: {VIP}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    client.write_all(request.as_bytes()).unwrap();
    let head = read_head(&mut client).expect("an answer");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client
}

/// The entries of spliced connections.
pub fn spliced(edge: &Edge) -> Vec<(Tuple<V4>, Flow<V4>)> {
    let flows: HashFd<Tuple<V4>, Flow<V4>> =
        HashFd::open(&edge.pins().map_path(names::FLOWS4)).unwrap();
    let mut entries = Vec::new();
    assert!(flows.lookup_batch(None, 8_192, &mut entries).unwrap().is_none());
    entries.retain(|(_, it)| it.forward == forward::SPLICE && it.flags & flags::HOLD == 0);
    entries
}

/// Sends bytes through, and has them come back.
pub fn converse(stream: &TcpStream, bytes: usize, seed: u8) {
    let sent: Vec<u8> = (0..bytes)
        .map(|n| (n as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed)
        .collect();
    let mut came = vec![0; bytes];
    thread::scope(|scope| {
        let (mut writer, mut reader) = (stream, stream);
        let sent = &sent;
        scope.spawn(move || writer.write_all(sent).unwrap());
        reader.read_exact(&mut came).expect("all comes back");
    });
    assert!(came == sent, "other bytes came back");
}

fn kill_all(pids: impl IntoIterator<Item = u32>) {
    for pid in pids {
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    }
}

#[test]
fn a_spliced_connection_needs_neither_worker_nor_agent() {
    let mut edge = Edge::new();
    echo(&edge.server, "10.2.0.2:9000");
    let config = config(&edge, "", &BACKEND);
    edge.start(&config);
    let workers = two_serve(&edge);
    let clients: Vec<_> = (0..8).map(|_| upgraded(&edge)).collect();
    wait_until("all are spliced", || spliced(&edge).len() == 2 * clients.len());
    for (client, seed) in clients.iter().zip(0..) {
        converse(client, 1 << 20, seed);
    }
    // No socket of the edge stays with them.
    wait_until("the sockets are gone", || {
        let sockets =
            edge.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp").unwrap());
        // Established, with the VIP as its own address.
        !sockets.lines().any(|line| line.contains(" 0A00010A:0050 ") && line.contains(" 01 "))
    });
    kill_all(workers);
    edge.signal(Signal::SIGKILL);
    edge.wait();
    for client in &clients {
        converse(client, 100_000, 1);
    }
    edge.start(&config);
    two_serve(&edge);
    for client in &clients {
        converse(client, 100_000, 2);
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut client: &TcpStream = client;
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "the other end's FIN");
    }
    // And new ones are spliced as well.
    let another = upgraded(&edge);
    wait_until("it is spliced", || {
        let port = another.local_addr().unwrap().port().to_be();
        spliced(&edge).iter().any(|(key, _)| key.sport == port)
    });
    converse(&another, 1 << 20, 3);
}

/// The agent is killed again and again while connections are handed over: none may be lost by it.
#[test]
fn no_connection_is_lost_with_an_agent_that_dies_in_the_midst() {
    let mut edge = Edge::new();
    echo(&edge.server, "10.2.0.2:9000");
    let config = config(&edge, "", &BACKEND);
    edge.start(&config);
    two_serve(&edge);
    let mut clients = Vec::new();
    for _ in 0..5 {
        let (tx, rx) = std::sync::mpsc::channel();
        thread::scope(|scope| {
            let edge_ref = &edge;
            scope.spawn(move || {
                for _ in 0..40 {
                    let _ = tx.send(upgraded(edge_ref));
                }
            });
            // In the midst of them.
            clients.extend(rx.iter().take(20));
            edge_ref.signal(Signal::SIGKILL);
            clients.extend(rx.iter());
        });
        edge.wait();
        edge.start(&config);
        two_serve(&edge);
    }
    for client in &clients {
        converse(client, 1_000, 5);
    }
    wait_until("all are spliced", || spliced(&edge).len() == 2 * clients.len());
    for client in &clients {
        converse(client, 1_000, 6);
    }
}
