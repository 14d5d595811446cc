//! The status as Prometheus reads it: tables of metrics, which the documentation is held to, and the text of them.
//!
//! Names and labels are stable. Counters start anew with the agent (`sluice_flows_ended_total`), with a worker
//! (what the sidecar counts) or with the maps (what XDP counts); rates take that as a reset. A metric is written in the
//! file of what it is about, with its whole name, and in docs/metrics.md.

mod backends;
mod edge;
mod packets;
mod services;
mod sidecar;
mod splice;
mod text;
mod times;
mod xdp;

use super::status::Status;

use text::Samples;
pub use text::{Format, text};

/// All of them.
pub const ALL: &[&[Metric]] = &[
    edge::METRICS,
    packets::METRICS,
    xdp::METRICS,
    services::METRICS,
    times::METRICS,
    splice::METRICS,
    backends::METRICS,
    sidecar::METRICS,
];

/// A metric, and where its values come from.
pub struct Metric {
    /// That of its samples, with the suffixes of unit and counter.
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// Without a sample the metric is not there.
    samples: fn(&Status, &mut Samples<'_>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// In seconds.
    Histogram,
}

/// A table of metrics: kind, name, labels, what it says, and who puts the samples.
macro_rules! metrics {
    ($($kind:ident $name:literal [$($label:literal)*] $help:literal: $samples:expr;)+) => {
        pub const METRICS: &[super::Metric] = &[$(super::Metric {
            name: $name,
            help: $help,
            kind: super::Kind::$kind,
            labels: &[$($label),*],
            samples: $samples,
        }),+];
    };
}

use metrics;

fn truth(value: bool) -> f64 {
    f64::from(u8::from(value))
}

#[cfg(test)]
mod tests;
