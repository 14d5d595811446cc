//! A stream of packets through the edge, some hundreds a second, and how long each was on its way and back.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tests::netns::NsHandle;

/// Between two of them: they shall not take the processors that the agent needs.
const PAUSE: Duration = Duration::from_millis(1);

const PATIENCE: Duration = Duration::from_secs(10);

/// A connection through XDP with one message under way, until it is finished.
pub struct Stream {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<f64>>>,
}

impl Stream {
    pub fn start(client: &NsHandle, to: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = stop.clone();
        Self { stop, thread: client.spawn("stream", move || ping_pong(to, &seen)) }
    }

    /// Milliseconds of each round trip.
    pub fn finish(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the stream's thread has panicked")?
    }
}

fn ping_pong(to: SocketAddr, stop: &AtomicBool) -> Result<Vec<f64>> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // The server says its name first.
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
    }
    let mut millis = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        stream.write_all(&[7; 64])?;
        stream.read_exact(&mut [0; 64])?;
        millis.push(start.elapsed().as_secs_f64() * 1e3);
        std::thread::sleep(PAUSE);
    }
    Ok(millis)
}
