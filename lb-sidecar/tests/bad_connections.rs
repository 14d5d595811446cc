//! Many bad connections, after which a worker has no more memory and descriptors than before.

mod harness;

use std::{cell::Cell, rc::Rc, time::Duration};

use harness::*;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::spawn_local,
    time::timeout,
};

/// At a time.
const CLIENTS: usize = 100;

/// More than a leak of 40 bytes for each connection of a full run.
const SLACK: u64 = 4 << 20;

const STARTS: &[&str] = &[
    "",
    "GET",
    "GET / HTTP/1.1\r\nHo",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
    "GET / HTTP/1.1\r\n\r\n",
    "GET /\r\n",
    "\x16\x03\x01\x02\x00\x01\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nzz",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 100\r\n\r\n",
    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT",
    ASK,
    "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 3\r\n\r\nabc",
];

/// Does to every connection one of the things that backends should not do.
async fn bad_backend(seed: u64) -> Server {
    let seeds = Rc::new(Cell::new(seed));
    Server::new(move |mut stream| {
        let mut random = SmallRng::seed_from_u64(seeds.replace(seeds.get() + 1));
        async move {
            let _ = timeout(Duration::from_millis(50), read_some(&mut stream)).await;
            let answer: &[u8] = match random.random_range(0..8) {
                0 => b"",
                1 => b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf",
                2 => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
                3 => b"\x00\x01\x02 garbage",
                4 => b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
                5 => SWITCH.as_bytes(),
                6 => b"HTTP/1.1 503 Full\r\ncontent-length: 4\r\n\r\nfull",
                _ => b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            };
            let _ = stream.write_all(answer).await;
            end(stream, &mut random);
        }
    })
    .await
}

async fn read_some(stream: &mut TcpStream) {
    let _ = stream.read(&mut [0; 1024]).await;
}

/// Closes, or resets: then no port is held for a minute either.
fn end(stream: TcpStream, random: &mut SmallRng) {
    if random.random_bool(0.9) {
        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    }
}

async fn bad_client(address: std::net::SocketAddr, random: &mut SmallRng) {
    let Ok(mut stream) = TcpStream::connect(address).await else { return };
    let start = STARTS[random.random_range(0..STARTS.len())];
    let mut bytes = start.as_bytes().to_vec();
    if random.random_bool(0.3) && !bytes.is_empty() {
        // Some byte is another one.
        let at = random.random_range(0..bytes.len());
        bytes[at] = random.random();
    }
    let split = random.random_range(0..=bytes.len());
    let _ = stream.write_all(&bytes[..split]).await;
    if random.random_bool(0.5) {
        tokio::task::yield_now().await;
    }
    let _ = stream.write_all(&bytes[split..]).await;
    match random.random_range(0..4) {
        0 => {}
        1 => _ = stream.shutdown().await,
        2 => read_some(&mut stream).await,
        _ => _ = timeout(Duration::from_millis(5), stream.read_to_end(&mut Vec::new())).await,
    }
    end(stream, random);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn memory() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[test]
fn memory_and_descriptors_stay_flat() {
    let full = std::env::var("SLUICE_TEST_FULL").is_ok_and(|v| v == "1");
    let connections = if full { 100_000 } else { 4_000 };
    let seed = rand::random::<u32>() as u64;
    println!("seed {seed}, {connections} connections");
    run(|| async move {
        let backends = [bad_backend(seed).await, bad_backend(seed + 1_000_000).await];
        let mut addresses: Vec<_> = backends.iter().map(|b| b.address).collect();
        addresses.push(nobody());
        let edge = Edge::new(&addresses, |s| {
            s.http.head_timeout = Duration::from_millis(300);
            s.http.body_timeout = Duration::from_millis(300);
            s.http.response_timeout = Duration::from_millis(300);
            s.http.keep_alive = Duration::from_millis(300);
            s.http.idle_timeout = Duration::from_millis(300);
        });
        let round = |first: u64, connections: u64| {
            let left = Rc::new(Cell::new(connections));
            let tasks: Vec<_> = (0..CLIENTS as u64)
                .map(|i| {
                    let (left, address) = (left.clone(), edge.address);
                    let mut random = SmallRng::seed_from_u64(seed ^ (first + i) << 32);
                    spawn_local(async move {
                        while left.get() > 0 {
                            left.set(left.get() - 1);
                            let one = timeout(LONG, bad_client(address, &mut random));
                            one.await.expect("a connection that hangs");
                        }
                    })
                })
                .collect();
            async {
                for task in tasks {
                    task.await.unwrap();
                }
                edge.quiet().await;
                assert_eq!(edge.live(), 0);
                (descriptors(), memory())
            }
        };
        // Whatever grows to its size once has grown by then.
        let before = round(0, connections / 4).await;
        let after = round(1000, connections).await;
        println!("before {before:?}, after {after:?}: {:?}", edge.worker.report());
        edge.until(
            || descriptors() <= before.0 + 16,
            || format!("{} descriptors, {} before", descriptors(), before.0),
        )
        .await;
        assert!(after.1 < before.1 + SLACK, "memory: {} after {}", after.1, before.1);
        let mut client = edge.connect().await;
        client.send("GET / HTTP/1.1\r\n\r\n").await;
        assert!(client.read_to_end().await.starts_with("HTTP/1.1 400 "), "it still serves");
    });
}
