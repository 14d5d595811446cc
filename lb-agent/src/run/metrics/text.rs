//! The text of the metrics, in the two forms that Prometheus reads.
//!
//! Written by hand: an edge with thousands of backends has hundreds of thousands of samples, and each costs no more than
//! the bytes of its line.

use std::fmt::Write as _;

use super::{ALL, Kind, Metric};
use crate::run::status::{Histogram, Status};

/// How the text is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The text format of Prometheus 0.0.4, which everything reads.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What the header `Accept` of a request asks for.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        let wants = |media: &str| accept.split(',').any(|it| it.trim_start().starts_with(media));
        match wants("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// The header `Content-Type` of the text.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What the text of an edge and of a backend is long, about: a text of megabytes that grows by doubling is copied as often.
const BYTES: usize = 64 << 10;
const BYTES_OF_BACKEND: usize = 2 << 10;

/// The text of a status.
#[must_use]
pub fn text(status: &Status, format: Format) -> String {
    let backends: usize = status.services.iter().map(|it| it.backends.len()).sum();
    let mut text = String::with_capacity(BYTES + backends * BYTES_OF_BACKEND);
    for metric in ALL.iter().copied().flatten() {
        let mut samples = Samples { text: &mut text, metric, format, begun: false };
        (metric.samples)(status, &mut samples);
    }
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

/// Takes the samples of one metric.
pub struct Samples<'a> {
    text: &'a mut String,
    metric: &'a Metric,
    format: Format,
    begun: bool,
}

impl Samples<'_> {
    /// A value, and those of the labels in their order.
    pub fn put(&mut self, labels: &[&str], value: f64) {
        self.begin();
        self.line("", labels, None, Number::Value(value));
    }

    /// The same of a count.
    pub fn count(&mut self, labels: &[&str], count: u64) {
        self.put(labels, count as f64);
    }

    /// All lines of a histogram.
    pub fn histogram(&mut self, labels: &[&str], histogram: &Histogram) {
        self.begin();
        let mut count = 0;
        for (micros, more) in &histogram.counts {
            count += more;
            let bound = micros.map_or("+Inf".to_owned(), |it| (it as f64 / 1e6).to_string());
            self.line("_bucket", labels, Some(&bound), Number::Count(count));
        }
        self.line("_sum", labels, None, Number::Value(histogram.seconds));
        self.line("_count", labels, None, Number::Count(count));
    }

    fn begin(&mut self) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        let Metric { name, help, kind, .. } = self.metric;
        let family = match self.format {
            Format::Prometheus => name,
            Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
        };
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        // A String takes everything.
        _ = write!(self.text, "# HELP {family} ");
        escaped(self.text, help, false);
        _ = write!(self.text, ".\n# TYPE {family} {kind}\n");
        let units = ["seconds", "bytes"];
        let unit = units.iter().find(|unit| family.ends_with(*unit));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: Number) {
        debug_assert_eq!(labels.len(), self.metric.labels.len(), "{}", self.metric.name);
        self.text.push_str(self.metric.name);
        self.text.push_str(suffix);
        let names = self.metric.labels.iter().copied();
        let pairs = names.zip(labels.iter().copied()).chain(bound.map(|bound| ("le", bound)));
        let mut before = '{';
        for (name, value) in pairs {
            self.text.push(before);
            self.text.push_str(name);
            self.text.push_str("=\"");
            escaped(self.text, value, true);
            self.text.push('"');
            before = ',';
        }
        self.text.push_str(if before == ',' { "} " } else { " " });
        // Whole numbers are most of them, and are written much faster. A String takes everything.
        _ = match value {
            Number::Count(count) => writeln!(self.text, "{count}"),
            Number::Value(value) if value.fract() == 0.0 && (0.0..1e15).contains(&value) => {
                writeln!(self.text, "{}.0", value as u64)
            }
            Number::Value(value) => writeln!(self.text, "{value:?}"),
        };
    }
}

/// As it is written: of a histogram, counts are whole numbers (OpenMetrics 1.0.0, "Numbers").
#[derive(Clone, Copy)]
enum Number {
    Value(f64),
    Count(u64),
}

/// As both formats want it in the value of a label, or in a help text.
fn escaped(text: &mut String, value: &str, quoted: bool) {
    if !value.contains(['\\', '\n', '"']) {
        text.push_str(value);
        return;
    }
    for letter in value.chars() {
        match letter {
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '"' if quoted => text.push_str("\\\""),
            _ => text.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_openmetrics_gets_it() {
        for (accept, wanted) in [
            ("", Format::Prometheus),
            ("*/*", Format::Prometheus),
            ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", Format::Prometheus),
            (
                "application/openmetrics-text;version=1.0.0;q=0.8, text/plain;version=0.0.4;q=0.5",
                Format::OpenMetrics,
            ),
        ] {
            assert_eq!(Format::accepted(accept), wanted, "{accept}");
        }
    }
}
