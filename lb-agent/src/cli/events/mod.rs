//! `lb-agent events`: what has happened on a running edge.

mod follow;

use std::{thread, time::Duration};

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::client::{Client, Where};
use follow::{Follower, Page, Told};

/// Between two looks for something new.
const LOOK: Duration = Duration::from_millis(500);

#[derive(Args)]
pub struct Arguments {
    /// Go on with what happens from now on, also when another agent takes over
    #[arg(long, short)]
    follow: bool,
    /// At most so many of those that have happened, the newest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    #[command(flatten)]
    at: Where,
}

pub fn events(arguments: &Arguments) -> Result<()> {
    let Arguments { follow, limit, at } = arguments;
    let client = Client::new(at)?;
    let mut follower = Follower::default();
    let mut page: Page = client.get(&follower.path(*limit))?;
    loop {
        let more = match follower.take(page) {
            Told::New { events, forgotten } => {
                if forgotten > 0 {
                    note(&format!("{forgotten} events came too fast and are forgotten"));
                }
                for event in &events {
                    match at.json {
                        true => println!("{event}"),
                        false => println!("{}", shown(event)),
                    }
                }
                !events.is_empty()
            }
            Told::Another => {
                note("another agent goes on; what the one before had not told yet is lost");
                true
            }
        };
        if !follow {
            return Ok(());
        }
        if !more {
            thread::sleep(LOOK);
        }
        page = client.patiently(&follower.path(*limit), "events");
    }
}

/// Beside the events, which may go into a pipe.
fn note(text: &str) {
    eprintln!("lb-agent events: {text}");
}

fn shown(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let place: Vec<_> =
        ["service", "backend"].map(text).into_iter().filter(|it| !it.is_empty()).collect();
    let time = clock(event["time"].as_u64().unwrap_or(0) / 1_000);
    let line = format!("{time}  {:<18} {:<24} {}", text("kind"), place.join("/"), text("text"));
    line.trim_end().to_owned()
}

/// Date and time of day as UTC has it, from seconds of Unix time.
pub(super) fn clock(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

/// Year, month and day, from days since the beginning of 1970.
fn date(days: u64) -> (u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "1970-01-01 00:00:00Z"),
            (951_782_400, "2000-02-29 00:00:00Z"),
            (1_798_761_599, "2026-12-31 23:59:59Z"),
        ] {
            assert_eq!(clock(seconds), wanted);
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let event = json!({ "id": 1, "time": 61_000, "kind": "backend_down", "service": "chat",
            "backend": "b2", "text": "refused" });
        let line = shown(&event);
        assert!(line.starts_with("1970-01-01 00:01:01Z  backend_down"), "{line}");
        assert!(line.contains("chat/b2") && line.ends_with("refused"), "{line}");
    }
}
