//! The numbers, and how they compare with what they must reach.

use std::fmt::Debug;

use anyhow::Result;
use serde::Serialize;

use super::Spread;

#[derive(Serialize)]
struct Number<W> {
    what: W,
    unit: &'static str,
    target: &'static str,
    #[serde(flatten)]
    spread: Spread,
}

#[derive(Serialize)]
struct Verdict<W> {
    what: W,
    /// Of what it is said.
    about: String,
    value: f64,
    /// None where nothing was promised.
    promise: Option<String>,
    kept: Option<bool>,
}

/// `<=` or `>=`, and the value.
pub type Promise = (&'static str, f64);

/// Prints as it goes, unless it is JSON in the end. `W` says what was measured.
pub struct Report<W> {
    json: bool,
    numbers: Vec<Number<W>>,
    verdicts: Vec<Verdict<W>>,
}

impl<W: Copy + Debug + PartialEq + Serialize> Report<W> {
    pub fn new(json: bool) -> Self {
        if !json {
            println!(
                "{:<10} {:<28} {:<10} {:>12} {:>12} {:>12}",
                "what", "unit", "target", "median", "quartiles", ""
            );
        }
        Self { json, numbers: Vec::new(), verdicts: Vec::new() }
    }

    pub fn number(&mut self, what: W, unit: &'static str, target: &'static str, spread: Spread) {
        if !self.json {
            println!(
                "{:<10} {unit:<28} {target:<10} {:>12} {:>12} {:>12}",
                format!("{what:?}").to_lowercase(),
                shown(spread.median),
                shown(spread.quartiles[0]),
                shown(spread.quartiles[1]),
            );
        }
        self.numbers.push(Number { what, unit, target, spread });
    }

    fn median(&self, what: W, unit: &str, target: &str) -> Option<f64> {
        let mut numbers = self.numbers.iter();
        let found = numbers.find(|it| (it.what, it.unit, it.target) == (what, unit, target));
        found.map(|it| it.spread.median)
    }

    /// How the first one's median is to the other's. Nothing is said if one was not measured.
    pub fn ratio(
        &mut self,
        what: W,
        unit: &'static str,
        [one, other]: [&'static str; 2],
        promise: Option<Promise>,
    ) {
        let medians = (self.median(what, unit, one), self.median(what, unit, other));
        let (Some(a), Some(b)) = medians else { return };
        self.verdict(what, format!("{unit}: {one} / {other}"), a / b, promise);
    }

    /// Whether a median is as promised.
    pub fn bound(&mut self, what: W, unit: &'static str, target: &'static str, promise: Promise) {
        let Some(median) = self.median(what, unit, target) else { return };
        self.verdict(what, format!("{unit}: {target}"), median, Some(promise));
    }

    fn verdict(&mut self, what: W, about: String, value: f64, promise: Option<Promise>) {
        let kept =
            promise.map(|(sign, bound)| if sign == "<=" { value <= bound } else { value >= bound });
        let promise = promise.map(|(sign, bound)| format!("{sign} {bound}"));
        if !self.json {
            let judged = match (&promise, kept) {
                (Some(promise), Some(true)) => format!("reached: {promise}"),
                (Some(promise), _) => format!("MISSED: {promise}"),
                (None, _) => String::new(),
            };
            let what = format!("{what:?}").to_lowercase();
            println!("{what:<10} {about:<48} {:>12} {judged}", shown(value));
        }
        self.verdicts.push(Verdict { what, about, value, promise, kept });
    }

    pub fn finish(self) -> Result<()> {
        if self.json {
            let all = serde_json::json!({ "numbers": self.numbers, "verdicts": self.verdicts });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
        Ok(())
    }
}

fn shown(value: f64) -> String {
    if value.abs() < 1000.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
