//! Sets of HTTP status codes: `"200-299, 304"`.

use std::fmt;
use std::ops::RangeInclusive;

use super::reader::Field;

/// A set of HTTP status codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

impl StatusSet {
    /// Whether the code is in the set.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// As it would be written in the configuration: `200-299, 304`.
impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            if range.start() == range.end() {
                write!(f, "{comma}{}", range.start())?;
            } else {
                write!(f, "{comma}{}-{}", range.start(), range.end())?;
            }
        }
        Ok(())
    }
}

/// Success as HTTP has it: 200 to 299.
impl Default for StatusSet {
    fn default() -> Self {
        Self(vec![200..=299])
    }
}

/// `204`, `"200-299"`, `"200-299, 304"` or an array of those.
pub(super) fn read(field: &Field<'_>) -> Option<StatusSet> {
    let mut ranges = Vec::new();
    if field.is_array() {
        let elements = field.elements(64, r#"["200-299", 304]"#)?;
        if elements.is_empty() {
            field.refuse("is empty", r#"write e.g. "200-299""#);
        }
        for element in &elements {
            ranges.extend(ranges_of(element)?);
        }
    } else {
        ranges = ranges_of(field)?;
    }
    ranges.sort_by_key(|range| *range.start());
    Some(StatusSet(ranges))
}

fn ranges_of(field: &Field<'_>) -> Option<Vec<RangeInclusive<u16>>> {
    const REMEDY: &str = r#"write codes and ranges from 100 to 599, e.g. "200-299, 304""#;
    if field.is_integer() {
        let code = u16::try_from(field.integer(&(100..=599), 204)?).ok()?;
        return Some(vec![code..=code]);
    }
    let text = field.string(r#""200-299""#)?;
    let code = |text: &str| {
        let code: u16 =
            text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())??;
        (100..=599).contains(&code).then_some(code)
    };
    let range = |part: &str| {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high) = (code(low)?, code(high)?);
        (low <= high).then_some(low..=high)
    };
    let ranges: Option<Vec<_>> = text.split(',').map(|part| range(part.trim())).collect();
    if ranges.is_none() {
        field.refuse("is not a set of status codes", REMEDY);
    }
    ranges
}
