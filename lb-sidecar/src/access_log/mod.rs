//! The access log: JSON lines, one when a request was answered, an upgrade made or TLS passed on, one when a relayed
//! connection has ended, or goes on without the sidecar.
//!
//! A worker never waits for its log. Lines are collected here and handed over to the [`writer`]'s thread in one piece,
//! after [`PATIENCE`] or [`PIECE`] bytes; what it cannot take in time is lost, and counted.

mod line;
mod writer;

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, SystemTime},
};

use line::Line;
pub use line::{Close, Passthrough, Request};
pub use writer::Writer;

/// How long a line may wait for others.
const PATIENCE: Duration = Duration::from_millis(100);

/// Bytes that are handed over without waiting for more.
const PIECE: usize = 64 << 10;

/// The access log of a worker. Needs the [`LocalSet`](tokio::task::LocalSet) that the worker runs on.
pub struct AccessLog {
    writer: Writer,
    buffer: RefCell<Vec<u8>>,
    /// Lines in the buffer.
    lines: Cell<u64>,
    /// Random, so that the ids of two workers differ.
    prefix: u32,
    next: Cell<u32>,
}

impl AccessLog {
    /// Writes to the file until another one is given.
    pub fn new(file: OwnedFd) -> std::io::Result<Rc<Self>> {
        Ok(Rc::new(Self {
            writer: Writer::start(file)?,
            buffer: RefCell::default(),
            lines: Cell::default(),
            prefix: rand::random(),
            next: Cell::default(),
        }))
    }

    /// Writes there from now on: whoever rotates logs has moved the file before.
    pub fn replace(&self, file: OwnedFd) {
        self.flush();
        self.writer.replace(file);
    }

    /// Joins the lines of a connection.
    pub fn connection_id(&self) -> u64 {
        let next = self.next.get();
        self.next.set(next.wrapping_add(1));
        u64::from(self.prefix) << 32 | u64::from(next)
    }

    /// Whether a connection's lines are written, if a share of 0 to 1 of them are.
    pub fn samples(share: f64) -> bool {
        share > 0.0 && (share >= 1.0 || rand::random::<f64>() < share)
    }

    /// A request was answered, or upgraded.
    pub fn request(self: &Rc<Self>, request: &Request<'_>) {
        self.append(Line::of_request(request));
    }

    /// A TLS connection was passed on, or not.
    pub fn passthrough(self: &Rc<Self>, passthrough: &Passthrough<'_>) {
        self.append(Line::of_passthrough(passthrough));
    }

    /// An upgraded connection has ended.
    pub fn close(self: &Rc<Self>, close: &Close<'_>) {
        self.append(Line::of_close(close));
    }

    /// An upgraded connection goes on without the sidecar, after so much. Who ends it is not known yet.
    pub fn splice(self: &Rc<Self>, so_far: &Close<'_>) {
        self.append(Line::of_splice(so_far));
    }

    /// Lines that could not be written.
    pub fn lost(&self) -> u64 {
        self.writer.lost()
    }

    /// Hands over what is there, and waits for as long until it is written: before the worker ends.
    pub fn finish(&self, patience: Duration) {
        self.flush();
        self.writer.wait(patience);
    }

    fn append(self: &Rc<Self>, line: Line<'_>) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            let log = Rc::downgrade(self);
            tokio::task::spawn_local(async move {
                tokio::time::sleep(PATIENCE).await;
                if let Some(log) = log.upgrade() {
                    log.flush();
                }
            });
        }
        line.write(SystemTime::now(), &mut buffer);
        self.lines.set(self.lines.get() + 1);
        if buffer.len() >= PIECE {
            drop(buffer);
            self.flush();
        }
    }

    fn flush(&self) {
        let piece = std::mem::take(&mut *self.buffer.borrow_mut());
        let lines = self.lines.take();
        if !piece.is_empty() {
            self.writer.write(piece, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Read};

    use serde_json::Value;
    use tokio::task::LocalSet;

    use super::{line::tests::request, *};

    async fn on_local_set(test: impl Future<Output = ()>) {
        LocalSet::new().run_until(test).await;
    }

    fn lines(bytes: &[u8]) -> Vec<Value> {
        let lines = std::str::from_utf8(bytes).unwrap().lines();
        lines.map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[tokio::test]
    async fn lines_are_written_whole_and_in_order_soon() {
        on_local_set(async {
            let (mut reader, writer) = io::pipe().unwrap();
            let log = AccessLog::new(writer.into()).unwrap();
            for status in 200..300 {
                log.request(&Request { status, ..request() });
            }
            let reading = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                let mut chunk = [0; 4_096];
                while bytes.iter().filter(|byte| **byte == b'\n').count() < 100 {
                    let n = reader.read(&mut chunk).unwrap();
                    bytes.extend_from_slice(&chunk[..n]);
                }
                bytes
            });
            let lines = lines(&reading.await.unwrap());
            let statuses: Vec<u64> =
                lines.iter().map(|it| it["status"].as_u64().unwrap()).collect();
            assert_eq!(statuses, (200..300).collect::<Vec<_>>());
            assert_eq!(log.lost(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
        on_local_set(async {
            let (reader, writer) = io::pipe().unwrap();
            let log = AccessLog::new(writer.into()).unwrap();
            // Far more than the pipe and the writer's queue hold.
            let mut written = 0;
            while log.lost() == 0 {
                log.request(&request());
                written += 1;
                assert!(written < 1_000_000, "nothing is lost");
            }
            assert!(log.lost() < written);
            drop(reader);
        })
        .await;
    }

    #[tokio::test]
    async fn another_file_gets_what_comes_after() {
        on_local_set(async {
            let ((mut old, writer), (mut new, other)) = (io::pipe().unwrap(), io::pipe().unwrap());
            let log = AccessLog::new(writer.into()).unwrap();
            log.request(&Request { status: 201, ..request() });
            log.replace(other.into());
            log.request(&Request { status: 202, ..request() });
            log.finish(Duration::from_secs(10));
            drop(log);
            let mut bytes = Vec::new();
            old.read_to_end(&mut bytes).unwrap();
            assert_eq!(lines(&bytes)[0]["status"], 201);
            bytes.clear();
            new.read_to_end(&mut bytes).unwrap();
            assert_eq!(lines(&bytes)[0]["status"], 202);
        })
        .await;
    }

    #[test]
    fn a_share_of_the_connections_is_sampled() {
        assert!((0..100).all(|_| AccessLog::samples(1.0) && !AccessLog::samples(0.0)));
        let sampled = (0..10_000).filter(|_| AccessLog::samples(0.1)).count();
        // Ten standard deviations.
        assert!((700..1_300).contains(&sampled), "{sampled}");
    }
}
