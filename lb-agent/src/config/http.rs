//! `[service.http]`: limits and timeouts of an l7 service's HTTP.

use std::time::Duration;

use lb_sidecar::settings::Http;

use super::reader::{Reader, Section};

pub(super) static HTTP: Section = Section {
    heading: "[service.http]",
    keys: &[
        "head_timeout",
        "body_timeout",
        "connect_timeout",
        "response_timeout",
        "keep_alive",
        "head_bytes",
        "retries",
        "pool",
        "tcp_keepalive",
        "tcp_user_timeout",
        "h2c",
        "max_streams",
    ],
};

pub(super) fn read(reader: &Reader<'_>, idle_timeout: Duration) -> Http {
    let tenth = Duration::from_millis(100);
    let (minute, hour) = (seconds(60), seconds(3_600));
    Http {
        head_timeout: reader.duration("head_timeout", tenth..=hour, seconds(10)),
        body_timeout: reader.duration("body_timeout", tenth..=hour, seconds(30)),
        connect_timeout: reader.duration(
            "connect_timeout",
            Duration::from_millis(10)..=minute,
            seconds(2),
        ),
        response_timeout: reader.duration("response_timeout", tenth..=seconds(86_400), minute),
        keep_alive: reader.duration("keep_alive", seconds(1)..=hour, minute),
        idle_timeout,
        head_bytes: reader.integer("head_bytes", 1_024..=65_536, 16_384),
        retries: reader.integer("retries", 0..=10, 2),
        pool: reader.integer("pool", 0..=1_024, 32),
        tcp_keepalive: tcp_keepalive(reader, minute),
        tcp_user_timeout: reader.duration("tcp_user_timeout", Duration::ZERO..=hour, seconds(30)),
        h2c: reader.flag("h2c", false),
        max_streams: reader.integer("max_streams", 1..=1_000, 128),
    }
}

/// The kernel counts it in seconds.
fn tcp_keepalive(reader: &Reader<'_>, default: Duration) -> Duration {
    let idle = reader.duration("tcp_keepalive", Duration::ZERO..=seconds(7_200), default);
    if idle.subsec_millis() > 0
        && let Some(field) = reader.field("tcp_keepalive")
    {
        field.refuse("is not a whole number of seconds", r#"write e.g. "60s""#);
    }
    idle
}

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}
