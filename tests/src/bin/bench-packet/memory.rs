//! What a table costs in memory.

use std::{fs, os::fd::RawFd};

use anyhow::{Context, Result};

/// What the kernel says that a map takes, its bucket array included.
pub fn accounted(map: RawFd) -> Result<u64> {
    let path = format!("/proc/self/fdinfo/{map}");
    number(&path, "memlock:")
}

/// Memory which the kernel's allocators hold in objects that cannot be reclaimed, of the whole
/// machine, in bytes. How it grows while a table fills is what the entries really take, the
/// allocator's rounding included.
pub fn unreclaimable() -> Result<u64> {
    number("/proc/meminfo", "SUnreclaim:").map(|kibibytes| kibibytes * 1024)
}

fn number(path: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix(key));
    let line = line.with_context(|| format!("{path}: no {key}"))?;
    let value = line.split_whitespace().next().unwrap_or_default();
    value.parse().with_context(|| format!("{path}: {key}{line}"))
}
