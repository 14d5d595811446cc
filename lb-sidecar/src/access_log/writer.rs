//! The thread that writes the log: only there may a full disk or a slow reader make anybody wait.

use std::{
    fs::File,
    io::Write,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// Pieces that may wait to be written: about a MiB of lines.
const QUEUE: usize = 16;

/// After a failed write nothing is said of further ones for so long.
const QUIET: Duration = Duration::from_secs(10);

enum Order {
    Write {
        piece: Vec<u8>,
        lines: u64,
    },
    Replace(OwnedFd),
    /// Tells when everything before it is done.
    Done(SyncSender<()>),
}

/// The thread's end that never waits.
pub struct Writer {
    orders: SyncSender<Order>,
    lost: Arc<AtomicU64>,
}

impl Writer {
    pub fn start(file: OwnedFd) -> std::io::Result<Self> {
        let (orders, receiver) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&lost);
        thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || run(file.into(), &receiver, &counter))?;
        Ok(Self { orders, lost })
    }

    /// Writes so many lines, or loses them.
    pub fn write(&self, piece: Vec<u8>, lines: u64) {
        if self.orders.try_send(Order::Write { piece, lines }).is_err() {
            self.lost.fetch_add(lines, Ordering::Relaxed);
        }
    }

    /// Another file. If the queue is full the old one stays: the next rotation tries again.
    pub fn replace(&self, file: OwnedFd) {
        if self.orders.try_send(Order::Replace(file)).is_err() {
            tracing::warn!("the access log cannot keep up: it stays with the old file");
        }
    }

    /// Waits until all is written, but no longer than so.
    pub fn wait(&self, patience: Duration) {
        let (done, waiting) = sync_channel(1);
        if self.orders.try_send(Order::Done(done)).is_ok() {
            // Neither an answer nor its absence changes anything.
            _ = waiting.recv_timeout(patience);
        }
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

fn run(mut file: File, orders: &Receiver<Order>, lost: &AtomicU64) {
    let mut quiet_until = None;
    for order in orders {
        match order {
            Order::Write { piece, lines } => {
                let Err(error) = file.write_all(&piece) else { continue };
                lost.fetch_add(lines, Ordering::Relaxed);
                let now = Instant::now();
                if quiet_until.is_none_or(|until| until <= now) {
                    tracing::warn!(%error, lines, "the access log cannot be written");
                    quiet_until = Some(now + QUIET);
                }
            }
            Order::Replace(new) => file = new.into(),
            Order::Done(done) => _ = done.send(()),
        }
    }
}
