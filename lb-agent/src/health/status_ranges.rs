//! The status codes that count as healthy, as an operator writes them.

use std::{fmt, ops::RangeInclusive, str::FromStr};

/// Status codes, as in `200-299` or `200-299,304`; every code is within 100 to 599.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl Default for StatusRanges {
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

impl StatusRanges {
    /// Whether `status` is one of the codes.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl From<u16> for StatusRanges {
    /// This code alone.
    fn from(status: u16) -> Self {
        Self(vec![status..=status])
    }
}

impl FromStr for StatusRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split(',').map(|part| status_range(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn status_range(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse(), last.trim().parse()) {
        (Ok(first), Ok(last)) if 100 <= first && first <= last && last <= 599 => Ok(first..=last),
        _ => {
            Err(format!("status {text:?}: not a code or range within 100-599, such as \"200-299\""))
        }
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, range) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_ranges_are_read_and_shown_alike() {
        for text in ["200-299", "200", "200-299,304", "100-599"] {
            assert_eq!(text.parse::<StatusRanges>().expect(text).to_string(), text);
        }
        for text in ["", "99", "200-", "299-200", "600", "200;201", "-1", "200-299,"] {
            let problem = text.parse::<StatusRanges>().expect_err(text);
            assert!(problem.contains("within 100-599"), "{problem}");
        }
        let ranges: StatusRanges = "200-204, 304".parse().unwrap();
        assert!(
            ranges.contains(204)
                && ranges.contains(304)
                && !ranges.contains(205)
                && !ranges.contains(199)
        );
    }
}
