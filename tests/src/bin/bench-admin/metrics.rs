//! How long `/metrics` takes: the connection, the counters from the maps, and the whole text.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::{place, report};

pub fn measure(services: usize, backends: usize, rounds: usize) -> Result<()> {
    let place = place::start(services, backends, 65_536)?;
    let mut millis = Vec::new();
    let mut bytes = 0;
    for _ in 0..rounds {
        let start = Instant::now();
        let answer = place.edge.get("/metrics")?;
        millis.push(start.elapsed().as_secs_f64() * 1e3);
        ensure!(answer.status == 200, "{answer:?}");
        bytes = answer.body.len();
    }
    report(&format!("/metrics, ms ({services} x {backends}, {bytes} bytes)"), millis, Some(50.0));
    Ok(())
}
