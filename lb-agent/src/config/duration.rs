//! Durations as an operator writes them: one whole number and one unit, `"250ms"` or `"7d"`.

use std::time::Duration;

/// Unit and its length in milliseconds, the longest first.
const UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a duration, or says what is wrong with the text.
pub(crate) fn parse(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("is not a duration");
    }
    if unit.is_empty() {
        return Err("has no unit");
    }
    let Some((_, milliseconds)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("is not one whole number and one unit");
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(*milliseconds))
        .map(Duration::from_millis)
        .ok_or("is too long to count")
}

/// Writes a duration as [`parse`] reads it, in the longest unit that divides it.
pub(super) fn format(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    let (unit, length) =
        UNITS.iter().find(|(_, length)| milliseconds % length == 0).unwrap_or(&("ms", 1));
    format!("{}{unit}", milliseconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_every_unit() {
        for (text, milliseconds) in [
            ("250ms", 250),
            ("2s", 2_000),
            ("5m", 300_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
            assert_eq!(format(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, what) in [
            ("", "is not a duration"),
            ("soon", "is not a duration"),
            ("-1s", "is not a duration"),
            (" 1s", "is not a duration"),
            ("10", "has no unit"),
            ("1.5s", "is not one whole number and one unit"),
            ("1h30m", "is not one whole number and one unit"),
            ("1 s", "is not one whole number and one unit"),
            ("1S", "is not one whole number and one unit"),
            ("99999999999999999999s", "is too long to count"),
            ("18446744073709551615d", "is too long to count"),
        ] {
            assert_eq!(parse(text), Err(what), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn written_durations_read_back(milliseconds: u64) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse(&format(duration)), Ok(duration));
        }
    }
}
