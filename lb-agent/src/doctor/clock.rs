//! Whether the clock is right: cookies have times in them, and edges must agree on them.

use nix::libc;

use super::Finding;

/// Cookies issued further in the future are not believed, see `docs/affinity.md`.
const TOLERATED: &str = "5 minutes";

/// Whether the kernel holds the clock for synchronised; none if it does not say.
pub fn gather() -> Option<bool> {
    // SAFETY: all zeros are a valid value of this plain struct, and with `modes` 0 the call only fills it in.
    let state = unsafe {
        let mut clock: libc::timex = std::mem::zeroed();
        libc::adjtimex(&raw mut clock)
    };
    (state >= 0).then_some(state != libc::TIME_ERROR)
}

pub fn judge(synchronised: Option<bool>) -> Vec<Finding> {
    vec![match synchronised {
        Some(true) => Finding::ok("clock", "synchronised"),
        Some(false) => Finding::warning(
            "clock",
            format!(
                "not synchronised: edges whose clocks differ by {TOLERATED} do not believe each other's cookies"
            ),
            "run chrony or systemd-timesyncd (`timedatectl set-ntp true`)",
        ),
        None => Finding::warning("clock", "its state cannot be read", "look with `timedatectl`"),
    }]
}

#[cfg(test)]
mod tests {
    use super::{super::tests::short, *};

    #[test]
    fn a_clock_that_nobody_keeps_is_worth_a_warning() {
        assert!(gather().is_some());
        for (state, wanted) in [(Some(true), "ok"), (Some(false), "warning"), (None, "warning")] {
            assert_eq!(short(&judge(state)), [format!("{wanted} clock")]);
        }
    }
}
