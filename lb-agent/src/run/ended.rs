//! What becomes known of spliced connections when they have ended: counts, and lines in the workers' access log.
//!
//! The sweeper never waits for the log: lines go to a thread in pieces, and what that cannot take in time is lost, and
//! counted.

use std::{
    collections::BTreeMap,
    fs::File,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use lb_common::addr::Addr;
use lb_sidecar::access_log::{Close, Writer};

use super::roster::Roster;
use crate::flows::{Ended, How};

/// Bytes that are handed over without waiting for more.
const PIECE: usize = 64 << 10;

/// How long the end of the agent waits for the log.
const PATIENCE: Duration = Duration::from_secs(1);

/// Endings since the agent's start, by service and how.
pub type Counts = BTreeMap<String, BTreeMap<How, u64>>;

/// The access log, which the agent opens and the sweeper writes.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Option<Writer>>>);

impl Log {
    /// Writes there from now on.
    pub fn replace(&self, file: &File) -> Result<()> {
        let file = file.try_clone().context("access log")?.into();
        let mut writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*writer {
            Some(writer) => writer.replace(file),
            None => *writer = Some(Writer::start(file).context("access log")?),
        }
        Ok(())
    }

    /// Waits for what is on its way, but not for long.
    pub fn finish(&self) {
        if let Some(writer) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            writer.wait(PATIENCE);
        }
    }

    /// Lines that could not be written.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let writer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().map_or(0, Writer::lost)
    }

    fn write(&self, piece: Vec<u8>, lines: u64) {
        if let Some(writer) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            writer.write(piece, lines);
        }
    }
}

/// Tells of endings as they are found.
pub struct Teller {
    edge: String,
    log: Log,
    counts: Counts,
    /// By service: what is missing to the next line, as a share of it.
    samples: BTreeMap<String, f64>,
    piece: Vec<u8>,
    lines: u64,
}

impl Teller {
    /// For an edge.
    #[must_use]
    pub fn new(edge: &str, log: Log) -> Self {
        let (counts, samples) = (Counts::default(), BTreeMap::new());
        Self { edge: edge.to_owned(), log, counts, samples, piece: Vec::new(), lines: 0 }
    }

    /// Counts these, and hands over their lines.
    pub fn tell<A: Addr + Into<IpAddr>>(
        &mut self,
        ended: Vec<Ended<A>>,
        roster: &Roster,
        now: SystemTime,
    ) {
        for ended in ended {
            self.tell_one(&ended, roster, now);
            if self.piece.len() >= PIECE {
                self.flush();
            }
        }
        self.flush();
    }

    /// What was counted.
    #[must_use]
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    fn tell_one<A: Addr + Into<IpAddr>>(
        &mut self,
        ended: &Ended<A>,
        roster: &Roster,
        now: SystemTime,
    ) {
        let end = |addr: A, port| SocketAddr::new(addr.into(), u16::from_be(port));
        let backend = end(ended.upstream.dst, ended.upstream.dport).to_string();
        let label = roster.label(ended.backend);
        let (service, backend, sample) = match label {
            Some(label) => (label.service.as_str(), label.backend.as_str(), label.sample),
            // Of a removed service that nobody remembers.
            None => ("?", backend.as_str(), 1.0),
        };
        *self.counts.entry(service.to_owned()).or_default().entry(ended.how).or_default() += 1;
        if !self.samples(service, sample) {
            return;
        }
        let close = Close {
            edge: &self.edge,
            service,
            connection: None,
            client: end(ended.client.src, ended.client.sport),
            backend,
            bytes_in: ended.bytes_in,
            bytes_out: ended.bytes_out,
            duration: ended.duration,
            ended_by: ended.how.label(),
        };
        close.write(now, &mut self.piece);
        self.lines += 1;
    }

    /// Whether the next line of a service is written: of a share of a quarter, every fourth. Which connections the
    /// workers have sampled is forgotten.
    fn samples(&mut self, service: &str, share: f64) -> bool {
        let sum = self.samples.entry(service.to_owned()).or_default();
        *sum += share;
        let written = *sum >= 1.0;
        if written {
            *sum -= 1.0;
        }
        written
    }

    fn flush(&mut self) {
        if !self.piece.is_empty() {
            self.log.write(std::mem::take(&mut self.piece), std::mem::take(&mut self.lines));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{self, BufRead, BufReader},
        net::Ipv4Addr,
        os::fd::OwnedFd,
    };

    use lb_common::addr::{Tuple, V4};
    use serde_json::Value;

    use super::*;

    fn ended(client: u16, how: How) -> Ended<V4> {
        let tuple = |src: u8, sport: u16, dst: u8, dport: u16| Tuple {
            src: V4::from(Ipv4Addr::new(10, 0, 0, src)),
            dst: V4::from(Ipv4Addr::new(10, 0, 0, dst)),
            sport: sport.to_be(),
            dport: dport.to_be(),
        };
        Ended {
            client: tuple(1, client, 2, 80),
            upstream: tuple(3, 5_001, 4, 9_000),
            backend: 7,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_secs(3),
            how,
        }
    }

    fn roster(sample: f64) -> Roster {
        let label = super::super::roster::Label {
            service: "chat".into(),
            backend: "chat-1".into(),
            sample,
        };
        Roster::of_labels([(7, label)])
    }

    fn log() -> (impl Iterator<Item = Value>, Log) {
        let (reader, writer) = io::pipe().unwrap();
        let log = Log::default();
        log.replace(&File::from(OwnedFd::from(writer))).unwrap();
        let lines = BufReader::new(reader).lines();
        (lines.map(|line| serde_json::from_str(&line.unwrap()).unwrap()), log)
    }

    #[test]
    fn each_end_is_counted_and_has_a_line_in_the_access_log() {
        let (mut lines, log) = log();
        let mut teller = Teller::new("edge-1", log);
        let all = vec![ended(5_000, How::Closed), ended(5_001, How::Drain)];
        teller.tell(all, &roster(1.0), SystemTime::now());
        let line = lines.next().unwrap();
        assert_eq!((&line["event"], &line["spliced"]), (&"close".into(), &true.into()));
        assert_eq!((&line["edge"], &line["service"]), (&"edge-1".into(), &"chat".into()));
        assert_eq!(
            (&line["client"], &line["backend"]),
            (&"10.0.0.1:5000".into(), &"chat-1".into())
        );
        assert_eq!((&line["bytes_in"], &line["bytes_out"]), (&1.into(), &2.into()));
        assert_eq!((&line["duration_ms"], &line["ended_by"]), (&3000.0.into(), &"closed".into()));
        assert_eq!(lines.next().unwrap()["ended_by"], "drain");
        teller.tell(vec![ended(5_002, How::Lost)], &Roster::default(), SystemTime::now());
        let line = lines.next().unwrap();
        assert_eq!((&line["service"], &line["backend"]), (&"?".into(), &"10.0.0.4:9000".into()));
        let counts = teller.counts();
        assert_eq!(counts["chat"], BTreeMap::from([(How::Closed, 1), (How::Drain, 1)]));
        assert_eq!(counts["?"], BTreeMap::from([(How::Lost, 1)]));
    }

    #[test]
    fn a_share_of_the_lines_is_written_and_all_is_counted() {
        let (mut lines, log) = log();
        let mut teller = Teller::new("edge-1", log);
        for client in 1..=9 {
            teller.tell(vec![ended(client, How::Idle)], &roster(0.25), SystemTime::now());
        }
        teller.tell(vec![ended(10, How::Reset)], &roster(1.0), SystemTime::now());
        let clients: Vec<_> = lines.by_ref().take(3).map(|it| it["client"].clone()).collect();
        assert_eq!(clients, ["10.0.0.1:4", "10.0.0.1:8", "10.0.0.1:10"]);
        assert_eq!(teller.counts()["chat"][&How::Idle], 9);
        teller.tell(vec![ended(11, How::Idle)], &roster(0.0), SystemTime::now());
        drop(teller);
        assert_eq!(lines.count(), 0, "a share of nothing is nothing");
    }
}
