//! How much a test does: enough to be sure in seconds, or what takes minutes.

/// Set to 1 for longer traffic; `cargo xtask test --full` does.
pub const VARIABLE: &str = "SLUICE_TEST_FULL";

/// The first of the two in a quick run, the second in a full one.
#[must_use]
pub fn choose<T>(quick: T, full: T) -> T {
    if std::env::var(VARIABLE).is_ok_and(|value| value == "1") { full } else { quick }
}
