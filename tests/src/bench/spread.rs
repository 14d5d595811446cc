//! Samples of one number.

use serde::Serialize;

/// The middle of some samples and how far they spread.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub quartiles: [f64; 2],
}

impl Spread {
    pub fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        // Between two samples: in proportion, or a quartile of three would be their middle.
        let at = |share: f64| {
            let place = (samples.len() - 1) as f64 * share;
            let (low, high) = (samples[place.floor() as usize], samples[place.ceil() as usize]);
            low + (high - low) * place.fract()
        };
        Self { median: at(0.5), quartiles: [at(0.25), at(0.75)] }
    }
}
