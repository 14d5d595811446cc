//! How long things take: histograms with fixed bounds, one per service and kind of thing. To note a time costs a search
//! among the bounds and two additions; it needs no lock and no memory.

use std::{cell::Cell, time::Duration};

use crate::control::TimeReport;

/// Upper bounds of the buckets, in microseconds, each within its bucket; one bucket more has what takes longer. Reports have
/// counts by place: other bounds are another [`VERSION`](crate::control::VERSION).
pub const BOUNDS_MICROS: [u64; 17] = [
    100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

const BUCKETS: usize = BOUNDS_MICROS.len() + 1;

/// What takes its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Time {
    /// From the moment that a client's connection is let in to the head of its first answer.
    ClientHandshake,
    /// A TLS handshake with a client that was completed.
    TlsHandshake,
    /// From a request's head to the end of its answer; of an upgrade, to the 101.
    Request,
    /// A connection to a backend, with what comes before the request: a PROXY header, TLS.
    BackendConnect,
    /// From the request on its way to a backend to the head of the backend's answer.
    BackendAnswer,
}

impl Time {
    pub const ALL: &[Self] = &[
        Self::ClientHandshake,
        Self::TlsHandshake,
        Self::Request,
        Self::BackendConnect,
        Self::BackendAnswer,
    ];

    /// The name in reports; it never changes.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::ClientHandshake => "client_handshake",
            Self::TlsHandshake => "tls_handshake",
            Self::Request => "request",
            Self::BackendConnect => "backend_connect",
            Self::BackendAnswer => "backend_answer",
        }
    }
}

/// Those of one service, or of one worker.
#[derive(Debug, Default)]
pub struct Times([Histogram; Time::ALL.len()]);

#[derive(Debug)]
struct Histogram {
    counts: [Cell<u64>; BUCKETS],
    micros: Cell<u64>,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { Cell::new(0) }; BUCKETS], micros: Cell::new(0) }
    }
}

impl Times {
    /// It took so long, once more.
    pub fn took(&self, what: Time, time: Duration) {
        let Histogram { counts, micros } = &self.0[what as usize];
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = &counts[BOUNDS_MICROS.partition_point(|bound| *bound < time)];
        bucket.set(bucket.get() + 1);
        micros.set(micros.get().saturating_add(time));
    }

    /// Those that have been noted at all.
    #[must_use]
    pub fn report(&self) -> Vec<TimeReport> {
        let all = Time::ALL.iter().zip(&self.0);
        let noted = all.filter(|(_, it)| it.counts.iter().any(|count| count.get() > 0));
        let reports = noted.map(|(what, it)| TimeReport {
            what: what.label().to_owned(),
            counts: it.counts.iter().map(Cell::get).collect(),
            micros: it.micros.get(),
        });
        reports.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_histogram() {
        let times = Times::default();
        assert_eq!(times.report(), []);
        for (n, what) in Time::ALL.iter().enumerate() {
            assert_eq!(*what as usize, n);
            (0..=n).for_each(|_| times.took(*what, Duration::from_millis(1)));
        }
        for (n, report) in times.report().iter().enumerate() {
            assert_eq!(report.what, Time::ALL[n].label());
            assert_eq!((report.counts[3], report.micros), (n as u64 + 1, (n as u64 + 1) * 1_000));
            assert_eq!(report.counts.iter().sum::<u64>(), n as u64 + 1);
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let times = Times::default();
        let places = |micros| {
            times.took(Time::Request, Duration::from_micros(micros));
            times.report()[0].counts.iter().rposition(|count| *count > 0)
        };
        for (micros, place) in
            [(0, 0), (100, 0), (101, 1), (30_000_000, 16), (30_000_001, 17), (u64::MAX, 17)]
        {
            assert_eq!(places(micros), Some(place), "{micros}");
        }
        assert_eq!(times.report()[0].micros, u64::MAX, "a sum does not wrap");
    }
}
