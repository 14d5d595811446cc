//! `[service.outlier]`: when a backend that its health checks find well is ejected, for what its clients meet.

use std::time::Duration;

use super::duration;
use super::reader::{Reader, Section};

pub(super) static OUTLIER: Section = Section {
    heading: "[service.outlier]",
    keys: &[
        "consecutive_connect_failures",
        "consecutive_5xx",
        "consecutive_handshake_failures",
        "base_ejection_time",
        "max_ejection_time",
        "max_ejection_percent",
    ],
};

/// When a backend is ejected, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// Connects in a row that failed, up to 1,000; 0: as many as they may be.
    pub consecutive_connect_failures: u32,
    /// Requests in a row that were answered with 5xx or not at all, likewise.
    pub consecutive_5xx: u32,
    /// Upgrades in a row that were refused with 5xx or broken off, likewise.
    pub consecutive_handshake_failures: u32,
    /// How long the first ejection lasts, 1 s to 1 h; the second one twice as long, and so on.
    pub base_ejection_time: Duration,
    /// And never longer than this: `base_ejection_time` to 1 d.
    pub max_ejection_time: Duration,
    /// Of the backends that have a weight, 1 to 100; rounded down, but at least one.
    pub max_ejection_percent: u32,
}

pub(super) fn read(reader: &Reader<'_>) -> Outlier {
    let count = |key| reader.integer(key, 0..=1_000, 5);
    let base = reader.duration(
        "base_ejection_time",
        Duration::from_secs(1)..=Duration::from_secs(3_600),
        Duration::from_secs(30),
    );
    Outlier {
        consecutive_connect_failures: count("consecutive_connect_failures"),
        consecutive_5xx: count("consecutive_5xx"),
        consecutive_handshake_failures: count("consecutive_handshake_failures"),
        base_ejection_time: base,
        max_ejection_time: longest(reader, base),
        max_ejection_percent: reader.integer("max_ejection_percent", 1..=100, 50),
    }
}

fn longest(reader: &Reader<'_>, base: Duration) -> Duration {
    let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
    let longest = reader.duration("max_ejection_time", range, base.max(Duration::from_secs(300)));
    if longest < base
        && let Some(field) = reader.field("max_ejection_time")
    {
        let base = duration::format(base);
        field.refuse(
            format!("is shorter than base_ejection_time {base:?}"),
            format!("write at least {base:?}"),
        );
    }
    longest
}
