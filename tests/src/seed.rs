//! Seeds: every random test says which one it uses, and takes it back.

/// The variable that brings a run back.
pub const VARIABLE: &str = "SLUICE_SEED";

/// The seed in [`VARIABLE`], or a fresh one; printed, so that a failure shows it.
///
/// # Panics
/// If the variable is not a number.
#[must_use]
pub fn seed(what: &str) -> u64 {
    let seed = match std::env::var(VARIABLE) {
        Ok(text) => {
            text.parse().unwrap_or_else(|_| panic!("{VARIABLE}={text}: not a number of 64 bits"))
        }
        Err(_) => rand::random(),
    };
    eprintln!("{what}: seed {seed} ({VARIABLE}={seed} brings it back)");
    seed
}
