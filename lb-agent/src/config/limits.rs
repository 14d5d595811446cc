//! `[service.limits]`: how much sources, the service and its backends may have.

use std::time::Duration;

use lb_sidecar::settings::Limits;

use super::reader::{Reader, Section};

pub(super) static LIMITS: Section = Section {
    heading: "[service.limits]",
    keys: &[
        "connections",
        "handshakes_per_second",
        "connections_per_source",
        "handshakes_per_second_per_source",
        "handshake_burst",
        "source_prefix_ipv4",
        "source_prefix_ipv6",
        "connections_per_backend",
        "queue",
        "queue_timeout",
        "bytes_per_second",
        "body_bytes",
    ],
};

/// The lowest pace: what a socket gives at a time takes a few seconds then, less than any usual timeout.
const SLOWEST: u32 = 16_384;

pub(super) fn read(reader: &Reader<'_>) -> Limits {
    let most = |key, most| reader.integer(key, 0..=most, 0);
    let prefix = |key, most: u8, default: u8| {
        let bits = reader.integer(key, 0..=u32::from(most), u32::from(default));
        u8::try_from(bits).unwrap_or(default)
    };
    let bytes_per_second = most("bytes_per_second", u32::MAX);
    if (1..SLOWEST).contains(&bytes_per_second)
        && let Some(field) = reader.field("bytes_per_second")
    {
        field.refuse("is too slow", format!("write 0 for no limit, or at least {SLOWEST}"));
    }
    Limits {
        connections: most("connections", 16_777_216),
        handshakes_per_second: most("handshakes_per_second", 1_000_000),
        connections_per_source: most("connections_per_source", 1_000_000),
        handshakes_per_second_per_source: most("handshakes_per_second_per_source", 1_000_000),
        handshake_burst: reader.integer("handshake_burst", 1..=1_000_000, 20),
        source_prefix_ipv4: prefix("source_prefix_ipv4", 32, 32),
        source_prefix_ipv6: prefix("source_prefix_ipv6", 128, 64),
        connections_per_backend: most("connections_per_backend", 16_777_216),
        queue: reader.integer("queue", 0..=65_536, 128),
        queue_timeout: reader.duration(
            "queue_timeout",
            Duration::from_millis(10)..=Duration::from_secs(60),
            Duration::from_secs(5),
        ),
        bytes_per_second,
        body_bytes: most("body_bytes", u32::MAX),
    }
}
