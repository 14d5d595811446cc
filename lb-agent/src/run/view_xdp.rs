//! What the program measures, and what the kernel measures of it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use aya::programs::ProgramInfo;
use lb_common::rtt::{self, HandshakeRtt};

use super::status::{Histogram, XdpRuns};
use crate::bpf::{PinDir, rtt::HandshakeRtts};

/// Round trips of handshakes by service, without those that had none.
pub fn handshakes<'a>(
    pins: &PinDir,
    services: impl Iterator<Item = (u16, &'a str)>,
) -> Result<BTreeMap<String, Histogram>> {
    let rtts = HandshakeRtts::open(pins)?;
    let mut all = BTreeMap::new();
    for (id, name) in services {
        let rtt = rtts.service(id)?;
        if rtt != HandshakeRtt::default() {
            all.insert(name.to_owned(), histogram(&rtt));
        }
    }
    Ok(all)
}

fn histogram(rtt: &HandshakeRtt) -> Histogram {
    let counts = rtt.buckets.iter().enumerate().map(|(n, count)| (rtt::bound(n), *count));
    Histogram { seconds: rtt.micros as f64 / 1e6, counts: counts.collect() }
}

/// The usual program's runs, if the kernel has ever counted one.
pub fn runs(pins: &PinDir) -> Result<Option<XdpRuns>> {
    let path = pins.program_path();
    let info = ProgramInfo::from_pin(&path).with_context(|| path.display().to_string())?;
    let (runs, time) = (info.run_count(), info.run_time());
    Ok((runs > 0).then_some(XdpRuns { seconds: time.as_secs_f64(), runs }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_bucket_has_no_bound() {
        let mut rtt = HandshakeRtt { micros: 1_500_000, ..HandshakeRtt::default() };
        rtt.buckets[0] = 2;
        rtt.buckets[rtt::BUCKETS - 1] = 1;
        let shown = histogram(&rtt);
        assert_eq!((shown.seconds, shown.counts[0]), (1.5, (Some(64), 2)));
        assert_eq!(shown.counts.last(), Some(&(None, 1)));
    }
}
